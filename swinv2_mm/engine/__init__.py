"""What training needs around the model: start-up, checks, hooks. Importing it registers what configs name."""

from swinv2_mm.engine.amp import AmpOptimWrapper, Float32BoxesHook
from swinv2_mm.engine.checkpoint_match import CheckpointMatchHook
from swinv2_mm.engine.initializer import Pretrained
from swinv2_mm.engine.pictures import PicturesHook
from swinv2_mm.engine.seeding import EpochSeedHook, seed_worker
from swinv2_mm.errors import UserError

__all__ = [
    'AmpOptimWrapper',
    'CheckpointMatchHook',
    'EpochSeedHook',
    'Float32BoxesHook',
    'PicturesHook',
    'Pretrained',
    'UserError',
    'seed_worker',
]
