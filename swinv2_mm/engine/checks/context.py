"""What the checks of one run share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.dataset import BaseDataset

from swinv2_mm.engine.census import Census


@dataclass
class Context:
    """The state of a series of checks."""

    splits: tuple[str, ...]  # 'train', 'val', 'test': those that the run reads
    classes: dict[str, Sequence[str]] = field(default_factory=dict)  # of each data set, by its key in the config
    # Data sets of the frameworks, by their keys: data_list is loaded and filtered.
    datasets: dict[str, BaseDataset] = field(default_factory=dict)
    censuses: list[Census] = field(default_factory=list)
    reading: dict[str, Any] = field(default_factory=dict)  # arguments of take_census: how many maps, and the progress
    warnings: list[str] = field(default_factory=list)
    model: Any = None  # of the dry run, without memory for its weights
