"""The embedding sequences of one bank, or of several side by side, as heads eat them: batches packed without padding.

What fits in memory is loaded once, as one flat tensor of all rows with the place where each video begins. A batch is
then a single `index_select`: which row comes where in a PackedSequence is arithmetic on the lengths, and no row is
copied twice. What doesn't fit is streamed: one thread of the process opens the banks for itself and reads ahead.

Of banks that hold several views of each video, training sees one view of each video per epoch, drawn anew, and testing
averages over all of them. In memory the views lie one after the other, each with all N rows of all videos, so choosing
views copies nothing either: it only says where each video begins.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.joined_banks import TIME_TOLERANCE_SECONDS, Reader, Rows, Stream, columns_of, common_ids
from pipeline.joined_times import at_times_of, common_seconds
from pipeline.resampling import Places, Resampling
from pipeline.transfers import moved

_READ_AHEAD = 2  # batches
_BATCH_BYTES = 512 << 20  # of features on the device at once; only maps make so few rows so large
_LOAD_ROWS = 4096  # at once, so that a long video is not in memory twice
_POOL_BATCHES = 8  # within which videos are sorted: enough to be alike, few enough to meet others every epoch
_Steps = Sequence[np.ndarray] | None


class Batch(NamedTuple):
    """Some videos as one PackedSequence.

    Attributes:
        videos: (b,) int64 positions in the `Sequences`, as asked for.
        packed: data (n, D) or (n, C, H, W) float32, laid out as by `pack_sequence(enforce_sorted=False)`: what is made
            of it comes out in the order of `videos`.
        rows: (n,) int64, for each packed row its number among all rows of all videos (offset of its video + its step).
    """

    videos: np.ndarray
    packed: PackedSequence
    rows: torch.Tensor


class _Layout(NamedTuple):
    """Where the rows of a batch go, all int64: n rows of b videos over at most T steps."""

    rows: np.ndarray  # (n,) among all rows of all videos in all views, in packed order
    local: np.ndarray  # (n,) among the chosen rows, one video after the other, in packed order
    batch_sizes: np.ndarray  # (T,)
    order: np.ndarray  # (b,) longest video first
    back: np.ndarray  # (b,) the way back from there


def _layout(offsets: np.ndarray, lengths: np.ndarray, steps: _Steps) -> _Layout:
    """Lay out videos that begin at row `offsets` (b,) and have `lengths` (b,) rows, of which `steps` are taken."""
    if steps is not None:
        lengths = np.array([len(chosen) for chosen in steps], np.int64)
    if len(lengths) == 0 or lengths.min() < 1 or len(offsets) != len(lengths):
        raise ValueError("a batch needs at least one video, and at least one row of each")
    starts = np.cumsum(lengths) - lengths
    places = np.arange(lengths.sum())
    if steps is None:
        flat = places + np.repeat(offsets - starts, lengths)
    else:
        flat = np.concatenate(steps) + np.repeat(offsets, lengths)
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    times = np.arange(descending[0])
    batch_sizes = len(order) - np.searchsorted(descending[::-1], times, side="right")
    firsts = np.repeat(np.cumsum(batch_sizes) - batch_sizes, batch_sizes)
    local = starts[order][places - firsts] + np.repeat(times, batch_sizes)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return _Layout(flat[local], local, batch_sizes, order, back)


class Sequences:
    """Embedding sequences of B videos with N rows in all; or their frames (see `pipeline.video_frames`).

    Attributes:
        ids: of the B videos.
        lengths: (B,) int64 rows of each, at least 1.
        offsets: (B + 1,) int64 where each begins among all rows; the last is N.
        feature_shape: (D,) or (C, H, W) of one row.
        device: where batches go.
        streamed: whether the rows stay in their banks until they are asked for.
        notes: lines worth telling the user: what was left out.
        most_rows: of a batch at most, for memory's sake.
        views: V, how many views of each video there are to choose from. What is read is the first, the plain one, until
            others are chosen (`in_view`, `in_each_view`, `in_epoch`).
    """

    def __init__(
        self,
        ids: Sequence[str],
        seconds: Sequence[np.ndarray],
        rows: torch.Tensor | Stream,
        *,
        notes: Sequence[str] = (),
        device: torch.device | None = None,
        most_rows: int | None = None,
        varied: Callable[[int], "Sequences"] | None = None,
        views: int = 1,
    ) -> None:
        """`rows`: a tensor of V N rows, view after view. `most_rows`: None takes as many as half a gigabyte holds.
        `varied`: see `in_epoch`."""
        self.ids = tuple(ids)
        self.lengths = np.array([len(times) for times in seconds], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.feature_shape = tuple(rows.shape[1:]) if isinstance(rows, torch.Tensor) else rows.reader.feature_shape
        self.device = device or torch.device("cpu")
        self.streamed = not isinstance(rows, torch.Tensor)
        self.notes = tuple(notes)
        self._seconds = tuple(seconds)
        self._rows = rows
        self.most_rows = most_rows or max(1, _BATCH_BYTES // (4 * prod(self.feature_shape)))
        self._varied = varied
        self.views = views
        self._chosen = np.zeros(len(self.ids), np.int64)  # the view that is read of each video

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def place(self) -> str:
        """Where the rows lie: "streamed" from their banks, "in memory", or "on cuda", where nothing of them is sent."""
        if not isinstance(self._rows, torch.Tensor):
            return "streamed"
        there = self._rows.device.type
        return "in memory" if there == "cpu" else f"on {there}"

    def seconds(self, position: int) -> np.ndarray:
        """(T,) float64 times at which the frames of one video are presented; NaN where the source has no clock."""
        return self._seconds[position]

    def to(self, device: torch.device | str) -> Self:
        """The same sequences with batches on a device.

        The rows themselves move there too if they take at most half of what is free on it.
        """
        device = torch.device(device)
        rows = self._rows
        if isinstance(rows, torch.Tensor):
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
            if free is None or rows.nbytes <= free // 2:
                rows = rows.to(device)
        moved, varied = copy(self), self._varied
        moved.device, moved._rows = device, rows
        moved._varied = None if varied is None else lambda epoch: varied(epoch).to(device)
        return moved

    def varying(self, varied: Callable[[int], "Sequences"]) -> Self:
        """The same sequences, but what training sees in an epoch is `varied(epoch)`."""
        varying = copy(self)
        varying._varied = varied
        return varying

    def in_epoch(self, epoch: int) -> "Sequences":
        """What training sees in an epoch, from 1: the same videos with as many rows, themselves unless they vary.

        Of several views it is one of each video, drawn by the number of the epoch and nothing else.
        """
        if self._varied is not None:
            return self._varied(epoch)
        if self.views == 1:
            return self
        return self._choosing(np.random.default_rng(epoch).integers(self.views, size=len(self)))

    def in_view(self, view: int) -> Self:
        """The same videos in one view, from 0, without a choice of others. ValueError: there is no such view."""
        if not 0 <= view < self.views:
            raise ValueError(f"there is no view {view} of {self.views}")
        return self if self.views == 1 else self._choosing(np.full(len(self), view))

    def in_each_view(self) -> Iterator[Self]:
        """The same videos in one view after the other: what predictions are averaged over."""
        return map(self.in_view, range(self.views))

    def _choosing(self, chosen: np.ndarray) -> Self:
        """The same with one view of each video, (B,) int64; it shares the rows, and there is nothing left to choose."""
        other = copy(self)
        other.views, other._chosen = 1, chosen
        return other

    def read(self, video: int, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows `start` to `stop` of one video, (n, *feature_shape) float32.

        Raises:
            UserError: streamed features cannot be read or are not finite.
        """
        length = int(self.lengths[video])
        stop = length if stop is None else min(stop, length)
        view = int(self._chosen[video])
        if isinstance(self._rows, torch.Tensor):
            offset = int(view * self.offsets[-1] + self.offsets[video])
            rows = self._rows[offset + start : offset + stop]
        else:
            wanted = np.arange(start, stop) + view * length
            rows = self._rows.submit(lambda reader: reader.read(video, wanted)).result()
        return _ready(rows, self.device)

    def batch(self, videos: np.ndarray, steps: _Steps = None) -> Batch:
        """Pack some videos.

        Args:
            videos: (b,) int64 positions.
            steps: for each of them the (K,) int64 row numbers to take, K from 1, never falling; None takes all.

        Raises:
            UserError: streamed features cannot be read or are not finite.
        """
        layout = self._layout(videos, steps)
        if isinstance(self._rows, torch.Tensor):
            return self._pack(videos, layout, None)
        return self._pack(videos, layout, self._rows.submit(self._reading(videos, steps, layout)).result())

    def batches(self, plan: Iterable[tuple[np.ndarray, _Steps]]) -> Iterator[Batch]:
        """Pack batch after batch; streamed ones are read while those before are being used.

        Args:
            plan: what `batch` takes, for each batch.
        """
        if isinstance(self._rows, torch.Tensor):
            yield from (self.batch(videos, steps) for videos, steps in plan)
            return
        ahead: deque[tuple[np.ndarray, _Layout, Future[torch.Tensor]]] = deque()
        try:
            for videos, steps in plan:
                layout = self._layout(videos, steps)
                ahead.append((videos, layout, self._rows.submit(self._reading(videos, steps, layout))))
                if len(ahead) > _READ_AHEAD:
                    videos, layout, data = ahead.popleft()
                    yield self._pack(videos, layout, data.result())
            while ahead:
                videos, layout, data = ahead.popleft()
                yield self._pack(videos, layout, data.result())
        finally:
            for _, _, data in ahead:
                data.cancel()

    def _layout(self, videos: np.ndarray, steps: _Steps) -> _Layout:
        return _layout(self.offsets[videos] + self._chosen[videos] * self.offsets[-1], self.lengths[videos], steps)

    def _reading(self, videos: np.ndarray, steps: _Steps, layout: _Layout) -> Callable[[Rows], torch.Tensor]:
        """What the reading thread is to do for one batch: its data in packed order."""
        lengths = self.lengths[videos]
        wanted = [np.arange(length) for length in lengths] if steps is None else steps
        wanted = [rows + before for rows, before in zip(wanted, self._chosen[videos] * lengths, strict=True)]

        def read(reader: Rows) -> torch.Tensor:
            pieces = reader.read_all(list(zip(videos.tolist(), wanted, strict=True)))
            return torch.cat(pieces).index_select(0, torch.from_numpy(layout.local))

        return read

    def _pack(self, videos: np.ndarray, layout: _Layout, data: torch.Tensor | None) -> Batch:
        # One transfer for all indices: on a GPU each costs more than it carries.
        whole = int(self.offsets[-1])
        indices = moved(torch.from_numpy(np.concatenate([layout.rows, layout.order, layout.back])), self.device)
        rows, order, back = indices.split([len(layout.rows), len(layout.order), len(layout.order)])
        if data is None:
            assert isinstance(self._rows, torch.Tensor)
            there = self._rows.device == rows.device
            data = self._rows.index_select(0, rows if there else torch.from_numpy(layout.rows))
        rows = rows % whole  # of whichever view
        packed = PackedSequence(_ready(data, self.device), torch.from_numpy(layout.batch_sizes), order, back)
        return Batch(videos, packed, rows)


def _ready(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Rows on a device: embeddings as float32, which they become there, frames as the uint8 that they are."""
    rows = moved(rows, device)
    return rows if rows.dtype == torch.uint8 else rows.to(torch.float32)


def load_sequences(
    banks: Sequence[Bank],
    ids: Sequence[str] | None = None,
    *,
    spatial: str | None = None,
    memory_bytes: int | None = None,
    most_rows: int | None = None,
    resampling: Resampling | None = None,
    base: Bank | None = None,
) -> Sequences:
    """Load the sequences of some videos, features of several banks concatenated per row.

    Args:
        banks: one or more, which must agree on the number of rows of a video and on their times.
        ids: of the videos, in this order; None takes all, in the order of the catalog.
        spatial: what becomes of (C, H, W) maps, one of `SPATIAL`, or `MAPS`.
        memory_bytes: what the rows may take; None allows half of the memory that is available now. More is streamed.
        most_rows: of a batch at most, as in `Sequences`.
        resampling: how banks are read at the times of another instead, whose rows they then have; None: they agree.
        base: that other one, which may be none of the banks; None is the first of them.

    Raises:
        UserError: banks that don't fit together or to `spatial`, unknown ids, features that cannot be read or are not
            finite, rows too far from those times, or no video left.
    """
    columns = columns_of(banks, spatial)
    chosen, notes = common_ids(banks, ids)
    base = banks[0] if base is None else base
    shown = banks if resampling is None else [base]
    rows = [dict(zip(bank.catalog["id"], bank.catalog["rows"].tolist(), strict=True)) for bank in shown]
    empty = [video_id for video_id in chosen if not any(counts[video_id] > 0 for counts in rows)]
    if empty:
        notes.append(f"videos without a single frame, left out: {len(empty)}, e.g. {empty[0]}")
        chosen = [video_id for video_id in chosen if any(counts[video_id] > 0 for counts in rows)]
    if not chosen:
        why = "; ".join(notes) or "it is empty"
        raise UserError(f"No video of {banks[0].path} is left to work with ({why}). Give another bank.")
    places: list[list[Places] | None] | None = None
    if resampling is None:
        seconds = [common_seconds(banks, [counts[video_id] for counts in rows], video_id) for video_id in chosen]
    else:
        seconds, places, more = at_times_of(base, banks, chosen, resampling)
        methods = [None if each is None else resampling.method for each in places]
        columns = [replace(column, method=method) for column, method in zip(columns, methods, strict=True)]
        notes += more
    lengths = np.array([len(times) for times in seconds], np.int64)
    reader = Reader(columns, chosen, lengths, places)
    rows_of_all, views = int(lengths.sum()), reader.views
    size = views * rows_of_all * prod(reader.feature_shape) * reader.dtype.itemsize
    if size > (available_bytes() // 2 if memory_bytes is None else memory_bytes):
        return Sequences(chosen, seconds, Stream(reader), notes=notes, most_rows=most_rows, views=views)
    flat = torch.empty((views * rows_of_all, *reader.feature_shape), dtype=getattr(torch, reader.dtype.name))
    try:
        for video, (first, length) in enumerate(zip(np.cumsum(lengths) - lengths, lengths, strict=True)):
            for view in range(views):
                start, before = view * rows_of_all + first, view * length
                for piece in np.split(np.arange(length), range(_LOAD_ROWS, length, _LOAD_ROWS)):
                    flat[start + piece[0] : start + piece[-1] + 1] = reader.read(video, before + piece)
    finally:
        reader.close()
    return Sequences(chosen, seconds, flat, notes=notes, most_rows=most_rows, views=views)


def available_bytes() -> int:
    """Memory that can be taken without swapping: what Linux says, within a container's limit; elsewhere all of it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        limit = Path("/sys/fs/cgroup/memory.max")
        text = limit.read_text().strip() if limit.exists() else "max"
        return available if text == "max" else min(available, int(text))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def positions_of(sequences: Sequences, ids: Sequence[str]) -> np.ndarray:
    """(B,) int64 positions of videos in the sequences. KeyError for one that is not there."""
    place = {video: position for position, video in enumerate(sequences.ids)}
    return np.array([place[video] for video in ids], np.int64)


def same_rows(sequences: Sequence[Sequences], video: int) -> bool:
    """Whether several have the same rows of a video, by number and time."""
    times = [each.seconds(video) for each in sequences]
    return all(
        len(other) == len(times[0])
        and np.allclose(times[0], other, rtol=0, atol=TIME_TOLERANCE_SECONDS, equal_nan=True)
        for other in times[1:]
    )


def load_same_videos(
    joined: Sequence[Sequence[Bank]],
    ids: Sequence[str],
    *,
    spatial: str | None,
    per_frame: bool,
    resampling: Resampling | None = None,
) -> tuple[list[Sequences], list[str]]:
    """What several heads read, all of the same videos in the same order, and lines worth telling.

    Args:
        joined: for each head the banks whose features it reads side by side.
        ids: the videos; those that are not in every bank, or have no rows in one, are left out.
        spatial: how maps are read, of those that read any.
        per_frame: whether they predict every frame, and so must read the same rows.
        resampling: how all banks after the very first are read at its times; None: as they are.

    Raises:
        UserError: they do not, or banks that do not fit together.
    """
    shared, notes = common_ids([bank for banks in joined for bank in banks], ids)
    maps = [any(len(bank.config["recipe"]["feature_shape"]) == 3 for bank in banks) for banks in joined]
    read_by = [spatial if reads or not any(maps) else None for reads in maps]
    while True:
        if not shared:
            raise UserError(f"No video is in all banks ({'; '.join(notes)}). Give banks of the same videos.")
        sequences = [
            load_sequences(banks, shared, spatial=each, resampling=resampling, base=joined[0][0])
            for banks, each in zip(joined, read_by, strict=True)
        ]
        notes += [note for each in sequences for note in each.notes if note not in notes]
        kept = set(sequences[0].ids).intersection(*(each.ids for each in sequences))
        if all(len(each.ids) == len(kept) for each in sequences):
            break
        shared = [video for video in shared if video in kept]
    first = sequences[0]
    differing = [video for place, video in enumerate(first.ids) if per_frame and not same_rows(sequences, place)]
    if differing:
        raise UserError(
            f"The banks hold different frames of {len(differing)} of {len(first.ids)} videos, e.g. of {differing[0]}; "
            "heads that predict every frame need the same ones. Extract all with the same sampling, or read the others "
            "at the times of the first: --resample linear."
        )
    return sequences, notes


def buckets(
    lengths: np.ndarray, batch_size: int, *, max_steps: int, generator: np.random.Generator | None
) -> list[np.ndarray]:
    """Put videos of like length together, so that few steps of a batch run with few videos.

    Args:
        lengths: (B,) int64 rows of each video.
        batch_size: most videos of a batch.
        max_steps: most rows of a batch; a longer video goes alone.
        generator: shuffles the videos, sorts them by length within pools of several batches, and shuffles the batches.
            None sorts all, longest first, for scoring: memory that doesn't suffice shows at once.

    Returns:
        for each batch its (b,) int64 positions in `lengths`; every video once.
    """
    if generator is None:
        pools = [np.argsort(-lengths, kind="stable")]
    else:
        shuffled = generator.permutation(len(lengths))
        size = batch_size * _POOL_BATCHES
        pools = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        pools = [pool[np.argsort(-lengths[pool], kind="stable")] for pool in pools]
    batches: list[np.ndarray] = []
    for pool in pools:
        start = steps = 0
        for place, length in enumerate(lengths[pool].tolist()):
            if place > start and (place - start == batch_size or steps + length > max_steps):
                batches.append(pool[start:place])
                start, steps = place, 0
            steps += length
        if len(pool):
            batches.append(pool[start:])
    if generator is None:
        return batches
    return [batches[place] for place in generator.permutation(len(batches))]
