"""Print the learning rate and the weight decay of each part of a model, from the optimizer that a config builds.

python tools/print_param_groups.py configs/upernet_swinv2_t.py
"""

import argparse
import re
import sys
import warnings
from collections.abc import Sequence

import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from swinv2_mm.engine.checks.model import build_model
from swinv2_mm.engine.checks.optimizer import build_optimizer
from swinv2_mm.engine.config import read_config
from swinv2_mm.engine.recipe.layer_decay import check_layer_decay
from swinv2_mm.engine.runs.command_line import ConfigOptions, Parser, exit_code
from swinv2_mm.errors import UserError

# The part of the backbone that a parameter is in, or the module beside it; and what it is.
PART = re.compile(r'(?:backbone\.)?(stages\.\d+\.(?:downsample|blocks\.\d+)|\w+)')
KIND = re.compile(r'cpb_mlp|logit_scale|bias$|$')


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='change the config')
    args = parser.parse_args(argv)
    cfg = read_config(args.config, args.cfg_options)
    if 'optimizer' not in (cfg.get('optim_wrapper') or {}):
        raise UserError(f'{args.config} has no optim_wrapper.optimizer: it does not describe a training.')
    check_layer_decay(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    MMLogger.get_instance('print_param_groups').setLevel('ERROR')  # the table says what mmengine would log
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = build_model(cfg.model)  # without memory
        print_groups(model, build_optimizer(cfg.optim_wrapper, model).optimizer)


def print_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Print a line for all parameters that have the same learning rate and weight decay, and are of the same layer."""
    table = Table('layer', 'modules', 'parameters', box=box.SIMPLE_HEAD)
    for column in ('number', 'lr scale', 'lr', 'weight decay'):
        table.add_column(column, justify='right')
    rows: dict[tuple, list[Tensor]] = {}
    for group in optimizer.param_groups:
        layer = re.sub('_(no_)?decay$', '', group.get('group_name', ''))
        rows.setdefault((layer, group['lr'], group['weight_decay']), []).extend(group['params'])
    for (layer, lr, decay), parameters in rows.items():
        scale = lr / optimizer.defaults['lr']
        table.add_row(layer, *contents(model, parameters), f'{scale:.4g}', f'{lr:.4g}', f'{decay:g}')
    trained = {parameter for parameters in rows.values() for parameter in parameters}
    frozen = [parameter for parameter in model.parameters() if parameter not in trained]
    if frozen:
        table.add_row('frozen', *contents(model, frozen))
    console = Console(highlight=False)
    console.width = max(console.width, 150)
    console.print(table)


def contents(model: nn.Module, parameters: Sequence[Tensor]) -> tuple[str, str, str]:
    """Say in which modules parameters are, of which kinds they are, and how many numbers they hold."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    norms = [module for module in model.modules() if 'norm' in type(module).__name__.lower()]
    kinds = {p: (KIND.search(name)[0] or 'weights').replace('bias', 'biases') for p, name in names.items()}
    kinds |= {parameter: 'norms' for norm in norms for parameter in norm.parameters(recurse=False)}
    modules = dict.fromkeys(names[parameter].split('.')[0] for parameter in parameters)
    parts = dict.fromkeys(PART.match(names[parameter])[1] for parameter in parameters)
    found = dict.fromkeys(kinds[parameter] for parameter in parameters)
    count = sum(parameter.numel() for parameter in parameters)
    return ', '.join(parts if len(parts) <= 8 else modules), ', '.join(found), f'{count:,}'


if __name__ == '__main__':
    sys.exit(exit_code(main))
