"""Was anything lost in joining backbone and head? The joined model beside the head on its bank, on a few videos.

What the joined model computes from frames (or from the activations banked at the boundary) must be what the bank
holds, and its scores must be those that the head gives there. They are not the same bit for bit: the bank stores
float16, and another batch shape or autocast rounds otherwise. How far half precision may be apart is measured on
ImageNet weights (MobileNetV2 in bfloat16, the worst of those tried, is within 0.08); a head reads small changes about
a video's mean, in which rounding weighs more, so scores may differ more than embeddings, most where a bank in bfloat16
meets a network in float32, of random weights whose embeddings are all nearly the same; wrong preprocessing, channels
in another order, other weights or swapped videos are off by far more.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.heads import Head
from pipeline.ids import readable
from pipeline.objectives import Objective
from pipeline.scoring import Scores, score
from pipeline.selection import Selection
from pipeline.sequences import Sequences
from pipeline.video_model import VideoModel

VIDEOS = 6
_MOST_ROWS = 512  # of a video that is looked at, if there are shorter ones
TOLERANCES = {True: (0.005, 0.02), False: (0.15, 0.25)}  # of embeddings and scores; whether all was done in float32


class Joined(NamedTuple):
    """How far the joined model is from the head on its bank.

    Attributes:
        videos: how many were looked at.
        embeddings: the largest distance of a video's embeddings from the banked ones, as a share of their norm.
        scores: the largest difference of a probability, or of a value in units of the largest one.
        tolerances: those of both.
    """

    videos: int
    embeddings: float
    scores: float
    tolerances: tuple[float, float]


def check_joined(
    model: VideoModel,
    sequences: Sequences,
    head: Head,
    banked: Sequences,
    objective: Objective,
    selection: Selection,
    *,
    exact: bool,
    device: torch.device,
) -> Joined:
    """Hold the joined model against the head on some videos of different lengths, packed together.

    Args:
        model: the joined model.
        sequences: what it reads.
        head: the head by itself.
        banked: what that reads: the same videos in the same order.
        objective, selection: what the head was trained for, and the rows that it sees.
        exact: whether bank and model both compute in float32.
        device: where.

    Raises:
        UserError: they differ by more than the tolerance.
    """
    videos = _some(banked.lengths)
    tolerances = TOLERANCES[exact]
    apart = max(_distance(model, sequences, banked, int(video), device) for video in videos)
    ours, theirs = (
        score(each, rows, videos, objective, selection, device=device)
        for each, rows in ((model, sequences), (head, banked))
    )
    unit = _largest(theirs) if objective.kind == "value" else 1.0
    scores = max(float(np.abs(one - other).max()) for one, other in zip(ours, theirs, strict=True)) / unit
    joined = Joined(len(videos), apart, scores, tolerances)
    if not (apart <= tolerances[0] and scores <= tolerances[1]):
        shown = ", ".join(readable(banked.ids[video]) for video in videos[:3])
        raise UserError(
            f"The joined model does not give what the head gave on its bank: embeddings are {apart:.3g} of their norm "
            f"apart "
            f"(at most {tolerances[0]:g} is rounding), scores {scores:.3g} (at most {tolerances[1]:g}), e.g. of "
            f"{shown}. "
            f"{_cause(apart > tolerances[0])}"
        )
    return joined


def _cause(embeddings_differ: bool) -> str:
    if embeddings_differ:
        return (
            "The videos were changed after they were banked, or are decoded otherwise by this version of FFmpeg: "
            "extract "
            "the bank again and train the head on it."
        )
    return "The embeddings are those of the bank, so the head is not the one that was trained on it; give its own run."


def _some(lengths: np.ndarray) -> np.ndarray:
    """Up to `VIDEOS` positions of videos of different lengths, the shortest ones and none that is very long."""
    order = np.argsort(lengths, kind="stable")
    usual = order[: max(VIDEOS, int((lengths <= _MOST_ROWS).sum()))]
    return np.sort(usual[np.unique(np.linspace(0, len(usual) - 1, VIDEOS).round().astype(np.int64))])


@torch.no_grad()
def _distance(model: VideoModel, sequences: Sequences, banked: Sequences, video: int, device: torch.device) -> float:
    """Between what the model's backbone makes of a video's first rows and what the bank has of them."""
    rows = min(_MOST_ROWS, int(banked.lengths[video]))
    was_training = model.training
    model.to(device).eval()
    ours = _vectors(model.head, model.embed(sequences.to(device).read(video, 0, rows)))
    model.train(was_training)
    theirs = _vectors(model.head, banked.to(device).read(video, 0, rows))
    return float((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(torch.float32).tiny))


def _vectors(head: Head, rows: Tensor) -> Tensor:
    """Rows as the head reads them. Maps that it standardises first are taken as they are: less their mean, what
    rounding has done to them would look large."""
    return head.vectors(rows) if head.attend is None else rows.flatten(1)


def _largest(scores: Scores) -> float:
    return max(float(np.abs(each).max()) for each in scores) or 1.0
