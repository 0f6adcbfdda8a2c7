"""Convert SwinV2 weights of any known layout for swinv2_mm.SwinTransformerV2, or back.

python tools/convert_ckpt.py swinv2_tiny_patch4_window8_256 swinv2_t.pth
python tools/convert_ckpt.py hf://microsoft/swinv2-tiny-patch4-window8-256 swinv2_t.safetensors --verify
python tools/convert_ckpt.py work_dirs/maskrcnn_swinv2_t/epoch_12.pth timm.pth --to timm
python tools/convert_ckpt.py swinv2_tiny_patch4_window8_256 classifier.pth --classifier
python tools/convert_ckpt.py work_dirs/simmim_swinv2_t_192/epoch_800.pth simmim.pth --to simmim
python tools/convert_ckpt.py work_dirs/simmim_swinv2_t_192/epoch_800.pth simmim.safetensors --to huggingface
"""

import argparse
import json
import sys
from pathlib import Path

from swinv2_mm.checkpoints.convert import Rest, export_state_dict, join
from swinv2_mm.checkpoints.files import write_file
from swinv2_mm.checkpoints.layouts import LAYOUTS, MODELS
from swinv2_mm.checkpoints.load import Loaded, open_checkpoint
from swinv2_mm.checkpoints.verify import Difference, account, compare_with_peer, print_report
from swinv2_mm.checkpoints.windows import plain
from swinv2_mm.engine.runs.command_line import Parser, exit_code
from swinv2_mm.errors import UserError

TARGETS = ('microsoft', 'simmim', 'timm', 'huggingface')


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', help='a file, folder, URL, released name (docs/checkpoints.md), or hf://owner/name')
    parser.add_argument('dst', help='the file to write: .safetensors, or .pth')
    parser.add_argument('--source', choices=['auto', *LAYOUTS], default='auto', help='layout of SRC; default auto')
    parser.add_argument('--prefix', help="the text before the backbone's keys, as backbone. in a detector")
    parser.add_argument(
        '--checkpoint-key', metavar='KEY', help='the key of the weights in SRC, as teacher, or model.teacher'
    )
    parser.add_argument('--ema', action='store_true', help='take the running average of the weights')
    windows = 'windows of the first pre-training, one per stage or one for all, where SRC does not tell them'
    parser.add_argument('--pretrained-window-sizes', type=int, nargs='+', metavar='W', help=windows)
    parser.add_argument(
        '--to',
        choices=TARGETS,
        help='write the layout of another code base instead of our own',
    )
    head = "keep the head of a classifier, for MMPretrain's ImageClassifier around our backbone, or for that of --to"
    parser.add_argument('--classifier', action='store_true', help=head)
    verified = 'build the backbone, load strictly, run it, and compare a file of Hugging Face with transformers'
    parser.add_argument('--verify', action='store_true', help=verified)
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    parser.add_argument('--json', action='store_true', help='report as JSON')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(argv)
    dst = Path(args.dst).expanduser()
    if dst.suffix not in ('.pth', '.pt', '.bin', '.safetensors'):
        raise UserError(f'{dst}: name a file that ends in .pth or .safetensors.')
    if dst.exists() and not args.force:
        raise UserError(f'{dst} exists and is kept; choose another name, or give --force to replace it.')
    layout = None if args.source == 'auto' else args.source
    loaded = open_checkpoint(
        args.src,
        layout=layout,
        prefix=args.prefix,
        ema=args.ema,
        checkpoint_key=args.checkpoint_key,
        pretrained_window_sizes=args.pretrained_window_sizes,
    )
    if loaded.pretrained_window_sizes is None:
        raise UserError(
            f'{args.src} does not tell the windows of its first pre-training, which its position bias is normalised '
            'with. Give them: --pretrained-window-sizes 8 for an ImageNet model with window 8; for one that was '
            'fine-tuned with a larger window, those before the fine-tuning, such as 12 12 12 6.'
        )
    rest = rest_of(loaded, args.to, args.classifier)
    difference = verify(loaded) if args.verify else None
    lost = write(loaded, dst, args.to, rest)
    report = account(loaded, dst, args.to, rest, lost, difference)
    print(json.dumps(report, indent=1)) if args.json else print_report(report)


def rest_of(loaded: Loaded, target: str | None, classifier: bool) -> Rest | None:
    """What is written beside the backbone, if anything: a SimMIM stays one where the layout has such a model."""
    if classifier:
        return loaded.rest('classifier')
    whole = loaded.is_whole('simmim') and (target or 'openmmlab') in MODELS['simmim']
    return loaded.rest('simmim') if target == 'simmim' or whole else None


def verify(loaded: Loaded) -> Difference:
    """Build the backbone, load the weights strictly, run it, and compare it with the package of SRC."""
    from swinv2_mm import SwinTransformerV2

    geometry = loaded.conversion.geometry
    backbone = SwinTransformerV2(
        **geometry.arguments(),
        window_size=plain(loaded.windows),
        pretrained_window_sizes=plain(loaded.pretrained_window_sizes),
        out_indices=tuple(range(len(geometry.depths))),
        mask_padding=False,  # as all others do
    )
    return compare_with_peer(backbone.eval(), loaded)


def write(loaded: Loaded, dst: Path, target: str | None, rest: Rest | None) -> list[str]:
    """Write DST; return our names that have no place in the layout of another code base."""
    weights, lost = (loaded.state(), []) if target is None else export_state_dict(loaded.state(), target)
    layout = target or 'openmmlab'
    weights = join(weights, rest, layout) if rest else weights
    try:
        write_file(weights, dst, loaded.meta(), LAYOUTS[layout].container)
    except OSError as error:
        raise UserError(f'{dst} cannot be written: {error}. Nothing was left behind.') from error
    return lost


if __name__ == '__main__':
    sys.exit(exit_code(main))
