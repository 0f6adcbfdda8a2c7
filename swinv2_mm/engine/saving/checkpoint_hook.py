"""Crash-safe saving: a file appears complete or not at all; the old one is deleted after the new one is on disk."""

import os
import pickle
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC, EROFS
from pathlib import Path
from shutil import disk_usage

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from swinv2_mm.checkpoints.files import PARTIAL, replacing
from swinv2_mm.engine.config.distributed import this_run
from swinv2_mm.engine.mmengine_internals import OpenCheckpointHook, is_training, loaded_from, update_val_interval
from swinv2_mm.engine.saving.plain_data import make_plain, restore_log, to_plain
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
    """Postpones the removal of outdated files until :meth:`catch_up` is called."""

    def __init__(self) -> None:
        self.outdated: list[str] = []

    def remove(self, filepath: str | Path) -> None:
        self.outdated.append(filepath)

    def catch_up(self) -> None:
        while self.outdated:
            Path(self.outdated.pop()).unlink(missing_ok=True)


@contextmanager
def told(path: str | os.PathLike, size: int | None = None) -> Iterator[None]:
    """Report a full or read-only disk, or a spent quota.

    Args:
        path: The file or folder that is written in this context.
        size: Its bytes, if known.

    Raises:
        UserError: In place of the OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT, EROFS):
            raise
        if size is None and error.filename:
            path = error.filename
        folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
        # The space that a quota leaves is unknown.
        free = f', and {_bytes(disk_usage(folder).free)} are free there' if error.errno == ENOSPC else ''
        room = '' if size is None else f' It takes {_bytes(size)}{free}.'
        raise UserError(
            f'could not write {path}: {os.strerror(error.errno)}.{room} What was saved before is whole. '
            f'{"Make the folder writable" if error.errno == EROFS else "Free space"}, then start again; --resume goes '
            'on with a training from its last checkpoint.'
        ) from error


def _bytes(number: int) -> str:
    return f'{number / 1e9:.2f} GB' if number >= 1e9 else f'{number / 1e6:.2f} MB'


@HOOKS.register_module()
class CheckpointHook(OpenCheckpointHook):
    """mmengine's hook, for runs that may be killed at any moment.

    A checkpoint is removed only when its successor is complete. Resuming completes what a killed run left undone: it
    removes partial files and outdated checkpoints, notes the checkpoint as the last one, and runs the validation that
    was due. Checkpoints record, in ``message_hub``, the run that saved them and the last validation. They are plain
    data, see :func:`~swinv2_mm.engine.saving.plain_data.make_plain`.
    """

    def before_run(self, runner: Runner) -> None:
        super().before_run(runner)
        if not any(isinstance(hook, PlainDataHook) for hook in runner.hooks):
            runner.register_hook(PlainDataHook(), 'LOWEST')  # now, so that it follows all others

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        super().after_load_checkpoint(runner, checkpoint)
        restore_log(checkpoint)
        meta = checkpoint.get('meta') or {}
        if is_training(runner) and 'dataset_meta' in meta:
            # mmengine compares the two as pickles, where an array differs from a list.
            now = getattr(runner.train_dataloader.dataset, 'metainfo', None)
            if pickle.dumps(to_plain(now)) == pickle.dumps(meta['dataset_meta']):
                meta['dataset_meta'] = now

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is WholeFileBackend:
            self.file_backend = PatientBackend()
            self._stay_in_folder()
            if is_main_process():
                for partial in [*Path(self.out_dir).glob(PARTIAL), *Path(runner.work_dir).glob(PARTIAL)]:
                    partial.unlink(missing_ok=True)
        hub = runner.message_hub
        hub.update_info('run', this_run() or '')
        if _done(runner) > 0:
            self.last_ckpt = hub.runtime_info.get('last_ckpt')
            resumed = Path(loaded_from(runner))
            if is_main_process() and resumed.parent.resolve() == Path(self.out_dir).resolve():
                self._note(runner, str(Path(self.out_dir, resumed.name)))
            if _validation_is_due(runner):
                runner.logger.info('The validation after the checkpoint was interrupted, and is run now.')
                runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        runner.message_hub.update_info('validated', _done(runner))
        super().after_val_epoch(runner, metrics)

    def save_best_of(self, runner: Runner, metrics: dict) -> None:
        for name in getattr(self, 'key_indicators', ()):  # there if save_best is
            if name not in ('auto', *metrics):
                raise UserError(
                    f'default_hooks.checkpoint.save_best={name!r} is none of the metrics '
                    f'{", ".join(metrics)}. What was trained so far is saved: choose one of these, and '
                    'pass --resume.'
                )
        super().save_best_of(runner, metrics)
        self._remove_outdated()

    def save_step(self, runner: Runner, step: int, meta: dict) -> None:
        """As mmengine's, but it saves first and removes then."""
        self._remove_outdated()  # the former best, before it is forgotten
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        outdated = []
        if self.max_keep_ckpts > 0:
            kept = [*(other for other in self.keep_ckpt_ids if other != step), step]
            # Including the outdated one: if this run is killed before it removes it, the resumed run does.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
            outdated = kept[: -self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            self._note(runner, self.last_ckpt)
            for other in outdated:
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(other)))
        self._remove_outdated()

    def _note(self, runner: Runner, checkpoint: str) -> None:
        WholeFileBackend().put_text(checkpoint, Path(runner.work_dir, 'last_checkpoint'))

    def _remove_outdated(self) -> None:
        if isinstance(self.file_backend, PatientBackend):
            self.file_backend.catch_up()

    def _stay_in_folder(self) -> None:
        """Look for the best checkpoint in this folder: a run resumed in another folder must not remove the original."""
        if not self.save_best:
            return
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = self._here(self.best_ckpt_path)
        else:
            self.best_ckpt_path_dict = {key: self._here(path) for key, path in self.best_ckpt_path_dict.items()}

    def _here(self, path: str | None) -> str | None:
        return path and str(Path(self.out_dir, Path(path).name))


class PlainDataHook(Hook):
    """Makes checkpoints plain after all other hooks have edited them, and warns of values that are no data."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        left_out = make_plain(checkpoint)
        if left_out:
            runner.logger.warning(  # mmengine's logger shows it once
                'Left out of checkpoints, because these are no numbers, strings, tensors, or lists or dicts of them: '
                + ', '.join(f'{place} ({kind})' for place, kind in left_out.items())
            )


def _done(runner: Runner) -> int:
    """Epochs or iterations so far, whichever the training loop counts."""
    loop = runner.train_loop
    return loop.epoch if isinstance(loop, EpochBasedTrainLoop) else loop.iter


def _validation_is_due(runner: Runner) -> bool:
    """Whether the run that saved the checkpoint was killed before the validation that follows."""
    loop, done = runner.train_loop, _done(runner)
    if runner.val_loop is None or runner.message_hub.runtime_info.get('validated') == done:
        return False
    end = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    update_val_interval(loop)
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)


def save_safely(cfg: Config) -> None:
    """Replace mmengine's CheckpointHook, which a config has by default, by :class:`CheckpointHook`."""
    hooks = cfg.setdefault('default_hooks', {})
    checkpoint = hooks.get('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
    kind = (checkpoint or {}).get('type')
    if kind in ('CheckpointHook', 'mmengine.CheckpointHook', MMEngineCheckpointHook):
        hooks['checkpoint'] = dict(checkpoint, type='swinv2_mm.CheckpointHook')
