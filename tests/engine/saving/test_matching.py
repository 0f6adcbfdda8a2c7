"""Weights keep the pretrained windows that they were trained with, wherever a checkpoint has them."""

from types import SimpleNamespace

import pytest
import torch

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.load import windows_of_training
from swinv2_mm.engine.saving.matching import CheckpointMatchHook
from swinv2_mm.errors import UserError

BACKBONE = {'embed_dims': 8, 'depths': (1, 2), 'num_heads': (1, 2), 'out_indices': (0, 1)}
CONFIG = """
swinv2_t = dict(type='swinv2_mm.SwinTransformerV2', window_size=16, pretrained_window_sizes=[3, 3])
model = dict(type='D', detector=dict(backbone=dict(
    type='swinv2_mm.SwinTransformerV2', window_size=16, pretrained_window_sizes=[8, 4])),
    backbone=dict(type='swinv2_mm.models.swin_v2.SwinTransformerV2', window_size=[(4, 6), 4], {more}))
"""


@pytest.mark.parametrize(
    ('prefix', 'more', 'expected'),
    [
        ('detector.backbone.', '', (((16, 16), (16, 16)), ((8, 8), (4, 4)))),
        ('backbone.', '', (((4, 6), (4, 4)), ((4, 6), (4, 4)))),
        ('backbone.', 'pretrained_window_sizes=(0, 5)', (((4, 6), (4, 4)), ((4, 6), (5, 5)))),
        ('backbone.', "init_cfg=[dict(type='swinv2_mm.Pretrained', checkpoint='x')]", (None, None)),
        ('backbone.', 'pretrained_window_sizes=f(8)', (None, None)),  # nothing is run
        ('teacher.', '', (None, None)),  # which of the two is not known
    ],
)
def test_the_config_of_a_training_is_read_at_its_place(prefix, more, expected):
    """Prevents: the first backbone of the text taken for the model's, as a variable of the base files is."""
    assert windows_of_training(CONFIG.format(more=more), prefix, 2) == expected
    assert windows_of_training('model = [', prefix, 2) == windows_of_training(None, prefix, 2) == (None, None)


def test_a_test_with_another_normaliser_is_refused(randomize):
    """Told by the weights, or, of an older file, by its config, whose windows are taken where the config gives none.

    Prevents: figures of weights under a bias that they were not trained with.
    """
    state = randomize(SwinTransformerV2(**BACKBONE)).state_dict()
    del state['pretrained_windows']  # as in older files
    weights = {f'backbone.{key}': value for key, value in state.items()}
    of_config = {
        'state_dict': weights,
        'meta': {
            'cfg': "swinv2_t = dict(type='swinv2_mm.SwinTransformerV2')\nmodel = "
            "dict(backbone=dict(type='swinv2_mm.SwinTransformerV2', pretrained_window_sizes=[8, 4]))"
        },
    }
    of_weights = {'state_dict': weights | {'backbone.pretrained_windows': torch.tensor([[8, 8], [4, 4]])}}
    for checkpoint in (of_config, of_weights):

        def check(given, checkpoint=checkpoint):
            backbone = SwinTransformerV2(**BACKBONE, window_size=16, pretrained_window_sizes=given)
            runner = SimpleNamespace(model=torch.nn.ModuleDict(dict(backbone=backbone)), _load_from='run.pth')
            copy = {key: dict(value) for key, value in checkpoint.items()}
            CheckpointMatchHook().after_load_checkpoint(runner, copy)
            runner.model.load_state_dict(copy['state_dict'])
            return backbone.pretrained_window_sizes

        with pytest.raises(UserError, match=r'run\.pth was trained with pretrained_window_sizes=\[8, 4\].*has \[16'):
            check(16)
        assert check([8, 4]) == check(None) == ((8, 8), (4, 4))
