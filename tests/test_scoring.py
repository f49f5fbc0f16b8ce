"""Predictions against each video alone through the head."""

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.heads import Head, HeadConfig
from pipeline.objectives import Objective
from pipeline.scoring import evaluate, score
from pipeline.selection import Selection, select
from tests.heads import FEATURES, class_rows, packed_of, rows_of, sequences_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LENGTHS = [3, 30, 1, 17, 9]


def head_of(outputs: int = 3, **config: object) -> Head:
    torch.manual_seed(0)
    return Head(HeadConfig(hidden=5, **config), (FEATURES,), outputs).eval()  # type: ignore[arg-type]


def test_videos_come_in_the_order_asked_for() -> None:
    sequences, head, objective = sequences_of(LENGTHS), head_of(pool="mean"), Objective("class")
    videos = np.array([3, 0, 4, 2])
    with torch.no_grad():
        alone = [head(packed_of([rows_of(sequences)[video]])).softmax(1)[0] for video in videos]
    found = score(head.train(), sequences, videos, objective, Selection())
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.stack(alone).numpy(), rtol=1e-5)
    assert head.training  # as it was


@pytest.mark.parametrize("supervise", ["pooled", "every-step"])
@pytest.mark.parametrize("cell", ["gru", "none"])
def test_long_videos_in_chunks_are_as_if_whole(supervise: str, cell: str) -> None:
    sequences = sequences_of(LENGTHS)
    head = head_of(cell=cell, pool="stats", steps=supervise != "pooled")
    objective, videos = Objective("class", supervise=supervise, read="mean"), np.arange(5)
    whole = score(head, sequences, videos, objective, Selection())
    chunks = score(head, sequences, videos, objective, Selection(), chunk_steps=8)
    np.testing.assert_allclose(chunks, whole, atol=1e-6)


def test_frames_of_long_videos_lie_where_they_belong() -> None:
    sequences, objective = sequences_of(LENGTHS), Objective("class", per_frame=True)
    head = head_of(steps=True)
    videos = np.array([1, 2, 3])
    with torch.no_grad():
        alone = [head(packed_of([rows_of(sequences)[video]])).data.softmax(1).numpy() for video in videos]
    for chunk_steps in (100, 8):
        found = score(head, sequences, videos, objective, Selection(), chunk_steps=chunk_steps)
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_draws_are_averaged() -> None:
    sequences, head, objective = sequences_of(LENGTHS), head_of(), Objective("class")
    selection = Selection("crop", 4, test_crops=3)
    expected = []
    with torch.no_grad():
        for video, rows in enumerate(rows_of(sequences)):
            crops = [rows[select(selection, sequences.seconds(video), draw=draw)] for draw in range(3)]
            expected.append(torch.stack([head(packed_of([crop])).softmax(1)[0] for crop in crops]).mean(0))
    found = score(head, sequences, np.arange(5), objective, selection)
    np.testing.assert_allclose(found, torch.stack(expected).numpy(), rtol=1e-5)


def test_rows_that_are_not_selected_take_the_nearest_prediction() -> None:
    sequences, head = sequences_of([7]), head_of(steps=True)
    objective, selection = Objective("class", per_frame=True), Selection("stride", 3)
    with torch.no_grad():
        taken = head(packed_of([rows_of(sequences)[0][::3]])).data.softmax(1).numpy()
    (found,) = score(head, sequences, np.array([0]), objective, selection)
    np.testing.assert_allclose(found, taken[[0, 0, 1, 1, 1, 2, 2]], rtol=1e-5)


def test_values_are_scored_in_their_unit() -> None:
    sequences, head = sequences_of(LENGTHS), head_of(1)
    before = score(head, sequences, np.arange(5), Objective("value"), Selection())
    head.value_mean.fill_(100)
    head.value_scale.fill_(10)
    after = score(head, sequences, np.arange(5), Objective("value", scale=10), Selection())
    assert isinstance(before, np.ndarray)
    assert before.shape == (5, 1)
    np.testing.assert_allclose(after, before * 10 + 100, rtol=1e-5)


def test_the_loss_is_the_mean_over_targets() -> None:
    sequences, head, objective = sequences_of(LENGTHS), head_of(steps=True), Objective("class", per_frame=True)
    labels = [number % 3 if number % 4 else -1 for number in range(sum(LENGTHS))]
    targets = class_rows(labels, ("a", "b", "c"), per_frame=True)
    videos = np.array([0, 1, 3])
    loss, scores = evaluate(head, sequences, videos, targets, objective, Selection(), chunk_steps=8)
    wanted = np.concatenate([np.arange(*sequences.offsets[video : video + 2]) for video in videos])
    probability = np.concatenate(list(scores))
    known = targets.known[wanted]
    chances = probability[known, np.array(labels)[wanted][known]]
    assert loss == pytest.approx(float(-np.log(chances).mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["class", "multilabel", "value"])
def test_predictions_that_are_no_numbers_stop_with_advice(kind: str) -> None:
    head = head_of(pool="mean")
    torch.nn.init.constant_(head.classifier[-1].weight, float("inf"))
    with pytest.raises(UserError, match="lower learning rate"):
        score(head, sequences_of(LENGTHS), np.arange(5), Objective(kind), Selection())
