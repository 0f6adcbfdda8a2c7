"""What the checks of one run share: the splits that it reads, and what the dry run has built so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn


@dataclass
class Context:
    """The state of a series of checks.

    Attributes:
        splits: Those of ``'train'``, ``'val'``, ``'test'`` that the run reads.
        classes: The class names of each data set, by its key in the config.
        model: Without memory for its weights.
    """

    splits: tuple[str, ...]
    classes: dict[str, Sequence[str]] = field(default_factory=dict)
    model: nn.Module | None = None
