"""Matrix products with the tokens of a map, and their gradients, by the library that a processor has the fastest of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from swinv2_mm.models.kernels.arithmetic import has_arithmetic

# oneDNN sums over all channels in one chain of float32 additions, MKL over some 200: at 3072 channels its rounding
# errors are 2.2 times as large. Up to this many, 1.4 times.
MAX_CHAIN = 768

# A torch that was built without oneDNN does not have it.
if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        """What torch's counter is to add for oneDNN's linear layer, which it does not know."""
        return 2 * x.numel() * weight[0]


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products with ``x`` are fast: a CPU without arithmetic for a type computes one by one.

    The float32 products of half-precision numbers are exact, and are rounded once, as a processor that knows the type
    does.
    """
    return torch.float32 if x.is_cpu and not has_arithmetic(x.dtype) else x.dtype


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """All of them in one type; what is not there stays so."""
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


@lru_cache(maxsize=1)
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith('AVX512')


def is_by_onednn(x: Tensor) -> bool:
    """Whether oneDNN computes the products with ``x``."""
    return x.dtype in (torch.float32, torch.bfloat16) and _has_onednn()


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Rows that are apart make it slow, those of a weight by orders of magnitude; a transposed one is as good as any.
    if not weight.t().is_contiguous():
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, 'none', [], '')


def _as_image(x: Tensor) -> Tensor:
    """``(M, C)`` as an image of ``M`` pixels, ``(1, C, 1, M)`` in channels-last order."""
    return x[None, None].permute(0, 3, 1, 2)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``x weight^T + bias``, ``(M, C)`` to ``(M, D)``, into ``out`` if that is given."""
    fast = product_dtype(x)
    if fast == x.dtype and not is_by_onednn(x):
        return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)
    found = _onednn_product(x, weight, bias) if fast == x.dtype else product(*cast(fast, x, weight, bias)).to(x.dtype)
    return found if out is None else out.copy_(found)


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    count = -(-x.shape[1] // MAX_CHAIN) if x.dtype == torch.float32 else 1
    if count == 1:
        return _onednn_linear(x, weight, bias)
    channels, y = -(-x.shape[1] // count // 64) * 64, None
    for some, w in zip(x.split(channels, dim=1), weight.split(channels, dim=1), strict=True):
        part = _onednn_linear(some, w, bias if y is None else None)
        y = part if y is None else y.add_(part)
    return y


def input_gradient(grad: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """The gradient of ``x`` from that of :func:`product`, ``(M, D)`` to ``(M, C)``, into ``out`` if that is given."""
    fast = product_dtype(grad)
    if fast == grad.dtype and not is_by_onednn(grad):
        return torch.mm(grad, weight, out=out)
    if fast == grad.dtype:
        found = _onednn_linear(grad, weight.t(), None)
    else:
        found = input_gradient(*cast(fast, grad, weight)).to(grad.dtype)
    return found if out is None else out.copy_(found)


def gradients(grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of ``x``, ``weight`` and the bias from that of :func:`product`, those that are wanted."""
    fast = product_dtype(x)
    if fast != x.dtype:
        return cast(x.dtype, *gradients(*cast(fast, grad, x, weight), wanted))
    return [
        input_gradient(grad, weight) if wanted[0] else None,
        _weight_gradient(grad, x) if wanted[1] else None,
        grad.sum(0) if wanted[2] else None,
    ]


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``grad^T x``, ``(D, C)``."""
    if not is_by_onednn(x):
        return grad.t() @ x
    if x.dtype == torch.bfloat16:  # faster with the more columns in the result
        return grad.t() @ x if x.shape[1] >= grad.shape[1] else (x.t() @ grad).t()
    if len(x) <= MAX_CHAIN:
        return torch.ops.mkldnn._linear_pointwise(grad.t(), x.t(), None, 'none', [], '')
    # Of the weight only the shape is read; in another order it would be laid out anew.
    weight = torch.empty(grad.shape[1], x.shape[1], 1, 1, memory_format=torch.channels_last)
    return torch.ops.aten.convolution_backward(
        _as_image(grad), _as_image(x), weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1][:, :, 0, 0]
