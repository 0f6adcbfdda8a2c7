"""A page to look at: pictures of data sets with their annotations, in one HTML file that needs nothing else."""

import os
from collections.abc import Mapping
from typing import Any

from mmengine.dataset import BaseDataset

from swinv2_mm.engine.display.gallery.outlines import jpeg, objects_of, overlay, shares_of
from swinv2_mm.engine.display.gallery.page import (
    below,
    choose,
    colours_of,
    common_folder,
    css,
    hues,
    in_words,
    write_gallery,
)
from swinv2_mm.engine.display.loading import map_of, path_in, picture_of
from swinv2_mm.errors import listed


def write_page(
    path: str | os.PathLike,
    title: str,
    datasets: Mapping[str, BaseDataset],
    report: str = '',
    at_most: int = 50,
    bgr_to_rgb: bool = False,
) -> None:
    """Write pictures of data sets with their annotations; the file appears complete or not at all.

    Args:
        path: The HTML file.
        title: Its heading.
        datasets: By the names that the page shows; ``full_init`` has been called. Images and semantic maps are read by
            their pipelines. An image or annotation that cannot be read is named on the page.
        report: Text to show above the pictures, such as a table of counts.
        at_most: How many pictures of each data set. They are evenly spaced, and few classes are left out.
        bgr_to_rgb: See :func:`~swinv2_mm.engine.display.loading.swaps_channels`.

    Raises:
        OSError: It cannot be written.
    """
    content = {'datasets': [], 'pictures': []}
    for index, (name, dataset) in enumerate(datasets.items()):
        listed_here = getattr(dataset, 'data_list', ())  # empty if it is serialized
        indices = range(len(dataset))
        chosen = choose([classes_in(i) for i in listed_here or map(dataset.get_data_info, indices)], at_most)
        infos = [dataset.get_data_info(i) for i in chosen]
        above = common_folder([path_in(info) or '' for info in infos])
        classes = [str(each) for each in dataset.metainfo.get('classes') or ()]
        pictures = [{'d': index} | _entry(dataset, info, classes, above, bgr_to_rgb) for info in infos]
        content['pictures'] += pictures
        content['datasets'].append(
            {
                'name': name,
                'number': len(dataset),
                'classes': classes,
                'colours': [css(colour) for colour in hues(len(classes))],
            }
        )
    write_gallery(path, title, content, report)


def classes_in(info: dict) -> set[int]:
    """The labels of the objects of a sample, without those that are ignored."""
    return {
        int(instance.get('bbox_label', -1))
        for instance in info.get('instances') or ()
        if not instance.get('ignore_flag')
    }


def _entry(dataset: Any, info: dict, classes: list[str], above: str, bgr_to_rgb: bool) -> dict:
    """What the page knows of one picture; in the place of what cannot be read, ``faults`` say why."""
    path = path_in(info) or f'sample {info.get("sample_idx")}'
    entry: dict[str, Any] = {'path': path, 'name': below(path, above), 'faults': []}
    try:
        picture = picture_of(dataset, info, bgr_to_rgb)
        height, width = picture.shape[:2]
        entry |= {'w': width, 'h': height, 'src': jpeg(picture)}
        said = info.get('width', width), info.get('height', height)
        if said != (width, height):
            entry['faults'].append(f'it has {width} x {height} pixels, its annotations are for {said[0]} x {said[1]}')
        entry['objects'], faults = objects_of(info, said[1], said[0])
        entry['faults'] += [f'{listed(faults, 3)}'] if faults else []
        labels = map_of(dataset, info)
        if labels is not None:
            colours = colours_of(dataset.metainfo.get('palette'), len(classes))
            if 'instances' in info:  # then the classes are those of the objects
                classes = [f'label {label}' for label in range(256)]
                colours = hues(256)
            shares = shares_of(labels, len(classes))
            entry['maps'] = {'labels': overlay(labels, colours)}
            entry['shares'] = [[classes[label], share, css(colours[label])] for label, share in shares]
    except Exception as error:  # of files, decoders and loading transforms
        entry['faults'].append(in_words(error))
    return entry
