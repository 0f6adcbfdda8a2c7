"""The pictures in a folder and below it."""

import os
from collections.abc import Collection
from pathlib import Path

from swinv2_mm.errors import UserError, listed, say

# By which a folder's pictures are known; a file that is named itself is tried, whatever its ending.
PICTURES = ('.bmp', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.ppm', '.tif', '.tiff')
PICTURES += ('.webp',)


def pictures_in(folder: str, written: Collection[Path] = ()) -> list[str]:
    """List the pictures in a folder and below, known by their endings, in the order of their names.

    Hidden files and folders are left out; links to folders are followed once.

    Args:
        folder: The folder; the paths start with it.
        written: Folders below that are left out.

    Raises:
        UserError: There is none.
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
            (found if name.lower().endswith(PICTURES) else others).append(os.path.join(root, name))
    if not found:
        what = f' What it holds: {listed(others, 3)}.' if others else ' It is empty.'
        raise UserError(f'{folder} holds no file that is named as a picture ({", ".join(PICTURES)}).{what}')
    if others:
        say(f'{folder}: left out is what is not named as a picture: {listed(others, 3)}')
    return found
