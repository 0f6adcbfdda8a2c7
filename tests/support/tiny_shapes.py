"""Small shapes data sets, and the files of a folder to compare them by."""

from pathlib import Path

from swinv2_mm.datasets import ShapesSpec

SPEC = ShapesSpec(seed=0, size=64, num_train=40, num_val=8)
TINY = ShapesSpec(size=32, num_train=3, num_val=2)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
