"""Pictures without labels: which files are found, what is cropped from them, and what the model gets."""

import os

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DATASETS, MODELS
from PIL import Image
from support.versions import needs

from swinv2_mm.datasets.unlabelled import PackImages, RandomResizedCrop, UnlabelledImages
from swinv2_mm.engine.diagnosis.corrupt_data import DamagedSample, check_samples
from swinv2_mm.engine.recipe.seeding import seed_worker
from swinv2_mm.errors import UserError


def data_set(root, **arguments):
    return UnlabelledImages(data_root=str(root), serialize_data=False, **arguments)  # which collects garbage


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')


def names_of(dataset, folder):
    return [os.path.relpath(dataset.get_data_info(i)['img_path'], folder) for i in range(len(dataset))]


def test_all_pictures_below_the_folder_are_found_in_the_order_of_their_names(tmp_path):
    """Bug: an order of the disk, with which the seed of a run means other data on another machine; a link that leads
    upwards is followed for ever; notes and thumbnails are trained on."""
    touch(tmp_path, 'b/2.PNG', 'b/10.jpg', 'a.jpeg', 'b/c/d.tif', 'b/notes.txt', '.trash/x.png', 'b/.x.png')
    (tmp_path / 'elsewhere').symlink_to(tmp_path / 'b' / 'c')
    (tmp_path / 'b' / 'up').symlink_to(tmp_path)
    dataset = data_set(tmp_path)
    assert names_of(dataset, tmp_path) == ['a.jpeg', 'b/10.jpg', 'b/2.PNG', 'b/c/d.tif']
    assert dataset.left_out == [f'{tmp_path}/b/notes.txt']


@pytest.mark.parametrize('key', ['img', 'img_path'])
@pytest.mark.parametrize('root', [True, False])
def test_several_folders_are_one_data_set(key, root, tmp_path):
    """By the key of either framework; a folder inside of another counts once. Bug: a picture that is seen twice as
    often, paths relative to another root, or a key that is not known."""
    touch(tmp_path, 'a/1.png', 'a/b/2.png', 'c/3.png')
    folders = [name if root else str(tmp_path / name) for name in ('a', 'a/b', 'c')]
    dataset = data_set(tmp_path if root else '', data_prefix={key: folders})
    assert names_of(dataset, tmp_path) == ['a/1.png', 'a/b/2.png', 'c/3.png']
    assert names_of(data_set(tmp_path, data_prefix={key: 'c/'}), tmp_path) == ['c/3.png']


def test_a_part_of_the_pictures_and_files_of_other_endings(tmp_path):
    """Bug: `indices` of mmengine without effect, or endings in capitals that are not found."""
    touch(tmp_path, *(f'{i}.png' for i in range(4)), 'x.NPY', 'y.npy')
    assert names_of(data_set(tmp_path, indices=2), tmp_path) == ['0.png', '1.png']
    assert names_of(data_set(tmp_path, indices=[3, 0]), tmp_path) == ['3.png', '0.png']
    assert names_of(data_set(tmp_path, img_suffix='.npy'), tmp_path) == ['x.NPY', 'y.npy']


def test_folders_without_pictures_are_told(tmp_path):
    """Bug: a run that starts on nothing, or on one of two folders."""
    touch(tmp_path, 'a/1.png', 'b/x.txt', 'c/d/.hidden.png')
    for folders, words in {
        'b': r'b holds no file .*What it holds: .*x\.txt.* data_prefix .*img_suffix',
        'c': r'c holds no file .*It is empty',
        'gone': r'gone is no folder .*the current folder is .* data_prefix',
        ('a', 'b'): 'b holds no file',
    }.items():
        folders = folders if isinstance(folders, str) else list(folders)
        with pytest.raises(UserError, match=words):
            data_set(tmp_path, data_prefix={'img_path': folders})
    with pytest.raises(UserError, match='data_root is no folder'):
        UnlabelledImages()
    with pytest.raises(ValueError, match=r"dict\(img_path='images'\)"):
        data_set(tmp_path, data_prefix={'pictures': 'a'})


def test_crops_cover_the_picture_as_they_should():
    """Area and shape are uniform in their ranges, the latter in the logarithm; every place occurs. Bug: crops that are
    all upright, lie in a corner, or are smaller than the recipe says."""
    np.random.seed(0)
    crop = RandomResizedCrop((192, 192), crop_ratio_range=(0.2, 0.5))
    height, width = 400, 600
    parts = np.array([crop.draw(height, width) for _ in range(4000)], float)
    top, left, rows, columns = parts.T
    assert (top >= 0).all() and (left >= 0).all() and (top + rows <= height).all() and (left + columns <= width).all()
    area, shape = rows * columns / (height * width), np.log(columns / rows) / np.log(4 / 3)
    for values, low, high in ((area, 0.2, 0.5), (shape, -1, 1)):
        quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, np.linspace(low, high, 5), atol=0.04 * (high - low))
    for values in (top / (height - rows), left / (width - columns)):
        np.testing.assert_allclose(np.quantile(values, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.04)


@pytest.mark.parametrize(
    ('size', 'part'),
    [
        ((100, 1000), (0, 433, 100, 133)),  # as torchvision: 4 : 3, in the middle
        ((1000, 100), (433, 0, 133, 100)),
        ((1, 7), (0, 3, 1, 1)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_of_a_picture_that_no_part_fits_into_the_middle_is_taken(size, part):
    """Bug: an endless loop, or a crop without pixels."""
    assert RandomResizedCrop((32, 32), crop_ratio_range=(0.9, 1.0)).draw(*size) == part


def test_the_whole_picture_is_a_crop():
    """Bug: a last row or column that no crop ever has."""
    assert RandomResizedCrop((8, 8), (1.0, 1.0), (1.0, 1.0)).draw(50, 50) == (0, 0, 50, 50)


def test_crops_follow_the_seed_of_the_worker():
    """Bug: each worker, and each epoch, draws the same crops; or a resumed run draws others."""
    crop, drawn = RandomResizedCrop((8, 8)), {}
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        seed_worker(0)
        parts = [crop.draw(100, 100) for _ in range(3)]
        assert drawn.setdefault(seed, parts) == parts
    assert drawn[1] != drawn[2]


@pytest.mark.parametrize('scale', [(32, 24), (30, 23)])
@pytest.mark.parametrize('channels', [(), (1,), (2,), (3,), (4,), (5,), (13,)])
@pytest.mark.parametrize('kind', [np.uint8, np.uint16, np.int16, np.int32, bool, np.float16, np.float32])
def test_pictures_of_any_type_are_averaged(kind, channels, scale):
    """A fine pattern becomes its mean, in every channel. Bug: pixels that are picked out, which makes noise of
    photographs; an error of OpenCV's for more than four channels, or for types that it does not know."""
    fine = np.logical_xor.outer(np.arange(192) % 4 < 2, np.arange(256) % 4 < 2)
    brightness = 8 * np.arange(1, 1 + max([1, *channels]))
    brightness = np.ones_like(brightness) if kind is bool else brightness
    picture = (fine[..., None] * brightness).astype(kind).reshape(*fine.shape, *channels)
    found = RandomResizedCrop(scale, (1.0, 1.0))({'img': picture})
    packed = PackImages()(found)['inputs']
    assert packed.shape == (len(brightness), *scale[::-1]) and found['img_shape'] == scale[::-1]
    assert packed.dtype == (torch.uint8 if kind is np.uint8 else torch.float32)
    off = (packed.float() / torch.tensor(brightness)[:, None, None] - 0.5).abs().max()
    assert off < (0.01 if scale == (32, 24) else 0.2)


def test_a_picture_smaller_than_the_crop_is_enlarged_smoothly():
    """Bug: a border without content, or blocks of equal pixels."""
    ramp = np.tile(np.arange(0, 160, 20, dtype=np.uint8), (6, 1))
    found = RandomResizedCrop((64, 48), (1.0, 1.0), (4 / 3, 4 / 3))({'img': ramp})['img']
    assert found.shape == (48, 64) and (np.diff(found.astype(int)) >= 0).all() and len(np.unique(found)) > 40


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'scale': 192}, r'scale=192 .*\(columns, rows\)'),
        ({'scale': (0, 5)}, 'scale='),
        ({'scale': (9.5, 5)}, 'scale='),
        ({'scale': (9, 9), 'crop_ratio_range': (67, 100)}, 'crop_ratio_range'),
        ({'scale': (9, 9), 'crop_ratio_range': (1.0, 0.5)}, 'crop_ratio_range'),
        ({'scale': (9, 9), 'aspect_ratio_range': (0, 1)}, 'aspect_ratio_range'),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    """Bug: per cent, after which every crop is the middle of its picture."""
    with pytest.raises(ValueError, match=words):
        RandomResizedCrop(**arguments)


def pipeline(**loading):
    return [
        dict(type='LoadImageFromFile', **loading),
        dict(type='swinv2_mm.RandomResizedCrop', scale=(32, 24), crop_ratio_range=(1.0, 1.0)),
        dict(type='RandomFlip', prob=1.0),
        dict(type='swinv2_mm.PackImages'),
    ]


def of(folder, steps):
    import mmcv.transforms  # noqa: F401

    return DATASETS.build(dict(type='swinv2_mm.UnlabelledImages', data_root=str(folder), pipeline=steps))


def saved(folder, mode, values):
    """Files of one kind each, 20 x 30; returns the path."""
    path = folder / f'{mode}.png'
    if mode == '16 bit':
        assert cv2.imwrite(str(path), values.astype(np.uint16) * 257)
    elif mode == 'turned':
        exif = Image.Exif()
        exif[0x0112] = 6
        path = path.with_suffix('.jpg')
        Image.fromarray(values.T.copy()).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path, exif=exif, quality=100)
    else:
        Image.fromarray(values).convert(mode).save(path)
    return path


@needs('mmcv')
@pytest.mark.parametrize('mode', ['L', 'RGB', 'P', 'RGBA', '16 bit', 'turned'])
@pytest.mark.parametrize('channels', [1, 3])
def test_every_kind_of_file_gives_the_same_picture(mode, channels, tmp_path):
    """Grey, colour, palette, alpha, 16 bit and photographs turned by EXIF, read as colour or grey. Bug: 16 bit cut off
    at 255, or pictures that lie on their side."""
    values = np.add.outer(np.arange(20) * 8, np.arange(30)).astype(np.uint8)
    path = saved(tmp_path, mode, values)
    if mode == 'turned':
        values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert values.shape != cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape[:2]
    loading, _, _, packing = pipeline(color_type='color' if channels == 3 else 'grayscale')
    (inputs,) = [sample['inputs'] for sample in of(tmp_path, [loading, packing])]
    assert inputs.shape == (channels, *values.shape) and inputs.dtype == torch.uint8
    assert np.abs(inputs.numpy() - values.astype(int)).max() <= 1


@needs('mmcv')
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_mmengines_preprocessor_takes_what_is_packed(channels, tmp_path):
    """16 bit keep their values in a file that is read unchanged; one mean serves any number of channels. Bug: a
    pipeline for three channels alone, or another scale than that of mean and std."""
    values = np.random.default_rng(0).integers(0, 65536, (24, 32, channels)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / 'x.png'), values)
    dataset = of(tmp_path, pipeline(color_type='unchanged'))
    batch = pseudo_collate([dataset[0], dataset[0]])
    given = ImgDataPreprocessor(mean=[30000.0], std=[20000.0])(batch, True)
    assert given['inputs'].shape == (2, channels, 24, 32)
    wanted = (torch.from_numpy(values[:, ::-1].astype(np.float32)).permute(2, 0, 1) - 30000) / 20000
    torch.testing.assert_close(given['inputs'][1], wanted)
    assert given['data_samples'][0].img_path == str(tmp_path / 'x.png')


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


@needs('mmcv')
@pytest.mark.parametrize(('channels', 'loading'), [(1, 'grayscale'), (4, 'unchanged')])
def test_one_and_four_channels_train(tmp_path, channels, loading):
    """16 bit, normalised in the units of the file. Bug: a preprocessor or a head for three channels alone."""
    assert cv2.imwrite(str(tmp_path / '0.png'), np.full((40, 40, channels), 30000, np.uint16))
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
    assert cv2.imwrite(str(tmp_path / '0.png'), np.full((8, 8, 3), 90, np.uint8))
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
            assert dataset[1]['inputs'].shape == (3, 24, 32)
