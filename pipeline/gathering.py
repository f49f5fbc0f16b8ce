"""Several folders, manifests and files, as they are named on a command line -> one table of videos."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError
from pipeline.videos import find_videos


def find_all(named: Iterable[Path], *, all_files: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """The videos of all that is named. A file that is named twice is in the table once.

    Args:
        named: folders, manifests and files.
        all_files: as in `find_videos`.

    Returns:
        the table of `find_videos`, its ids all different, and lines worth telling.

    Raises:
        UserError: as `find_videos`, and where two spans of files have one id.
    """
    tables: list[pd.DataFrame] = []
    notes: list[str] = []
    known: dict[str, str] = {}  # ids that are taken, and by which file
    spans: dict[str, tuple[str, str, str]] = {}
    for data in named:
        found = find_videos(data, all_files=all_files, known=known)
        columns = (found.table[column] for column in ("id", "path", "start", "end"))
        for video_id, path, start, end in zip(*columns, strict=True):
            span = (path, str(start), str(end))
            if spans.setdefault(video_id, span) != span:
                raise UserError(f"{video_id!r} is the id of two videos, one of them in {data}; predict them in turn.")
        notes += found.notes
        tables.append(found.table[~found.table["id"].isin(known)])
        known |= dict(zip(found.table["id"], found.table["path"], strict=True))
    return pd.concat(tables, ignore_index=True), notes
