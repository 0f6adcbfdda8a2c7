"""All processes of a run end after the same iteration."""

from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import distributed

from swinv2_mm.engine.saving.stopping.request import REQUEST


class Agreement:
    """Asks in every iteration whether one of the processes was told to end.

    Each sends its answer and reads the sum of the iteration before, which has arrived meanwhile: nobody waits, neither
    for others nor for a GPU, and a run of several processes ends an iteration later than it was told to.
    """

    def __init__(self) -> None:
        self.group: Any = distributed.new_group(backend='gloo') if get_world_size() > 1 else None
        self._sent: Any = None

    def ask(self) -> int:
        """The reason to end, of :class:`~swinv2_mm.engine.saving.stopping.request.Request`; 0 to go on."""
        mine = REQUEST.reason()
        if self.group is None:
            return mine
        before, answer = self._sent, torch.tensor(mine)
        work = distributed.all_reduce(answer, distributed.ReduceOp.MAX, group=self.group, async_op=True)
        self._sent = work, answer
        if before is None:
            return 0
        before[0].wait()
        return int(before[1])

    def fewest(self, number: int) -> int:
        """The smallest number of all processes."""
        answer = torch.tensor(number)
        if self.group is not None:
            distributed.all_reduce(answer, distributed.ReduceOp.MIN, group=self.group)
        return int(answer)

    def meet(self) -> None:
        """Wait for all processes."""
        if self.group is not None:
            distributed.barrier(group=self.group)
