"""The C++ of ``csrc/token_passes.cpp`` for tensors: bias and GELU; norm, stochastic depth and residual.

Each is one pass over memory. :mod:`swinv2_mm.models.kernels.choose` says for which tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from swinv2_mm.models.kernels import cpp
from swinv2_mm.models.kernels.cpp import TYPES, addresses, check


def gelu(hidden: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """``gelu(hidden + bias)`` of ``(M, C)`` into ``out``, which may be ``hidden``; all are contiguous, of one type."""
    _check(hidden, bias, out)
    cpp.library().swinv2_gelu(
        TYPES[hidden.dtype], *addresses(hidden, bias, out), *hidden.shape, torch.get_num_threads()
    )
    return out


def gelu_backward(hidden: Tensor, bias: Tensor | None, grad: Tensor, out: Tensor) -> Tensor:
    """:func:`gelu` again; ``grad``, the gradient of its result, becomes the gradient of ``hidden``, in place."""
    _check(hidden, bias, grad, out)
    cpp.library().swinv2_gelu_backward(
        TYPES[hidden.dtype], *addresses(hidden, bias, grad, out), *hidden.shape, torch.get_num_threads()
    )
    return out


def _check(hidden: Tensor, bias: Tensor | None, *others: Tensor) -> None:
    for tensor in (hidden, *others):
        check(tensor, hidden.dtype, *hidden.shape)
    check(bias, hidden.dtype, hidden.shape[1])


def add_normalised(norm: nn.LayerNorm, x: Tensor, branch: Tensor, scales: Tensor | None) -> Tensor:
    """``x + scales * norm(branch)``; not differentiable twice.

    Args:
        norm: Over the channels, with weight and bias.
        x, branch: ``(B, ..., C)``, of one type.
        scales: ``(B,)``, or None for 1.
    """
    return _AddNormalised.apply(x, branch, norm.weight, norm.bias, scales, norm.eps, torch.is_grad_enabled())


class _AddNormalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, scales: Tensor | None, eps: float, keep: bool
    ) -> Tensor:
        x, branch = x.contiguous(), branch.contiguous()
        weight_, bias_ = (t.float().contiguous() for t in (weight, bias))
        scales = None if scales is None else scales.float().contiguous()
        out, (M, C) = torch.empty_like(x), (x.numel() // x.shape[-1], x.shape[-1])
        rows = torch.empty(2, M) if keep else (None, None)
        check(branch, x.dtype, *x.shape)
        check(scales, torch.float32, len(x))
        cpp.library().swinv2_residual_norm(
            TYPES[x.dtype],
            *addresses(x, branch, weight_, bias_, scales, out, *rows),
            M,
            C,
            len(x),
            eps,
            torch.get_num_threads(),
        )
        if keep:
            ctx.save_for_backward(branch, weight, scales, rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        branch, weight, scales, rows = ctx.saved_tensors
        grad, weight_ = grad.contiguous().to(branch.dtype), weight.float().contiguous()
        branch_grad = torch.empty_like(branch)
        weight_grad, bias_grad = torch.empty_like(weight_), torch.empty_like(weight_)
        check(grad, branch.dtype, *branch.shape)
        cpp.library().swinv2_residual_norm_backward(
            TYPES[branch.dtype],
            *addresses(grad, branch, weight_, scales, *rows, branch_grad, weight_grad, bias_grad),
            len(rows[0]),
            branch.shape[-1],
            len(branch),
            torch.get_num_threads(),
        )
        return grad, branch_grad, weight_grad.to(weight.dtype), bias_grad.to(weight.dtype), None, None, None
