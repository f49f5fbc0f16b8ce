"""Banks with times of their own read beside the first one: the same numbers from memory and streamed, or a refusal."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline import joined_banks
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.resampling import Resampling
from pipeline.sequences import Sequences, load_same_videos, load_sequences
from tests.banks import bank_of, embeddings

LINEAR, NEAREST = Resampling("linear"), Resampling("nearest")
LENGTHS = {"a": 9, "b": 1, "c": 30}
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def first(tmp_path: Path) -> Bank:
    """Ten rows a second."""
    return Bank(bank_of(tmp_path / "first.h5", {video: embeddings(video, rows) for video, rows in LENGTHS.items()}))


def second(
    path: Path,
    seconds: Mapping[str, np.ndarray],
    shape: tuple[int, ...] = (3,),
    start_time: float = 0.0,
    **changes: str,
) -> Bank:
    """A bank of the same videos at other times."""
    videos = {video: embeddings(f"{video}!", len(times), shape) for video, times in seconds.items()}
    return Bank(bank_of(path, videos, seconds=seconds, start_time=start_time, **changes))


def fourths(**others: np.ndarray) -> dict[str, np.ndarray]:
    """Four rows a second, as far as the first bank goes."""
    return {video: np.arange(0, max(0.3, rows / 10), 0.25) for video, rows in LENGTHS.items()} | others


def by_hand(bank: Bank, video: str, wanted: np.ndarray, resampling: Resampling) -> np.ndarray:
    rows, there = bank[video].astype(np.float64), bank.timestamps(video)
    rows = rows.reshape(len(rows), -1)
    if resampling.method == "nearest":
        return rows[[int(np.abs(there - time).argmin()) for time in wanted]]
    return np.stack([np.interp(wanted, there, column) for column in rows.T], axis=1)


@pytest.mark.parametrize("resampling", [LINEAR, NEAREST], ids=["linear", "nearest"])
@pytest.mark.parametrize("memory_bytes", [None, 0], ids=["memory", "stream"])
def test_the_other_bank_has_the_times_of_the_first(
    first: Bank, tmp_path: Path, memory_bytes: int | None, resampling: Resampling
) -> None:
    other = second(tmp_path / "other.h5", fourths(z=np.zeros(1)), store="float16")
    read = load_sequences([first, other], memory_bytes=memory_bytes, resampling=resampling)
    assert read.streamed == (memory_bytes == 0)
    assert (read.ids, read.feature_shape) == (("a", "b", "c"), (11,))
    assert [note for note in read.notes if "left out: 1, e.g. z" in note]
    assert [note for note in read.notes if "other.h5 is read at the times of" in note and "at most 0." in note]
    for place, video in enumerate(read.ids):
        wanted = np.arange(LENGTHS[video]) / 10
        assert np.array_equal(read.seconds(place), wanted)
        got = read.read(place).numpy()
        assert np.array_equal(got[:, :8], first[video])
        np.testing.assert_allclose(got[:, 8:], by_hand(other, video, wanted, resampling), rtol=0, atol=1e-6)
        some = np.array([0, LENGTHS[video] // 2, LENGTHS[video] // 2, LENGTHS[video] - 1])
        assert np.array_equal(read.batch(np.array([place]), [some]).packed.data.numpy(), got[some])


def test_from_memory_and_streamed_to_the_bit_and_a_long_video_in_pieces(
    first: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = second(tmp_path / "other.h5", fourths(), store="float16")
    kept = load_sequences([first, other], resampling=LINEAR)
    monkeypatch.setattr(joined_banks, "_READ_BYTES", 64)  # two rows at once
    streamed = load_sequences([first, other], memory_bytes=0, resampling=LINEAR)
    videos = np.array([2, 0, 1])
    assert np.array_equal(kept.batch(videos).packed.data, streamed.batch(videos).packed.data)
    steps = [np.array([3, 4, 29]), np.array([0]), np.array([0, 0])]
    assert np.array_equal(kept.batch(videos, steps).packed.data, streamed.batch(videos, steps).packed.data)


def test_seconds_count_from_the_first_frame_of_the_video(first: Bank, tmp_path: Path) -> None:
    late = {video: 1.5 + times for video, times in fourths().items()}
    other = second(tmp_path / "late.h5", late, start_time=1.5)
    plain = second(tmp_path / "plain.h5", fourths())
    for video in range(3):
        shifted, still = (load_sequences([first, bank], resampling=LINEAR).read(video) for bank in (other, plain))
        np.testing.assert_allclose(shifted, still, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spatial", ["mean", "flatten"])
def test_maps_become_vectors_before_they_are_resampled(first: Bank, tmp_path: Path, spatial: str) -> None:
    other = second(tmp_path / "maps.h5", fourths(), (2, 3, 2))
    read = load_sequences([first, other], ["c"], spatial=spatial, resampling=LINEAR)
    wanted = by_hand(other, "c", np.arange(30) / 10, LINEAR).reshape(30, 2, 6)
    expected = wanted.mean(axis=2) if spatial == "mean" else wanted.reshape(30, 12)
    np.testing.assert_allclose(read.read(0)[:, 8:], expected, rtol=0, atol=1e-6)


def test_maps_that_the_head_attends_to_are_resampled_place_by_place(tmp_path: Path) -> None:
    maps = Bank(bank_of(tmp_path / "first.h5", {"c": embeddings("c", 30, (4, 3, 2))}))
    other = second(tmp_path / "maps.h5", fourths(), (2, 3, 2))
    read = load_sequences([maps, other], ["c"], spatial="attention", resampling=LINEAR)
    assert read.feature_shape == (6, 3, 2)
    wanted = by_hand(other, "c", np.arange(30) / 10, LINEAR).reshape(30, 2, 3, 2)
    np.testing.assert_allclose(read.read(0)[:, 4:], wanted, rtol=0, atol=1e-6)


def test_a_head_of_its_own_reads_the_other_bank_at_the_times_of_the_first(first: Bank, tmp_path: Path) -> None:
    other = second(tmp_path / "other.h5", fourths())
    (one, two), _ = load_same_videos([[first], [other]], list(LENGTHS), spatial=None, per_frame=True, resampling=LINEAR)
    assert one.lengths.tolist() == two.lengths.tolist() == [9, 1, 30]
    np.testing.assert_allclose(two.read(2), by_hand(other, "c", np.arange(30) / 10, LINEAR), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"different frames of 3 of 3 videos.*--resample linear"):
        load_same_videos([[first], [other]], list(LENGTHS), spatial=None, per_frame=True)


def read(first: Bank, other: Bank, resampling: Resampling = LINEAR) -> Sequences:
    return load_sequences([first, other], resampling=resampling)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (
            np.arange(0, 2, 0.25),
            r"at 2\.900 s the nearest row is that at 1\.750 s, 1\.15 s away, and 0\.375 s",
        ),
        (
            np.arange(1, 3, 0.25),
            r"at 0\.000 s the nearest row is that at 1\.000 s, 1 s away.*from 1\.000 s to 2\.75",
        ),
        (np.array([0.0, 0.2, 0.4, 2.4, 2.6, 2.8]), r"at 1\.400 s the nearest row is that at 0\.400 s, 1 s away"),
        (np.arange(12) * 250.0, r"at 2\.900 s.*2\.9 s away, and 0 s are allowed \(most of its rows there lie outside"),
        (np.zeros(1), r"at 2\.900 s.*0 s are allowed \(its rows there have one time, and so no step; give --max-gap"),
        (np.zeros(0), r"it has no row of it"),
        (np.full(12, np.nan), r"other\.h5 has no times there \(images get them by --image-fps\)"),
    ],
    ids=["ends early", "begins late", "a hole", "milliseconds", "one row", "no row", "no clock"],
)
def test_rows_too_far_away_are_refused(first: Bank, tmp_path: Path, times: np.ndarray, said: str) -> None:
    other = second(tmp_path / "other.h5", fourths(c=times))
    for resampling in (LINEAR, NEAREST):
        with pytest.raises(UserError, match=rf"first\.h5 in 1 of 3 videos, e\.g\. c: .*{said}") as refused:
            read(first, other, resampling)
        assert "\n" not in str(refused.value)
    assert len(load_sequences([first, other], ["a", "b"], resampling=LINEAR)) == 2


def test_how_far_is_too_far_can_be_said(first: Bank, tmp_path: Path) -> None:
    other = second(tmp_path / "other.h5", fourths(c=np.zeros(1)))
    with pytest.raises(UserError, match=r"2\.9 s away, and 2 s are allowed \(--max-gap\); its rows"):
        read(first, other, Resampling("linear", 2.0))
    constant = read(first, other, Resampling("linear", 2.9)).read(2).numpy()[:, 8:]
    assert np.array_equal(constant, np.repeat(other["c"].astype(np.float32), 30, axis=0)), "one row for a whole video"


def test_a_first_bank_without_a_clock_is_refused(tmp_path: Path) -> None:
    nan = {"c": np.full(30, np.nan)}
    first = Bank(bank_of(tmp_path / "first.h5", {"c": embeddings("c", 30)}, seconds=nan))
    with pytest.raises(UserError, match=r"e\.g\. c: .*first\.h5 has no times there"):
        read(first, second(tmp_path / "other.h5", fourths()))


def test_videos_that_the_first_bank_has_no_row_of_are_left_out(tmp_path: Path) -> None:
    first = Bank(bank_of(tmp_path / "first.h5", {"c": embeddings("c", 30), "a": np.zeros((0, 8))}))
    sequences = read(first, second(tmp_path / "other.h5", fourths()))
    assert sequences.ids == ("c",)
    assert [note for note in sequences.notes if "without a single frame, left out: 1, e.g. a" in note]
