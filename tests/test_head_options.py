"""The options of heads through the command: what they reach, what a run keeps of them, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.banks import bank_of, in_order
from tests.commands import framebank

QUICK = ("--hidden", 8, "--epochs", 4, "--batch-size", 8, "--folds", 2, "--pca", 0)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return bank_of(tmp_path / "bank.h5", in_order(16))


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--variational-dropout", "0.3"], {"variational_dropout": 0.3}),
        (["--projection", "8", "--projection-dropout", "0.5"], {"projection": 8, "projection_dropout": 0.5}),
        (["--step-mlp", "9,7"], {"step_mlp": [9, 7]}),
        (["--step-mlp", "9", "--cell", "none", "--pool", "max"], {"step_mlp": [9], "cell": "none"}),
        (["--step-mlp", "9", "--supervise", "growing", "--pool", "max+stats"], None),
    ],
)
def test_a_run_is_made_of_what_was_asked(
    arguments: list[str], kept: dict[str, object] | None, bank: Path, tmp_path: Path
) -> None:
    done = framebank("train-head", bank, "--out", tmp_path / "run", *QUICK, *arguments)
    if kept is None:
        assert done.exit_code == 2
        assert "pools nothing" in done.stderr
        return
    assert done.exit_code == 0, done.output
    head = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["head"]
    assert {name: head[name] for name in kept} == kept
    assert framebank("evaluate", tmp_path / "run").exit_code == 0


@pytest.mark.parametrize("segments", [False, True])
def test_frames_that_lrcn_repeats(segments: bool, bank: Path, tmp_path: Path) -> None:
    """Videos of 8 to 15 rows: 6 are walked back over, 40 are more than there are, and some rows come often."""
    more: list[object] = []
    if segments:
        rows = [(video, 0.0, 0.5, video.split("/")[0]) for video in in_order(16)]
        pd.DataFrame(rows, columns=["id", "start", "end", "label"]).to_csv(tmp_path / "segments.csv", index=False)
        more = ["--segments", tmp_path / "segments.csv", "--background", "none", "--chunk-steps", 12]
    for amount in (6, 40):
        run = tmp_path / f"run{amount}"
        done = framebank("train-head", bank, "--out", run, *QUICK, "--lrcn", amount, *more)
        assert done.exit_code == 0, done.output
        kept = json.loads((run / "config.json").read_text())["config"]["selection"]
        assert kept == {"rule": "lrcn", "amount": amount, "test_crops": 1}
        assert f"rows by --lrcn {amount}" in done.stdout
        metrics = pd.read_csv(run / "metrics.csv")
        assert np.isfinite(metrics["train_loss"]).all()
        if not segments:
            assert set(metrics["rows"]) == {8 * amount, 16 * amount}  # exactly so many of each video: of a fold, of all
        assert framebank("evaluate", run).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lrcn", "6", "--tail", "6"], "--tail and --lrcn exclude one another"),
        (["--lrcn", "6", "--test-crops", "2"], "takes the same frames in every test"),
        (["--lrcn", "0"], "0"),
        (["--variational-dropout", "0.2", "--recurrent-dropout", "0.2"], "give one of them"),
        (["--variational-dropout", "0.2", "--cell", "none"], "without a recurrent cell"),
        (["--variational-dropout", "1"], "1"),
        (["--projection-dropout", "0.5"], "width of the projection"),
        (["--step-mlp", "0"], "widths"),
        (["--step-mlp", "8", "--pool", "last"], "mixes the directions"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], said: str, bank: Path, tmp_path: Path) -> None:
    done = framebank("train-head", bank, "--out", tmp_path / "run", *QUICK, *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


RECIPE = """
summary = "s"
source = "x"
[train-head]
hidden = 8
epochs = 2
pca = 0
"""


@pytest.mark.parametrize(
    ("lines", "idle"),
    [
        ('optimizer = "adamw"\nmomentum = 0.5', "--momentum would change nothing: it is for --optimizer sgd"),
        ('schedule = "cosine"\nstep-epochs = 3', "--step-epochs would change nothing"),
        ('read = "last"', "--read would change nothing"),
        ("folds = 2\ntest-share = 0.3", "--test-share would change nothing: --folds decides the parts"),
    ],
)
def test_what_a_recipe_says_in_vain_is_refused(lines: str, idle: str, bank: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE + lines)
    done = framebank("train-head", bank, "--out", tmp_path / "run", "--recipe", tmp_path / "mine.toml")
    assert done.exit_code == 2
    assert idle in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_what_a_recipe_says_gives_way_to_what_is_typed(bank: Path, tmp_path: Path) -> None:
    lines = 'optimizer = "sgd"\nmomentum = 0.5\nschedule = "step"\nstep-epochs = 3\ntest-share = 0.3'
    (tmp_path / "mine.toml").write_text(RECIPE + lines)
    call = ("train-head", bank, "--recipe", tmp_path / "mine.toml")
    typed = ("--optimizer", "adamw", "--schedule", "cosine", "--folds", 2)
    done = framebank(*call, *typed, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    fit = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["fit"]
    assert (fit["optimizer"], fit["schedule"]) == ("adamw", "cosine")
    done = framebank(*call, *typed, "--momentum", 0.5, "--out", tmp_path / "other")
    assert done.exit_code == 2
    assert "--momentum would change nothing" in done.stderr
