"""SwinV2 backbone for MMDetection and MMSegmentation.

Importing the package does no work: the public names below are loaded on first use, so that ``python -m
swinv2_mm.doctor`` can report on a machine where torch or mmengine is missing or broken.
"""

from importlib import import_module

__version__ = '0.2.0'

_EXPORTS = {'SwinTransformerV2': 'swinv2_mm.models.swin_v2'}

__all__ = ['SwinTransformerV2', '__version__']


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'swinv2_mm' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_EXPORTS))
