"""Held-out predictions -> scores, differences and tables, against figures worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from pipeline.results import (
    HeldOut,
    Task,
    class_table,
    compare_with_baselines,
    confusion,
    frame_table,
    metrics_of,
    prediction_table,
)

CLASSES = Task("class", False, ("a", "b"))


def said(targets: list[int], decided: list[int], fold: str = "test") -> HeldOut:
    """Class predictions of videos v0, v1, ..., sure of themselves."""
    scores = [np.array([0.9, 0.1] if each == 0 else [0.1, 0.9], np.float32) for each in decided]
    ids = [f"v{number}" for number in range(len(targets))]
    return HeldOut(ids, [fold] * len(ids), [np.int64(t) for t in targets], scores, [np.int64(d) for d in decided])


def test_difference_to_the_best_baseline() -> None:
    targets = [0, 1] * 20
    head, weak, strong = list(targets), [0] * 40, list(targets)
    head[0], strong[0], strong[1], strong[3] = 1, 1, 0, 0
    found = compare_with_baselines(
        CLASSES, [said(targets, head)], {"weak": said(targets, weak), "strong": said(targets, strong)}, None
    )
    assert found["score"] == 39 / 40
    assert found["baselines"]["weak"]["score"] == 0.5
    assert found["best_baseline"] == "strong"
    assert found["difference"] == pytest.approx(2 / 40)
    low, high = found["difference_interval"]
    assert low <= 2 / 40 <= high
    assert low == 0, "the head is never worse on a video, so no replicate is below 0"


def test_groups_widen_the_interval() -> None:
    targets = [0] * 60
    decided = [0] * 30 + [1] * 30
    groups = [f"g{number // 10}" for number in range(60)]  # all right or all wrong within a group
    alone = compare_with_baselines(CLASSES, [said(targets, decided)], {"x": said(targets, decided)}, None)
    grouped = compare_with_baselines(CLASSES, [said(targets, decided)], {"x": said(targets, decided)}, groups)
    width = [high - low for low, high in (alone["interval"], grouped["interval"])]
    assert width[1] > 2 * width[0]
    assert (alone["resampled"], grouped["resampled"]) == ("videos", "groups")


def test_seeds_are_averaged_before_they_are_resampled() -> None:
    targets = [0, 1] * 10
    one, other = list(targets), [1 - target for target in targets]
    found = compare_with_baselines(CLASSES, [said(targets, one), said(targets, other)], {"x": said(targets, one)}, None)
    assert found["seeds"] == [1.0, 0.0]
    assert found["score"] == 0.5
    assert found["interval"] == [0.5, 0.5], "every video is right once in two: nothing to be unsure of"
    assert found["seeds_sd"] == pytest.approx(np.sqrt(0.5))


def test_lower_errors_are_better() -> None:
    task = Task("value", False, ())

    def values(off: float) -> HeldOut:
        ids = [f"v{number}" for number in range(20)]
        targets = [np.float32(number) for number in range(20)]
        scores = [np.array([target + off], np.float32) for target in targets]
        return HeldOut(ids, ["test"] * 20, targets, scores, [score[0] for score in scores])

    found = compare_with_baselines(task, [values(1)], {"worse": values(3), "worst": values(-5)}, None)
    assert found["headline"] == "mae"
    assert found["score"] == pytest.approx(1)
    assert found["best_baseline"] == "worse"
    assert found["difference"] == pytest.approx(2)
    assert found["difference_interval"] == pytest.approx([2, 2])


def test_tables() -> None:
    held = said([0, 0, 1, 1], [0, 1, 1, 1])
    assert confusion(CLASSES, held).tolist() == [[1, 1], [0, 2]]
    first, second = class_table(CLASSES, held)
    assert (first["label"], first["support"], first["precision"], first["recall"]) == ("a", 2, 1.0, 0.5)
    assert (second["precision"], second["recall"]) == (pytest.approx(2 / 3), 1.0)
    told = prediction_table(CLASSES, held)
    assert told.columns.tolist() == ["id", "fold", "target", "predicted", "p_a", "p_b"]
    assert told["predicted"].tolist() == ["a", "b", "b", "b"]
    assert metrics_of(CLASSES, held)["accuracy"] == 0.75
    assert held.of_fold("other").ids == []
    assert held.of_fold("test").ids == held.ids


def test_labels_are_decided_by_each_fold_s_own_thresholds() -> None:
    task = Task("multilabel", False, ("x", "y"))
    targets = [np.array([1, 0]), np.array([0, 1])]
    scores = [np.array([0.3, 0.2], np.float32), np.array([0.6, 0.7], np.float32)]
    decided = [np.array([1, 0]), np.array([0, 1])]  # at 0.25 in one fold, at 0.65 in the other
    held = HeldOut(["v0", "v1"], ["1", "2"], targets, scores, decided)
    found = metrics_of(task, held)
    assert found["exact_match"] == 1
    assert found["mAP"] == pytest.approx((0.5 + 1) / 2)
    assert prediction_table(task, held)["predicted"].tolist() == ["x", "y"]


def test_frames_without_a_target_count_nowhere() -> None:
    task = Task("class", True, ("a", "b"))
    target = np.array([-100, 0, 0, 1, 1])
    decided = np.array([1, 0, 1, 1, 1])
    scores = np.eye(2, dtype=np.float32)[decided]
    held = HeldOut(["v0"], ["test"], [target], [scores], [decided], [np.arange(5) / 10])
    assert metrics_of(task, held)["frame_accuracy"] == 0.75
    assert confusion(task, held).tolist() == [[1, 1], [0, 2]]
    row = prediction_table(task, held).iloc[0]
    assert (row["frames"], row["right"]) == (4, 3)
    frames = frame_table(task, held)
    assert frames["target"].tolist() == ["", "a", "a", "b", "b"]
    assert frames["seconds"].tolist() == [0, 0.1, 0.2, 0.3, 0.4]
    assert isinstance(frames, pd.DataFrame)
