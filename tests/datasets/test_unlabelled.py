"""Pictures without labels: which are found, how they are cropped, and what reaches the model."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from support.versions import needs

from swinv2_mm.datasets.unlabelled import RandomResizedCrop, UnlabelledImages, to_tensor
from swinv2_mm.engine.diagnosis.corrupt_data import DamagedSample, check_samples
from swinv2_mm.errors import UserError


def picture(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((8, 8, 3), 90, np.uint8) if image is None else image)


def found(root, **options):
    dataset = UnlabelledImages(str(root), **options)
    return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]


def test_all_pictures_of_folders_are_found_once(tmp_path):
    """In the order of names, through links, without hidden files. Bug: a link in a circle that never ends, sub-folders
    or upper-case endings that are left out, an order that depends on the disk."""
    for name in ('b/2.png', 'a/x/1.PNG', 'a/0.jpg', '.hidden/3.png'):
        picture(tmp_path / name)
    (tmp_path / 'a/notes.txt').touch()
    (tmp_path / 'a/x/loop').symlink_to(tmp_path, target_is_directory=True)
    everything = [str(tmp_path / name) for name in ('a/0.jpg', 'a/x/1.PNG', 'b/2.png')]
    assert found(tmp_path) == everything
    assert found(tmp_path, data_prefix=dict(img_path='b')) == everything[2:]
    assert found(tmp_path, data_prefix=dict(img_path=['b', 'a/x']))[:2] == [everything[2], everything[1]]
    assert found(tmp_path, indices=2) == everything[:2]


def test_a_folder_without_pictures_is_named(tmp_path):
    """Bug: a training on nothing, or a traceback."""
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(UserError, match=rf'{tmp_path}.*no file that is named as a picture.*notes.txt'):
        UnlabelledImages(str(tmp_path))


def test_crops_have_the_published_shares_and_shapes():
    """Bug: shares of a side instead of the area, aspects that are not symmetric, crops that never touch a border."""
    crop = RandomResizedCrop((64, 48), (0.3, 0.8), (0.5, 2.0))
    np.random.seed(0)
    parts = np.array([crop.draw(300, 400) for _ in range(3000)])
    top, left, rows, columns = parts.T
    shares, aspects = rows * columns / (300 * 400), columns / rows
    assert shares.min() == pytest.approx(0.3, abs=0.01) and shares.max() == pytest.approx(0.8, abs=0.01)
    assert aspects.min() == pytest.approx(0.5, abs=0.02) and aspects.max() > 1.8
    assert (top >= 0).all() and (top + rows <= 300).all() and (left + columns <= 400).all()
    assert {top.min(), left.min()} == {0} and (top + rows).max() == 300 and (left + columns).max() == 400
    # Before the parts that do not fit are drawn again, the logarithm of the aspect is uniform around 0.
    np.random.seed(0)
    square = np.array([RandomResizedCrop((8, 8), (0.01, 0.01), (0.5, 2.0)).draw(900, 900) for _ in range(3000)])
    assert np.log(square[:, 3] / square[:, 2]).mean() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize('size', [(1, 1), (1, 300), (300, 2), (17, 23)])
def test_pictures_of_any_size_are_cropped(size):
    """Narrow ones in the middle. Bug: an empty crop, or an endless search for one that fits."""
    np.random.seed(0)
    for channels in ((), (3,), (6,)):
        image = np.random.randint(0, 256, (*size, *channels), dtype=np.uint8)
        results = RandomResizedCrop((32, 16))(dict(img=image))
        assert results['img'].shape[:2] == results['img_shape'] == (16, 32)
        assert to_tensor(results['img']).shape == (*(channels or (1,)), 16, 32)


def test_a_crop_is_that_part_of_the_picture():
    """Bug: rows taken for columns, or aliasing: a fine pattern that becomes coarse noise where a photo shrinks."""
    ramp = np.tile(np.arange(256, dtype=np.float32), (128, 1))
    crop = RandomResizedCrop((64, 64))
    np.random.seed(3)
    _, left, _, columns = crop.draw(128, 256)
    np.random.seed(3)
    row = crop(dict(img=ramp))['img'][0]
    assert (row[0], row[-1]) == pytest.approx((left + columns / 128 - 0.5, left + columns * 127 / 128 - 0.5), abs=1)
    checks = (np.indices((1024, 1024)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.ptp(crop(dict(img=checks))['img'].astype(int)) < 40


def test_values_reach_the_model_as_they_are_in_the_file():
    """Bug: 16 bit cut to 8, or a tensor type that torch has no arithmetic for."""
    for image, kind in ((np.uint8([[7]]), torch.uint8), (np.uint16([[60000]]), torch.float32)):
        tensor = to_tensor(image)
        assert tensor.dtype == kind and tensor.item() == image.item()


def pipeline(**loading):
    return [
        dict(type='LoadImageFromFile', **loading),
        dict(type='swinv2_mm.RandomResizedCrop', scale=(32, 32)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='swinv2_mm.PackImages'),
    ]


def of(folder, steps):
    import mmcv.transforms  # noqa: F401

    return DATASETS.build(dict(type='swinv2_mm.UnlabelledImages', data_root=str(folder), pipeline=steps))


@needs('mmcv')
def test_files_of_all_kinds_become_three_channels(tmp_path):
    """Grey, palette, alpha, 16 bit scaled by its range, turned by EXIF. Bug: batches of several numbers of channels."""
    from PIL import Image

    image = Image.fromarray(np.full((20, 40), 100, np.uint8))
    for kind in ('L', 'P', 'RGBA', 'RGB'):
        image.convert(kind).save(tmp_path / f'{kind}.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert('RGB').save(tmp_path / 'turned.jpg', exif=exif)
    picture(tmp_path / '16.png', np.full((20, 40), 100 * 256, np.uint16))
    dataset = of(tmp_path, pipeline())
    for index in range(len(dataset)):
        inputs = dataset[index]['inputs']
        assert inputs.shape == (3, 32, 32) and inputs.dtype == torch.uint8
        assert inputs.float().mean().item() == pytest.approx(100, abs=1)
    turned = of(tmp_path, pipeline()[:1])
    path = next(i for i in range(len(turned)) if turned.get_data_info(i)['img_path'].endswith('turned.jpg'))
    assert turned[path]['img'].shape == (40, 20, 3)


@needs('mmcv')
@pytest.mark.parametrize(('channels', 'loading'), [(1, 'grayscale'), (4, 'unchanged')])
def test_one_and_four_channels_train(tmp_path, channels, loading):
    """16 bit, normalised in the units of the file. Bug: a preprocessor or a head for three channels alone."""
    picture(tmp_path / '0.png', np.full((40, 40, 4) if channels == 4 else (40, 40), 30000, np.uint16))
    kind = dict(color_type='unchanged') if channels == 4 else dict(color_type=loading)
    dataset = of(tmp_path, pipeline(**kind))
    mean, value = (30000.0, 30000) if channels == 4 else (117.0, 117)
    model = MODELS.build(
        dict(
            type='swinv2_mm.SimMIM',
            mask_patch_size=8,
            data_preprocessor=dict(type='ImgDataPreprocessor', mean=[mean], std=[100.0]),
            backbone=dict(
                type='swinv2_mm.SwinTransformerV2',
                in_channels=channels,
                embed_dims=8,
                depths=(1, 1),
                num_heads=(1, 1),
            ),
        )
    )
    inputs = dataset[0]['inputs']
    assert inputs.shape[0] == channels and inputs.float().mean().item() == pytest.approx(value, rel=0.01)
    batch = model.data_preprocessor(dict(inputs=[inputs]))
    assert batch['inputs'].abs().max() < 1
    assert model(**batch, mode='loss')['loss'].isfinite()


@needs('mmcv')
def test_a_corrupt_picture_is_named_or_skipped(tmp_path):
    """As for all data. Bug: a traceback of OpenCV, or a training on a grey square."""
    picture(tmp_path / '0.png')
    (tmp_path / '1.png').write_bytes((tmp_path / '0.png').read_bytes()[:30])
    data = dict(type='swinv2_mm.UnlabelledImages', data_root=str(tmp_path), pipeline=pipeline())
    for policy in ('stop', 'skip'):
        cfg = Config(dict(train_dataloader=dict(dataset=dict(data)), model={}, bad_data=policy))
        check_samples(cfg, ['train'])
        dataset = of(tmp_path, cfg.train_dataloader.dataset.pipeline)
        if policy == 'stop':
            with pytest.raises(DamagedSample, match=r'1\.png cannot be used'):
                dataset[1]
        else:
            assert dataset[1]['inputs'].shape == (3, 32, 32)


@pytest.mark.parametrize(
    'wrong', [dict(scale=192), dict(scale=(8, 0)), dict(scale=(8, 8), crop_ratio_range=(0.9, 0.5))]
)
def test_wrong_arguments_are_named(wrong):
    """Bug: an error in a data worker, hours later."""
    with pytest.raises(Exception, match=[*wrong][-1]):
        TRANSFORMS.build(dict(type='swinv2_mm.RandomResizedCrop', **wrong))
