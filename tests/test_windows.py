"""Windows put the sampled frames together as their rules say, as early as they can."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.windows import FRAME, Window, seconds_of, windows


def clips_of(count: int, length: int, stride: int) -> list[list[int]]:
    """The rule written down: L frames from k·S on, the last clip shifted back, a short video padded with its last."""
    if count <= length:
        return [[min(step, count - 1) for step in range(length)]] if count else []
    starts = list(range(0, count - length + 1, stride))
    if starts[-1] + length < count:
        starts.append(count - length)
    return [list(range(start, start + length)) for start in starts]


@given(count=st.integers(0, 40), length=st.integers(1, 12), data=st.data())
def test_clips_are_the_stated_formula(count, length, data):
    stride = data.draw(st.integers(1, length))
    clips = list(windows(Window("clip", length, stride), range(count)))
    assert clips == clips_of(count, length, stride)
    assert {item for clip in clips for item in clip} == set(range(count))
    middles = [clip[length // 2] for clip in clips]
    assert middles == sorted(set(middles))


@given(count=st.integers(0, 40), length=st.integers(1, 12), kind=st.sampled_from(["stack", "flow"]))
def test_a_row_has_the_frames_around_it(count, length, kind):
    window = Window(kind, length)
    assert window.frames == length + (kind == "flow")
    around = [
        [min(max(row - window.middle + step, 0), count - 1) for step in range(window.frames)] for row in range(count)
    ]
    assert list(windows(window, range(count))) == around


def test_a_frame_is_a_row():
    assert list(windows(FRAME, "abc")) == [["a"], ["b"], ["c"]]
    assert list(windows(Window("stack", 1, grey=True), "ab")) == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("window", "taken"),
    [
        (FRAME, [1, 2, 3, 4]),
        (Window("stack", 3), [2, 3, 4, 5]),  # one frame after the row's own
        (Window("flow", 2), [2, 3, 4, 5]),
        (Window("flow", 1), [1, 2, 3, 4]),
        (Window("clip", 4, 2), [4, 6, 8, 10]),
    ],
)
def test_no_more_frames_are_read_than_the_next_row_needs(window, taken):
    read = []
    rows = windows(window, (read.append(item) or item for item in range(100)))
    assert [(next(rows), len(read))[1] for _ in taken] == taken


def test_the_time_of_a_row():
    seconds = [0.0, 0.1, 0.4, 0.9]
    assert seconds_of(FRAME, seconds[2:3]) == 0.4
    assert seconds_of(Window("stack", 4), seconds) == 0.4
    assert seconds_of(Window("flow", 3), seconds) == 0.4
    assert seconds_of(Window("clip", 4), seconds) == 0.45


@pytest.mark.parametrize(
    ("window", "shape", "described"),
    [
        (FRAME, (3, 8, 8), {"kind": "frame", "length": 1}),
        (Window("stack", 5), (15, 8, 8), {"kind": "stack", "length": 5}),
        (Window("stack", 5, grey=True), (5, 8, 8), {"kind": "stack", "length": 5, "grey": True}),
        (Window("clip", 16, 8), (3, 16, 8, 8), {"kind": "clip", "length": 16, "stride": 8}),
        (Window("flow", 10), (20, 8, 8), {"kind": "flow", "length": 10}),
    ],
)
def test_what_a_network_sees_and_what_the_fingerprint_says(window, shape, described):
    assert window.input_shape(8) == shape
    assert window.channels == shape[0]
    assert window.describe() == described
    assert Window(**json.loads(json.dumps(described))) == window


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("slice", 3), "there is no window 'slice'; choose one of frame, stack, clip, flow"),
        (("stack", 0), "a stack of 0 frames is impossible; give from 1 to 1024"),
        (("clip", 1025), "a clip of 1025 frames is impossible"),
        (("frame", 2), "choose a stack or a clip"),
        (("stack", 4, 2), "only clips have a stride"),
        (("clip", 4, 5), "would leave frames out; give a --clip-stride from 1 to 4"),
        (("clip", 4, 0), "would leave frames out"),
        (("clip", 4, 4, True), "only the frames of a stack can be grey"),
    ],
)
def test_windows_that_make_no_sense(values, message):
    with pytest.raises(UserError, match=message):
        Window(*values)
