"""The Swin Transformer V2 backbone: its block, its attention, its layers, and the kernels that compute them."""

from swinv2_mm.models.simmim import SimMIM
from swinv2_mm.models.swin_v2 import SwinTransformerV2

__all__ = ['SimMIM', 'SwinTransformerV2']
