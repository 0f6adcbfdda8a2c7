"""The config that a checkpoint holds: text, which is read as data and not run."""

import ast
import re
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from swinv2_mm.engine.config.parts import nested
from swinv2_mm.errors import UserError

# Packages whose registered classes a checkpoint may name: building them runs their code, and no other.
_SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'swinv2_mm')


def config_of_text(text: str, source: str) -> Config:
    """Read the text of a config that was saved with a run, without running it.

    mmengine's ``Config.fromstring`` is Python's ``exec``, its registries import and call whatever path stands behind a
    ``type``, and ``custom_imports`` imports any module. Here only numbers, text, lists and dicts are read, and only
    registered names of known packages can be built.

    Args:
        text: As of ``Config.pretty_text``.
        source: The checkpoint, for messages.

    Raises:
        UserError: It is no such text, or it names code of somebody else.
    """
    remedy = 'If you trust it, pass the config of its run in front of the checkpoint.'
    try:
        content = {node.targets[0].id: _value(node.value) for node in ast.parse(text).body}  # type: ignore
    except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError) as error:
        reason = ' '.join(str(error).split())[:100]
        raise UserError(f'the config in {source} is no plain text of settings ({reason}). {remedy}') from error
    modules = (content.pop('custom_imports', None) or {}).get('imports') or []
    modules = [modules] if isinstance(modules, str) else modules
    foreign = [name for name in modules if str(name).split('.')[0] not in _SCOPES]
    foreign += [f'{key}={name}' for key, name in _names(content) if not _is_registered(name)]
    foreign += [
        f'{key}={scope}' for key, scope in nested(content, '') if key.endswith('._scope_') and scope not in _SCOPES
    ]
    if foreign:
        raise UserError(
            f'the config in {source} is refused, since building it could run code: it names {foreign[0].lstrip(".")}. '
            f'{remedy}'
        )
    import_modules_from_strings(modules, allow_failed_imports=True)
    return Config(content)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=keywords):
            return {keyword.arg: _value(keyword.value) for keyword in keywords}
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as content], keywords=[]):
            return _value(content)
        case ast.Dict(keys=keys, values=values):
            return {ast.literal_eval(key): _value(value) for key, value in zip(keys, values, strict=True)}  # type: ignore
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Name(id='inf' | 'nan' as number):
            return float(number)
    return ast.literal_eval(node)


def _names(content: dict) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in nested(content, '') if key.endswith('.type') and isinstance(value, str)]


def _is_registered(name: str) -> bool:
    """Whether a registry can only look a name up: mmengine's fallback imports a module, and may call a function."""
    scope, dot, rest = name.rpartition('.')
    if dot:
        return scope in _SCOPES and re.fullmatch(r'[A-Z]\w*', rest) is not None
    return bool(re.fullmatch(r'\w+', name)) and (name[:1].isupper() or find_spec(name) is None)
