"""When the Triton kernels are used, in which tiles, and that they are looked at first."""

import pytest
import torch

from swinv2_mm.compat import COMPILES
from swinv2_mm.models.kernels.gpu import self_check, triton_attention, usable

if not COMPILES:
    pytest.skip('the Triton kernels need torch 2.6', allow_module_level=True)
pytest.importorskip('triton', reason='Triton exists for Linux only')
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


class FakeGPU:
    """What the choice of tiles asks of a tensor on a GPU."""

    is_cuda, device, dtype, shape = True, 'cuda:0', torch.float16, (1, 9, 9, 3, 1, 16)
    element_size = lambda self: 2  # noqa: E731


def test_a_gpu_times_the_tiles_once_for_a_kind_of_problem(monkeypatch):
    """The fastest is taken, also for another map or window of the kind. Prevents: timing each image size anew."""
    monkeypatch.setattr(triton_attention._Launch, 'fastest', {})
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    launch = triton_attention._Launch(torch.empty(1, 9, 9, 3, 1, 16, dtype=torch.float16), (9, 9), (0, 0))
    times = dict(zip(launch.candidates(), (3.0, 1.0, 2.0), strict=True))
    timed = []
    monkeypatch.setattr(triton_attention._Launch, '_by_rows', lambda *_: None)
    monkeypatch.setattr(
        triton_attention._Launch,
        '_milliseconds',
        lambda self, kernel, args, *tile: timed.append(tile) or times[tile],
    )
    assert launch._fastest('forward_kernel', (FakeGPU(),)) == launch.candidates()[1]
    other = triton_attention._Launch(torch.empty(2, 30, 40, 3, 1, 16, dtype=torch.float16), (10, 12), (5, 6))
    assert other._fastest('forward_kernel', (FakeGPU(),)) == launch.candidates()[1]
    assert timed == launch.candidates()
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)  # a graph records no clock
    assert other._fastest('backward_kv_kernel', (FakeGPU(),)) == launch.candidates()[0]


@pytest.mark.parametrize(
    'dtype, slots',
    [(torch.float32, 12), (torch.bfloat16, 12), pytest.param(torch.float16, 81, marks=pytest.mark.slow)],
    ids=['float32', 'bfloat16', 'several tiles'],
)
def test_the_check_at_first_use_passes_and_finds_what_is_wrong(dtype, slots, monkeypatch):
    """Against kernels that work, and that scale by another factor. Prevents: a check that always agrees.

    Also: it runs once.
    """
    calls = []
    inner = triton_attention.attention_without_checks
    right = lambda *args: calls.append(1) or inner(*args)  # noqa: E731
    wrong = lambda qkv, table, scale, *rest: inner(qkv, table.roll(1, 2), scale, *rest)  # noqa: E731
    monkeypatch.setattr(self_check, '_found', {})
    check = lambda attend: self_check.why_not_exact(attend, torch.device(DEVICE), dtype, 16, slots, False)  # noqa: E731
    assert check(right) == check(right) == '' and len(calls) == 1
    monkeypatch.setattr(self_check, '_found', {})
    assert 'is off by' in check(wrong)


def test_auto_takes_the_kernels_where_they_were_measured_as_faster(monkeypatch):
    """And says why not elsewhere. Prevents: kernels that nobody measured, or a measurement without effect."""
    monkeypatch.setattr(usable, 'why_not_triton', lambda qkv, window: '' if qkv.shape[-1] == 32 else 'too wide')
    monkeypatch.setattr(usable, 'capability', lambda device: (9, 0))
    x = torch.empty(1, 9, 9, 64)
    assert 'not been measured on a GPU of compute capability 9.0' in usable.why_not_by_default((9, 0), (8, 8))
    assert not triton_attention.is_faster(x, (8, 8), 32)
    monkeypatch.setattr(usable, 'TRITON_IS_FASTER', {(9, 0): 16})
    assert triton_attention.is_faster(x, (8, 16), 32)
    assert not triton_attention.is_faster(x, (8, 24), 32) and not triton_attention.is_faster(x, (8, 8), 64)
    assert 'up to windows of 16' in usable.why_not_by_default((9, 0), (24, 24))
