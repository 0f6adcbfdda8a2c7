"""The census of a run as a table of plain text, for the screen and the log."""

from collections.abc import Sequence

from swinv2_mm.engine.census import Census

_MOST = 24  # classes on the screen: the rarest are shown, since they are what goes wrong


def census_table(censuses: Sequence[Census], whole: bool = False) -> str:
    """The counts of all data sets; objects, or shares of pixels, by class.

    Args:
        whole: Show every class; else the rarest, of more than 24.
    """
    rows = [['data', 'pictures', 'with objects', 'objects', 'left out']]
    for census in censuses:
        reasons = ', '.join(f'{count:,} {reason}' for reason, count in census.left_out.most_common())
        pictures = f'{census.pictures:,}' + (
            f' (+{census.pictures_left_out:,} filtered)' * bool(census.pictures_left_out)
        )
        counted = census.objects is not None and not census.whole_pictures
        objects = f'{census.objects.total():,}' if census.objects is not None and counted else '-'
        rows.append([census.name, pictures, f'{census.with_objects:,}' if counted else '-', objects, reasons])
    if not any(census.objects is not None and not census.whole_pictures for census in censuses):
        rows = [row[:2] for row in rows]
    elif not any(census.left_out for census in censuses):
        rows = [row[:4] for row in rows]
    return '\n\n'.join([_aligned(rows), *_class_tables(censuses, whole)])


def _class_tables(censuses: Sequence[Census], whole: bool) -> list[str]:
    """One table for all data sets with the same classes."""
    groups: dict[tuple[str, ...], list[Census]] = {}
    for census in censuses:
        if census.objects is not None or census.pixels is not None:
            groups.setdefault(tuple(census.classes), []).append(census)
    tables = []
    for classes, group in groups.items():
        shown = list(range(len(classes)))
        if not whole and len(classes) > _MOST:
            shown = sorted(sorted(shown, key=lambda label: _count(group[0], label))[:_MOST])
        rows = [['class', *(_title(census) for census in group)]]
        rows += [[classes[label], *(_cell(census, label) for census in group)] for label in shown]
        if any(census.pixels is not None and census.pixels.ignored for census in group):
            rows.append(['(ignored)', *(_ignored(census) for census in group)])
        if len(shown) < len(classes):
            rows.append([f'… and {len(classes) - len(shown)} more frequent ones'])
        tables.append(_aligned(rows))
    return tables


def _title(census: Census) -> str:
    if census.pixels is None:
        return f'{census.name}, {"pictures" if census.whole_pictures else "objects"}'
    maps = 'all' if census.pixels.all_read else f'{census.pixels.read}'
    return f'{census.name}, pixels of {maps} maps'


def _count(census: Census, label: int) -> int:
    counts = census.pixels.counts if census.pixels is not None else census.objects
    return counts[label] if counts is not None else 0


def _cell(census: Census, label: int) -> str:
    if census.pixels is None:
        return f'{_count(census, label):,}'
    return f'{census.pixels.share(label):.2%}' if census.pixels.counts[label] else '0'


def _ignored(census: Census) -> str:
    pixels = census.pixels
    return (
        f'{pixels.ignored / (pixels.ignored + pixels.counts.total()):.2%}' if pixels is not None and pixels.read else ''
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first flush left, numbers flush right, the last as it is."""
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]) if len(row) > 1 else row[0]]
        cells += [cell.rjust(width) for cell, width in zip(row[1:4], widths[1:4], strict=False)]
        lines.append('  '.join([*cells, *row[4:]]).rstrip())
    return '\n'.join(lines)
