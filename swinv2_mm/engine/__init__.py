"""What training needs around the model: start-up, checks, hooks. Importing it registers what configs name."""

from swinv2_mm.engine.amp import AmpOptimWrapper, Float32BoxesHook
from swinv2_mm.engine.bad_data import CheckedLoading
from swinv2_mm.engine.checkpoint_match import CheckpointMatchHook
from swinv2_mm.engine.compilation import CompileBackboneHook
from swinv2_mm.engine.deepspeed import DeepSpeedRunner, DeepSpeedStrategy
from swinv2_mm.engine.fsdp2 import FSDP2Runner
from swinv2_mm.engine.initializer import Pretrained
from swinv2_mm.engine.layer_decay import LayerDecayOptimWrapperConstructor
from swinv2_mm.engine.non_finite import NonFiniteHook
from swinv2_mm.engine.pictures import PicturesHook
from swinv2_mm.engine.progress import ProgressHook
from swinv2_mm.engine.report import ReportHook
from swinv2_mm.engine.saving import CheckpointHook
from swinv2_mm.engine.seeding import EpochSeedHook, seed_worker
from swinv2_mm.engine.window_size import WindowSizeHook
from swinv2_mm.engine.zero1 import Zero1Runner
from swinv2_mm.errors import UserError

__all__ = [
    'AmpOptimWrapper',
    'CheckedLoading',
    'CheckpointHook',
    'CheckpointMatchHook',
    'CompileBackboneHook',
    'DeepSpeedRunner',
    'DeepSpeedStrategy',
    'EpochSeedHook',
    'FSDP2Runner',
    'Float32BoxesHook',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteHook',
    'PicturesHook',
    'Pretrained',
    'ProgressHook',
    'ReportHook',
    'UserError',
    'WindowSizeHook',
    'Zero1Runner',
    'seed_worker',
]
