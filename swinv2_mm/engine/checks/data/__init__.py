"""Checks of the data: files, classes, channels and batches."""
