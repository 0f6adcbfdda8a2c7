"""Display of a run: progress bars, report, pictures, TensorBoard."""
