"""Checkpoints that every process holds a part of, put together into the ordinary file of one."""

from contextlib import suppress

from mmengine.runner import Runner


class GatheringRunner(Runner):
    """A runner whose processes assemble a checkpoint together; mmengine's asks the first alone, which waits for ever.

    Every process runs through mmengine's own ``save_checkpoint`` up to the last hook, so that state_dicts may
    communicate; then the first one writes the file.
    """

    def save_checkpoint(self, *args, **kwargs) -> None:
        """As mmengine's, called by every process."""
        with suppress(_NotMineToWrite):
            # What mmengine decorated to run in the first process only.
            Runner.save_checkpoint.__wrapped__(self, *args, **kwargs)

    def call_hook(self, fn_name: str, **kwargs) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_save_checkpoint':
            self.gather(kwargs['checkpoint'])
            if self.rank != 0:
                raise _NotMineToWrite

    def gather(self, checkpoint: dict) -> None:
        """Make a checkpoint whole in the first process, in place; called by every process, each with its own part."""


class _NotMineToWrite(Exception):
    """The checkpoint is complete, and this process is not the one to write it."""
