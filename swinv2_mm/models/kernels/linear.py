"""Linear layers and the MLP, which treat every token alike, in the form that a CPU computes fast.

The layers are ``torch.nn.Linear`` itself: quantization and pruning look for exactly this class. :func:`call` and
:func:`call_mlp` compute them here as long as they are what was built, and call them otherwise.

A CPU computes the MLP on pieces of the tokens that stay in its cache: its whole hidden layer would go out to memory and
back, and memory that is new costs more than what is computed in it. A compiler, which would hand the products to MKL,
calls the same code as operations. Everywhere else, and where a tracer records, the formula is computed as it is
written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from swinv2_mm.models.kernels import cpp_gelu
from swinv2_mm.models.kernels.arithmetic import in_given_types
from swinv2_mm.models.kernels.matmul import cast, gradients, input_gradient, is_by_onednn, product
from swinv2_mm.models.recording import is_ordinary, is_traced

# The largest intermediate of a piece: 2 to 8 MiB are alike where they were measured, with 1 MiB of second-level cache
# per core.
PIECE_BYTES = 4 * 2**20
# The same where the intermediate is kept for a backward pass, so that it goes out to memory in any case: pieces make
# reading it again cheap, and their gradients of the weights are faster the longer they are.
KEPT_BYTES = 16 * 2**20
# Below this many tokens a matrix product is slower per token.
MIN_TOKENS = 1024


# What our own functions stand in for: a library that patches a class for all its layers is to be heard, too.
FORWARD = {
    kind: kind.forward for kind in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GELU, nn.Dropout, nn.ReLU, nn.Sequential)
}


def untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module would do what PyTorch's class says and nothing more.

    Not so for another class (an adapter, int8, a parametrization), with hooks (pruning is one), or with a ``forward``
    of its own.

    Args:
        module: Of the model.
        kind: One of :data:`FORWARD`.
    """
    return (
        type(module) is kind
        and kind.forward is FORWARD[kind]
        and 'forward' not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and not _has_any_global_hook()
    )


def untouched_linear(layer: nn.Module) -> bool:
    """:func:`untouched` for a linear layer, whose weight is an ordinary tensor, too."""
    return untouched(layer, nn.Linear) and (torch.compiler.is_compiling() or is_ordinary(layer.weight))


def call(layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``layer(x)``, plus a bias that the layer does not have.

    Args:
        layer: An ``nn.Linear``, or whatever somebody put in its place.
        x: ``(..., C)``.
        bias: ``(D,)``, for a layer without one.

    Returns:
        ``(..., D)``.
    """
    if untouched_linear(layer) and (bias is None or layer.bias is None):
        return linear(x, layer.weight, layer.bias if bias is None else bias)
    y = layer(x)
    return y if bias is None else y + bias.to(y.dtype)


def call_mlp(fc1: nn.Module, act: nn.Module, drop1: nn.Module, fc2: nn.Module, drop2: nn.Module, x: Tensor) -> Tensor:
    """``drop2(fc2(drop1(act(fc1(x)))))``, at once where these are two linear layers and a GELU, and nothing drops."""
    if (
        untouched_linear(fc1)
        and untouched_linear(fc2)
        and fc1.bias is not None
        and fc2.bias is not None
        and untouched(act, nn.GELU)
        and act.approximate == 'none'
        and _passes(drop1)
        and _passes(drop2)
    ):
        return mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return drop2(call(fc2, drop1(act(call(fc1, x)))))


def _passes(drop: nn.Module) -> bool:
    return untouched(drop, nn.Dropout) and not (drop.training and drop.p)


def in_pieces(x: Tensor) -> bool:
    """Whether to compute on pieces of ``x``: on a CPU, unless a compiler or a tracer records what is done."""
    return x.is_cpu and not is_traced() and is_ordinary(x)


def _compiles(x: Tensor) -> bool:
    return x.is_cpu and torch.compiler.is_dynamo_compiling()


def tokens_at_a_time(channels: int, itemsize: int, keep: bool = False) -> int:
    """How many tokens a piece has whose widest intermediate has so many channels of ``itemsize`` bytes."""
    return max(MIN_TOKENS, (KEPT_BYTES if keep else PIECE_BYTES) // (channels * itemsize))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`torch.nn.functional.linear` of ``(..., C)``; on a CPU not differentiable twice."""
    if _compiles(x):
        x, weight, bias = cast(compute_dtype(x), x, weight, bias)
        return _linear_operation(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], len(weight))
    if not in_pieces(x):
        return F.linear(x, weight, bias)
    x = x.to(compute_dtype(x))
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """``linear(gelu(linear(x, w1, b1)), w2, b2)`` of ``(..., C)``; on a CPU not differentiable twice.

    For the backward pass the hidden layer is kept as it is before the GELU, which is computed again.
    """
    if _compiles(x):
        if torch.is_grad_enabled():
            return linear(F.gelu(linear(x, w1, b1)), w2, b2)
        x, *layers = cast(compute_dtype(x), x, w1, b1, w2, b2)
        return _mlp_operation(x.flatten(0, -2), *layers).view(*x.shape[:-1], len(w2))
    if not in_pieces(x):
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    x = x.to(compute_dtype(x))
    # Inside a Function neither the mode nor needs_input_grad tells whether a backward pass may come.
    return _Mlp.apply(x.reshape(-1, x.shape[-1]), w1, b1, w2, b2, torch.is_grad_enabled()).view(*x.shape[:-1], len(w2))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which linear layers compute: autocast's, if it is on."""
    autocasts = torch.is_autocast_enabled('cpu') and x.dtype != torch.float64
    return torch.get_autocast_dtype('cpu') if autocasts else x.dtype


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
    @staticmethod
    @in_given_types
    def forward(ctx, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, keep: bool) -> Tensor:
        ctx.given = w1.dtype
        w1, b1, w2, b2 = cast(x.dtype, w1, b1, w2, b2)
        hidden, out, active = [], _Rows(x), None
        with_product, after_it = _place_of_bias(x, b1)
        for piece in x.split(tokens_at_a_time(len(w1), x.element_size(), keep)):
            h = product(piece, w1, with_product)
            active = _gelu(h, after_it, active if keep else h)
            out.append(len(active), len(w2), partial(product, active, w2, b2))
            if keep:
                hidden.append(h)
        if keep:
            ctx.save_for_backward(x, w1, after_it, w2, *hidden)
        return out.whole

    @staticmethod
    @once_differentiable
    @in_given_types
    def backward(ctx, grad: Tensor):
        x, w1, bias, w2, *hidden = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        n, x_grad, sums, active = len(hidden[0]), _Rows(x), [None] * 4, None
        for some, g, h in zip(x.split(n), grad.contiguous().split(n), hidden, strict=True):
            h_grad = gradients(g, h, w2, (True, False, False))[0]
            active = _gelu_backward(h, bias, h_grad, active)
            second = gradients(g, active, w2, (False, *wanted[3:5]))[1:]
            _, *first = gradients(h_grad, some, w1, (False, *wanted[1:3]))
            if wanted[0]:
                x_grad.append(len(some), len(w1.t()), partial(input_gradient, h_grad, w1))
            sums = [_sum(total, part) for total, part in zip(sums, (*first, *second), strict=True)]
        return x_grad.whole, *cast(ctx.given, *sums), None


class _Rows:
    """A matrix of which some rows are computed at a time, where they are to be; all at once are taken as they are.

    Attributes:
        whole: The matrix, once all rows of the one that it is like have been computed.
    """

    def __init__(self, like: Tensor) -> None:
        self.whole: Tensor | None = None
        self._like, self._filled = like, 0

    def append(self, rows: int, width: int, compute: Callable[..., Tensor]) -> None:
        if rows == len(self._like):
            self.whole = compute()
            return
        if self.whole is None:
            self.whole = self._like.new_empty(len(self._like), width)
        compute(out=self.whole[self._filled : self._filled + rows])
        self._filled += rows


def _place_of_bias(x: Tensor, bias: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The bias for the product, and the one for the GELU after it: oneDNN adds one for nothing, others in a pass."""
    return (None, bias.contiguous()) if cpp_gelu.takes(x) and not is_by_onednn(x) else (bias, None)


def _gelu(x: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """``gelu(x + bias)`` into the memory of ``x`` or of the piece before, if it had as many rows.

    New memory costs more than the function.
    """
    out = x.new_empty(x.shape) if out is None or len(out) != len(x) else out
    if cpp_gelu.takes(x):
        return cpp_gelu.gelu(x, bias, out)
    return torch.ops.aten.gelu.out(x if bias is None else x + bias, out=out)


def _gelu_backward(x: Tensor, bias: Tensor | None, grad: Tensor, out: Tensor | None) -> Tensor:
    """:func:`_gelu` again; ``grad``, that of its result, becomes that of ``x``, in place."""
    if cpp_gelu.takes(x):
        out = x.new_empty(x.shape) if out is None or len(out) != len(x) else out
        return cpp_gelu.gelu_backward(x, bias, grad, out)
    x = x if bias is None else x + bias
    torch.ops.aten.gelu_backward.grad_input(grad, x, grad_input=grad)
    return _gelu(x, None, out)


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """``total + part``, in place, in float32 at least; None is nothing."""
    if total is None or part is None:
        return None if part is None else part.to(torch.promote_types(part.dtype, torch.float32))
    return total.add_(part)


@torch.library.custom_op('swinv2_mm::linear', mutates_args=())
def _linear_operation(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return in_given_types(product)(x, weight, bias).contiguous()


@_linear_operation.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op('swinv2_mm::linear_backward', mutates_args=())
def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``x``, ``weight`` and the bias; empty where none is wanted."""
    found = in_given_types(gradients)(grad.contiguous(), x, weight, wanted)
    x_grad, weight_grad, bias_grad = (x.new_empty(0) if one is None else one.contiguous() for one in found)
    return x_grad, weight_grad, bias_grad


@_linear_backward.register_fake
def _(grad, x, weight, wanted):
    shapes = (x.shape, weight.shape, weight.shape[:1])
    x_grad, weight_grad, bias_grad = (
        x.new_empty(shape if want else 0) for shape, want in zip(shapes, wanted, strict=True)
    )
    return x_grad, weight_grad, bias_grad


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _operation_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found = _linear_backward(grad, *ctx.saved_tensors, list(ctx.needs_input_grad))
    return tuple(one if want else None for one, want in zip(found, ctx.needs_input_grad, strict=True))


_linear_operation.register_autograd(_operation_gradients, setup_context=_save)


@torch.library.custom_op('swinv2_mm::mlp', mutates_args=())
def _mlp_operation(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Without gradients: a training's hidden layer is the compiler's to keep."""
    return _Mlp.apply(x, w1, b1, w2, b2, False).contiguous()


@_mlp_operation.register_fake
def _(x, w1, b1, w2, b2):
    return x.new_empty(x.shape[0], w2.shape[0])
