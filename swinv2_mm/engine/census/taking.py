"""Take the census of a data set of the frameworks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO

from mmengine.dataset import BaseDataset
from mmengine.registry import TRANSFORMS

from swinv2_mm.engine.census import Census, check_census, check_files, count_objects
from swinv2_mm.engine.census.coco import beyond, left_out, repeated_files, use_content
from swinv2_mm.engine.census.maps import MOST, check_pixels, read_maps
from swinv2_mm.engine.config.parts import nested
from swinv2_mm.errors import listed


def load(dataset: BaseDataset, content: dict | None = None) -> None:
    """Load and filter the data list of a data set that was built with ``lazy_init``, with ``content`` of COCO's."""
    if content is not None:
        use_content(dataset, content)
    dataset.serialize_data = False
    with redirect_stdout(StringIO()):  # pycocotools prints
        dataset.full_init()


def take_census(
    dataset: BaseDataset,
    key: str,
    config: dict,
    content: dict | None,
    tolerant: bool,
    ignore_index: int = 255,
    num_classes: int = 0,
    most: int | None = MOST,
    track: Callable[[Sequence[dict]], Iterable[dict]] = iter,
) -> Census:
    """Count what a loaded data set gives to a run.

    Args:
        key: The key of its ``config``.
        content: Its annotation file, if that is COCO's.
        tolerant: Corrupt samples are skipped, so that single ones are no mistake.
        num_classes: Of the head of a segmentor, if it has more than the data set.
        most: As many maps are read; None for all.
        track: Shows the progress of reading maps.

    Raises:
        UserError: Files are missing, or nothing is left to learn from.
    """
    folders = [path for path in dataset.data_prefix.values() if path]
    source = dataset.ann_file or (str(folders[-1]) if folders else key)
    where = f'{key}: {source}'
    census = Census(key, source, list(dataset.metainfo.get('classes') or ()))
    entries = dataset.data_list
    masks = find_loading(config, 'with_mask')
    if content is not None:
        census.pictures_left_out = len(content['images']) - len(entries)
        census.left_out = left_out(content, census.classes, masks)
        census.warnings += _doubts(content, where)
    if others := getattr(dataset, 'left_out', None):  # by UnlabelledImages
        census.warnings.append(
            f'{where}: {len(others)} files are left out, which have other endings: {listed(others)}.'
        )
    count_objects(census, entries, masks)
    load_map = map_loading(config, dataset)
    labels = 256 if tolerant else max(len(census.classes), num_classes)
    if load_map is not None and labels:
        census.pixels = read_maps(entries, load_map, labels, ignore_index, where, most, track)
        check_pixels(census.pixels, len(census.classes), ignore_index, where)
    check_census(census)
    check_files(census, entries, 'img_path', tolerant)
    if load_map is not None or find_loading(config, 'with_seg'):
        check_files(census, entries, 'seg_map_path', tolerant)
    return census


def _doubts(content: dict, where: str) -> Iterator[str]:
    """What is formally right in a COCO file, and mostly a mistake."""
    reaching, every = beyond(content), len(content['annotations'])
    if reaching > 0.2 * every:
        yield (
            f'{where}: {reaching} of {every} boxes reach beyond their picture. COCO has [x, y, width, height]; were '
            'they written as [x1, y1, x2, y2]?'
        )
    files = repeated_files(content)
    if files:
        yield (
            f'{where}: {len(files)} image files are listed more than once, such as {files[0]}. If they come from '
            'several folders, write the folders into file_name.'
        )


def find_loading(config: dict, option: str) -> dict | None:
    """The transform in a pipeline that loads annotations with this option, such as ``with_mask``."""
    for _, part in nested(config.get('pipeline'), 'pipeline'):
        if isinstance(part, dict) and part.get(option) and 'Load' in str(part.get('type')):
            return part
    return None


def map_loading(config: dict, dataset: BaseDataset) -> Callable[[dict], dict] | None:
    """The transform of a pipeline that loads the semantic maps of a data set of MMSegmentation."""
    if type(dataset).__module__.split('.')[0] != 'mmseg':
        return None
    parts = [part for _, part in nested(config.get('pipeline'), 'pipeline') if isinstance(part, dict)]
    loading = next((part for part in parts if str(part.get('type')).endswith('LoadAnnotations')), None)
    return None if loading is None else TRANSFORMS.build(dict(loading))
