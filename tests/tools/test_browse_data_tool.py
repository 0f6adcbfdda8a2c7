"""``tools/browse_data.py``: the table of docs/data.md, and the page."""

import re
from pathlib import Path

import pytest
from support.tiny_fixtures import ROOT

from swinv2_mm.datasets import ShapesSpec, write_shapes

CONFIGS = {name: ROOT / 'configs' / f'{name}_swinv2_t_shapes.py' for name in ('maskrcnn', 'upernet')}


@pytest.fixture
def place(own_process, tmp_path):
    return tmp_path


def test_the_page_of_the_docs_says_what_the_tool_counts(place, run_tool, capfd):
    """Bug: figures of an earlier version in docs/data.md, or a sample where all maps should be read."""
    write_shapes(ShapesSpec(), place / 'data' / 'shapes')
    page = (ROOT / 'docs' / 'data.md').read_text()
    shown = re.search(r'\$ python tools/browse_data.py configs/upernet_swinv2_t_shapes.py\n\n(.*?)```', page, re.DOTALL)
    assert run_tool('browse_data', CONFIGS['upernet'], '--pictures', '0') == 0
    assert capfd.readouterr().out == shown[1]
    assert not Path('work_dirs').exists()


def test_it_writes_a_page_of_the_data_sets_that_it_is_asked_for(place, run_tool, capfd):
    """Bug: a page without pictures, of all splits, or in a place that nobody finds."""
    write_shapes(ShapesSpec(size=32, num_train=3, num_val=2), place / 'data' / 'shapes')
    assert run_tool('browse_data', CONFIGS['maskrcnn'], '--pictures', '2', '--splits', 'val') == 0
    out, page = capfd.readouterr().out, Path('work_dirs/maskrcnn_swinv2_t_shapes/data.html')
    assert str(page) in out and re.search(r'^val +2 +2 +\d+$', out, re.MULTILINE) and 'train' not in out
    assert page.read_text().count('data:image/jpeg') == 2
    assert run_tool('browse_data', CONFIGS['maskrcnn'], '--out', 'there/page.html') == 0
    assert Path('there/page.html').read_text().count('data:image/jpeg') == 5


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--splits', 'test', '--cfg-options', 'test_dataloader=None'], '--splits test'),
        ([], 'data are missing'),
        (['--pictures', 'many'], '--pictures'),
    ],
)
def test_mistakes_end_in_a_sentence(place, run_tool, capfd, arguments, words):
    """Bug: a traceback, or an empty page."""
    options = ['test_evaluator=None', 'test_cfg=None'] if 'test_dataloader=None' in arguments else []
    assert run_tool('browse_data', CONFIGS['maskrcnn'], *arguments, *options) == 2
    assert words in capfd.readouterr().err and not [*place.iterdir()]
