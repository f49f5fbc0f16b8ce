"""Metrics: worked by hand, held against scikit-learn where it can say it at once, and calm about what is missing."""

import numpy as np
import pytest
from sklearn import metrics as sk

from pipeline.bootstrap import score_of
from pipeline.metrics import HEADLINE, frame_metrics, headline_score, higher_is_better, per_class, video_metrics


def probabilities(rows: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), size=rows).astype(np.float32)


def test_classes_by_hand():
    target = np.array([0, 0, 0, 1])
    probability = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    assert video_metrics("class", target, probability) == pytest.approx(
        {
            "accuracy": 3 / 4,
            "balanced_accuracy": (2 / 3 + 1) / 2,
            "macro_f1": (2 * 2 / (2 + 3) + 2 * 1 / (2 + 1)) / 2,
            "auc": 2 / 3,  # 0.7 lies above 0.1 and 0.4, below 0.8
            "nll": -np.log([0.9, 0.6, 0.2, 0.7]).mean(),
            "ece": (0.1 + 0.4 + 0.8 + 0.3) / 4,  # every row in a bin of its own
        }
    )


def test_classes_against_scikit_learn():
    target, probability = np.arange(90) % 3, probabilities(90, 3)
    scores, predicted = video_metrics("class", target, probability), probability.argmax(1)
    assert scores["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(target, predicted))
    assert scores["macro_f1"] == pytest.approx(sk.f1_score(target, predicted, average="macro"))
    exact = probability / probability.sum(1, keepdims=True, dtype=np.float64)
    assert scores["auc"] == pytest.approx(sk.roc_auc_score(target, exact, multi_class="ovr"))
    assert scores["nll"] == pytest.approx(sk.log_loss(target, exact), rel=1e-5)


def test_ece_of_bins():
    probability = np.repeat([[0.95, 0.05], [0.65, 0.35]], 10, axis=0)
    target = np.array([0] * 9 + [1] + [0] * 5 + [1] * 5)
    assert video_metrics("class", target, probability)["ece"] == pytest.approx((0.05 + 0.15) / 2)


def test_absent_classes_neither_warn_nor_count():
    target, probability = np.array([0, 0, 2]), np.eye(4)[[0, 1, 2]] * 0.7 + 0.075
    scores = video_metrics("class", target, probability)  # class 3 is nowhere, class 1 only predicted
    assert scores["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert scores["auc"] == pytest.approx((0.75 + 1) / 2)
    one = video_metrics("class", np.array([1, 1]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert np.isnan(one["auc"])
    assert one["accuracy"] == 0.5
    assert np.isfinite(one["nll"])


def test_several_labels_by_hand():
    target = np.array([[1, 0], [0, 0], [1, 0], [0, 1]], np.float32)
    probability = np.array([[0.9, 0.2], [0.8, 0.1], [0.6, 0.3], [0.1, 0.4]], np.float32)
    assert video_metrics("multilabel", target, probability) == pytest.approx(
        {
            "mAP": ((1 + 2 / 3) / 2 + 1) / 2,
            "macro_f1": (2 * 2 / (3 + 2) + 0) / 2,
            "micro_f1": 2 * 2 / (3 + 3),
            "exact_match": 2 / 4,
            "auc": (3 / 4 + 1) / 2,
        }
    )
    better = video_metrics("multilabel", target, probability, decided=probability >= [0.5, 0.35])
    assert better["exact_match"] == 3 / 4
    assert better["micro_f1"] == pytest.approx(2 * 3 / (4 + 3))


def test_labels_that_nobody_has():
    target, probability = np.zeros((3, 2)), np.array([[0.1, 0.2], [0.3, 0.4], [0.2, 0.1]])
    scores = video_metrics("multilabel", target, probability)
    assert np.isnan([scores["mAP"], scores["auc"], scores["macro_f1"]]).all()
    assert scores["exact_match"] == 1
    one = video_metrics("multilabel", np.array([[1.0], [0.0]]), np.array([[0.9], [0.2]]))
    assert set(one.values()) == {1.0}


def test_values_by_hand():
    target = np.array([1.0, 2.0, 3.0, 6.0], np.float32)
    predicted = np.array([[1.0], [3.0], [3.0], [4.0]], np.float32)
    expected = {"mae": 3 / 4, "rmse": np.sqrt(5 / 4), "r2": 1 - 5 / 14}
    assert video_metrics("value", target, predicted) == pytest.approx(expected)
    assert video_metrics("value", target, predicted[:, 0]) == pytest.approx(expected)
    assert np.isnan(video_metrics("value", np.ones(3), np.zeros(3))["r2"])


def test_frames_of_classes():
    targets = [np.array([0, 0, -100, 1, 1]), np.array([-100, -100]), np.array([1, 1, 0])]
    predictions = [np.array([0, 0, 2, 1, 0]), np.array([2, 2]), np.array([1, 1, 1])]
    assert frame_metrics("class", targets, predictions) == pytest.approx(
        {
            "frame_accuracy": 5 / 7,
            "balanced_accuracy": (2 / 3 + 3 / 4) / 2,
            "macro_f1": (2 * 2 / (3 + 3) + 2 * 3 / (4 + 4)) / 2,
            "edit": ((1 - 1 / 3) + 1 / 2) / 2,  # 0 1 0 for 0 1, and 1 for 1 0
            "f1@10": 2 * 3 / (4 + 4),
            "f1@25": 2 * 3 / (4 + 4),
            "f1@50": 2 * 3 / (4 + 4),
        }
    )
    assert frame_metrics("class", targets, predictions, background=0)["edit"] == 1
    with pytest.raises(ValueError, match="every frame is masked"):
        frame_metrics("class", targets[1:2], predictions[1:2])


def test_frames_of_labels_and_values_leave_masked_rows_out():
    nan = np.nan
    targets = [np.array([[1, 0], [nan, nan]]), np.array([[0, 1], [1, 1]])]
    found = [probabilities(2, 2), probabilities(2, 2, 1)]
    rows = np.concatenate(targets)[[0, 2, 3]], np.concatenate(found)[[0, 2, 3]]
    assert frame_metrics("multilabel", targets, found) == video_metrics("multilabel", *rows)
    scores = frame_metrics(
        "value", [np.array([1.0, nan]), np.array([3.0])], [np.array([[2.0], [9.0]]), np.array([[3.0]])]
    )
    assert scores == pytest.approx({"mae": 0.5, "rmse": np.sqrt(0.5), "r2": 0.5})


def test_per_class():
    target = np.array([0, 0, 1])
    table = per_class("class", target, np.array([0, 1, 1]), ["a", "b", "c"])
    assert table.to_dict("list") == {
        "label": ["a", "b", "c"],
        "support": [2, 1, 0],
        "precision": [1, 0.5, 0],
        "recall": [0.5, 1, 0],
        "f1": pytest.approx([2 / 3, 2 / 3, 0]),
    }
    many = per_class("multilabel", np.eye(2)[[0, 0, 1]], np.array([[1, 0], [0, 1], [0, 1]]), ["a", "b"])
    assert many["support"].tolist() == [2, 1]
    assert many["precision"].tolist() == [1, 0.5]


def test_headline_scores_are_the_headlines():
    generator = np.random.default_rng(0)
    lengths = [5, 9, 1, 30]
    cases = {
        ("class", False): (np.arange(40) % 3, probabilities(40, 3)),
        ("multilabel", False): ((generator.random((40, 3)) < 0.4).astype(float), probabilities(40, 3).round(1)),
        ("value", False): (generator.random(40), generator.random((40, 1))),
        ("class", True): ([generator.integers(-1, 3, size=n) for n in lengths], [np.ones(n, int) for n in lengths]),
        ("multilabel", True): (
            [np.where(generator.random((n, 1)) < 0.2, np.nan, generator.random((n, 2)) < 0.5) for n in lengths],
            [generator.random((n, 2)).round(1) for n in lengths],
        ),
        ("value", True): (
            [np.where(generator.random(n) < 0.2, np.nan, generator.random(n)) for n in lengths],
            [generator.random((n, 1)) for n in lengths],
        ),
    }
    assert cases.keys() == HEADLINE.keys()
    for (kind, per_frame), (targets, found) in cases.items():
        metrics = (frame_metrics if per_frame else video_metrics)(kind, targets, found)
        score = headline_score(kind, per_frame, targets, found)
        assert score_of(score, len(targets)) == pytest.approx(metrics[HEADLINE[kind, per_frame]]), (kind, per_frame)


def test_average_precision_of_drawn_rows():
    generator = np.random.default_rng(0)
    target, found = (generator.random((50, 2)) < 0.3).astype(float), probabilities(50, 2).round(1)  # with ties
    score = headline_score("multilabel", False, target, found)
    for _ in range(20):
        rows = generator.integers(50, size=50)
        expected = np.mean([sk.average_precision_score(target[rows, k], found[rows, k]) for k in range(2)])
        assert score(rows) == pytest.approx(expected)


def test_which_way_is_up():
    assert [name for name in ("accuracy", "mAP", "r2", "edit", "auc") if not higher_is_better(name)] == []
    assert [name for name in ("mae", "rmse", "nll", "ece", "loss") if higher_is_better(name)] == []
