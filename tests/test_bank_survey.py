"""One pass over a bank: means and changes against plain numpy, stretches that say nothing, and copies."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline import bank_survey
from pipeline.bank import Bank
from pipeline.bank_survey import LEAST_ROWS, Stretch, Survey, Surveyed, survey, thinned, usual_change
from pipeline.errors import UserError
from tests.banks import bank_of, embeddings


def spoil(path: Path, video: str, rows: slice) -> None:
    """Put NaN into a sealed bank, which no writer of ours lets through."""
    with Bank(path) as bank:
        part = bank.path_of(video)
    with h5py.File(part, "a") as file:
        file[f"videos/{video}/features"][rows] = np.nan


def surveyed(path: Path, videos: dict[str, np.ndarray], **changes: object) -> Survey:
    with Bank(bank_of(path, videos, **changes)) as bank:
        return survey(bank, list(bank), on_video=lambda *_: None)


@pytest.mark.parametrize("piece", [64, 1 << 20], ids=["row after row", "at once"])
@pytest.mark.parametrize("shape", [(8,), (8, 2, 3)], ids=["vectors", "maps"])
def test_means_and_changes(piece: int, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_survey, "_PIECE_BYTES", piece)
    videos = {name: embeddings(name, rows, shape) for name, rows in (("a/1", 12), ("a/2", 1))}
    found = surveyed(tmp_path / "b.h5", videos)
    for name, rows in videos.items():
        plain = rows if rows.ndim == 2 else rows.mean(axis=(2, 3))
        np.testing.assert_allclose(found.videos[name].mean, plain.mean(axis=0), rtol=1e-5)
        length = np.linalg.norm(plain, axis=1)
        wanted = np.linalg.norm(plain[1:] - plain[:-1], axis=1) / ((length[1:] + length[:-1]) / 2)
        np.testing.assert_allclose(found.videos[name].change, wanted, rtol=1e-5)
        assert found.videos[name].stretches == ()
    assert (found.same, found.constant, found.features) == ([], 0, 8)


@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_frozen_and_dead_stretches(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_survey, "_PIECE_BYTES", piece)
    rows = embeddings("x", 40)
    rows[3 : 3 + LEAST_ROWS] = rows[3]
    rows[3 + LEAST_ROWS - 1] *= 1.001  # within rounding
    rows[12 : 12 + LEAST_ROWS - 1] = rows[12]  # one too few
    rows[20:28] = 0
    path = bank_of(tmp_path / "b.h5", {"x": rows, "dark": np.zeros((9, 8))})
    spoil(path, "x", slice(35, 36))
    with Bank(path) as bank:
        found = survey(bank, list(bank), on_video=lambda *_: None)
    assert found.videos["x"].stretches == (
        Stretch("frozen", 3, 3 + LEAST_ROWS),
        Stretch("zero", 20, 28),
        Stretch("not finite", 35, 36),
    )
    assert found.videos["dark"].stretches == (Stretch("zero", 0, 9),)
    assert np.flatnonzero(np.isnan(found.videos["x"].change)).tolist() == [34, 35]
    mean = found.videos["x"].mean
    assert mean is not None
    np.testing.assert_allclose(mean, np.delete(rows, 35, axis=0).mean(axis=0), rtol=1e-4, atol=1e-6)


def test_copies_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    rows = embeddings("x", 9)
    nearly = rows.copy()
    nearly[4, 4] = np.nextafter(nearly[4, 4], np.float32(9))
    videos = {"a/1": rows, "a/2": nearly, "b/1": rows, "c": rows[:8], "d": embeddings("d", 9)}
    assert surveyed(tmp_path / "b.h5", videos).same == [["a/1", "b/1"]]


def test_features_that_never_change(tmp_path: Path) -> None:
    videos = {name: embeddings(name, 5) for name in ("a", "b")}
    for rows in videos.values():
        rows[:, :2] = 0.5
    assert surveyed(tmp_path / "b.h5", videos).constant == 2


def test_of_several_views_the_plain_one_counts(tmp_path: Path) -> None:
    rows = embeddings("x", 6, (3, 8))  # (T, K, D), as they are written
    with Bank(bank_of(tmp_path / "b.h5", {"x": rows}, feature_shape=[8], views={"kind": "crops", "count": 3})) as bank:
        assert bank["x"].shape == (3, 6, 8)
        found = survey(bank, ["x"], on_video=lambda *_: None)
    np.testing.assert_allclose(found.videos["x"].mean, rows[:, 0].mean(axis=0), rtol=1e-5)


def test_only_what_is_wanted_is_kept(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    videos = {name: embeddings(name, 4) for name in ("a", "b", "c")}
    with Bank(bank_of(tmp_path / "b.h5", videos)) as bank:
        found = survey(bank, ["b"], on_video=lambda *done: seen.append(done))
    assert [each.mean is None for each in found.videos.values()] == [True, False, True]
    assert seen == [(1, 4), (2, 8), (3, 12)]


def test_a_broken_part_is_named(tmp_path: Path) -> None:
    with Bank(bank_of(tmp_path / "b.h5", {"a": embeddings("a", 4)})) as bank:
        for part in bank.parts:
            part.unlink()
        with pytest.raises(UserError, match=r"a cannot be read .* --verify"):
            survey(bank, [], on_video=lambda *_: None)


def test_thinning_keeps_the_mean_and_leaves_gaps() -> None:
    times, values = np.arange(100) / 10, np.arange(100.0)
    x, y = thinned(times, values, 10)
    assert y.tolist() == [4.5 + 10 * k for k in range(10)]
    np.testing.assert_allclose(x, y / 10)
    values[20:30], values[35] = np.nan, np.nan
    assert np.isnan(thinned(times, values, 10)[1]).tolist() == [False, False, True, *[False] * 7]
    assert thinned(times, values, 10)[1][3] == np.nanmean(values[30:40])
    assert len(thinned(times[:5], values[:5], 10)[0]) == 5


def test_the_usual_change_at_shares_of_the_videos() -> None:
    def of(change: np.ndarray) -> Surveyed:
        return Surveyed(np.arange(len(change) + 1.0), change, (), None)

    usual = usual_change([of(np.full(7, float(level))) for level in range(11)], points=4)
    assert usual is not None
    np.testing.assert_allclose(usual, [[1, 5, 9]] * 4)
    still_at_the_end = usual_change([of(np.array([1.0] * 50 + [0.0] * 50))], points=4)
    assert still_at_the_end is not None
    assert still_at_the_end[:, 1].tolist() == [1, 1, 0, 0]
    assert usual_change([of(np.zeros(0))]) is None
