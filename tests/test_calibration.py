"""Temperature and thresholds: what they undo, and what they leave alone."""

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.calibration import fit_temperature, fit_thresholds, tempered


def test_temperature_is_that_of_least_loss() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2, size=(4000, 3))
    target = np.array([generator.choice(3, p=row) for row in softmax(logits, axis=1)])
    overconfident = softmax(3 * logits, axis=1).astype(np.float32)
    assert fit_temperature("class", overconfident, target) == pytest.approx(3, rel=0.1)
    np.testing.assert_allclose(tempered("class", overconfident, 3), softmax(logits, axis=1), atol=1e-3)
    labels = (generator.random((4000, 2)) < 1 / (1 + np.exp(-logits[:, :2]))).astype(np.float32)
    sure = (1 / (1 + np.exp(-3 * logits[:, :2]))).astype(np.float32)
    assert fit_temperature("multilabel", sure, labels) == pytest.approx(3, rel=0.1)
    np.testing.assert_allclose(tempered("multilabel", sure, 3), 1 / (1 + np.exp(-logits[:, :2])), atol=5e-3)
    assert tempered("value", sure, 3) is sure


def test_few_scores_that_happen_to_be_right_do_not_make_sure() -> None:
    probability = np.tile(np.array([[0.7, 0.3]], np.float32), (10, 1))
    assert 0.5 < fit_temperature("class", probability, np.zeros(10, np.int64)) < 1
    many = np.tile(probability, (200, 1))
    assert fit_temperature("class", many, np.zeros(2000, np.int64)) < 0.25
    assert fit_temperature("class", probability, np.array([0] * 7 + [1] * 3)) == pytest.approx(1, abs=0.01)


def test_temperature_keeps_the_decision() -> None:
    probability = np.random.default_rng(0).dirichlet(np.ones(5), 50).astype(np.float32)
    for temperature in (0.2, 5):
        assert (tempered("class", probability, temperature).argmax(1) == probability.argmax(1)).all()


def test_thresholds_of_highest_f1() -> None:
    probability = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5], [0.35, 0.5]], np.float32)
    target = np.array([[0, 0], [0, 0], [1, 0], [1, 0]])
    found = fit_thresholds(probability, target)
    assert ((probability[:, 0] >= found[0]) == target[:, 0].astype(bool)).all()
    assert found[1] == 0.5, "a label that never occurs"
