"""Trained models work in torch alone, in the frameworks' inferencers, with adapters, and after resuming."""

import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from support.tiny_data import write_data
from support.tiny_fixtures import put_back
from support.zoo import ROOT, load, shorten, shrunken

from swinv2_mm.engine.runs import prepare_training, train

KINDS = {'detector': 'maskrcnn_swinv2_t_shapes', 'segmentor': 'upernet_swinv2_t_shapes'}
# Nothing but torch can be imported; then every object in the file is of a type of torch or of Python.
BARE = """
import sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'swinv2_mm', 'numpy'):
    sys.modules[name] = None
import warnings
warnings.simplefilter('ignore')
import torch
checkpoint = torch.load(sys.argv[1])
def walk(value):
    assert type(value).__module__ in ('builtins', 'collections', 'torch'), type(value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    for item in value if isinstance(value, list | tuple) else ():
        walk(item)
walk(checkpoint)
print(checkpoint['state_dict']['backbone.pretrained_windows'].tolist())
"""
INFER = {
    'detector': """
import sys
from mmdet.apis import DetInferencer
inferencer = DetInferencer(sys.argv[1], sys.argv[2], device='cpu', show_progress=False)
print(len(inferencer(sys.argv[3])['predictions']))
""",
    'segmentor': """
import sys
from mmseg.apis import MMSegInferencer
inferencer = MMSegInferencer(sys.argv[1], sys.argv[2], device='cpu')
print(inferencer(sys.argv[3])['predictions'].shape[0] // 64)
""",
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('data'))


def write_config(kind, data, folder):
    """Two epochs of a small model, in float32, with a window that is not the pretrained one."""
    cfg = load(ROOT / f'{KINDS[kind]}.py')
    shrunken(cfg)
    shorten(cfg, data)
    cfg.model.backbone.update(window_size=4, pretrained_window_sizes=[6, 6, 5, 3], drop_path_rate=0.3)
    cfg.train_cfg.update(max_epochs=2)
    cfg.train_dataloader.batch_size = 2
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    cfg.dump(folder / f'{kind}.py')
    return folder / f'{kind}.py'


@pytest.fixture(scope='module', params=KINDS)
def run(request, data, tmp_path_factory):
    """The kind, the config and the work dir of a finished training."""
    folder = tmp_path_factory.mktemp(request.param)
    config = write_config(request.param, data, folder)
    with put_back():
        train(prepare_training(str(config), work_dir=str(folder / 'run')))
    return request.param, config, folder / 'run'


def python(code, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'}
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=dict(environment, OMP_NUM_THREADS='1'),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_torch_alone_reads_the_checkpoint(run):
    """With today's defaults, where nothing else is installed. Prevents: classes of mmengine or NumPy in the file."""
    _, _, work_dir = run
    assert python(BARE, work_dir / 'epoch_2.pth') == '[[6, 6], [6, 6], [5, 5], [3, 3]]'


def test_the_inferencers_predict(run, data):
    """After nothing but the import of their framework. Prevents: a checkpoint that only our tools can open."""
    kind, config, work_dir = run
    image = next((data / 'shapes' / 'images').rglob('*.png'))
    assert python(INFER[kind], work_dir / config.name, work_dir / 'epoch_2.pth', image) == '1'


def test_resuming_ends_in_the_weights_of_the_uninterrupted_run(run, tmp_path):
    """Bit by bit, with the optimizer's state. Prevents: something that plain data lose on the way."""
    _, config, work_dir = run
    with put_back():
        train(prepare_training(str(config), work_dir=str(tmp_path), resume=str(work_dir / 'epoch_1.pth')))
    found, expected = (torch.load(folder / 'epoch_2.pth') for folder in (tmp_path, work_dir))
    assert found['state_dict'].keys() == expected['state_dict'].keys()
    assert all(torch.equal(tensor, expected['state_dict'][key]) for key, tensor in found['state_dict'].items())
    for index, state in expected['optimizer']['state'].items():
        assert all(torch.equal(found['optimizer']['state'][index][key], value) for key, value in state.items())
    first = torch.load(work_dir / 'epoch_1.pth')['state_dict']
    assert not all(torch.equal(tensor, first[key]) for key, tensor in expected['state_dict'].items())


def test_adapters_train_a_frozen_model(run, data):
    """peft's LoRA in the backbone, everything else frozen, on an image of the shapes: the loss changes and falls, only
    adapters move, and merged into the weights they compute the same. Prevents: adapters that are passed over.
    """
    peft = pytest.importorskip('peft', reason='the library of adapters is not installed')
    _, config, work_dir = run
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.load_state_dict(torch.load(work_dir / 'epoch_2.pth')['state_dict'])
    generator = torch.Generator().manual_seed(0)
    for block in (block for stage in model.backbone.stages for block in stage.blocks):
        for norm in (block.norm1, block.norm2):  # nearly zero after so short a training, which would hide the blocks
            norm.weight.data.normal_(1, 0.3, generator=generator)
    model.eval()
    image = torch.rand(2, 3, 64, 64, generator=generator)
    target = [torch.randn(m.shape, generator=generator) for m in model.extract_feat(image)]

    def loss():
        return sum((m - t).square().mean() for m, t in zip(model.extract_feat(image), target, strict=True))

    before = loss().item()
    adapted = peft.get_peft_model(
        model.backbone,
        peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=r'.*\.(qkv|proj|fc1|fc2)', exclude_modules=['patch_embed.proj']
        ),
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapters = {name: p for name, p in adapted.named_parameters() if 'lora_' in name}
    for parameter in adapters.values():
        parameter.requires_grad_(True)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if 'lora_' not in name}
    assert len(adapters) == 2 * 4 * 4  # A and B, of four layers in each of four blocks
    optimizer = torch.optim.AdamW(adapters.values(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        losses.append(loss())
        losses[-1].backward()
        optimizer.step()
    assert losses[0].item() == pytest.approx(before, rel=1e-4)  # B starts at zero
    assert losses[-1].item() < 0.99 * before
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters.values())
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    with torch.no_grad():
        adapted_maps = adapted(image)
        merged = adapted.merge_and_unload()
        for mine, theirs in zip(merged(image), adapted_maps, strict=True):
            assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()
