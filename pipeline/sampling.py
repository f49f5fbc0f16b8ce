"""Which frames of a video are taken: every frame, every N-th, so many a second, or so many in all.

Index arithmetic only. The rules:

- `stride=N`: frames 0, N, 2N, ...
- `fps=F`: for each time first + k / F (k = 0, 1, ...) the first frame at or after it, by the real presentation times;
  each frame at most once, so a video slower than F is taken whole, and its frames are never repeated.
- `frames=N`: the frame at the centre of each of N equal parts, floor((k + 1/2) n / N) of n; a video that is shorter
  than N is taken whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, isfinite

import numpy as np

from pipeline.errors import UserError

# Containers round presentation times, the coarsest common ones (WebM, Matroska, FLV) to whole milliseconds: two times
# can be 1 ms closer than they were. 25 frames/s out of 25 frames/s must still be all of them, so a frame that is this
# much early counts as on the grid.
GRID_TOLERANCE_SECONDS = 0.002


@dataclass(frozen=True)
class Sampling:
    """Every frame, or at most one of: every `stride`-th frame, `fps` frames a second, `frames` frames in all.

    Raises UserError for a value that is out of range, and for two rules at once.
    """

    stride: int = 1
    fps: float | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise UserError(f"the stride is {self.stride}; it must be a whole number from 1 (1 takes every frame)")
        if self.fps is not None and not (isfinite(self.fps) and self.fps > 0):
            raise UserError(f"the sampling rate is {self.fps:g} frames per second; it must be above 0")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"the number of frames per video is {self.frames}; it must be at least 1")
        given = [f"stride {self.stride}"] if self.stride != 1 else []
        given += [f"{self.fps:g} frames per second"] if self.fps is not None else []
        given += [f"{self.frames} frames per video"] if self.frames is not None else []
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} ask for different frames; give only one of them")

    def describe(self) -> dict[str, int | float]:
        """The rule in one canonical form for the fingerprint: equal rules give equal, JSON-able dicts."""
        if self.fps is not None:
            return {"fps": float(self.fps)}
        if self.frames is not None:
            return {"frames": self.frames}
        return {"stride": self.stride}


def chooser(sampling: Sampling, count: int | None = None) -> Callable[[int, float], bool]:
    """A function to be called once for every frame in order, with its index (from 0) and its time in seconds.

    It returns whether the frame is taken. Only `frames` needs the `count` of frames; ValueError if it is missing.
    """
    if sampling.frames is not None:
        if count is None:
            raise ValueError("a fixed number of frames can only be chosen when the video's frames are counted")
        centres = set(_centres(sampling.frames, count))
        return lambda index, seconds: index in centres
    if sampling.fps is not None:
        return _on_grid(sampling.fps)
    stride = sampling.stride
    return lambda index, seconds: index % stride == 0


def choose(sampling: Sampling, seconds: np.ndarray) -> np.ndarray:
    """The same rule on a whole video: times (T,) float64, never falling -> indices (K,) int64, rising, K <= T."""
    take = chooser(sampling, len(seconds))
    taken = [index for index, time in enumerate(seconds.tolist()) if take(index, time)]
    return np.array(taken, np.int64)


def nearest(places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each wanted place (n,) the index of the nearest of `places` (m,), which rise; of two the earlier one.

    Returns:
        (n,) int64.
    """
    later = np.clip(np.searchsorted(places, wanted), 0, len(places) - 1)
    earlier = np.maximum(later - 1, 0)
    return np.where(np.abs(places[earlier] - wanted) <= np.abs(places[later] - wanted), earlier, later)


def _centres(parts: int, count: int) -> list[int]:
    """Centres of `parts` equal parts of `count` frames, in whole numbers: floor((k + 1/2) count / parts)."""
    parts = min(parts, count)
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]


def _on_grid(fps: float) -> Callable[[int, float], bool]:
    first = 0.0
    passed = -1  # number of the last grid time that a frame has answered
    tolerance = min(GRID_TOLERANCE_SECONDS * fps, 0.5)

    def take(index: int, seconds: float) -> bool:
        nonlocal first, passed
        if index == 0:
            first = seconds
        reached = floor((seconds - first) * fps + tolerance)
        if reached <= passed:
            return False
        passed = reached
        return True

    return take
