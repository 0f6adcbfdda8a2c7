"""Everything private of mmengine, mmdet and mmseg that we touch, each with the version that it was written for.

A release of theirs may change any of it without notice: after an upgrade, read this file first.
"""

# --- reading configs ---

# --- building from registries, running ---

# --- checkpoints ---

# --- data sets and heads of mmdet and mmseg ---
