"""What every export of a bank has in common: which banks can be exported, names of files, and files never overwritten.

A file is written under another name and renamed when it is whole. One that is there already stays if it holds the very
same, so that a stopped export goes on by being run again; if it holds anything else, the export is refused.
"""

import io
import os
import re
from collections.abc import Callable, Mapping
from filecmp import cmp
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.bank import Bank, sync
from pipeline.errors import UserError
from pipeline.features import CATALOG
from pipeline.sources import TIMES_SUFFIX

MANIFEST = "manifest.csv"


def check_vectors(bank: Bank, form: str) -> None:
    """UserError: the rows of the bank are not one vector each, or there are none."""
    recipe = bank.config["recipe"]
    if "views" in recipe:
        raise UserError(
            f"{bank.path} has {recipe['views']['count']} views of each video, and {form} takes one: extract a "
            "bank without --views."
        )
    if len(recipe["feature_shape"]) != 1:
        shape = "×".join(map(str, recipe["feature_shape"]))
        raise UserError(
            f"{bank.path} holds maps ({shape}) and {form} takes vectors: extract with --layer {recipe['layer']}:mean."
        )
    if not len(bank):
        raise UserError(f"{bank.path} holds no video to export.")


def flat_name(video_id: str) -> str:
    """An id as a file name without folders and dots, for programs that cut names at both: `/`, `.` and `%` become
    `%2F`, `%2E` and `%25`, which `id_of` takes back."""
    return re.sub(r"[%/.]", lambda found: f"%{ord(found.group()):02X}", video_id)


def id_of(name: str) -> str:
    """The id that `flat_name` wrote."""
    return re.sub("%(2F|2E|25)", lambda found: chr(int(found.group(1), 16)), name)


def keep_or_write(path: Path, write: Callable[[Path], None]) -> bool:
    """Write a file, unless it is there.

    Args:
        path: the file; missing folders are made.
        write: writes the content to the path that it is given.

    Returns:
        whether it is new.

    Raises:
        UserError: another file is there, or this one cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".framebank.{os.getpid()}")  # whatever the file is called, this is not too long
    try:
        write(temporary)
        if path.exists():
            if path.is_file() and cmp(temporary, path, shallow=False):
                return False
            raise UserError(_refusal(path))
        sync(temporary)
        temporary.replace(path)
        return True
    except OSError as error:  # a full disk does not say of which file
        raise UserError(
            f"Writing {path} failed: {error.strerror or error}. What was written before stays; mend that and run the "
            "same command again to go on."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def keep_or_write_bytes(path: Path, content: bytes) -> bool:
    """The same for content that is in memory."""

    def write(file: Path) -> None:
        file.write_bytes(content)

    return keep_or_write(path, write)


def keep_or_write_array(path: Path, array: np.ndarray) -> bool:
    """The same for a .npy file."""

    def write(file: Path) -> None:
        with file.open("wb") as opened:  # given a path, NumPy would append a suffix
            np.save(opened, array, allow_pickle=False)

    return keep_or_write(path, write)


class Plan(NamedTuple):
    """The small files of an export to a folder, that say what the others are.

    Attributes:
        files: path below the folder -> content. The last one is written last: with it the export is whole.
        notes: lines worth telling.
    """

    files: dict[str, bytes]
    notes: list[str]


def manifest_of(bank: Bank, paths: Callable[[str], str]) -> bytes:
    """The manifest from which `framebank import` makes the bank again; `paths` says where the features of an id lie."""
    own = ("id", "label", "split", "group")
    table = bank.catalog[[*own, *(name for name in bank.catalog.columns if name not in CATALOG)]]
    places = pd.Series([paths(video) for video in table["id"]], index=table.index, dtype="object")
    return table.assign(path=places)[["path", *table.columns]].to_csv(index=False).encode()


def write_features(bank: Bank, row: Mapping[str, Any], path: Path, *, turned: bool = False) -> bool:
    """Write the features of a video, given by its catalog row, as a .npy file, T×D or `turned` D×T, and beside it the
    times of its rows as the bank has them. Returns whether they are new."""
    video, times = row["id"], io.BytesIO()
    # Written by NumPy in this order, with no time of day: the same bytes every time.
    np.savez(
        times,
        timestamps=bank.timestamps(video),
        frame_index=bank.frame_index(video),
        fps=np.float64(row["fps"]),
        duration=np.float64(row["duration"]),
        start_time=np.float64(row["start_time"]),
    )
    array = np.ascontiguousarray(bank[video].T) if turned else bank[video]
    new = keep_or_write_bytes(path.with_name(path.stem + TIMES_SUFFIX), times.getvalue())
    return keep_or_write_array(path, array) or new


def check_files(out: Path, plan: Plan) -> None:
    """UserError: the folder holds another export already, so this one need not even begin."""
    for name, content in plan.files.items():
        path = out / name
        if path.exists() and (not path.is_file() or path.read_bytes() != content):
            raise UserError(_refusal(path))


def write_files(out: Path, plan: Plan) -> None:
    """Write the small files."""
    for name, content in plan.files.items():
        keep_or_write_bytes(out / name, content)


def _refusal(path: Path) -> str:
    return f"{path} is there and holds something else; it is not overwritten. Give another --out."
