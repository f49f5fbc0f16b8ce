"""Targets and predictions over the time of one video: bars of segments for labels, lines for values."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.metrics import unmasked
from pipeline.results import HeldOut, Task
from pipeline.segment_metrics import segments
from pipeline.segments import IGNORED

_TRACKS = 12  # of labels in one video at most, the longest ones
_MOST_SEGMENTS = 500  # in a bar; of more, the frames are thinned to so many
_POINTS = 240  # of a line at most


def clock(seconds: np.ndarray) -> tuple[np.ndarray, str]:
    """The time axis of a video: seconds from its first banked frame, or rows where it has no clock.

    Args:
        seconds: (T,) as the bank has them.

    Returns:
        (T,) float64, never falling, and the name of the axis.
    """
    if len(seconds) and np.isfinite(seconds).all():
        return seconds - seconds[0], "Seconds"
    return np.arange(len(seconds), dtype=np.float64), "Frame"


def ends_of(times: np.ndarray) -> np.ndarray:
    """When each row ends, (T,): at the next one, and the last one after as long as rows usually last."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    return np.append(times[1:], times[-1] + (step or 1.0))


def timeline(task: Task, held: HeldOut, place: int) -> dict[str, Any]:
    """What is drawn of one video with targets per frame.

    Returns:
        unit and length of the axis; for labels `tracks`, each with a name and `bars` of target, prediction and where
        they differ: [label place, start, end] in shares of the length; `chart` for values, and for classes that of the
        probability of the true one.
    """
    target, scores, decided = held.targets[place], held.scores[place], held.decided[place]
    times, unit = clock(held.seconds[place])
    ends = ends_of(times)
    made: dict[str, Any] = {"unit": unit, "length": float(ends[-1]), "tracks": [], "chart": None}
    known = unmasked(task.kind, target)
    if task.kind == "value":
        made["chart"] = _chart(
            unit, ends[-1], "Value", times, {"true": np.where(known, target, np.nan), "predicted": decided}
        )
        return made
    if task.kind == "class":
        made["tracks"] = [_track("", target, decided, times, ends)]
        true = scores[np.arange(len(scores)), np.maximum(target, 0)].astype(np.float64)
        lines = {"probability of the true class": np.where(known, true, np.nan)}
        made["chart"] = _chart(unit, ends[-1], "Probability", times, lines)
        return made
    there: np.ndarray = np.greater(np.where(known[:, None], target, 0), 0)
    found: np.ndarray = np.greater(decided, 0)
    often = np.argsort(-(there | found).sum(axis=0), kind="stable")[:_TRACKS]
    for label in sorted(often[(there | found).any(axis=0)[often]].tolist()):
        true, said = (np.where(rows, label, IGNORED) for rows in (there[:, label], found[:, label]))
        made["tracks"].append(_track(task.labels[label], true, said, times, ends, known))
    return made


def _track(
    name: str,
    target: np.ndarray,
    decided: np.ndarray,
    times: np.ndarray,
    ends: np.ndarray,
    known: np.ndarray | None = None,
) -> dict[str, Any]:
    known = target != IGNORED if known is None else known
    differs = np.where(known & (target != decided), 0, IGNORED)
    lanes = {"target": target, "predicted": decided, "differs": differs}
    return {"name": name, "bars": {key: bars(labels, times, ends) for key, labels in lanes.items()}}


def bars(labels: np.ndarray, times: np.ndarray, ends: np.ndarray) -> list[list[float]]:
    """[label, start, end] of every run of a label, start and end in shares of the video.

    Args:
        labels: (T,) int64, `IGNORED` where there is none.
        times, ends: (T,) when each row begins and ends.
    """
    places = np.arange(len(labels))
    runs = segments(labels, IGNORED)
    if len(runs[0]) > _MOST_SEGMENTS:
        places = np.linspace(0, len(labels) - 1, _MOST_SEGMENTS).round().astype(np.int64)
        runs = segments(labels[places], IGNORED)
    last = np.append(times[places[1:]], ends[-1])
    whole = float(ends[-1]) or 1.0
    return [
        [int(label), round(float(times[places[start]]) / whole, 5), round(float(last[stop - 1]) / whole, 5)]
        for label, start, stop in zip(*(each.tolist() for each in runs), strict=True)
    ]


def _chart(unit: str, length: float, name: str, times: np.ndarray, lines: dict[str, np.ndarray]) -> dict[str, Any]:
    y = {"name": name, "min": 0, "max": 1} if name == "Probability" else {"name": name, "fit": True}
    keep = np.unique(np.linspace(0, len(times) - 1, min(len(times), _POINTS)).round().astype(np.int64))
    series = [
        {"name": line, "data": points(times[keep], values[keep]), "colour": place, **({"dash": True} if place else {})}
        for place, (line, values) in enumerate(lines.items())
    ]
    return {"x": {"name": unit, "min": 0, "max": float(length)}, "y": y, "series": series}


def points(x: np.ndarray, y: np.ndarray) -> list[list[float | None]]:
    """[x, y] pairs for a chart; a gap where y is unknown."""
    pairs: Sequence[tuple[float, float]] = list(zip(x.tolist(), y.tolist(), strict=True))
    return [[round(a, 4), round(b, 4) if np.isfinite(b) else None] for a, b in pairs]
