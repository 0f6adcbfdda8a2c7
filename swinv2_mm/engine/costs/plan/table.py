"""A plan as tables, and as the lines to paste."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.table import Table

from swinv2_mm.engine.costs.plan import CONTEXT_BYTES, GIB, MARGIN, Plan, Row, Setting, options
from swinv2_mm.engine.costs.plan.sharding import WAYS, Held
from swinv2_mm.engine.costs.plan.traffic import LINKS, OVERLAPS, traffic

NAMES = dict(ddp='DDP', zero1='ZeRO-1', fsdp2='FSDP2')
PIECES = dict(zero1='configs/_base_/sharding/zero1.py', fsdp2='configs/_base_/sharding/fsdp2.py')
# GPUs of a machine.
MACHINE = 8
# GPUs on the market, by their memory in GiB.
MEMORIES = (24, 40, 80, 141)


def settings_table(plan: Plan) -> Table:
    """A row per setting, the fastest first."""
    rows, columns = plan.work.shape
    title = (
        f'GiB of the fullest of {plan.processes} processes, {plan.work.batch} x {rows} x {columns} pixels each, '
        'fastest setting first'
    )
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify='left')
    for name in ('sharding', 'type', 'with_cp', 'attn_chunk'):
        table.add_column(name, no_wrap=True)
    for name in ('params', 'grads', 'optimizer', 'activations', 'comm.', 'peak', 'GPU needs'):
        table.add_column(name, justify='right', no_wrap=True)
    table.add_column('fits', no_wrap=True)
    for row in plan.rows:
        parts = [f'{value / GIB:.1f}' for value in (*parts_of(row.held), row.held.total, row.needs)]
        own = ' (config)' if row.setting == plan.own else ''
        table.add_row(*words(row.setting), *parts, ('yes' if plan.fits(row) else 'no') + own)
    return table


def parts_of(held: Held) -> tuple[int, ...]:
    return held.parameters, held.gradients, held.optimizer, held.activations, held.communication


def words(setting: Setting) -> tuple[str, ...]:
    """A setting as cells."""
    chunk = '-' if setting.attn_chunk is None else str(setting.attn_chunk)
    return NAMES[setting.way], 'bf16' if setting.half else 'float32', 'yes' if setting.with_cp else '-', chunk


def advice(plan: Plan, config: str) -> Iterator[str]:
    """What to run, line by line."""
    memory = f'{plan.memory / GIB:g} GiB'
    yield (
        f'A GPU needs {CONTEXT_BYTES / GIB:g} GiB more than the peak for CUDA and NCCL, and {MARGIN:.0%} for its '
        'allocator, workspaces and the error of this plan: estimates. No GPU has confirmed these numbers.'
    )
    found = {half: plan.fastest(half) for half in (True, False)}
    if not any(found.values()):
        row = plan.nearest
        lacking = (row.needs - plan.memory) / GIB
        yield (
            f'Nothing fits {memory}. Nearest is {_phrase(row)}, which needs {lacking:.1f} GiB more: take more GPUs, '
            'a smaller --batch or --shape, or a smaller model.'
        )
        yield from command(plan, row, config)
        return
    for half, row in found.items():
        kind = 'in mixed precision' if half else 'in float32'
        if row is None:
            yield f'Nothing fits {memory} {kind}.'
            continue
        yield f'The fastest setting that fits {memory} {kind} is {_phrase(row)}:'
        yield from command(plan, row, config)


def _phrase(row: Row) -> str:
    sharding, kind, with_cp, chunk = words(row.setting)
    more = [name for name, value in (('with_cp', with_cp), ('attn_chunk', chunk)) if value != '-']
    return f'{", ".join([sharding, kind, *more])}, {row.needs / GIB:.1f} GiB'


def command(plan: Plan, row: Row, config: str) -> Iterator[str]:
    """The command of a setting, to paste."""
    values, flags = options(plan.own, row.setting)
    words = [*_launch(plan.processes, config), *flags]
    if values:
        words += ['--cfg-options', *values]
    yield f'  {" ".join(words)}'
    if words[0].startswith('NNODES'):
        last = plan.processes // MACHINE - 1
        yield f'  (on each machine, with NODE_RANK from 0 to {last}, and ADDRESS that of the first)'
    if row.setting.way != plan.own.way and row.setting.way in PIECES:
        yield f"  (in a config of your own, instead of runner_type: '{PIECES[row.setting.way]}' in _base_)"


def _launch(processes: int, config: str) -> list[str]:
    """How to start so many processes, in machines of eight."""
    machines, rest = divmod(processes, MACHINE)
    if processes == 1:
        return ['python tools/train.py', config]
    if machines < 2 or rest:
        return ['bash tools/dist_train.sh', config, str(processes)]
    several = f'NNODES={machines} NODE_RANK=0 MASTER_ADDR=ADDRESS bash tools/dist_train.sh'
    return [several, config, str(MACHINE)]


def traffic_table(plan: Plan) -> Table:
    """A row per way of sharding: what is sent, and how long that takes."""
    title = f'Sent by each of {plan.processes} processes in a step, in float32'
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify='left')
    table.add_column('sharding', no_wrap=True)
    for name in ('GB', *(f'ms, {link}' for link in LINKS)):
        table.add_column(name, justify='right', no_wrap=True)
    table.add_column('what overlaps')
    for way in WAYS:
        sent = traffic(plan.step, way, plan.processes)
        times = [f'{1000 * sent.seconds(speed):.0f}' for speed in LINKS.values()]
        table.add_row(NAMES[way], f'{sent.total / 1e9:.2f}', *times, OVERLAPS[way])
    return table


def sizes_table(found: Mapping[str, Mapping[str, Row]], processes: int) -> Table:
    """GiB of a GPU by size and way of sharding, with all that saves memory."""
    title = f'GiB of a GPU by size, on {processes}, with with_cp, attn_chunk and bf16'
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify='left')
    table.add_column('size')
    for way in WAYS:
        table.add_column(NAMES[way], justify='right')
    for arch, rows in found.items():
        table.add_row(f'SwinV2-{arch[0].upper()}', *(f'{rows[way].needs / GIB:.1f}' for way in WAYS))
    return table


def largest_table(found: Mapping[str, Mapping[str, Row]], memories: Sequence[float] = MEMORIES) -> Table:
    """The largest size that fits, by memory and way of sharding."""
    table = Table(box=box.SIMPLE_HEAD, title='The largest size that fits', title_justify='left')
    table.add_column('GPU', justify='right')
    for way in WAYS:
        table.add_column(NAMES[way])
    for memory in sorted({*memories}):
        fitting = {way: [arch for arch, rows in found.items() if rows[way].needs <= memory * GIB] for way in WAYS}
        names = (f'SwinV2-{archs[-1][0].upper()}' if archs else 'none' for archs in fitting.values())
        table.add_row(f'{memory:g} GiB', *names)
    return table
