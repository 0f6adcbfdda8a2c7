"""ZeRO-1 divides the optimizer's state among the processes; each updates its share of the parameters."""

import torch
from mmengine.optim import OptimWrapper

from swinv2_mm.engine.sharding.gathering import GatheringRunner
from swinv2_mm.errors import UserError
from swinv2_mm.registry import RUNNERS


@RUNNERS.register_module()
class Zero1Runner(GatheringRunner):
    """A runner that puts the optimizer of the config into torch's ``ZeroRedundancyOptimizer``.

    Checkpoints are those of a run without sharding, for any number of processes. A single process without a launcher
    trains as always.
    """

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        if self.distributed and isinstance(optim_wrapper, dict):
            optimizer = optim_wrapper['optimizer']
            kind = optimizer['type']
            if not hasattr(torch.optim, kind):
                raise UserError(
                    f'ZeRO shards the optimizers of torch.optim; {kind} is none of them. Set '
                    "optim_wrapper.optimizer.type='AdamW', or leave runner_type out of the config."
                )
            zero = dict(type='ZeroRedundancyOptimizer', optimizer_type=kind, parameters_as_bucket_view=True)
            optim_wrapper = dict(optim_wrapper, optimizer={**optimizer, **zero})
        return super().build_optim_wrapper(optim_wrapper)
