"""Where a run fails: which videos lie in each cell of its confusion matrix, and which mistakes it was surest of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.metrics import unmasked
from pipeline.predictions import in_words
from pipeline.results import HeldOut, Task, confusion

_LISTED = 200  # videos of one cell at most
_LISTED_IN_ALL = 20_000


@dataclass(frozen=True)
class Shown:
    """A video that the report shows in full.

    Attributes:
        place: of the video among the held-out ones.
        wrong: whether it is a mistake; else it is one of the right ones nearest to one.
        labels: the places of the labels whose probabilities matter: for classes the true one and the predicted one, for
            several labels the one in question, for values 0.
        score: how sure the mistake was (probability), how large (value), or the share of frames that are wrong.
    """

    place: int
    wrong: bool
    labels: tuple[int, ...]
    score: float


def cells(task: Task, held: HeldOut) -> dict[str, Any] | None:
    """The confusion matrix with the videos of every cell; None for values.

    For one class: true by predicted. For several labels there is a row per label: present and found, present and
    missed, absent and found. Targets per frame count frames, and list the videos that have them.

    Returns:
        rows and columns (names), counts (rows × columns), right (the cells that are no mistakes, as [row, column]),
        unit ("video", "frame"), totals (of each row), several (labels), videos (in each cell, by "row-column"), and
        listed: likewise, of each video [place, frames, probability of what was predicted, probability of what is true],
        the surest first.
    """
    if task.kind == "value":
        return None
    several = task.kind == "multilabel"
    rows = list(task.labels)
    columns = ["found", "missed", "found though absent"] if several else rows
    listed: dict[str, list[list[Any]]] = {}
    counts = np.zeros((len(rows), len(columns)), np.int64)
    for place in range(len(held.ids)):
        for row, column, frames, said, true in _cells_of(task, held, place):
            counts[row, column] += frames
            listed.setdefault(f"{row}-{column}", []).append([place, frames, said, true])
    matrix = confusion(task, held)
    assert matrix is None or (matrix == counts).all(), "the same frames are counted in both"
    most = max(5, min(_LISTED, _LISTED_IN_ALL // max(1, len(listed))))
    totals = counts[:, :2].sum(axis=1) if several else counts.sum(axis=1)
    return {
        "rows": rows,
        "columns": columns,
        "counts": counts.tolist(),
        "right": [[k, 0 if several else k] for k in range(len(rows))],
        "unit": "frame" if task.per_frame else "video",
        "totals": totals.tolist(),
        "several": several,
        "videos": {key: len(videos) for key, videos in listed.items()},
        "listed": {key: sorted(videos, key=lambda each: -each[2])[:most] for key, videos in listed.items()},
    }


def _cells_of(task: Task, held: HeldOut, place: int) -> Iterator[tuple[int, int, int, float, float]]:
    """Row, column, number of frames (1 for a video), mean probability of what is predicted, and of what is true."""
    target, scores, decided = (np.asarray(each[place]) for each in (held.targets, held.scores, held.decided))
    if not task.per_frame:
        target, scores, decided = target[None], scores[None], decided[None]
    known = unmasked(task.kind, target)
    target, scores, decided = target[known], scores[known], decided[known]
    if task.kind == "class":
        pairs, which = np.unique(np.stack([target, decided], axis=1), axis=0, return_inverse=True)
        for number, (true, said) in enumerate(pairs.tolist()):
            rows = scores[which.ravel() == number]
            yield true, said, len(rows), float(rows[:, said].mean()), float(rows[:, true].mean())
        return
    for label in range(len(task.labels)):
        there, found = target[:, label] > 0, decided[:, label] > 0
        for column, rows in enumerate((there & found, there & ~found, ~there & found)):
            if rows.any():
                mean = float(scores[rows, label].mean())
                yield label, column, int(rows.sum()), mean, mean


def worst(task: Task, held: HeldOut, most: int) -> list[Shown]:
    """The mistakes that the head was surest of, or that are largest; where there are none, what is nearest to one.

    Per frame these are the videos with the largest share of wrong frames (the largest mean error of values).
    """
    every = [each for place in range(len(held.ids)) if (each := _shown(task, held, place)) is not None]
    wrong = sorted((each for each in every if each.wrong), key=lambda each: -each.score)
    near = sorted((each for each in every if not each.wrong), key=lambda each: -each.score)
    return wrong[:most] if wrong else near[: min(4, most)]


def _shown(task: Task, held: HeldOut, place: int) -> Shown | None:
    target, scores, decided = (np.asarray(each[place]) for each in (held.targets, held.scores, held.decided))
    if task.per_frame:
        known = unmasked(task.kind, target)
        if not known.any():
            return None
        if task.kind == "value":
            return Shown(place, True, (0,), float(np.abs(target[known] - decided[known]).mean()))
        same = (target[known] == decided[known]).reshape(int(known.sum()), -1).all(axis=1)
        return Shown(place, not same.all(), tuple(range(len(task.labels))), float(1 - same.mean()))
    if task.kind == "value":
        return Shown(place, True, (0,), float(abs(target - decided)))
    if task.kind == "class":
        true, said = int(target), int(decided)
        if true != said:
            return Shown(place, True, (true, said), float(scores[said]))
        other = int(np.where(np.arange(len(scores)) == true, -1, scores).argmax())
        return Shown(place, False, (true, other), float(scores[other]))
    wrong = (target > 0) != (decided > 0)
    sure = np.where(decided > 0, scores, 1 - scores)
    if wrong.any():
        label = int(np.where(wrong, sure, -1).argmax())
        return Shown(place, True, (label,), float(sure[label]))
    label = int(sure.argmin())
    return Shown(place, False, (label,), float(1 - sure[label]))


def words_of(task: Task, held: HeldOut, place: int) -> tuple[str, str]:
    """What is true of a video and what was predicted, as predictions.csv has it; of frames see `frames_right`."""
    pair = []
    for values in (held.targets, held.decided):
        value = np.asarray(values[place])[None]
        said = in_words(task, value)[0]
        pair.append(f"{said:.4g}" if task.kind == "value" else said.replace("|", ", ") or "no label")
    return pair[0], pair[1]
