"""Rows at other times: held against numpy.interp and the nearest row by plain subtraction, on times of every kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.resampling import Places, Resampling, between, needed, places

LINEAR, NEAREST = Resampling("linear"), Resampling("nearest")


def times(most: int, *, fewest: int = 1) -> st.SearchStrategy[np.ndarray]:
    """Never falling, irregular, some of them repeated; on a grid, so that times meet, or anywhere."""
    on_grid = st.integers(-8, 80).map(lambda eighth: eighth / 8)
    anywhere = st.floats(-1, 10).map(lambda seconds: round(seconds, 6))
    listed = st.lists(st.one_of(on_grid, anywhere), min_size=fewest, max_size=most)
    return listed.map(lambda values: np.sort(np.array(values, np.float64)))


def rows_at(found: Places, rows: np.ndarray) -> np.ndarray:
    """What is read of all T times."""
    every = np.arange(len(found.before))
    wanted = needed(found, every)
    return between(found, every, wanted, rows[wanted])


@given(wanted=times(12), there=times(9), seed=st.integers(0, 99))
def test_linear_is_numpys_interpolation(wanted: np.ndarray, there: np.ndarray, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(len(there), 3)).astype(np.float32)
    found = places(LINEAR, wanted, there)
    made = rows_at(found, rows)
    assert made.dtype == np.float32
    expected = np.stack([np.interp(wanted, there, column) for column in rows.T.astype(np.float64)], axis=1)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)
    exact = np.isin(wanted, there)
    assert (found.weight[exact] == 0).all(), "a row that is exactly there is taken as it is"
    assert ((found.weight >= 0) & (found.weight <= 1)).all()
    first, last = rows[found.before], rows[np.minimum(found.before + 1, len(rows) - 1)]
    slack = 1e-6
    assert (made >= np.minimum(first, last) - slack).all()
    assert (made <= np.maximum(first, last) + slack).all()


@given(wanted=times(12), there=times(9))
def test_nearest_is_the_row_of_least_distance_of_two_the_earlier(wanted: np.ndarray, there: np.ndarray) -> None:
    found = places(NEAREST, wanted, there)
    assert found.before.tolist() == [int(np.abs(there - time).argmin()) for time in wanted]
    assert not found.weight.any()


@given(wanted=times(12), there=times(9), resampling=st.sampled_from([LINEAR, NEAREST]))
def test_how_far_the_nearest_row_is(wanted: np.ndarray, there: np.ndarray, resampling: Resampling) -> None:
    found = places(resampling, wanted, there)
    away = np.abs(wanted[:, None] - there[None]).min(axis=1)
    assert (found.gap, found.worst, found.rows) == (away.max(), int(away.argmax()), len(there))
    assert abs(found.nearest - wanted[found.worst]) == found.gap


@given(there=times(9), wanted=times(9), data=st.data())
def test_some_of_the_times_have_the_rows_that_all_have(
    there: np.ndarray, wanted: np.ndarray, data: st.DataObject
) -> None:
    rows = np.random.default_rng(len(there)).normal(size=(len(there), 2)).astype(np.float16)
    found = places(LINEAR, wanted, there)
    steps = np.array(data.draw(st.lists(st.integers(0, len(wanted) - 1), min_size=1, max_size=6).map(sorted)))
    read = needed(found, steps)
    assert np.array_equal(between(found, steps, read, rows[read]), rows_at(found, rows)[steps])


def test_a_row_between_equal_ones_is_equal_to_them() -> None:
    found = places(LINEAR, np.array([0.1, 0.2, 0.3]), np.array([0.0, 1.0]))
    rows = np.full((2, 4), 0.1, np.float32)
    assert np.array_equal(rows_at(found, rows), np.repeat(rows[:1], 3, axis=0))


def test_numbers_that_are_far_apart_do_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    found = places(LINEAR, np.array([0.5]), np.array([0.0, 1.0]))
    assert rows_at(found, np.array([[-largest], [largest]], np.float32)) == 0


@pytest.mark.parametrize(
    ("there", "limit", "how"),
    [
        (np.array([0.0, 0.2, 0.4, 0.6, 5.0]), 0.3, "1.5 times the usual step"),
        (np.array([0.0, 0.0, 0.0, 0.2, 0.2, 0.2]), 0.3, "1.5 times"),  # the median of steps that are none is none
        (np.arange(5) / 100, 0.15, "1.5 times"),  # the slower one's
        (np.array([3.0, 3.0]), 0.0, "no step"),
        (np.arange(0, 5000, 40.0), 0.0, "most of its rows there lie outside"),  # milliseconds
        (np.arange(0, 9, 0.2), 0.3, "1.5 times"),  # sound that goes on
    ],
)
def test_how_far_is_too_far_unless_somebody_says(there: np.ndarray, limit: float, how: str) -> None:
    wanted = np.arange(50) / 10
    found, words = LINEAR.limit(wanted, there)
    assert found == pytest.approx(limit)
    assert how in words
    assert Resampling("nearest", 0.7).limit(wanted, there) == (0.7, "--max-gap")
    assert LINEAR.limit(np.zeros(1), np.arange(3) / 100)[0] == 0.1, "sound and frames of one file may end apart"


@pytest.mark.parametrize(
    ("method", "gap", "said"),
    [
        ("cubic", None, "cubic is unknown; choose one of nearest, linear"),
        ("linear", 0.0, "--max-gap 0 "),
        ("linear", float("nan"), "--max-gap nan "),
        ("linear", float("inf"), "--max-gap inf "),
    ],
)
def test_what_is_no_resampling(method: str, gap: float | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Resampling(method, gap)
