"""Checks of a complete config: what would go wrong in a run, reported by its config key; nothing is written or edited.

A check is a function of the config and a :class:`~swinv2_mm.engine.checks.context.Context`. It raises
:class:`~swinv2_mm.errors.UserError`. The lists below are the order of the checks.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import nn

from swinv2_mm.engine.checks.annotations import check_datasets
from swinv2_mm.engine.checks.components import check_components
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.launcher import check_launcher
from swinv2_mm.engine.checks.meta_forward import check_channels
from swinv2_mm.engine.checks.model import check_classes, check_model, check_window_size
from swinv2_mm.engine.checks.numbers import check_numbers
from swinv2_mm.engine.checks.optimizer import check_optimizer
from swinv2_mm.engine.checks.paths import check_data, check_folders
from swinv2_mm.engine.checks.weights import check_load_from, check_pretrained

Check = Callable[[Config, Context], None]

# The dry run builds everything that the config names, without data or memory.
DRY_RUN: list[Check] = [
    check_components,
    check_datasets,
    check_model,
    check_optimizer,
    check_classes,
    check_channels,
    check_window_size,
]
ALL: list[Check] = [
    check_launcher,
    check_numbers,
    check_folders,
    check_data,
    *DRY_RUN,
    check_pretrained,  # late, since it may download weights
    check_load_from,
]


def run_checks(cfg: Config, splits: Sequence[str], checks: Sequence[Check] = ALL) -> nn.Module | None:
    """Run checks in their order.

    Args:
        cfg: A complete config; it is not changed.
        splits: Those of ``'train'``, ``'val'``, ``'test'`` that the run reads.
        checks: One of the lists above.

    Returns:
        The model of the dry run, without memory for its weights.

    Raises:
        UserError: A check has found a mistake.
    """
    context = Context(tuple(splits))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'), _silence():
        for check in checks:
            check(cfg, context)
    return context.model


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what frameworks log and warn of when they build something: the run itself will repeat it."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
