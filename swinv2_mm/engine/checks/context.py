"""What the checks of one run share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Context:
    """The state of a series of checks."""

    splits: tuple[str, ...]  # 'train', 'val', 'test': those that the run reads
    classes: dict[str, Sequence[str]] = field(default_factory=dict)  # of each data set, by its key in the config
    model: Any = None  # of the dry run, without memory for its weights
