"""Statistics of a bank's values against NumPy's over all of them, whatever the blocks and the number of files."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline import blockwise
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.feature_statistics import feature_statistics
from tests.banks import bank_of, fill
from tests.commands import framebank


def _videos(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    videos = {
        f"v{number}": generator.normal(3, 2, size=(length, *shape)) for number, length in enumerate((1, 40, 7, 9))
    }
    for rows in videos.values():
        rows[rows < 2] = 0
        rows[:, 1] = 5  # never changes
    return videos


@pytest.mark.parametrize("shape", [(6,), (3, 2, 5)])
@pytest.mark.parametrize("block", [None, 8 * 6 * 3, 8 * 30 * 11])
def test_as_numpy_over_everything(
    tmp_path: Path, shape: tuple[int, ...], block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = _videos(shape)
    every = np.concatenate(list(videos.values())).astype(np.float32)
    every = np.moveaxis(every, 1, -1).reshape(-1, shape[0]).astype(np.float64)
    if block is not None:
        monkeypatch.setattr(blockwise, "BLOCK_BYTES", block)
    with Bank(bank_of(tmp_path / "bank.h5", videos)) as bank:
        found = feature_statistics(bank)
    assert found.values == len(every)
    np.testing.assert_allclose(found.mean, every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.deviation, every.std(axis=0), rtol=1e-10)
    assert found.deviation[1] == 0
    np.testing.assert_array_equal(found.least, every.min(axis=0))
    np.testing.assert_array_equal(found.greatest, every.max(axis=0))
    np.testing.assert_allclose(found.zeros, (every == 0).mean(axis=0), rtol=1e-12)


def test_two_threads_read_a_bank_in_more_files_than_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.bank._OPEN_FILES", 1)
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 8 * 8 * 2)
    for part in range(6):
        fill(tmp_path / "bank.h5", {f"v{part}-{number}": 5 for number in range(4)})
    with Bank(tmp_path / "bank.h5") as bank:
        every = np.concatenate([bank[video] for video in bank]).astype(np.float64)
        found = feature_statistics(bank)
    np.testing.assert_allclose(found.mean, every.mean(axis=0), rtol=1e-12, atol=1e-15)
    assert found.values == len(every)


def test_the_command_says_them(tmp_path: Path) -> None:
    videos = _videos((4,))
    every = np.concatenate(list(videos.values())).astype(np.float32)
    done = framebank("describe", bank_of(tmp_path / "bank.h5", videos), "--stats")
    assert done.exit_code == 0, done.output
    assert f"{every.min():.4g} to {every.max():.4g}" in done.stdout
    assert f"{every.mean():.4g}, standard deviation {every.std():.4g}" in done.stdout
    assert f"{(every == 0).mean():.1%} of all values" in done.stdout
    assert "1 feature of 4" in done.stdout


def test_what_cannot_be_summed_up_is_said_in_a_line(tmp_path: Path) -> None:
    fill(tmp_path / "empty.h5", {}, failures={"v": "broken"})
    done = framebank("describe", tmp_path / "empty.h5", "--stats")
    assert done.exit_code == 2
    assert "holds no rows" in done.stderr
    path = bank_of(tmp_path / "bank.h5", _videos((4,)))
    with Bank(path) as bank:
        part = bank.path_of("v1")
    with h5py.File(part, "r+") as file:
        file["videos/v1/features"][3, 2] = np.nan
    assert "Not finite" in framebank("describe", path, "--stats").stdout
    with h5py.File(part, "r+") as file:
        del file["videos/v1/features"]
    with Bank(path) as bank, pytest.raises(UserError, match="v1 cannot be read"):
        feature_statistics(bank)
    done = framebank("describe", path, "--stats", "--csv")
    assert done.exit_code == 2
    assert "exclude one another" in done.stderr
