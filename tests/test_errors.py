"""Who speaks of several processes, and how names are listed."""

import sys

import pytest

from swinv2_mm.errors import did_you_mean, is_first, is_launched, listed


@pytest.mark.parametrize(
    ('arguments', 'launched'),
    [
        ('', False),
        ('--launcher none', False),
        ('--launcher=none', False),
        ('--launcher pytorch', True),
        ('--launcher=slurm', True),
        ('--launcher pytorch --launcher none', False),
        ('--cfg-options model.launcher=pytorch', False),
    ],
)
def test_no_launcher_is_none_or_nothing(arguments, launched, monkeypatch):
    """Bug: with ``--launcher none``, signals end the process at once and LOCAL_RANK=1 in a shell makes it silent."""
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py', *arguments.split()])
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert is_launched() == launched and is_first() != launched


def test_long_lists_are_cut_and_no_suggestion_is_no_text():
    """Prevents: a paragraph of a thousand file names; `Did you mean ?`."""
    assert listed([1, 2], most=2) == '1, 2' and listed('abc', most=2) == 'a, b and 1 more'
    assert did_you_mean([]) == '' and did_you_mean(iter('ab')) == ' Did you mean a or b?'
