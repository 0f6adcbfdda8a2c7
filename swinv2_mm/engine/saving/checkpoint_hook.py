"""Crash-safe saving: a file appears complete or not at all; the old one is deleted after the new one is on disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC, EROFS
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import EpochBasedTrainLoop, Runner

from swinv2_mm.checkpoints.files import PARTIAL, replacing
from swinv2_mm.engine.config.distributed import this_run
from swinv2_mm.engine.mmengine_internals import OpenCheckpointHook, loaded_from, update_val_interval
from swinv2_mm.engine.saving.plain_data import make_plain, restore_log
from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS


def protect_saving() -> None:
    """Make mmengine write local files of this process, such as checkpoints, crash-safe."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')


class WholeFileBackend(LocalBackend):
    """mmengine's access to local files, but a file is replaced only when the new one is complete."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with told(filepath, len(obj)), replacing(filepath) as partial:
            partial.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


class PatientBackend(WholeFileBackend):
    """Postpones the removal of checkpoints, and looks in its folder only: a run may be resumed in another folder."""

    def __init__(self, folder: str | Path, outdated: list[str]) -> None:
        self.folder, self.outdated = Path(folder), outdated

    def isfile(self, filepath: str | Path) -> bool:
        return Path(self.folder, Path(filepath).name).is_file()

    def remove(self, filepath: str | Path) -> None:
        self.outdated.append(Path(filepath).name)

    def catch_up(self) -> None:
        while self.outdated:
            Path(self.folder, self.outdated.pop()).unlink(missing_ok=True)


@contextmanager
def told(path: str | os.PathLike, size: int | None = None) -> Iterator[None]:
    """Raise a UserError if the disk is full or read-only while a file of ``size`` bytes, or a folder, is written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT, EROFS):
            raise
        path = error.filename if size is None and error.filename else path
        room = '' if size is None else f' It takes {size / 1e6:.2f} MB.'
        raise UserError(
            f'could not write {path}: {os.strerror(error.errno)}.{room} What was saved before is whole. '
            f'{"Make the folder writable" if error.errno == EROFS else "Free space"}, then start again; --resume goes '
            'on with a training from its last checkpoint.'
        ) from error


@HOOKS.register_module()
class CheckpointHook(OpenCheckpointHook):
    """mmengine's hook, for runs that may be killed at any moment.

    A checkpoint is removed only when its successor is complete. Resuming completes what a killed run left undone: it
    removes partial files and outdated checkpoints, notes the checkpoint as the last one, and runs the validation that
    was due.

    A run that is told to end saves one more (:meth:`save_here`), which is removed when the next regular one is saved.
    """

    # Epochs and iterations of the checkpoint to resume from, and its name; known to every process before it is written.
    _saved: tuple[int, int, str] = 0, 0, ''

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        left_out = make_plain(checkpoint)
        if left_out:
            runner.logger.warning(  # mmengine's logger shows it once
                'Left out of checkpoints, because these are no numbers, strings, tensors, or lists or dicts of them: '
                + ', '.join(f'{place} ({kind})' for place, kind in left_out.items())
            )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        restore_log(checkpoint)

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        hub, folder = runner.message_hub, Path(self.out_dir)
        if type(self.file_backend) is WholeFileBackend:
            self.file_backend = PatientBackend(folder, hub.runtime_info.get('outdated', []))
            self._catch_up()
            # Checkpoints list what is outdated: a run that is killed before it removes it does so when it is resumed.
            hub.update_info('outdated', self.file_backend.outdated)
            if is_main_process():
                for partial in [*folder.glob(PARTIAL), *Path(runner.work_dir).glob(PARTIAL)]:
                    partial.unlink(missing_ok=True)
        hub.update_info('run', this_run() or '')
        if runner.iter > 0:
            self.last_ckpt = hub.runtime_info.get('last_ckpt')
            resumed = Path(loaded_from(runner))
            if resumed.parent.resolve() == folder.resolve():
                self._saved = runner.epoch, runner.iter, resumed.name
                self._note(runner, folder / resumed.name)
            if runner.val_loop is not None and _validation_is_due(runner):
                runner.logger.info('The validation after the checkpoint was interrupted, and is run now.')
                runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        runner.message_hub.update_info('validated', _done(runner))
        super().after_val_epoch(runner, metrics)

    def save_best_of(self, runner: Runner, metrics: dict) -> None:
        for name in getattr(self, 'key_indicators', ()):  # there if save_best is
            if name not in ('auto', *metrics):
                raise UserError(
                    f'default_hooks.checkpoint.save_best={name!r} is none of the metrics {", ".join(metrics)}. Choose '
                    'one of these, and pass --resume: what was trained so far is saved.'
                )
        super().save_best_of(runner, metrics)
        self._catch_up()

    def save_step(self, runner: Runner, step: int, meta: dict) -> None:
        self._outdate_last_words(runner, '')
        self._saved = meta['epoch'], meta['iter'], self.filename_tmpl.format(step)
        super().save_step(runner, step, meta)
        self._catch_up()

    def save_here(self, runner: Runner) -> Path:
        """Save between two iterations, in the place of what an earlier call has saved; return what to resume from.

        Where the last checkpoint is of this iteration, it is enough.
        """
        if self._saved[:2] != (runner.epoch, runner.iter):
            name = f'iter_{runner.iter}.pth'
            self._outdate_last_words(runner, name)
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_param_scheduler=runner.param_schedulers is not None,
                meta={'epoch': runner.epoch, 'iter': runner.iter},
                by_epoch=False,
                backend_args=self.backend_args,
            )
            self._saved = runner.epoch, runner.iter, name
            self._note(runner, Path(self.out_dir, name))
            self._catch_up()
        return Path(self.out_dir, self._saved[2])

    def _outdate_last_words(self, runner: Runner, name: str) -> None:
        """Have :meth:`_catch_up` remove what :meth:`save_here` has saved before; ``name`` is its next file."""
        before = runner.message_hub.runtime_info.get('last_words')
        if before and isinstance(self.file_backend, PatientBackend):
            self.file_backend.remove(before)
        runner.message_hub.update_info('last_words', name)

    def _note(self, runner: Runner, path: Path) -> None:
        if is_main_process():
            WholeFileBackend().put_text(str(path), Path(runner.work_dir, 'last_checkpoint'))

    def _catch_up(self) -> None:
        if isinstance(self.file_backend, PatientBackend):
            self.file_backend.catch_up()


def _done(runner: Runner) -> int:
    """Epochs or iterations so far, whichever the training loop counts."""
    return runner.epoch if isinstance(runner.train_loop, EpochBasedTrainLoop) else runner.iter


def _validation_is_due(runner: Runner) -> bool:
    """Whether the run that saved the checkpoint was killed before the validation that follows."""
    loop: Any = runner.train_loop
    done = _done(runner)
    end = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    update_val_interval(loop)
    asked = done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)
    return asked and runner.message_hub.runtime_info.get('validated') != done


def save_safely(cfg: Config) -> None:
    """Replace mmengine's CheckpointHook, which a config has by default, by :class:`CheckpointHook`."""
    hooks = cfg.setdefault('default_hooks', {})
    checkpoint = hooks.get('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
    if (checkpoint or {}).get('type') in ('CheckpointHook', 'mmengine.CheckpointHook'):
        hooks['checkpoint'] = dict(checkpoint, type='swinv2_mm.CheckpointHook')
