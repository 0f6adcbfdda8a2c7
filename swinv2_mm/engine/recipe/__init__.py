"""What a config of this backbone names: precision, compilation, layer-wise decay, weights, seeds, windows."""
