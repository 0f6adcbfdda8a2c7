"""Convert ImageNet weights of SwinV2 (Microsoft, Hugging Face) to the names of swinv2_mm.SwinTransformerV2."""

import argparse
import sys
from pathlib import Path

from swinv2_mm.checkpoints.convert import ConversionError, convert_state_dict, recognise, windows_of
from swinv2_mm.checkpoints.files import read_weights, write_weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='a .pth, .bin or .safetensors file')
    parser.add_argument('dst', help='the .pth file to write, for init_cfg=dict(type="Pretrained", checkpoint=DST)')
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    args = parser.parse_args()
    try:
        if Path(args.dst).exists() and not args.force:
            raise ConversionError(f'{args.dst} exists; choose another name, or give --force to replace it.')
        source = read_weights(args.src)
        weights = convert_state_dict(source)
        layout, windows = recognise(list(source))[0], windows_of(source)
        meta = dict(source=Path(args.src).name, layout=layout)
        if windows:
            meta.update(window_size=windows[0], pretrained_window_sizes=windows[1])
        write_weights(weights, args.dst, meta)
    except (ConversionError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{args.dst}: {len(weights)} tensors from {len(source)} of {args.src} ({layout})')
    print(f'pretrained_window_sizes={windows[1]}' if windows else
          'The file does not say its windows: set pretrained_window_sizes to those of its first pre-training.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
