"""Sampling picks the frames its rules name, the same ones while streaming and on a whole array."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.sampling import Sampling, choose, chooser, nearest


def times(count: int, fps: float, first: float = 0.0) -> np.ndarray:
    return first + np.arange(count) / fps


def test_every_frame_by_default():
    assert choose(Sampling(), times(5, 25)).tolist() == [0, 1, 2, 3, 4]
    assert choose(Sampling(), np.empty(0)).tolist() == []


def test_stride_starts_at_the_first_frame():
    chosen = choose(Sampling(stride=3), times(8, 25))
    assert chosen.tolist() == [0, 3, 6]
    assert chosen.dtype == np.int64


@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [(10, 5, [1, 3, 5, 7, 9]), (7, 3, [1, 3, 5]), (10, 1, [5]), (3, 5, [0, 1, 2]), (4, 4, [0, 1, 2, 3]), (0, 3, [])],
)
def test_a_fixed_number_takes_the_centres_of_equal_parts(count, frames, expected):
    assert choose(Sampling(frames=frames), times(count, 25)).tolist() == expected


@given(count=st.integers(0, 500), frames=st.integers(1, 500))
def test_a_fixed_number_is_the_stated_formula(count, frames):
    expected = [int((k + 0.5) * count / frames) for k in range(frames)] if count >= frames else list(range(count))
    assert choose(Sampling(frames=frames), times(count, 25)).tolist() == expected


def test_a_rate_takes_the_first_frame_at_or_after_each_grid_time():
    # grid 0, 0.1, 0.2, 0.3; frames at 0, 0.04, 0.08, 0.12, ...: 0.12, 0.2 and 0.32 are the first at or after
    assert choose(Sampling(fps=10), times(9, 25)).tolist() == [0, 3, 5, 8]


def test_a_rate_goes_by_real_times():
    seconds = np.array([2.0, 2.1, 2.9, 3.0, 3.05, 5.0, 5.1, 6.0])  # variable rate, and a start that is not zero
    assert choose(Sampling(fps=1), seconds).tolist() == [0, 3, 5, 7]


@pytest.mark.parametrize("fps", [10, 23.976, 25, 29.97, 50, 59.94])
@pytest.mark.parametrize("decimals", [3, 6, 12])
@pytest.mark.parametrize("first", [0.0, 1.0337])
def test_a_videos_own_rate_takes_every_frame_even_of_rounded_times(fps, decimals, first):
    seconds = np.round(times(500, fps, first), decimals)
    assert choose(Sampling(fps=fps), seconds).tolist() == list(range(500))


def test_a_video_slower_than_the_rate_is_taken_whole_and_never_repeated():
    assert choose(Sampling(fps=30), times(10, 7)).tolist() == list(range(10))


@given(
    steps=st.lists(st.floats(0, 2), min_size=1, max_size=80),
    fps=st.floats(0.2, 30),
    first=st.floats(-10, 100),
)
def test_a_rate_answers_each_grid_time_once(steps, fps, first):
    """Against the rule written as it reads: for each grid time, the first frame at or after it (within 2 ms)."""
    seconds = first + np.concatenate([[0.0], np.cumsum(steps)])
    tolerance = min(0.002, 0.5 / fps)
    grid = np.arange(0, (seconds[-1] - seconds[0] + tolerance) * fps + 1) / fps
    since = seconds - seconds[0]
    if np.abs(since[:, None] + tolerance - grid).min(axis=1).min() < 1e-9:
        return  # on the tolerance's very edge binary rounding decides
    expected = {int(np.argmax(since + tolerance >= at)) for at in grid if (since + tolerance >= at).any()}
    assert choose(Sampling(fps=fps), seconds).tolist() == sorted(expected)


def test_streaming_needs_the_count_only_for_a_fixed_number():
    with pytest.raises(ValueError, match="counted"):
        chooser(Sampling(frames=3))
    take = chooser(Sampling(stride=2))
    assert [take(index, 0.0) for index in range(4)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stride": 0}, "stride is 0"),
        ({"fps": 0.0}, "rate is 0"),
        ({"fps": float("nan")}, "rate is nan"),
        ({"fps": float("inf")}, "rate is inf"),
        ({"frames": 0}, "frames per video is 0"),
        ({"stride": 2, "fps": 5.0}, "stride 2 and 5 frames per second"),
        ({"fps": 5.0, "frames": 8}, "give only one"),
    ],
)
def test_impossible_rules_are_refused_at_birth(arguments, words):
    with pytest.raises(UserError, match=words):
        Sampling(**arguments)


def test_one_rule_has_one_description():
    assert Sampling().describe() == Sampling(stride=1).describe() == {"stride": 1}
    assert json.dumps(Sampling(fps=5).describe()) == json.dumps(Sampling(fps=5.0).describe()) == '{"fps": 5.0}'
    assert Sampling(frames=16).describe() == {"frames": 16}


@given(st.sets(st.integers(0, 40), min_size=1), st.lists(st.integers(-5, 45)))
def test_the_nearest_place_is_the_nearest_and_of_two_the_earlier(places, wanted):
    rising = sorted(places)
    found = nearest(np.array(rising), np.array(wanted, np.int64))
    assert found.tolist() == [rising.index(min(rising, key=lambda place: (abs(place - one), place))) for one in wanted]
