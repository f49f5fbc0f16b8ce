"""What the headers of many videos say, read in threads; nothing is decoded."""

from collections.abc import Callable
from math import nan

import pandas as pd

from pipeline.errors import VideoError

_COLUMNS = {
    "width": "int64",
    "height": "int64",
    "fps": "float64",
    "duration": "float64",
    "frames_declared": "int64",
    "codec": "object",
    "problem": "object",
}
_BATCH = 64  # headers per task: the scheduler costs nothing beside them


def probe_videos(table: pd.DataFrame, on_video: Callable[[int], None] | None = None) -> pd.DataFrame:
    """Read every video's header, in threads, decoding nothing.

    Args:
        table: of `pipeline.videos.find_videos`.
        on_video: called, from any thread, with the number of headers read so far.

    Returns:
        a table with the same index: width, height (pixels) and frames_declared int64, 0 unknown; fps (0 unknown) and
        duration (seconds, NaN unknown) float64; codec and problem str, the latter why the header cannot be read, or "".
    """
    import dask.bag
    import dask.threaded

    read: list[None] = []  # appending is safe between threads

    def header(pair: tuple[str, str]) -> tuple[int, int, float, float, int, str, str]:
        found = _probe_one(*pair)
        if on_video is not None:
            read.append(None)
            on_video(len(read))
        return found

    pairs = list(zip(table["path"], table["kind"], strict=True))
    bag = dask.bag.from_sequence(pairs, partition_size=_BATCH)
    # The scheduler itself: to look one up by its name, dask loads its cluster.
    headers = bag.map(header).compute(scheduler=dask.threaded.get) if pairs else []
    columns = {
        name: pd.Series([header[place] for header in headers], index=table.index, dtype=dtype)
        for place, (name, dtype) in enumerate(_COLUMNS.items())
    }
    return pd.DataFrame(columns)


def _probe_one(path: str, kind: str) -> tuple[int, int, float, float, int, str, str]:
    from pipeline.frames import probe

    try:
        header = probe(path, kind)
    except VideoError as error:
        return 0, 0, 0.0, nan, 0, "", str(error)
    return header.width, header.height, header.fps, header.duration, header.frames_declared, header.codec, ""
