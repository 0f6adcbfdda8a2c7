"""Compilation of the backbone by ``torch.compile``, once for all image sizes."""

import os
import shutil

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.compat import COMPILES
from swinv2_mm.engine.config import add_hook
from swinv2_mm.errors import UserError
from swinv2_mm.models.swin_v2 import SwinTransformerV2
from swinv2_mm.registry import HOOKS


@HOOKS.register_module()
class CompileBackboneHook(Hook):
    """Compile only the backbone, with a backend of :func:`torch.compile`; heads, losses and boxes break a graph.

    The compiled code is no part of the state: checkpoints, copies and averages of the model are as without it.
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
    """Make a run compile its backbone, by a hook in its config; raise a UserError if it cannot."""
    if cfg.get('compile'):
        raise UserError('--compile: compile=... of this config compiles the whole step; leave one of them out.')
    if cfg.get('runner_type') == 'swinv2_mm.FSDP2Runner':
        raise UserError('--compile: FSDP2Runner gathers the parameters block by block; leave one of them out.')
    if not COMPILES:
        raise UserError(f'--compile needs torch 2.6 or newer, and this is {torch.__version__}; leave it out.')
    compiler = os.environ.get('CXX') or 'g++'
    if get_device() == 'cpu' and shutil.which(compiler) is None:
        raise UserError(f'--compile needs a C++ compiler, and {compiler} is not installed; install g++, or set CXX.')
    add_hook(cfg, 'swinv2_mm.CompileBackboneHook')
