"""A bank as one HDF5 file of `/ID/c3d_features` (T, D), as dense captioning and moment retrieval read ActivityNet's.

Beside each lie `timestamps` (seconds) and `frame_index`, and `fps`, `duration` and `start_time` where they are known,
so that `pipeline.other_hdf` reads back the rows at their times. An id with slashes is a group in groups.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import features as hdf5
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.exporting import keep_or_write
from pipeline.imported import BESIDE
from pipeline.other_hdf import C3D

_OVERHEAD_BYTES = 8192  # of the groups and headers of one video


def write(bank: Bank, out: Path, on_video: Callable[[int], None]) -> bool:
    """Write the file.

    Args:
        bank: of vectors.
        out: the file.
        on_video: called after each video with its rows.

    Returns:
        whether it is new.

    Raises:
        UserError: another file is there, or an id is named like one of the datasets of another.
        OSError: the disk is full.
    """
    for video in bank:
        parts = video.split("/")
        for place in range(1, len(parts)):
            parent = "/".join(parts[:place])
            if parts[place] in {C3D, *BESIDE} and parent in bank:
                raise UserError(f"The id {video!r} takes the name of a dataset of {parent!r}; remove one of them.")

    def fill(path: Path) -> None:
        with hdf5.Output(path, in_memory=False) as output:
            for row in hdf5.records(bank.catalog):
                _write_video(bank, row, output)
                on_video(row["rows"])

    return keep_or_write(out, fill)


def _write_video(bank: Bank, row: Mapping[str, Any], output: hdf5.Output) -> None:
    video = row["id"]
    features = bank[video]
    output.reserve(features.nbytes + _OVERHEAD_BYTES + 16 * len(features))
    group = output.file.require_group(video)
    group.create_dataset(C3D, data=features)
    group.create_dataset("timestamps", data=bank.timestamps(video))
    group.create_dataset("frame_index", data=bank.frame_index(video))
    for name in ("fps", "duration", "start_time"):
        if np.isfinite(row[name]) and (name != "fps" or row[name] > 0):
            group.create_dataset(name, data=np.float64(row[name]))
