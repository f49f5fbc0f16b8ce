"""Is a stored video what the catalog says? Its shapes, its times and every one of its values."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.features import TIME, WINDOW_FRAMES, time_axis

_READ_BYTES = 32 << 20  # of features at once


def check_video(file: Any, row: Mapping[str, Any], *, frames: int = 1, views: int | None = None) -> list[str]:
    """What is wrong with one stored video; empty when all is well.

    Args:
        file: that holds it.
        row: of the catalog.
        frames: of how many each of its rows is made, F.
        views: K, where there are any.
    """
    video_id = row["id"]
    try:
        group = file[f"videos/{video_id}"]
        features, timestamps, frame_index = (group[name] for name in ("features", TIME, "frame_index"))
        windows = group[WINDOW_FRAMES] if frames > 1 else None
    except KeyError as error:
        return [f"cannot be read: {error.args[0]}"]
    problems = []
    if not group.attrs.get("complete", False):
        problems.append("not marked complete")
    if features.ndim != 3 if views is not None else features.ndim not in (2, 4):
        expected = "(T, D) or (T, C, H, W)" if views is None else "(K, T, D)"
        return [*problems, f"features have shape {features.shape}; expected {expected}"]
    axis = time_axis(features)
    rows = features.shape[axis]
    if rows == 0 or rows != row["rows"]:
        problems.append(f"features have {rows} rows, the catalog says {row['rows']}")
    if not rows == len(timestamps) == len(frame_index):
        problems.append(f"{rows} feature rows, {len(timestamps)} timestamps and {len(frame_index)} frame indices")
    if views is not None and (len(features) != views or len(json.loads(features.attrs.get("views", "[]"))) != views):
        problems.append(f"features have {len(features)} views or describe another number; expected {views}")
    try:
        seconds = timestamps[:]
        if not np.isnan(seconds).all() and not (np.diff(seconds) >= 0).all():
            problems.append("timestamps decrease or are missing")
        if not (np.diff(frame_index[:]) > 0).all():
            problems.append("frame indices do not increase")
        if windows is not None and not _windows_fit(windows, frame_index[:], frames):
            problems.append(f"{WINDOW_FRAMES} are not {frames} rising frames of each row around its frame index")
        first_bad = _first_not_finite(features, axis)
        if first_bad is not None:
            problems.append(f"features are not finite, first in row {first_bad}")
    except OSError as error:
        problems.append(f"cannot be read: {error}")
    return problems


def _windows_fit(windows: Any, frame_index: np.ndarray, frames: int) -> bool:
    if windows.shape != (len(frame_index), frames):
        return False
    numbers = windows[:]
    return bool((np.diff(numbers, axis=1) >= 0).all() and (numbers[:, frames // 2] == frame_index).all())


def _first_not_finite(features: Any, axis: int) -> int | None:
    """The first row with a value that is not finite, in any view; None where there is none."""
    rows = features.shape[axis]
    rows_at_once = max(1, _READ_BYTES // max(1, features.nbytes // max(1, rows)))
    for start in range(0, rows, rows_at_once):
        piece = slice(start, start + rows_at_once)
        bad = ~np.isfinite(features[:, piece] if axis else features[piece])
        in_rows = bad.any(axis=tuple(other for other in range(bad.ndim) if other != axis))
        if in_rows.any():
            return start + int(in_rows.argmax())
    return None
