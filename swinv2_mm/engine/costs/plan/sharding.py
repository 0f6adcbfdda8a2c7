"""What a process holds of a training step that is divided among processes: plain DDP, ZeRO-1, FSDP2."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

from swinv2_mm.engine.costs.plan.step import Step, Weight

# Without sharding, and the pieces of configs/_base_/sharding.
WAYS = ('ddp', 'zero1', 'fsdp2')


@dataclass(frozen=True)
class Held:
    """Bytes of the fullest process at its fullest moment."""

    parameters: int  # and buffers, and a running average of them
    gradients: int
    optimizer: int
    activations: int  # and what operations need for a moment
    communication: int  # buckets of DDP, blocks that FSDP2 has gathered, gradients that it sends

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.communication


def held(step: Step, way: str, processes: int, copies: int = 0) -> Held:
    """What a process holds in the second step and later, when the optimizer has its state.

    Args:
        way: One of :data:`WAYS`; a process without others trains as always.
        copies: Of the parameters, beside the model: running averages.
    """
    if way == 'fsdp2' and processes > 1:
        return _fully_sharded(step, processes, copies)
    weights = step.weights
    trained = sum(w.bytes for w in weights if w.trained)
    state = sum(w.state for w in weights)
    update = step.update
    if way == 'zero1' and processes > 1:
        state = max(shares(weights, processes))
        update = _share_of_update(step, processes)
    parameters = (1 + copies) * sum(w.bytes for w in weights) + step.buffers
    buckets = trained if processes > 1 else 0
    moments = (
        Held(parameters, step.peak_gradients, state, step.peak - step.peak_gradients, buckets),
        Held(parameters, trained, state, update, buckets),
    )
    return max(moments, key=lambda moment: moment.total)


def _share_of_update(step: Step, processes: int) -> int:
    """What an update of a share of the parameters needs for a moment: a parameter is not cut for it."""
    largest = max((w.bytes for w in step.weights if w.trained), default=0)
    return max(step.update // processes, min(step.update, 2 * largest))


def shares(weights: Iterable[Weight], processes: int) -> list[int]:
    """Bytes of the optimizer's state in each process, as torch's ``ZeroRedundancyOptimizer`` divides whole parameters.

    Group by group of the optimizer, the largest of a group first, each to the process that has least.
    """
    heap = [(0, rank, 0) for rank in range(processes)]  # numbers of parameters so far, rank, bytes of state
    trained = (weight for weight in weights if weight.group is not None)
    for weight in sorted(trained, key=lambda w: (w.group, -math.prod(w.shape))):
        numbers, rank, size = heapq.heappop(heap)
        heapq.heappush(heap, (numbers + math.prod(weight.shape), rank, size + weight.state))
    return [size for _, _, size in sorted(heap, key=lambda entry: entry[1])]


def shard(weight: Weight, processes: int) -> float:
    """The share of a parameter that the first process holds under FSDP2: whole rows, as many as any process."""
    rows = weight.shape[0] if weight.shape else 1
    return -(-rows // processes) / max(rows, 1)


def _fully_sharded(step: Step, processes: int, copies: int) -> Held:
    weights = step.weights
    parameters = sum(shard(w, processes) * w.bytes for w in weights)
    gradients = sum(shard(w, processes) * w.bytes for w in weights if w.trained)
    state = round(sum(shard(w, processes) * w.state for w in weights))
    own = round((1 + copies) * parameters) + step.buffers
    blocks = sum(w.bytes for w in weights if w.trained and w.unit is not None)
    of_blocks = sum(shard(w, processes) * w.bytes for w in weights if w.trained and w.unit is not None)
    root = sum(w.bytes for w in weights if w.unit is None)
    of_root = sum(w.bytes for w in weights if w.trained and w.unit is None)
    moments = [Held(own, round(gradients), state, _share_of_update(step, processes), 0)]
    # At the end of the backward pass the gradients of the root are there twice: as they were computed, and to be sent.
    moments.append(Held(own, round(of_blocks) + of_root, state, 0, root + of_root))
    for moment, beside in step.fullest.items():
        finished = round(moment.finished * of_blocks / blocks) if blocks else 0
        whole = moment.gradients - moment.finished
        communication = root + moment.gathered + moment.reducing
        moments.append(Held(own, whole + finished, state, beside, communication))
    return max(moments, key=lambda moment: moment.total)
