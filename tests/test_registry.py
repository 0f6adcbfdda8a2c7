"""One spelling, ``swinv2_mm.SwinTransformerV2``, from every registry, whatever else is installed or broken."""

import subprocess
import sys
import textwrap

import pytest
from support.versions import needs

CFG = "dict(type='swinv2_mm.SwinTransformerV2', embed_dims=16, depths=(1, 1), num_heads=(1, 2), out_indices=(0, 1))"
HIDE = """
import sys
class Unusable:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names!r}:
            raise {error}(name + ' cannot be imported')
sys.meta_path.insert(0, Unusable())
"""


# Every name that configs and checkpoints of users may hold, by the registry of mmengine that finds it. A name that is
# missing here is new: add it. A name that is missing in the package breaks somebody's config.
NAMES = {
    'DATASETS': {'UnlabelledImages'},
    'MODELS': {'SimMIM', 'SwinTransformerV2'},
    'HOOKS': {
        'ChangedScheduleHook',
        'CheckpointHook',
        'CheckpointMatchHook',
        'CompileBackboneHook',
        'EpochSeedHook',
        'Float32BoxesHook',
        'MapNamesHook',
        'MistakesHook',
        'NonFiniteHook',
        'PicturesHook',
        'ProgressHook',
        'ReconstructionHook',
        'ReportHook',
        'WindowSizeHook',
    },
    'FUNCTIONS': {'seed_worker'},
    'OPTIM_WRAPPERS': {'AmpOptimWrapper'},
    'OPTIM_WRAPPER_CONSTRUCTORS': {'LayerDecayOptimWrapperConstructor'},
    'RUNNERS': {'FSDP2Runner', 'Zero1Runner'},
    'TRANSFORMS': {'CheckedLoading', 'PackImages', 'RandomResizedCrop'},
    'WEIGHT_INITIALIZERS': {'Pretrained'},
}


def run(code):
    return subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ('framework', 'unusable', 'error'),
    [
        ('mmengine', ('mmdet', 'mmseg', 'mmcv'), 'ImportError'),
        pytest.param('mmdet', ('mmseg',), 'ImportError', marks=needs('mmdet')),
        pytest.param(
            'mmseg', ('mmdet',), 'ModuleNotFoundError', marks=needs('mmseg')
        ),  # a broken mmdet stops mmseg 1.2.2 itself, an absent one does not
    ],
)
def test_every_name_is_found_without_custom_imports(framework, unusable, error):
    """In a fresh process, from each framework's registries and default scope, with the other frameworks unimportable;
    there are no other names, and the backbone builds.

    Prevents: custom_imports becoming necessary; a broken mmseg hurting a detection user, or the reverse; a move of a
    module after which a name is registered no more, or only once something else was imported.
    """
    result = run(
        HIDE.format(names=unusable, error=error)
        + f"""
import mmengine.registry as root
from {framework} import registry as own
root.init_default_scope({framework!r})
for registry, names in {NAMES!r}.items():
    found = getattr(own, registry, getattr(root, registry))
    for name in names:
        assert found.get('swinv2_mm.' + name).__name__ == name, name
model = own.MODELS.build({CFG})
import torch
print([tuple(out.shape) for out in model(torch.rand(1, 3, 32, 32))])
import swinv2_mm.registry as ours
registries = {{key: value for key, value in vars(ours).items() if isinstance(value, root.Registry)}}
print({{key: set(registry.module_dict) for key, registry in registries.items()}} == {NAMES!r})
"""
    )
    assert result.stdout.splitlines()[-2:] == ['[(1, 16, 8, 8), (1, 32, 4, 4)]', 'True'], result.stdout + result.stderr


def test_wrong_argument_names_the_class():
    """Prevents: a typo in a config that is accepted, or an error that does not say where."""
    from mmengine.registry import MODELS

    with pytest.raises(Exception, match=r'windows_size.*|SwinTransformerV2'):
        MODELS.build(dict(type='swinv2_mm.SwinTransformerV2', windows_size=8))


def test_the_engine_exports_what_it_registers():
    """Prevents: a class that ``from swinv2_mm.engine import ...`` does not find, or a stale name in ``__all__``."""
    from swinv2_mm import engine
    from swinv2_mm.datasets import unlabelled

    named = set().union(*(names for registry, names in NAMES.items() if registry != 'MODELS'))
    of_data = {name for name in named if hasattr(unlabelled, name)}
    assert set(engine.__all__) == named - of_data | {'UserError'}
    assert all(hasattr(engine, name) for name in engine.__all__)
