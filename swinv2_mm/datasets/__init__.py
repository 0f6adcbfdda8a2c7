"""Generated data sets, for training without a download."""

from swinv2_mm.datasets.drawing import OUTLINES, SPLITS, Instance, Sample, ShapesSpec, render
from swinv2_mm.datasets.shapes import write_shapes

__all__ = ['OUTLINES', 'SPLITS', 'Instance', 'Sample', 'ShapesSpec', 'render', 'write_shapes']
