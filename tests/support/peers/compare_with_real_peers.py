"""Compare features_from_keys with the real models of timm, torchvision and mmpretrain, or record their tensors.

    PYTHONPATH=.:tests python -m support.peers.compare_with_real_peers [--record]

Needs the three packages: ``pip install --no-deps timm torchvision mmpretrain==1.2.0``, preferably into a folder of
their own that PYTHONPATH names, and for mmpretrain einops, importlib-metadata<8, markdown, mat4py, model-index and
zipp. torchvision may be the CUDA build beside a CPU build of torch, mmpretrain may stand beside a transformers that is
too new for its multimodal models: this script stubs what then fails to import. Every tensor is random, all is float64.
The first difference is the largest of all maps with the tables that the models made in float32, the second that with
exact tables: 0 where both compute in the same order.
"""

import json
import sys
import types
from functools import partial
from pathlib import Path

import torch

from support.peers import PEERS, coords_table, features_from_keys, random_state, recorded
from support.peers.real import build, run

library = torch.library.Library('torchvision', 'DEF')  # a CUDA build beside a CPU torch lacks these two at import
for op in ('nms', 'qnms'):
    library.define(f'{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
sys.modules['mmpretrain.models.multimodal'] = types.SimpleNamespace(__all__=[])

import mmpretrain  # noqa: E402
import timm  # noqa: E402
import torchvision  # noqa: E402

VERSIONS = dict(
    timm=f'timm {timm.__version__}, swinv2_tiny_window8_256 (Apache-2.0)',
    torchvision=f'torchvision {torchvision.__version__.split("+")[0]}, swin_v2_t (BSD-3-Clause)',
    mmpretrain=f'mmpretrain {mmpretrain.__version__}, swinv2-tiny-w8_16xb64_in1k-256px (Apache-2.0)',
)


def difference(name, size, window, pretrained=None, pad_small_map=False, exact=False, **kwargs):
    model, outputs = build(name, size, window, pretrained, pad_small_map=pad_small_map, **kwargs)
    model = model.double().eval()
    state = random_state({k: v.shape for k, v in model.state_dict().items()}, 1, torch.float64, pretrained)
    left = model.load_state_dict({k: v for k, v in state.items() if 'coords_table' not in k}, strict=False)
    assert not left.unexpected_keys and all('relative_' in key for key in left.missing_keys), left
    for key, table in model.named_buffers() if exact else ():
        if key.endswith('relative_coords_table'):
            if key not in state:  # timm does not save its tables
                attn = model.get_submodule(key.rpartition('.')[0])
                p = attn.pretrained_window_size
                state[key] = coords_table(attn.window_size, p if p[0] else attn.window_size)
            table.copy_(state[key])
    image = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    real = run(model, outputs, image)
    with torch.no_grad():
        ours, final = features_from_keys(name, state, image, window, pretrained, pad_small_map)
    worst = torch.stack(
        [(x.permute(0, 2, 3, 1).reshape(y.shape) - y).abs().max() for x, y in zip([*ours, final], real, strict=True)]
    )
    assert worst.isfinite().all(), worst
    return worst.max().item()


def record(name):
    """Write the fixture of the peer's Swin-T."""
    config = dict(
        embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=8, image_size=256, num_classes=1000
    )
    model, _ = build(name, (256, 256), 8, embed=96, classes=1000, depths=config['depths'], heads=config['num_heads'])
    tensors = {key: list(value.shape) for key, value in model.state_dict().items()}
    lines = ',\n'.join(f'{json.dumps(key)}: {json.dumps(shape)}' for key, shape in tensors.items())
    (Path(__file__).parent / f'{name}.json').write_text(
        f'{{"origin": {json.dumps(VERSIONS[name])},\n"config": {json.dumps(config)},\n"tensors": {{\n{lines}}}}}\n'
    )


if __name__ == '__main__':
    for peer in PEERS:
        if '--record' in sys.argv[1:]:
            record(peer)
        print(recorded(peer)['origin'], '- installed:', VERSIONS[peer])
        compare_at = partial(difference, peer)
        small = dict(pad_small_map=True) if peer == 'mmpretrain' else {}
        by_stage = (lambda *w: w) if peer != 'torchvision' else (lambda *w: w[0])  # torchvision: one for all stages
        cases = dict(
            w8_256px=partial(compare_at, (256, 256), 8),
            w8_64px=partial(compare_at, (64, 64), 8, **small),
            w16_256px=partial(compare_at, (256, 256), 16, **small),
            w8_128x256px=partial(compare_at, (128, 256), by_stage(8, 8, 8, 4)),
            w16_128x256px=partial(compare_at, (128, 256), 16, **small),
        )
        if peer != 'torchvision':
            cases['w16_pretrained12'] = partial(compare_at, (256, 256), (16, 16, 16, 8), (12, 12, 12, 6))
        if peer == 'mmpretrain':
            cases['extra_norm'] = partial(compare_at, (128, 128), (8, 8, 8, 4), extra_norm=2)
        for case, compare in cases.items():
            print(f'  {case:18s} {compare():.1e}  {compare(exact=True):.1e}')
