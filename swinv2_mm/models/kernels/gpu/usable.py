"""What computes attention on a GPU: torch's memory-efficient kernel or the Triton kernels, and why not."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache

import torch
from torch import Tensor

from swinv2_mm.compat import COMPILES, is_compiling

Pair = tuple[int, int]

# The limits of torch's memory-efficient kernel: the divisor of the channels of a head, and the bias of a window.
TORCH_HEAD_WIDTH = 8
TORCH_BIAS_BYTES = 256 * 2**20
# The limits of the Triton kernels. The window's is per side; see the division in triton_kernels._locate.
TRITON_HEAD_WIDTH = 128
TRITON_WINDOW = 128
# Where ``make gpu`` has measured the Triton kernels as faster than torch's, forward and in a training step: by compute
# capability the largest side of a window. It is empty until somebody has.
TRITON_IS_FASTER: dict[Pair, int] = {}


def torch_kernel_computes(qkv: Tensor) -> bool:
    """Whether torch's memory-efficient kernel computes attention of windows ``(G, N, 3, nH, d)`` on an NVIDIA GPU.

    Its gradients are sums in no fixed order, so it is not used under ``torch.use_deterministic_algorithms``.
    """
    _, N, _, nH, d = qkv.shape
    return (
        _is_nvidia(qkv)
        and qkv.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and (qkv.dtype != torch.bfloat16 or capability(qkv.device) >= (8, 0))
        and d % TORCH_HEAD_WIDTH == 0
        and nH * N * N * qkv.element_size() <= TORCH_BIAS_BYTES
        and not torch.are_deterministic_algorithms_enabled()
    )


def _is_nvidia(x: Tensor) -> bool:
    return x.is_cuda and torch.version.hip is None


@lru_cache
def capability(device: torch.device) -> Pair:
    """The compute capability of a GPU."""
    return torch.cuda.get_devicecapability(device)


def why_not_by_default(version: Pair, window: Pair) -> str:
    """Why ``attn_backend='auto'`` leaves attention to torch's kernel on a GPU of this compute capability.

    Empty where the Triton kernels are faster.
    """
    largest, name = TRITON_IS_FASTER.get(version), '.'.join(map(str, version))
    if largest is None:
        return f'the Triton kernels have not been measured on a GPU of compute capability {name}'
    if max(window) > largest:
        return f'on compute capability {name} the Triton kernels are faster up to windows of {largest}'
    return ''


def may_wait(x: Tensor) -> bool:
    """Whether a GPU may be tried out and waited for: ``x`` is on one, and no compiler and no CUDA graph records."""
    return x.is_cuda and not is_compiling() and not torch.cuda.is_current_stream_capturing()


def why_not_triton(qkv: Tensor, window: Pair) -> str:
    """Why the Triton kernels cannot compute the attention of a map; empty if they can.

    Their gradient of the table is a sum in no fixed order, so training under
    ``torch.use_deterministic_algorithms`` is refused; everything else is the same in every run.
    """
    if not COMPILES:
        return f'it needs torch 2.6 or newer, and this is {torch.__version__}'
    if importlib.util.find_spec('triton') is None:
        return 'Triton is not installed'
    if qkv.device.type != 'cuda' and os.environ.get('TRITON_INTERPRET') != '1':
        return f'Triton needs a GPU, and the features are on {qkv.device.type}'
    if qkv.device.type == 'cuda' and capability(qkv.device) < (8, 0):
        return 'Triton needs compute capability 8.0 (Ampere)'
    if qkv.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f'there is no kernel for {qkv.dtype}'
    if qkv.shape[-1] > TRITON_HEAD_WIDTH:
        return f'its heads have {qkv.shape[-1]} channels, the kernels take {TRITON_HEAD_WIDTH}'
    if max(window) > TRITON_WINDOW:
        return f'the window is {window[0]} x {window[1]}, the kernels take {TRITON_WINDOW} per side'
    if torch.is_grad_enabled() and torch.are_deterministic_algorithms_enabled():
        return 'its gradient of the position bias is not deterministic'
    return ''
