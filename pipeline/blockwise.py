"""More rows than memory holds: cut into blocks, each read when its turn comes, as one dask array.

A block is several whole videos or a part of a long one. Two threads work on blocks while others wait to be read, so no
more than a few are ever in memory; what is computed of each is combined as soon as it is there.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

BLOCK_BYTES = 64 << 20  # of a block of rows in float64

# Some rows of one video: its position, the first row, and where they end.
Span = tuple[int, int, int]
Read = Callable[[list[Span]], np.ndarray]  # spans -> something of each of their rows, (n, width) float32

_THREADS = 2


def rows_at_once(numbers: int) -> int:
    """How many rows of so many numbers make a block."""
    return max(1, BLOCK_BYTES // (8 * numbers))


def in_blocks(videos: Iterable[int], lengths: Iterable[int], at_once: int) -> list[list[Span]]:
    """The rows of videos in blocks of at most `at_once`; a video is divided only where it is longer than that.

    Args:
        videos: their positions.
        lengths: how many rows each has.
        at_once: rows of a block.
    """
    blocks: list[list[Span]] = []
    room = 0
    for video, length in zip(videos, lengths, strict=True):
        for start in range(0, length, at_once):
            stop = min(start + at_once, length)
            if length > room:
                blocks.append([])
                room = at_once
            blocks[-1].append((video, start, stop))
            room = room - length if length <= at_once else 0
    return blocks


def lazy(read: Read, blocks: Sequence[list[Span]], counts: Sequence[int], width: int) -> Any:
    """All rows as a dask array (n, width) float32, a chunk for each block; `counts`: how many rows each gives."""
    import dask.array
    from dask.delayed import delayed

    later = delayed(read, pure=False)
    return dask.array.concatenate(
        [
            dask.array.from_delayed(later(spans), (count, width), dtype=np.float32)
            for spans, count in zip(blocks, counts, strict=True)
        ]
    )


def of_each(rows: Any, work: Callable[[np.ndarray], np.ndarray], height: int) -> Any:
    """What `work` makes of each block, (height, width) float64, as a dask array (blocks, height, width)."""
    chunks = ((1,) * rows.numblocks[0], (height,), (rows.shape[1],))
    return rows.map_blocks(
        lambda block: work(block)[None], new_axis=1, chunks=chunks, dtype=np.float64, meta=np.empty((0, 0, 0))
    )


def computed(*arrays: Any) -> tuple[np.ndarray, ...]:
    """Dask arrays computed together: each block is read once for all of them."""
    from dask.base import compute

    return tuple(np.asarray(each) for each in compute(*arrays, scheduler="threads", num_workers=_THREADS))
