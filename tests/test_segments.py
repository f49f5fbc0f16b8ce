"""Segments on the clocks of real banks, and predictions made segments again."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.frame_labels import Extent, Spans, read_spans
from pipeline.sampling import Sampling
from pipeline.segments import IGNORED, Clock, clocks, ids_meant, place, rows_of, segments_of, smooth
from pipeline.windows import FRAME, Window
from tests.banks import fill
from tests.clips import make_clip
from tests.test_rows import bank_rows, job, options_of

NOTHING = frozenset[str]()


def clock(steps: int, fps: float = 10.0, stride: int = 1, begin: int = 0) -> Clock:
    """Of a constant frame rate: `steps` banked frames, every `stride`-th from frame `begin` on."""
    frames = begin + np.arange(steps) * stride
    return Clock(frames / fps, frames, fps, (begin + steps * stride) / fps, begin + steps * stride)


def timeless(steps: int, frames: int = -1) -> Clock:
    return Clock(np.full(steps, np.nan), np.arange(steps) * 2, np.nan, np.nan, frames)


def of_clips(steps: int, fps: float = 10.0, length: int = 6, stride: int = 3, frames: int | None = None) -> Clock:
    """Clips of consecutive frames; without a rate, without times."""
    first = np.arange(steps) * stride
    frames = first[-1] + length if frames is None else frames
    timed = fps or np.nan
    times = (first + (length - 1) / 2) / timed
    return Clock(times, first + length // 2, timed, frames / timed, frames, (0, length - 1))


def spans(*rows: tuple[str, float, float, str], unit: str = "seconds", **more) -> Spans:
    table = pd.DataFrame(rows, columns=["video", "start", "end", "label"]).astype({"start": float, "end": float})
    table["where"] = [f"s.csv, line {line}" for line in range(2, len(rows) + 2)]
    return Spans("segments", unit, table, {row[0]: (row[0],) for row in rows}, **more)


def test_clocks_count_from_the_first_frame(out: Path):
    fill(out, {"a/late": 30, "b/x": 1})
    with Bank(out) as bank:
        bank.catalog.loc[bank.catalog["id"] == "a/late", "start_time"] = 1.5
        made = clocks(bank)
        assert list(clocks(bank, ["b/x"])) == ["b/x"]
        np.testing.assert_allclose(made["a/late"].seconds, bank.timestamps("a/late") - 1.5)
    assert made["a/late"].frame_index.tolist() == list(range(30))
    assert made["a/late"].duration == 3.0
    assert made["a/late"].frames == 30
    assert made["b/x"].seconds.tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fight/fi001", "fight/fi001"),
        ("fi001", "fight/fi001"),
        ("FI001.MP4", "fight/fi001"),
        ("/data/all/fight/fi001.avi", "fight/fi001"),
        ("C:\\data\\fight\\fi001.avi", "fight/fi001"),
        ("walk/fi001", None),
        ("fi001.x", None),
        ("fi00", None),
        ("clip.2", "clip.2"),
        ("both.mp4", "both.mp4"),
        ("both.avi", "both.avi"),
    ],
)
def test_ids_meant(name, expected):
    ids = ["fight/fi001", "clip.2", "both.mp4", "both.avi", "fight/same", "walk/same"]
    assert ids_meant({0: (name,)}, ids) == {0: expected}


def test_ids_meant_in_doubt():
    ids = ["both.mp4", "both.avi", "fight/same", "walk/same"]
    for name, message in (("both", "'both.avi' or 'both.mp4'"), ("same.mp4", "'fight/same' or 'walk/same'")):
        with pytest.raises(UserError, match=message):
            ids_meant({0: (name,)}, ids)
    assert ids_meant({0: ("nowhere", "walk/same")}, ids) == {0: "walk/same"}


def test_rows_of_against_a_plain_comparison():
    generator = np.random.default_rng(0)
    times = clock(200, fps=30000 / 1001, stride=3, begin=2)
    starts = np.sort(generator.uniform(0, 20, 50))
    ends = starts + generator.uniform(0.01, 3, 50)
    for unit, values, (a, b) in (
        ("seconds", times.seconds, (starts, ends)),
        ("frames", times.frame_index, (np.round(starts * 30), np.round(ends * 30))),
    ):
        first, stop = rows_of(a, b, times, unit)
        for k in range(50):
            inside = [row for row, value in enumerate(values) if a[k] <= value < b[k]]
            assert list(range(first[k], stop[k])) == inside


def test_a_border_written_in_decimals_is_the_frame_shown_then():
    """5.12 s is frame 128 of 25 a second, however the sum of times comes out in binary."""
    shifted = np.arange(0, 2000) / 25 + 1234.56
    times = Clock(shifted - 1234.56, np.arange(2000), 25.0, 80.0)
    borders = np.arange(1, 2000)
    first, _ = rows_of(
        np.array([float(f"{frame / 25:.2f}") for frame in borders]), np.full(1999, 99.0), times, "seconds"
    )
    assert first.tolist() == borders.tolist()


def test_place_sorts_and_counts():
    known = {"a": clock(20), "b": clock(20)}
    labelled = spans(
        ("b", 1, 2, "x"), ("a.mp4", 1, 2, "y"), ("a.mp4", 0, 1, "x"), left_out={"things": ["one", "two"], "none": []}
    )
    placed = place(labelled, known, exclusive=True, allow=NOTHING)
    assert placed.table[["id", "start", "label"]].to_numpy().tolist() == [["a", 0, "x"], ["a", 1, "y"], ["b", 1, "x"]]
    assert placed.notes == ["things: 2, e.g. one"]


def refused(
    labelled: Spans, known: dict[str, Clock], message: str, kind: str = "", *, exclusive: bool = True
) -> list[str]:
    """The notes once it is allowed; "" cannot be allowed."""
    with pytest.raises(UserError, match=message) as error:
        place(labelled, known, exclusive=exclusive, allow=NOTHING)
    assert "\n" not in str(error.value)
    if not kind:
        return []
    assert f"--allow-{kind}" in str(error.value)
    return place(labelled, known, exclusive=exclusive, allow=frozenset([kind])).notes


def test_overlap():
    known = {"a": clock(100), "b": clock(100)}
    labelled = spans(("a", 0, 9, "x"), ("a", 1, 2, "y"), ("a", 3, 4, "y"), ("a", 9, 10, "x"), ("b", 5, 6, "x"))
    message = r"one ends: 2, e.g. 'x' until 9 and 'y' from 1 seconds in 'a' \(s.csv, line 3\).*--multi-label"
    notes = refused(labelled, known, message, "overlap")
    assert notes[0].startswith("segments that begin before another one ends: 2")
    assert place(labelled, known, exclusive=False, allow=NOTHING).notes == []


def test_unknown_videos():
    labelled = spans(("a", 0, 1, "x"), ("z", 0, 1, "x"), ("z", 1, 2, "y"))
    message = r"not in the bank: 1 \(2 segments\), e.g. 'z'"
    assert refused(labelled, {"a": clock(20)}, message, "unknown") == [
        f"labelled videos that are {message} (allowed)".replace("\\", "")
    ]
    refused(spans(("z", 0, 1, "x")), {"a": clock(20)}, r"None of the 1 labelled videos .*'z'.*'a'")
    refused(spans(("a", 0, 1, "x"), ("a.mp4", 1, 2, "x")), {"a": clock(20)}, "'a' and 'a.mp4' are both the video 'a'")


def test_beyond_the_end():
    known = {"a": clock(100)}
    assert place(spans(("a", 9, 10.1, "x")), known, exclusive=True, allow=NOTHING).notes == []  # one frame
    notes = refused(
        spans(("a", 9, 10.2, "x"), ("a", 11, 12, "y")),
        known,
        "past the end of their video: 2, e.g. 'x' until 10.2 in 'a', which has 10 s",
        "beyond",
    )
    assert len(notes) == 1
    frames = spans(("a", 90, 101, "x"), unit="frames")
    refused(frames, known, "'x' until 101 in 'a', which has 100 frames", "beyond")


def test_a_table_of_frames_is_beyond_by_its_last_row():
    known = {"a": clock(100)}
    for last, fine in ((75, True), (99, True), (100, False)):
        labelled = spans(("a", 0, last + 25, "x"), unit="frames", covered={"a": Extent(0, last, last + 25)})
        if fine:
            assert place(labelled, known, exclusive=True, allow=NOTHING).covered == {"a": (0, last, last + 25)}
        else:
            refused(labelled, known, "a table until 101 in 'a', which has 100 frames", "beyond")


def test_seconds_need_a_clock():
    refused(spans(("a", 0, 1, "x")), {"a": timeless(5)}, "'a' has no clock.*Give frame columns")
    placed = place(spans(("a", 0, 4, "x"), unit="frames"), {"a": timeless(5)}, exclusive=True, allow=NOTHING)
    assert len(placed.table) == 1


def plain_smooth(labels: list[int], seconds: np.ndarray, least: float) -> list[int]:
    """As the docstring says it, from scratch each time."""
    step = np.median(np.diff(seconds))
    while True:
        cuts = [0, *[k for k in range(1, len(labels)) if labels[k] != labels[k - 1]], len(labels)]
        edges = np.append(seconds, seconds[-1] + step)
        runs = [(edges[b] - edges[a], a, b) for a, b in pairwise(cuts)]
        order = sorted(range(len(runs)), key=lambda r: (round(runs[r][0], 6), r))
        for run in order:
            lasted, a, b = runs[run]
            if labels[a] == IGNORED or lasted >= least - 1e-6:
                continue
            sides = [r for r in (run - 1, run + 1) if 0 <= r < len(runs) and labels[runs[r][1]] != IGNORED]
            if sides:
                taker = max(sides, key=lambda r: (round(runs[r][0], 6), -r))
                labels = [*labels[:a], *[labels[runs[taker][1]]] * (b - a), *labels[b:]]
                break
        else:
            return labels


@pytest.mark.parametrize("seed", range(20))
def test_smooth_against_the_plain_loop(seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice([0, 1, 2, IGNORED], p=[0.4, 0.3, 0.2, 0.1], size=60)
    labels = np.repeat(labels, generator.integers(1, 5, 60))
    seconds = np.arange(len(labels)) / 4  # exact in binary: equal runs are equally long
    for least in (0, 0.5, 1.3, 4, 1000):
        smoothed = smooth(labels, seconds, least)
        assert smoothed.tolist() == plain_smooth(labels.tolist(), seconds, least)
        assert ((smoothed == IGNORED) == (labels == IGNORED)).all()


def test_smooth_by_hand():
    seconds = np.arange(9) / 10
    assert smooth(np.array([0, 0, 0, 1, 0, 0, 2, 2, 2]), seconds, 0.2).tolist() == [0, 0, 0, 0, 0, 0, 2, 2, 2]
    assert smooth(np.array([1, 0, 0, 0, 0, 0, 0, 0, 2]), seconds, 0.2).tolist() == [0] * 9
    assert smooth(np.array([1, 1, 0, 0]), np.array([0, 1, 1.5, 2]), 1.2).tolist() == [1] * 4
    assert smooth(np.array([3]), np.array([0.0]), 5).tolist() == [3]
    assert smooth(np.array([], np.int64), np.array([]), 5).tolist() == []


def test_smooth_is_quick_on_long_noise():
    labels = np.random.default_rng(0).integers(0, 7, 50_000)
    smoothed = smooth(labels, np.arange(50_000) / 25, 0.5)
    lengths = np.diff(np.flatnonzero(np.diff(smoothed, prepend=-1, append=-1)))
    assert lengths.min() >= 13


def test_segments_of():
    labels = np.array([0, 0, 1, IGNORED, IGNORED, 1, 1, 0])
    table = segments_of("a/b", labels, clock(8, fps=3, stride=2, begin=3), ["sit", "run"])
    assert table.to_dict("list") == {
        "id": ["a/b"] * 4,
        "start": [1, round(7 / 3, 6), round(13 / 3, 6), round(17 / 3, 6)],
        "end": [round(7 / 3, 6), 3, round(17 / 3, 6), round(19 / 3, 6)],
        "label": ["sit", "run", "run", "sit"],
    }
    assert segments_of("a", labels[:0], clock(0), ["sit", "run"]).columns.tolist() == ["id", "start", "end", "label"]


def test_segments_of_several_labels():
    held = np.array([[1, 0], [1, 1], [0, 1], [1, 1]])
    table = segments_of("a", held, clock(4), ["sit", "eat"])
    assert table[["start", "end", "label"]].to_numpy().tolist() == [
        [0, 0.2, "sit"],
        [0.1, 0.4, "eat"],
        [0.3, 0.4, "sit"],
    ]


def test_segments_of_frames_without_a_clock():
    table = segments_of("a", np.array([0, 0, 1]), timeless(3, frames=7), ["sit", "run"])
    assert table.to_numpy().tolist() == [["a", 0, 4, "sit"], ["a", 4, 7, "run"]]
    assert table.columns.tolist() == ["id", "start_frame", "end_frame", "label"]
    assert segments_of("a", np.array([0, 0, 1]), timeless(3), ["sit", "run"])["end_frame"].tolist() == [4, 6]


@pytest.mark.parametrize(("fps", "unit"), [(10.0, 0.1), (0, 1)])
def test_segments_of_clips_end_halfway_between_their_middles(fps: float, unit: float):
    """Clips of frames 0 to 5, 3 to 8, 6 to 11 and 9 to 14: middles 2.5, 5.5, 8.5, 11.5, or frames 3, 6, 9, 12."""
    table = segments_of("a", np.array([0, 1, 0, 0]), of_clips(4, fps), ["sit", "run"])
    between = [4, 7] if fps else [5, 8]  # of frames 3 and 6 the later half begins at 5
    edges = np.array([0, *between, 15]) * unit
    assert table.iloc[:, 1].tolist() == pytest.approx(edges[:-1])
    assert table.iloc[:, 2].tolist() == pytest.approx(edges[1:])
    one = segments_of("a", np.array([1]), of_clips(1, fps), ["sit", "run"])
    assert one.iloc[0, 1:3].tolist() == pytest.approx([0, 6 * unit])


def clock_of_a_bank(folder: Path, count: int, window: Window, stride: int) -> Clock:
    """Of a real video of so many frames, 10 a second, of which every `stride`-th is taken."""
    options = replace(options_of(window), sampling=Sampling(stride=stride))
    clip = make_clip(folder / "a.mp4", frames=count)
    return clocks(bank_rows(folder / "bank.h5", [job(clip)], options)[0])["a"]


@pytest.mark.parametrize(
    ("count", "window", "stride", "edges"),
    [
        (9, Window("clip", 4, 2), 1, [0, 0.25, 0.45, 0.6, 0.9]),  # the last clip is shifted back
        (18, Window("clip", 4, 2), 2, [0, 0.5, 0.9, 1.2, 1.8]),
        (3, Window("clip", 6, 3), 1, [0, 0.3]),  # the last frame is repeated
        (4, Window("stack", 3), 1, [0, 0.1, 0.2, 0.3, 0.4]),
        (4, FRAME, 2, [0, 0.2, 0.4]),
    ],
)
def test_segments_of_a_bank_begin_and_end_with_the_video(tmp_path, count, window, stride, edges):
    known = clock_of_a_bank(tmp_path, count, window, stride)
    table = segments_of("a", np.arange(len(edges) - 1), known, list("abcd"))
    assert table["start"].tolist() == pytest.approx(edges[:-1])
    assert table["end"].tolist() == pytest.approx(edges[1:])


@pytest.mark.parametrize(
    ("count", "window", "stride", "edges"),
    [
        (9, Window("clip", 4, 2), 1, [0, 3, 5, 7, 9]),
        (18, Window("clip", 4, 2), 2, [0, 6, 10, 13, 18]),
        (3, Window("clip", 6, 3), 1, [0, 3]),
        (4, Window("stack", 3), 1, [0, 1, 2, 3, 4]),
        (4, FRAME, 2, [0, 2, 4]),
    ],
)
def test_segments_of_a_bank_without_times_begin_and_end_with_the_video(tmp_path, count, window, stride, edges):
    known = clock_of_a_bank(tmp_path, count, window, stride)
    table = segments_of("a", np.arange(len(edges) - 1), known._replace(seconds=known.seconds * np.nan), list("abcd"))
    assert table[["start_frame", "end_frame"]].to_numpy().tolist() == [list(pair) for pair in pairwise(edges)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: clock(300, fps=30000 / 1001, stride=3, begin=1),
        lambda: timeless(300, 600),
        lambda: of_clips(300, 30000 / 1001, 16, 8),
        lambda: of_clips(300, 0, 7, 1),
        lambda: of_clips(300, 0, 4, 4),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_written_segments_read_back_are_the_same(tmp_path, make, several):
    generator = np.random.default_rng(1)
    times, names = make(), ["a", "b, c", "ü"]
    labels = np.repeat(generator.integers(0, 3, 60), 5)
    labels = (np.arange(3) <= labels[:, None]).astype(np.int64) if several else labels
    segments_of("x/y", labels, times, names).to_csv(tmp_path / "s.csv", index=False)
    read = read_spans(tmp_path / "s.csv")
    placed = place(read, {"x/y": times}, exclusive=not several, allow=NOTHING)
    back = np.zeros((300, 3), np.int64)
    for row, (first, stop) in zip(
        placed.table.itertuples(),
        zip(*rows_of(placed.table["start"].to_numpy(), placed.table["end"].to_numpy(), times, read.unit), strict=True),
        strict=True,
    ):
        back[first:stop, names.index(row.label)] += 1
    assert (back == (labels if several else np.eye(3, dtype=np.int64)[labels])).all()
