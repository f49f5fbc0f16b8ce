"""Selections take the rows that their rules name: some always the same ones, some at random within stated bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.selection import RULES, Selection, caution, select

COUNTS, AMOUNTS = st.integers(1, 300), st.integers(1, 60)


def times(count: int, fps: float = 25) -> np.ndarray:
    return np.arange(count) / fps


def rows(rule: str, amount: float, count: int, **options) -> list[int]:
    return select(Selection(rule, amount), times(count), **options).tolist()


def tail(count: int, amount: int) -> list[int]:
    """The tail-anchored walk, step by step."""
    step, taken, row = max(1, round(count / amount)), [], count - 1
    while row >= 0 and len(taken) < amount:
        taken.append(row)
        row -= step
    return taken[::-1]


def test_rules_that_sample_as_extraction_does():
    assert rows("all", 0, 4) == [0, 1, 2, 3]
    assert rows("stride", 3, 8) == [0, 3, 6]
    assert rows("fps", 5, 12) == [0, 5, 10]
    assert rows("frames", 3, 7) == [1, 3, 5]


@given(rule=st.sampled_from(RULES), count=COUNTS, amount=AMOUNTS, seed=st.integers(0, 9))
def test_every_rule_gives_rising_rows_of_the_video(rule, count, amount, seed):
    selection = Selection(rule, 0 if rule == "all" else amount)
    for generator in (None, np.random.default_rng(seed)):
        chosen = select(selection, times(count), generator=generator)
        assert chosen.dtype == np.int64
        assert len(chosen) > 0
        assert chosen[0] >= 0
        assert chosen[-1] < count
        assert (np.diff(chosen) >= (0 if rule == "lrcn" else 1)).all()


@given(count=COUNTS, amount=AMOUNTS, seed=st.integers(0, 9))
def test_tsn_takes_one_row_of_each_equal_segment(count, amount, seed):
    chosen = rows("tsn", amount, count, generator=np.random.default_rng(seed))
    if count <= amount:
        assert chosen == list(range(count))
    else:
        assert len(chosen) == amount
        assert all(k * count // amount <= row < (k + 1) * count // amount for k, row in enumerate(chosen))


def test_tsn_draws_every_row_of_a_segment_and_centres_in_testing():
    generator = np.random.default_rng(0)
    drawn = np.array([rows("tsn", 3, 10, generator=generator) for _ in range(300)])
    assert [sorted(set(column)) for column in drawn.T.tolist()] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert rows("tsn", 3, 10) == rows("frames", 3, 10) == [1, 5, 8]


@given(count=COUNTS, amount=AMOUNTS, crops=st.integers(1, 5))
def test_tsn_draws_in_testing_stay_in_their_segments(count, amount, crops):
    selection = Selection("tsn", amount, crops)
    draws = [select(selection, times(count), draw=draw).tolist() for draw in range(crops)]
    if count > amount:
        for column in zip(*draws, strict=True):
            assert list(column) == sorted(column)
        for draw in draws:
            assert all(k * count // amount <= row < (k + 1) * count / amount for k, row in enumerate(draw))
        if count >= amount * crops:
            assert len(set(map(tuple, draws))) == crops


@given(count=COUNTS, amount=AMOUNTS)
def test_tail_walks_back_from_the_last_row(count, amount):
    assert rows("tail", amount, count) == tail(count, amount)


@pytest.mark.parametrize(
    ("count", "amount", "first", "step", "taken"),
    [
        (150, 100, 1, 2, 75),  # 1.5 rounds to 2
        (250, 100, 51, 2, 100),  # 2.5 rounds to 2: the beginning is missed
        (149, 100, 49, 1, 100),
        (40, 100, 0, 1, 40),  # 0.4 rounds to 0, and 1 is the least
        (7, 1, 6, 1, 1),
    ],
)
def test_tail_rounds_half_to_even(count, amount, first, step, taken):
    assert rows("tail", amount, count) == list(range(first, count, step))[:taken]


@given(count=COUNTS, amount=AMOUNTS)
def test_lrcn_walks_back_so_many_times_and_stops_nowhere(count, amount):
    step, row, taken = round(count / amount), count - 1, []
    for _ in range(amount):
        taken.append(row)
        row = max(0, row - step)
    assert rows("lrcn", amount, count) == taken[::-1]


@pytest.mark.parametrize(
    ("count", "amount", "taken"),
    [
        (5, 5, [0, 1, 2, 3, 4]),
        (40, 4, [9, 19, 29, 39]),
        (6, 4, [0, 1, 3, 5]),  # 1.5 rounds to 2, and the walk ends below the first row: it is taken
        (10, 4, [3, 5, 7, 9]),  # 2.5 rounds to 2: the beginning is missed
        (4, 6, [0, 0, 0, 1, 2, 3]),
        (3, 6, [2] * 6),  # 0.5 rounds to 0: the last row alone
        (1, 3, [0, 0, 0]),
        (9, 1, [8]),
    ],
)
def test_lrcn_takes_exactly_so_many_rows(count, amount, taken):
    assert rows("lrcn", amount, count) == taken


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=9), amount=st.integers(1, 20))
def test_what_lrcn_repeats_and_misses_is_said(counts, amount):
    said = caution(Selection("lrcn", amount), np.array(counts))
    repeats = misses = 0
    for count in counts:
        taken = rows("lrcn", amount, count)
        repeats += len(set(taken)) < len(taken)
        misses += taken[0] > 0 and taken[0] >= round(count / amount)
    assert (f"repeats frames of {repeats}" in said) == (repeats > 0)
    assert (f"misses the beginning of {misses} of {len(counts)} videos" in said) == (misses > 0)
    assert ("repeats" in said or "misses" in said) == bool(said)


def test_lrcn_takes_no_more_rows_than_anybody_means():
    assert Selection("lrcn", 1024).amount == 1024
    with pytest.raises(UserError, match="lrcn got 1025; it always takes as many, so give at most 1024"):
        Selection("lrcn", 1025)
    assert Selection("tail", 1025).amount == 1025  # of a video that has fewer it takes all


def test_other_selections_need_no_caution():
    assert caution(Selection("lrcn", 5), np.array([5, 10, 25])) == ""
    assert caution(Selection("lrcn", 4), np.array([3, 40])) == (
        "--lrcn 4 repeats frames of 1 of 2 videos; --frames 4 spreads evenly"
    )
    for rule in RULES:
        if rule != "lrcn":
            assert caution(Selection(rule, 0 if rule == "all" else 4), np.array([1, 3, 40])) == ""


def test_crops_are_consecutive_and_begin_anywhere():
    generator = np.random.default_rng(0)
    drawn = [rows("crop", 4, 9, generator=generator) for _ in range(200)]
    assert {tuple(crop) for crop in drawn} == {tuple(range(start, start + 4)) for start in range(6)}


def test_crops_in_testing_are_spread_evenly_and_one_is_the_whole_video():
    assert rows("crop", 4, 9) == list(range(9))
    draws = [select(Selection("crop", 4, 3), times(11), draw=draw).tolist() for draw in range(3)]
    assert draws == [[0, 1, 2, 3], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert select(Selection("crop", 4, 3), times(2), draw=1).tolist() == [0, 1]


def test_the_same_generator_gives_the_same_rows():
    for rule in ("tsn", "crop"):
        one, other = (rows(rule, 5, 90, generator=np.random.default_rng(7)) for _ in range(2))
        assert one == other


def test_unknown_times_matter_to_fps_alone():
    unknown = np.full(9, np.nan)
    with pytest.raises(UserError, match=r"fps.*timestamps.*stride or frames"):
        select(Selection("fps", 5), unknown)
    assert select(Selection("tail", 3), unknown).tolist() == [2, 5, 8]
    assert select(Selection("frames", 3), unknown).tolist() == [1, 4, 7]


def test_which_of_several_draws_must_be_said():
    with pytest.raises(ValueError, match="which of the 3"):
        select(Selection("crop", 4, 3), times(9))
    with pytest.raises(ValueError, match="no draw 3"):
        select(Selection("crop", 4, 3), times(9), draw=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("middle", 3), "'middle'; choose one of all, stride"),
        (("all", 3), "takes no number, and got 3"),
        (("stride", 0), "stride got 0; give a whole number"),
        (("frames", 2.5), "frames got 2.5"),
        (("tsn", float("nan")), "tsn got nan"),
        (("crop", float("inf")), "crop got inf"),
        (("fps", 0), "fps got 0; give frames per second above 0"),
        (("fps", float("nan")), "fps got nan"),
        (("tail", 4, 3), "tail takes the same frames in every test.*choose frames by --tsn or --window"),
        (("crop", 4, 0), "0 crops.*whole number from 1"),
    ],
)
def test_selections_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        Selection(*arguments)
