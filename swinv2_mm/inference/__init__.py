"""From a trained model to predictions, and out of Python."""
