"""Saving when every process holds a part of the checkpoint: all gather it, the first writes one ordinary file."""

from contextlib import suppress
from typing import Any

from torch.distributed.tensor import DTensor

from swinv2_mm.engine.mmengine_internals import OpenRunner


class GatheringRunner(OpenRunner):
    """Every process runs mmengine's ``save_checkpoint`` up to its last hook, so that state_dicts may communicate.

    mmengine asks rank 0 alone, which would wait for ever.
    """

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As mmengine's, called by every process."""
        with suppress(_NotMineToWrite):
            self.save_checkpoint_in_all(*args, **kwargs)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name == 'before_save_checkpoint':
            gather(kwargs['checkpoint'], keep=self.rank == 0)
            if self.rank != 0:
                raise _NotMineToWrite


class _NotMineToWrite(Exception):
    """The checkpoint is complete, and another process writes it."""


def gather(value: Any, keep: bool) -> Any:
    """Replace each divided tensor in nested dicts and lists, in place, by the complete one on the CPU.

    Every process calls it; those that do not ``keep`` the result send their part and get None.
    """
    if isinstance(value, DTensor):
        shard: Any = value.to(value.device_mesh.device_type)
        whole = shard.full_tensor()
        return whole.cpu() if keep else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        value[key] = gather(inner, keep)
    return value
