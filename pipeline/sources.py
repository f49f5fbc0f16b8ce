"""Is a source still what was banked? Size and modification time first, and where they differ a digest of the content.

Copying a data set changes the times and nothing else, and must not cost a night of extraction; an edited file must not
keep its old embeddings.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.image_folders import list_images

_ENDS_BYTES = 1 << 16


def source_text(path: str) -> str:
    """A path as the bank stores it: bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def source_path(text: str) -> str:
    """The path that `source_text` wrote."""
    return re.sub(r"\\x([89a-f][0-9a-f])", lambda found: chr(0xDC00 + int(found.group(1), 16)), text)


def _files(path: str, kind: str) -> Iterable[Path]:
    return [Path(path)] if kind == "video" else [Path(image) for image in list_images(path)]


def source_state(path: str, kind: str) -> tuple[int, int]:
    """Size in bytes and modification time in ns; of a folder of images the sum and the latest; (-1, -1) if gone."""
    try:
        states = [file.stat() for file in _files(path, kind)]
    except OSError:
        return -1, -1
    return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=-1)


def source_digest(path: str, kind: str) -> str:
    """sha256 over the size, the first and the last 64 KiB (for images: and the name) of each file.

    Enough to tell an edited or re-encoded file from a copied one, without reading a film twice.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in _files(path, kind):
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            name = "" if kind == "video" else source_text(file.name)
            digest.update(f"{name}\0{size}\0".encode())
            digest.update(opened.read(_ENDS_BYTES))
            if size > _ENDS_BYTES:
                opened.seek(max(_ENDS_BYTES, size - _ENDS_BYTES))
                digest.update(opened.read(_ENDS_BYTES))
    return digest.hexdigest()
