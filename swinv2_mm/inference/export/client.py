#!/usr/bin/env python
"""Run an exported file on a picture; it needs numpy, Pillow and onnxruntime, and neither torch nor mmcv.

    python client.py upernet.onnx picture.jpg out.png
    python client.py backbone.onnx picture.jpg

A segmentor writes a picture of the classes in the colours of the data set, and prints the share of each class; a
detector of two stages prints what it found; other files print the shapes of their results. Copy this file to where it
is needed: it imports nothing of its own package.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


def load(path: str) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    """A session, and the metadata of the file: task, classes, palette, mean, std, channels."""
    session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())

    def parsed(value: str) -> Any:
        try:
            return json.loads(value)
        except ValueError:
            return value

    return session, {key: parsed(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}


def images_of(picture: Image.Image, about: dict[str, Any]) -> np.ndarray:
    """The input ``(1, 3, H, W)`` in float32: pixels of 0 to 255, scaled here only if the graph does not do it."""
    pixels = np.asarray(picture.convert('RGB'), dtype=np.float32)
    if about['channels'] == 'BGR':
        pixels = pixels[..., ::-1]
    if not about['normalized_in_graph'] and 'mean' in about:
        pixels = (pixels - np.float32(about['mean'])) / np.float32(about['std'])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def paste(mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float = 0.5) -> np.ndarray:
    """The mask of a detection in its picture: ``(h, w)`` probabilities within a box of x1, y1, x2, y2, resized
    bilinearly, to ``(height, width)`` of bool."""

    def shares(start: float, stop: float, length: int, cells: int) -> np.ndarray:  # (length, cells + 2)
        at = (np.arange(length) + 0.5 - start) / max(stop - start, 1e-6) * cells + 0.5
        at = at.clip(0, cells + 1)[:, None]  # outside of the box is the border of zeros
        return np.maximum(0, 1 - np.abs(at - np.arange(cells + 2)))

    down, across = shares(box[1], box[3], height, mask.shape[0]), shares(box[0], box[2], width, mask.shape[1])
    return down @ np.pad(mask, 1) @ across.T >= threshold


def main(file: str, picture: str, out: str = 'classes.png') -> None:
    session, about = load(file)
    images = images_of(Image.open(picture), about)
    results = session.run(None, {'images': images})
    if about['task'] == 'detection':
        boxes, scores, labels, *masks = results
        for i, (box, score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
            area = f', {paste(masks[0][i], box, *images.shape[2:]).sum()} pixels' if masks else ''
            name = about['classes'][label] if 'classes' in about else label
            print(f'{name} {score:.2f} at {" ".join(f"{side:.0f}" for side in box)}{area}')
        return
    if about['task'] != 'segmentation':
        for result, description in zip(results, session.get_outputs(), strict=True):
            print(description.name, *result.shape)
        return
    classes = results[0][0].argmax(0) if results[0].ndim == 4 else results[0][0]
    names = about.get('classes') or [str(number) for number in range(int(classes.max()) + 1)]
    for number, name in enumerate(names):
        share = (classes == number).mean()
        if share:
            print(f'{name} {share:.1%}')
    drawn = Image.fromarray(classes.astype(np.uint8))
    drawn.putpalette(np.asarray(about.get('palette') or np.arange(768).reshape(-1, 3) % 256, dtype=np.uint8).tobytes())
    drawn.save(out)


if __name__ == '__main__':
    main(*sys.argv[1:])
