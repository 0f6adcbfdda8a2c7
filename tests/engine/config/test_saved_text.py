"""The config in a checkpoint: read as mmengine reads it, without running what stands in it."""

import pytest
from mmengine.config import Config
from support.zoo import LEAVES, load

from swinv2_mm.engine.config.text import config_of_text
from swinv2_mm.errors import UserError


@pytest.mark.parametrize('path', LEAVES[::7], ids=lambda path: path.stem)
def test_the_text_gives_the_config(path):
    """Bug: a tuple becomes a list, or a key that is no identifier is lost."""
    cfg = load(path)
    cfg.model.table = {'a b': (1, [2.5, -1e-6, None]), 3: {'x': True}}
    expected = Config.fromstring(cfg.pretty_text, '.py').to_dict()
    expected.pop('custom_imports', None)  # they are imported by a list, and left out
    assert config_of_text(cfg.pretty_text, 'run.pth').to_dict() == expected


EVIL = {  # and what is said about it
    'statement': ('import os\n', 'plain text'),
    'call': ("model = open('ran', 'w')", 'plain text'),
    'comprehension': ("model = [open('ran', 'w') for _ in (1,)]", 'plain text'),
    'path': ("model = dict(type='os.system', command='touch ran')", 'model.type=os.system'),
    'deep': ("model = dict(a=[dict(type='subprocess.run', args='touch ran')])", 'subprocess.run'),
    'function': ("model = dict(type='mmengine.dump', obj=1, file='ran.json')", 'mmengine.dump'),
    'method': ("model = dict(type='mmengine.Config.fromfile', filename='ran.py')", 'Config.fromfile'),
    'module': ("model = dict(type='antigravity')", 'antigravity'),
    'import': ("custom_imports = dict(imports=['theirs'])", 'theirs'),
    'scope': ("model = dict(type='A', _scope_='theirs')", 'theirs'),
    'text': ('model = ', 'plain text'),
    'depth': (f'model = {"[" * 5000}', 'plain text'),
}


@pytest.mark.parametrize('name', EVIL)
def test_nothing_of_it_runs(name, tmp_path, monkeypatch):
    """Bug: a checkpoint of somebody else runs commands where somebody only wants to look at its predictions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'theirs.py').write_text("open('ran', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    text, words = EVIL[name]
    with pytest.raises(UserError, match='pass the config of its run') as error:
        config_of_text(text, 'run.pth')
    assert words in str(error.value) and [path.name for path in tmp_path.iterdir()] == ['theirs.py']
