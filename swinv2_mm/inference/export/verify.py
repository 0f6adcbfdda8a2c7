"""A file beside the model that it was made from: ONNX Runtime and PyTorch on the same images of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from swinv2_mm.errors import UserError, say
from swinv2_mm.inference.export.graph import backbone_of
from swinv2_mm.inference.export.parts import Part, SegmentorPart

Pair = tuple[int, int]

# Odd and not square, smaller than a window, and one that pads every stage.
SIZES = ((64, 96), (32, 32), (97, 131), (160, 33), (224, 256))


def session(path: str | Path) -> Any:
    """A session of ONNX Runtime on the CPU, which says only errors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def differences(part: Part, path: str | Path, sizes: Sequence[Pair] = SIZES) -> dict[Pair, float]:
    """The largest difference between the results of a file and of its model, relative to the largest value of each.

    Of classes that differ, the difference of their logits counts: two classes may be equally likely.
    """
    running, channels, found = session(path), backbone_of(part).patch_embed.proj.in_channels, {}
    generator, detections = torch.Generator().manual_seed(0), 0
    for index, (H, W) in enumerate(sizes):
        images = torch.rand(1 if part.single else 1 + index % 2, channels, H, W, generator=generator) * 255
        if part.task == 'features':
            images = images / 64 - 2
        if part.task == 'detection':  # spots of some pixels, not noise
            images = F.avg_pool2d(images, 9, stride=1, padding=4, count_include_pad=False).sub(96).mul(4).clamp(0, 255)
        mine = [torch.from_numpy(np.array(one)) for one in running.run(None, {'images': images.numpy()})]
        with torch.no_grad():
            if isinstance(part, SegmentorPart) and not part.logits:
                found[H, W] = _shortfall(part.scores(images), mine[0], part.model.decode_head.threshold)
                continue
            theirs = part(images)
        theirs = (theirs,) if isinstance(theirs, torch.Tensor) else theirs
        if part.task == 'detection':
            found[H, W] = difference_of_detections(mine, theirs, max(H, W))
            detections += len(theirs[0])
            continue
        found[H, W] = max(_difference(a, b) for a, b in zip(mine, theirs, strict=True))
    if part.task == 'detection':
        hint = '' if detections else '; --cfg-options model.test_cfg.rcnn.score_thr=0 gives some, in a file to try'
        say(f'{detections} detections were compared{hint}')
    return found


def _difference(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    if mine.shape != theirs.shape:
        return float('inf')
    error = (mine.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-12)
    return float(error.nan_to_num(nan=float('inf')))


def difference_of_detections(mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], side: int) -> float:
    """How far each detection of either is from the nearest of the other.

    That is in boxes relative to ``side``, the longer one of the image, in scores and in masks; 1 without one of its
    class, and if their numbers differ by more than 5 %. The largest of 95 in 100 counts: NMS turns a difference in
    rounding into another box where two are equally good.

    Args:
        mine: Boxes ``(n, 4)``, scores ``(n,)``, labels ``(n,)``, and perhaps masks ``(n, h, w)``.
        theirs: The same, of m detections.
    """
    n, m = len(mine[0]), len(theirs[0])
    if not n or not m or abs(n - m) > 0.05 * max(n, m):
        return float(n != m)
    far = (mine[2][:, None] != theirs[2]).float()
    for index, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        if index == 2:
            continue
        whole = 1 if index else side
        distance = (one.reshape(n, 1, -1) - other.reshape(1, m, -1)).abs().amax(-1) / whole
        far = torch.maximum(far, distance)
    far = far.nan_to_num(nan=float('inf'))
    return max(float(far.amin(axis).quantile(0.95, interpolation='lower')) for axis in (0, 1))


def _shortfall(logits: torch.Tensor, classes: torch.Tensor, threshold: float | None) -> float:
    """How far the logits of some classes are below those of the best, relative to the largest; for a single channel how
    far the probability of a wrong side is from the threshold."""
    if classes.shape != (logits.shape[0], *logits.shape[2:]):
        return float('inf')
    if logits.shape[1] == 1:
        distance = logits[:, 0].sigmoid() - threshold
        return float((distance.abs() * ((distance > 0) != classes.bool())).max())
    chosen = logits.gather(1, classes.unsqueeze(1))[:, 0]
    return float(((logits.amax(1) - chosen) / logits.abs().max()).max())


def verify(part: Part, path: str | Path, tolerance: float, sizes: Sequence[Pair] = SIZES) -> float:
    """Compare a file with its model, print the difference at each size, and return the largest.

    Raises:
        UserError: It is above the tolerance.
    """
    found = differences(part, path, sizes)
    for (H, W), error in found.items():
        say(f'{H} x {W}: largest difference from PyTorch {error:.1e}')
    worst = max(found.values())
    if not worst <= tolerance:
        raise UserError(
            f'the file differs from PyTorch by {worst:.1e} of the largest value, and --tolerance is {tolerance:.0e}. '
            'Nothing was left behind. With --half a difference of 1e-2 is usual; more, or more than 1e-4 without it, '
            'is a bug: report it with the config.'
        )
    return worst
