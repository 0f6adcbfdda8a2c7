"""Checkpoints of narrow models with random weights, as a run would leave them; they predict in milliseconds."""

from pathlib import Path

import torch
from mmengine.registry import MODELS, DefaultScope

from support.zoo import ROOT, load, shrunken


def write_checkpoint(path: Path, stem: str, edit=None, seed: int = 0) -> Path:
    """Write a checkpoint of a config of the zoo, made narrow; ``edit`` changes the config. Returns the path."""
    cfg = load(ROOT / f'{stem}.py')
    shrunken(cfg)
    if edit:
        edit(cfg)
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'norm' in name and name.startswith('backbone'):  # zero after the initialisation: blocks do nothing
                parameter.add_(0.5 * torch.randn_like(parameter))
    dataset = cfg.test_dataloader.dataset
    meta = {
        'cfg': cfg.pretty_text,
        'dataset_meta': {key: list(value) for key, value in dataset.get('metainfo', {}).items()},
    }
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    return path
