"""Weights from other code bases."""
