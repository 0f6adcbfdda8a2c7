"""Small trained-looking models: a config and a checkpoint with random values for each kind that is exported."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from support import ROOT

from swinv2_mm.compat import VERSION
from swinv2_mm.engine.config import load_config
from swinv2_mm.inference.export.graph import OLDEST

# torch's exporter of older versions has other names.
collect_ignore_glob = ['test_*.py'] if VERSION < OLDEST else []

# Two stages, of which one shifts its windows: torch.export takes seconds for each block.
BACKBONE = (
    'backbone=dict(embed_dims=16, depths=(2, 1), num_heads=(1, 2), window_size=4, out_indices=(0, 1), init_cfg=None)'
)
CONFIGS = {
    'upernet': (
        'upernet_swinv2_t_shapes.py',
        f'model = dict({BACKBONE}, decode_head=dict(in_channels=[16, 32], in_index=[0, 1], channels=16), '
        'auxiliary_head=dict(in_channels=32, in_index=1, channels=16))',
    ),
    'retinanet': (
        'retinanet_swinv2_t.py',
        f'model = dict({BACKBONE}, neck=dict(in_channels=[16, 32], out_channels=16, start_level=0, num_outs=5), '
        'bbox_head=dict(num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1))',
    ),
    'atss': (
        'atss_swinv2_t.py',
        f'model = dict({BACKBONE}, neck=dict(in_channels=[16, 32], out_channels=16, start_level=0, num_outs=5), '
        'bbox_head=dict(num_classes=3, in_channels=16, feat_channels=32, stacked_convs=1))',
    ),
    'maskrcnn': (
        'maskrcnn_swinv2_t.py',
        f'model = dict({BACKBONE}, neck=dict(in_channels=[16, 32], out_channels=16), '
        'rpn_head=dict(in_channels=16, feat_channels=16, anchor_generator=dict(scales=[4])), '
        'roi_head=dict(bbox_roi_extractor=dict(out_channels=16), mask_roi_extractor=dict(out_channels=16), '
        'bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=4), '
        'mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=2, num_classes=4)), '
        'test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(score_thr=0.93, max_per_img=20)))',
    ),
}
CONFIGS['fasterrcnn'] = (
    CONFIGS['maskrcnn'][0],
    CONFIGS['maskrcnn'][1]
    + "\nmodel.update(type='FasterRCNN')\nmodel['roi_head'].update(mask_roi_extractor=None, mask_head=None)",
)
# Random heads are undecided: their scores are as good as equal.
DECIDED = {
    'rpn_head.rpn_cls.weight': 4,
    'roi_head.bbox_head.fc_cls.weight': 6,
    'roi_head.mask_head.conv_logits.weight': 10,
}


@pytest.fixture
def trained_model(randomize, tmp_path):
    """Write the config and a checkpoint of a kind of :data:`CONFIGS`; return both paths and the model."""

    def make(kind):
        base, change = CONFIGS[kind]
        config, checkpoint = tmp_path / f'export_{kind}.py', tmp_path / f'{kind}.pth'
        config.write_text(f"_base_ = '{ROOT}/configs/{base}'\n{change}\n")
        cfg = load_config(config)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = randomize(MODELS.build(cfg.model)).eval()
        for name, parameter in model.named_parameters():
            parameter.data.mul_(DECIDED.get(name, 1))
        generator = torch.Generator().manual_seed(1)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        meta = dict(
            dataset_meta=dict(classes=('a', 'b', 'c', 'd'), palette=[[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]])
        )
        torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
        return config, checkpoint, model

    return make
