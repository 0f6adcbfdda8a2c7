"""Key tables: the names of this backbone's parameters in other code bases (data, hardly any logic).

Inside a block all code bases use Microsoft's names. They differ in the containers, in the place of a patch merging (at
the end of a stage there, at the start of the next one here), and in the form of three tensors. A table is read in both
directions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swinv2_mm.checkpoints.geometry import PRETRAINED_KEY

Tensors = tuple[Tensor, ...]


def _from_unfold(tensors: Tensors) -> Tensors:
    """Columns in the order of ``nn.Unfold`` (channel, row, column) to Microsoft's (column, row, channel)."""
    weight = tensors[0]
    out, columns = weight.shape
    return (weight.view(out, columns // 4, 2, 2).permute(0, 3, 2, 1).reshape(out, columns),)


def _to_unfold(tensors: Tensors) -> Tensors:
    weight = tensors[0]
    out, columns = weight.shape
    return (weight.view(out, 2, 2, columns // 4).permute(0, 3, 2, 1).reshape(out, columns),)


@dataclass(frozen=True)
class Row:
    """One kind of tensor, in templates: ``{i}`` is the stage, ``{j}`` the block, ``{last}`` the last stage.

    Attributes:
        theirs: Their keys.
        ours: Ours.
        stage: Their ``{i}`` by ours; negative for a stage that has no such tensor.
        load: Converts the tensors of ``theirs`` to those of ``ours``.
        save: The inverse; None for an old spelling that is only read.
        learned: False for a table that is read and not kept.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    stage: range = range(99)
    load: Callable[[Tensors], Tensors] = tuple
    save: Callable[[Tensors], Tensors] | None = tuple
    learned: bool = True


@dataclass(frozen=True)
class Layout:
    """A code base's names.

    Attributes:
        owner: The code base, for messages.
        marks: Regular expressions; a file of this layout has a key for each, after one common prefix.
        never: Regular expression of a key that no file of this layout has.
        rows: Every tensor of the backbone matches exactly one.
        dropped: Regular expressions of other keys, each with the reason why they are left out.
        container: The key of the state_dict in a file of the code base, None for none.
    """

    owner: str
    marks: tuple[str, ...]
    rows: tuple[Row, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    never: str | None = None
    container: str | None = None


_PATCH = ('proj.weight', 'proj.bias', 'norm.weight', 'norm.bias')
_QKV = ('attn.qkv.weight',)
_QV_BIAS = ('attn.q_bias', 'attn.v_bias')
_CPB = ('attn.cpb_mlp.0.weight', 'attn.cpb_mlp.0.bias', 'attn.cpb_mlp.2.weight')
_LAYERS = ('attn.proj', 'norm1', 'norm2', 'mlp.fc1', 'mlp.fc2')
_REST = ('attn.logit_scale', *_CPB, *(f'{layer}.{leaf}' for layer in _LAYERS for leaf in ('weight', 'bias')))
_EXTRA = ('norm3.weight', 'norm3.bias')  # every six blocks of huge and giant
_MERGING = ('reduction.weight', 'norm.weight', 'norm.bias')
_NORM = ('weight', 'bias')
_BLOCK = (*_QKV, *_QV_BIAS, *_REST, *_EXTRA)
_TABLE = ('attn.relative_coords_table',)


def _rows(theirs: str, ours: str, leaves: tuple[str, ...], names: Mapping[str, str] = {}, **row: Any) -> list[Row]:
    """A row for each leaf; both sides use the same name, except for the beginnings in ``names`` (ours -> theirs)."""
    rows = []
    for leaf in leaves:
        start = next((name for name in names if leaf.startswith(name)), '')
        rows.append(Row((theirs + names.get(start, '') + leaf[len(start) :],), (ours + leaf,), **row))
    return rows


_OUR_BLOCK = 'stages.{i}.blocks.{j}.'
_OUR_MERGING = 'stages.{i}.downsample.'
_INDEX = (r'.*\.(relative_position_index|attn_mask)', 'computed from the window')
_HEAD = 'a classifier'
_MASK_TOKEN = (r'(embeddings\.)?mask_token', 'of self-supervised pre-training')
_MICROSOFT_MARKS = (r'layers\.\d+\.blocks\.\d+\.attn\.logit_scale', r'layers\.0\.downsample\..*', r'patch_embed\..*')

_MICROSOFT_ROWS = (
    *_rows('patch_embed.', 'patch_embed.', _PATCH),
    *_rows('layers.{i}.blocks.{j}.', _OUR_BLOCK, _BLOCK),
    *_rows('layers.{i}.blocks.{j}.', _OUR_BLOCK, _CPB, {'attn.cpb_mlp.': 'attn.rpe_mlp.'}, save=None),
    *_rows('layers.{i}.blocks.{j}.', _OUR_BLOCK, _TABLE, save=None, learned=False),
    *_rows('layers.{i}.downsample.', _OUR_MERGING, _MERGING, stage=range(-1, 99)),
    *_rows('norm.', 'norm{last}.', _NORM),
    *_rows('norm{i}.', 'norm{i}.', _NORM, save=None),  # detectors with Microsoft's names, as in detectron2
)

_HF_BLOCK = 'encoder.layers.{i}.blocks.{j}.'
_HF_NAMES = {
    'attn.q_bias': 'attention.self.query.bias',
    'attn.v_bias': 'attention.self.value.bias',
    'attn.cpb_mlp.': 'attention.self.continuous_position_bias_mlp.',
    'attn.proj.': 'attention.output.dense.',
    'attn.': 'attention.self.',
    'norm1.': 'layernorm_before.',
    'norm2.': 'layernorm_after.',
    'mlp.fc1.': 'intermediate.dense.',
    'mlp.fc2.': 'output.dense.',
}
_MMPRETRAIN_NAMES = {'attn.': 'attn.w_msa.', 'mlp.fc1.': 'ffn.layers.0.0.', 'mlp.fc2.': 'ffn.layers.1.'}
_TORCHVISION_NAMES = {'mlp.fc1.': 'mlp.0.', 'mlp.fc2.': 'mlp.3.'}

LAYOUTS = {
    'microsoft': Layout(
        owner="Microsoft's",
        marks=_MICROSOFT_MARKS,
        never='mask_token',
        rows=_MICROSOFT_ROWS,
        dropped=(_INDEX, (r'head\.(weight|bias)', _HEAD)),
        container='model',
    ),
    # It wraps Microsoft's model: the names have the prefix `encoder.`, and a decoder stands beside it.
    'simmim': Layout(
        owner="SimMIM's",
        marks=(*_MICROSOFT_MARKS, 'mask_token'),
        rows=_MICROSOFT_ROWS,
        dropped=(_INDEX, (r'head\.(weight|bias)', _HEAD), _MASK_TOKEN),
        container='model',
    ),
    'timm': Layout(
        owner="timm's",
        marks=(r'layers[._]\d+\.blocks\.\d+\.attn\.logit_scale', r'layers[._][1-9]\d*\.downsample\..*'),
        never=r'layers[._]0\.downsample\..*',
        rows=(
            *_rows('patch_embed.', 'patch_embed.', _PATCH),
            *_rows('layers.{i}.blocks.{j}.', _OUR_BLOCK, _BLOCK),
            *_rows('layers.{i}.blocks.{j}.', _OUR_BLOCK, _TABLE, save=None, learned=False),
            *_rows('layers.{i}.downsample.', _OUR_MERGING, _MERGING),
            *_rows('norm.', 'norm{last}.', _NORM),
            # timm's features_only=True.
            *_rows('layers_{i}.blocks.{j}.', _OUR_BLOCK, _BLOCK, save=None),
            *_rows('layers_{i}.downsample.', _OUR_MERGING, _MERGING, save=None),
        ),
        dropped=(_INDEX, (r'head\.(fc\.)?(weight|bias)', _HEAD)),
        container='state_dict',
    ),
    'huggingface': Layout(
        owner="Hugging Face's",
        marks=(r'encoder\.layers\.\d+\.blocks\.\d+\.attention\.self\.logit_scale', r'embeddings\..*'),
        rows=(
            *_rows('embeddings.patch_embeddings.projection.', 'patch_embed.proj.', _NORM),
            *_rows('embeddings.norm.', 'patch_embed.norm.', _NORM),
            Row(
                tuple(f'{_HF_BLOCK}attention.self.{name}.weight' for name in ('query', 'key', 'value')),
                (_OUR_BLOCK + 'attn.qkv.weight',),
                load=lambda qkv: (torch.cat(qkv),),
                save=lambda weight: weight[0].chunk(3),
            ),
            *_rows(_HF_BLOCK, _OUR_BLOCK, (*_QV_BIAS, *_REST), _HF_NAMES),
            *_rows(_HF_BLOCK, _OUR_BLOCK, _TABLE, _HF_NAMES, save=None, learned=False),
            *_rows('encoder.layers.{i}.downsample.', _OUR_MERGING, _MERGING, stage=range(-1, 99)),
            *_rows('layernorm.', 'norm{last}.', _NORM),
            # A backbone of dense prediction has one for each output.
            *_rows('hidden_states_norms.stage{i}.', 'norm{i}.', _NORM, stage=range(1, 99), save=None),
        ),
        dropped=(_INDEX, (r'classifier\.(weight|bias)', _HEAD), _MASK_TOKEN),
    ),
    'torchvision': Layout(
        owner="torchvision's",
        marks=(r'features\.\d+\.\d+\.attn\.logit_scale', r'features\.0\..*'),
        rows=(
            *_rows('features.0.0.', 'patch_embed.proj.', _NORM),
            *_rows('features.0.2.', 'patch_embed.norm.', _NORM),
            *_rows('features.{i}.{j}.', _OUR_BLOCK, (*_QKV, *_REST), _TORCHVISION_NAMES, stage=range(1, 99, 2)),
            Row(
                ('features.{i}.{j}.attn.qkv.bias',),
                tuple(_OUR_BLOCK + leaf for leaf in _QV_BIAS),
                stage=range(1, 99, 2),
                load=lambda qkv: qkv[0].unflatten(0, (3, -1))[::2].unbind(),  # it zeroes the key's in every forward
                save=lambda qv: (torch.cat((qv[0], torch.zeros_like(qv[0]), qv[1])),),
            ),
            *_rows('features.{i}.{j}.', _OUR_BLOCK, _TABLE, stage=range(1, 99, 2), save=None, learned=False),
            *_rows('features.{i}.', _OUR_MERGING, _MERGING, stage=range(0, 99, 2)),
            *_rows('norm.', 'norm{last}.', _NORM),
        ),
        dropped=(_INDEX, (r'head\.(weight|bias)', _HEAD)),
    ),
    'mmpretrain': Layout(
        owner="MMPretrain's",
        marks=(r'stages\.\d+\.blocks\.\d+\.attn\.w_msa\.logit_scale', r'patch_embed\..*'),
        rows=(
            *_rows('patch_embed.projection.', 'patch_embed.proj.', _NORM),
            *_rows('patch_embed.norm.', 'patch_embed.norm.', _NORM),
            *_rows(_OUR_BLOCK, _OUR_BLOCK, _BLOCK, _MMPRETRAIN_NAMES),
            *_rows(_OUR_BLOCK, _OUR_BLOCK, _TABLE, _MMPRETRAIN_NAMES, save=None, learned=False),
            *_rows(_OUR_MERGING, _OUR_MERGING, _MERGING[:1], load=_from_unfold, save=_to_unfold),
            *_rows(_OUR_MERGING, _OUR_MERGING, _MERGING[1:]),
            *_rows('norm{i}.', 'norm{i}.', _NORM),
        ),
        dropped=(_INDEX, (r'head\..*', _HEAD)),
        container='state_dict',
    ),
    'openmmlab': Layout(
        owner='those of this backbone',
        marks=(r'stages\.\d+\.blocks\.\d+\.attn\.logit_scale', r'patch_embed\..*'),
        rows=(
            *_rows('patch_embed.', 'patch_embed.', _PATCH),
            *_rows(_OUR_BLOCK, _OUR_BLOCK, _BLOCK),
            *_rows(_OUR_MERGING, _OUR_MERGING, _MERGING),
            *_rows('norm{i}.', 'norm{i}.', _NORM),
            Row((PRETRAINED_KEY,), (PRETRAINED_KEY,), save=None, learned=False),
        ),
        container='state_dict',
    ),
}

# Models around a backbone. By layout: what comes before the backbone's keys, and the model's other keys, in one order.
MODELS = {
    'simmim': {
        'openmmlab': ('backbone.', ('mask_token', 'decoder.weight', 'decoder.bias')),
        'simmim': ('encoder.', ('encoder.mask_token', 'decoder.0.weight', 'decoder.0.bias')),
        'huggingface': ('swinv2.', ('swinv2.embeddings.mask_token', 'decoder.0.weight', 'decoder.0.bias')),
    },
    'classifier': {
        'openmmlab': ('backbone.', ('head.fc.weight', 'head.fc.bias')),
        'microsoft': ('', ('head.weight', 'head.bias')),
        'timm': ('', ('head.fc.weight', 'head.fc.bias')),
        'huggingface': ('swinv2.', ('classifier.weight', 'classifier.bias')),
        'torchvision': ('', ('head.weight', 'head.bias')),
        'mmpretrain': ('backbone.', ('head.fc.weight', 'head.fc.bias')),
    },
}

# Models that people mistake for SwinV2: a telling key and the message. The first match counts.
FOREIGN = (
    (
        r'.*relative_position_bias_table',
        'this is Swin V1: it has relative_position_bias_table, which V2 replaced by a continuous position bias, and '
        'its norms stand elsewhere. Its weights do not fit; take a swinv2_* checkpoint.',
    ),
    (
        r'.*\.attn\.meta_mlp\..*',
        "this is timm's swinv2_cr, a variant of its own with another position bias. Take a swinv2_* checkpoint.",
    ),
    (r'(.*\.)?layer1\.0\.(conv1|bn1)\..*', 'this looks like a ResNet.'),
    (r'(.*\.)?(cls_token|embeddings\.cls_token|blocks\.0\.attn\.qkv\.weight)', 'this looks like a plain ViT.'),
    (r'(.*\.)?(downsample_layers\.0\.0|stages\.0\.(blocks\.)?0\.(dwconv|conv_dw))\..*', 'this looks like a ConvNeXt.'),
)
