"""Errors raised while a config is built, told by the key of the config that caused them."""

import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType
from typing import Any

from mmengine.registry import Registry, build_from_cfg

from swinv2_mm.errors import UserError
from swinv2_mm.models.swin_v2 import SwinTransformerV2

SEE_MORE = 'The traceback is shown with SWINV2_MM_TRACEBACK=1 in the environment.'
_FRAMEWORKS = {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torch'}


@contextmanager
def blamed(part: Any, key: str) -> Iterator[None]:
    """Tell an error by the key of the config whose value caused it; what no value of a config explains is passed on.

    A value is to blame for a type that is not registered, for an argument that its class does not take, for anything
    that a class of the frameworks or of PyTorch raises when it is built, and for a ``ValueError`` of a class of ours.
    Whatever else our classes raise is a bug of ours, and what a user's own class raises is for its author: both keep
    their traceback.

    Args:
        part: What is built, as the config has it.
        key: Where the config has it.

    Raises:
        UserError: The config is wrong; it is caused by the original error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = _explain(error, part, key)
        if text is None:
            raise
        raise UserError(text) from error


def find_class(part: Any, key: str, registry: Registry, name: str | None = None) -> Any:
    """The class that a part of a config names.

    Args:
        part: A dict with a ``type``.
        key: Where the config has it.
        registry: Where to look, from the current scope.
        name: What the config calls the type there, if it is not ``type``.

    Raises:
        UserError: There is no ``type``, or no such class.
    """
    if not isinstance(part, dict):
        raise UserError(f'{key}={part!r} must be a dict with a type.')
    kind = part.get('type')
    if not kind:
        raise UserError(_without_type(part, key))
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(part.get('_scope_')) as local:
        try:
            found = local.get(kind)
        except RuntimeError:  # that is how mmengine fails to find a dotted name
            found = None
        if found is None:
            raise UserError(_unknown(kind, name or f'{key}.type', local))
    return found


def check_arguments(part: Any, key: str, registry: Registry, *given: str) -> None:
    """Check that a part of a config can be built, as far as its class and the names of its arguments tell.

    Args:
        part: A dict with a ``type``.
        key: Where the config has it.
        registry: Where to look, from the current scope.
        *given: Arguments that the runner adds.

    Raises:
        UserError: The type is not registered, or does not take these arguments.
    """
    kind = find_class(part, key, registry)
    arguments = {name: None for name in [*part, *given] if name not in ('type', '_scope_')}
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise UserError(_misfit(error, kind, key)) from error
    except ValueError:  # a class of C, without a signature
        return


def _explain(error: Exception, part: Any, key: str) -> str | None:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    builds = [frame.f_locals for frame in frames if frame.f_code is build_from_cfg.__code__]
    if not builds:
        return None
    for build in builds:
        key, part = _locate(build['cfg'], key, part)
    build, kind = builds[-1], builds[-1].get('obj_cls')
    if kind is None:
        return _not_found(error, frames[-1], build, key)
    name = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if (
        isinstance(error, TypeError)
        and ' argument' in str(error)
        and (frames[-1].f_code is build_from_cfg.__code__ or (name and name[1] in build['cfg']))
    ):
        return _misfit(error, kind, key)
    owner = getattr(kind, '__module__', '').split('.')[0]
    if owner == 'swinv2_mm':
        return f'{key}: {_line(str(error))}' if isinstance(error, ValueError) else None
    if owner in _FRAMEWORKS:
        reason = str(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'
        return f'{key}: {_name(kind)} cannot be built: {_line(reason).rstrip(".")}. {SEE_MORE}'
    return None


def _not_found(error: Exception, frame: FrameType, build: dict, key: str) -> str | None:
    if frame.f_code not in (build_from_cfg.__code__, Registry.get.__code__):
        return None  # a module of the registry failed to import
    if 'obj_type' not in build:
        cfg = build['cfg']
        return _without_type(cfg, key) if isinstance(cfg, dict) else f'{key}={cfg!r} must be a dict with a type.'
    kind = build['obj_type']
    if not isinstance(kind, str):
        return f'{key}.type={kind!r} is no type.'
    return _unknown(kind, f'{key}.type', build['registry'])


def _without_type(part: dict, key: str) -> str:
    shown = _line(str(dict(part)))
    return f'{key} has no type, so nothing can be built from it: {shown[:200]}{"…" if len(shown) > 200 else ""}'


def _unknown(kind: str, key: str, registry: Registry) -> str:
    names, node = [], registry
    while node is not None:
        names += node.module_dict
        node = node.parent
    root = registry.root if hasattr(registry, 'root') else registry._get_root_registry()
    names += [f'{scope}.{name}' for scope, child in root.children.items() for name in child.module_dict]
    bare = {name.split('.')[-1].lower(): name for name in reversed(names)}
    matches = [
        *(bare[name] for name in get_close_matches(kind.split('.')[-1].lower(), bare, n=2)),
        *get_close_matches(kind, names, n=2),
    ]
    close = [*dict.fromkeys(matches)][:3]
    remedy = (
        f'Did you mean {" or ".join(close)}?'
        if close
        else ('A class of your own is registered by custom_imports=dict(imports=[its module]).')
    )
    return f'{key}={kind} is no registered {registry.name.replace("_", " ")}. {remedy}'


def _misfit(error: TypeError, kind: Any, key: str) -> str:
    reason = re.sub(r'^[\w.<>]+\(\) ', '', _line(str(error)))
    name = re.search(r"unexpected keyword argument '(\w+)'", reason)
    if name and kind is SwinTransformerV2:  # which says what replaces those of other code bases
        return f'{key}: {reason}.'
    if name:
        names = (
            [
                known
                for base in inspect.getmro(kind)
                for known in inspect.signature(base.__init__).parameters
                if known not in ('self', 'args', 'kwargs', name[1])
            ]
            if inspect.isclass(kind)
            else []
        )
        close = [*dict.fromkeys(get_close_matches(name[1], names, n=2))]
        remedy = f' Did you mean {" or ".join(close)}?' if close else ''
        return f'{key}.{name[1]}: {_name(kind)} has no such argument.{remedy}'
    return f'{key}: {_name(kind)} {reason}. {SEE_MORE}'


def _locate(cfg: Any, key: str, part: Any) -> tuple[str, Any]:
    """The part of a config that a dict, which may be an edited copy, comes from; the whole where none is alike."""
    best, found = 0, (key, part)
    for inside, node in _walk(part, key):
        if isinstance(cfg, dict) and isinstance(node, dict) and node.get('type') == cfg.get('type'):
            alike = sum(name in cfg and _same(cfg[name], value) for name, value in node.items())
            if alike > best:
                best, found = alike, (inside, node)
        elif not isinstance(cfg, dict) and node is cfg:
            return inside, node
    return found


def _walk(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    yield key, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in items:
        yield from _walk(value, f'{key}.{name}')


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # arrays compare by element
        return a is b


def _name(kind: Any) -> str:
    return getattr(kind, '__name__', str(kind))


def _line(text: str) -> str:
    return ' '.join(text.split())
