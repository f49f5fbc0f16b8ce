"""`framebank bench heads`: all loops are timed, the CNN on real clips, and what cannot be measured is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.banks import bank_of, in_order
from tests.commands import extract, framebank

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TINY = ("--epochs", 2, "--hidden", 4, "--batch-size", 4, "--device", "cpu")


def test_all_loops_are_timed_and_compared(tmp_path: Path) -> None:
    bank = bank_of(tmp_path / "bank.h5", in_order(10))
    done = framebank("bench", "heads", bank, *TINY, "--json", tmp_path / "b.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "b.json").read_text())
    loops = ["ours", "bare loop, packed beforehand", "pack_sequence for every batch"]
    assert list(found["median"]) == list(found["least"]) == loops
    assert all(0 < found["least"][name] <= found["median"][name] for name in loops)
    assert (found["videos"], found["rows"]) == (10, sum(map(len, in_order(10).values())))
    assert "cnn_epoch" not in found
    lines = {line[:32].strip(): line[32:].split() for line in done.stdout.splitlines()}
    for name in loops:
        least, median, ratio = map(float, lines[name])
        assert least <= median
        assert ratio == pytest.approx(found["median"]["ours"] / found["median"][name], abs=0.006)


def test_the_cnn_is_run_over_real_clips(data: Path, out: Path, tmp_path: Path) -> None:
    assert extract(data, out).exit_code == 0
    done = framebank("bench", "heads", out, *TINY, "--cnn-videos", 2, "--json", tmp_path / "b.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["cnn_epoch"] > 0
    assert found["cnn_ratio"] == pytest.approx(found["cnn_epoch"] / found["median"]["ours"])
    assert "scaled up from 2 videos" in done.stdout
    for clip in data.rglob("*.mp4"):
        clip.write_bytes(b"not a film")
    done = framebank("bench", "heads", out, *TINY, "--cnn-videos", 2)
    assert done.exit_code == 2
    assert "could be read" in done.stderr
    shutil.rmtree(data)
    done = framebank("bench", "heads", out, *TINY, "--cnn-videos", 2)
    assert done.exit_code == 2
    assert "leave --cnn-videos out" in done.stderr


def test_maps_are_averaged(tmp_path: Path) -> None:
    maps = {video: rows[:, :, None, None] * np.ones((1, 1, 2, 3)) for video, rows in in_order(4).items()}
    done = framebank("bench", "heads", bank_of(tmp_path / "maps.h5", maps), *TINY)
    assert done.exit_code == 0, done.output
    assert "rows × 6" in done.stdout


def test_a_bank_without_labels_is_refused(tmp_path: Path) -> None:
    videos = in_order(4)
    done = framebank("bench", "heads", bank_of(tmp_path / "bank.h5", videos, {v: {"label": ""} for v in videos}))
    assert done.exit_code == 2
    assert "label is empty" in done.stderr
