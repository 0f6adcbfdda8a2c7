"""Reading checkpoints without running code from them, and finding the latest one to resume."""

import os
from pathlib import Path

import numpy as np

from swinv2_mm.checkpoints.files import read_file
from swinv2_mm.checkpoints.unpickling import protect
from swinv2_mm.engine.config.parts import is_local
from swinv2_mm.engine.saving.plain_data import restore_log
from swinv2_mm.errors import UserError, say
from swinv2_mm.registry import OF_MMENGINE


def protect_loading() -> None:
    """Make every ``torch.load`` of this process, also that of ``torch.hub``, refuse code, whatever the caller says."""
    protect(OF_MMENGINE)


def read_checkpoint(path: str | Path) -> dict:
    """Read a local file as :func:`read_file`, with the log in ``message_hub`` as mmengine expects it."""
    checkpoint = read_file(path, allow=OF_MMENGINE)
    restore_log(checkpoint)
    return checkpoint


def open_checkpoint(path: str, name: str) -> dict | None:
    """Read a checkpoint of weights by their names.

    Args:
        path: A file; a URL or a name in a model zoo is left to the loader.
        name: The option or key of the config that names it, for the message.

    Returns:
        The checkpoint, its tensors mapped; None if it is not a local file.

    Raises:
        UserError: It is missing, corrupt, or wants to run code.
    """
    if not is_local(path):
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        folder = file if file.is_dir() else file.parent
        found = sorted([*folder.glob('*.pth'), *folder.glob('*.safetensors')])
        raise UserError(
            f'{name}: checkpoint {path} {"is a folder" if file.is_dir() else "does not exist"} (the current folder is '
            f'{Path.cwd()}).{f" There is {found[-1]}." if found else ""}'
        )
    checkpoint = read_checkpoint(file)
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise UserError(f'{name}: {path} is no checkpoint: it holds no named weights.')
    arrays = [key for key, value in weights.items() if isinstance(value, np.ndarray)]
    if arrays:
        raise UserError(
            f'{name}: {path} holds arrays of NumPy, such as {arrays[0]}, and mmengine loads tensors only. Save it '
            'again with torch.from_numpy(array) for each.'
        )
    return checkpoint


def check_resumable(path: str | Path, checkpoint: dict) -> None:
    """Raise a UserError if a checkpoint lacks what resuming needs beside the weights."""
    missing = [key for key in ('state_dict', 'optimizer', 'message_hub', 'meta') if key not in checkpoint]
    if missing:
        raise UserError(
            f'{path} cannot be resumed: it holds no {", ".join(missing)}. To start a new run from its weights, pass '
            f'--cfg-options load_from={path} in the place of --resume.'
        )


def latest_checkpoint(work_dir: str | Path, run: str | None = None) -> Path | None:
    """Find the checkpoint that ``--resume`` continues from: the last one saved that can be read.

    Args:
        work_dir: If it holds no checkpoint, the result is None.
        run: Take only checkpoints of this run, see :func:`~swinv2_mm.engine.config.distributed.this_run`.

    Raises:
        UserError: There are checkpoints, but none can be resumed.
    """
    folder = Path(work_dir).expanduser()
    problems = []
    for path in _candidates(folder):
        try:
            checkpoint = read_checkpoint(path)
            if run in (None, checkpoint.get('message_hub', {}).get('runtime_info', {}).get('run')):
                check_resumable(path, checkpoint)
                if problems:
                    say(f'warning: {problems[0]} Resuming from {path}.')
                return path
        except UserError as problem:
            problems.append(str(problem))
    if problems and run is None:
        raise UserError(f'nothing in {folder} can be resumed. {problems[0]}')
    return None


def _candidates(folder: Path) -> list[Path]:
    """Checkpoints, the best one first: that in the note, unless the run was killed between saving and noting.

    In a moved or copied folder the path in the note and the times of files are wrong, so only the name counts.
    """
    saved = sorted([*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')], key=os.path.getmtime, reverse=True)
    note = folder / 'last_checkpoint'
    noted = Path(note.read_text().strip()) if note.is_file() else Path()
    if not noted.suffix:  # none, or cut off
        return saved
    in_place = noted.parent.resolve() == folder.resolve()
    newer = [path for path in saved if os.path.getmtime(path) > os.path.getmtime(note)] if in_place else []
    return [path for path in dict.fromkeys([*newer, folder / noted.name, noted, *saved]) if path.exists()]
