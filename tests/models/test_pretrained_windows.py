"""The pretrained windows are part of a backbone's state: whoever loads the weights computes what was trained."""

import copy
import logging

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import load_state_dict
from support.tiny_layers import assert_identical, small

from swinv2_mm.checkpoints.geometry import PRETRAINED_KEY

TRAINED = ((8, 8), (6, 4))
LOADERS = {
    'torch': lambda model, state: model.load_state_dict(state),
    'assign': lambda model, state: model.load_state_dict(state, assign=True),
    'mmengine': lambda model, state: load_state_dict(model, state, strict=True),
    'detector': lambda model, state: load_state_dict(
        torch.nn.ModuleDict(dict(backbone=model)), {f'backbone.{k}': v for k, v in state.items()}, strict=True
    ),
}


@pytest.fixture
def trained(randomize):
    return small(randomize, pretrained_window_sizes=list(TRAINED)).eval()


def features(model, side=52):
    torch.manual_seed(3)
    with torch.no_grad():
        return model.eval()(torch.rand(1, 3, side, side + 9))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(features(a), features(b), strict=True))


@pytest.mark.parametrize('loader', LOADERS)
def test_the_weights_decide_where_nothing_is_given(loader, trained):
    """At any window, also after a forward pass in eval, whose bias is kept. Prevents: the window of the config as
    normaliser of weights that were trained with another, which no shape shows.
    """
    model = small()
    features(model)
    assert not same(model, trained)
    LOADERS[loader](model, trained.state_dict())
    assert model.pretrained_window_sizes == TRAINED and same(model, trained)
    assert model.state_dict()[PRETRAINED_KEY].tolist() == [list(pair) for pair in TRAINED]


@pytest.mark.parametrize('loader', LOADERS)
def test_a_contradiction_names_both(loader, trained):
    """And leaves the model as it was. Prevents: either of two answers, silently."""
    model = small(pretrained_window_sizes=[8, 5])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r'pretrained_window_sizes=\[8, 5\].*\[8, \(6, 4\)\].*leave it out'):
        LOADERS[loader](model, trained.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    LOADERS[loader](small(pretrained_window_sizes=[8, (6, 4)]), trained.state_dict())


@pytest.mark.parametrize('loader', ['torch', 'mmengine'])
@pytest.mark.parametrize('given', [None, [8, (6, 4)]])
def test_older_weights_load_as_they_did(loader, given, trained, caplog):
    """Strictly, without a word of a missing key. Prevents: a warning about every file of before."""
    state = trained.state_dict()
    del state[PRETRAINED_KEY]
    model = small(pretrained_window_sizes=given)
    with caplog.at_level(logging.WARNING):
        LOADERS[loader](model, state)
    assert not caplog.records
    assert model.pretrained_window_sizes == (TRAINED if given else ((4, 4), (4, 4)))


def test_fewer_stages_than_the_weights(trained):
    """Prevents: a shape that does not match, of weights that do."""
    model = small(depths=(2,), num_heads=(2,), out_indices=(0,))
    model.load_state_dict(trained.state_dict(), strict=False)
    assert model.pretrained_window_sizes == TRAINED[:1]


@pytest.mark.parametrize(
    'change', [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double, copy.deepcopy]
)
def test_other_types_and_copies_keep_them(change, trained):
    """Prevents: a window that is rounded with the weights."""
    assert change(trained).state_dict()[PRETRAINED_KEY].tolist() == [list(pair) for pair in TRAINED]


def test_built_without_memory(trained):
    """As large models are. Prevents: a normaliser of whatever was in memory, saved with the next checkpoint."""
    with torch.device('meta'):
        model = small(pretrained_window_sizes=list(TRAINED))
    model.to_empty(device='cpu')
    assert model.state_dict()[PRETRAINED_KEY].tolist() == [list(pair) for pair in TRAINED]
    model.load_state_dict(trained.state_dict())
    assert same(model, trained)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averages_of_weights(update_buffers, trained):
    """mmengine's, with and without buffers, resumed too; and one that averages whole state_dicts in place, as timm's
    does, which would truncate 8 to 7. Prevents: an average under another normaliser than its weights.
    """
    average = ExponentialMovingAverage(small(), momentum=0.3, update_buffers=update_buffers)
    average.module.load_state_dict(trained.state_dict())
    for _ in range(3):
        average.update_parameters(trained)
    assert average.module.pretrained_window_sizes == TRAINED
    hook = EMAHook()
    hook.src_model, hook.ema_model = small(), average
    hook.src_model.load_state_dict(trained.state_dict())
    hook._swap_ema_parameters()
    assert same(hook.src_model, trained)

    copied = copy.deepcopy(trained)
    for old, new in zip(copied.state_dict().values(), trained.state_dict().values(), strict=True):
        old.copy_(0.9997 * old + (1 - 0.9997) * new)
    for buffer in copied.buffers():
        buffer.copy_(0.99 * buffer)
    assert copied.state_dict()[PRETRAINED_KEY].tolist() == [list(pair) for pair in TRAINED]
    assert copied.pretrained_window_sizes == TRAINED


def test_functional_call_takes_the_whole_state(trained):
    """Prevents: an entry of the state_dict that is neither a parameter nor a buffer."""
    image = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        found = torch.func.functional_call(trained, trained.state_dict(), (image,))
        assert_identical(found, trained(image))
