"""How well predicted segments match the true ones: edit score and segmental F1, as action segmentation reports them.

A video's labels per frame are cut into segments, runs of one label. Both scores ask for the right segments rather than
for the right frames, so that flicker costs what it should (Lea et al. 2017, "Temporal Convolutional Networks for Action
Segmentation and Detection"; in the details as the evaluation published with MS-TCN, Farha and Gall 2019). Scores lie
between 0 and 1; papers often print them times 100.
"""

from collections.abc import Sequence

import numpy as np


def segments(labels: np.ndarray, background: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of one label in (T,) integers -> label, first frame, frame after the last, each (S,) int64.

    Runs of the `background` class are left out.
    """
    starts = np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1))
    ends = np.append(starts[1:], len(labels))[: len(starts)]
    names = labels[starts]
    kept = names != background if background is not None else np.full(len(names), True)
    return names[kept], starts[kept], ends[kept]


def edit_score(
    targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray], background: int | None = None
) -> float:
    """The mean over videos of 1 - Levenshtein(P, G) / max(|P|, |G|) of the orders of segment labels P and G.

    Args:
        targets, predictions: per video (T,) integers; T > 0.
        background: a class whose segments are left out.
    """
    scores = []
    for target, predicted in zip(targets, predictions, strict=True):
        true, found = segments(target, background)[0], segments(predicted, background)[0]
        longest = max(len(true), len(found))
        scores.append(1 - _levenshtein(found, true) / longest if longest else 1.0)
    return float(np.mean(scores)) if scores else float("nan")


def segmental_f1(
    targets: Sequence[np.ndarray], predictions: Sequence[np.ndarray], overlap: float, background: int | None = None
) -> float:
    """F1 of segments over all videos together; a hit overlaps a true segment of its class by at least `overlap` (IoU).

    Each predicted segment goes to the true one of its class that it overlaps most, and a true segment is hit once: all
    further predictions of it are false positives, segments that nothing hits are false negatives.

    Args:
        targets, predictions: per video (T,) integers.
        overlap: least intersection over union, in frames; 0.1, 0.25 and 0.5 are F1@10, 25 and 50.
        background: a class whose segments are left out.

    Returns:
        NaN where neither side has a segment.
    """
    hits = found = true = 0
    for target, predicted in zip(targets, predictions, strict=True):
        names, starts, ends = segments(target, background)
        found_names, found_starts, found_ends = segments(predicted, background)
        true, found = true + len(names), found + len(found_names)
        if len(names) == 0:
            continue
        taken = np.zeros(len(names), dtype=bool)
        for name, start, end in zip(found_names, found_starts, found_ends, strict=True):
            union = np.maximum(ends, end) - np.minimum(starts, start)
            iou = (np.minimum(ends, end) - np.maximum(starts, start)) / union * (names == name)
            best = int(iou.argmax())
            if iou[best] >= overlap and not taken[best]:
                taken[best] = True
        hits += int(taken.sum())
    return 2 * hits / (found + true) if found + true else float("nan")


def _levenshtein(one: np.ndarray, other: np.ndarray) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other; a row at a time."""
    columns = np.arange(len(other) + 1)
    row = columns
    for index, name in enumerate(one, start=1):
        # Without insertions; those follow from the left, each costing 1: the running minimum of (value - column).
        following = np.concatenate(([index], np.minimum(row[1:] + 1, row[:-1] + (other != name))))
        row = np.minimum.accumulate(following - columns) + columns
    return int(row[-1])
