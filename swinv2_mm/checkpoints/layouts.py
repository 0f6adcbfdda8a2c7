"""The key tables: how the parameters of this backbone are called in other code bases (data, no logic).

Inside a block all code bases descend from Microsoft's names; they differ in containers, and in where the patch
merging lives: at the end of a stage there, at the start of the next one here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One kind of key.

    Attributes:
        source: Regular expression for the whole key; its groups ``i`` and ``rest`` may be used in ``target``.
        target: Our key, with ``{i}`` and ``{rest}``.
        stage_offset: Added to ``{i}``.
        part: The tensor is the ``part[0]``-th of ``part[1]`` that are concatenated along dimension 0.
    """

    source: str
    target: str
    stage_offset: int = 0
    part: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layout:
    """A code base's names.

    Attributes:
        mark: Regular expression for a key that only this layout has.
        prefixes: What may stand before every key.
        rows: Every learned tensor of the backbone matches exactly one.
        dropped: Regular expressions for keys that are no backbone parameters: tables, heads, the final norm.
    """

    mark: str
    prefixes: tuple[str, ...]
    rows: tuple[Row, ...]
    dropped: tuple[str, ...]


_BLOCK = (r'(?P<rest>\d+\.(attn\.(qkv\.weight|q_bias|v_bias|logit_scale|proj\.(weight|bias)|'
          r'cpb_mlp\.(0\.weight|0\.bias|2\.weight))|norm[123]\.(weight|bias)|mlp\.fc[12]\.(weight|bias)))')
_HF_BLOCK = r'encoder\.layers\.(?P<i>\d+)\.blocks\.(?P<rest>\d+)\.'
_WB = r'(?P<rest>weight|bias)'

LAYOUTS = {
    'microsoft': Layout(
        mark=r'layers\.\d+\.blocks\.\d+\.attn\.logit_scale',
        prefixes=('', 'encoder.'),
        rows=(
            Row(r'patch_embed\.(?P<rest>(proj|norm)\.(weight|bias))', 'patch_embed.{rest}'),
            Row(rf'layers\.(?P<i>\d+)\.blocks\.{_BLOCK}', 'stages.{i}.blocks.{rest}'),
            Row(r'layers\.(?P<i>\d+)\.downsample\.(?P<rest>reduction\.weight|norm\.(weight|bias))',
                'stages.{i}.downsample.{rest}', stage_offset=1),
            *(Row(rf'layers\.(?P<i>\d+)\.blocks\.(?P<rest>\d+)\.attn\.rpe_mlp\.{leaf}',
                  f'stages.{{i}}.blocks.{{rest}}.attn.cpb_mlp.{leaf}') for leaf in ('0.weight', '0.bias', '2.weight')),
        ),
        dropped=(r'.*\.(attn_mask|relative_coords_table|relative_position_index)', r'norm\.(weight|bias)',
                 r'head\.(weight|bias)', r'mask_token', r'decoder\..*'),
    ),
    'huggingface': Layout(
        mark=r'encoder\.layers\.\d+\.blocks\.\d+\.attention\.self\.logit_scale',
        prefixes=('', 'swinv2.'),
        rows=(
            Row(rf'embeddings\.patch_embeddings\.projection\.{_WB}', 'patch_embed.proj.{rest}'),
            Row(rf'embeddings\.norm\.{_WB}', 'patch_embed.norm.{rest}'),
            *(Row(rf'{_HF_BLOCK}attention\.self\.{name}\.weight', 'stages.{i}.blocks.{rest}.attn.qkv.weight',
                  part=(part, 3)) for part, name in enumerate(('query', 'key', 'value'))),
            *(Row(_HF_BLOCK + source.replace('.', r'\.'), 'stages.{i}.blocks.{rest}.' + target) for source, target in (
                ('attention.self.query.bias', 'attn.q_bias'),
                ('attention.self.value.bias', 'attn.v_bias'),
                ('attention.self.logit_scale', 'attn.logit_scale'),
                ('attention.self.continuous_position_bias_mlp.0.weight', 'attn.cpb_mlp.0.weight'),
                ('attention.self.continuous_position_bias_mlp.0.bias', 'attn.cpb_mlp.0.bias'),
                ('attention.self.continuous_position_bias_mlp.2.weight', 'attn.cpb_mlp.2.weight'),
                ('attention.output.dense.weight', 'attn.proj.weight'),
                ('attention.output.dense.bias', 'attn.proj.bias'),
                ('layernorm_before.weight', 'norm1.weight'),
                ('layernorm_before.bias', 'norm1.bias'),
                ('layernorm_after.weight', 'norm2.weight'),
                ('layernorm_after.bias', 'norm2.bias'),
                ('intermediate.dense.weight', 'mlp.fc1.weight'),
                ('intermediate.dense.bias', 'mlp.fc1.bias'),
                ('output.dense.weight', 'mlp.fc2.weight'),
                ('output.dense.bias', 'mlp.fc2.bias'),
            )),
            Row(r'encoder\.layers\.(?P<i>\d+)\.downsample\.(?P<rest>reduction\.weight|norm\.(weight|bias))',
                'stages.{i}.downsample.{rest}', stage_offset=1),
        ),
        dropped=(r'.*\.(relative_coords_table|relative_position_index)', r'layernorm\.(weight|bias)',
                 r'classifier\.(weight|bias)', r'embeddings\.mask_token', r'decoder\..*'),
    ),
}
