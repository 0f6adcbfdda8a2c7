"""Pictures of what SimMIM paints show what the model saw and painted, and do not touch the training."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image
from support.resuming import same
from support.tiny_simmim import write_config as write_config_of_memory
from support.tiny_unlabelled import write_config, write_pictures
from support.versions import needs

from swinv2_mm import SimMIM
from swinv2_mm.engine.display import reconstructions
from swinv2_mm.engine.display.reconstructions import ReconstructionHook, reconstruction
from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.saving.reading import latest_checkpoint, read_checkpoint
from swinv2_mm.models.simmim import draw_mask, normalise_locally

DRAWING = "[dict(type='swinv2_mm.ReconstructionHook', num_pictures=3)]"
GAP = 4


def simmim(channels=3, norm_target=7, mean=100.0, std=50.0):
    backbone = dict(type='swinv2_mm.SwinTransformerV2', embed_dims=8, depths=(1,), num_heads=(1,), window_size=4)
    normalising = {} if mean is None else dict(mean=[mean], std=[std])
    return SimMIM(
        backbone | dict(in_channels=channels),
        mask_patch_size=8,
        norm_target=norm_target,
        data_preprocessor=dict(type='ImgDataPreprocessor', **normalising),
    )


def columns_of(picture, side=24):
    """Masked, painted and whole images, ``(B, H, W, 3)`` each, of a picture without titles."""
    rows = picture.reshape(-1, side + GAP, 3, side + GAP, 3)[:, :side, :, :side]
    return rows.transpose(2, 0, 1, 3, 4).astype(int)


@pytest.mark.parametrize('norm_target', [None, 7])
def test_it_shows_what_was_seen_and_what_was_painted(norm_target):
    """A perfect model paints the images themselves, in the units of its targets; what is visible stays the image.
    Bug: the whole painting, also where the model saw the answer; or targets shown as if they were pixels."""
    model = simmim(norm_target=norm_target)
    pixels = torch.rand(2, 3, 24, 24) * 255
    images = (pixels - 100) / 50
    mask = draw_mask(2, (3, 3), 0.5)
    hidden = mask.repeat_interleave(8, 1).repeat_interleave(8, 2).numpy()
    painted = images if norm_target is None else normalise_locally(images, norm_target)
    masked, filled, whole = columns_of(reconstruction(images, painted, mask, model))
    expected = pixels.permute(0, 2, 3, 1).numpy()
    assert np.abs(whole - expected).max() < 1 and np.abs(filled - expected).max() < 1
    assert (masked[hidden] == 128).all() and (masked[~hidden] == whole[~hidden]).all()
    nothing = columns_of(reconstruction(images, torch.zeros_like(images), mask, model))[1]
    assert (nothing[~hidden] == whole[~hidden]).all()
    if norm_target is None:
        assert (nothing[hidden] == 100).all()  # zero is the mean
    else:
        assert np.abs(nothing[hidden].mean() - expected[hidden].mean()) < 10  # the average around, without detail
        assert nothing[hidden].std() < 0.5 * expected[hidden].std()


@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_other_channels_become_colours(channels):
    """Grey of one, the first three of more. Bug: an error in the middle of a night."""
    pixels = torch.rand(1, channels, 24, 24) * 255
    images, mask = (pixels - 100) / 50, torch.zeros(1, 3, 3, dtype=torch.bool)
    whole = columns_of(reconstruction(images, images, mask, simmim(channels)))[2]
    first = pixels[0, [0, 0, 0] if channels == 1 else [*range(min(channels, 3))]].permute(1, 2, 0).numpy()
    assert np.abs(whole[0, ..., : first.shape[2]] - first).max() < 1
    assert channels != 2 or (whole[..., 2] == 0).all()


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (0, 65535), (-2, 3)])
def test_values_of_any_range_are_seen(low, high):
    """Images of 16 bit, of 0 to 1, and those that the pipeline has normalised. Bug: black pictures, or white ones."""
    images = torch.linspace(0, 1, 24 * 24).reshape(1, 1, 24, 24).expand(-1, 3, -1, -1) * (high - low) + low
    mask = torch.zeros(1, 3, 3, dtype=torch.bool)
    whole = columns_of(reconstruction(images, images, mask, simmim(mean=None, norm_target=None)))[2]
    np.testing.assert_allclose(whole[0, ..., 0].ravel(), np.linspace(0, 255, 24 * 24), atol=1)


def read(path):
    return np.asarray(Image.open(path).convert('RGB')).astype(int)


@needs('mmcv')
@pytest.mark.usefixtures('own_process')
def test_a_training_with_pictures_ends_in_the_same_weights(tmp_path):
    """With random crops, flips, masks and paths, a frozen part, and without a seed for each epoch. Bug: pictures that
    draw from the training's random numbers, or leave the model as in a test."""
    write_pictures(tmp_path / 'pictures')
    frozen = "model['backbone'].update(frozen_stages=1)\n"
    found = {}
    for name, hooks in {'plain': '', 'drawn': DRAWING[1:-1]}.items():
        config = write_config(tmp_path, f'{name}.py', frozen, hooks=f'[{hooks}]')
        train(prepare_training(str(config), work_dir=name))
        found[name] = read_checkpoint(latest_checkpoint(name))
    for part in ('state_dict', 'optimizer'):
        assert same(found['drawn'][part], found['plain'][part])
    assert not Path('plain/reconstructions').exists()
    files = sorted(Path('drawn/reconstructions').iterdir())
    assert [file.name for file in files] == ['epoch_0.png', 'epoch_1.png', 'epoch_2.png']
    first, *others = map(read, files)
    titles, images = 2 * 14, first[28:]
    assert images.shape == (3 * (24 + GAP), 3 * (32 + GAP), 3)
    assert (first[:titles] < 128).any() and first[titles - 1].min() > 128
    columns = images.reshape(-1, 3, 32 + GAP, 3).transpose(1, 0, 2, 3)
    for other in others:  # the same images through the same masks, painted anew
        again = other[28:].reshape(-1, 3, 32 + GAP, 3).transpose(1, 0, 2, 3)
        assert (again[[0, 2]] == columns[[0, 2]]).all() and (again[1] != columns[1]).any()


@needs('mmcv')
@pytest.mark.usefixtures('own_process')
def test_colours_are_those_of_the_file(tmp_path):
    """Bug: pictures in which red and blue are exchanged, with or without the preprocessor's swap."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    Image.new('RGB', (40, 40), (250, 120, 10)).save(folder / 'x.png')
    for swap in (True, False):
        hooks = "[dict(type='swinv2_mm.ReconstructionHook', num_pictures=1, interval=9)]"
        extra = f"model['data_preprocessor'].update(bgr_to_rgb={swap})\ntrain_dataloader.update(batch_size=1)\n"
        config = write_config(tmp_path, f'{swap}.py', extra, hooks=hooks, max_epochs=1)
        train(prepare_training(str(config), work_dir=str(swap)))
        whole = read(f'{swap}/reconstructions/epoch_1.png')[28:52, -GAP - 32 : -GAP]  # the last, though it was not due
        assert np.abs(whole - [250, 120, 10]).max() <= 1


@HOOKS.register_module()
class FillDiskHook(Hook):
    """Make the folder of the pictures a file, so that none can be written."""

    def before_run(self, runner):
        Path(runner.work_dir, 'reconstructions').touch()


@needs('mmcv')
@pytest.mark.usefixtures('own_process')
def test_a_picture_that_cannot_be_written_is_a_warning(tmp_path, capfd):
    """Bug: a training of weeks that ends for a picture."""
    write_pictures(tmp_path / 'pictures', 2)
    hooks = f"[dict(type='FillDiskHook'), {DRAWING[1:-1]}]"
    runner = train(prepare_training(str(write_config(tmp_path, hooks=hooks, max_epochs=1)), work_dir='run'))
    assert runner.epoch == 1 and 'epoch_1.png was not written' in capfd.readouterr().out
    assert Path('run/reconstructions').is_file()


def test_a_picture_is_whole_or_not_there(tmp_path, monkeypatch):
    """Bug: half a file under its final name, after a kill."""

    def fail(self, file, **options):
        Path(file).write_bytes(b'\x89PNG')
        raise OSError('full')

    monkeypatch.setattr(Image.Image, 'save', fail)
    with pytest.raises(OSError, match='full'):
        reconstructions._write(np.zeros((4, 4, 3), np.uint8), tmp_path / 'pictures' / 'epoch_1.png')
    assert [*(tmp_path / 'pictures').iterdir()] == []


def test_modules_keep_their_modes_and_generators_their_state(tmp_path):
    """Also a norm that another hook has put into evaluation. Bug: `train()` for all of them."""
    model = simmim().train()
    model.backbone.stages[0].blocks[0].norm1.eval()
    modes = [module.training for module in model.modules()]
    data = [{'inputs': torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8)} for _ in range(2)]
    loader = SimpleNamespace(dataset=data)
    cfg = SimpleNamespace(get=lambda key: None)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    ReconstructionHook(num_pictures=2)._picture(SimpleNamespace(model=model, train_dataloader=loader, cfg=cfg))
    assert [module.training for module in model.modules()] == modes
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == before


@pytest.mark.parametrize('arguments', [{'interval': 0}, {'num_pictures': 1.5}])
def test_wrong_arguments_are_named(arguments):
    """Bug: a division by zero after the first epoch."""
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ReconstructionHook(**arguments)


def trained(folder, extra='', **settings):
    cfg = prepare_training(str(write_config_of_memory(folder, extra=extra, **settings)), work_dir=str(folder / 'run'))
    return train(cfg).model.state_dict()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_drawing_changes_nothing_of_the_training(tmp_path, by_epoch):
    """The weights after a run with pictures are those without; the pictures are there by their numbers.

    Bug: masks, augmentation or drop path from the training's generators, or a model that stays in evaluation.
    """
    settings = {}
    if not by_epoch:
        settings = dict(sampler='InfiniteSampler', train_cfg='dict(by_epoch=False, max_iters=5)', by_epoch=False)
    hook = '\ncustom_hooks.append(dict(type="swinv2_mm.ReconstructionHook", interval=2, num_pictures=3))\n'
    drawn, plain = tmp_path / 'drawn', tmp_path / 'plain'
    drawn.mkdir()
    plain.mkdir()
    with_pictures = trained(drawn, hook, **settings)
    without = trained(plain, **settings)
    assert all(torch.equal(with_pictures[name], tensor) for name, tensor in without.items())
    kind, numbers = ('epoch', (0, 2, 3)) if by_epoch else ('iter', (0, 2, 4, 5))
    files = sorted(path.name for path in Path(drawn, 'run', 'reconstructions').iterdir())
    assert files == [f'{kind}_{number}.png' for number in numbers]
    first, last = (np.asarray(Image.open(drawn / 'run/reconstructions' / name)) for name in (files[0], files[-1]))
    width = first.shape[1] // 3
    assert (first[:, 2 * width :] == last[:, 2 * width :]).all() and (first[:, :width] == last[:, :width]).all()
    assert (first[:, width : 2 * width] != last[:, width : 2 * width]).any()
