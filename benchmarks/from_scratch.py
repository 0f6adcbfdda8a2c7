"""What a backbone's start is worth: the same heads and budget, after Swin V1, SwinV2's starts, or a pre-training.

    python benchmarks/from_scratch.py --seeds 0 1 2
    python benchmarks/from_scratch.py --starts scratch work_dirs/simmim_swinv2_t_shapes/epoch_8.pth --pictures 40 \
        --iterations 200 --seeds 0 1

UperNet and Mask R-CNN with narrow heads on the generated shapes (make data), as in configs/*_shapes.py, but in float32,
with a cosine schedule, AdamW at their rates, and no rate of its own for any part. Runs that the file of results has are
not repeated.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import about, new_table
from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console

ROOT = Path(__file__).parents[1]
CONFIGS = {'upernet': 'upernet_swinv2_t_shapes', 'maskrcnn': 'maskrcnn_swinv2_t_shapes'}
METRICS = {'upernet': ('mIoU',), 'maskrcnn': ('bbox_mAP', 'segm_mAP')}
STARTS = {'scratch': {'from_scratch': True}, 'microsoft': {'from_scratch': False}}
WARM_UP = 50


def config(head: str, start: str, seed: int, iterations: int, pictures: int, data: Path, work_dir: str) -> Config:
    """The config of a run; ``start`` is ``'v1'``, one of STARTS, or a checkpoint."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{CONFIGS[head]}.py')
    rate = cfg.optim_wrapper.optimizer.lr
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, batch_size=4 if split == 'train' else 10)
        loader.dataset.data_root = f'{data}/'
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    if pictures:
        cfg.train_dataloader.dataset.indices = pictures
    if head == 'maskrcnn':
        cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = f'{data}/annotations/instances_validation.json'
    cfg.model.backbone.pop('from_scratch', None)
    if start == 'v1':
        scope = cfg.default_scope
        cfg.model.backbone = dict(type=f'{scope}.SwinTransformer', window_size=7, drop_path_rate=0.0, patch_norm=True)
    elif start in STARTS:
        cfg.model.backbone.update(STARTS[start])
    else:
        cfg.model.backbone.init_cfg = dict(type='swinv2_mm.Pretrained', checkpoint=start)
    no_decay = ('cpb_mlp', 'logit_scale', 'q_bias', 'v_bias', 'relative_position_bias_table')
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=rate, weight_decay=0.05, fused=True),
        clip_grad=dict(max_norm=1.0),
        paramwise_cfg=dict(
            norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={key: dict(decay_mult=0.0) for key in no_decay}
        ),
    )
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
    warm_up = min(WARM_UP, iterations // 2)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=warm_up, end=iterations, T_max=iterations - warm_up),
    ]
    cfg.default_hooks = dict(checkpoint=None, logger=dict(type='LoggerHook', interval=40))
    cfg.update(custom_hooks=[], log_processor=dict(by_epoch=False), log_level='WARNING', work_dir=work_dir)
    cfg.visualizer = None  # those of the configs have one name, and so one place of the first run
    cfg.randomness = dict(seed=seed)
    return cfg


def run(head: str, start: str, seed: int, iterations: int, pictures: int, data: Path) -> dict[str, Any]:
    """Train and evaluate once."""
    with tempfile.TemporaryDirectory() as work_dir:
        cfg = config(head, start, seed, iterations, pictures, data, work_dir)
        cfg.experiment_name = f'{head}_{Path(start).stem}_{seed}_{time.time_ns()}'
        runner = Runner.from_cfg(cfg)
        began = time.perf_counter()
        runner.train()
        took = time.perf_counter() - began
    found = {name.split('/')[-1]: value.current() for name, value in runner.message_hub.log_scalars.items()}
    return {
        **dict(head=head, start=start, seed=seed, iterations=iterations, pictures=pictures),
        **{name: float(found[name]) for name in METRICS[head]},
        'seconds': round(took),
        'cpu': about()['cpu'],
    }


def print_table(runs: list[dict[str, Any]]) -> None:
    """A row for each head and start: the mean, and all seeds."""
    words = ('head', 'start', 'metric', 'seeds')
    table = new_table(
        'from these starts', 'head', 'start', 'pictures', 'iterations', 'metric', 'mean', 'seeds', left=words
    )
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for each in runs:
        groups.setdefault((each['head'], each['start'], each['pictures'], each['iterations']), []).append(each)
    for (head, start, pictures, iterations), members in groups.items():
        for metric in METRICS[head]:
            values = [each[metric] for each in sorted(members, key=lambda each: each['seed'])]
            digits = 1 if metric == 'mIoU' else 3
            numbers = ' '.join(f'{value:.{digits}f}' for value in values)
            mean = f'{statistics.mean(values):.{digits}f}'
            table.add_row(head, start, str(pictures or 'all'), str(iterations), metric, mean, numbers)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--heads', nargs='+', choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument('--starts', nargs='+', default=['v1', 'scratch'], help='v1, scratch, microsoft, or checkpoints')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--iterations', type=int, default=400)
    parser.add_argument('--pictures', type=int, default=0, help='use so many of the training pictures; 0 for all')
    parser.add_argument('--data', type=Path, default=Path('data/shapes'))
    parser.add_argument('--json', type=Path, default=Path('benchmarks/results/from_scratch.json'))
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json.exists() else {'runs': []}
    settings = ('head', 'start', 'seed', 'iterations', 'pictures')
    done = {tuple(each[name] for name in settings) for each in results['runs']}
    todo = [
        case
        for seed in args.seeds
        for head in args.heads
        for start in args.starts
        if (case := (head, start, seed, args.iterations, args.pictures)) not in done
    ]
    for number, case in enumerate(todo, 1):
        print(f'run {number} of {len(todo)}: {dict(zip(settings, case, strict=True))}', file=sys.stderr, flush=True)
        results['runs'].append(run(*case, args.data))
        results['about'] = about()  # of the last run
        args.json.write_text(json.dumps(results, indent=1) + '\n')
    print_table(results['runs'])


if __name__ == '__main__':
    main()
