"""What the checks of one run share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Context:
    """The state of a series of checks.

    Attributes:
        splits: Those of ``'train'``, ``'val'``, ``'test'`` that the run reads.
        classes: The class names of each data set, by its key in the config.
        model: That of the dry run, without memory for its weights.
    """

    splits: tuple[str, ...]
    classes: dict[str, Sequence[str]] = field(default_factory=dict)
    model: Any = None
