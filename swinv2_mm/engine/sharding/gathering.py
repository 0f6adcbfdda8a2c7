"""Saving when every process holds a part of the checkpoint: all gather it, the first writes one ordinary file."""

from contextlib import suppress

from swinv2_mm.engine.mmengine_internals import OpenRunner


class GatheringRunner(OpenRunner):
    """Every process runs mmengine's ``save_checkpoint`` up to its last hook, so that state_dicts may communicate.

    mmengine asks rank 0 alone, which would wait for ever.
    """

    def save_checkpoint(self, *args, **kwargs) -> None:
        """As mmengine's, called by every process."""
        with suppress(_NotMineToWrite):
            self.save_checkpoint_in_all(*args, **kwargs)

    def call_hook(self, fn_name: str, **kwargs) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_save_checkpoint':
            self.gather(kwargs['checkpoint'])
            if self.rank != 0:
                raise _NotMineToWrite

    def gather(self, checkpoint: dict) -> None:
        """Make a checkpoint complete in rank 0, in place; called by every process, each with its own part."""


class _NotMineToWrite(Exception):
    """The checkpoint is complete, and another process writes it."""
