"""A tiny backbone with options, its layers and their hooks, for tests that change layers."""

from collections import Counter

import pytest
import torch
from torch import nn

from swinv2_mm import SwinTransformerV2

# Heads of 32 channels, which the C++ of the attention takes.
TINY = dict(embed_dims=32, depths=(2, 1), num_heads=(1, 2), out_indices=(0, 1), window_size=4, drop_path_rate=0.0)
# Heads of 8 channels, and a shifted window in each stage.
SMALL = dict(embed_dims=16, depths=(2, 2), num_heads=(2, 4), out_indices=(0, 1), window_size=4, drop_path_rate=0.0)
OPTIONS = {
    'defaults': {},
    'heads of 8 channels': dict(num_heads=(4, 8)),
    'recomputed': dict(with_cp=True),
    'frozen': dict(frozen_stages=1),
    'two windows at a time': dict(attn_chunk=2),
    'padding takes part': dict(mask_padding=False),
    'balanced windows': dict(window_fit='balanced', window_size=7),
}

each_option = pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)


def small(randomize=None, **options):
    """A backbone of ``SMALL``, as it was initialised or with random values."""
    model = SwinTransformerV2(**SMALL | options)
    return model if randomize is None else randomize(model)


def picture(batch=1, height=36, width=44):
    """9 x 11 and 5 x 6 tokens by default: windows of 4 are shifted, and completed by padding."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


def loss_of(maps):
    return sum(one.float().sin().square().mean() for one in maps)


def assert_close(found, expected, tolerance=2e-5):
    """To a part of the largest value: logits of up to 100 make more of rounding errors."""
    for mine, right in zip(found, expected, strict=True):
        assert mine.shape == right.shape
        assert (mine.double() - right.double()).abs().max() <= tolerance * right.double().abs().max()


def assert_identical(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def differ(found, expected):
    return all((a - b).abs().max() > 1e-3 * b.abs().max() for a, b in zip(found, expected, strict=True))


def put(model, path, module):
    """Exchange the module of this name."""
    parent, _, name = path.rpartition('.')
    setattr(model.get_submodule(parent), name, module)


def linear_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def full_name(name):
    return name if name.startswith(('stages', 'patch_embed')) else f'stages.0.blocks.1.{name}'.strip()


def callable_modules(model):
    return {name: module for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}


class Hooks:
    """Counts the calls of every module."""

    def __init__(self, model, backward=False):
        self.before, self.after, self.back = Counter(), Counter(), Counter()
        self.handles = []
        for name, module in callable_modules(model).items():
            self.handles += [
                module.register_forward_pre_hook(lambda module, args, name=name: self.before.update([name])),
                module.register_forward_hook(lambda module, args, out, name=name: self.after.update([name])),
            ]
            if backward:
                self.handles.append(
                    module.register_full_backward_hook(
                        lambda module, grad_in, grad_out, name=name: self.back.update([name])
                    )
                )

    def clear(self):
        for counts in (self.before, self.after, self.back):
            counts.clear()

    def remove(self):
        for handle in self.handles:
            handle.remove()


def weights(count):
    """One per channel: a norm that follows undoes a factor that all have in common."""
    return torch.linspace(0.25, 1.75, count)


def weigh(out, dim=-1):
    """Scale the channels of an output."""
    return (out.transpose(dim, -1) * weights(out.shape[dim])).transpose(dim, -1)


def weigh_rows(layer):
    """The same by the weight and the bias of a layer."""
    for parameter in layer.parameters():
        parameter.mul_(weights(len(parameter)).view(-1, *[1] * (parameter.ndim - 1)))


def weigh_columns(layer):
    """As if a linear layer were given scaled channels."""
    layer.weight.mul_(weights(layer.in_features))
