"""Is a source still what was banked? Size and modification time first, and where they differ a digest of the content.

Copying a data set changes the times and nothing else, and must not cost a night of extraction; an edited file must not
keep its old embeddings. Of features that another program made, the times that lie beside them in files of their own
count as well.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from pipeline.errors import VideoError
from pipeline.image_folders import list_images

TIMES_SUFFIX = ".times.npz"  # x.times.npz has the times of x.npy
TIMES_OF_STEM = ("timestamps_ms", "fps")  # STEM_timestamps_ms.npy those of STEM_rgb.npy, as video_features leaves them


def source_text(path: str) -> str:
    """A path as the bank stores it: bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def source_path(text: str) -> str:
    """The path that `source_text` wrote."""
    return re.sub(r"\\x([89a-f][0-9a-f])", lambda found: chr(0xDC00 + int(found.group(1), 16)), text)


def _files(path: str, kind: str) -> Iterable[str]:
    if kind == "features" and path.lower().endswith(".npy"):
        return [path, *filter(os.path.exists, _beside(path))]
    return list_images(path) if kind == "images" else [path]


def _beside(path: str) -> Iterable[str]:
    """Where the times of features may lie; how much of a name is the stem, only its writer knows."""
    whole = path[: -len(".npy")]
    yield whole + TIMES_SUFFIX
    folder, _, name = whole.rpartition("/")
    parts = name.split("_")
    for count in range(1, len(parts)):
        stem = "_".join(parts[:count])
        yield from (f"{folder}/{stem}_{what}.npy" for what in TIMES_OF_STEM)


def source_state(path: str, kind: str) -> tuple[int, int]:
    """Size in bytes and modification time in ns; of several files the sum and the latest; (-1, -1) if gone."""
    try:
        states = [os.stat(file) for file in _files(path, kind)]  # noqa: PTH116 - of 100,000 files, a Path takes as long
    except (OSError, VideoError):
        return -1, -1
    return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=-1)


@lru_cache(maxsize=32)
def _digest(path: Path, size: int, mtime: int) -> str:
    """sha256 of a file; kept for a while, since a manifest may take many spans of one film."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def source_digest(path: str, kind: str) -> str:
    """sha256 of a video file, or of one of features; of a folder of images, and of features with times beside them,
    over their names and digests in order.

    Raises:
        OSError: a file cannot be read.
    """
    digests = []
    for file in map(Path, _files(path, kind)):
        state = file.stat()
        digests.append((source_text(file.name), _digest(file, state.st_size, state.st_mtime_ns)))
    if kind != "images" and len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256("\0".join(f"{name}\0{digest}" for name, digest in digests).encode()).hexdigest()
