"""Data sets counted and looked at."""
