"""benchmarks/export.py measures what it says."""

import pytest
from support import ROOT, load_script

pytest.importorskip('onnxscript', reason='what torch writes ONNX files with is not installed')


def test_ratios_are_those_of_the_turns():
    """Prevents: ratios of medians, which compare different moments of a machine."""
    module = load_script(ROOT / 'benchmarks' / 'export.py')
    seconds = {module.EAGER: [1.0, 4.0, 2.0], 'timm, OpenVINO': [3.0, 4.0, 4.0]}
    assert module.ratios(dict(seconds=seconds)) == {module.EAGER: 1.0, 'timm, OpenVINO': 2.0}


def test_a_peer_that_fails_is_named(tmp_path, monkeypatch):
    """Prevents: a run that one runtime ends."""
    module = load_script(ROOT / 'benchmarks' / 'export.py')
    monkeypatch.setattr(module, 'exported', lambda *_: tmp_path / 'none.onnx')
    case = dict(arch='tiny', window=2, size='32x32')
    found = module.take_turns(['ours'], ['onnxruntime'], case, 1, tmp_path, lambda: 0.0)
    assert list(found['seconds']) == [module.EAGER] and list(found['failed']) == ['ours, ONNX Runtime']
