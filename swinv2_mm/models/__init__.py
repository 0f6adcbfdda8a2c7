"""The backbone and its parts."""

from swinv2_mm.models.swin_v2 import SwinTransformerV2

__all__ = ['SwinTransformerV2']
