"""Fine-tuning that is killed, interrupted, or done by two processes: it comes to the same end."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from tests.conftest import REPOSITORY
from tests.finetuning import SGD, Start, chances, far_apart, finetuned, losses, make_clips, start_of
from tests.killing import Runs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread")]
SETUP = """
import sklearn.linear_model, matplotlib.pyplot
torch.set_num_threads(1)
from pipeline import fitting
from stages import finetune, finetune_options
fitting.CHECKPOINT_SECONDS = 0.0
"""
FILES = ("backbone.safetensors", "model.safetensors", "predictions.csv", "splits.csv")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("start")
    return start_of(folder, make_clips(folder / "data", 24), "--folds", 2, "--norm", "none")


@pytest.fixture
def runs() -> Iterator[Runs]:
    made = Runs(SETUP)
    yield made
    made.close()


def words(start: Start, out: Path, *more: object) -> list[str]:
    asked = ("finetune", start.data, "--head", start.run, "--out", out, "--epochs", 4, "--batch-size", 4, *more)
    return [str(word) for word in asked]


def where(out: Path) -> str:
    """How far a run has come."""
    if not out.exists():
        return "nothing"
    folds = sorted(folder.name for folder in (out / "folds").glob("*"))
    if not folds:
        return "banking" if (out / "prefix").exists() else "begun"
    return f"training {folds[-1]}"


def seen(out: Path) -> dict[Path, int]:
    """The files that were made in a run, and when they were written."""
    found = {}
    for path in (*out.glob("prefix/*"), *out.glob("folds/*/*")):
        with suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime_ns
    return found


@pytest.mark.parametrize("more", [(), ("--no-prefix-bank", "--unfreeze", "0:head,2:features.12")])
def test_killed_again_and_again_it_comes_to_the_same_end(
    start: Start, tmp_path: Path, runs: Runs, more: tuple[object, ...]
) -> None:
    calm, out = tmp_path / "calm", tmp_path / "killed"
    runs.start(*words(start, calm, *more))
    assert runs.status() == 0
    randomly, kills, places, status = random.Random(2), 0, set(), -signal.SIGKILL
    for attempt in range(13):
        before = seen(out)
        process = runs.start(*words(start, out, *more))
        if attempt < 12:
            for _ in range(3000):
                if seen(out) != before:
                    break
                time.sleep(0.002)
            time.sleep(randomly.uniform(0, 0.3))
            with suppress(ProcessLookupError):  # it was done already
                os.kill(process, signal.SIGKILL)
        status = runs.status()
        assert status in (0, -signal.SIGKILL)
        kills += status < 0
        places.add(where(out))
        if status == 0:
            break
    assert status == 0
    assert kills >= 3
    assert any(place.startswith("training") for place in places), places
    for name in FILES:
        assert (out / name).read_bytes() == (calm / name).read_bytes(), name
    assert losses(out) == losses(calm)
    assert not (out / "prefix").exists()


def test_killed_while_it_banks_it_goes_on_there(start: Start, tmp_path: Path, runs: Runs) -> None:
    calm, out = tmp_path / "calm", tmp_path / "killed"
    runs.start(*words(start, calm))
    assert runs.status() == 0
    for wait in (0.0, 0.02, 0.05, 0.1):
        process = runs.start(*words(start, out))
        before = set((out / "prefix").glob("*"))
        for _ in range(2000):
            if set((out / "prefix").glob("*")) != before or (out / "folds").exists():
                break
            time.sleep(0.005)
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)
        assert runs.status() == -signal.SIGKILL
    runs.start(*words(start, out))
    assert runs.status() == 0
    for name in FILES:
        assert (out / name).read_bytes() == (calm / name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_130_and_goes_on(start: Start, tmp_path: Path, runs: Runs, number: int) -> None:
    out = tmp_path / "out"
    for awaited in ("prefix", "folds/1/checkpoint-0.pt"):
        process = runs.start(*words(start, out))
        for _ in range(4000):
            if (out / awaited).exists():
                break
            time.sleep(0.002)
        os.kill(process, number)
        assert runs.status() == 130
        assert not (out / "results.json").exists()
    runs.start(*words(start, out))
    assert runs.status() == 0


def together(arguments: list[str]) -> str:
    """The command in two processes, as torchrun starts them; what it says."""
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "stages.cli", *arguments, "--device", "cpu",
        ],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("more", [(), ("--no-prefix-bank",)])
def test_two_processes_train_what_one_does(start: Start, tmp_path: Path, more: tuple[object, ...]) -> None:
    plain = tmp_path / "plain"
    head = start_of(tmp_path, start.data, "--norm", "none", "--output-dropout", 0, "--pool", "mean")
    finetuned(head, plain, *SGD, "--epochs", 3, "--batch-size", 6, *more)
    said = together([*words(head, tmp_path / "two", *SGD, "--batch-size", 6, "--epochs", 3, *more)])
    assert said.count("Accuracy on held-out videos") == 1
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(plain), rtol=1e-4)
    np.testing.assert_allclose(chances(tmp_path / "two"), chances(plain), atol=1e-4)
    assert far_apart(tmp_path / "two", plain) < 1e-5
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "two", plain))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
    names = [sorted(path.relative_to(run).as_posix() for path in run.rglob("*")) for run in (tmp_path / "two", plain)]
    assert names[0] == names[1]
    assert pd.read_csv(tmp_path / "two" / "metrics.csv")["rows"].equals(pd.read_csv(plain / "metrics.csv")["rows"])


def test_two_processes_begin_from_scratch_too(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["finetune", start.data, "--out", out, "--backbone", "squeezenet1_1", "--weights", "random"]
    said = together(
        [*map(str, asked), "--image-size", "48", "--precision", "fp32", "--unfreeze", "all", "--epochs", "1"]
    )
    assert said.count("Accuracy on held-out videos") == 1
    assert (out / "results.json").exists()
