"""Bad input to any tool ends in one paragraph that names it, exit code 2, and a folder that is as it was."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from support.tiny_fixtures import ROOT
from support.tiny_training import write_config

from swinv2_mm.datasets import ShapesSpec, write_shapes

DETECTION, SEGMENTATION = (ROOT / 'configs' / f'{name}_swinv2_t_shapes.py' for name in ('maskrcnn', 'upernet'))
INSTANCES = 'data/shapes/annotations/instances_training.json'


@pytest.fixture(scope='module')
def material(tmp_path_factory):
    """A tiny config, foreign files, and a few shapes."""
    folder = tmp_path_factory.mktemp('material')
    write_shapes(ShapesSpec(size=32, num_train=2, num_val=1), folder / 'data' / 'shapes')
    write_config(folder)
    (folder / 'folder').mkdir()
    (folder / 'folder.py').mkdir()
    (folder / 'noise.py').write_bytes(bytes(range(128, 256)))
    (folder / 'list.json').write_text('[1, 2]')
    (folder / 'raises.py').write_text('x = 1\nraise RuntimeError("boom")\n')
    (folder / 'exits.py').write_text('import sys\nsys.exit(3)\n')
    (folder / 'orphan.py').write_text("_base_ = 'gone.py'\n")
    (folder / 'empty.pth').write_bytes(b'')
    (folder / 'image.pth').write_bytes(b'\x89PNG\r\n\x1a\n')
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / 'other.pth')
    torch.save({'state_dict': 3}, folder / 'three.pth')
    torch.save({3: torch.ones(2)}, folder / 'numbered.pth')
    return folder


@pytest.fixture
def place(own_process, material, tmp_path):
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def refuse(run_tool, place, capfd):
    """Call a tool with a mistake; returns what it says, after checking how it says it and that nothing changed."""

    def contents():
        return {path: None if path.is_dir() else path.read_bytes() for path in place.rglob('*')}

    def call(tool, *arguments):
        before = contents()
        if tool == 'make_shapes':  # returns its exit code
            code = runpy.run_path(str(ROOT / 'tools' / 'make_shapes.py'))['main'](arguments)
        else:
            code = run_tool(tool, *arguments)
        out, err = capfd.readouterr()
        errors = [line for line in err.splitlines() if not line.startswith('warning: ')]
        assert code == 2 and len(errors) == 1 and errors[0].startswith('error: '), (code, out, err)
        assert 'Traceback' not in out + err
        assert contents() == before
        return errors[0]

    return call


BACKBONE = [
    ('window_size=0', 'window_size[0]=0'),
    ('window_size=[[4,4,4],4]', 'pair'),
    ('depths=(-1,2)', 'depths[0]=-1'),
    ('num_heads=(3,5)', 'does not divide'),
    ('embed_dims=7.5', 'whole number'),
    ('out_indices=(0,5)', 'out of [0, 1]'),
    ('out_indices=(1,1)', 'each once'),
    ('out_indices=(1.0,)', 'out_indices'),
    ('arch=tinny', 'tiny, small'),
    ('pretrained_window_sizes=(4,4,4)', '3 entries for 2 stages'),
    ('drop_path_rate=-0.1', 'probability'),
    ('drop_path_rate=text', 'probability'),
    ('mlp_ratio=text', 'positive number'),
    ('mlp_ratio=0.01', 'leaves no channel'),
    ('qkv_bias=text', 'True or False'),
    ('frozen_stages=1.0', 'frozen_stages'),
    ('windowsize=4', 'Did you mean window_size'),
    ('pretrain_img_size=224', 'leave it out: images of any size'),  # one of Swin V1's
    ('type=swinv2_mm.SwinTransfomerV2', 'Did you mean swinv2_mm.SwinTransformerV2'),
    ('type=SwinTransformerV2', 'Did you mean swinv2_mm.SwinTransformerV2'),
    ('init_cfg.type=Pretraned', 'Did you mean Pretrained'),
]
RUN = [
    ('model=3', 'model=3 must be a dict'),
    ('model.type=TinyRegresor', 'Did you mean TinyRegressor'),
    ('model.unknown=1', 'model.unknown: TinyRegressor has no such argument'),
    ('model.backbone=text', 'must be a dict with a type'),
    ('train_dataloader.batch_size=0', 'at least 1'),
    ('train_dataloader.num_workers=-1', 'at least 0'),
    ('train_dataloader.bogus=1', "argument 'bogus'"),
    ('train_dataloader.persistent_workers=True', 'num_workers > 0'),
    ('train_dataloader.dataset.type=TinyImage', 'Did you mean TinyImages'),
    ('train_dataloader.dataset.bogus=1', 'train_dataloader.dataset.bogus: TinyImages'),
    ('train_dataloader.sampler.type=DefaultSample', 'Did you mean DefaultSampler'),
    ('train_cfg.max_epochs=0', 'max_epochs=0'),
    ('train_cfg.max_epochs=text', "max_epochs='text'"),
    ('train_cfg.val_interval=0', 'val_interval=0'),
    ('train_cfg.max_iters=9', 'EpochBasedTrainLoop has no such argument'),
    ('train_cfg.by_epoch=text', 'by_epoch=True'),
    ('val_cfg=None', 'belong together'),
    ('val_evaluator.type=TinyErorr', 'Did you mean TinyError'),
    ('optim_wrapper=text', 'must be a dict'),
    ('optim_wrapper.optimizer.type=AdmaW', 'Did you mean AdamW'),
    ('optim_wrapper.optimizer.lr=-1', 'lr=-1'),
    ('optim_wrapper.optimizer.betas=(2,3)', 'optim_wrapper.optimizer: AdamW cannot be built: Invalid beta'),
    ('optim_wrapper.constructor=LayerDecay', 'optim_wrapper.constructor=LayerDecay is no registered'),
    ('optim_wrapper.bogus=1', 'bogus'),
    ('optim_wrapper.clip_grad.bogus=1', 'clip_grad'),
    ('optim_wrapper.clip_grad.max_norm=-1', 'max_norm=-1'),
    ('param_scheduler.0.type=LinaerLR', 'Did you mean LinearLR'),
    ('param_scheduler.0.begin=9', 'param_scheduler.0: LinearLR'),
    ('param_scheduler.1.milestones=text', 'milestones'),
    ('default_hooks.checkpoint.intervall=2', 'intervall'),
    ('custom_hooks.0.type=EpochSeedHook', 'Did you mean swinv2_mm.EpochSeedHook'),
    ('randomness.seed=text', 'seed'),
    ('runner_type=swinv2_mm.Zero1Runer', 'Did you mean swinv2_mm.Zero1Runner'),
    ('load_from=other.pth', 'does not fit'),
    ('load_from=numbered.pth', 'no named weights'),
    ('load_from=folder', 'is a folder'),
    ('load_from=', 'must be the path of a checkpoint'),
    ('default_hooks.checkpoint.out_dir=tiny.py', 'with default_hooks.checkpoint.out_dir'),
]
DATA = [
    (DETECTION, 'model.neck.in_channels=[96,192,384,99]', 'model.neck.lateral_convs.3.conv takes 99 channels'),
    (DETECTION, 'model.backbone.out_indices=(0,1,2)', 'backbone emits maps of 96, 192, 384'),
    (DETECTION, 'model.roi_head.bbox_head.num_classes=80', 'which has 3 classes (disk, ring, star)'),
    (DETECTION, 'model.roi_head.bbox_head.loss_cls.type=CrossEntropyLos', 'model.roi_head.bbox_head.loss_cls.type'),
    (DETECTION, 'train_dataloader.dataset.pipeline.2.type=RandomFlipp', 'pipeline.2.type=RandomFlipp'),
    (DETECTION, 'train_dataloader.dataset.pipeline.2.prob=3', 'pipeline.2: RandomFlip'),
    (DETECTION, "train_dataloader.dataset.metainfo.classes=('disk','ring','sun')", 'sun is not in'),
    (DETECTION, "train_dataloader.dataset.metainfo.classes=('ring','disk','star')", 'another order'),
    (DETECTION, "train_dataloader.dataset.metainfo.classes=('a','b','c')", 'none of the classes'),
    (DETECTION, 'train_dataloader.dataset.ann_file=annotations', 'cannot be read'),
    (SEGMENTATION, 'model.decode_head.num_classes=150', 'which has 4 classes'),
    (SEGMENTATION, 'model.decode_head.in_channels=[96,192,384,9]', 'takes 9 channels'),
    (SEGMENTATION, 'model.backbone.out_indices=(0,1)', 'backbone emits maps of 96, 192'),
    (SEGMENTATION, 'model.decode_head.type=UPerHed', 'Did you mean UPerHead'),
]
ARGUMENTS = [
    *(
        ('train', [config, '--work-dir', 'run'], hint)
        for config, hint in [
            ('folder.py', 'does not exist'),
            ('noise.py', 'noise.py'),
            ('list.json', 'list.json'),
            ('raises.py', 'line 2'),
            ('exits.py', 'line 2'),
            ('orphan.py', 'gone.py'),
        ]
    ),
    ('train', ['tiny.py', '--work-dir', 'run', '--amp', '--cfg-options', 'optim_wrapper.bogus=1'], 'bogus'),
    ('train', ['tiny.py', '--work-dir', '/proc/nonexistent/run'], 'cannot be written to'),
    ('train', ['tiny.py', '--work-dir', 'tiny.py/run'], 'is a file'),
    *(
        ('test', ['tiny.py', name], name)
        for name in ('folder', 'empty.pth', 'image.pth', 'other.pth', 'three.pth', 'numbered.pth')
    ),
    ('test', ['tiny.py', 'other.pth', '--wait-time', 'x'], '--wait-time'),
    ('test', ['tiny.py', 'other.pth', '--out', 'tiny.py/x.pkl'], 'is a file'),
    *(('convert_ckpt', [name, 'out.pth'], name) for name in ('folder', 'empty.pth', 'image.pth', 'numbered.pth')),
    ('convert_ckpt', ['other.pth', 'other.pth'], 'exists'),
    ('convert_ckpt', ['other.pth', 'out.txt'], '.safetensors'),
    ('make_shapes', ['out', '--size', '0'], 'size'),
    ('make_shapes', ['out', '--size', '100000000'], 'size'),
    ('make_shapes', ['out', '--num-train', '-5'], 'num_train'),
    ('make_shapes', ['out', '--classes', 'cube'], 'cube'),
    ('make_shapes', ['folder/../tiny.py'], 'tiny.py'),
    *(
        (tool, ['tiny.py', *shape, '--cfg-options', option], hint)
        for tool, shape in [('window_report', ['--shape', '64']), ('print_param_groups', [])]
        for option, hint in [
            ('model=3', 'must be a dict'),
            ('model.backbone.window_size=0', 'window_size'),
            ('model.backbone.bogus=1', 'bogus'),
            ('model.backbone=3', 'backbone'),
        ]
    ),
    *(
        ('model_zoo', ['tiny.py', '--shape', '64', '--cfg-options', option], hint)
        for option, hint in [
            ('model=3', 'must be a dict'),
            ('model.backbone.window_size=0', 'window_size'),
            ('model.type=No', 'model.type'),
        ]
    ),
    ('window_report', ['tiny.py', '--shape', '9999999999'], '--shape'),
    ('window_report', ['tiny.py', '--shape', '64', '--windows', '0'], '--windows'),
    ('model_zoo', ['tiny.py', '--shape', '0'], '--shape'),
    ('print_param_groups', ['tiny.py', '--cfg-options', 'optim_wrapper.optimizer.type=AdmaW'], 'Did you mean AdamW'),
    ('plot_run', ['gone'], 'gone'),
]
CASES = [
    *(('train', ['tiny.py', '--work-dir', 'run', '--cfg-options', f'model.backbone.{o}'], h) for o, h in BACKBONE),
    *(('train', ['tiny.py', '--work-dir', 'run', '--cfg-options', option], hint) for option, hint in RUN),
    *(('train', [config, '--work-dir', 'run', '--cfg-options', option], hint) for config, option, hint in DATA),
    *ARGUMENTS,
]


@pytest.mark.parametrize(
    ('tool', 'arguments', 'hint'), CASES, ids=lambda value: ' '.join(map(str, value)) if isinstance(value, list) else ''
)
def test_bad_input_is_named(tool, arguments, hint, refuse):
    """Bug: a traceback of mmengine's, or an empty work dir, or a run that learns nothing, in place of the reason."""
    assert hint in refuse(tool, *arguments)


@pytest.mark.parametrize(
    ('change', 'hint'),
    [
        (lambda content: json.dumps(content)[:-40], 'corrupt'),
        (lambda content: '[1]', 'holds a list'),
        (lambda content: 'images: []', 'no JSON'),
        (lambda content: {'images': content['images']}, 'no list of categories'),
        (lambda content: content | {'images': []}, 'lists no images'),
        (lambda content: content | {'annotations': [{'segments_info': []}]}, 'panoptic'),
        (lambda content: content | {'annotations': [a | {'iscrowd': 1} for a in content['annotations']]}, 'crowd ('),
        (lambda content: content | {'images': [image | {'id': 10**6} for image in content['images']]}, 'image_id'),
        (
            lambda content: (
                content | {'categories': [{'id': c['id'] + 7, 'name': c['name']} for c in content['categories']]}
            ),
            'category_id',
        ),
    ],
    ids=['truncated', 'list', 'yaml', 'parts', 'no images', 'panoptic', 'crowds', 'ids', 'categories'],
)
def test_annotations_that_do_not_fit_are_refused(change, hint, refuse):
    """Bug: a data set that is empty, or whose labels are shifted, is trained on for days."""
    content = change(json.loads(Path(INSTANCES).read_text()))
    Path(INSTANCES).write_text(content if isinstance(content, str) else json.dumps(content))
    assert hint in refuse('train', DETECTION, '--work-dir', 'run')


CUSTOM = """
from mmengine.model import BaseModel
from mmengine.registry import MODELS


@MODELS.register_module(force=True)
class Custom(BaseModel):
    def __init__(self):
        super().__init__()
        self.table = {}['missing']

    def forward(self):
        pass
"""


def test_an_error_in_code_of_the_user_keeps_its_traceback(run_tool, place, monkeypatch):
    """Bug: what a custom module raises is taken for a wrong config, and its author cannot find it."""
    Path('custom_of_user.py').write_text(CUSTOM)
    monkeypatch.syspath_prepend(str(place))
    extra = "model = dict(type='Custom')\ncustom_imports['imports'] += ['custom_of_user']\n"
    write_config(place, 'custom.py', extra=extra)
    with pytest.raises(KeyError, match='missing') as error:
        run_tool('train', 'custom.py', '--work-dir', 'run')
    if sys.version_info >= (3, 11):
        assert 'while building model' in error.value.__notes__
    assert not Path('run').exists()


def test_an_environment_variable_shows_the_traceback_of_a_mistake(run_tool, place, monkeypatch, capsys):
    monkeypatch.setenv('SWINV2_MM_TRACEBACK', '1')
    assert run_tool('train', 'tiny.py', '--cfg-options', 'optim_wrapper.optimizer.betas=(2,3)') == 2
    err = capsys.readouterr().err
    assert 'Traceback' in err and 'Invalid beta' in err and 'build_from_cfg' in err
