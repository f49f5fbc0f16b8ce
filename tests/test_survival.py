"""Kills, interruptions, a full disk, two runs at once: real ones, and what is banked stays banked."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline import bank as banks
from pipeline.bank import Bank
from tests.clips import make_clip
from tests.commands import SETTINGS, extract, said
from tests.killing import Runs, alive
from tests.test_broken_videos import mutated

CALL = ("--image-size", 96, "--device", "cpu", "--quiet")  # of --image-size the last one counts


def asked(data: Path, out: Path) -> tuple[object, ...]:
    return ("extract", data, "--out", out, *SETTINGS, *CALL)


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clips in four classes, to be read alone: seconds of work, of which there is news after a quarter of one."""
    folder = tmp_path_factory.mktemp("forty")
    for number in range(40):
        make_clip(folder / f"class{number % 4}" / f"clip{number:02}.mp4", frames=20 + number // 2, size=(128, 96))
    return folder


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """Calls in processes of their own."""
    made = Runs()
    yield made
    made.close()


def same_banks(one: Path, other: Path) -> None:
    """Assert that two banks hold the same videos with bitwise the same embeddings and times."""
    with Bank(one) as first, Bank(other) as second:
        assert list(first) == list(second)
        for video_id in first:
            np.testing.assert_array_equal(first[video_id], second[video_id])
            np.testing.assert_array_equal(first.timestamps(video_id), second.timestamps(video_id))
            np.testing.assert_array_equal(first.frame_index(video_id), second.frame_index(video_id))
        assert first.verify() == second.verify() == []


@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_many_times_and_resumed_the_bank_equals_an_undisturbed_one(
    forty: Path, runs: Runs, tmp_path: Path, out: Path, times: int
) -> None:
    undisturbed = tmp_path / "undisturbed.h5"
    runs.start(*asked(forty, undisturbed))
    assert runs.status() == 0

    randomly = random.Random(1)
    kills, midway, banked = 0, 0, 0
    while kills < times:
        process = runs.start(*asked(forty, out))
        if kills % 2:  # while it starts, or between parts: once there is news
            parts = len(banks.sealed_parts(out))
            while len(banks.sealed_parts(out)) == parts and alive(process):
                time.sleep(0.005)
        time.sleep(randomly.uniform(0.0, 0.6))
        with suppress(ProcessLookupError):  # it was done already
            os.kill(process, signal.SIGKILL)
        status = runs.status()
        kills += status == -signal.SIGKILL
        assert status in (0, -signal.SIGKILL)
        if not out.exists():
            continue
        with Bank(out) as bank:
            assert len(bank) >= banked  # what was banked stays banked
            assert bank.verify() == []
            midway += banked < len(bank) < 40
            banked = len(bank)
        if banked == 40:  # done before that: begin again
            shutil.rmtree(banks.parts_folder(out), ignore_errors=True)
            out.unlink()
            banked = 0
    runs.start(*asked(forty, out))
    assert runs.status() == 0
    assert midway >= 2
    same_banks(out, undisturbed)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bank.h5", "undisturbed.h5"]


def test_two_extractions_into_one_bank_at_once(runs: Runs, data: Path, out: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.h5"
    runs.start(*asked(data, alone))
    assert runs.status() == 0
    both = [runs.start(*asked(data, out)) for _ in range(2)]
    assert [runs.status(process) for process in both] == [0, 0]
    same_banks(out, alone)
    assert not banks.parts_folder(out).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_seals_what_is_done_and_can_be_resumed(
    number: int, forty: Path, runs: Runs, tmp_path: Path, out: Path
) -> None:
    says = tmp_path / "says"
    process = runs.start("extract", forty, "--out", out, *SETTINGS, says=says)
    while not banks.sealed_parts(out):
        assert alive(process)
        time.sleep(0.01)
    os.kill(process, number)
    assert runs.status() == 130
    output = says.read_text()
    assert "Stopping" in output
    assert "run the same command again to go on" in output
    with Bank(out) as bank:
        done = set(bank)
        assert 0 < len(done) < 40
        assert bank.verify() == []
    with h5py.File(out) as file:
        there = {f"{label}/{name}" for label, videos in file["videos"].items() for name in videos}
    assert there == done  # packed or linked: any HDF5 tool sees what is there
    result = extract(forty, out)
    assert result.exit_code == 0
    assert said(result, "Skipped") == f"{len(done)} video{'s' * (len(done) > 1)} done before"
    assert len(Bank(out)) == 40


def test_a_full_disk_stops_with_one_line_and_a_bank_that_opens(data: Path, out: Path) -> None:
    assert extract(data / "class0", out).exit_code == 0
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
    script = f"{limit}; from stages.cli import main; main()"
    command = [sys.executable, "-c", script, "extract", str(data), "--out", str(out), *SETTINGS, "--quiet"]
    bare = {
        name: value for name, value in os.environ.items() if not name.startswith("COV")
    }  # it could not write either
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=bare)
    assert child.returncode == 2
    assert child.stderr.count("\n") == 1
    assert "Everything sealed before is safe" in child.stderr
    with Bank(out) as bank:
        assert len(bank) == 3
        assert bank.verify() == []
    assert extract(data, out).exit_code == 0


@pytest.mark.slow
def test_a_run_over_five_hundred_mutations_of_real_files(tmp_path: Path, out: Path, shared: Path) -> None:
    real = [
        "decord/tests/test_data/video_0.mov",
        "ExoPlayer/testdata/src/test/assets/media/vp9/bear-vp9-odd-dimensions.webm",
        "ExoPlayer/testdata/src/test/assets/media/ts/sample_h262_mpeg_audio.ts",
        "torchcodec/test/resources/testsrc2_odd_height_and_width_mpeg2.mp4",
        "torchcodec/test/resources/test_non_zero_start.mp4",
    ]
    draw = random.Random(7)
    (tmp_path / "data").mkdir()
    for number in range(500):
        source = shared / "data" / "awkward" / real[number % len(real)]
        (tmp_path / "data" / f"{number:03}{source.suffix}").write_bytes(mutated(source.read_bytes(), draw))
    result = extract(tmp_path / "data", out)
    assert result.exit_code == 3
    with Bank(out) as bank:
        assert len(bank) + len(bank.failures) == 500
        assert len(bank) > 50
        assert len(bank.failures) > 50
        assert not set(bank) & set(bank.failures["id"])
        assert bank.verify() == []
    assert extract(tmp_path / "data", out).exit_code == 3  # nothing is tried again
    assert said(extract(tmp_path / "data", out), "To do").startswith("nothing")
