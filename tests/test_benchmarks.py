"""The benchmark of window attention runs, as far as a CPU can tell."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('triton', reason='Triton exists for Linux only')
SCRIPT = Path(__file__).parents[1] / 'benchmarks' / 'attention.py'
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location('benchmark_of_attention', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses looks for it
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'RUNS', 1)
    return module


def test_all_ways_do_the_same_job(benchmark, monkeypatch, capsys):
    """On a small padded map, shifted along one axis, and printed. Prevents: times of three different things."""
    rows = benchmark.measure(benchmark.Case(1, 7, 3, 2, 16, 4), torch.float32, DEVICE, 1)
    assert [row['way'] for row in rows] == ['fused', 'PyTorch', 'SDPA']
    for row in rows:
        assert row['forward'] > 0 and row['both'] > 0
        assert row['error'] < 1e-5 and row['gradient_error'] < 1e-5
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'no GPU')
    rows = [dict(dtype='float32', window=4, stage=0, **row) for row in rows]
    benchmark.show(dict(rows=rows, about=benchmark.about(), command='a command'))
    printed = capsys.readouterr().out
    assert 'SDPA' in printed and 'no GPU' in printed and 'a command' in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so(benchmark, monkeypatch):
    """Prevents: a traceback, or numbers of the interpreter."""
    monkeypatch.setattr(sys, 'argv', [str(SCRIPT)])
    with pytest.raises(SystemExit, match='measures on a CUDA GPU, and there is none'):
        benchmark.main()
