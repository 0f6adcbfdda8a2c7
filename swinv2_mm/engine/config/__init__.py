"""Read a config file, merge options into it, and report a mistake in either by file, line and key."""

import inspect
import os
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from swinv2_mm.engine.config.form import check_form
from swinv2_mm.engine.config.lazy import name_types
from swinv2_mm.engine.mmengine_internals import content_of, files_being_read
from swinv2_mm.errors import UserError, did_you_mean, say

# The keys that a runner or its strategies look up. Any other key of the top level is a variable of the file.
_RUNNER_KEYS = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | set(
    'activation_checkpointing bad_data compile efficient_conv_bn_eval find_unused_parameters model_wrapper_cfg '
    'runner_type strategy sync_bn tta_model tta_pipeline'.split()
)
_SUFFIXES = ('.py', '.json', '.yaml', '.yml')
_FRAMEWORKS = {'mmdet': 'MMDetection', 'mmseg': 'MMSegmentation', 'mmpretrain': 'MMPretrain'}


class MissingFramework(UserError):
    """The framework that a config builds on cannot be imported."""


def read_config(path: str | Path, options: dict[str, Any] | None = None, *needs: str) -> Config:
    """Load a config and check its form; ``needs`` are the splits (``'train'``, ``'test'``) that it has to describe."""
    cfg = load_config(path, options)
    check_form(cfg)
    for split in needs:
        if cfg.get(f'{split}_cfg') is None or cfg.get(f'{split}_dataloader') is None:
            kind = 'training' if split == 'train' else split
            raise UserError(f'{path} has no {split}_cfg or no {split}_dataloader: it does not describe a {kind}.')
    return cfg


def load_config(path: str | Path, options: dict[str, Any] | None = None) -> Config:
    """Read a config file, merge options (dotted keys) into it, name its types, and check that its framework is there.

    Raises:
        UserError: The file is missing or does not parse, or an option fits nowhere.
        MissingFramework: The framework cannot be imported.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'config {path} does not exist.{_close_files(path)}')
    if path.suffix not in _SUFFIXES:
        raise UserError(f'{path} is no config: it is named {path.suffix or "without a suffix"} rather than .py.')
    with files_being_read() as files:
        try:
            cfg = name_types(Config.fromfile(path), _RUNNER_KEYS)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a config is a program: whatever it raises is the config's mistake
            cause = error.__context__ if isinstance(error.__context__, ImportError) else error  # of a lazy import
            named = (cause.name or str(cause)) if isinstance(cause, ImportError) else ''
            package = next((name for name in _FRAMEWORKS if named.startswith(name)), None)
            if package:
                raise MissingFramework(_install(package, path, error)) from error
            raise UserError(_unreadable(path, files, error)) from error
    if options:
        apply_options(cfg, options, path)
        cfg = name_types(cfg, _RUNNER_KEYS)
    check_framework(cfg, path)
    return cfg


def check_framework(cfg: Config, path: str | Path) -> None:
    """Check that the framework that a config builds from can be imported."""
    scope = cfg.get('default_scope') or 'mmengine'
    try:
        import_module(scope)
    except (ImportError, AssertionError) as error:  # mmdet and mmseg assert the version of mmcv
        raise MissingFramework(_install(scope, path, error)) from error


def apply_options(cfg: Config, options: dict[str, Any], path: str | Path) -> None:
    """Merge ``--cfg-options`` into a config; refuse or warn of an option that changes nothing.

    A new key is passed on with a warning, since configs do not spell out every argument. A key inside a part that does
    not exist is a UserError, unless it is a setting of the runner, or the options give that part a type, too.
    """
    for key in options:
        _check_option(cfg, key, options, path)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f'--cfg-options does not fit {path}: {error.args[0] if error.args else error}') from error


def add_hook(cfg: Config, kind: str, **arguments: Any) -> None:
    """Add a hook to a config that does not have it; a config that a run has saved does."""
    hooks = cfg.get('custom_hooks') or []
    if not any(hook.get('type') == kind for hook in hooks):
        cfg.custom_hooks = [*hooks, {'type': kind, **arguments}]


def _check_option(cfg: Config, key: str, options: dict[str, Any], path: str | Path) -> None:
    *parents, leaf = key.split('.')
    node: Any = content_of(cfg)
    for depth, name in enumerate(parents):
        holder, node = node, _children(node).get(name)
        prefix = '.'.join(parents[: depth + 1])
        if node is None and isinstance(holder, dict):
            holder.pop(name, None)  # a None in the config refuses to be merged with a dict
            if f'{prefix}.type' in options:
                return
            if depth == 0 and name in _RUNNER_KEYS:
                node = {}
        if not isinstance(node, dict | list):
            what = f'it has no {prefix}' if node is None else f'{prefix} is {node!r}, which has no parts'
            remedy = _close(name, holder, parents[:depth]) or f' To create {prefix}, pass {prefix}.type=… along.'
            raise UserError(f'--cfg-options {key}: {path} has no place for it: {what}.{remedy}')
    if isinstance(node, list):
        if leaf not in _children(node):
            raise UserError(f'--cfg-options {key}: {".".join(parents)} is a list of {len(node)}, counted from 0.')
    elif not parents and leaf not in _RUNNER_KEYS and leaf in node:
        where = f', such as train_dataloader.dataset.{leaf}' if leaf in ('data_root', 'metainfo', 'data_prefix') else ''
        say(
            f'warning: --cfg-options {key}: a variable of the config file. What was built from it keeps its value: '
            f'change the keys that use it{where}.'
        )
    elif leaf not in node and (parents or leaf not in _RUNNER_KEYS):
        say(
            f'warning: --cfg-options {key}: not set in {path} so far; it is passed on as a new key.'
            f'{_close(leaf, node, parents)}'
        )


def _children(node: Any) -> dict:
    return node if isinstance(node, dict) else {str(index): item for index, item in enumerate(node)}


def _close(name: str, node: Any, parents: Sequence[str]) -> str:
    return did_you_mean('.'.join([*parents, match]) for match in get_close_matches(name, [*_children(node)], n=3))


def _close_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f' Neither does the folder {path.parent}; the current folder is {Path.cwd()}.'
    files = {file.name: file for file in path.parent.iterdir() if file.suffix in _SUFFIXES}
    names = get_close_matches(path.name, files, n=3, cutoff=0.5)
    return did_you_mean(str(files[name]) for name in names)


def _install(package: str, path: str | Path, error: BaseException) -> str:
    reason = ' '.join(str(error).split()) or type(error).__name__
    remedy = 'Install it as the README says'
    if package == 'mmpretrain':
        remedy = 'Install it and the torchvision of your torch: pip install mmpretrain torchvision'
    return (
        f'{path} builds on {_FRAMEWORKS.get(package, package)}, and {package} cannot be imported: {reason}. {remedy}; '
        'python -m swinv2_mm.doctor tells what this environment lacks.'
    )


def _unreadable(path: Path, files: list[str], error: BaseException) -> str:
    """Say which file of the inheritance chain cannot be read, in which line, and why."""
    file, reason = (files or [os.path.abspath(path)])[-1], f'{type(error).__name__}: {error}'
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if os.path.abspath(frame.filename) == file), None)
    syntax = error.__context__ if isinstance(error.__context__, SyntaxError) else error
    if isinstance(syntax, SyntaxError):  # mmengine names its temporary copy in the text
        line, reason = syntax.lineno, syntax.msg
    if not Path(file).is_file():
        reason = 'it does not exist'
    elif Path(file).samefile(path):
        file = str(path)
    inherited = '' if file == str(path) else f' (inherited by {path})'
    return f'config {file}{f", line {line}" if line else ""}{inherited} cannot be read: {" ".join(reason.split())}'
