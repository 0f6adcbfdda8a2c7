"""The engine turns a config into a run of mmengine; importing it registers the hooks and runners that configs name."""

from swinv2_mm.engine.diagnosis.corrupt_data import CheckedLoading
from swinv2_mm.engine.diagnosis.non_finite import NonFiniteHook
from swinv2_mm.engine.display.maps import MapNamesHook
from swinv2_mm.engine.display.mistakes.hook import MistakesHook
from swinv2_mm.engine.display.pictures import PicturesHook
from swinv2_mm.engine.display.progress import ProgressHook
from swinv2_mm.engine.display.reconstructions import ReconstructionHook
from swinv2_mm.engine.display.report import ReportHook
from swinv2_mm.engine.recipe.compilation import CompileBackboneHook
from swinv2_mm.engine.recipe.layer_decay import LayerDecayOptimWrapperConstructor
from swinv2_mm.engine.recipe.precision import AmpOptimWrapper, Float32BoxesHook
from swinv2_mm.engine.recipe.pretrained import Pretrained
from swinv2_mm.engine.recipe.seeding import EpochSeedHook, seed_worker
from swinv2_mm.engine.recipe.window_size import WindowSizeHook
from swinv2_mm.engine.saving.changed_schedule import ChangedScheduleHook
from swinv2_mm.engine.saving.checkpoint_hook import CheckpointHook
from swinv2_mm.engine.saving.matching import CheckpointMatchHook
from swinv2_mm.engine.sharding.fsdp2 import FSDP2Runner
from swinv2_mm.engine.sharding.zero1 import Zero1Runner
from swinv2_mm.errors import UserError

__all__ = [
    'AmpOptimWrapper',
    'ChangedScheduleHook',
    'CheckedLoading',
    'CheckpointHook',
    'CheckpointMatchHook',
    'CompileBackboneHook',
    'EpochSeedHook',
    'FSDP2Runner',
    'Float32BoxesHook',
    'LayerDecayOptimWrapperConstructor',
    'MapNamesHook',
    'MistakesHook',
    'NonFiniteHook',
    'PicturesHook',
    'Pretrained',
    'ProgressHook',
    'ReconstructionHook',
    'ReportHook',
    'UserError',
    'WindowSizeHook',
    'Zero1Runner',
    'seed_worker',
]
