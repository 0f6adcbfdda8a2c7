"""Attention on GPUs: by Triton kernels of ours, or by a fused kernel of torch."""
