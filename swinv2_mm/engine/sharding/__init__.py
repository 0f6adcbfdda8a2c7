"""Optimizer state and parameters divided among processes: ZeRO-1 and FSDP2."""
