"""Registries of scope ``swinv2_mm``, children of mmengine's root registries.

mmengine imports ``<scope>.registry`` by itself when it meets an unknown scope, and each registry imports its
``locations`` on first use. That is why ``type='swinv2_mm.SwinTransformerV2'`` builds from MMDetection, MMSegmentation
and plain mmengine without ``custom_imports``, and why this module must import neither mmdet nor mmseg.
"""

from mmengine import registry as root

MODELS = root.Registry('model', parent=root.MODELS, scope='swinv2_mm', locations=['swinv2_mm.models'])
HOOKS = root.Registry('hook', parent=root.HOOKS, scope='swinv2_mm', locations=['swinv2_mm.engine'])
FUNCTIONS = root.Registry('function', parent=root.FUNCTIONS, scope='swinv2_mm', locations=['swinv2_mm.engine'])
OPTIM_WRAPPERS = root.Registry(
    'optim_wrapper', parent=root.OPTIM_WRAPPERS, scope='swinv2_mm', locations=['swinv2_mm.engine'])
