"""Matrix products with the tokens of a map, and their gradients, by the library that a processor has the fastest of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# oneDNN sums over up to 1024 channels in one chain of float32 additions, MKL over some 200: rounding errors are 2.3
# times as large. Up to this many, 1.4 times.
MAX_CHAIN = 384


@lru_cache(maxsize=1)
def _has_float16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_fp16_supported()


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products with ``x`` are fast: a CPU without float16 arithmetic computes them one by one.

    The float32 products of float16 numbers are exact, and are rounded once, as a processor that knows the type does.
    """
    return torch.float32 if x.dtype == torch.float16 and x.is_cpu and not _has_float16() else x.dtype


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """All of them in one type; what is not there stays so."""
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


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


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x weight^T + bias``, ``(M, C)`` to ``(M, D)``."""
    fast = product_dtype(x)
    if fast != x.dtype:
        return product(*cast(fast, x, weight, bias)).to(x.dtype)
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


def gradients(grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of ``x``, ``weight`` and the bias from that of :func:`product`, those that are wanted."""
    fast = product_dtype(x)
    if fast != x.dtype:
        return cast(x.dtype, *gradients(*cast(fast, grad, x, weight), wanted))
    if not _convolves(x):
        return [torch.mm(grad, weight) if wanted[0] else None, grad.t() @ x if wanted[1] else None,
                grad.sum(0) if wanted[2] else None]
    x_grad, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
        _as_image(grad), _as_image(x), weight[:, :, None, None], [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0],
        1, list(wanted))
    return [_as_tokens(x_grad) if wanted[0] else None, weight_grad[:, :, 0, 0] if wanted[1] else None, bias_grad]
