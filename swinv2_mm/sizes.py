"""The published sizes of Swin Transformer V2 (paper, section 3.5); every head has 32 channels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """Widths and depths of a size."""

    embed_dims: int  # channels of the first stage; each later stage doubles them
    depths: tuple[int, ...]  # blocks per stage
    num_heads: tuple[int, ...]  # attention heads per stage
    extra_norm_every: int = 0  # blocks of a stage from one LayerNorm on the main branch to the next; 0 for none


VARIANTS = {
    'tiny': Variant(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    'small': Variant(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    'base': Variant(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    'large': Variant(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    'huge': Variant(352, (2, 2, 18, 2), (11, 22, 44, 88), extra_norm_every=6),
    'giant': Variant(512, (2, 2, 42, 4), (16, 32, 64, 128), extra_norm_every=6),
}


def get_variant(arch: str) -> Variant:
    """Look up a size by its name, in any case; another name is a ValueError."""
    variant = VARIANTS.get(str(arch).lower())
    if variant is None:
        raise ValueError(
            f'arch={arch!r} is unknown; choose one of {", ".join(VARIANTS)}, or give embed_dims, depths and num_heads.'
        )
    return variant
