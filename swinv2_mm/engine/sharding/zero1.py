"""ZeRO-1 divides the optimizer's state among the processes; each updates its share of the parameters."""

import torch
from mmengine.optim import OptimWrapper

from swinv2_mm.engine.sharding.gathering import GatheringRunner
from swinv2_mm.errors import UserError
from swinv2_mm.registry import RUNNERS


@RUNNERS.register_module()
class Zero1Runner(GatheringRunner):
    """A runner with torch's ``ZeroRedundancyOptimizer``.

    The config names the optimizer as always. Checkpoints are the same as without sharding, for any number of processes.
    A single process without a launcher trains as always.
    """

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """Build the optimizer inside ``ZeroRedundancyOptimizer``.

        Raises:
            UserError: It is not an optimizer of ``torch.optim``.
        """
        if self.distributed and isinstance(optim_wrapper, dict):
            optimizer = optim_wrapper['optimizer']
            if not hasattr(torch.optim, optimizer['type']):
                raise UserError(
                    f'ZeRO shards the optimizers of torch.optim; {optimizer["type"]} is none of them. Set '
                    "optim_wrapper.optimizer.type='AdamW', or leave runner_type out of the config."
                )
            sharded = dict(
                optimizer,
                type='ZeroRedundancyOptimizer',
                optimizer_type=optimizer['type'],
                parameters_as_bucket_view=True,
            )
            optim_wrapper = dict(optim_wrapper, optimizer=sharded)
        return super().build_optim_wrapper(optim_wrapper)
