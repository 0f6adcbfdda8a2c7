"""How far the planner of tools/plan.py is from training steps that were measured on this machine's CPU.

    python benchmarks/plan.py --json benchmarks/results/plan.json

Each case takes two steps in fresh processes, on random pictures, as tools/train.py would: the peak is the resident
memory of the fullest process, by Linux, above what it took before the model was built (a small model had run, so code
and libraries are loaded). The planner sees the config alone. Freed memory goes back to Linux at once: malloc maps all
that is larger than 64 KiB.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import GIB, PeakMemory, about, new_table, print_report, report

ROOT = Path(__file__).resolve().parents[1]
MALLOC = dict(MALLOC_ARENA_MAX='1', MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='0', MALLOC_TOP_PAD_='0')


def case(config: str, arch: str, side: int, batch: int = 1, processes: int = 1, way: str = 'ddp', **more: Any) -> dict:
    """A training step: ``more`` are keys of the backbone, ``amp``, and ``objects`` of a picture.

    With 128 objects MMDetection's samplers of Mask R-CNN draw as many boxes as they may, which the planner assumes.
    """
    objects = 0 if config == 'backbone' else more.pop('objects', 128)
    return dict(
        config=config, arch=arch, side=side, batch=batch, processes=processes, way=way, objects=objects, more=more
    )


CASES = [
    case('backbone', 'tiny', 512),
    case('backbone', 'tiny', 512, batch=2, with_cp=True),
    case('backbone', 'tiny', 384, window_size=48, with_cp=True, attn_chunk='auto'),
    case('backbone', 'small', 384),
    case('backbone', 'base', 256, batch=2),
    case('backbone', 'large', 192),
    case('backbone', 'base', 384, with_cp=True, amp=True),
    case('backbone', 'tiny', 512, processes=2),
    case('backbone', 'tiny', 512, processes=2, way='zero1'),
    case('backbone', 'tiny', 512, processes=2, way='fsdp2'),
    case('backbone', 'base', 256, processes=2, way='zero1', with_cp=True),
    case('backbone', 'base', 256, processes=2, way='fsdp2', with_cp=True),
    case('maskrcnn', 'tiny', 384),
    case('maskrcnn', 'tiny', 512, batch=2, with_cp=True),
    case('maskrcnn', 'tiny', 640),
    case('maskrcnn', 'base', 384),
    case('maskrcnn', 'small', 512, with_cp=True, attn_chunk='auto'),
    case('maskrcnn', 'tiny', 320, amp=True),
    case('maskrcnn', 'tiny', 384, processes=2),
    case('maskrcnn', 'tiny', 384, processes=2, way='zero1'),
    case('maskrcnn', 'tiny', 384, processes=2, way='fsdp2'),
    case('maskrcnn', 'tiny', 512, objects=20),
]


def config_of(row: dict) -> Any:
    """The config of a case: SimMIM stands for the backbone alone."""
    from swinv2_mm.engine.config import read_config
    from swinv2_mm.engine.costs.plan.sizes import with_arch

    name = dict(backbone='simmim_swinv2_t_192', maskrcnn='maskrcnn_swinv2_t')[row['config']]
    cfg = with_arch(read_config(str(ROOT / 'configs' / f'{name}.py'), {}, 'train'), row['arch'])
    cfg.model.backbone.update({key: value for key, value in row['more'].items() if key != 'amp'})
    cfg.model.backbone.init_cfg = None
    return cfg


def planned(row: dict) -> dict[str, int]:
    """What the planner says about a case, on the path of this CPU."""
    import torch

    from swinv2_mm.engine.costs.plan.sharding import held
    from swinv2_mm.engine.costs.plan.step import Work, trace

    dtype = torch.bfloat16 if row['more'].get('amp') else None
    work = Work((row['side'], row['side']), row['batch'], max(row['objects'], 1), 'cpu', dtype)
    found = held(trace(config_of(row), work), row['way'], row['processes'])
    return dict(vars(found), total=found.total)


def step(row: dict, rank: int, port: int) -> int:
    """Train two steps in this process, one of several, and return its peak."""
    import torch
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope

    MMLogger.get_current_instance().setLevel(logging.ERROR)

    if row['processes'] > 1:
        address = f'tcp://127.0.0.1:{port}'
        torch.distributed.init_process_group('gloo', address, rank=rank, world_size=row['processes'])
    torch.manual_seed(0)
    cfg = config_of(row)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        small = config_of(row | dict(arch='tiny', more={}))
        small.model.backbone.update(depths=[1, 1, 1, 1])
        train(small, row, pictures(row | dict(side=96, objects=4, batch=1)))
        data = pictures(row)
        gc.collect()
        memory = PeakMemory()
        train(cfg, row, data)
    return memory.above()


def train(cfg: Any, row: dict, data: dict) -> None:
    """Two steps of a config as its runner takes them."""
    import torch
    from mmengine.model import MMDistributedDataParallel
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS

    from swinv2_mm.engine.sharding.fsdp2 import shard

    several = row['processes'] > 1
    model = MODELS.build(cfg.model).train()
    wrapper = dict(cfg.optim_wrapper)
    if row['more'].get('amp'):
        wrapper.update(type='swinv2_mm.AmpOptimWrapper', dtype='bfloat16')
    optimizer = dict(wrapper['optimizer'])
    if several and row['way'] == 'zero1':
        kind = optimizer['type']
        optimizer.update(type='ZeroRedundancyOptimizer', optimizer_type=kind, parameters_as_bucket_view=True)
    elif not several or row['way'] == 'ddp':
        optimizer['fused'] = True  # as tools/train.py on a CPU
    if several and row['way'] == 'fsdp2':
        shard(model)
    elif several:
        model = MMDistributedDataParallel(model)
    optim_wrapper = build_optim_wrapper(model, dict(wrapper, optimizer=optimizer))
    module = getattr(model, 'module', model)
    module.data_preprocessor = torch.nn.Identity()
    module.data_preprocessor.forward = lambda data, training: data
    for _ in range(2):
        model.train_step(data, optim_wrapper)


def pictures(row: dict) -> dict:
    """A batch of random pictures, with boxes of all sizes."""
    import numpy as np
    import torch

    side, objects = row['side'], row['objects']
    data = dict(inputs=torch.rand(row['batch'], 3, side, side))
    if row['config'] == 'backbone':
        return data
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    data['data_samples'] = []
    for _ in range(row['batch']):
        corners = torch.rand(objects, 2) * side * 0.7
        boxes = torch.cat((corners, corners + side * (0.05 + 0.25 * torch.rand(objects, 2))), 1)
        masks = np.zeros((objects, side, side), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        size = (side, side)
        sample = DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1, 1))
        )
        labels = torch.randint(80, (objects,))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, side, side))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        data['data_samples'].append(sample)
    return data


def measured(row: dict) -> int:
    """The peak of the fullest process of a case."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, '--child', json.dumps(row), str(rank), str(port)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | MALLOC | dict(OMP_NUM_THREADS='1'),
        )
        for rank in range(row['processes'])
    ]
    ends = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f'the case {row} ended with {[child.returncode for child in children]}')
    return max(int(end.splitlines()[-1]) for end in ends)


def measure(cases: list[dict]) -> Iterator[dict[str, Any]]:
    """The report after every case, with what is left to do on stderr."""
    rows, start, here = [], time.monotonic(), about()
    for done, row in enumerate(cases):
        left = (time.monotonic() - start) / done * (len(cases) - done) / 60 if done else 0
        print(f'{done}/{len(cases)}, about {left:.0f} min left; now {name_of(row)}', file=sys.stderr, flush=True)
        plan = planned(row)
        rows.append(row | dict(planned=plan, measured=measured(row)))
        yield dict(about=here, rows=rows)


def replan(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The report with what the planner says now beside what was measured."""
    rows = [row | dict(planned=planned(row)) for row in found['rows']]
    yield dict(about=found['about'], rows=rows)


def name_of(row: dict) -> str:
    """What distinguishes a case."""
    more = [key if value is True else f'{key}={value}' for key, value in row['more'].items()]
    more += [f'{row["objects"]} objects'] if row['objects'] else []
    return ', '.join([f'{row["config"]} {row["arch"]}', f'{row["batch"]} x {row["side"]} px', *more])


def show(found: dict[str, Any]) -> None:
    """Print the report, one line per case."""
    table = new_table(
        'Peak of a training step', 'case', 'processes', 'GiB measured', 'planned', 'error', left=('case',)
    )
    for row in found['rows']:
        plan, real = row['planned']['total'], row['measured']
        way = f'{row["processes"]} {row["way"]}' if row['processes'] > 1 else '1'
        table.add_row(name_of(row), way, f'{real / GIB:.2f}', f'{plan / GIB:.2f}', f'{100 * (plan / real - 1):+.0f} %')
    print_report(table, found, 110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', nargs='+', type=int, metavar='N', help='some of the cases, by number from 0')
    parser.add_argument('--replan', metavar='FILE', help='plan the cases of such a file anew, and measure nothing')
    parser.add_argument('--json', metavar='FILE', help='write the numbers to this file, too')
    parser.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        row, rank, port = args.child
        print(step(json.loads(row), int(rank), int(port)), flush=True)
        os._exit(0)  # gloo's threads may abort a process that ends in order
    if args.replan:
        report(replan(json.loads(Path(args.replan).read_text())), show, args.json)
        return
    cases = CASES if args.cases is None else [CASES[number] for number in args.cases]
    report(measure(cases), show, args.json)


if __name__ == '__main__':
    main()
