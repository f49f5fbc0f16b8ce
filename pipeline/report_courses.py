"""When in a video the decision falls: what a head says after each beginning of the video, or of each frame.

A head with one output per video is given longer and longer beginnings of it: a point says what it would have predicted
had the video ended there. The last one is the prediction itself. A head that was supervised at every step gives its
output at every step; one that reads in both directions knows there what comes later.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from pipeline.bundles import Bundle, score_bundle
from pipeline.predictions import every_step
from pipeline.sequences import Sequences, same_rows

POINTS = 48  # of a course at most


class Course(NamedTuple):
    """Scores over time: `rows` (P,) int64 numbers of rows of the first bank, `scores` (P, K), and what a point is."""

    rows: np.ndarray
    scores: np.ndarray
    every_step: bool


def course(
    bundle: Bundle, sequences: Sequence[Sequences], position: int, *, device: torch.device | str = "cpu"
) -> Course:
    """What a bundle says over the time of one video.

    Args:
        bundle: of targets per video.
        sequences: what each of its heads reads, of the same videos.
        position: of the video in them.
        device: where the heads run.
    """
    count = int(sequences[0].lengths[position])
    rows = np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(np.int64))
    views = [[view.read(position) for view in each.in_each_view()] for each in sequences]
    alone = [_beginning(each, read, position, len(read[0])) for each, read in zip(sequences, views, strict=True)]
    if bundle.objective.steps and same_rows(sequences, position):
        (steps,) = score_bundle(every_step(bundle), alone, np.zeros(1, np.int64), device=device)
        return Course(rows, np.asarray(steps)[rows], True)
    scores = []
    for row in rows.tolist():
        parts = [
            _beginning(each, read, position, _as_far(sequences[0], each, position, row))
            for each, read in zip(sequences, views, strict=True)
        ]
        scores.append(np.asarray(score_bundle(bundle, parts, np.zeros(1, np.int64), device=device))[0])
    return Course(rows, np.stack(scores), False)


def _as_far(first: Sequences, other: Sequences, position: int, row: int) -> int:
    """How many rows of a bank are shown by the time of a row of the first one; without clocks the same share of them.

    All of them where it is the last row.
    """
    mine, theirs = first.seconds(position), other.seconds(position)
    if row == len(mine) - 1:
        return len(theirs)
    if np.isnan(mine).any() or np.isnan(theirs).any():
        return max(1, round((row + 1) / len(mine) * len(theirs)))
    return max(1, int(np.searchsorted(theirs, mine[row], side="right")))


def _beginning(sequences: Sequences, views: Sequence[torch.Tensor], position: int, rows: int) -> Sequences:
    """The first rows of one video, in all its views, as if it were all there is."""
    ids, seconds = [sequences.ids[position]], [sequences.seconds(position)[:rows]]
    return Sequences(ids, seconds, torch.cat([view[:rows] for view in views]), views=len(views))
