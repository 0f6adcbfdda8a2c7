"""SwinV2 backbone for MMDetection and MMSegmentation.

Importing the package does no work: the backbone is loaded on first use, so that ``python -m swinv2_mm.doctor`` can
report on a machine where torch or mmengine is missing or broken.
"""

from importlib import import_module

__version__ = '0.2.0'

__all__ = ['SimMIM', 'SwinTransformerV2', '__version__']


def __getattr__(name: str):
    if name not in ('SimMIM', 'SwinTransformerV2'):
        raise AttributeError(f"module 'swinv2_mm' has no attribute {name!r}")
    return getattr(import_module('swinv2_mm.models'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
