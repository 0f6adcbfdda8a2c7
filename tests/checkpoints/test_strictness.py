"""A source file that is not exactly one backbone is refused, or what is unusual about it is reported."""

import math
import re

import pytest
import torch

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import convert_state_dict, export_state_dict, recognise
from swinv2_mm.checkpoints.geometry import read_windows
from swinv2_mm.checkpoints.layouts import FOREIGN, LAYOUTS, MODELS
from swinv2_mm.errors import UserError

ARCH = dict(embed_dims=16, depths=(1, 2), num_heads=(1, 2), out_indices=(0, 1))


def coords(window, pretrained, dtype=torch.float32):
    """Written from the paper, entry by entry."""
    table = torch.zeros(1, 2 * window - 1, 2 * window - 1, 2, dtype=torch.float64)
    for y in range(2 * window - 1):
        for x in range(2 * window - 1):
            for axis, offset in enumerate((y - window + 1, x - window + 1)):
                scaled = 8 * offset / (pretrained - 1)
                table[0, y, x, axis] = math.copysign(math.log2(1 + abs(scaled)) / math.log2(8), scaled)
    return table.to(dtype)


def source(layout, windows=(16, 8), pretrained=(12, 6)):
    """A small model in that layout, with the tables and heads that come along."""
    model = SwinTransformerV2(**ARCH)
    generator = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(t.shape, generator=generator) for key, t in model.state_dict().items()}
    state, _ = export_state_dict(weights, layout)
    table = {
        'microsoft': 'layers.{i}.blocks.{j}.attn.',
        'simmim': 'layers.{i}.blocks.{j}.attn.',
        'torchvision': 'features.{odd}.{j}.attn.',
        'mmpretrain': 'stages.{i}.blocks.{j}.attn.w_msa.',
    }.get(layout)
    for i, depth in enumerate(ARCH['depths']):
        for j in range(depth) if table else ():
            start = table.format(i=i, odd=2 * i + 1, j=j)
            state[start + 'relative_coords_table'] = coords(windows[i], pretrained[i])
            state[start + 'relative_position_index'] = torch.zeros(windows[i] ** 2, windows[i] ** 2, dtype=torch.long)
    heads = dict(
        microsoft='head.weight',
        timm='head.fc.weight',
        torchvision='head.weight',
        mmpretrain='head.fc.weight',
        simmim='mask_token',
        huggingface='embeddings.mask_token',
    )
    if layout in heads:
        state[heads[layout]] = torch.ones(2, 2)
    return state


def mutations(state):
    """Each tensor deleted, renamed or reshaped, one after another."""
    for key, tensor in state.items():
        rest = {name: value for name, value in state.items() if name != key}
        yield f'{key} deleted', rest
        names = {
            key + 's',
            'x.' + key,
            key.replace('weight', 'bias') + '_',
            re.sub(r'\.(\d+)\.', '.7.', key, count=1),
            re.sub(r'(.*)\.(\d+)\.', r'\1.7.', key),
        }
        for name in sorted(names - {key} - set(state)):
            yield f'{key} renamed to {name}', rest | {name: tensor}
        shapes = [
            tensor.flatten(),
            tensor[None],
            tensor[:-1],
            torch.cat([tensor, tensor]),
            tensor.flatten()[:1],
            tensor.transpose(0, -1).contiguous(),
        ]
        for changed in shapes:
            if changed.shape != tensor.shape:
                yield f'{key} reshaped to {tuple(changed.shape)}', rest | {key: changed}
        yield f'{key} made whole numbers', rest | {key: tensor.long()}
        if tensor.is_floating_point():
            yield f'{key} damaged', rest | {key: tensor.clone().index_fill_(0, torch.tensor([0]), math.nan)}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_no_change_of_a_file_goes_unnoticed(layout):
    """Whatever happens to one tensor, the file is refused, or the weights are those of the whole file, or the model is
    said to be another one. Prevents: a silently wrong model.
    """
    state = source(layout)
    whole = convert_state_dict(state, layout=layout)
    refused = 0
    for what, changed in mutations(state):
        try:
            result = convert_state_dict(changed, layout=layout)
        except UserError as error:
            refused += 1
            assert str(error)
            continue
        assert result.pretrained_window_sizes in (None, whole.pretrained_window_sizes), what
        same = {k: v for k, v in whole.weights.items() if k in result.weights or k.split('.')[0] not in result.new}
        if result.geometry == whole.geometry:
            assert result.weights.keys() == same.keys(), what
            assert all(torch.equal(result.weights[key], value) for key, value in same.items()), what
        accounted = {key for keys in result.sources.values() for key in keys} | set(result.dropped)
        assert accounted == set(changed), what
    assert refused > 5 * len(whole.weights)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts_are_told_apart(layout):
    """Each is recognised by its keys, under any prefix. Prevents: weights of one read by the table of another."""
    keys = list(source(layout))
    if layout == 'simmim':
        keys += ['decoder.0.weight']
        keys = [key if key.startswith('decoder') else f'encoder.{key}' for key in keys]
        assert recognise(keys) == ('simmim', 'encoder.')
        return
    for prefix in ('', 'module.', 'model.backbone.'):
        assert recognise([prefix + key for key in keys]) == (layout, prefix)


def test_every_key_of_a_layout_has_one_row():
    """Prevents: two rows that fight over a key, or a dropped pattern that swallows a weight."""
    for name, layout in LAYOUTS.items():
        for key in source(name):
            rows = 0
            for row in layout.rows:
                for template in row.theirs:
                    pattern = re.escape(template).replace(r'\{i\}', r'\d+').replace(r'\{j\}', r'\d+')
                    rows += re.fullmatch(pattern, key) is not None
            rows += sum(re.fullmatch(pattern, key) is not None for pattern, _ in layout.dropped)
            assert rows == 1, (name, key)


def test_the_rest_of_a_model_is_no_part_of_its_backbone():
    """Mask token, decoder and head are dropped for one reason each. Bug: a table of models that names a weight of the
    backbone, or a file that is refused for its head.
    """
    for model, layouts in MODELS.items():
        assert len({len(names) for _, names in layouts.values()}) == 1, model
        for layout, (before, names) in layouts.items():
            state = source(layout)
            state.pop('mask_token', None)
            whole = {before + key: tensor for key, tensor in state.items()} | {name: torch.ones(2) for name in names}
            conversion = convert_state_dict(whole, layout='simmim' if layout == 'simmim' else None)
            assert set(names) <= conversion.dropped.keys()
            assert conversion.prefix == before


def test_of_several_models_in_one_file_none_is_guessed():
    """Prevents: a student's weights taken for the teacher's."""
    state = source('openmmlab')
    prefixes = 'student.backbone.', 'teacher.backbone.'
    both = {prefix + key: tensor for prefix in prefixes for key, tensor in state.items()}
    with pytest.raises(UserError, match=r"'student\.backbone\.'.*'teacher\.backbone\.'.*--prefix"):
        convert_state_dict(both)
    for prefix in ('teacher.backbone', 'teacher.backbone.'):
        assert convert_state_dict(both, prefix=prefix).prefix == 'teacher.backbone.'
    with pytest.raises(UserError, match='several'):
        convert_state_dict(state | source('microsoft'))


@pytest.mark.parametrize(
    ('key', 'words'),
    [
        ('layers.0.blocks.0.attn.relative_position_bias_table', 'this is Swin V1'),
        ('backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table', 'this is Swin V1'),
        ('stages.0.blocks.0.attn.meta_mlp.fc1.weight', 'swinv2_cr'),
        ('layer1.0.conv1.weight', 'a ResNet'),
        ('backbone.layer1.0.bn1.weight', 'a ResNet'),
        ('cls_token', 'a plain ViT'),
        ('stages.0.0.conv_dw.weight', 'a ConvNeXt'),
        ('anything.weight', 'anything.weight'),
    ],
)
def test_foreign_files_are_named(key, words):
    """Prevents: a message about missing keys where the file is another model altogether."""
    with pytest.raises(UserError, match=words):
        convert_state_dict({key: torch.zeros(1), 'other': torch.zeros(1)})
    with pytest.raises(UserError, match=words):
        convert_state_dict({key: torch.zeros(1)}, layout='microsoft')


def test_swin_v1_is_named_even_with_marks_of_v2():
    """Prevents: the table of foreign models speaking in the wrong order."""
    assert FOREIGN[0][1].startswith('this is Swin V1')
    with pytest.raises(UserError, match=r'\(none\)'):
        convert_state_dict({})


def test_a_wrong_layout_or_prefix_is_named():
    """Prevents: --source forcing a table onto other keys."""
    with pytest.raises(UserError, match=r"its keys are timm's \(timm\)"):
        convert_state_dict(source('timm'), layout='microsoft')
    with pytest.raises(UserError, match="prefix ''"):
        convert_state_dict(source('timm'), prefix='backbone')
    with pytest.raises(UserError, match='choose one of'):
        convert_state_dict(source('timm'), layout='keras')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(('window', 'pretrained'), [(8, 8), (16, 8), (16, 12), (24, 12), (12, 6), (6, 6), (7, 12)])
def test_windows_are_read_off_the_tables(window, pretrained, dtype):
    """Prevents: the wrong normaliser for weights fine-tuned at a larger window, or saved in half precision."""
    tables = {'stages.0.blocks.0.attn.relative_coords_table': coords(window, pretrained, dtype)}
    assert read_windows(tables) == (((window, window),), ((pretrained, pretrained),))


def test_wrong_coordinate_tables_are_refused():
    """Prevents: windows taken from a damaged table, or from one block where another says otherwise."""
    key = 'stages.0.blocks.{}.attn.relative_coords_table'.format
    assert read_windows({}) is None
    assert read_windows({key(0).replace('stages.0', 'stages.1'): coords(8, 8)}) is None
    with pytest.raises(UserError, match='another block'):
        read_windows({key(0): coords(8, 8), key(1): coords(8, 12)})
    with pytest.raises(UserError, match='does not hold'):
        read_windows({key(0): coords(8, 8).flip(1)})
    with pytest.raises(UserError, match='shape'):
        read_windows({key(0): coords(8, 8)[..., 0]})
