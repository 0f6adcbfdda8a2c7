"""Checks of a complete config: what would go wrong in a run, reported by its config key; nothing is written or edited.

A check takes the config and a :class:`~swinv2_mm.engine.checks.context.Context`, and raises a ``UserError``.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from swinv2_mm.engine.checks.components import check_components
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.data.annotations import check_datasets
from swinv2_mm.engine.checks.data.batches import check_batches, check_picture_sizes
from swinv2_mm.engine.checks.data.channels import check_channels
from swinv2_mm.engine.checks.data.crops import check_crops
from swinv2_mm.engine.checks.data.paths import check_data, check_folders
from swinv2_mm.engine.checks.launcher import check_launcher
from swinv2_mm.engine.checks.meta_forward import check_heads
from swinv2_mm.engine.checks.model import check_classes, check_masks, check_model, check_window_size
from swinv2_mm.engine.checks.numbers import check_numbers
from swinv2_mm.engine.checks.optimizer import check_optimizer
from swinv2_mm.engine.checks.weights import check_load_from, check_pretrained

Checks = list[Callable[[Config, Context], None]]

DATA: Checks = [check_data, check_datasets]
# The dry run builds everything that the config names, without data or memory.
DRY_RUN: Checks = [
    check_components,
    check_datasets,
    check_channels,
    check_model,
    check_optimizer,
    check_classes,
    check_heads,
    check_masks,
    check_window_size,
]
ALL: Checks = [
    check_launcher,
    check_numbers,
    check_folders,
    check_data,
    *DRY_RUN,
    check_batches,
    check_picture_sizes,
    check_crops,
    check_pretrained,  # late, since it may download weights
    check_load_from,
]


def run_checks(cfg: Config, splits: Sequence[str], checks: Checks = ALL, **reading: Any) -> Context:
    """Run one of the lists above on a complete config, for the ``splits`` that the run reads; a mistake is a UserError.

    Args:
        reading: Arguments of ``take_census``, such as how many maps are read.

    Returns:
        What was found: data sets, their census, and a model that has no memory for its weights and cannot compute.
    """
    context = Context(tuple(splits), reading=reading)
    logger = MMLogger.get_current_instance()
    level = logger.level
    # Hide what frameworks log and warn of when they build something: the run itself will repeat it.
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
            warnings.simplefilter('ignore')
            for check in checks:
                check(cfg, context)
    finally:
        logger.setLevel(level)
    return context
