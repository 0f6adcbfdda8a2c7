"""tools/model_zoo.py: the page is that of the configs, and a config is counted."""

import functools
import re
from pathlib import Path

import mmengine.config.utils as config_utils
import pytest

from swinv2_mm.engine.costs import model_zoo
from swinv2_mm.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """mmengine reads all metafiles of a framework for each file that a config inherits from it."""
    monkeypatch.setattr(config_utils, 'load', functools.cache(config_utils.load))


def test_the_page_is_up_to_date():
    """Prevents: a page that describes other configs than those in the folder."""
    assert model_zoo.page(ROOT) == (ROOT / model_zoo.PAGE).read_text(), f'run {model_zoo.COMMAND}'


def test_the_page_is_complete():
    """Every config has one row, with numbers. Prevents: heads that could not be counted becoming dashes, unnoticed."""
    rows = [
        [cell.strip() for cell in line.strip('|\n').split('|')]
        for line in (ROOT / model_zoo.PAGE).read_text().splitlines()
        if line.startswith('| [')
    ]
    assert sorted(row[0] for row in rows) == sorted(
        f'[{path.stem}](../configs/{path.name})' for path in (ROOT / 'configs').glob('*.py')
    )
    for row in rows:
        own, whole, flops, total = map(float, (*row[4].split(' / '), *row[5].split(' / ')))
        assert own < whole and 0 < flops <= total  # a classifier's head rounds to nothing


def test_a_page_is_written_whole(run_tool, tmp_path, monkeypatch):
    """Prevents: a page that a failure cuts short, and files that are left beside it."""
    path = tmp_path / 'zoo.md'
    path.write_text('old')
    monkeypatch.setattr(model_zoo, 'PAGE', path)
    monkeypatch.setattr(model_zoo, 'page', lambda root, track: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_tool('model_zoo')
    assert path.read_text() == 'old'
    monkeypatch.setattr(model_zoo, 'page', lambda root, track: 'new')
    assert run_tool('model_zoo') == 0 and path.read_text() == 'new'
    assert [entry.name for entry in tmp_path.iterdir()] == ['zoo.md']


def test_a_config_without_entry_is_named(tmp_path):
    """Prevents: a config that the page leaves out in silence, or a row that links to nothing."""
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'metafile.yml').write_text('Models:\n- {Name: old, Config: configs/old.py}\n')
    (tmp_path / 'configs' / 'new.py').write_text('')
    with pytest.raises(UserError, match=r'configs/new\.py, configs/old\.py: .*metafile\.yml is missing'):
        model_zoo.page(tmp_path)


def test_a_config_is_counted(run_tool, capsys):
    """At the size of its own test, or at the one that is given. Prevents: numbers of another size or model."""
    config = ROOT / 'configs' / 'upernet_swinv2_l_896_test.py'
    assert run_tool('model_zoo', config) == 0
    assert '896 x 896 pixels' in capsys.readouterr().out
    config = ROOT / 'configs' / 'maskrcnn_swinv2_t_shapes.py'
    assert run_tool('model_zoo', config) == 0
    assert '128 x 128 pixels' in capsys.readouterr().out
    assert run_tool('model_zoo', config, '--shape', 100, 65, '--cfg-options', 'model.backbone.window_size=3') == 0
    out = capsys.readouterr().out
    assert '128 x 96 pixels' in out and re.search(r'stage 3 +8x6 +3x3 ', out)
    stages = [float(value) for value in re.findall(r'stage \d .* ([\d.]+) *\n', out)]
    whole, heads, backbone = (float(re.search(rf'{name} +([\d.]+)', out)[1]) for name in ('model', 'heads', 'backbone'))
    assert len(stages) == 4 and sum(stages) == pytest.approx(backbone, abs=0.02)
    assert backbone + heads == pytest.approx(whole, abs=0.01)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['configs/maskrcnn_swinv2_t_shapes.py', '--shape', '0'], '--shape'),
        (['configs/maskrcnn_swinv2_t_shapes.py', '--shape', '1', '2', '3'], '--shape'),
        (['--shape', '800', '1333'], 'belong to a config'),
        (['configs/no.py'], 'does not exist'),
    ],
)
def test_wrong_arguments_end_in_one_message(run_tool, monkeypatch, capsys, arguments, message):
    """Prevents: tracebacks."""
    monkeypatch.chdir(ROOT)
    assert run_tool('model_zoo', *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_row_without_its_framework_stays(tmp_path, monkeypatch):
    """And one that never was is an error. Bug: a page that loses rows where a framework is not installed."""
    head = '| config |\n| --- |\n'
    page = ''.join(f'<!-- {task} -->\n\n{head}\n' for task in ('Backbones', 'Larger images'))
    page += f'<!-- Pre-training -->\n\n{head}| [old](../configs/old.py) | its row |\nBelow.\n'
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'configs').mkdir()
    (tmp_path / model_zoo.PAGE).write_text(page)
    for name in ('old', 'new'):
        (tmp_path / 'configs' / f'{name}.py').write_text("default_scope = 'no_such_framework'\n")
    entry = '- {{Name: {0}, Config: configs/{0}.py}}\n'
    monkeypatch.setattr(model_zoo, '_releases', lambda: [])
    monkeypatch.setattr(model_zoo, '_larger', lambda: [])
    (tmp_path / 'configs' / 'metafile.yml').write_text('Models:\n' + entry.format('old') + entry.format('new'))
    with pytest.raises(UserError, match=r'new\.py builds on no_such_framework'):
        model_zoo.page(tmp_path)
    (tmp_path / 'configs' / 'new.py').unlink()
    (tmp_path / 'configs' / 'metafile.yml').write_text('Models:\n' + entry.format('old'))
    assert model_zoo.page(tmp_path) == page
