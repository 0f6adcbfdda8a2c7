"""Data sets that are generated rather than downloaded."""

from swinv2_mm.datasets.shapes import OUTLINES, SPLITS, Instance, Sample, ShapesSpec, render, write_shapes

__all__ = ['OUTLINES', 'SPLITS', 'Instance', 'Sample', 'ShapesSpec', 'render', 'write_shapes']
