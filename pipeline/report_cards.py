"""The videos that a report shows in full: what is true, what was said, pictures, and its course in time."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.report_courses import Course
from pipeline.report_errors import Shown, words_of
from pipeline.report_timelines import clock, points, timeline
from pipeline.results import HeldOut, Task
from pipeline.thumbnails import Strip, evenly

PICTURES = 8  # of a video


def card(
    task: Task,
    held: HeldOut,
    shown: Shown,
    *,
    seconds: np.ndarray | None,
    course: Course | None,
    strip: Strip | None,
) -> dict[str, Any]:
    """One video.

    Args:
        task, held: the run's.
        shown: which video, and why.
        seconds: (T,) times of its rows in the first bank; None where the bank is not at hand.
        course: what the head says over its time, for targets per video.
        strip: pictures of `evenly(seconds, PICTURES)`; None where no strip is wanted.

    Returns:
        id, fold, wrong, score; true and predicted, in words (targets per video), or `right` and `frames` (per frame);
        strip (pictures with their alternative texts, gap); chart, timeline and every_step, None where there is none.
    """
    place = shown.place
    made: dict[str, Any] = {
        "place": place,
        "id": held.ids[place],
        "fold": held.folds[place],
        "wrong": shown.wrong,
        "score": shown.score,
        "label": task.labels[shown.labels[0]] if task.kind == "multilabel" and not task.per_frame else "",
        "strip": None,
        "chart": None,
        "timeline": None,
        "every_step": course is not None and course.every_step,
    }
    if strip is not None:
        made["strip"] = {"gap": strip.gap, "pictures": pictures(strip, seconds)}
    if task.per_frame:
        made["timeline"] = timeline(task, held, place)
        made["chart"] = made["timeline"].pop("chart")
        return made
    made["true"], made["predicted"] = words_of(task, held, place)
    if course is not None and seconds is not None:
        made["chart"] = _chart(task, held, shown, course, seconds)
    return made


def pictures(strip: Strip, seconds: np.ndarray | None) -> list[dict[str, str]]:
    """The pictures of a strip of `evenly(seconds, …)`, each with its time in words: uri, at."""
    if seconds is None or not strip.pictures:
        return []
    times, unit = clock(seconds)
    at = times[evenly(seconds, len(strip.pictures))]
    words = [f"{time:.1f} s" if unit == "Seconds" else f"frame {time:.0f}" for time in at]
    return [{"uri": uri, "at": when} for uri, when in zip(strip.pictures, words, strict=True)]


def _chart(task: Task, held: HeldOut, shown: Shown, course: Course, seconds: np.ndarray) -> dict[str, Any]:
    times, unit = clock(seconds)
    lines = _lines(task, held, shown, course)
    return lines_over_time(times[course.rows], lines, unit, float(times[-1]), values=task.kind == "value")


def lines_over_time(
    times: np.ndarray, lines: Mapping[str, np.ndarray], unit: str, end: float, *, values: bool
) -> dict[str, Any]:
    """What a head says over the time of a video, as a chart with its alternative text.

    Args:
        times: (P,) of the points.
        lines: name -> (P,) probabilities, or values.
        unit: name of the time axis, and `end` where it ends.
        values: whether they are values.
    """
    series = [
        {"name": name, "data": points(times, line), "colour": place, **({"dash": True} if place else {})}
        for place, (name, line) in enumerate(lines.items())
    ]
    y: dict[str, Any] = {"name": "Value", "fit": True} if values else {"name": "Probability", "min": 0, "max": 1}
    if len(lines) == 1 and not values:
        y["name"] = f"P({next(iter(lines))})"
    said = "; ".join(
        f"{name}: {line[0]:.3g} at the beginning, {line[-1]:.3g} at the end" for name, line in lines.items()
    )
    title = "Predicted value over time" if values else "Probability over time"
    return {
        "x": {"name": unit, "min": 0, "max": end or 1.0},
        "y": y,
        "series": series,
        "alt": f"{title}. {said}.",
    }


def _lines(task: Task, held: HeldOut, shown: Shown, course: Course) -> Mapping[str, np.ndarray]:
    if task.kind == "value":
        true = float(held.targets[shown.place])
        return {"predicted": course.scores[:, 0], "true": np.full(len(course.rows), true)}
    if task.kind == "multilabel":
        return {task.labels[shown.labels[0]]: course.scores[:, shown.labels[0]]}
    true, other = shown.labels
    return {
        f"{task.labels[true]} (true)": course.scores[:, true],
        f"{task.labels[other]}{' (predicted)' if shown.wrong else ''}": course.scores[:, other],
    }
