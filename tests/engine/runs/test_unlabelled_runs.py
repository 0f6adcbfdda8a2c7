"""Pre-training on a folder of pictures: without any framework, with corrupt files, resumed, and what its tools show."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.resuming import same
from support.tiny_unlabelled import write_config, write_pictures
from support.versions import needs

from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.saving.reading import latest_checkpoint, read_checkpoint
from swinv2_mm.errors import UserError

pytestmark = [pytest.mark.usefixtures('own_process'), needs('mmcv')]
ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmdet', 'mmseg', 'mmpretrain'):
            raise ModuleNotFoundError(name + ' is not installed')
sys.meta_path.insert(0, Absent())
from swinv2_mm.engine.runs import prepare_training, train
print('epochs:', train(prepare_training(sys.argv[1], work_dir='run')).epoch)
"""


def last(work_dir):
    return read_checkpoint(latest_checkpoint(work_dir))


def test_no_framework_is_necessary(tmp_path):
    """Bug: a transform, a preprocessor or a check that needs MMDetection or MMSegmentation."""
    write_pictures(tmp_path / 'pictures', 2)
    hooks = "[dict(type='swinv2_mm.EpochSeedHook'), dict(type='swinv2_mm.ReconstructionHook')]"
    config = write_config(tmp_path, max_epochs=1, hooks=hooks)
    command = [sys.executable, '-c', ALONE, str(config)]
    result = subprocess.run(command, capture_output=True, text=True, env={'PYTHONPATH': str(ROOT)}, check=False)
    assert 'epochs: 1' in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_resumed_run_sees_the_same_crops(num_workers, tmp_path):
    """And draws the same pictures. Bug: crops or flips that depend on how often a run has begun."""
    write_pictures(tmp_path / 'pictures')
    hooks = "[dict(type='swinv2_mm.EpochSeedHook'), dict(type='swinv2_mm.ReconstructionHook')]"
    config = str(write_config(tmp_path, f'resumed{num_workers}.py', hooks=hooks, num_workers=num_workers))
    train(prepare_training(config, work_dir='straight'))
    train(prepare_training(config, work_dir='resumed', resume='straight/epoch_1.pth'))
    for part in ('state_dict', 'optimizer'):
        assert same(last('resumed')[part], last('straight')[part])
    picture = 'reconstructions/epoch_2.png'
    assert Path('resumed', picture).read_bytes() == Path('straight', picture).read_bytes()
    assert not Path('resumed/reconstructions/epoch_0.png').exists()


@pytest.mark.parametrize('policy', ['stop', 'skip'])
def test_a_corrupt_picture_is_named_or_skipped(policy, tmp_path, capfd):
    """Bug: a traceback of OpenCV's without a name, in a training, or in the first picture of it."""
    folder = write_pictures(tmp_path / 'pictures')
    (folder / '1.png').write_bytes((folder / '1.png').read_bytes()[:100])
    hooks = "[dict(type='swinv2_mm.ReconstructionHook')]" if policy == 'skip' else '[]'
    config = write_config(tmp_path, f'{policy}.py', f'bad_data = {policy!r}\n', max_epochs=1, hooks=hooks)
    if policy == 'stop':
        with pytest.raises(UserError, match=r'pictures/1\.png cannot be used: it is empty, incomplete or no image'):
            train(prepare_training(str(config), work_dir=policy))
    else:
        assert train(prepare_training(str(config), work_dir=policy)).epoch == 1
        assert '1.png cannot be used' in capfd.readouterr().out


def test_the_report_is_drawn_while_it_runs(tmp_path, monkeypatch):
    """After epochs, if there is no validation. Bug: nothing to look at before the end of 800 epochs."""
    write_pictures(tmp_path / 'pictures')
    drawn = []
    monkeypatch.setattr('swinv2_mm.engine.display.report.draw_report', lambda runs, out: drawn.append(runs[0].train))
    extra = "default_hooks['report'] = dict(type='swinv2_mm.ReportHook')\n"
    train(prepare_training(str(write_config(tmp_path, 'drawn.py', extra)), work_dir='run'))
    assert [len(records) for records in drawn] == [2, 4, 4]  # after each epoch, and at the end


def test_the_pictures_can_be_looked_at(run_tool, tmp_path, capfd):
    """Bug: a page, or a table, that asks for annotations; a corrupt file that ends the tool."""
    folder = write_pictures(tmp_path / 'pictures', 3)
    (folder / '2.png').write_bytes(b'no picture')
    config = write_config(tmp_path)
    assert run_tool('browse_data', config, '--out', 'page.html') == 0
    out = capfd.readouterr().out
    assert out.startswith('data   pictures\ntrain         3\n')
    page = Path('page.html').read_text()
    assert page.count('data:image/jpeg') == 2 and 'failed to load image' in page
