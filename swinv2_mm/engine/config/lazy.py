"""Replace classes and import paths in a config by the names that registries know."""

import inspect
from collections.abc import Container
from pathlib import PurePath
from types import ModuleType
from typing import Any

import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import MODELS, OPTIMIZERS, Registry
from mmengine.utils import get_object_from_string

from swinv2_mm.engine.mmengine_internals import content_of, names_imported_by
from swinv2_mm.errors import UserError

_ROOTS = [root for root in vars(registry).values() if isinstance(root, Registry)]
_TYPE_KEYS = ('type', 'constructor', 'runner_type')


def name_types(cfg: Config, settings: Container[str] = ()) -> Config:
    """Spell every type of a config by its name in mmengine's registries.

    A pure-Python ("lazy") config imports what it builds, and a text config may give an import path. Checks compare
    names, and a saved config is text: ``type=MaskRCNN`` and ``type='mmdet.models.MaskRCNN'`` become ``'MaskRCNN'`` in
    the scope of MMDetection, a class that no framework registers its import path, and a ``default_scope`` of None that
    of the model's class. Classes, functions and modules at the top level are left out, unless their key is one of
    the ``settings``: the file imported or defined them.

    Raises:
        UserError: A function, a class or a module has no name, and so cannot be saved with the run.
    """
    content = {
        key: value
        for key, value in dict.items(content_of(cfg))
        if key in settings or not (key in names_imported_by(cfg) or _is_code(value))
    }
    scope = content.get('default_scope')
    if scope is None:
        model = content.get('model')
        kind = _found('type', dict.get(model, 'type')) if isinstance(model, dict) else None
        if _is_code(kind):
            scope = content['default_scope'] = _scope_of(kind)
    content = {key: _named(key, key, value, scope or 'mmengine') for key, value in content.items()}
    return Config(content, cfg_text=cfg.text, filename=cfg.filename, env_variables=cfg.env_variables)


def _named(place: str, key: str, value: Any, scope: str) -> Any:
    if isinstance(value, dict):  # dict.items() leaves lazy objects as they are
        return {name: _named(f'{place}.{name}', name, item, scope) for name, item in dict.items(value)}
    if type(value) in (list, tuple):
        return type(value)(_named(f'{place}.{index}', key, item, scope) for index, item in enumerate(value))
    found = _found(key, value)
    if isinstance(found, torch.dtype):
        return str(found).removeprefix('torch.')
    if isinstance(found, PurePath):
        return str(found)
    if not _is_code(found):
        return found if found is value or isinstance(found, str) else _named(place, key, found, scope)
    name = None if isinstance(found, ModuleType) else _registered(found, scope) or _path(found, value)
    if name is None:
        raise UserError(
            f'{place}={found!r} cannot be saved with the run: it has no name to import it by. Put it into '
            'a module, and import it from there.'
        )
    return {'type': name} if key == 'collate_fn' else name  # mmengine takes it without a dict if it is no text


def _found(key: str, value: Any) -> Any:
    """What a lazy object or the import path of a type stands for; any other value itself."""
    if isinstance(value, LazyObject | LazyAttr):
        return value.build()
    if key not in _TYPE_KEYS or not isinstance(value, str) or '.' not in value:
        return value
    try:
        found = get_object_from_string(value)
    except Exception:  # the module's own; building the type will tell
        return value
    return found if callable(found) else value


def _is_code(value: Any) -> bool:
    return isinstance(value, ModuleType) or callable(value)  # as lazy objects are


def _scope_of(model: Any) -> str:
    """The scope in which a model, or what it is derived from, is registered."""
    bases = inspect.getmro(model) if isinstance(model, type) else (model,)
    found = (scope for base in bases for scope, child in MODELS.children.items() if base in child.module_dict.values())
    return next(found, 'mmengine')


def _registered(found: Any, scope: str) -> str | None:
    """The name of a class or function, seen from a scope; None if it takes an import to be registered."""
    package, framework = _module(found).partition('.')[0], scope != 'mmengine'
    for root in _ROOTS:
        # mmengine registers torch's optimizers; mmcv its own classes and torch's layers, and the frameworks import it.
        known = ['mmengine', *(['torch'] if root is OPTIMIZERS else []), *(['mmcv', 'torch'] if framework else [])]
        for owner in (root, *root.children.values()):
            if package not in (known if owner is root else [owner.scope]):
                continue
            name = next((name for name, module in owner.module_dict.items() if module is found), None)
            if name is None:
                continue
            local = root.children.get(scope, root)
            local.import_from_location()  # a class of the same name may be there
            while name not in local.module_dict and local.parent is not None:
                local = local.parent
            return name if local.module_dict.get(name) is found else f'{owner.scope}.{name}'
    return None


def _path(found: Any, spelt: Any) -> str | None:
    """The import path of a class or function, if it has one: as the config spells it, if it does."""
    name, module = getattr(found, '__qualname__', ''), _module(found)
    if module.startswith('mmcv.ops'):
        from mmcv import ops

        if getattr(ops, name, None) is found:
            return name  # RoI extractors and mmcv's own NMS know no path
    lazy = isinstance(spelt, LazyObject | LazyAttr)
    paths = [f'{spelt.module}.{spelt}' if lazy else spelt, f'{module}.{name}']
    return next((path for path in paths if isinstance(path, str) and get_object_from_string(path) is found), None)


def _module(found: Any) -> str:
    return getattr(found, '__module__', None) or 'builtins'  # torch's functions in C name none
