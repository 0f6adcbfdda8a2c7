"""Linear layers and the MLP, which treat every token alike, in the form that a CPU computes fast.

A CPU works on pieces of the tokens that stay in its cache: whole intermediate tensors (the MLP's hidden layer above
all) would go out to memory and back, and memory that is new costs more than what is computed in it. Everywhere else,
and where a graph is being recorded, the formula is computed as it is written.
"""

from __future__ import annotations

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
        n = tokens_at_a_time(max(weight.shape), x.element_size())
        if len(x) <= n:
            return _product(x, weight, bias)
        out = x.new_empty(len(x), len(weight))
        for rows, result in zip(x.split(n), out.split(n), strict=True):
            _product(rows, weight, bias, result)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        sums = _Sums(weight, ctx.given, ctx.needs_input_grad[1:])
        x_grad = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        n = tokens_at_a_time(max(weight.shape), x.element_size())
        for start in range(0, len(x), n):
            piece = slice(start, start + n)
            sums.add(grad[piece], x[piece], None if x_grad is None else x_grad[piece])
        return x_grad, *sums.gradients()


class _Mlp(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, keep: bool) -> Tensor:
        ctx.given = w1.dtype
        w1, b1, w2, b2 = _cast(x.dtype, w1, b1, w2, b2)
        n = tokens_at_a_time(len(w1), x.element_size())
        if len(x) <= n and not keep:
            return _product(F.gelu(_product(x, w1, b1)), w2, b2)
        hidden = x.new_empty(len(x), len(w1)) if keep else None
        out = x.new_empty(len(x), len(w2))
        for start in range(0, len(x), n):
            piece = slice(start, start + n)
            h = _product(x[piece], w1, b1, hidden[piece] if keep else None)
            _product(F.gelu(h), w2, b2, out[piece])
        if keep:
            ctx.save_for_backward(x, hidden, w1, w2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, hidden, w1, w2 = ctx.saved_tensors
        grad = grad.contiguous()
        first = _Sums(w1, ctx.given, ctx.needs_input_grad[1:3])
        second = _Sums(w2, ctx.given, ctx.needs_input_grad[3:5])
        x_grad = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        n = tokens_at_a_time(len(w1), x.element_size())
        for start in range(0, len(x), n):
            piece = slice(start, start + n)
            h = hidden[piece]
            h_grad = torch.ops.aten.gelu_backward(second.add(grad[piece], F.gelu(h), torch.empty_like(h)), h)
            first.add(h_grad, x[piece], None if x_grad is None else x_grad[piece])
        return x_grad, *first.gradients(), *second.gradients(), None


class _Sums:
    """The gradients of a linear layer's weight and bias, summed over pieces in float32 at least."""

    def __init__(self, weight: Tensor, given: torch.dtype, wanted: tuple[bool, ...]) -> None:
        self.weight, self.given, self.wanted = weight, given, wanted  # given: the parameter's type
        self.dtype = torch.promote_types(given, torch.float32)
        self.sums: list[Tensor | None] = [None, None]

    def add(self, grad: Tensor, x: Tensor, out: Tensor | None) -> Tensor | None:
        """Add what a piece ``x`` of the input gives; write the gradient of that piece into ``out`` and return it."""
        wanted = (out is not None, *self.wanted)
        if _convolves(x):
            found = torch.ops.aten.convolution_backward(
                _as_image(grad), _as_image(x), self.weight[:, :, None, None], [len(self.weight)], [1, 1], [0, 0],
                [1, 1], False, [0, 0], 1, wanted)
            if out is not None:
                out.copy_(found[0].permute(0, 2, 3, 1).view(x.shape))
            weight_grad, bias_grad = found[1][:, :, 0, 0] if wanted[1] else None, found[2]
        else:
            if out is not None:
                torch.mm(grad, self.weight, out=out)
            weight_grad = grad.t() @ x if wanted[1] else None
            bias_grad = grad.sum(0) if wanted[2] else None
        for i, part in enumerate((weight_grad, bias_grad)):
            if self.wanted[i]:
                self.sums[i] = part.to(self.dtype) if self.sums[i] is None else self.sums[i].add_(part)
        return out

    def gradients(self) -> list[Tensor | None]:
        return [None if total is None else total.to(self.given) for total in self.sums]


@lru_cache(maxsize=1)
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith('AVX512')


def _convolves(x: Tensor) -> bool:
    """Whether products with ``x`` go through oneDNN's convolution instead of MKL, which uses AVX-512 on Intel only."""
    return x.dtype == torch.float32 and _has_onednn()


def _as_image(x: Tensor) -> Tensor:
    """``(M, C)`` as an image of ``M`` pixels, ``(1, C, 1, M)`` in channels-last order."""
    return x[None, None].permute(0, 3, 1, 2)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``x weight^T + bias``, ``(M, C)`` to ``(M, D)``, into ``out`` if given."""
    if not _convolves(x):
        if bias is None:
            return torch.mm(x, weight.t(), out=out)
        return torch.addmm(bias, x, weight.t(), out=out)
    count = -(-x.shape[1] // MAX_CHAIN)
    channels = -(-x.shape[1] // count // 64) * 64 if count > 1 else x.shape[1]
    y = None
    for some, w in zip(x.split(channels, dim=1), weight.split(channels, dim=1), strict=True):
        part = F.conv2d(_as_image(some), w[:, :, None, None], bias if y is None else None)   # (1, D, 1, M)
        y = part if y is None else y.add_(part)
    y = y.permute(0, 2, 3, 1).view(len(x), len(weight))
    return y if out is None else out.copy_(y)
