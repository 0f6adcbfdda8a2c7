"""Look up the classes and arguments that a config names, and report a wrong one by its config key."""

import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

from mmengine.registry import Registry

from swinv2_mm.engine.config.parts import nested
from swinv2_mm.engine.mmengine_internals import watched_builds
from swinv2_mm.errors import UserError, did_you_mean
from swinv2_mm.models.swin_v2 import SwinTransformerV2

SEE_MORE = 'The traceback is shown with SWINV2_MM_TRACEBACK=1 in the environment.'
_FRAMEWORKS = {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torch'}

# Classes of the frameworks that need a package which they do not require: the module, and pip's name for it if another.
_LVIS = 'lvis', 'git+https://github.com/lvis-dataset/lvis-api.git'
_PACKAGES = {
    'AimVisBackend': ('aim', ''),
    'ClearMLVisBackend': ('clearml', ''),
    'DVCLiveVisBackend': ('dvclive', ''),
    'MLflowVisBackend': ('mlflow', ''),
    'NeptuneVisBackend': ('neptune', ''),
    'TensorboardVisBackend': ('tensorboard', ''),
    'WandbVisBackend': ('wandb', ''),
    'COCOCaptionMetric': ('pycocoevalcap', ''),
    'CityScapesMetric': ('cityscapesscripts', ''),
    'CityscapesMetric': ('cityscapesscripts', ''),
    'CocoPanopticMetric': ('panopticapi', 'git+https://github.com/cocodataset/panopticapi.git'),
    'DumpODVGResults': ('jsonlines', ''),
    'LVISFixedAPMetric': _LVIS,
    'LVISMetric': _LVIS,
    'MOTChallengeMetric': ('trackeval', 'git+https://github.com/JonathonLuiten/TrackEval.git'),
    'DAdaptAdaGrad': ('dadaptation', ''),
    'DAdaptAdam': ('dadaptation', ''),
    'DAdaptSGD': ('dadaptation', ''),
    'Lion': ('lion_pytorch', 'lion-pytorch'),
}


@contextmanager
def with_key(part: Any, key: str) -> Iterator[None]:
    """Report what goes wrong while a part of a config is built by the key of the nested part that causes it.

    The config is wrong if it names an unknown type or argument, if a class of a framework raises anything, or if one of
    ours raises a ``ValueError``. Any other exception is a bug of ours or of the user's own class: it is passed on, with
    the key as a note.
    """
    culprit, where, mistake = None, key, None

    def look_up(error: Exception, registry: Registry, chain: list, given: dict) -> None:
        nonlocal culprit, where, mistake
        if error is not culprit:  # else it has passed through an inner part
            culprit, where, inner = error, key, part
            for cfg in chain:
                where, inner = _locate(cfg, where, inner)
            mistake = _mistake(error, registry, chain[-1], given, where)

    try:
        with watched_builds(look_up):
            yield
    except UserError:
        raise
    except Exception as error:
        if mistake and error is culprit:
            raise UserError(mistake) from error
        add_note = getattr(error, 'add_note', None)  # since Python 3.11
        if add_note:
            add_note(f'while building {where}')
        raise


def find_type(kind: str, key: str, registry: Registry, scope: str | None = None) -> Any:
    """The class of a name in a registry, from the current scope or another; ``key`` is where the config has it."""
    with registry.switch_scope_and_registry(scope) as local:
        with suppress(RuntimeError):  # mmengine's, for a dotted name that does not exist
            found = local.get(kind)
            if found is not None:
                return found
        raise UserError(_unknown(kind, key, local))


def find_class(part: Any, key: str, registry: Registry) -> Any:
    """The class that a part of a config names; it has to be a dict with a ``type`` that the registry knows."""
    if not isinstance(part, dict):
        raise UserError(f'{key}={part!r} must be a dict with a type.')
    kind = part.get('type')
    if not kind:
        shown = shorten(str(dict(part)), 200, placeholder='…')
        raise UserError(f'{key} has no type, so nothing can be built from it: {shown}')
    if callable(kind):
        return kind
    if not isinstance(kind, str):
        raise UserError(f'{key}.type={kind!r} is no type.')
    return find_type(kind, f'{key}.type', registry, part.get('_scope_'))


def check_arguments(part: Any, key: str, registry: Registry, *given: str) -> Any:
    """The class of a part of a config, if it takes its arguments and those ``given`` by the runner."""
    kind = find_class(part, key, registry)
    check_call(kind, part, key, *given)
    return kind


def check_package(kind: Any, key: str) -> None:
    """Check that the package is installed which a class of a framework imports when it is built."""
    name = getattr(kind, '__name__', '')
    if getattr(kind, '__module__', '').split('.')[0] in _FRAMEWORKS and name in _PACKAGES:
        package, remedy = _PACKAGES[name][0], _missing(name)
        if remedy:
            raise UserError(f'{key}: {name} needs {package}, which is not installed: {remedy}, or leave out {key}.')


def _missing(name: str) -> str:
    """How to install the package that a class needs; empty if it is there."""
    package, source = _PACKAGES.get(name, ('', ''))
    spec = find_spec(package) if package else None
    folders = (spec.submodule_search_locations or []) if spec else []
    # A folder ./wandb, which the package writes its output to, would be a package without a file.
    there = spec and (spec.origin or any(Path(folder).resolve().parent != Path.cwd() for folder in folders))
    return '' if there or not package else f'pip install {source or package}'


def check_call(function: Any, arguments: Iterable[str], key: str, *given: str) -> None:
    """Check that a function takes the arguments of a config and those ``given`` by the runner."""
    error = _misfit(function, [*arguments, *given])
    if error:
        raise UserError(_explain(error, function, key)) from error


def _unknown(kind: str, key: str, registry: Registry) -> str:
    names = [*registry.module_dict]
    while registry.parent is not None:
        registry = registry.parent
        names += registry.module_dict
    names += [f'{scope}.{name}' for scope, child in registry.children.items() for name in child.module_dict]
    bare = {name.split('.')[-1].lower(): name for name in reversed(names)}
    matches = [bare[name] for name in get_close_matches(kind.split('.')[-1].lower(), bare, n=2)]
    close = [*dict.fromkeys([*matches, *get_close_matches(kind, names, n=2)])][:3]
    own = ' A class of your own is registered by custom_imports=dict(imports=[its module]).'
    remedy = _missing(kind.split('.')[-1])
    hint = f' It needs another package: {remedy}.' if remedy else did_you_mean(close) or own
    return f'{key}={kind} is no registered {registry.name.replace("_", " ")}.{hint}'


def _misfit(kind: Any, names: list[str]) -> TypeError | None:
    """The exception for arguments that a signature does not have, or lacks."""
    try:
        inspect.signature(kind).bind(**{name: None for name in names if name not in ('type', '_scope_')})
    except TypeError as error:
        return error
    except ValueError:  # a class in C, without a signature
        pass
    return None


def _mistake(error: Exception, registry: Registry, cfg: Any, given: dict, key: str) -> str | None:
    """The mistake in the part that was being built, if the config is wrong."""
    try:
        kind = find_class(cfg, key, registry)
    except UserError as mistake:
        return str(mistake)
    except Exception:  # a module of the registry cannot be imported
        return None
    name = _unexpected(error)
    # A class with **kwargs passes an unknown argument on to its base.
    if isinstance(error, TypeError) and ' argument' in str(error) and (name in cfg or _misfit(kind, [*cfg, *given])):
        return _explain(error, kind, key)
    owner = getattr(kind, '__module__', '').split('.')[0]
    if owner == 'swinv2_mm' and isinstance(error, ValueError):
        return f'{key}: {_line(error)}'
    if owner in _FRAMEWORKS:
        reason = _line(error if isinstance(error, ValueError) else f'{type(error).__name__}: {error}')
        return f'{key}: {getattr(kind, "__name__", kind)} cannot be built: {reason.rstrip(".")}. {SEE_MORE}'
    return None


def _explain(error: TypeError, kind: Any, key: str) -> str:
    """Say which argument a class or function does not have, or lacks."""
    reason = re.sub(r'^[\w.<>]+\(\) ', '', _line(error))
    name = _unexpected(error)
    if name and kind is not SwinTransformerV2:  # which says what replaces those of other code bases
        bases = [base.__init__ for base in inspect.getmro(kind)] if inspect.isclass(kind) else [kind]
        known = {known for base in bases for known in inspect.signature(base).parameters}
        close = get_close_matches(name, sorted(known - {'self', 'args', 'kwargs', name}), n=2)
        return f'{key}.{name}: {getattr(kind, "__name__", kind)} has no such argument.{did_you_mean(close)}'
    return f'{key}: {reason}.' if name else f'{key}: {getattr(kind, "__name__", kind)} {reason}. {SEE_MORE}'


def _unexpected(error: Exception) -> str | None:
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return found and found[1]


def _locate(cfg: Any, key: str, part: Any) -> tuple[str, Any]:
    """The nested part that a dict, which may be an edited copy, comes from; the whole part if none is alike."""
    best, found = 0, (key, part)
    for inside, node in nested(part, key):
        if isinstance(cfg, dict) and isinstance(node, dict) and node.get('type') == cfg.get('type'):
            alike = sum(name in cfg and repr(cfg[name]) == repr(value) for name, value in node.items())
            if alike > best:
                best, found = alike, (inside, node)
        elif not isinstance(cfg, dict) and node is cfg:
            return inside, node
    return found


def _line(text: object) -> str:
    return ' '.join(str(text).split())
