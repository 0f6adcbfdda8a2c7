"""Use of a trained model: predict on pictures and videos."""

from swinv2_mm.inference.prediction import Predictions, predict

__all__ = ['Predictions', 'predict']
