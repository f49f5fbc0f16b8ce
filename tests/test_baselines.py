"""Baselines: strong where they may be, at chance where they must be, and blind to the test part and to other groups."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import baselines
from pipeline.baselines import NAMES, Pooled, fit_and_score, pool_frames, pool_videos


def walk(videos: int = 60, features: int = 20, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Videos of unequal length; class 0, 1 or 2 by what moves: features 0 to 2 swing about 0, the rest is noise."""
    generator = np.random.default_rng(seed)
    target = np.arange(videos) % 3
    sequences = []
    for label in target:
        sequence = generator.normal(size=(generator.integers(5, 15), features)).astype(np.float32)
        sequence[:, label] += 6 * np.sin(np.arange(len(sequence)) * 2.0)
        sequences.append(sequence)
    return sequences, target, [f"g{number // 2}" for number in range(videos)]


def halves(pooled: Pooled) -> tuple[Pooled, Pooled]:
    half = len(pooled.targets) // 2

    def part(rows: slice) -> Pooled:
        arrays = (pooled.mean, pooled.std, pooled.last, pooled.rows)
        return Pooled(pooled.targets[rows], pooled.groups[rows], *(a if a is None else a[rows] for a in arrays))

    return part(slice(half)), part(slice(half, None))


def accuracy(name: str, train: Pooled, test: Pooled, per_frame: bool = False) -> float:
    found = fit_and_score(name, "class", per_frame, train, test, 0, outputs=3)
    assert found.dtype == np.float32
    assert found.sum(1) == pytest.approx(1, abs=1e-5)
    return float((found.argmax(1) == test.targets).mean())


def test_pooling():
    sequences, target, groups = walk(6)
    pooled = pool_videos(sequences, target, groups)
    for row, sequence in enumerate(sequences):
        assert pooled.mean[row] == pytest.approx(np.mean(sequence, 0), abs=1e-6)
        assert pooled.std[row] == pytest.approx(np.std(sequence, 0), abs=1e-6)
        assert (pooled.last[row] == sequence[-1]).all()
    assert pool_videos([np.ones((1, 2), np.float16)], target[:1], ["g"]).std.tolist() == [[0, 0]]


def test_motion_shows_in_the_deviation_alone():
    train, test = halves(pool_videos(*walk(120)))
    scores = {name: accuracy(name, train, test) for name in NAMES["class", False]}
    assert scores["majority"] == pytest.approx(1 / 3)
    assert scores["logistic regression on mean"] < 0.7
    assert scores["logistic regression on mean + std"] > 0.95


def test_what_the_last_frame_shows():
    generator = np.random.default_rng(0)
    target = np.arange(180) % 3
    last = generator.normal(size=(180, 8)).astype(np.float32)
    last[:, 0] += 5 * (target == 1)
    last[:, 1] += 5 * (target == 2)
    train, test = halves(Pooled(target, np.arange(180).astype(str), mean=np.zeros_like(last), last=last))
    assert accuracy("last frame MLP", train, test) > 0.95
    assert accuracy("logistic regression on mean", train, test) < 0.5


@pytest.mark.parametrize("features", [12, 300])
def test_logistic_regression_is_scikit_learns(features, monkeypatch):
    """Standardising, rotating and a penalty per row give the same model as a plain pipeline."""
    generator = np.random.default_rng(0)
    mean = (generator.normal(size=(80, features)) * generator.uniform(0.1, 9, size=features) + 3).astype(np.float32)
    target = (mean[:, :3] + generator.normal(size=(80, 3))).argmax(1)
    train, test = halves(Pooled(target, np.arange(80).astype(str), mean=mean))
    monkeypatch.setattr(baselines, "_STRENGTHS", np.array([0.1]))
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (0.1 * 40), max_iter=2000, tol=1e-6))
    expected = plain.fit(train.mean, train.targets).predict_proba(test.mean)
    found = fit_and_score("logistic regression on mean", "class", False, train, test, 0, outputs=3)
    assert found == pytest.approx(expected, abs=2e-3)
    values = mean[:, 0] * 2 + 1
    train, test = halves(Pooled(values, np.arange(80).astype(str), mean=mean))
    ridge = make_pipeline(StandardScaler(), Ridge(alpha=0.1 * 40)).fit(train.mean, train.targets)
    found = fit_and_score("ridge on mean", "value", False, train, test, 0, outputs=1)
    assert found[:, 0] == pytest.approx(ridge.predict(test.mean), rel=1e-3, abs=1e-2)


def test_the_penalty_is_chosen_over_whole_groups():
    """Where features tell groups apart, folds that split groups would choose next to no penalty."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 6)
    target = np.repeat(generator.permutation(np.arange(20) % 2), 6)
    mean = (generator.normal(size=(20, 40))[groups] + 0.1 * generator.normal(size=(120, 40))).astype(np.float32)

    def confidence(names: np.ndarray) -> float:
        arguments = ("one-vs-rest on mean", "multilabel", False)
        train = Pooled(target[:, None].astype(np.float32), names.astype(str), mean=mean)
        return float(np.abs(fit_and_score(*arguments, train, train, 0, outputs=1) - 0.5).mean())

    assert confidence(groups) < 0.2
    assert confidence(np.arange(120)) > 0.45


def test_test_part_is_not_looked_at():
    train, test = halves(pool_videos(*walk(60)))
    arrays = [np.concatenate([array, array[:1] * 100]) for array in (test.mean, test.std, test.last)]
    more = Pooled(np.append(test.targets, 0), np.append(test.groups, "far"), *arrays)
    for name in NAMES["class", False]:
        alone = fit_and_score(name, "class", False, train, test, 0, outputs=3)
        assert fit_and_score(name, "class", False, train, more, 0, outputs=3)[:-1] == pytest.approx(alone, abs=1e-5)


def test_classes_that_training_lacks():
    pooled = pool_videos(*walk(30))
    train = Pooled(np.where(pooled.targets == 1, 3, 0), pooled.groups, pooled.mean, pooled.std, pooled.last)
    one = Pooled(np.full(30, 2), pooled.groups, pooled.mean, pooled.std, pooled.last)
    single = Pooled(train.targets, np.full(30, "g"), pooled.mean, pooled.std, pooled.last)
    rare = Pooled(np.append(np.zeros(29, np.int64), 1), pooled.groups, pooled.mean, pooled.std, pooled.last)
    for name in NAMES["class", False]:
        assert (fit_and_score(name, "class", False, train, pooled, 0, outputs=5)[:, [1, 2, 4]] == 0).all()
        assert (fit_and_score(name, "class", False, one, pooled, 0, outputs=5)[:, 2] == 1).all()
        for odd in (single, rare):
            assert np.isfinite(fit_and_score(name, "class", False, odd, pooled, 0, outputs=5)).all()


def test_several_labels():
    sequences, target, groups = walk(120)
    labels = np.stack([target == 0, target != 1, np.zeros(120), np.ones(120)], 1).astype(np.float32)
    train, test = halves(pool_videos(sequences, labels, groups))
    found = {
        name: fit_and_score(name, "multilabel", False, train, test, 0, outputs=4) for name in NAMES["multilabel", False]
    }
    assert found["majority"] == pytest.approx(np.tile(train.targets.mean(0), (60, 1)))
    strong = found["one-vs-rest on mean + std"]
    assert ((strong > 0.5) == test.targets).mean(0) == pytest.approx(1, abs=0.1)
    assert (strong[:, 2] == 0).all()
    assert (strong[:, 3] == 1).all()


def test_values():
    sequences, _, groups = walk(120, features=10)
    values = np.array([sequence[:, 0].std() for sequence in sequences], np.float32)
    train, test = halves(pool_videos(sequences, values, groups))
    errors = {}
    for name in NAMES["value", False]:
        found = fit_and_score(name, "value", False, train, test, 0, outputs=1)
        assert found.shape == (60, 1)
        errors[name] = np.abs(found[:, 0] - test.targets).mean()
    assert errors["mean"] == pytest.approx(np.abs(train.targets.mean() - test.targets).mean())
    assert errors["ridge on mean + std"] < 0.1 * errors["mean"]


def frames(videos: int, length: int) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Frames whose class is their largest feature, every fifth one masked."""
    generator = np.random.default_rng(0)
    sequences = [generator.normal(size=(length, 6)).astype(np.float16) for _ in range(videos)]
    targets = [np.where(np.arange(length) % 5 == 4, -100, sequence[:, :3].argmax(1)) for sequence in sequences]
    return sequences, targets, [f"v{number}" for number in range(videos)]


def test_frames_of_training_are_a_stated_even_subset(monkeypatch):
    sequences, targets, groups = frames(4, 50)
    whole = pool_frames(sequences, targets, groups, kind="class", training=True)
    assert (len(whole.targets), whole.notes) == (160, ())
    assert whole.targets.min() == 0
    monkeypatch.setattr(baselines, "FRAME_ROWS", 50)
    part = pool_frames(sequences, targets, groups, kind="class", training=True)
    assert (part.rows == whole.rows[::4]).all()
    assert (part.targets == whole.targets[::4]).all()
    assert (part.groups == whole.groups[::4]).all()
    assert part.notes == ("the baseline per frame is fitted on every 4th of 160 training frames",)
    every = pool_frames(sequences, targets, groups, kind="class", training=False)
    assert every.rows.shape == (200, 6)
    assert every.rows.dtype == np.float32
    assert (every.targets == np.concatenate(targets)).all()
    assert every.groups.tolist() == np.repeat(groups, 50).tolist()


def test_baselines_per_frame():
    sequences, targets, groups = frames(6, 60)
    train = pool_frames(sequences[:4], targets[:4], groups[:4], kind="class", training=True)
    test = pool_frames(sequences[4:], targets[4:], groups[4:], kind="class", training=False)
    scored = test.targets >= 0
    found = fit_and_score("logistic regression per frame", "class", True, train, test, 0, outputs=3)
    assert (found.argmax(1) == test.targets)[scored].mean() > 0.85
    assert accuracy("majority", train, test, per_frame=True) < 0.6
    several = [np.where(t[:, None] < 0, np.nan, np.stack([t == 0, t != 0], 1)).astype(np.float32) for t in targets]
    values = [np.where(t < 0, np.nan, s[:, 0]).astype(np.float32) for t, s in zip(targets, sequences, strict=True)]
    for kind, name, wanted in (("multilabel", "one-vs-rest per frame", several), ("value", "ridge per frame", values)):
        train = pool_frames(sequences[:4], wanted[:4], groups[:4], kind=kind, training=True)
        test = pool_frames(sequences[4:], wanted[4:], groups[4:], kind=kind, training=False)
        outputs = 2 if kind == "multilabel" else 1
        found = fit_and_score(name, kind, True, train, test, 0, outputs=outputs)
        plain = fit_and_score(NAMES[kind, True][0], kind, True, train, test, 0, outputs=outputs)
        truth = np.concatenate(wanted[4:]).reshape(-1, outputs)[scored]
        assert np.abs(found[scored] - truth).mean() < 0.7 * np.abs(plain[scored] - truth).mean()


def test_no_warning_where_an_optimum_is_not_reached(monkeypatch):
    monkeypatch.setattr(baselines, "_ITERATIONS", 2)
    train, test = halves(pool_videos(*walk(60)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in NAMES["class", False]:
            fit_and_score(name, "class", False, train, test, 0, outputs=3)
    assert caught == []


def test_few_videos_of_many_classes_bring_no_warning():
    features = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    target = np.repeat(np.arange(8), 2)
    pooled = Pooled(target, np.arange(16).astype(str), features, np.abs(features), features)
    for name in NAMES["class", False]:
        assert fit_and_score(name, "class", False, pooled, pooled, 0, outputs=8).shape == (16, 8)


def test_features_that_differ_by_little_in_one_direction_are_no_trouble_for_numbers():
    """Warnings are errors here. In float32 the equations are as good as singular (of nearly equal videos, say)."""
    generator = np.random.default_rng(0)
    along = generator.normal(size=(40, 1))
    features = (along + 1e-5 * generator.normal(size=(40, 4000))).astype(np.float32)
    train, test = halves(Pooled(along[:, 0] * 3, np.arange(40).astype(str), mean=features))
    found = fit_and_score("ridge on mean", "value", False, train, test, 0, outputs=1)
    assert found[:, 0] == pytest.approx(test.targets, abs=0.2)
