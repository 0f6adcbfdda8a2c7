"""What a step of the backbone asks of a GPU, counted without one: kernels, bytes, copies to the device, waits for it.

    python benchmarks/gpu_counts.py --json benchmarks/results/gpu_counts.json

The model runs on meta tensors, as it would on CUDA: an operation that is no view is a kernel, and moves its inputs and
outputs once. A copy brings data from the CPU. A wait is an operation whose result Python reads. With ``--amp`` linear
layers cast their inputs and weights to bfloat16 and norms theirs to float32, as autocast does on CUDA. ``least`` is
what the formulas read and write if every layer, attention and norm were one kernel without intermediate results.
Times follow from none of these numbers alone: measure with ``make gpu``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from measuring import about, new_table, print_report, report
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from swinv2_mm import SwinTransformerV2
from swinv2_mm.engine.costs.plan.machine import Autocast, as_on

# Operations that only allocate; ``scalar_tensor`` is a number that meta tensors wrap.
ALLOCATE = {'empty', 'new_empty', 'empty_like', 'empty_strided', 'new_empty_strided', 'set_', 'scalar_tensor'}
VIEWS = {'_unsafe_view', 'alias', 'detach', 'lift_fresh'}
WAITS = {'_local_scalar_dense', 'nonzero', 'equal', 'is_nonzero', 'masked_select', '_unique2'}
ATTENTION = '_scaled_dot_product_efficient_attention'


class Counts(TorchDispatchMode):
    """Counts operations while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.kernels: collections.Counter[str] = collections.Counter()
        self.bytes = self.copies = self.waits = 0

    @property
    def attention(self) -> int:
        """Calls of torch's fused attention, forward or backward."""
        return self.kernels[ATTENTION] + self.kernels[f'{ATTENTION}_backward']

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split('::')[1]
        if name in WAITS:
            self.waits += 1
            if name in ('equal', 'is_nonzero'):  # meta tensors have no answer
                return True
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        tensors = {id(leaf): leaf for leaf in (*inputs, *tree_flatten(result)[0]) if isinstance(leaf, Tensor)}
        on_device = any(tensor.is_meta for tensor in tensors.values())
        if name in ('_to_copy', 'copy_') and on_device and any(tensor.is_cpu for tensor in inputs):
            self.copies += 1
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if on_device and not is_view and name not in ALLOCATE | VIEWS:
            self.kernels[name] += 1
            self.bytes += sum(map(_bytes, tensors.values()))
        return result


def _bytes(tensor: Tensor) -> int:
    """Of its distinct numbers: an expanded dimension counts once."""
    sizes = [1 if step == 0 else size for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    return torch.Size(sizes).numel() * tensor.element_size()


def count(
    model: SwinTransformerV2, size: tuple[int, int], batch: int, training: bool, amp: bool = False, steps: int = 2
) -> list[dict[str, Any]]:
    """The counts of some steps with the same model and size, ``(H, W)`` in pixels: a dict per step and pass.

    ``block`` has the least and the most kernels of a block.
    """
    model = model.to('meta').train(training)
    counts, rows = Counts(), []
    marks: dict[tuple[str, int], int] = {}
    blocks = [block for stage in model.stages for block in stage.blocks]
    hooks = [_mark(block, index, counts, marks) for index, block in enumerate(blocks)]
    autocast = Autocast(torch.bfloat16 if amp else None, 'cuda')
    with as_on('cuda', autocast), torch.set_grad_enabled(training):
        for step in range(steps):
            images = torch.empty(batch, model.patch_embed.proj.in_channels, *size, device='meta')
            for name in ('forward', 'backward')[: 1 + training]:
                counts.reset()
                with counts, autocast if name == 'forward' else contextlib.nullcontext():
                    if name == 'forward':
                        maps = model(images)
                    else:
                        torch.autograd.backward(maps, [torch.empty_like(m) for m in maps])
                found = sorted(marks[f'{name} end', i] - marks[f'{name} start', i] for i in range(len(blocks)))
                rows.append(
                    dict(
                        {'pass': name, 'step': step, 'kernels': counts.kernels.total()},
                        block=[found[0], found[-1]],
                        attention=counts.attention,
                        bytes=counts.bytes,
                        least=least(model, size, batch, name, amp),
                        copies=counts.copies,
                        waits=counts.waits,
                    )
                )
            model.zero_grad()
            autocast.forget()
    for hook in itertools.chain.from_iterable(hooks):
        hook.remove()
    return rows


def _mark(block: torch.nn.Module, index: int, counts: Counts, marks: dict[tuple[str, int], int]) -> list[Any]:
    """Note the kernels so far where a block starts and ends, forward and backward."""

    def note(what: str) -> None:
        marks[what, index] = counts.kernels.total()

    def before(_: Any, inputs: tuple[Tensor]) -> None:
        note('forward start')
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda grad: note('backward end'))

    def after(_: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        note('forward end')
        if output.requires_grad:
            output.register_hook(lambda grad: note('backward start'))

    return [block.register_forward_pre_hook(before), block.register_forward_hook(after)]


def least(model: SwinTransformerV2, size: tuple[int, int], batch: int, name: str, amp: bool) -> int:
    """Bytes that the formulas of all blocks read and write, if each layer was one kernel without weights.

    Maps of C channels, where the hidden layer of the MLP is r of them. In the type of the products: forward qkv writes
    3, attention moves 3 + 1, the projection 1 + 1, the MLP 2 r + 1, each norm reads 1. Backward a layer reads its input
    and the gradient of its output, and writes that of its input: qkv 5, attention 8, the projection 3, the MLP 4 r + 2,
    each norm 2. On the main branch, float32: forward qkv and the MLP read 1, each sum reads and writes 1; backward each
    norm reads the gradient, and each branch adds to it.
    """
    r = model.stages[0].blocks[0].mlp.fc1.weight.shape[0] / model.num_features[0]
    products, main = (12 + 2 * r, 6) if name == 'forward' else (22 + 4 * r, 6)
    total = 0
    for index, stage in enumerate(model.stages):
        stride = model.patch_size * 2**index
        tokens = batch * -(-size[0] // stride) * -(-size[1] // stride)
        total += len(stage.blocks) * tokens * model.num_features[index]
    return int(total * (products * (2 if amp else 4) + main * 4))


def count_all(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The report after every case."""
    rows = []
    for amp, side, training in itertools.product(args.amp, args.windows, (True, False)):
        model = SwinTransformerV2(args.arch, window_size=side)
        found = count(model, tuple(args.size), args.batch, training, amp)
        mode = 'training' if training else 'evaluation'
        rows += [dict(mode=mode, dtype='bfloat16' if amp else 'float32', window=side, **row) for row in found]
        yield dict(about=about(), rows=rows)


def show(found: dict[str, Any]) -> None:
    """Print the report, one line per pass."""
    columns = 'mode', 'type', 'window', 'pass', 'step', 'kernels', 'of a block', 'attention', 'GB', 'x least', 'copies'
    table = new_table('A step on a GPU, counted', *columns, 'waits', left=('mode', 'type', 'pass'))
    for row in found['rows']:
        values = row['mode'], row['dtype'], row['window'], row['pass'], row['step'] + 1, row['kernels']
        more = '{} to {}'.format(*row['block']), row['attention'], f'{row["bytes"] / 1e9:.1f}'
        ratio = f'{row["bytes"] / row["least"]:.1f}'
        table.add_row(*map(str, (*values, *more, ratio, row['copies'], row['waits'])))
    print_report(table, found, 140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='tiny', help='size of the backbone')
    parser.add_argument('--windows', type=int, nargs='+', default=[8, 16, 24], help='sides of the windows')
    parser.add_argument('--size', type=int, nargs=2, default=[800, 1333], metavar=('H', 'W'), help='of the images')
    parser.add_argument('--batch', type=int, default=2, help='images')
    kinds = dict(float32=[False], bfloat16=[True], both=[False, True])
    parser.add_argument('--types', default='both', choices=[*kinds], help='bfloat16 is that of --amp')
    parser.add_argument('--json', metavar='FILE', help='write the numbers to this file, too')
    args = parser.parse_args()
    args.amp = kinds[args.types]
    report(count_all(args), show, args.json)


if __name__ == '__main__':
    main()
