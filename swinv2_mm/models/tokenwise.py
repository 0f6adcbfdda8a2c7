"""Linear layers and the MLP, which treat every token alike, in the form that a CPU computes fast.

A CPU computes the MLP on pieces of the tokens that stay in its cache: its whole hidden layer would go out to memory and
back, and memory that is new costs more than what is computed in it. Everywhere else, and where a graph is being
recorded, the formula is computed as it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# The largest intermediate of a piece: 2 to 8 MiB are alike where they were measured, with 1 MiB of second-level cache
# per core.
PIECE_BYTES = 4 * 2**20
# Below this many tokens a matrix product is slower per token.
MIN_TOKENS = 1024
# oneDNN sums over up to 1024 channels in one chain of float32 additions, MKL over some 200: rounding errors are 2.3
# times as large. Up to this many, 1.4 times.
MAX_CHAIN = 384


def in_pieces(x: Tensor) -> bool:
    """Whether to compute on pieces of ``x``: on a CPU, unless a compiler or a tracer records what is done."""
    return x.is_cpu and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def tokens_at_a_time(channels: int, itemsize: int) -> int:
    """How many tokens a piece has whose widest intermediate has so many channels of ``itemsize`` bytes."""
    return max(MIN_TOKENS, PIECE_BYTES // (channels * itemsize))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear` of ``(..., C)``; on a CPU not differentiable twice."""
    if not in_pieces(x):
        return F.linear(x, weight, bias)
    x = x.to(compute_dtype(x))
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """``linear(gelu(linear(x, w1, b1)), w2, b2)`` of ``(..., C)``; on a CPU not differentiable twice.

    For the backward pass the hidden layer is kept as it is before the GELU, which is computed again.
    """
    if not in_pieces(x):
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    x = x.to(compute_dtype(x))
    # Inside a Function neither the mode nor needs_input_grad tells whether a backward pass may come.
    return _Mlp.apply(x.reshape(-1, x.shape[-1]), w1, b1, w2, b2, torch.is_grad_enabled()).view(*x.shape[:-1], len(w2))


@lru_cache(maxsize=1)
def _has_float16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_fp16_supported()


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products with ``x`` are fast: a CPU without float16 arithmetic computes them one by one.

    The float32 products of float16 numbers are exact, and are rounded once, as a processor that knows the type does.
    """
    return torch.float32 if x.dtype == torch.float16 and x.is_cpu and not _has_float16() else x.dtype


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which linear layers compute: autocast's, if it is on."""
    autocasts = torch.is_autocast_enabled('cpu') and x.dtype != torch.float64
    return torch.get_autocast_dtype('cpu') if autocasts else x.dtype


def _cast(dtype: torch.dtype, *parameters: Tensor | None) -> list[Tensor | None]:
    return [None if parameter is None else parameter.to(dtype) for parameter in parameters]


class _Linear(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.given = weight.dtype
        weight, bias = _cast(x.dtype, weight, bias)
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        found = _gradients(grad.contiguous(), x, weight, ctx.needs_input_grad)
        return found[0], *_cast(ctx.given, *found[1:])


class _Mlp(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, keep: bool) -> Tensor:
        ctx.given = w1.dtype
        w1, b1, w2, b2 = _cast(x.dtype, w1, b1, w2, b2)
        hidden, out = [], _Rows(len(x))
        for piece in x.split(tokens_at_a_time(len(w1), x.element_size())):
            h = _product(piece, w1, b1)
            out.append(_product(F.gelu(h), w2, b2))
            if keep:
                hidden.append(h)
        if keep:
            ctx.save_for_backward(x, w1, w2, *hidden)
        return out.whole

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, w1, w2, *hidden = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        n, x_grad, sums = len(hidden[0]), _Rows(len(x)), [None] * 4
        for some, g, h in zip(x.split(n), grad.contiguous().split(n), hidden, strict=True):
            h_grad, *second = _gradients(g, F.gelu(h), w2, (True, *wanted[3:5]))
            h_grad = torch.ops.aten.gelu_backward(h_grad, h)
            some_grad, *first = _gradients(h_grad, some, w1, wanted[:3])
            if wanted[0]:
                x_grad.append(some_grad)
            sums = [_sum(total, part) for total, part in zip(sums, (*first, *second), strict=True)]
        return x_grad.whole, *_cast(ctx.given, *sums), None


class _Rows:
    """A matrix of which some rows come at a time; all at once are taken as they are.

    Attributes:
        whole: The matrix, once all ``count`` rows have come.
    """

    def __init__(self, count: int) -> None:
        self.whole: Tensor | None = None
        self._count, self._filled = count, 0

    def append(self, rows: Tensor) -> None:
        if len(rows) == self._count:
            self.whole = rows
            return
        if self.whole is None:
            self.whole = rows.new_empty(self._count, rows.shape[1])
        self.whole[self._filled:self._filled + len(rows)] = rows
        self._filled += len(rows)


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """``total + part``, in place, in float32 at least; None is nothing."""
    if total is None or part is None:
        return None if part is None else part.to(torch.promote_types(part.dtype, torch.float32))
    return total.add_(part)


@lru_cache(maxsize=1)
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith('AVX512')


def _convolves(x: Tensor) -> bool:
    """Whether products with ``x`` go through oneDNN's convolution instead of MKL, which uses AVX-512 on Intel only."""
    return x.dtype == torch.float32 and _has_onednn()


def _as_image(x: Tensor) -> Tensor:
    """``(M, C)`` as an image of ``M`` pixels, ``(1, C, 1, M)`` in channels-last order."""
    return x[None, None].permute(0, 3, 1, 2)


def _as_tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).view(x.shape[3], x.shape[1])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x weight^T + bias``, ``(M, C)`` to ``(M, D)``."""
    fast = product_dtype(x)
    if fast != x.dtype:
        return _product(*_cast(fast, x, weight, bias)).to(x.dtype)
    if _convolves(x):
        count = -(-x.shape[1] // MAX_CHAIN)
        channels = -(-x.shape[1] // count // 64) * 64 if count > 1 else x.shape[1]
        y = None
        for some, w in zip(x.split(channels, dim=1), weight.split(channels, dim=1), strict=True):
            part = F.conv2d(_as_image(some), w[:, :, None, None], bias if y is None else None)   # (1, D, 1, M)
            y = part if y is None else y.add_(part)
        return _as_tokens(y)
    if bias is None:
        return torch.mm(x, weight.t())
    if x.dtype == torch.bfloat16 and _has_onednn():
        # addmm would write the bias into the result, to read it again. Where rows are apart, oneDNN is slow.
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, 'none', [], '')
    return torch.addmm(bias, x, weight.t())


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of ``x``, ``weight`` and the bias from that of :func:`_product`, those that are wanted."""
    fast = product_dtype(x)
    if fast != x.dtype:
        return _cast(x.dtype, *_gradients(*_cast(fast, grad, x, weight), wanted))
    if not _convolves(x):
        return [torch.mm(grad, weight) if wanted[0] else None, grad.t() @ x if wanted[1] else None,
                grad.sum(0) if wanted[2] else None]
    x_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
        _as_image(grad), _as_image(x), weight[:, :, None, None], [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0],
        1, list(wanted))
    return [_as_tokens(x_grad) if wanted[0] else None, weight_grad[:, :, 0, 0] if wanted[1] else None, bias_grad]
