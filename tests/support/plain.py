"""Finding values that torch would not read by default."""

from collections import Counter, OrderedDict

import torch

PLAIN = (type(None), bool, int, float, str, torch.Tensor)


def foreign(value, place=''):
    """The places and types of everything that is not plain; exact types, since a subclass is pickled by its name."""
    if type(value) in (dict, OrderedDict, Counter):  # the last are the milestones of a scheduler
        parts = [*value.items(), *(vars(value) if type(value) is OrderedDict else {}).items()]
        return [found for key, inner in parts for found in foreign(key, place) + foreign(inner, f'{place}.{key}')]
    if type(value) in (list, tuple):
        return [found for index, inner in enumerate(value) for found in foreign(inner, f'{place}[{index}]')]
    return [] if type(value) in PLAIN else [f'{place}: {type(value)}']
