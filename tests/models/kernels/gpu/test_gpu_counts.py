"""What a step asks of a GPU, counted on meta tensors."""

import pytest
import torch
from support import ROOT, load_script

from swinv2_mm import SwinTransformerV2

counting = load_script(ROOT / 'benchmarks' / 'gpu_counts.py')


@pytest.mark.parametrize('window, amp', [(24, False), (8, True)], ids=['24, float32', '8, amp'])
def test_a_step_copies_nothing_and_waits_for_nothing(window, amp):
    """Of T at 800 x 1333, in training and evaluation, also the first of a size; kernels and bytes stay few.

    Prevents: a plan that is copied to the device, weights compared by value, a call for each mask.
    """
    model = SwinTransformerV2('tiny', window_size=window)
    for training in (True, False):
        for row in counting.count(model, (800, 1333), 2, training, amp):
            assert row['copies'] == row['waits'] == 0
            assert row['bytes'] <= 5.1 * row['least']
            forward = row['pass'] == 'forward'
            assert row['attention'] <= 12 * 3
            if row['step'] > 0:
                assert row['block'][1] <= (37 if forward else 68) + 13 * amp
                assert row['block'][0] <= (30 if forward else 51) + 13 * amp


def test_what_is_counted():
    """Against a count by hand. Prevents: views that count as kernels, or waits that do not count."""
    counts = counting.Counts()
    x = torch.empty(4, 6, device='meta')
    with counts:
        y = (x.view(6, 4)[:3] + 1).view(-1)  # one kernel: reads 12 of 24 numbers, writes 12
        x.to(torch.float16)  # one kernel: reads 24 numbers, writes 24 of half the size
        assert y.expand(2, 12).equal(y.expand(2, 12))  # waits
        torch.ones(3).to('meta')  # a copy
    assert counts.kernels['add'] == 1 and counts.waits == 1 and counts.copies == 1
    assert counts.kernels.total() == 1 + 1 + 1  # the last is the copy
    assert counts.bytes == 4 * (12 + 12) + (4 + 2) * 24 + 4 * (3 + 3)


def test_a_value_that_python_reads_is_a_wait():
    """Prevents: a loop over a tensor's numbers that nobody sees."""
    counts = counting.Counts()
    with counts, pytest.raises(RuntimeError):  # meta tensors have no values
        torch.empty(1, device='meta').item()
    assert counts.waits == 1
