"""The pictures in a folder and below it."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from swinv2_mm.errors import UserError, listed, say

# By which a folder's pictures are known; a file that is named itself is tried, whatever its ending.
PICTURES = ('.bmp', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.ppm', '.tif', '.tiff')
PICTURES += ('.webp',)


def pictures_in(folder: str, written: Collection[Path] = ()) -> list[str]:
    """List the pictures in a folder and below as :func:`files_in` does, and say what is left out.

    Raises:
        UserError: There is none.
    """
    found, others = files_in(folder, PICTURES, written)
    if not found:
        raise UserError(none_found(folder, PICTURES, others))
    if others:
        say(f'{folder}: left out is what is not named as a picture: {listed(others, 3)}')
    return found


def files_in(folder: str, suffixes: Sequence[str], written: Collection[Path] = ()) -> tuple[list[str], list[str]]:
    """List the files in a folder and below, those with these endings and the others, in the order of their names.

    Hidden files and folders are left out; links to folders are followed once.

    Args:
        folder: The folder; the paths start with it.
        suffixes: In lower case; those of the files may be in capitals.
        written: Folders below that are left out.
    """
    seen, found, others = set(), [], []
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen or Path(root) in written:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in sorted(name for name in names if not name.startswith('.')):
            (found if name.lower().endswith(tuple(suffixes)) else others).append(os.path.join(root, name))
    return found, others


def none_found(folder: str, suffixes: Sequence[str], others: Sequence[str]) -> str:
    """Say that a folder has no such file, and what it has."""
    what = f' What it holds: {listed(others, 3)}.' if others else ' It is empty.'
    return f'{folder} holds no file that is named as a picture ({", ".join(suffixes)}).{what}'
