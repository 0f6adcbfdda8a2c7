"""Predict with a trained detector or segmentor on pictures and videos, and write what it finds."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import sha256 as digest_of
from itertools import chain
from pathlib import Path
from typing import Any

from mmengine.config import Config

from swinv2_mm.checkpoints.files import sha256
from swinv2_mm.engine.diagnosis.corrupt_data import reason
from swinv2_mm.engine.display.progress import counting
from swinv2_mm.engine.recipe.precision import PRECISIONS
from swinv2_mm.errors import Stopped, UserError, say
from swinv2_mm.inference.drawing import Drawer
from swinv2_mm.inference.folder import OutputFolder, coco_results
from swinv2_mm.inference.found import Found, found_in
from swinv2_mm.inference.inputs import Input, find_inputs
from swinv2_mm.inference.model import Model, read_model
from swinv2_mm.inference.tiles import predict_in_tiles
from swinv2_mm.inference.videos import frames, length, opened


@dataclass
class Predictions:
    """What a model found.

    Attributes:
        folder: Where it was written.
        content: What ``predictions.json`` holds: ``task``, ``classes``, ``palette``, and ``images`` with an entry for
            each picture and each frame of a video.
        kept: How many inputs an earlier run had finished.
        failed: The inputs that could not be read, and why.
    """

    folder: Path
    content: dict[str, Any]
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def predict(
    checkpoint: str | os.PathLike,
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    config: str | os.PathLike | None = None,
    score_thr: float = 0.3,
    batch_size: int = 1,
    device: str | None = None,
    amp: str | None = None,
    window_size: int | Sequence[int] | None = None,
    tile: int | None = None,
    overlap: float = 0.2,
    pictures: bool = True,
    force: bool = False,
    report: bool = False,
    cfg_options: dict[str, Any] | None = None,
) -> Predictions:
    """Predict on pictures and videos, and write pictures, maps and data into a folder; see docs/inference.md.

    Args:
        checkpoint: Of a run of MMDetection or MMSegmentation.
        inputs: Pictures, folders with all below, globs, videos, numbers of cameras.
        out: The folder; what an earlier run with the same settings finished is kept.
        config: Of the run; None for the one in the checkpoint.
        score_thr: Objects below this score are left out.
        batch_size: How many pictures of one size are computed at once; the results do not depend on it.
        device: As ``'cpu'`` or ``'cuda:1'``; None for the best one.
        amp: ``'bf16'``, ``'fp16'``, ``'auto'``; None computes in float32.
        window_size: Another window than that of the training.
        tile: Predict on larger pictures in tiles of this many pixels.
        overlap: The share of a tile that the next one sees again, 0 to 0.5.
        pictures: Whether to draw.
        force: Replace what is in the folder.
        report: Write ``report.html``, a page to look at.
        cfg_options: Dotted keys and values to merge into the config.

    Raises:
        UserError: An argument, the checkpoint, an input or the folder cannot be used; before anything is predicted.
            Inputs that cannot be decoded are in ``failed`` of what is returned.
    """
    _check_numbers(score_thr, batch_size, amp, tile, overlap)
    found = find_inputs([inputs] if isinstance(inputs, str | os.PathLike) else inputs, Path(out).expanduser())
    cfg, content = read_model(checkpoint, config, cfg_options)
    model = Model(cfg, content, checkpoint, device, amp, window_size)
    if model.task == 'panoptic' and tile is not None:
        raise UserError('--tile: segments of a panoptic model cannot be merged across tiles. Leave it out.')
    options = {'--score-thr': score_thr, '--amp': amp, '--window-size': window_size, '--tile': tile}
    if tile is not None:
        options['--overlap'] = overlap
    folder = OutputFolder(out, _hashes(cfg, checkpoint) | options, force)
    kept = folder.kept(found, pictures, model.task in ('semantic', 'panoptic'))
    _tell(found, kept, folder.path)
    run = _Run(model, folder, Drawer(model) if pictures else None, score_thr, batch_size, tile, overlap)
    run.all([each for each in found if each.file not in kept])
    entries = kept | run.entries
    images = [entry for each in found for entry in entries.get(each.file, ())]
    return Predictions(folder.path, _written(folder, model, images, found if report else ()), len(kept), run.failed)


def _hashes(cfg: Config, checkpoint: str | os.PathLike) -> dict[str, str]:
    """What tells a model from another one."""
    return {
        'checkpoint': sha256(Path(checkpoint).expanduser()),
        'config': digest_of(cfg.pretty_text.encode()).hexdigest(),
    }


def _written(folder: OutputFolder, model: Model, images: list[dict], reported: Sequence[Input]) -> dict[str, Any]:
    """Write the files about all inputs; returns what ``predictions.json`` holds."""
    if model.task == 'detection' and any('segmentation' in record for each in images for record in each['predictions']):
        model.task = 'instance'  # a head that predicts masks beside its boxes
    content = {'task': model.task, 'classes': model.classes, 'palette': [*map(list, model.palette)], 'images': images}
    folder.write_json('predictions.json', content)
    if model.task != 'semantic':
        for name, part in zip(('coco_results.json', 'coco_images.json'), coco_results(content), strict=True):
            folder.write_json(name, part)
    if reported:
        folder.write_report(reported)
    return content


def _check_numbers(score_thr: float, batch_size: int, amp: str | None, tile: int | None, overlap: float) -> None:
    if not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr {score_thr}: a score is between 0 and 1.')
    if batch_size < 1:
        raise UserError(f'--batch-size {batch_size}: at least one picture is computed at once.')
    if amp is not None and amp not in PRECISIONS:
        raise UserError(f'--amp {amp}: choose from {", ".join(PRECISIONS)}.')
    if tile is not None and tile < 32:
        raise UserError(f'--tile {tile}: a tile has 32 pixels at least, and should be larger than the objects.')
    if not 0 <= overlap <= 0.5:
        raise UserError(f'--overlap {overlap}: it is a share of the tile, from 0 to 0.5.')


def _tell(found: Sequence[Input], kept: dict, folder: Path) -> None:
    kinds = {kind: sum(each.kind == kind for each in found) for kind in ('picture', 'video', 'camera')}
    parts = [f'{number} {kind}{"s" if number > 1 else ""}' for kind, number in kinds.items() if number]
    earlier = f'; {len(kept)} of them are in {folder} from an earlier run and kept (--force predicts anew)'
    say(f'{", ".join(parts)}{earlier if kept else ""}')


@dataclass
class _Item:
    """A picture or frame on its way through the model."""

    source: Input
    loaded: dict[str, Any]
    frame: int | None = None


@dataclass
class _Run:
    """Predicts on inputs one after the other, and writes what it finds."""

    model: Model
    folder: OutputFolder
    draw: Drawer | None
    score_thr: float
    batch_size: int
    tile: int | None
    overlap: float
    entries: dict[str, list[dict]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    advance: Callable[[], None] = lambda: None

    def all(self, inputs: Sequence[Input]) -> None:
        pictures = [each for each in inputs if each.kind == 'picture']
        videos = [each for each in inputs if each.kind != 'picture']
        total = len(pictures) + sum(length(each) for each in videos)
        try:
            with counting(total, 'pictures') as self.advance:
                for item, found in self._predicted(self._loaded(pictures)):
                    drawn = None
                    if self.draw:
                        image = self.draw(self.model.picture(item.loaded), found)
                        drawn = self.folder.write_picture(item.source.picture, image)
                    self._finish(item.source, [self._entry(item, found, drawn, item.source.map)])
                for each in videos:
                    self._video(each)
        except Stopped as stopped:
            stopped.remedy = f'The same command goes on from what is in {self.folder.path}.'
            raise

    def _loaded(self, pictures: Sequence[Input]) -> Iterator[_Item]:
        for each in pictures:
            try:
                loaded = self.model.load(each.source)
            except Exception as error:  # whatever decoders raise
                self._fail(each, reason(error))
            else:
                yield _Item(each, loaded)

    def _predicted(self, items: Iterator[_Item]) -> Iterator[tuple[_Item, Found]]:
        """What is found in each item, in their order; a batch has pictures of one shape, so that none is padded."""
        waiting: list[tuple[_Item, dict]] = []
        for item in items:
            if self.tile is not None and max(item.loaded['img'].shape[:2]) > self.tile:
                yield from self._batch(waiting)
                arguments = self.tile, self.overlap, self.batch_size, self.score_thr
                yield item, predict_in_tiles(self.model, item.loaded, *arguments)
                self.advance()
                continue
            try:
                prepared = self.model.prepare(item.loaded)
            except Exception as error:  # a picture too small to be resized
                self._fail(item.source, reason(error))
                continue
            if waiting and waiting[0][1]['inputs'].shape != prepared['inputs'].shape:
                yield from self._batch(waiting)
            waiting.append((item, prepared))
            if len(waiting) == self.batch_size:
                yield from self._batch(waiting)
        yield from self._batch(waiting)

    def _batch(self, waiting: list[tuple[_Item, dict]]) -> Iterator[tuple[_Item, Found]]:
        if waiting:
            samples = self.model.predict([prepared for _, prepared in waiting])
            for (item, _), sample in zip(waiting, samples, strict=True):
                yield item, found_in(sample, self.model.task, self.score_thr, len(self.model.classes))
                self.advance()
            waiting.clear()

    def _video(self, each: Input) -> None:
        """Predict on the frames of a video; a camera is watched until Ctrl-C."""
        import cv2

        reader = opened(each)
        fps = reader.get(cv2.CAP_PROP_FPS)
        some, first = reader.read()
        if not some:
            return self._fail(each, 'no frame of it can be read')
        all_frames = enumerate(chain([first], frames(reader)))
        items = (_Item(each, self.model.from_array(frame), number) for number, frame in all_frames)
        video = self.folder.video(each.picture, fps if 0 < fps < 1000 else 25.0) if self.draw else nullcontext()
        entries = []
        with video as write:
            try:
                for item, found in self._predicted(items):
                    if write:
                        write(self.draw(self.model.picture(item.loaded), found))
                    drawn = f'pictures/{each.picture}' if write else None
                    entries.append(self._entry(item, found, drawn, f'{each.map}/{item.frame:06}.png'))
            except KeyboardInterrupt:
                if each.kind != 'camera':
                    raise
            finally:
                reader.release()
        self._finish(each, entries)

    def _entry(self, item: _Item, found: Found, drawn: str | None, map_name: str) -> dict[str, Any]:
        """What ``predictions.json`` says of a picture or a frame; its map is written."""
        entry: dict[str, Any] = {'file': item.source.file} | ({} if item.frame is None else {'frame': item.frame})
        entry |= {'width': found.width, 'height': found.height, 'picture': drawn, 'map': None}
        if found.map is not None:
            entry['map'] = self.folder.write_map(map_name, found.map, self.model.palette)
        entry['predictions'] = found.records()
        if self.model.task == 'semantic':
            entry['pixels'] = found.pixels(len(self.model.classes))
        return entry

    def _finish(self, each: Input, entries: list[dict]) -> None:
        self.entries[each.file] = entries
        self.folder.add(each, entries)

    def _fail(self, each: Input, why: str) -> None:
        self.failed[each.file] = why
        say(f'passed over: {each.source}: {why}')
        if each.kind == 'picture':
            self.advance()
