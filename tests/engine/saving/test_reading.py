"""Checkpoints are read without running code from them; what mmengine writes can be resumed."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from swinv2_mm.engine.saving import reading
from swinv2_mm.engine.saving.reading import check_resumable, latest_checkpoint, protect_loading, read_checkpoint
from swinv2_mm.errors import UserError
from swinv2_mm.registry import OF_MMENGINE

pytestmark = pytest.mark.usefixtures('own_process')


class RunsCode:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), 'w')


class WalksFromAClass:
    """Pickles as ``getattr(HistoryBuffer, '__init__')``: the first step from an allowed class to its globals."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def save(path, value):
    torch.save(value, path)
    return path


def test_reads_what_mmengine_writes(mmengine_trained):
    """Bug: ``--resume`` dies in torch.load, whose default refuses the classes that mmengine saves its logs with."""
    checkpoint = read_checkpoint(mmengine_trained / 'epoch_2.pth')
    check_resumable('epoch_2.pth', checkpoint)
    assert checkpoint['meta']['epoch'] == 2
    assert isinstance(checkpoint['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    assert isinstance(checkpoint['message_hub']['runtime_info']['best_score'], np.float32)


def test_reads_what_our_tools_write(trained):
    """Bug: the log in a plain checkpoint is found nowhere, or in another form than in mmengine's."""
    checkpoint = read_checkpoint(trained / 'epoch_2.pth')
    check_resumable('epoch_2.pth', checkpoint)
    assert isinstance(checkpoint['message_hub']['log_scalars']['train/loss'], HistoryBuffer)
    assert isinstance(checkpoint['message_hub']['runtime_info']['best_score'], float)


def test_protected_process_reads_what_mmengine_writes(mmengine_trained):
    """Bug: the check before the run can read a checkpoint, the plain ``torch.load`` of mmengine cannot."""
    protect_loading()
    assert torch.load(mmengine_trained / 'epoch_2.pth')['meta']['epoch'] == 2


@pytest.mark.parametrize('left_out', range(len(OF_MMENGINE)))
def test_allows_nothing_that_is_not_needed(mmengine_trained, left_out, monkeypatch):
    """Bug: a class stays on the list of allowed ones though no checkpoint asks for it."""
    allowed = OF_MMENGINE[left_out]
    if isinstance(allowed, tuple) and allowed[1].startswith('numpy.core') and np.__version__ >= '2':
        pytest.skip('asked for by checkpoints saved with NumPy 1')
    monkeypatch.setattr(reading, 'OF_MMENGINE', [item for item in OF_MMENGINE if item is not allowed])
    with pytest.raises(UserError, match='refused'):
        read_checkpoint(mmengine_trained / 'epoch_2.pth')


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    """Bug: a downloaded checkpoint runs code when it is read."""
    mark = tmp_path / 'code ran'
    path = save(tmp_path / 'evil.pth', {'state_dict': RunsCode(mark)})
    with pytest.raises(UserError, match='refused, because reading it could run code'):
        read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    assert not mark.exists()


def test_refuses_code_whatever_the_environment_says(tmp_path, monkeypatch):
    """Bug: an environment variable, or a checkpoint given as a URL, turns the protection off."""
    mark = tmp_path / 'code ran'
    path = save(tmp_path / 'evil.pth', {'state_dict': RunsCode(mark)})
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    protect_loading()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.hub.load_state_dict_from_url(path.as_uri(), model_dir=str(tmp_path / 'hub'))
    assert not mark.exists()


def test_gives_no_way_out_of_an_allowed_class(tmp_path):
    """Bug: allowing the real ``getattr``, which HistoryBuffer is saved with, hands out every module's globals."""
    with pytest.raises(UserError, match='refused'):
        read_checkpoint(save(tmp_path / 'walk.pth', {'state_dict': WalksFromAClass()}))


@pytest.mark.parametrize('kind', ['text', 'empty', 'cut', 'tensor', 'pickle', 'folder', 'missing'])
def test_names_what_is_no_checkpoint(kind, tmp_path, trained):
    """Bug: a traceback from the depths of torch, or its advice to read the file without protection."""
    path = tmp_path / f'{kind}.pth'
    if kind == 'text':
        path.write_text('<html>404</html>')
    elif kind == 'empty':
        path.touch()
    elif kind == 'cut':
        path.write_bytes((trained / 'epoch_2.pth').read_bytes()[:-100])
    elif kind == 'tensor':
        save(path, torch.zeros(2))
    elif kind == 'pickle':
        path.write_bytes(pickle.dumps(RunsCode(tmp_path / 'code ran'), protocol=2))
    elif kind == 'folder':
        path.mkdir()
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    text = str(error.value)
    assert str(path) in text and '\n' not in text and 'weights_only' not in text
    assert not (tmp_path / 'code ran').exists()


def test_arrays_of_numpy_are_left_to_those_who_convert_them(tmp_path):
    """Bug: the checks let them pass, and mmengine ends in a traceback when it loads them."""
    path = save(tmp_path / 'arrays.pth', {'state_dict': {'weight': np.zeros(2)}})
    with pytest.raises(UserError, match=r'load_from: .*arrays\.pth holds arrays of NumPy, such as weight'):
        reading.open_checkpoint(str(path), 'load_from')


def test_weights_alone_cannot_be_resumed(tmp_path):
    """Bug: ``--resume`` with released weights fails with KeyError: 'meta'."""
    path = save(tmp_path / 'weights.pth', {'state_dict': {'weight': torch.zeros(2)}})
    with pytest.raises(UserError, match='load_from='):
        check_resumable(path, read_checkpoint(path))


def test_finds_the_checkpoint_that_mmengine_noted(trained):
    assert latest_checkpoint(trained) == trained / 'epoch_3.pth'


@pytest.mark.parametrize('kind', ['cut', 'empty', 'text', 'weights'])
def test_passes_over_a_checkpoint_that_cannot_be_resumed(kind, trained, tmp_path, capsys):
    """Bug: a run that lost its newest checkpoint, to a killed save or a full disk, can never be resumed again."""
    work_dir = shutil.copytree(trained, tmp_path / 'killed')
    newest = work_dir / 'epoch_3.pth'
    if kind == 'cut':
        os.truncate(newest, newest.stat().st_size // 2)
    elif kind == 'empty':
        os.truncate(newest, 0)
    elif kind == 'text':
        newest.write_text('garbage')
    else:
        newest.unlink()  # what is read stays mapped
        save(newest, {'state_dict': read_checkpoint(work_dir / 'epoch_2.pth')['state_dict']})
    (work_dir / 'last_checkpoint').write_text(str(newest))
    assert latest_checkpoint(work_dir) == work_dir / 'epoch_2.pth'
    warning = capsys.readouterr().err
    assert warning.startswith('warning: ') and 'epoch_3.pth' in warning and 'epoch_2.pth' in warning


def test_finds_a_checkpoint_that_is_newer_than_the_note(trained, tmp_path):
    """Bug: a run that is killed between a checkpoint and its note loses what it had reached."""
    work_dir = shutil.copytree(trained, tmp_path / 'killed')
    note, newest = work_dir / 'last_checkpoint', work_dir / 'epoch_3.pth'
    note.write_text(str(work_dir / 'epoch_2.pth'))
    later = note.stat().st_mtime_ns + 10**9
    os.utime(newest, ns=(later, later))
    assert latest_checkpoint(work_dir) == newest


def test_a_copied_folder_resumes_from_its_own_files(trained, tmp_path):
    """Bug: the note in a copy still names the original, which is trained on in its place."""
    copy = shutil.copytree(trained, tmp_path / 'copy')
    assert latest_checkpoint(copy) == copy / 'epoch_3.pth'


@pytest.mark.parametrize('cut', [0, 3, 10])
def test_a_note_that_was_cut_off_misleads_nobody(cut, trained, tmp_path):
    """Bug: the rest of the note is a folder's name, which passes for a checkpoint."""
    work_dir = shutil.copytree(trained, tmp_path / 'killed')
    (work_dir / 'last_checkpoint').write_text(f'{work_dir}/epoch_2.pth'[: len(str(work_dir)) + 1 - cut])
    assert latest_checkpoint(work_dir) == work_dir / 'epoch_3.pth'


def test_finds_checkpoints_without_a_valid_note(trained, tmp_path):
    """Bug: the note is written last and names where the folder was: killed before that, or moved, it misleads."""
    moved = shutil.copytree(trained, tmp_path / 'moved')
    (moved / 'last_checkpoint').write_text('/gone/epoch_2.pth')
    assert latest_checkpoint(moved) == moved / 'epoch_2.pth'
    (moved / 'last_checkpoint').write_text('')
    assert latest_checkpoint(moved) == moved / 'epoch_3.pth'


def test_no_checkpoint_is_none_and_only_corrupt_ones_are_an_error(tmp_path):
    assert latest_checkpoint(tmp_path / 'none') is None
    (tmp_path / 'epoch_1.pth').write_text('damaged')
    with pytest.raises(UserError, match='nothing in'):
        latest_checkpoint(tmp_path)
