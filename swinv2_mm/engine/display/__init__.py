"""What a run shows: progress bars, the report, pictures, TensorBoard."""
