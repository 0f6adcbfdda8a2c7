"""The dry run: the model and the data sets of a config fit each other."""

from pathlib import Path

import pytest

from swinv2_mm.engine.checks import DRY_RUN, run_checks
from swinv2_mm.engine.config import load_config

pytestmark = pytest.mark.usefixtures('own_process')


def test_a_panoptic_model_is_not_held_against_the_classes_of_its_data():
    """Bug: the 80 classes of a panoptic model's boxes are held against the 133 of its data set, and it cannot train."""
    Path('panoptic.py').write_text("_base_ = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'")
    cfg = load_config('panoptic.py')
    cfg.train_dataloader.dataset.pipeline = []  # which would want panopticapi
    model = run_checks(cfg, ('train',), DRY_RUN).model
    assert model.roi_head.bbox_head.num_classes == 80
