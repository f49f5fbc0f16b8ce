"""Which videos go to a worker together: pieces of about equal work, the dearest videos first, split where one kills.

What a second of work costs shows only while it is done, so pieces are cut when a worker is free: each a share of what
waits, from 1 to 30 seconds long, smaller towards the end, so that all workers finish at about the same time.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

SHORTEST, LONGEST = 1.0, 30.0  # seconds of work in a piece
_SHARE = 3  # a worker gets a third of its share of what waits
_NETWORK = 640 * 480.0  # what the network costs per frame, in pixels decoded: a frame costs it at any size
_FRAME = 320 * 240 + _NETWORK
_FIRST = 1500 * _FRAME  # a piece before anything is known of the pace: seconds on a GPU, a minute or two on a core
_UNKNOWN = 300 * _FRAME  # a video, where no header says anything


class Video(NamedTuple):
    """A video that is to be banked."""

    row: Mapping[str, Any]  # of the table of `pipeline.resuming.with_state`
    cost: float  # see `costs`


def costs(probed: pd.DataFrame) -> list[float]:
    """What each video costs by its header: frames × (pixels + what the network costs); what the median of the others
    costs where it says nothing.

    Args:
        probed: of `pipeline.headers.probe_videos`.

    Returns:
        one positive number per row.
    """
    pixels = probed["width"].astype(float) * probed["height"]
    found = probed["frames_declared"] * (pixels + _NETWORK) * (pixels > 0)
    known = found[found > 0]
    return found.where(found > 0, known.median() if len(known) else _UNKNOWN).tolist()


def dearest_first(table: pd.DataFrame, probed: pd.DataFrame) -> pd.DataFrame:
    """A table of videos with those first that cost most, so that several at work on it end at about the same time.

    Args:
        table: of `pipeline.videos.find_videos`.
        probed: of `pipeline.headers.probe_videos`, row by row.
    """
    return table.iloc[np.argsort([-cost for cost in costs(probed)], kind="stable")]


class Waiting:
    """The videos that no worker has yet, the dearest first.

    Args:
        rows: one per video.
        costs: of each.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], costs: Sequence[float]) -> None:
        videos = [Video(row, cost) for row, cost in zip(rows, costs, strict=True)]
        self._videos = deque(sorted(videos, key=lambda video: -video.cost))
        self._cost = sum(costs)

    def __len__(self) -> int:
        return len(self._videos)

    def take(self, workers: int, lanes: int, pace: float | None, *, alone: bool = False) -> list[Video]:
        """The next piece; empty only where nothing waits.

        Args:
            workers: how many there are.
            lanes: how many videos the worker has in work at once: it gets as many, while there are enough for all.
            pace: cost that a worker gets done in a second; None while that is not known.
            alone: whether no other will ever come: then the first piece is all there is.
        """
        share = self._cost / (_SHARE * workers)
        budget = min(share, _FIRST) if pace is None else min(max(share, SHORTEST * pace), LONGEST * pace)
        if alone:
            budget = inf
        fewest = max(1, min(lanes, len(self) // max(1, workers)))
        piece: list[Video] = []
        spent = 0.0
        while self._videos and (len(piece) < fewest or spent + self._videos[0].cost <= budget):
            piece.append(self._videos.popleft())
            spent += piece[-1].cost
        self._cost -= spent
        return piece


def split(piece: Sequence[Video], suspects: Collection[str]) -> list[list[Video]]:
    """Smaller pieces of one whose worker died: the videos that it had in work each alone, the others in two halves.

    Args:
        piece: what of it is not banked.
        suspects: ids of what was in work, as far as that is known.
    """
    alone = [[video] for video in piece if video.row["id"] in suspects]
    others = [video for video in piece if video.row["id"] not in suspects]
    return [part for part in (*alone, others[::2], others[1::2]) if part]
