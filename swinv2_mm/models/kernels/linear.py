"""Linear layers and the MLP, computed in the form that is fast on a CPU.

The layers are ``torch.nn.Linear`` itself: quantization and pruning look for exactly this class. They are computed here
while they are what we built, and called otherwise. A CPU computes the MLP on pieces of the tokens that stay in its
cache: the hidden layer of all tokens would go out to memory and back, and touching new memory costs more than computing
in it. A compiler would hand the products to MKL; it gets the same code as custom operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from swinv2_mm.compat import custom_op
from swinv2_mm.models.kernels import choose, cpp_token_passes
from swinv2_mm.models.kernels.choose import in_given_types, untouched, untouched_linear
from swinv2_mm.models.kernels.matmul import cast, gradients, input_gradient, product

# The hidden layer of a piece: from 2 to 8 MiB no difference was measured, with 1 MiB of second-level cache per core.
PIECE_BYTES = 4 * 2**20
# The same if it is kept for a backward pass, and so goes out to memory in any case: pieces make reading it again cheap,
# and the gradients of the weights are faster with longer pieces.
KEPT_BYTES = 16 * 2**20
# With fewer tokens a matrix product is slower per token.
MIN_TOKENS = 1024


def call(layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``layer(x)`` of an ``nn.Linear`` or what replaced it, ``(..., C)`` to ``(..., D)``, plus a bias, ``(D,)``."""
    if untouched_linear(layer) and (bias is None or layer.bias is None):
        return linear(x, layer.weight, layer.bias if bias is None else bias)
    y = layer(x)
    return y if bias is None else y + bias.to(y.dtype)


def call_mlp(fc1: nn.Module, act: nn.Module, drop1: nn.Module, fc2: nn.Module, drop2: nn.Module, x: Tensor) -> Tensor:
    """``drop2(fc2(drop1(act(fc1(x)))))``, fused for two linear layers, a GELU and no active dropout."""
    if (
        (untouched_linear(fc1) and fc1.bias is not None)
        and (untouched_linear(fc2) and fc2.bias is not None)
        and (untouched(act, nn.GELU) and act.approximate == 'none')
        and _passes(drop1)
        and _passes(drop2)
    ):
        return mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return drop2(call(fc2, drop1(act(call(fc1, x)))))


def _passes(drop: nn.Module) -> bool:
    return untouched(drop, nn.Dropout) and not (drop.training and drop.p)


def call_convolution(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` for a convolution whose stride is its kernel, in a type that the processor has arithmetic for."""
    fast = choose.product_dtype(x)
    if fast == x.dtype or not untouched(layer, nn.Conv2d) or not choose.is_ordinary(layer.weight):
        return layer(x)
    weight, bias = cast(fast, layer.weight, layer.bias)
    return F.conv2d(x.to(fast), weight, bias, stride=layer.stride).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear` of ``(..., C)``; on a CPU not differentiable twice."""
    way = choose.linear(x)
    if way == 'formula':
        return F.linear(x, weight, bias)
    if way == 'operation':
        x, weight, bias = cast(choose.compute_dtype(x), x, weight, bias)
        return _linear_operation(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], len(weight))
    x = x.to(choose.compute_dtype(x))
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """``linear(gelu(linear(x, w1, b1)), w2, b2)`` of ``(..., C)``; on a CPU not differentiable twice."""
    way = choose.linear(x)
    if way == 'formula':
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    if way == 'operation':
        if torch.is_grad_enabled():
            return linear(F.gelu(linear(x, w1, b1)), w2, b2)
        x, *layers = cast(choose.compute_dtype(x), x, w1, b1, w2, b2)
        return _mlp_operation(x.flatten(0, -2), *layers).view(*x.shape[:-1], len(w2))
    x = x.to(choose.compute_dtype(x))
    # Inside a Function neither the mode nor needs_input_grad tells whether a backward pass may come.
    return _Mlp.apply(x.reshape(-1, x.shape[-1]), w1, b1, w2, b2, torch.is_grad_enabled()).view(*x.shape[:-1], len(w2))


class _Linear(torch.autograd.Function):
    @staticmethod
    @in_given_types
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.given = weight.dtype
        weight, bias = cast(x.dtype, weight, bias)
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    @in_given_types
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        found = gradients(grad.contiguous(), x, weight, ctx.needs_input_grad)
        return found[0], *cast(ctx.given, *found[1:])


class _Mlp(torch.autograd.Function):
    """Keeps the hidden layer as it is before the GELU, which the backward pass computes again."""

    @staticmethod
    def forward(ctx, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, keep: bool) -> Tensor:
        ctx.given = w1.dtype
        out, kept = _mlp_forward(x, w1, b1, w2, b2, keep)
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x_grad, *sums = _mlp_backward(grad, ctx.saved_tensors, ctx.needs_input_grad)
        return x_grad, *cast(ctx.given, *sums), None


@in_given_types
def _mlp_forward(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, keep: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """The MLP of ``(M, C)``, and with ``keep`` what :func:`_mlp_backward` needs."""
    w1, b1, w2, b2 = cast(x.dtype, w1, b1, w2, b2)
    hidden, out, active = [], _Rows(x), None
    # Only oneDNN adds a bias at no cost; beside other libraries the GELU does.
    by_gelu = choose.gelu_by_cpp(x) and not choose.is_by_onednn(x)
    with_product, after_it = (None, b1.contiguous()) if by_gelu else (b1, None)
    at_a_time = max(MIN_TOKENS, (KEPT_BYTES if keep else PIECE_BYTES) // (len(w1) * x.element_size()))
    for piece in x.split(at_a_time):
        h = product(piece, w1, with_product)
        active = _gelu(h, after_it, active if keep else h)
        out.append(len(active), len(w2), partial(product, active, w2, b2))
        if keep:
            hidden.append(h)
    return out.whole, [x, w1, after_it, w2, *hidden] if keep else []


@in_given_types
def _mlp_backward(grad: Tensor, kept: Sequence[Any], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of the input, both weights and both biases from the gradient of the result."""
    x, w1, bias, w2, *hidden = kept
    n, x_grad, sums, active = len(hidden[0]), _Rows(x), [None] * 4, None
    for some, g, h in zip(x.split(n), grad.contiguous().split(n), hidden, strict=True):
        h_grad = gradients(g, h, w2, (True, False, False))[0]
        active = _gelu_backward(h, bias, h_grad, active)
        second = gradients(g, active, w2, (False, *wanted[3:5]))[1:]
        _, *first = gradients(h_grad, some, w1, (False, *wanted[1:3]))
        if wanted[0]:
            x_grad.append(len(some), len(w1.t()), partial(input_gradient, h_grad, w1))
        sums = [_sum(total, part) for total, part in zip(sums, (*first, *second), strict=True)]
    return [x_grad.whole, *sums]


class _Rows:
    """A matrix of as many rows as ``like``, computed some rows at a time; all rows at once are taken as they are."""

    def __init__(self, like: Tensor) -> None:
        self.whole: Any = None  # until there are rows
        self._like, self._filled = like, 0

    def append(self, rows: int, width: int, compute: Callable[..., Tensor]) -> None:
        if rows == len(self._like):
            self.whole = compute()
            return
        if not self._filled:
            self.whole = self._like.new_empty(len(self._like), width)
        compute(out=self.whole[self._filled : self._filled + rows])
        self._filled += rows


def _gelu(x: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """``gelu(x + bias)`` into ``out``, ``x`` itself or the result of the piece before, if that has as many rows."""
    # Touching new memory would cost more than the function.
    out = x.new_empty(x.shape) if out is None or len(out) != len(x) else out
    if choose.gelu_by_cpp(x):
        return cpp_token_passes.gelu(x, bias, out)
    return torch.ops.aten.gelu.out(x if bias is None else x + bias, out=out)


def _gelu_backward(x: Tensor, bias: Tensor | None, grad: Tensor, out: Tensor | None) -> Tensor:
    """:func:`_gelu` again; ``grad``, the gradient of its result, becomes the gradient of ``x``, in place."""
    if choose.gelu_by_cpp(x):
        out = x.new_empty(x.shape) if out is None or len(out) != len(x) else out
        return cpp_token_passes.gelu_backward(x, bias, grad, out)
    x = x if bias is None else x + bias
    torch.ops.aten.gelu_backward.grad_input(grad, x, grad_input=grad)
    return _gelu(x, None, out)


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """``total + part``, in place, in float32 at least; None counts as zero."""
    if total is None or part is None:
        return None if part is None else part.to(torch.promote_types(part.dtype, torch.float32))
    return total.add_(part)


@custom_op('swinv2_mm::linear', '(Tensor x, Tensor weight, Tensor? bias) -> Tensor')
def _linear_operation(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return in_given_types(product)(x, weight, bias).contiguous()


@_linear_operation.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape[0], weight.shape[0])


@custom_op(
    'swinv2_mm::linear_backward', '(Tensor grad, Tensor x, Tensor weight, bool[] wanted) -> (Tensor, Tensor, Tensor)'
)
def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``x``, ``weight`` and the bias; empty tensors for those not wanted."""
    found = in_given_types(gradients)(grad.contiguous(), x, weight, wanted)
    x_grad, weight_grad, bias_grad = (x.new_empty(0) if one is None else one.contiguous() for one in found)
    return x_grad, weight_grad, bias_grad


@_linear_backward.register_fake
def _(grad, x, weight, wanted):
    shapes = (x.shape, weight.shape, weight.shape[:1])
    return tuple(x.new_empty(shape if want else 0) for shape, want in zip(shapes, wanted, strict=True))


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _operation_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found = _linear_backward(grad, *ctx.saved_tensors, list(ctx.needs_input_grad))
    return tuple(one if want else None for one, want in zip(found, ctx.needs_input_grad, strict=True))


_linear_operation.register_autograd(_operation_gradients, setup_context=_save)


@custom_op('swinv2_mm::mlp', '(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> Tensor')
def _mlp_operation(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """The MLP without gradients; in training the compiler keeps the hidden layer."""
    return _mlp_forward(x, w1, b1, w2, b2, False)[0].contiguous()


@_mlp_operation.register_fake
def _(x, w1, b1, w2, b2):
    return x.new_empty(x.shape[0], w2.shape[0])
