"""Reading checkpoints without running code from them, and finding the latest one to resume."""

import os
from pathlib import Path

from swinv2_mm.checkpoints.files import read_file
from swinv2_mm.engine.config.parts import is_local
from swinv2_mm.engine.saving.plain_data import restore_log
from swinv2_mm.errors import UserError, say
from swinv2_mm.registry import OF_MMENGINE


def protect_loading() -> None:
    """Make every ``torch.load`` of this process refuse code, whatever the environment and the caller say.

    That includes ``torch.hub``, which would switch the protection off for checkpoints from a URL. mmengine's
    checkpoints can still be read, since :mod:`swinv2_mm.registry` allows their classes.
    """
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint, its tensors mapped rather than copied into memory where the format allows.

    Args:
        path: A local file.

    Returns:
        Its content, with the log in ``message_hub`` as mmengine's ``MessageHub`` expects it.

    Raises:
        UserError: The file is missing, corrupt, no checkpoint, or would run code.
    """
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
    return checkpoint


def check_resumable(path: str | Path, checkpoint: dict) -> None:
    """Check that a checkpoint holds everything that resuming needs, not only weights.

    Raises:
        UserError: It does not.
    """
    missing = [key for key in ('state_dict', 'optimizer', 'message_hub', 'meta') if key not in checkpoint]
    if missing:
        raise UserError(
            f'{path} cannot be resumed: it holds no {", ".join(missing)}. To start a new run from its weights, pass '
            f'--cfg-options load_from={path} in the place of --resume.'
        )


def latest_checkpoint(work_dir: str | Path, run: str | None = None) -> Path | None:
    """Find the checkpoint that ``--resume`` continues from: the last one saved that can be read.

    The file ``last_checkpoint`` names it, unless the run was killed between writing the two. In a moved or copied
    folder its path and the times of files are wrong, so only the name counts. Corrupt files are skipped.

    Args:
        work_dir: The folder.
        run: Take only checkpoints saved by this run, see :func:`~swinv2_mm.engine.config.distributed.this_run`.

    Returns:
        The path, or None if the folder holds no checkpoint, or none of that run.

    Raises:
        UserError: There are checkpoints, but none can be resumed.
    """
    folder = Path(work_dir).expanduser()
    problems = []
    for path in _candidates(folder):
        try:
            checkpoint = read_checkpoint(path)
            if run is not None and checkpoint.get('message_hub', {}).get('runtime_info', {}).get('run') != run:
                continue
            check_resumable(path, checkpoint)
        except UserError as problem:
            problems.append(str(problem))
            continue
        if problems:
            say(f'warning: {problems[0]} Resuming from {path}.')
        return path
    if problems and run is None:
        raise UserError(f'nothing in {folder} can be resumed. {problems[0]}')
    return None


def _candidates(folder: Path) -> list[Path]:
    saved = sorted([*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')], key=_time, reverse=True)
    note = folder / 'last_checkpoint'
    noted = Path(note.read_text().strip()) if note.is_file() else Path()
    if not noted.suffix:  # none, or cut off
        return saved
    in_place = noted.parent.resolve() == folder.resolve()
    newer = [path for path in saved if _time(path) > note.stat().st_mtime_ns] if in_place else []
    return [path for path in dict.fromkeys([*newer, folder / noted.name, noted, *saved]) if path.exists()]


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns
