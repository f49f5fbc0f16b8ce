"""Rows of one bank at the times of another: the nearest one, or what lies between two of them.

A stream beside the frames has times of its own: sound, poses, the same video at another rate. `nearest` takes the row
whose time is nearest, of two equally near ones the earlier. `linear` takes the point on the line between the row before
and the row after, weighed by time, and a row that is exactly there as it is. Before the first row and after the last
one both take that row. All of this is arithmetic on times in float64, as `numpy.interp` does it.

How far away the nearest row may lie is limited, at the ends and inside alike, so that a stream that stops early or
lacks a part is noticed. Unless a limit was given it is 1.5 times the usual step of the slower one in that video, which
a last window that was not full does not reach, and at least 0.1 s, by which sound and frames of one file may end apart.
Steps say nothing where most rows lie beyond the times that are wanted: such times are of another unit, or of another
video.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.sampling import nearest

METHODS = ("nearest", "linear")
USUAL_STEPS = 1.5  # how far away the nearest row may lie if nothing else was asked for
LEAST_SECONDS = 0.1  # and if that is less


@dataclass(frozen=True)
class Resampling:
    """How rows are found at other times.

    Attributes:
        method: one of `METHODS`.
        max_gap: how many seconds the nearest row may be away; None for what `limit` finds.

    Raises:
        UserError: an unknown method, or a gap that is no number above 0.
    """

    method: str
    max_gap: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"--resample {self.method} is unknown; choose one of {', '.join(METHODS)}.")
        if self.max_gap is not None and not 0 < self.max_gap < np.inf:
            raise UserError(f"--max-gap {self.max_gap:g} is no number of seconds above 0; give one, such as 0.5.")

    def limit(self, wanted: np.ndarray, there: np.ndarray) -> tuple[float, str]:
        """Seconds that the nearest row may be away from a time, and in words how that was found.

        Args:
            wanted: (T,) float64 seconds, T from 1, never falling.
            there: (n,) float64 seconds of the rows, n from 1, never falling.

        Returns:
            0 where nothing was given and the rows' own steps say nothing.
        """
        if self.max_gap is not None:
            return self.max_gap, "--max-gap"
        step = _usual_step(there)
        if step is None:
            return 0.0, "its rows there have one time, and so no step; give --max-gap SECONDS"
        found = max(LEAST_SECONDS, USUAL_STEPS * max(step, _usual_step(wanted) or 0.0))
        inside = (there >= wanted[0] - found) & (there <= wanted[-1] + found)
        if 2 * inside.sum() < len(there):
            return 0.0, "most of its rows there lie outside the times that are wanted; give --max-gap SECONDS"
        return found, f"{USUAL_STEPS:g} times the usual step; --max-gap SECONDS"


def _usual_step(times: np.ndarray) -> float | None:
    """The median of the seconds between times that differ; None where all are one."""
    steps = np.diff(times)
    return float(np.median(steps[steps > 0])) if (steps > 0).any() else None


class Places(NamedTuple):
    """Where T times lie among n rows.

    Attributes:
        rows: n.
        before: (T,) int64 the row to take.
        weight: (T,) float64 in [0, 1], the share that the row after it has; 0 where it is taken by itself.
        worst: which of the T times is furthest from the nearest row.
        gap: how far that is, in seconds.
        nearest: when that row is.
    """

    rows: int
    before: np.ndarray
    weight: np.ndarray
    worst: int
    gap: float
    nearest: float


def places(resampling: Resampling, wanted: np.ndarray, there: np.ndarray) -> Places:
    """Find times among those of rows.

    Args:
        resampling: how.
        wanted: (T,) float64 seconds, T from 1.
        there: (n,) float64 seconds of the rows, n from 1, never falling; of rows at one time `nearest` takes the first
            and `linear` the last.
    """
    near = np.searchsorted(there, there[nearest(there, wanted)])
    away = np.abs(there[near] - wanted)
    worst = int(away.argmax())
    before, weight = near, np.zeros(len(wanted))
    if resampling.method == "linear":
        before = np.clip(np.searchsorted(there, wanted, side="right") - 1, 0, len(there) - 1)
        after = np.minimum(before + 1, len(there) - 1)
        between = (there[before] < wanted) & (wanted < there[after])
        steps = np.where(between, there[after] - there[before], 1.0)
        weight = np.where(between, (wanted - there[before]) / steps, 0.0)
    return Places(len(there), before, weight, worst, float(away[worst]), float(there[near[worst]]))


def needed(found: Places, steps: np.ndarray) -> np.ndarray:
    """(m,) int64, rising: the rows that some of the T times are made of, `steps` (k,) by number."""
    before = found.before[steps]
    return np.unique(np.concatenate([before, before + (found.weight[steps] > 0)]))


def between(found: Places, steps: np.ndarray, rows: np.ndarray, read: np.ndarray) -> np.ndarray:
    """The rows at some of the T times, each on the line between the two around it.

    Args:
        found: where the times lie.
        steps: (k,) which of them.
        rows: (m,) numbers of the rows that were read, as `needed` gives them.
        read: (m, *shape) these rows, of any floating type.

    Returns:
        (k, *shape) float32, computed in float64.
    """
    before, weight = found.before[steps], found.weight[steps]
    first, second = np.searchsorted(rows, before), np.searchsorted(rows, before + (weight > 0))
    start = read[first].astype(np.float64)
    share = weight.reshape(-1, *(1 for _ in read.shape[1:]))
    made = start + share * (read[second].astype(np.float64) - start)
    return made.astype(np.float32)
