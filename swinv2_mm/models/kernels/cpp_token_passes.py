"""The C++ of ``csrc/token_passes.cpp``: bias and GELU; norm, stochastic depth and residual. One pass over memory each.

``choose.py`` says for which tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from swinv2_mm.models.kernels.cpp import check, run


def gelu(hidden: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """``gelu(hidden + bias)`` of ``(M, C)`` into ``out``, which may be ``hidden``; all are contiguous, of one type."""
    _check(hidden, bias, out)
    run('swinv2_gelu', hidden.dtype, (hidden, bias, out), *hidden.shape)
    return out


def gelu_backward(hidden: Tensor, bias: Tensor | None, grad: Tensor, out: Tensor) -> Tensor:
    """:func:`gelu` again; ``grad``, the gradient of its result, becomes the gradient of ``hidden``, in place."""
    _check(hidden, bias, grad, out)
    run('swinv2_gelu_backward', hidden.dtype, (hidden, bias, grad, out), *hidden.shape)
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
        run('swinv2_residual_norm', x.dtype, (x, branch, weight_, bias_, scales, out, *rows), M, C, len(x), eps)
        if keep:
            ctx.save_for_backward(branch, weight, scales, rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        branch, weight, scales, rows = ctx.saved_tensors
        grad, weight_ = grad.contiguous().to(branch.dtype), weight.float().contiguous()
        found = torch.empty_like(branch), torch.empty_like(weight_), torch.empty_like(weight_)
        check(grad, branch.dtype, *branch.shape)
        tensors = grad, branch, weight_, scales, *rows, *found
        sizes = rows.shape[1], branch.shape[-1], len(branch)
        run('swinv2_residual_norm_backward', branch.dtype, tensors, *sizes)
        return grad, found[0], found[1].to(weight.dtype), found[2].to(weight.dtype), None, None, None
