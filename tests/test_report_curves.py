"""Curves against scikit-learn and the metrics of the run, and sentences where there is no curve."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from pipeline.report_curves import areas, calibration, learning, precision_recall, roc, scatter
from pipeline.results import HeldOut, Task, metrics_of, rows_of
from tests.test_recorded import made


def test_areas_are_those_of_the_metrics() -> None:
    task, held = made("class", False, 60)
    found = areas(task, held)
    assert np.mean([each["auc"] for each in found.values()]) == pytest.approx(metrics_of(task, held)["auc"])
    several, said = made("multilabel", True)
    mean = np.mean([each["ap"] for each in areas(several, said).values()])
    assert mean == pytest.approx(metrics_of(several, said)["mAP"])
    assert areas(*made("value", False)) == {}


def test_the_area_under_the_drawn_curve() -> None:
    task, held = made("class", True, 60)
    chart = roc(task, held)
    assert isinstance(chart, dict)
    for series in chart["series"][:-1]:
        area = sk.auc(*np.array(series["data"]).T)
        assert area == pytest.approx(areas(task, held)[series["name"]]["auc"], abs=0.01), "thinned, not changed"
    assert isinstance(precision_recall(task, held), dict)


def test_a_class_that_the_test_part_lacks_is_said() -> None:
    task = Task("class", False, ("a", "b", "c"))
    scores = list(np.random.default_rng(0).dirichlet(np.ones(3), 8).astype(np.float32))
    targets = [np.int64(place % 2) for place in range(8)]
    held = HeldOut([f"v{n}" for n in range(8)], ["1"] * 8, targets, scores, [each.argmax() for each in scores])
    assert areas(task, held)["c"] == {"auc": None, "ap": None}
    chart = roc(task, held)
    assert isinstance(chart, dict)
    assert [each["name"] for each in chart["series"]] == ["a", "b", "by chance"]
    assert chart["left_out"] == ["No held-out row is of c."]
    alone = held.of_fold("1")
    alone.targets = [np.int64(0)] * 8
    assert roc(task, alone) == "Not defined: the held-out part has rows of one class only."


def test_reliability_gives_the_expected_calibration_error() -> None:
    task, held = made("class", False, 80)
    chart = calibration(task, held)
    assert isinstance(chart, dict)
    total = sum(each["count"] for each in chart["bins"])
    ece = sum(each["count"] * abs(each["right"] - each["confidence"]) for each in chart["bins"]) / total
    assert total == 80
    assert ece == pytest.approx(metrics_of(task, held)["ece"])


def test_numbers_have_a_scatter_and_no_probabilities() -> None:
    task, held = made("value", True)
    chart = scatter(task, held)
    assert isinstance(chart, dict)
    target, _, decided = rows_of(task, held)
    assert np.allclose(chart["series"][1]["data"], np.stack([target, decided], axis=1))
    assert all(isinstance(each, str) for each in (roc(task, held), precision_recall(task, held)))
    assert isinstance(calibration(task, held), str)
    assert isinstance(scatter(*made("class", False)), str)


def test_learning_curves_with_their_mean_and_the_epochs_kept() -> None:
    rows = [
        {"seed": 0, "fold": fold, "member": 0, "epoch": epoch, "train_loss": 2.0 / epoch + place, "kept": epoch == 2}
        for place, fold in enumerate(("1", "2"))
        for epoch in (1, 2, 3)
    ]
    (chart,) = learning(pd.DataFrame(rows), "loss")
    thin, bold = chart["series"][:2], chart["series"][2]
    assert [each["data"][0] for each in thin] == [[1, 2], [1, 3]]
    assert bold["data"] == [[1, 2.5], [2, 1.5], [3, pytest.approx(2 / 3 + 0.5)]]
    assert chart["series"][-1]["data"] == [[2, 1.0], [2, 2.0]]
    both = pd.DataFrame(rows).assign(validation_loss=1.0, validation_accuracy=0.5)
    assert [each["title"] for each in learning(both, "accuracy")] == ["Loss", "Validation accuracy"]
