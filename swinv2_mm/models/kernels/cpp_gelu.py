"""Bias and GELU between the products of an MLP, and their gradients, by the C++ of ``csrc/token_passes.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from swinv2_mm.models.kernels.cpp import TYPES, addresses, check, library, may_take


def takes(x: Tensor) -> bool:
    """Whether :func:`gelu` and :func:`gelu_backward` compute in the type of ``x``, where it is."""
    return may_take(x) and library() is not None


def gelu(hidden: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """``gelu(hidden + bias)`` of ``(M, C)`` into ``out``, which may be ``hidden``; all are contiguous, of one type."""
    _check(hidden, bias, out)
    library().swinv2_gelu(TYPES[hidden.dtype], *addresses(hidden, bias, out), *hidden.shape, torch.get_num_threads())
    return out


def gelu_backward(hidden: Tensor, bias: Tensor | None, grad: Tensor, out: Tensor) -> Tensor:
    """:func:`gelu` again; ``grad``, that of its result, becomes that of ``hidden``, in place."""
    _check(hidden, bias, grad, out)
    library().swinv2_gelu_backward(
        TYPES[hidden.dtype], *addresses(hidden, bias, grad, out), *hidden.shape, torch.get_num_threads()
    )
    return out


def _check(hidden: Tensor, bias: Tensor | None, *others: Tensor) -> None:
    for tensor in (hidden, *others):
        check(tensor, hidden.dtype, *hidden.shape)
    check(bias, hidden.dtype, hidden.shape[1])
