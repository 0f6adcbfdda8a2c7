"""Weights keep the pretrained windows that they were trained with, wherever a checkpoint has them."""

from types import SimpleNamespace

import pytest
import torch

from swinv2_mm import SwinTransformerV2
from swinv2_mm.engine.saving.matching import CheckpointMatchHook
from swinv2_mm.errors import UserError

BACKBONE = {'embed_dims': 8, 'depths': (1, 2), 'num_heads': (1, 2), 'out_indices': (0, 1)}


def test_a_test_with_another_normaliser_is_refused(randomize):
    """Windows of the weights count, and are taken where the config gives none.

    Prevents: figures of weights under a bias that they were not trained with.
    """
    state = randomize(SwinTransformerV2(**BACKBONE)).state_dict()
    weights = {f'backbone.{key}': value for key, value in state.items()}
    weights |= {'backbone.pretrained_windows': torch.tensor([[8, 8], [4, 4]])}

    def check(given):
        backbone = SwinTransformerV2(**BACKBONE, window_size=16, pretrained_window_sizes=given)
        runner = SimpleNamespace(model=torch.nn.ModuleDict(dict(backbone=backbone)), _load_from='run.pth')
        CheckpointMatchHook().after_load_checkpoint(runner, {'state_dict': weights})
        runner.model.load_state_dict(weights)
        return backbone.pretrained_window_sizes

    with pytest.raises(UserError, match=r'run\.pth was trained with pretrained_window_sizes=\[8, 4\].*has \[16'):
        check(16)
    assert check([8, 4]) == check(None) == ((8, 8), (4, 4))
