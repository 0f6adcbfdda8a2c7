"""Recipe: the parts of a training that a config names, such as precision, layer-wise decay and weights."""
