"""Crash-safe checkpoints, and resuming from them."""
