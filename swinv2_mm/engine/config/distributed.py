"""What torchrun tells a process about its run."""

import os


def this_run() -> str | None:
    """torchrun's name of this run, the same after a restart; None without torchrun or without a name."""
    name = os.environ.get('TORCHELASTIC_RUN_ID', 'none')
    return None if name == 'none' else name
