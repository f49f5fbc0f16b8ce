"""What a head says over the time of new videos, beneath pictures of them: as data, for a page and for a figure.

A head that gives every frame an output (labels per frame, or supervised at every step) gives these; another one is
asked after each of many beginnings of the video (`pipeline.report_courses`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.bank import Bank
from pipeline.bundles import Bundle, load_for
from pipeline.figures import Timeline
from pipeline.predictions import Predictions
from pipeline.report_cards import PICTURES, lines_over_time, pictures
from pipeline.report_courses import course
from pipeline.report_timelines import bars, ends_of
from pipeline.thumbnails import Strip, evenly, pixels, strip

LINES = 6  # labels that are drawn at most
_POINTS = 240  # of a line that is drawn


@dataclass(frozen=True)
class OverTime:
    """What a bundle says over the time of one video of T banked rows.

    Attributes:
        id: of the video.
        every: whether the P points are the head's output at every row; else what it says of the video up to there.
        times: (P,) float64 seconds from the video's first frame, or numbers of rows where it has no clock.
        timed: whether they are seconds.
        frames: (P,) int64 numbers of the frames in the video.
        scores: (P, K) probabilities, or values (P, 1).
        decided: (P,) int64 of one class per frame, what was decided; None for all else.
        strip: pictures of it, or why there are none.
        seconds: (T,) as banked.
    """

    id: str
    every: bool
    times: np.ndarray
    timed: bool
    frames: np.ndarray
    scores: np.ndarray
    decided: np.ndarray | None
    strip: Strip
    seconds: np.ndarray

    @property
    def unit(self) -> str:
        """The name of the time axis."""
        return "Seconds" if self.timed else "Frame"

    @property
    def end(self) -> float:
        """Where the time axis ends."""
        return float(ends_of(self.times)[-1] if self.every else self.times[-1]) or 1.0


def over_time(
    predictions: Predictions,
    banks: Sequence[Bank],
    place: int,
    *,
    shown: bool,
    device: torch.device | str = "cpu",
) -> OverTime:
    """What a bundle says over the time of one video that it has predicted.

    Args:
        predictions: of the videos.
        banks: what they were made of, as `pipeline.predictions.predict` takes them.
        place: of the video among them.
        shown: whether pictures are wanted.
        device: where the heads run.
    """
    bundle = predictions.bundle
    video = str(predictions.videos["id"].iloc[place])
    moments = predictions.clocks[video]
    timed = bool(np.isfinite(moments.seconds).all())
    times = moments.seconds if timed else np.arange(len(moments.seconds), dtype=np.float64)
    if predictions.steps:
        rows, scores, every = np.arange(len(times)), predictions.steps[place], True
    else:
        sequences, _ = load_for(bundle, banks, [video])
        rows, scores, every = course(bundle, sequences, 0, device=device)
    seconds = banks[0].timestamps(video)
    return OverTime(
        video,
        every,
        times[rows],
        timed,
        moments.frame_index[rows],
        scores,
        predictions.decided[place] if bundle.per_frame and bundle.kind == "class" else None,
        strip(banks[0], video, evenly(seconds, PICTURES)) if shown else Strip([]),
        seconds,
    )


def lines(bundle: Bundle, said: OverTime) -> dict[str, np.ndarray]:
    """Name -> (P,) of what is drawn: the value, or the probabilities of the labels that get highest, at most six."""
    if bundle.kind == "value":
        return {"predicted": said.scores[:, 0]}
    highest = np.argsort(-said.scores.max(axis=0), kind="stable")[:LINES]
    return {bundle.labels[label]: said.scores[:, label] for label in sorted(highest.tolist())}


def card(bundle: Bundle, said: OverTime) -> dict[str, Any]:
    """One video for the page: id, strip (pictures, gap), chart, bars ([label, start, end] in shares of its time), and
    colours: name of a label that is drawn -> the place of its line."""
    keep = _drawn(said)
    drawn = {name: line[keep] for name, line in lines(bundle, said).items()}
    chart = lines_over_time(said.times[keep], drawn, said.unit, said.end, values=bundle.kind == "value")
    return {
        "id": said.id,
        "strip": {"gap": said.strip.gap, "pictures": pictures(said.strip, said.seconds)},
        "chart": chart,
        "bars": [] if said.decided is None else bars(said.decided, said.times, ends_of(said.times)),
        "colours": {name: place for place, name in enumerate(drawn)},
    }


def figure(bundle: Bundle, said: OverTime, title: str) -> Timeline:
    """One video for the figure."""
    drawn = lines(bundle, said)
    value = bundle.kind == "value"
    labels = list(drawn)
    places = {bundle.labels.index(label): place for place, label in enumerate(labels)} if not value else {}
    decided = [] if said.decided is None else bars(said.decided, said.times, ends_of(said.times))
    return Timeline(
        title,
        [pixels(uri) for uri in said.strip.pictures],
        said.strip.gap,
        said.times,
        drawn,
        said.unit,
        said.end,
        "Value" if value else "Probability",
        None if value else (0.0, 1.0),
        [[places[int(label)], start, stop] for label, start, stop in decided if int(label) in places],
        labels,
    )


def plain_data(bundle: Bundle, said: OverTime) -> dict[str, Any]:
    """One video as JSON has it: what a point is, times, frames, and scores by label (or values)."""
    scores: dict[str, Any] = {"value": said.scores[:, 0].tolist()}
    if bundle.kind != "value":
        scores = {"probability": {label: said.scores[:, k].tolist() for k, label in enumerate(bundle.labels)}}
    return {
        "each": "frame" if said.every else "beginning",
        "seconds": said.times.round(6).tolist() if said.timed else None,
        "frame": said.frames.tolist(),
        **scores,
    }


def _drawn(said: OverTime) -> np.ndarray:
    """The points of a line that is drawn in a page."""
    count = len(said.times)
    return np.unique(np.linspace(0, count - 1, min(count, _POINTS)).round().astype(np.int64))
