"""Where a run was when a checkpoint was saved inside of an epoch."""

from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import Runner

_KEY = 'inside'  # in the information of the checkpoint's message hub; of no meaning at another iteration


def note_place(runner: Runner, batches: int) -> None:
    """Have the next checkpoint say that ``batches`` of the epoch are done."""
    place = {'iter': runner.iter, 'batches': batches, 'of': len(runner.train_dataloader), 'processes': get_world_size()}
    runner.message_hub.update_info(_KEY, place)


def batches_to_skip(runner: Runner, length: int) -> int:
    """How many of the ``length`` batches of its epoch a resumed run has behind it.

    With other batch sizes, or another number of processes, it is the same part of the epoch, rounded down.
    """
    place = runner.message_hub.runtime_info.get(_KEY) or {}
    if place.get('iter') != runner.iter or not place['batches']:
        return 0
    batches = skipped(place, length)
    if (place['of'], place['processes']) != (length, get_world_size()):
        runner.logger.warning(
            f'The checkpoint was saved after {place["batches"]} of {place["of"]} batches of an epoch, on '
            f'{place["processes"]} process{"es" if place["processes"] > 1 else ""}. With {length} batches on '
            f'{get_world_size()} this run goes on behind {batches}: some samples of this epoch may be seen twice, or '
            'not at all.'
        )
    return batches


def skipped(place: dict[str, Any], length: int) -> int:
    """The same part of an epoch of ``length`` batches."""
    return place['batches'] * length // place['of']


def place_of(checkpoint: dict) -> dict[str, Any] | None:
    """Where inside of an epoch a checkpoint was saved; None at the end of one."""
    place = checkpoint['message_hub'].get('runtime_info', {}).get(_KEY) or {}
    return place if place.get('iter') == checkpoint['meta']['iter'] and place['batches'] else None
