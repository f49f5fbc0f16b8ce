"""One pass over a bank's features: each video as one vector, how much it changes over its time, what is like another.

A row's change is how far it lies from the row before, over the mean length of the two: 0 is the very same features, and
banks of different networks compare. Of several views the plain one counts, and maps count as the mean of their places.
Features are read in pieces: a video of any length takes bounded memory.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.features import records

POINTS = 60  # of a video's change at most; more rows are averaged
STILL = 0.002  # a change that is no more is none: some times the rounding of float16
LEAST_ROWS = 5  # that a stretch without change takes to be called frozen
_PIECE_BYTES = 32 << 20


@dataclass(frozen=True)
class Stretch:
    """Some rows of a video, from `start` up to but without `stop`, in which its features say nothing.

    Attributes:
        kind: "frozen" (no change from row to row), "zero" (all features 0) or "not finite".
    """

    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class Surveyed:
    """What one pass found in a video of T rows.

    Attributes:
        seconds: (T,) float64, of the bank.
        change: (T - 1,) float64, from each row to the next; NaN beside rows that are not finite.
        stretches: by their first rows.
        mean: (D,) float32 over its finite rows; None without any, or where it was not asked for.
    """

    seconds: np.ndarray
    change: np.ndarray
    stretches: tuple[Stretch, ...]
    mean: np.ndarray | None


@dataclass(frozen=True)
class Survey:
    """What one pass found in a bank.

    Attributes:
        videos: id -> what was found, of every video that has rows.
        same: groups of two ids or more whose features are the same to the last bit.
        constant: how many of the D features have one and the same value in all rows of the bank.
        features: D.
    """

    videos: dict[str, Surveyed]
    same: list[list[str]]
    constant: int
    features: int


def survey(bank: Bank, wanted: Collection[str], *, on_video: Callable[[int, int], None]) -> Survey:
    """Read all features of a bank once.

    Args:
        bank: an open bank.
        wanted: the ids of which the mean is kept.
        on_video: called after each video with the numbers of videos and rows so far.

    Raises:
        UserError: features cannot be read.
    """
    keep = set(wanted)
    width = int(bank.config["recipe"]["feature_shape"][0])
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    groups: dict[bytes, list[str]] = defaultdict(list)
    found: dict[str, Surveyed] = {}
    rows = 0
    for number, row in enumerate(records(bank.catalog), start=1):
        video = row["id"]
        if row["rows"] > 0:
            digest = hashlib.blake2b(digest_size=16)
            reader = _Reader(width)
            for stored, vectors in _pieces(bank, video):
                digest.update(stored.tobytes())
                reader.take(vectors)
            groups[digest.digest()].append(video)
            found[video] = reader.done(bank.timestamps(video), keep=video in keep)
            np.minimum(low, reader.low, out=low)
            np.maximum(high, reader.high, out=high)
            rows += row["rows"]
        on_video(number, rows)
    constant = int((low == high).sum()) if rows > 1 else 0
    return Survey(found, [ids for ids in groups.values() if len(ids) > 1], constant, width)


def _pieces(bank: Bank, video: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of a video as they are stored, and the same as (n, D) float32."""
    try:
        features = bank.file_of(video)[f"videos/{video}/features"]
        views = "views" in bank.config["recipe"]
        length, *shape = features.shape[1:] if views else features.shape
        at_once = max(1, _PIECE_BYTES // (4 * prod(shape)))
        for start in range(0, length, at_once):
            rows = slice(start, start + at_once)
            stored = np.asarray(features[0, rows] if views else features[rows])
            vectors = stored.astype(np.float32)
            with np.errstate(invalid="ignore"):  # what is not finite is told as such
                yield stored, vectors.mean(axis=(2, 3)) if vectors.ndim == 4 else vectors
    except (OSError, KeyError) as error:
        raise UserError(
            f"{bank.path}: {video} cannot be read ({error}). `framebank describe {bank.path} --verify` lists what is "
            "broken; restore the bank from a copy, or remove those videos and extract them again."
        ) from error


class _Reader:
    """Sums over the rows of one video that come piece after piece."""

    def __init__(self, width: int) -> None:
        self.total, self.rows = np.zeros(width), 0
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)
        self.changes: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        self.before = np.zeros((0, width), np.float32)  # the row before this piece

    def take(self, vectors: np.ndarray) -> None:
        good = vectors[np.isfinite(vectors).all(axis=1)]
        if len(good):
            self.total += good.sum(axis=0, dtype=np.float64)
            self.rows += len(good)
            np.minimum(self.low, good.min(axis=0), out=self.low)
            np.maximum(self.high, good.max(axis=0), out=self.high)
        with np.errstate(invalid="ignore", over="ignore"):
            joined = np.concatenate([self.before, vectors])
            length = np.linalg.norm(joined.astype(np.float64), axis=1)
            steps = np.linalg.norm(np.diff(joined.astype(np.float64), axis=0), axis=1)
            between = (length[1:] + length[:-1]) / 2
            self.changes.append(np.where(between == 0, 0, steps / np.where(between == 0, 1, between)))
        self.lengths.append(length[len(self.before) :])
        self.before = vectors[-1:]

    def done(self, seconds: np.ndarray, *, keep: bool) -> Surveyed:
        change, length = np.concatenate(self.changes), np.concatenate(self.lengths)
        change = np.where(np.isfinite(change), change, np.nan)
        mean = (self.total / self.rows).astype(np.float32) if keep and self.rows else None
        return Surveyed(seconds, change, tuple(_stretches(change, length)), mean)


def _stretches(change: np.ndarray, length: np.ndarray) -> list[Stretch]:
    """Where features say nothing: lengths (T,) that are 0 or not finite, and changes (T - 1,) that are none."""
    lost, zero = ~np.isfinite(length), length == 0
    still = (change <= STILL) & ~zero[1:] & ~zero[:-1]
    found = [Stretch("not finite", *run) for run in _runs(lost)]
    found += [Stretch("zero", *run) for run in _runs(zero)]
    frozen = [(start, stop + 1) for start, stop in _runs(still)]  # n changes that are none are n + 1 equal rows
    found += [Stretch("frozen", *run) for run in frozen if run[1] - run[0] >= LEAST_ROWS]
    return sorted(found, key=lambda each: each.start)


def _runs(there: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def thinned(times: np.ndarray, values: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring values averaged until there are no more than `points`, each at the mean of its times.

    Args:
        times, values: (n,); a value that is NaN does not count, a point of nothing else is NaN.
    """
    if len(values) <= points:
        return times, values
    edges = np.linspace(0, len(values), points + 1).round().astype(np.int64)
    known = np.isfinite(values)
    counts = np.add.reduceat(known.astype(np.float64), edges[:-1])
    sums = np.add.reduceat(np.where(known, values, 0), edges[:-1])
    return (
        np.add.reduceat(times, edges[:-1]) / np.diff(edges),
        np.where(counts > 0, sums / np.maximum(counts, 1), np.nan),
    )


def usual_change(videos: Collection[Surveyed], points: int = 20) -> np.ndarray | None:
    """How much videos change over their course: (points, 3) the 10th, 50th and 90th percentile at equal shares of it.

    None if no video has two rows.
    """
    shares = (np.arange(points) + 0.5) / points
    rows = []
    for each in videos:
        known = np.flatnonzero(np.isfinite(each.change))
        if len(known):
            rows.append(np.interp(shares, (known + 0.5) / len(each.change), each.change[known]))
    return np.quantile(np.array(rows), [0.1, 0.5, 0.9], axis=0).T if rows else None
