"""tools/print_param_groups.py: a table for every training config, in which nothing is missing."""

import re

import pytest
import torch
from mmengine.registry import MODELS
from support import ROOT
from support.zoo import TRAINING, families, load

from swinv2_mm.sizes import get_variant


def rows(output):
    """[(start of the line, number of parameters, learning rate, weight decay)]; none of the last two if frozen."""
    found = re.findall(r'^ +(\S.*?) +([\d,]+) +(?:[\d.e-]+ +([\d.e-]+) +([\d.]+) +)?$', output, re.MULTILINE)
    return [(start, int(number.replace(',', '')), lr, decay) for start, number, lr, decay in found]


@pytest.mark.parametrize('path', families(TRAINING))
def test_every_parameter_is_in_one_row(run_tool, capsys, path):
    """The numbers of the rows add up to the model's, and decay comes with weights alone.

    Prevents: a config that it cannot show, and parameters that no row counts, or two.
    """
    cfg = load(path)
    assert run_tool('print_param_groups', path) == 0
    found = rows(capsys.readouterr().out)
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert sum(number for _, number, _, _ in found) == sum(parameter.numel() for parameter in model.parameters())
    for start, _, _, decay in found:
        full = f'{cfg.optim_wrapper.optimizer.weight_decay:g}'
        assert decay == (full if start.endswith('  weights') else '0'), start
    # Each with and without decay: the blocks, what is in front of them, and what is behind.
    layers = sum(get_variant(cfg.model.backbone.arch).depths) + 2 if 'constructor' in cfg.optim_wrapper else 0
    assert sum(start.startswith('layer_') for start, *_ in found) == 2 * layers


def test_options_and_frozen_stages(run_tool, capsys):
    """Layer decay from the command line; what is frozen has a row without rate. Prevents: a table of the file alone."""
    assert (
        run_tool(
            'print_param_groups',
            ROOT / 'configs' / 'maskrcnn_swinv2_t.py',
            '--cfg-options',
            'model.backbone.frozen_stages=1',
            'optim_wrapper.paramwise_cfg.decay_rate=0.5',
            'optim_wrapper.constructor=swinv2_mm.LayerDecayOptimWrapperConstructor',
        )
        == 0
    )
    found = rows(capsys.readouterr().out)
    assert [lr for start, _, lr, _ in found if start.startswith('layer_11 ')] == ['2.5e-05'] * 2
    assert [(lr, decay) for start, _, lr, decay in found if start.startswith('frozen')] == [('', '')]


def test_no_training_and_a_rate_without_effect_are_refused(run_tool, capsys):
    """Prevents: a traceback for a config without training, and a table without the decay that was asked for."""
    assert run_tool('print_param_groups', ROOT / 'configs' / 'upernet_swinv2_l_896_test.py') == 2
    assert 'does not describe a training' in capsys.readouterr().err
    assert (
        run_tool(
            'print_param_groups',
            ROOT / 'configs' / 'maskrcnn_swinv2_t.py',
            '--cfg-options',
            'optim_wrapper.paramwise_cfg.decay_rate=0.9',
        )
        == 2
    )
    assert 'decay_rate has no effect by itself' in capsys.readouterr().err
