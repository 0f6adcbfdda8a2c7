"""What torch's exporter to ONNX does not know, or writes in a slower form, as operators of the ONNX standard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from swinv2_mm.inference.export.attention import Attention
from swinv2_mm.inference.export.boxes import write_nms, write_roi_align


def translations() -> dict[Any, Callable]:
    """The functions that write an operation of torch, for ``custom_translation_table`` of ``torch.onnx.export``."""
    from onnxscript.onnx_opset import opset20 as op

    def linear(x, weight, bias=None):
        """As ``Gemm``, which adds the bias while it writes; runtimes do not merge the sum into a ``MatMul``."""
        rank, width = len(x.shape), int(weight.shape[1])
        if rank < 3 or bias is None:
            product = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
            return product if bias is None else op.Add(product, bias)
        rows = op.Reshape(x, op.Constant(value_ints=[-1, width]))
        shape = op.Concat(op.Shape(x, start=0, end=rank - 1), op.Constant(value_ints=[-1]), axis=0)
        return op.Reshape(op.Gemm(rows, weight, bias, transB=1), shape)

    def adaptive_avg_pool2d(x, output_size):
        """As two products with matrices of the bins' shares, which exist for maps of any size."""
        down, across = (_shares(op, x, axis, int(count)) for axis, count in zip((2, 3), output_size, strict=True))
        return op.MatMul(op.MatMul(down, x), op.Transpose(across, perm=[1, 0]))

    return {
        # Partial: the exporter would look for types in the signature of a function.
        torch.ops.swinv2_mm.map_attention.default: partial(Attention(op).write),
        torch.ops.swinv2_mm.nms.default: write_nms(op),
        torch.ops.swinv2_mm.roi_align.default: write_roi_align(op),
        torch.ops.aten.linear.default: linear,
        torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
        torch.ops.aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    }


def _shares(op: Any, x: Any, axis: int, count: int) -> Any:
    """The share of each position along an axis in the mean of each of ``count`` bins: ``(count, length)``."""
    length = op.Squeeze(op.Shape(x, start=axis, end=axis + 1))
    bins, bin_count = op.Constant(value_ints=list(range(count))), op.Constant(value_int=count)
    one, zero = op.Constant(value_int=1), op.Constant(value_int=0)
    start = op.Div(op.Mul(bins, length), bin_count)
    stop = op.Div(op.Sub(op.Add(op.Mul(op.Add(bins, one), length), bin_count), one), bin_count)
    start, stop = (op.Unsqueeze(end, op.Constant(value_ints=[1])) for end in (start, stop))
    at = op.Range(zero, length, one)
    inside = op.CastLike(op.And(op.GreaterOrEqual(at, start), op.Less(at, stop)), x)
    return op.Div(inside, op.CastLike(op.Sub(stop, start), x))
