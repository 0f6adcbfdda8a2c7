"""What processes send each other in a training step, and how long that takes on a link."""

from __future__ import annotations

from dataclasses import dataclass

from swinv2_mm.engine.costs.plan.step import Step

# Bytes per second that a link carries in one direction: docs/large_models.md has the sources.
LINKS = {'NVLink': 450e9, '400 Gb/s': 50e9, '100 Gb/s': 12.5e9}
OVERLAPS = dict(
    ddp='gradients, with the backward pass',
    zero1='gradients, with the backward pass; new parameters with nothing',
    fsdp2='blocks, with the work on their neighbours; the rest of the model with nothing',
)


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process sends in a step, and receives at the same time."""

    beside: int  # while the GPU computes
    alone: int  # while it waits

    @property
    def total(self) -> int:
        return self.beside + self.alone

    def seconds(self, link: float) -> float:
        """The time on a link of so many bytes per second, if nothing else is on it."""
        return self.total / link


def traffic(step: Step, way: str, processes: int) -> Traffic:
    """What a way of sharding sends in a step, by algorithms that send no byte twice (rings).

    A sum over n processes moves 2 (n - 1) / n of the gradients: its two halves are a sum of which each gets a share,
    and a gathering of the shares. FSDP2 gathers parameters for the forward and again for the backward pass, and keeps
    the share of the summed gradients. The machines of a ring send these bytes over their own link once.
    """
    part = (processes - 1) / processes
    gradients = part * sum(w.bytes for w in step.weights if w.trained)
    if way == 'fsdp2':
        root = sum(w.bytes for w in step.weights if w.unit is None)
        blocks = sum(w.bytes for w in step.weights if w.unit is not None)
        root_gradients = sum(w.bytes for w in step.weights if w.trained and w.unit is None)
        beside = part * 2 * blocks + gradients - part * root_gradients
        return Traffic(round(beside), round(part * (2 * root + root_gradients)))
    return Traffic(round(2 * gradients), round(gradients) if way == 'zero1' else 0)
