"""Matrix products with the tokens of a map, and their gradients, by the fastest library on this processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swinv2_mm.compat import register_flops
from swinv2_mm.models.kernels import choose

# oneDNN sums over all channels in one chain of float32 additions, MKL over some 200: at 3072 channels its rounding
# errors are 2.2 times as large. Up to this many, 1.4 times.
MAX_CHAIN = 768


def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """The operations of oneDNN's linear layer, which torch's counter does not know."""
    return 2 * x.numel() * weight[0]


if torch.backends.mkldnn.is_available():  # a torch built without oneDNN has no such operation
    register_flops(torch.ops.mkldnn._linear_pointwise, _flops)


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """The tensors in one type; None stays None."""
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # It is slow for rows that lie apart, for those of a weight by orders of magnitude; a transposed weight is fast.
    if not weight.t().is_contiguous():
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, 'none', [], '')


def product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``x weight^T + bias``, ``(M, C)`` to ``(M, D)``, into ``out`` if that is given."""
    fast = choose.product_dtype(x)
    if fast != x.dtype:
        found = product(*cast(fast, x, weight, bias)).to(x.dtype)
    elif choose.is_by_onednn(x):
        found = _onednn_product(x, weight, bias)
    else:
        return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)
    return found if out is None else out.copy_(found)


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    count = -(-x.shape[1] // MAX_CHAIN) if x.dtype == torch.float32 else 1
    if count == 1:
        return _onednn_linear(x, weight, bias)
    channels = -(-x.shape[1] // count // 64) * 64
    (first, w), *rest = zip(x.split(channels, dim=1), weight.split(channels, dim=1), strict=True)
    y = _onednn_linear(first, w, bias)
    for some, w in rest:
        y.add_(_onednn_linear(some, w, None))
    return y


def input_gradient(grad: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """The gradient of ``x`` from that of :func:`product`, ``(M, D)`` to ``(M, C)``, into ``out`` if that is given."""
    fast = choose.product_dtype(grad)
    if fast != grad.dtype:
        found = input_gradient(grad.to(fast), weight.to(fast)).to(grad.dtype)
    elif choose.is_by_onednn(grad):
        found = _onednn_linear(grad, weight.t(), None)
    else:
        return torch.mm(grad, weight, out=out)
    return found if out is None else out.copy_(found)


def gradients(grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> list[Any]:
    """The gradients of ``x``, ``weight`` and the bias from that of :func:`product`; None for those not wanted."""
    fast = choose.product_dtype(x)
    if fast != x.dtype:
        return cast(x.dtype, *gradients(*cast(fast, grad, x, weight), wanted=wanted))
    return [
        input_gradient(grad, weight) if wanted[0] else None,
        _weight_gradient(grad, x) if wanted[1] else None,
        grad.sum(0) if wanted[2] else None,
    ]


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``grad^T x``, ``(D, C)``."""
    if not choose.is_by_onednn(x):
        return grad.t() @ x
    if x.dtype == torch.bfloat16:  # faster if the result has more columns than rows
        return grad.t() @ x if x.shape[1] >= grad.shape[1] else (x.t() @ grad).t()
    if len(x) <= MAX_CHAIN:
        return torch.ops.mkldnn._linear_pointwise(grad.t(), x.t(), None, 'none', [], '')
    # As images of M pixels, (1, C, 1, M), in channels-last order.
    grad_image, image = grad[None, None].permute(0, 3, 1, 2), x[None, None].permute(0, 3, 1, 2)
    # Only the shape of the weight is read; in another memory format it would be copied.
    weight = torch.empty(grad.shape[1], x.shape[1], 1, 1, memory_format=torch.channels_last)
    return torch.ops.aten.convolution_backward(
        grad_image, image, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1][:, :, 0, 0]
