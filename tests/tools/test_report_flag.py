"""``tools/test.py --report`` with both frameworks: its page and the metrics of the test say the same."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from support.tiny_fixtures import ROOT

from swinv2_mm.datasets import ShapesSpec, write_shapes

OPTIONS = ['test_dataloader.num_workers=0']
TTA = """
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
        [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]
"""


DETECTOR = """
custom_imports = dict(imports=['support.copying_detector'])
model = dict(_delete_=True, type='CopyingDetector', data_preprocessor=dict(type='mmdet.DetDataPreprocessor'))
"""


def write_weights(config, path):
    """Write weights that nobody trained, large ones in the head of a segmentor, so that it predicts all classes."""
    from mmengine.registry import MODELS

    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if 'conv_seg' in key:
                value.normal_(0, 3)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)


@pytest.mark.parametrize(('name', 'tta'), [('maskrcnn', False), ('upernet', False), ('upernet', True)])
def test_the_page_says_what_the_metrics_say(name, tta, run_tool, capsys, tmp_path):
    """Beside --out. Bug: the page counts other objects than the metric, as boxes of the resized picture, or flipped
    maps; or one of the two flags turns the other one off."""
    write_shapes(ShapesSpec(size=64, num_train=1, num_val=12), tmp_path / 'data' / 'shapes')
    config = Path(f'report_{name}_{tta}.py')
    extra = DETECTOR if name == 'maskrcnn' else TTA * tta
    config.write_text(f'_base_ = {str(ROOT / "configs" / f"{name}_swinv2_t_shapes.py")!r}\n{extra}')
    write_weights(config, 'model.pth')
    out = 'found.pkl' if name == 'maskrcnn' else 'maps'
    flags = ['--report', '--out', out, *(['--tta'] * tta), '--cfg-options', *OPTIONS]
    assert run_tool('test', config, 'model.pth', *flags) == 0
    metrics = dict(
        line.rsplit(' ', 1) for line in capsys.readouterr().out.splitlines() if re.match(r'\S+ [\d.-]+$', line)
    )
    page = Path('work_dirs', config.stem, 'report.html').read_text()
    content = json.loads(re.search('type="application/json" id="data">(.*?)</script>', page)[1])
    tiles = {words: value for value, words, *_ in content['tiles']}
    assert Path(out).exists() and content['datasets'][0]['number'] == 12 and content['pictures']
    if name == 'maskrcnn':
        assert 0.1 < float(tiles['mask AP']) < float(tiles['box AP']) < 0.9
        assert tiles['box AP'] == f'{float(metrics["coco/bbox_mAP"]):.3f}'
        assert tiles['mask AP'] == f'{float(metrics["coco/segm_mAP"]):.3f}'
    else:
        assert float(tiles['mIoU, %']) == pytest.approx(float(metrics['mIoU']), abs=0.051)
        assert float(tiles['pixels right, %']) == pytest.approx(float(metrics['aAcc']), abs=0.051)
