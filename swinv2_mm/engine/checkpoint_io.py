"""Reading checkpoints without running code from them, and finding the one to resume from."""

import os
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from swinv2_mm.checkpoints.files import read_file
from swinv2_mm.errors import UserError, say


def _statistic(owner: type, name: str) -> object:
    """Stand in for ``getattr``, by which pickle names the methods of HistoryBuffer: it gives those, nothing else.

    The real one would let a file walk from any class to its module's globals, and from there to anything.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError(f'Trying to load unsupported GLOBAL getattr({owner}, {name!r})')
    return getattr(HistoryBuffer, name)


# What mmengine saves beside tensors and builtins: logged numbers and best scores, as HistoryBuffers of NumPy arrays and
# as NumPy scalars. Each is needed to resume (a test takes them away one by one), holds numbers and runs nothing.
_reconstruct = np.empty(0).__reduce__()[0]
_scalar = np.float64(0).__reduce__()[0]
_NUMBERS = [
    HistoryBuffer,
    (_statistic, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(number)) for number in ('int64', 'float64', 'float32')),
    # NumPy 2 moved these two; a checkpoint names the place that they had when it was saved.
    *((_reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
    *((_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
]


def protect_loading() -> None:
    """Make every ``torch.load`` of this process refuse code, yet read what mmengine writes.

    mmengine passes no ``weights_only``, and by default torch refuses the classes of :data:`_NUMBERS`: they are allowed
    by name. The environment variable extends the protection to ``torch.hub``, which would switch it off for checkpoints
    that come from a URL.
    """
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    torch.serialization.add_safe_globals(_NUMBERS)


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint, its tensors mapped rather than copied into memory where the format allows.

    Args:
        path: A local file.

    Raises:
        UserError: The file is missing, damaged, no checkpoint, or wants to run code.
    """
    return read_file(path, allow=_NUMBERS)


def check_resumable(path: str | Path, checkpoint: dict) -> None:
    """Check that a checkpoint holds what continuing a run needs, not weights alone.

    Raises:
        UserError: It does not.
    """
    missing = [key for key in ('state_dict', 'optimizer', 'message_hub', 'meta') if key not in checkpoint]
    if missing:
        raise UserError(
            f'{path} cannot be resumed: it holds no {", ".join(missing)}. To start a new run from its weights, pass '
            f'--cfg-options load_from={path} in the place of --resume.'
        )


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """Find the checkpoint that ``--resume`` continues from: the last one saved that can be read.

    mmengine notes it in the file ``last_checkpoint``. A run that was killed while saving leaves a damaged file behind,
    and a folder that was moved notes paths that are gone; then the other checkpoints of the folder are tried, newest
    first.

    Returns:
        The path, or None if the folder holds no checkpoint.

    Raises:
        UserError: There are checkpoints, but none can be resumed.
    """
    folder = Path(work_dir).expanduser()
    saved = sorted(
        [*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')], key=lambda path: path.stat().st_mtime, reverse=True
    )
    note = folder / 'last_checkpoint'
    noted = note.read_text().strip() if note.is_file() else ''
    candidates = [Path(noted), folder / Path(noted).name, *saved] if noted else saved
    candidates = [path for path in dict.fromkeys(candidates) if path.exists()]
    problems = []
    for path in candidates:
        try:
            if path.is_file():  # sharded strategies save folders, which only they can read
                check_resumable(path, read_checkpoint(path))
        except UserError as problem:
            problems.append(str(problem))
            continue
        if problems:
            say(f'warning: {problems[0]} Resuming from {path}.')
        return path
    if problems:
        raise UserError(f'nothing in {folder} can be resumed. {problems[0]}')
    return None
