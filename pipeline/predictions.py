"""Predictions of banked videos: from a bundle and the banks it reads to tables with a row per video or per frame.

Columns `predicted` and p_<label>: of one class its name, of several labels their names joined by "|" (as targets are
written), of a value the value and no probabilities. A head that predicts every frame has a row per video too: the
probabilities averaged over its frames, and the class of most frames, the labels of any frame, or the mean value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from pipeline.bank import Bank
from pipeline.bundles import Bundle, decide, load_for, score_bundle
from pipeline.errors import UserError
from pipeline.segments import Clock, clocks, segments_of, smooth
from pipeline.sequences import Sequences, same_rows
from pipeline.targets import SEPARATOR


@dataclass(frozen=True)
class Predictions:
    """What a bundle makes of B videos.

    Attributes:
        bundle: whose predictions they are.
        videos: id, predicted, p_<label>; one row per video.
        steps: of each video (T, K) probabilities; empty where the head gives none for frames, or several heads read
            different frames.
        decided: of each video the decisions on its frames, (T,) or (T, K); likewise.
        clocks: id -> when its frames are shown.
        notes: lines worth telling the user.
    """

    bundle: Bundle
    videos: pd.DataFrame
    steps: list[np.ndarray]
    decided: list[np.ndarray]
    clocks: dict[str, Clock]
    notes: list[str]

    def frame_table(self) -> pd.DataFrame:
        """id, frame (its number in the video), seconds (from the video's first frame), predicted, p_<label>.

        Raises:
            UserError: there is none, as the heads' banks take different frames.
        """
        if not self.steps:
            raise UserError("The head's banks take different frames, so frames have no prediction: leave out --frames.")
        tables = []
        for video_id, steps, decided in zip(self.videos["id"], self.steps, self.decided, strict=True):
            clock = self.clocks[video_id]
            columns = {"id": video_id, "frame": clock.frame_index, "seconds": np.round(clock.seconds, 6)}
            tables.append(pd.concat([pd.DataFrame(columns), table(self.bundle, steps, decided)], axis=1))
        return pd.concat(tables, ignore_index=True)

    def segment_table(self) -> pd.DataFrame:
        """id, start, end (seconds), label: runs of equal decisions, in a form that training reads."""
        tables = [
            segments_of(video_id, decided, self.clocks[video_id], self.bundle.labels)
            for video_id, decided in zip(self.videos["id"], self.decided, strict=True)
        ]
        return pd.concat(tables, ignore_index=True)


def predict(
    bundle: Bundle, banks: Sequence[Bank], ids: Sequence[str], *, device: torch.device | str = "cpu"
) -> Predictions:
    """Predict banked videos.

    Args:
        bundle: the bundle.
        banks: one that was made alike for each bank that the bundle was trained on, in its order.
        ids: of the videos, at least one.
        device: where the heads run.

    Raises:
        UserError: banks that do not agree on a video, or features that are not finite.
    """
    sequences, notes = load_for(bundle, banks, ids)
    made = predict_sequences(bundle, sequences, clocks(banks[0], sequences[0].ids), device=device)
    return replace(made, notes=[*notes, *made.notes])


def predict_sequences(
    bundle: Bundle, sequences: Sequence[Sequences], clock: Mapping[str, Clock], *, device: torch.device | str = "cpu"
) -> Predictions:
    """The same of sequences, one for each of the bundle's members, all with the same videos in the same order.

    Args:
        bundle: the bundle.
        sequences: what its heads read.
        clock: id -> when its frames are shown.
        device: where the heads run.

    Raises:
        UserError: sequences that do not agree on a video's frames, where every frame is predicted.
    """
    first = sequences[0]
    videos = np.arange(len(first))
    notes: list[str] = []
    steps: list[np.ndarray] = []
    decided: list[np.ndarray] = []
    differing = [video for place, video in enumerate(first.ids) if not same_rows(sequences, place)]
    if differing and bundle.per_frame:
        raise UserError(
            f"The head's banks take different frames of {len(differing)} of {len(first)} videos, e.g. of "
            f"{differing[0]}, so there is no prediction of every frame. Predict the others alone."
        )
    if bundle.objective.steps and not differing:
        every = every_step(bundle)
        steps = list(score_bundle(every, sequences, videos, device=device))
        decided = [decide_steps(every, each, clock[i].seconds) for each, i in zip(steps, first.ids, strict=True)]
        timeless = [i for i in first.ids if np.isnan(clock[i].seconds).any()]
        if timeless and bundle.min_seconds > 0:
            notes.append(f"videos without a clock, whose frames are not smoothed: {len(timeless)}, e.g. {timeless[0]}")
    if bundle.per_frame:
        shown = table(bundle, *over_frames(bundle, steps, decided))
    else:
        probability = np.asarray(score_bundle(bundle, sequences, videos, device=device))
        shown = table(bundle, probability, decide(bundle, probability))
    shown.insert(0, "id", list(first.ids))
    return Predictions(bundle, shown, steps, decided, dict(clock), notes)


def every_step(bundle: Bundle) -> Bundle:
    """The bundle as one that predicts every frame, which heads can that were supervised at every step."""
    return replace(bundle, per_frame=True, objective=replace(bundle.objective, per_frame=True, supervise="pooled"))


class _Task(Protocol):
    """What outputs mean: a bundle says it, or a run's task."""

    @property
    def kind(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...


def table(task: _Task, probability: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """The columns `predicted` and p_<label> of n rows.

    Args:
        task: says what the outputs mean.
        probability: (n, K) probabilities, or values (n, 1).
        predicted: the decisions, as `pipeline.bundles.decide` gives them.
    """
    columns: dict[str, Any] = {"predicted": in_words(task, predicted)}
    if task.kind != "value":
        columns |= {f"p_{label}": probability[:, place] for place, label in enumerate(task.labels)}
    return pd.DataFrame(columns)


def in_words(task: _Task, predicted: np.ndarray) -> list[Any]:
    """Decisions (n,) int64 classes, (n, K) 0 and 1, or (n,) values -> names, names joined by "|", or the values."""
    if task.kind == "class":
        return [task.labels[place] for place in predicted.tolist()]
    if task.kind == "multilabel":
        return [SEPARATOR.join(task.labels[place] for place in np.flatnonzero(row)) for row in predicted]
    return [float(value) for value in predicted]


def decide_steps(bundle: Bundle, probability: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The decisions on the frames of one video, what lasts shorter than the bundle's `min_seconds` smoothed away.

    Args:
        bundle: of a head that predicts every frame.
        probability: (T, K).
        seconds: (T,) float64; where they are unknown, so is how long anything lasts, and nothing is smoothed.
    """
    predicted = decide(bundle, probability)
    if bundle.kind == "value" or bundle.min_seconds <= 0 or np.isnan(seconds).any():
        return predicted
    if bundle.kind == "class":
        return smooth(predicted, seconds, bundle.min_seconds)
    return np.stack([smooth(track, seconds, bundle.min_seconds) for track in predicted.T], axis=1)


def over_frames(
    bundle: Bundle, probability: Sequence[np.ndarray], predicted: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What a row per video says of heads that predict every frame.

    Args:
        bundle: says what the outputs mean.
        probability: of each of B videos (T, K).
        predicted: of each the decisions of its frames.

    Returns:
        (B, K) means over the frames; and the class of most frames (B,), the labels that any frame has (B, K), or the
        mean value (B,).
    """
    means = np.array([steps.mean(axis=0) for steps in probability], np.float32).reshape(len(probability), -1)
    if bundle.kind == "class":
        classes = len(bundle.labels)
        most = [np.bincount(steps, minlength=classes).argmax() for steps in predicted]
        return means, np.array(most, np.int64)
    if bundle.kind == "multilabel":
        return means, np.array([steps.max(axis=0) for steps in predicted], np.int64).reshape(means.shape)
    return means, means.reshape(-1)
