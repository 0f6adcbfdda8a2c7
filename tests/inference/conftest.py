"""Tiny trained models, and pictures to predict on."""

import pytest
from support.tiny_models import write_checkpoint
from support.tiny_pictures import noise, write

from swinv2_mm.inference import predict


@pytest.fixture(scope='session')
def detector(tmp_path_factory):
    """The checkpoint of a Mask R-CNN for three classes; pictures are resized to 128 pixels."""
    return write_checkpoint(tmp_path_factory.mktemp('detector') / 'detector.pth', 'maskrcnn_swinv2_t_shapes')


@pytest.fixture(scope='session')
def segmentor(tmp_path_factory):
    """The checkpoint of an UperNet for four classes; pictures keep their size."""
    return write_checkpoint(tmp_path_factory.mktemp('segmentor') / 'segmentor.pth', 'upernet_swinv2_t_shapes')


@pytest.fixture
def photos(tmp_path):
    """A folder of three pictures, two of one name."""
    write(tmp_path / 'in' / 'a.jpg', noise(48, 64, 3))
    write(tmp_path / 'in' / 'sub' / 'a.jpg', noise(48, 64, 3, seed=1))
    write(tmp_path / 'in' / 'sub' / 'b.png', noise(40, 40, 3, seed=2))
    return tmp_path / 'in'


@pytest.fixture
def run(own_process, tmp_path):
    """``predict`` on the CPU, into ``out``."""

    def call(checkpoint, inputs, **options):
        return predict(checkpoint, inputs, **{'out': tmp_path / 'out', 'device': 'cpu', 'score_thr': 0.0, **options})

    return call
