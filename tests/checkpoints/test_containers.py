"""Of several models in one file, the one that is meant is taken, or the choice is left to the user."""

import numpy as np
import pytest
import torch

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.load import fetch, open_checkpoint, weights_in
from swinv2_mm.errors import UserError
from swinv2_mm.registry import WEIGHT_INITIALIZERS

TINY = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 1), out_indices=(0, 1))
SWIN = SwinTransformerV2(**TINY).state_dict()
W, EMA = ({key: t * by if t.is_floating_point() else t for key, t in SWIN.items()} for by in (1, 0.5))
OTHER = {'fc.weight': torch.ones(6)}  # of another model
OPTIMIZER = {'state': {0: {'exp_avg': torch.ones(2)}}, 'exp_avg': dict(W), 'param_groups': [{'lr': 1}]}


@pytest.mark.parametrize(
    ('content', 'ema', 'key', 'expected', 'container'),
    [
        (W, False, None, W, ''),
        (OTHER, False, None, OTHER, ''),
        ({'state_dict': W, 'meta': {}}, False, None, W, 'state_dict'),
        ({'state_dict': OTHER, 'meta': {}}, False, None, OTHER, 'state_dict'),
        ({'model': W, 'optimizer': OPTIMIZER, 'optim': OPTIMIZER}, False, None, W, 'model'),
        ({'module': W, 'epoch': 1}, False, None, W, 'module'),
        ({'state_dict': 'see model', 'model': W}, False, None, W, 'model'),
        ({'state_dict': OTHER, 'network': W}, False, None, W, 'network'),
        ({'state': {'model': W, 'epoch': 1}}, False, None, W, 'state.model'),
        ({'model': W, 'model_ema': EMA}, False, None, W, 'model'),
        ({'model': W, 'model_ema': EMA}, True, None, EMA, 'model_ema'),
        ({'model': W, 'model_ema': EMA}, False, 'model_ema', EMA, 'model_ema'),
        ({'model': W, 'ema': {'module': EMA, 'updates': 3}}, False, None, W, 'model'),
        ({'model': W, 'ema': {'module': EMA, 'updates': 3}}, True, None, EMA, 'ema.module'),
        ({'model': W, 'ema': {'module': EMA, 'updates': 3}}, False, 'ema', EMA, 'ema.module'),
        ({'ema': EMA, **W}, False, None, W, ''),
        ({'state_dict': W, 'state_dict_ema': EMA}, True, None, EMA, 'state_dict_ema'),
        ({'state_dict_ema': EMA}, False, None, EMA, 'state_dict_ema'),
        ({'state_dict': EMA, 'ema_state_dict': W}, True, None, EMA, 'state_dict'),  # mmengine swaps them as it saves
        ({'state_dict': EMA, 'ema_state_dict': W}, False, None, EMA, 'state_dict'),
        ({'state_dict': EMA, 'ema_state_dict': W}, False, 'ema_state_dict', W, 'ema_state_dict'),
        ({'student': W, 'teacher': EMA}, False, 'teacher', EMA, 'teacher'),
        ({'student': W, 'teacher': EMA}, False, 'student', W, 'student'),
        ({'student': W, 'teacher': OTHER}, False, None, W, 'student'),
        ({'student': W, 'teacher': OTHER}, False, 'teacher', OTHER, 'teacher'),
        ({'model': {'student': W, 'teacher': EMA}}, False, 'model.teacher', EMA, 'model.teacher'),
        ({'model.student': W, 'model.teacher': EMA}, False, 'model.teacher', EMA, 'model.teacher'),
        ({'teacher': {'model': W, 'model_ema': EMA}, 'student': W}, True, 'teacher', EMA, 'teacher.model_ema'),
        ({'teacher': {'state_dict': EMA, 'ema_state_dict': W}, 'a': W}, True, 'teacher', EMA, 'teacher.state_dict'),
    ],
)
def test_weights_are_found(content, ema, key, expected, container):
    """Bug: the weights that were being trained pass for their average, the student for its teacher, or the optimizer's
    state for weights."""
    found, name = weights_in(content, ema, key)
    assert name == container and found.keys() == expected.keys()
    assert all(found[name] is tensor for name, tensor in expected.items())


@pytest.mark.parametrize(
    ('content', 'ema', 'key', 'words'),
    [
        ({'epoch': 3, 'model': 'swinv2'}, False, None, 'no weights in it: its keys are epoch, model'),
        ({}, False, None, r'its keys are \(none\)'),
        ({'state_dict': {'epoch': 1}}, False, None, 'no weights in it'),
        ({'model': W}, True, None, r'no averaged weights in it: the models in it are model\. Leave ema out'),
        ({'model': OTHER}, True, None, 'no averaged weights in it: its keys are model'),
        ({'model': W, 'swa': EMA}, True, None, 'the models in it are model, swa'),
        ({'student': W, 'teacher': EMA}, False, None, r'several models in it: student, teacher\. .* as teacher\.'),
        ({'state_dict': W, 'teacher': EMA}, False, None, 'several models in it: state_dict, teacher'),
        ({'model': {'student': W, 'teacher': EMA}}, False, None, r'model\.student, model\.teacher\. Choose one with'),
        ({'teacher': EMA, **W}, False, None, r'\(its top level\), teacher'),
        ({'model_ema': EMA, 'ema': EMA}, True, None, 'several models in it: model_ema, ema'),
        ({'a': {'student': W, 'teacher': EMA}, 'b': W}, False, 'a', r'several models in it: a\.student, a\.teacher'),
        ({'student': W}, False, 'teacher', "no weights under checkpoint_key='teacher'; SwinV2 weights are under stud"),
        ({'epoch': 3}, False, 'epoch', "no weights under checkpoint_key='epoch'; its keys are epoch"),
        ({'epoch': {'last': 3}}, False, 'epoch', 'no weights in it: its keys are last'),
        ({f'teacher.{key}': tensor for key, tensor in W.items()}, False, 'teacher', "give prefix='teacher'"),
    ],
)
def test_content_without_a_choice_is_refused(content, ema, key, words):
    """The message names the models and the way to choose. Bug: an empty state_dict is converted, the plain weights are
    given for the average, or the first of two models is taken without a word."""
    with pytest.raises(UserError, match=words):
        weights_in(content, ema, key)


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', '_orig_mod.', 'module._orig_mod.backbone.'])
@pytest.mark.parametrize('arrays', [False, True])
def test_a_config_names_the_key(arrays, prefix, tmp_path, monkeypatch):
    """Wrappers' names inside of the container are found as in a file of one model. Bug: `checkpoint_key` is lost on its
    way to the file, or a converted copy of the student is given for the teacher."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    path = str(tmp_path / 'dino.pth')
    models = {'student': W, 'teacher': EMA}
    for name, weights in models.items():
        models[name] = {prefix + key: tensor.numpy() if arrays else tensor for key, tensor in weights.items()}
    torch.save({**models, 'epoch': np.int64(3)}, path)
    with pytest.raises(UserError, match='student, teacher'):
        fetch(path)
    for name, weights in (('student', W), ('teacher', EMA)):
        backbone = SwinTransformerV2(**TINY)
        WEIGHT_INITIALIZERS.build(dict(type='swinv2_mm.Pretrained', checkpoint=path, checkpoint_key=name))(backbone)
        assert all(torch.equal(tensor, weights[key]) for key, tensor in backbone.state_dict().items())
        assert open_checkpoint(path, checkpoint_key=name).container == name
    backbone = SwinTransformerV2.from_pretrained(path, checkpoint_key='teacher')
    assert torch.equal(backbone.norm1.weight, EMA['norm1.weight'])
