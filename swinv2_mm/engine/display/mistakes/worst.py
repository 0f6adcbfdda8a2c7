"""The worst pictures of a test, by several numbers at once, in bounded memory."""

from heapq import heappush, heappushpop
from itertools import count


class Worst:
    """Keeps the details of a few records, and drops those of all others.

    Args:
        number: How many to keep for each number that ``record['order']`` has; the largest are the worst.
    """

    def __init__(self, number: int):
        self._number = number
        self._heaps: dict[str, list] = {}
        self._counter = count()

    def wants(self, order: dict[str, float]) -> bool:
        """Whether a record with these numbers would be kept."""
        return any(
            value > 0 and (len(heap := self._heaps.get(name, [])) < self._number or value > heap[0][0])
            for name, value in order.items()
        )

    def keep(self, record: dict) -> None:
        """Keep the ``detail`` of a record as long as no worse ones take its places."""
        names = [name for name, value in record['order'].items() if value > 0]
        record['places'] = len(names)
        for name in names:
            heap = self._heaps.setdefault(name, [])
            entry = record['order'][name], -next(self._counter), record
            if len(heap) < self._number:
                heappush(heap, entry)
                continue
            *_, last = heappushpop(heap, entry)
            last['places'] -= 1
            if not last['places']:
                last['detail'] = None


def chosen(records: list[dict], number: int) -> list[dict]:
    """The records that are among the worst by any number, the worst by the first number in front."""
    names = list(dict.fromkeys(name for record in records for name in record['order']))
    kept: dict[int, dict] = {}
    for name in names:
        ranked = sorted((record for record in records if record.get('detail')), key=lambda each: -each['order'][name])
        kept |= {id(record): record for record in ranked[:number] if record['order'][name] > 0}
    return sorted(kept.values(), key=lambda record: [-record['order'][name] for name in names])
