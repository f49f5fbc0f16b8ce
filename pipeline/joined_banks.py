"""Several banks of the same videos read side by side: the features of a row are those of all banks, concatenated.

Before anything is joined, the banks must agree: on the rows of each video and on the times at which they are shown.
Or those after the first are read at its times (`pipeline.resampling`), which are seconds from the video's first frame:
only the few rows around each time are read then. The places of (C, H, W) maps are averaged or laid side by side while
they are read, so that maps never pile up in memory.

Where banks hold K views of every video, (K, T, D), a video's rows are numbered view after view: row t of view k is
number k T + t. Without views there are T of them.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
import torch

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.resampling import Places, between, needed

MAPS = "maps"  # they stay what they are, which no head reads: for what has the rest of the backbone before it
SPATIAL = {
    "mean": "the average over all places",
    "flatten": "all places side by side",
    "attention": "the head weighs the places",
}
TIME_TOLERANCE_SECONDS = 0.001  # within which two banks must agree on when a frame is shown
_READ_BYTES = 64 << 20  # at once, of a long video
_T = TypeVar("_T")


@dataclass(frozen=True)
class Columns:
    """What one bank contributes to each row."""

    path: Path
    shape: tuple[int, ...]  # of a stored row: (D,) or (C, H, W)
    dtype: np.dtype[np.float16 | np.float32]
    spatial: str | None  # what becomes of maps
    views: int = 1  # K; of several the bank has an axis
    method: str | None = None  # how its rows are resampled; None where they are those of the first bank

    @property
    def read_dtype(self) -> np.dtype[np.float16 | np.float32]:
        """Of what is read: what lies between two rows is in float32."""
        return np.dtype(np.float32) if self.method == "linear" else self.dtype

    @property
    def feature_shape(self) -> tuple[int, ...]:
        if self.spatial == "mean":
            return self.shape[:1]
        return (prod(self.shape),) if self.spatial == "flatten" else self.shape

    def reduce(self, rows: np.ndarray) -> np.ndarray:
        """(n, *shape) -> (n, *feature_shape) of the same dtype."""
        if self.spatial == "mean":
            return rows.mean(axis=(2, 3), dtype=np.float32).astype(rows.dtype)
        return rows.reshape(len(rows), -1) if self.spatial == "flatten" else rows


class Reader:
    """Reads rows of videos out of banks, side by side. It belongs to one thread, and opens the banks when first asked.

    Args:
        columns: one per bank.
        ids: of the videos.
        lengths: (B,) rows T of each, in one view.
        places: for each bank where the T times of each video lie among its rows; None for a bank that has the same T
            rows itself.

    Attributes:
        views: K of each video, 1 without views.
    """

    def __init__(
        self,
        columns: Sequence[Columns],
        ids: Sequence[str],
        lengths: np.ndarray,
        places: Sequence[Sequence[Places] | None] | None = None,
    ) -> None:
        self.columns, self.ids, self.lengths = columns, ids, lengths
        self.places = [None] * len(columns) if places is None else places
        width = sum(column.feature_shape[0] for column in columns)
        self.feature_shape = (width, *columns[0].feature_shape[1:])
        self.dtype = np.result_type(*(column.read_dtype for column in columns))
        self.views = columns[0].views
        self._banks: list[Bank] = []

    def again(self) -> Self:
        """One of the same for another thread."""
        return type(self)(self.columns, self.ids, self.lengths, self.places)

    def close(self) -> None:
        while self._banks:
            self._banks.pop().close()

    def read(self, video: int, rows: np.ndarray) -> torch.Tensor:
        """Some rows of a video, all of one view, (n,) never falling -> (n, *feature_shape) in the stored dtype.

        Raises:
            UserError: they cannot be read, are not what the catalog says, or are not finite.
        """
        parts = [self._read(number, video, rows) for number in range(len(self.columns))]
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))

    def read_all(self, wanted: Sequence[tuple[int, np.ndarray]]) -> list[torch.Tensor]:
        """Some rows of several videos, one after the other."""
        return [self.read(video, rows) for video, rows in wanted]

    def _read(self, number: int, video: int, rows: np.ndarray) -> np.ndarray:
        """Some rows of what one bank contributes."""
        there = self.places[number]
        if there is None or not len(rows):
            return self._taken(number, video, rows)
        column, found = self.columns[number], there[video]
        view, steps = int(rows[0]) // int(self.lengths[video]), rows % int(self.lengths[video])
        at_once = max(1, _READ_BYTES // (8 * prod(column.feature_shape)))  # in float64
        result = np.empty((len(rows), *column.feature_shape), column.read_dtype)
        for begin in range(0, len(rows), at_once):
            some = steps[begin : begin + at_once]
            wanted = needed(found, some)
            read = self._taken(number, video, wanted + view * found.rows)
            if column.method == "linear":
                result[begin : begin + at_once] = between(found, some, wanted, read)
            else:
                result[begin : begin + at_once] = read[np.searchsorted(wanted, found.before[some])]
        return result

    def _taken(self, number: int, video: int, rows: np.ndarray) -> np.ndarray:
        """Rows of one bank by its own numbers, reduced."""
        column, video_id = self.columns[number], self.ids[video]
        at_once = max(1, _READ_BYTES // (prod(column.shape) * column.dtype.itemsize))
        result = np.empty((len(rows), *column.feature_shape), column.dtype)
        for begin in range(int(rows[0]), int(rows[-1]) + 1, at_once) if len(rows) else ():
            first, last = np.searchsorted(rows, [begin, begin + at_once])
            if first < last:
                inside = rows[first:last]
                stored = self._stored(number, video, int(inside[0]), int(inside[-1]) + 1)
                if (np.diff(inside) != 1).any():  # some are left out, or wanted more than once
                    stored = stored[inside - inside[0]]
                if not np.isfinite(stored).all():
                    raise UserError(
                        f"{column.path}: the features of {video_id} are not finite (NaN or infinite). Remove the video "
                        f"(`framebank remove {column.path} {video_id}`) and extract it again in fp32."
                    )
                result[first:last] = column.reduce(stored)
        return result

    def _stored(self, number: int, video: int, start: int, stop: int) -> np.ndarray:
        """Rows of one bank as they are stored. When a part was packed away meanwhile, the banks are opened again."""
        column, video_id, there = self.columns[number], self.ids[video], self.places[number]
        length = int(self.lengths[video]) if there is None else there[video].rows
        view, start = divmod(start, length)
        stop -= view * length
        if stop > length:
            raise ValueError("rows of two views are read in two steps")
        for last in (False, True):
            if not self._banks:
                self._banks = [Bank(column.path) for column in self.columns]
            try:
                features = self._banks[number].file_of(video_id)[f"videos/{video_id}/features"]
                expected = (*(() if column.views == 1 else (column.views,)), length, *column.shape)
                if features.shape != expected:
                    raise UserError(
                        f"{column.path}: the features of {video_id} have shape {features.shape}, and should "
                        f"have {expected}. `framebank describe {column.path} --verify` lists all such videos."
                    )
                return np.asarray(features[start:stop] if column.views == 1 else features[view, start:stop])
            except (OSError, KeyError) as error:
                self.close()
                if last:
                    raise unreadable(column.path, video_id, error) from error
        raise AssertionError  # the last turn returns or raises


def unreadable(path: Path, video_id: str, error: Exception) -> UserError:
    """What is said of a video of a bank that cannot be read."""
    return UserError(
        f"{path}: {video_id} cannot be read ({error}). `framebank describe {path} --verify` lists what is broken; "
        "restore the bank from a copy, or remove those videos and extract them again."
    )


class Rows(Protocol):
    """What reads rows of videos, by their numbers: out of banks, or out of the videos themselves."""

    @property
    def feature_shape(self) -> tuple[int, ...]: ...
    def read(self, video: int, rows: np.ndarray) -> torch.Tensor: ...
    def read_all(self, wanted: Sequence[tuple[int, np.ndarray]]) -> list[torch.Tensor]: ...
    def again(self) -> Self: ...


class Stream:
    """Hands work to the one thread of this process that reads rows, made when first needed.

    A process that was forked makes its own: neither threads nor open HDF5 files outlive a fork.
    """

    def __init__(self, reader: Rows) -> None:
        self.reader = reader  # a pattern: the thread's own is made from it
        self._process = -1

    def submit(self, work: Callable[[Rows], _T]) -> Future[_T]:
        if self._process != os.getpid():
            self._process = os.getpid()
            self._own = self.reader.again()
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="bank-reader")
        return self._thread.submit(work, self._own)


def columns_of(banks: Sequence[Bank], spatial: str | None) -> list[Columns]:
    """What each bank contributes, once they are known to fit together and to `spatial`."""
    if spatial is not None and spatial not in (*SPATIAL, MAPS):
        raise UserError(f"--spatial {spatial} is unknown; choose one of {', '.join(SPATIAL)}.")
    shapes = [tuple(bank.config["recipe"]["feature_shape"]) for bank in banks]
    maps = [f"{bank.path}, {shape}," for bank, shape in zip(banks, shapes, strict=True) if len(shape) == 3]
    if maps and spatial is None:
        choices = ", ".join(f"{name} ({what})" for name, what in SPATIAL.items())
        raise UserError(f"The rows of {maps[0]} are maps (C, H, W). Say what to do with them by --spatial: {choices}.")
    if spatial not in (None, MAPS) and not maps:
        raise UserError(
            f"--spatial {spatial} is for maps (C, H, W), and rows of {banks[0].path} are {shapes[0]}. Omit it."
        )
    if spatial == "attention" and len({shape[1:] for shape in shapes}) > 1:
        what = " and ".join(f"{bank.path} {shape}" for bank, shape in zip(banks, shapes, strict=True))
        raise UserError(f"--spatial attention needs maps of one height and width, not {what}. Choose mean or flatten.")
    views = [int(bank.config["recipe"].get("views", {"count": 1})["count"]) for bank in banks]
    if len(set(views)) > 1:
        what = " and ".join(f"{bank.path} {count}" for bank, count in zip(banks, views, strict=True))
        raise UserError(
            f"The banks hold different numbers of views of a video ({what}), so their rows do not go side by side. "
            "Extract all with the same --views, or train a head each (--fuse mean)."
        )
    return [
        Columns(bank.path, shape, np.dtype(bank.config["recipe"]["store"]), spatial if len(shape) == 3 else None, count)
        for bank, shape, count in zip(banks, shapes, views, strict=True)
    ]


def common_ids(banks: Sequence[Bank], ids: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The videos that every bank has, of those asked for, and notes."""
    known = [set(bank) for bank in banks]
    if ids is None:
        ids = list(dict.fromkeys(video_id for bank in banks for video_id in bank))
    unknown = [video_id for video_id in ids if not any(video_id in one for one in known)]
    if unknown:
        paths = ", ".join(str(bank.path) for bank in banks)
        raise UserError(
            f"{len(unknown)} videos are not in {paths}, e.g. {unknown[0]!r}; "
            f"`framebank describe {banks[0].path} --csv` lists the ids."
        )
    common = [video_id for video_id in ids if all(video_id in one for one in known)]
    if len(common) == len(ids):
        return common, []
    lacking = [
        f"{video_id} (missing in {bank.path})"
        for video_id in ids
        for bank, one in zip(banks, known, strict=True)
        if video_id not in one
    ]
    return common, [f"videos that only some of the banks have, left out: {len(ids) - len(common)}, e.g. {lacking[0]}"]
