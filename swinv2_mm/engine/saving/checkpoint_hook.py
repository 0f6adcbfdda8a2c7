"""What a run saves is whole or not there, and what it replaces is removed after that."""

import os
import pickle
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC, EROFS
from pathlib import Path
from shutil import disk_usage, rmtree

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from swinv2_mm.checkpoints.files import PARTIAL, replacing
from swinv2_mm.engine.config.distributed import this_run
from swinv2_mm.engine.saving.plain_data import make_plain, restore_log, to_plain
from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS


def protect_saving() -> None:
    """Make mmengine write the local files of this process, checkpoints first of all, whole or not at all."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')


class WholeFileBackend(LocalBackend):
    """mmengine's access to local files, which are replaced when the new one is whole."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with told(filepath, len(obj)), replacing(filepath) as partial:
            partial.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


class PatientBackend(WholeFileBackend):
    """Removes files and folders when it is told that what replaces them is there."""

    def __init__(self) -> None:
        self.outdated: list[str] = []

    def remove(self, filepath: str | Path) -> None:
        self.outdated.append(filepath)

    rmtree = remove

    def catch_up(self) -> None:
        while self.outdated:
            remove(Path(self.outdated.pop()))


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def told(path: str | os.PathLike, size: int | None = None) -> Iterator[None]:
    """Tell the user of a disk that takes no more.

    Args:
        path: What is written in this context.
        size: Its bytes.

    Raises:
        UserError: In the place of the OSError for a full or read-only disk, or a spent quota.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT, EROFS):
            raise
        if size is None and error.filename:
            path = error.filename
        folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
        # What a quota leaves is not known.
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
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's, for runs that may end at any moment.

    A checkpoint is removed when the one that replaces it is whole. What a killed run did not come to is made up for
    when it is resumed: partial files and outdated checkpoints are removed, the checkpoint is noted as the last one, and
    the validation that was due is run.
    Checkpoints note, in ``message_hub``, the run that saved them and what was validated last. They are plain data, see
    :func:`~swinv2_mm.engine.saving.plain_data.make_plain`.
    """

    def before_run(self, runner: Runner) -> None:
        super().before_run(runner)
        if not any(isinstance(hook, PlainDataHook) for hook in runner.hooks):
            runner.register_hook(PlainDataHook(), 'LOWEST')  # now, so that it follows all others

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        super().after_load_checkpoint(runner, checkpoint)
        restore_log(checkpoint)
        meta = checkpoint.get('meta') or {}
        if isinstance(runner._train_loop, BaseLoop) and 'dataset_meta' in meta:
            # mmengine compares the two as pickles, in which arrays are no lists.
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
                    remove(partial)
        hub = runner.message_hub
        hub.update_info('run', this_run() or '')
        if _done(runner) > 0:
            self.last_ckpt = hub.runtime_info.get('last_ckpt')
            resumed = Path(runner._load_from)
            if is_main_process() and resumed.parent.resolve() == Path(self.out_dir).resolve():
                self._note(runner, str(Path(self.out_dir, resumed.name)))
            if _validation_is_due(runner):
                runner.logger.info('The validation after the checkpoint was interrupted, and is run now.')
                runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        runner.message_hub.update_info('validated', _done(runner))
        super().after_val_epoch(runner, metrics)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        for name in getattr(self, 'key_indicators', ()):  # there if save_best is
            if name not in ('auto', *metrics):
                raise UserError(
                    f'default_hooks.checkpoint.save_best={name!r} is none of the metrics '
                    f'{", ".join(metrics)}. What was trained so far is saved: choose one of these, and '
                    'pass --resume.'
                )
        super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """As mmengine's, in another order."""
        self._remove_outdated()  # the former best, before it is forgotten
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        outdated = []
        if self.max_keep_ckpts > 0:
            kept = [*(other for other in self.keep_ckpt_ids if other != step), step]
            # With the one too many: if this run does not come to remove it, the resumed one does.
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
        """The best checkpoint so far is the one here: a run that goes on elsewhere must not remove another's."""
        if not self.save_best:
            return
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = self._here(self.best_ckpt_path)
        else:
            self.best_ckpt_path_dict = {key: self._here(path) for key, path in self.best_ckpt_path_dict.items()}

    def _here(self, path: str | None) -> str | None:
        return path and str(Path(self.out_dir, Path(path).name))


class PlainDataHook(Hook):
    """Makes checkpoints plain when the other hooks have added to them, and warns of what is no data."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        left_out = make_plain(checkpoint)
        if left_out:
            runner.logger.warning(  # which mmengine's logger shows once
                'Left out of checkpoints, because these are no numbers, strings, tensors, or lists or dicts of them: '
                + ', '.join(f'{place} ({kind})' for place, kind in left_out.items())
            )


def _done(runner: Runner) -> int:
    """Epochs or iterations so far, in what the training loop counts by."""
    loop = runner.train_loop
    return loop.epoch if isinstance(loop, EpochBasedTrainLoop) else loop.iter


def _validation_is_due(runner: Runner) -> bool:
    """Whether the run that saved the checkpoint would have validated it, and had not yet."""
    loop, done = runner.train_loop, _done(runner)
    if runner.val_loop is None or runner.message_hub.runtime_info.get('validated') == done:
        return False
    end = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    loop._decide_current_val_interval()
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)


def save_safely(cfg: Config) -> None:
    """Put :class:`CheckpointHook` in the place of mmengine's, which a config has by default."""
    hooks = cfg.setdefault('default_hooks', {})
    checkpoint = hooks.get('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
    kind = (checkpoint or {}).get('type')
    if kind in ('CheckpointHook', 'mmengine.CheckpointHook', MMEngineCheckpointHook):
        hooks['checkpoint'] = dict(checkpoint, type='swinv2_mm.CheckpointHook')
