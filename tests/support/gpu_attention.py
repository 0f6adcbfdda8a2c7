"""torch's memory-efficient attention as a GPU has it, on a CPU: what its kernel asks for, and the formula."""

import contextlib
import functools
from unittest import mock

import torch

from swinv2_mm.models.kernels.gpu import usable

ATTENTION = '_scaled_dot_product_efficient_attention'


def probabilities(q, k, bias, scale):
    """In float64, so that what is compared are the types of inputs and outputs alone."""
    return (q.double() @ k.double().transpose(-2, -1) * scale + bias.double()).softmax(-1)


def check(bias, *heads):
    """As CUDA's kernel does, before it reads addresses."""
    q = heads[0]
    assert all(x.dtype == q.dtype and x.stride(-1) == 1 and x.stride(1) % 8 == 0 for x in (*heads, bias))
    assert bias.shape == (*q.shape[:3], heads[1].shape[2]), 'the bias must have the sizes of the logits'
    assert bias.stride(2) % 16 == 0, 'a row of the bias must start at a multiple of 16 numbers'
    assert len(q) <= 65535, 'the grid is too large'
    assert bias.isfinite().all(), 'a block of keys at -inf may give NaN'


def attend(q, k, v, bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):
    check(bias, q, k, v)
    out = (probabilities(q, k, bias, scale) @ v.double()).to(q.dtype)
    sums = q.new_zeros(*q.shape[:2], q.shape[2] if compute_log_sumexp else 0, dtype=torch.float32)
    number = torch.zeros((), dtype=torch.int64)
    return out.transpose(1, 2).contiguous().transpose(1, 2), sums, number, number.clone()


def attend_backward(grad, q, k, v, bias, out, sums, seed, offset, dropout_p, wanted, is_causal=False, *, scale=None):
    check(bias, q, k, v, grad, out)
    assert sums.shape[2], 'the forward pass kept no sums'
    probs, grad64 = probabilities(q, k, bias, scale), grad.double()
    # As flash attention has it: the sum of probabilities times their gradients is that of outputs times theirs.
    delta = (grad64 * out.double()).sum(-1, keepdim=True)
    logits_grad = probs * (grad64 @ v.double().transpose(-2, -1) - delta)
    found = (
        logits_grad @ k.double() * scale,
        logits_grad.transpose(-2, -1) @ q.double() * scale,
        probs.transpose(-2, -1) @ grad64,
    )
    in_memory = [x.to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2) for x in found]
    return *in_memory, logits_grad.to(q.dtype)


@contextlib.contextmanager
def emulated(computes=lambda qkv: True):
    """Let our code take that kernel, on a CPU.

    Args:
        computes: Stands in for ``usable.torch_kernel_computes``.
    """
    _library()
    with mock.patch.object(usable, 'torch_kernel_computes', computes):
        yield


@functools.cache
def _library():
    """Nothing else calls these operations on a CPU, so they stay."""
    library = torch.library.Library('aten', 'IMPL')
    library.impl(ATTENTION, attend, 'CPU')
    library.impl(f'{ATTENTION}_backward', attend_backward, 'CPU')
    return library
