"""Compilation of the backbone by ``torch.compile``, once for all image sizes."""

import os
import shutil

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.engine.config import add_hook
from swinv2_mm.errors import UserError
from swinv2_mm.models.swin_v2 import SwinTransformerV2
from swinv2_mm.registry import HOOKS


@HOOKS.register_module()
class CompileBackboneHook(Hook):
    """Compile only the backbone. It is one graph; heads, losses and boxes are Python code that breaks a graph.

    The compiled code is no part of the state: checkpoints, copies and averages of the model are as without it.

    Args:
        backend: That of :func:`torch.compile`.

    Raises:
        UserError: The model has no SwinV2 backbone.
    """

    def __init__(self, backend: str = 'inductor') -> None:
        self.backend = backend

    def before_run(self, runner: Runner) -> None:
        backbones = [module for module in runner.model.modules() if isinstance(module, SwinTransformerV2)]
        if not backbones:
            raise UserError('--compile: the model has no swinv2_mm.SwinTransformerV2.')
        for backbone in backbones:
            backbone.compile(backend=self.backend, dynamic=True)


def compile_backbone(cfg: Config) -> None:
    """Make a run compile its backbone.

    Args:
        cfg: Edited in place.

    Raises:
        UserError: Something else compiles or wraps the blocks, or there is no compiler.
    """
    if cfg.get('compile'):
        raise UserError(
            '--compile compiles the backbone, and this config has compile=..., with which mmengine would '
            'compile the training step around it; leave one of them out.'
        )
    if cfg.get('runner_type') == 'swinv2_mm.FSDP2Runner':
        raise UserError(
            f'--compile: {cfg.runner_type} gathers the parameters of one block at a time, which a graph of '
            'the whole backbone leaves no place for; leave one of them out.'
        )
    compiler = os.environ.get('CXX') or 'g++'
    if get_device() == 'cpu' and shutil.which(compiler) is None:
        raise UserError(
            f'--compile: torch.compile needs a C++ compiler, and {compiler} is not installed. Install g++, '
            'or name another by the environment variable CXX.'
        )
    add_hook(cfg, 'swinv2_mm.CompileBackboneHook')
