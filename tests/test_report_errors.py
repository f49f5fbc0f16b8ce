"""Where a run fails: every video lies in the cell where it belongs, and the surest mistakes come first."""

import numpy as np
import pytest

from pipeline.report_errors import cells, words_of, worst
from pipeline.results import HeldOut, Task, confusion
from tests.test_recorded import KINDS, made

TASK = Task("class", False, ("a", "b", "c"))


def held(*rows: tuple[int, list[float]]) -> HeldOut:
    """Videos v0, v1, ... of a true class and probabilities."""
    scores = [np.array(each, np.float32) for _, each in rows]
    ids = [f"v{place}" for place in range(len(rows))]
    targets = [np.int64(true) for true, _ in rows]
    return HeldOut(ids, ["1"] * len(rows), targets, scores, [each.argmax() for each in scores])


SAID = held((0, [0.9, 0.1, 0]), (0, [0.3, 0.7, 0]), (1, [0.8, 0.2, 0]), (0, [0.05, 0.9, 0.05]), (1, [0.4, 0.5, 0.1]))


def test_videos_of_each_cell() -> None:
    found = cells(TASK, SAID)
    assert found is not None
    assert found["counts"] == [[1, 2, 0], [1, 1, 0], [0, 0, 0]]
    assert found["totals"] == [3, 2, 0]
    assert [video[0] for video in found["listed"]["0-1"]] == [3, 1], "the surest first"
    assert found["listed"]["0-1"][1] == [1, 1, pytest.approx(0.7), pytest.approx(0.3)]
    assert "2-2" not in found["listed"]


def test_surest_mistakes_first() -> None:
    shown = worst(TASK, SAID, 2)
    assert [(each.place, each.labels) for each in shown] == [(3, (0, 1)), (2, (1, 0))]
    assert words_of(TASK, SAID, 3) == ("a", "b")


def test_without_a_mistake_what_is_nearest_to_one() -> None:
    right = held((0, [0.9, 0.1, 0]), (1, [0.4, 0.5, 0.1]), (2, [0, 0.2, 0.8]))
    shown = worst(TASK, right, 12)
    assert [each.wrong for each in shown] == [False] * 3
    assert (shown[0].place, shown[0].labels) == (1, (1, 0))


@pytest.mark.parametrize(("kind", "per_frame"), KINDS)
def test_counts_are_those_of_the_frames_or_videos(kind: str, per_frame: bool) -> None:
    task, said = made(kind, per_frame)
    found = cells(task, said)
    if kind == "value":
        assert found is None
        errors = [each.score for each in worst(task, said, 99)]
        assert errors == sorted(errors, reverse=True)
        return
    assert found is not None
    for key, videos in found["listed"].items():
        row, column = map(int, key.split("-"))
        assert sum(video[1] for video in videos) == found["counts"][row][column]
    if kind == "class":
        assert np.array_equal(found["counts"], confusion(task, said))
    else:
        rows = [each[None] if not per_frame else each for each in said.targets]
        present = np.concatenate([each[~np.isnan(each).any(1)] for each in rows]).sum(0)
        assert found["totals"] == present.astype(int).tolist()


def test_several_labels_show_the_wrong_one() -> None:
    task = Task("multilabel", False, ("a", "b"))
    scores = [np.array([0.9, 0.1]), np.array([0.6, 0.8])]
    targets = [np.array([1.0, 1.0]), np.array([1.0, 0.0])]
    said = HeldOut(["v0", "v1"], ["1", "1"], targets, scores, [np.array([1, 0]), np.array([1, 1])])
    assert [(each.place, each.labels, round(each.score, 3)) for each in worst(task, said, 9)] == [
        (0, (1,), 0.9),
        (1, (1,), 0.8),
    ]
    assert words_of(task, said, 1) == ("a", "a, b")
