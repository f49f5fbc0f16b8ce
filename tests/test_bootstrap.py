"""Intervals: against plain resampling, against theory, and honest about groups."""

import time

import numpy as np
import pytest

from pipeline.bootstrap import Ratio, bootstrap, paired, score_of


def mean_of(values):
    return lambda rows: float(values[rows].mean())


def test_fast_path_is_the_slow_one():
    generator = np.random.default_rng(0)
    values, weights = generator.random(60), generator.integers(1, 9, size=60).astype(float)
    groups = [f"g{number}" for number in generator.integers(12, size=60)]
    slow = bootstrap(mean_of(values), groups, 60, repeats=300, seed=3)
    assert bootstrap(values, groups, 60, repeats=300, seed=3) == pytest.approx(slow)
    ratio = Ratio(values * weights, weights)
    slow = bootstrap(lambda rows: float((values * weights)[rows].sum() / weights[rows].sum()), None, 60, repeats=300)
    assert bootstrap(ratio, None, 60, repeats=300) == pytest.approx(slow)
    assert score_of(ratio, 60) == pytest.approx(np.average(values, weights=weights))
    assert score_of(mean_of(values), 60) == score_of(values, 60) == pytest.approx(values.mean())


def test_whole_groups_are_drawn():
    groups = ["a"] * 3 + ["b"] * 2 + ["c"]
    seen = []

    def score(rows):
        seen.append(np.bincount(rows, minlength=6).tolist())
        return 0.0

    bootstrap(score, groups, 6, repeats=200)
    for counts in seen:
        assert len(set(counts[:3])) == len(set(counts[3:5])) == 1
        assert counts[0] + counts[3] + counts[5] == 3  # three groups, some more than once
    assert len({tuple(counts) for counts in seen}) == 10  # every multiset of three out of three


def test_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).random(400)
    low, high, dropped = bootstrap(values, None, 400, seed=1)
    expected = values.mean() + np.array([-1.96, 1.96]) * values.std() / 20
    assert [low, high] == pytest.approx(expected, abs=0.003)
    assert dropped == 0


def test_dependent_rows_widen_the_interval():
    right = np.repeat(np.random.default_rng(0).random(40) < 0.6, 10).astype(float)  # a group is all right or all wrong
    groups = np.repeat(np.arange(40), 10).astype(str).tolist()
    alone, grouped = bootstrap(right, None, 400), bootstrap(right, groups, 400)
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(np.sqrt(10), rel=0.1)


def test_paired_difference_cancels_what_is_shared():
    generator = np.random.default_rng(0)
    hard = generator.random(200) < 0.5
    second = hard.astype(float)
    first = np.where(generator.random(200) < 0.1, 1.0, second)  # the same rows, and some more
    difference = paired(first, second, None, 200, seed=2)
    assert difference == pytest.approx(bootstrap(first - second, None, 200, seed=2))
    assert difference == pytest.approx(paired(mean_of(first), second, None, 200, seed=2))
    assert difference.low > 0
    assert bootstrap(first, None, 200).low < bootstrap(second, None, 200).high


def test_undefined_replicates_are_dropped_and_counted():
    positive = np.array([1, 0, 0, 0])

    def recall(rows):
        return float("nan") if not positive[rows].any() else 1.0

    low, high, dropped = bootstrap(recall, None, 4, repeats=1000)
    assert (low, high) == (1, 1)
    assert dropped == pytest.approx(1000 * 0.75**4, rel=0.15)
    assert bootstrap(Ratio(np.ones(4), positive.astype(float)), None, 4, repeats=1000).dropped == dropped
    assert np.isnan(bootstrap(lambda rows: float("nan"), None, 4, repeats=9)[:2]).all()


def test_one_group_has_no_interval():
    for groups, rows in ((["a"] * 5, 5), (None, 1), (None, 0)):
        assert np.isnan(bootstrap(np.ones(rows), groups, rows)[:2]).all()
    with pytest.raises(ValueError, match="2 groups were given for 3 rows"):
        bootstrap(np.ones(3), ["a", "b"], 3)


def test_accuracy_takes_no_time():
    right = (np.arange(300) % 3 > 0).astype(float)
    groups = [f"g{number % 46}" for number in range(300)]
    bootstrap(right, groups, 300)
    start = time.process_time()
    bootstrap(right, groups, 300)
    assert time.process_time() - start < 0.3
