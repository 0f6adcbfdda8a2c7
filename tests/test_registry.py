"""One spelling, ``swinv2_mm.SwinTransformerV2``, from every registry, whatever else is installed or broken."""

import subprocess
import sys
import textwrap

import pytest

CFG = "dict(type='swinv2_mm.SwinTransformerV2', embed_dims=16, depths=(1, 1), num_heads=(1, 2), out_indices=(0, 1))"
HIDE = """
import sys
class Unusable:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names!r}:
            raise {error}(name + ' cannot be imported')
sys.meta_path.insert(0, Unusable())
"""


def run(code):
    return subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ('framework', 'unusable', 'error'),
    [
        ('mmengine', ('mmdet', 'mmseg', 'mmcv'), 'ImportError'),
        ('mmdet', ('mmseg',), 'ImportError'),
        ('mmseg', ('mmdet',), 'ModuleNotFoundError'),  # a broken mmdet stops mmseg 1.2.2 itself, an absent one does not
    ],
)
def test_builds_without_custom_imports(framework, unusable, error):
    """In a fresh process, from each framework's registry and default scope, with the other frameworks unimportable.

    Prevents: custom_imports becoming necessary, and a broken mmseg hurting a detection user, or the reverse.
    """
    registry = 'mmengine.registry' if framework == 'mmengine' else f'{framework}.registry'
    result = run(
        HIDE.format(names=unusable, error=error)
        + f"""
from {registry} import MODELS
from mmengine.registry import init_default_scope
init_default_scope({framework!r})
model = MODELS.build({CFG})
import torch
print([tuple(out.shape) for out in model(torch.rand(1, 3, 32, 32))])
"""
    )
    assert result.stdout.strip().endswith('[(1, 16, 8, 8), (1, 32, 4, 4)]'), result.stderr


def test_wrong_argument_names_the_class():
    """Prevents: a typo in a config that is accepted, or an error that does not say where."""
    from mmengine.registry import MODELS

    with pytest.raises(Exception, match=r'windows_size.*|SwinTransformerV2'):
        MODELS.build(dict(type='swinv2_mm.SwinTransformerV2', windows_size=8))
