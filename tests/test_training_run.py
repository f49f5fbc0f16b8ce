"""Folds and seeds through a function that trains: what is scored, what is kept, what is written, and by whom."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import runs
from pipeline.bank import Bank
from pipeline.bundles import score_bundle
from pipeline.errors import UserError
from pipeline.heads import HeadConfig
from pipeline.held_out import hold_out
from pipeline.learning import Learning
from pipeline.material import Material
from pipeline.optimisation import FitConfig
from pipeline.results import HeldOut, joined
from pipeline.splits import Fold
from pipeline.training import OnEpoch, Plan, train_fold
from stages.console import Display
from stages.training_run import Asked, Loaded, Train, Trained, begin, load, train_and_score
from tests.banks import bank_of, in_order

pytestmark = pytest.mark.usefixtures("one_torch_thread")
CPU = torch.device("cpu")
LEARNING = Learning(head=HeadConfig(cell="gru", hidden=4), fit=FitConfig(epochs=2), test_share=0.4)
VIDEOS = in_order(20)


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    columns = {video: {"group": f"g{number // 2}"} for number, video in enumerate(VIDEOS)}
    with Bank(bank_of(tmp_path / "bank.h5", VIDEOS, columns)) as opened:
        yield opened


def asked_for(bank: Bank, learning: Learning, what: str = "head") -> Asked:
    out = bank.path.parent / "run"
    return Asked(out, learning.resolved(), runs.data_identity([bank], {}), what)


def trains(material: Material, learning: Learning, calls: list[tuple[Fold, int, Path]]) -> Train:
    """Train heads, and note what was called for."""
    plan = Plan(learning.head, learning.objective, learning.selection, learning.fit, CPU)

    def train(fold: Fold, seed: int, folder: Path, on_epoch: OnEpoch) -> Trained:
        calls.append((fold, seed, folder))
        seeded = replace(plan, fit=replace(plan.fit, seed=seed))
        bundle, history, _ = train_fold(material, fold, seeded, folder, on_epoch)
        return Trained(bundle, material.sequences, history, ["noted"])

    return train


def run(
    bank: Bank,
    learning: Learning,
    *,
    what: str = "head",
    wrap: Callable[[Train], Train] = lambda train: train,
    more: Callable[[Loaded], dict[str, HeldOut]] | None = None,
) -> tuple[Loaded, list[tuple[Fold, int, Path]], dict[str, Any]]:
    """The whole of a run: from what, the calls to train, and its results."""
    display, asked = Display(), asked_for(bank, learning, what)
    calls: list[tuple[Fold, int, Path]] = []
    loaded = load(display, [bank], learning)
    assert begin(display, asked, loaded.folds) == runs.NEW
    train_and_score(
        display,
        asked,
        learning,
        loaded,
        wrap(trains(loaded.material, learning, calls)),
        device=CPU,
        cost=lambda: {"seconds": 3.0, "frames_trained": 7},
        more_baselines=None if more is None else lambda: more(loaded),
    )
    return loaded, calls, json.loads((asked.out / "results.json").read_text())


def test_one_split_keeps_the_bundle_that_was_scored(bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    loaded, calls, results = run(bank, LEARNING)
    out = bank.path.parent / "run"
    assert calls == [(loaded.folds[0], 0, out / "folds" / "test")]
    for name in ("model.json", "model.safetensors"):
        assert (out / name).read_bytes() == (out / "folds" / "test" / name).read_bytes()
    assert results["cost"].keys() == {"training_seconds", "seconds", "frames_trained"}
    assert (results["cost"]["seconds"], results["cost"]["frames_trained"]) == (3.0, 7)
    said = capsys.readouterr().out
    assert said.count("Fold test: noted") == 1
    assert "this head" in said


def test_several_folds_and_seeds_end_with_one_bundle_of_all_videos(bank: Bank) -> None:
    learning = replace(LEARNING, folds=2, seeds=2, validation_share=0.3)
    loaded, calls, _ = run(bank, learning)
    out = bank.path.parent / "run"
    one, two = loaded.folds
    *scored, (final, seed, folder) = calls
    names = ("1", "2", "1-seed1", "2-seed1")
    assert scored == [
        (fold, seed, out / "folds" / name)
        for (fold, seed), name in zip([(one, 0), (two, 0), (one, 1), (two, 1)], names, strict=True)
    ]
    assert (final.name, final.test, seed, folder) == ("all", (), 0, out / "folds" / "all")
    assert sorted(final.train + final.validation) == sorted(VIDEOS)
    assert final.validation
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    epochs = pd.read_csv(out / "metrics.csv", dtype={"fold": str})
    counts = epochs.groupby(["seed", "fold"])["epoch"].count().to_dict()
    assert counts == {(0, "1"): 2, (0, "2"): 2, (0, "all"): 2, (1, "1"): 2, (1, "2"): 2}
    assert (out / "predictions-seed1.csv").exists()


def test_what_is_scored_is_what_training_returned(bank: Bank) -> None:
    """The bundle reads its own sequences, which need not be the material's: here those of a bank of other numbers."""
    others = bank_of(bank.path.with_name("others.h5"), {video: rows * -3 for video, rows in VIDEOS.items()})
    expected: dict[str, np.ndarray] = {}

    def wrap(train: Train) -> Train:
        def reading_others(fold: Fold, seed: int, folder: Path, on_epoch: OnEpoch) -> Trained:
            done = train(fold, seed, folder, on_epoch)
            with Bank(others) as opened:
                sequences = load(Display(quiet=True), [opened], LEARNING).material.sequences
            scores = score_bundle(done.bundle, sequences, np.arange(len(VIDEOS)))
            expected.update(zip(sequences[0].ids, scores, strict=True))
            return done._replace(sequences=sequences)

        return reading_others

    loaded, _, _ = run(bank, LEARNING, wrap=wrap)
    told = pd.read_csv(bank.path.parent / "run" / "predictions.csv").set_index("id")
    assert sorted(told.index) == sorted(loaded.folds[0].test)
    for video, row in told.iterrows():
        np.testing.assert_allclose(row[["p_falling", "p_rising"]].astype(float), expected[str(video)], atol=1e-6)


def test_other_baselines_stand_beside_the_usual_ones(bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    def knows_all(loaded: Loaded) -> dict[str, HeldOut]:
        """Every held-out video's true class, without a doubt."""
        bundle = train_fold(
            loaded.material,
            loaded.folds[0],
            Plan(LEARNING.head, LEARNING.objective, LEARNING.selection, LEARNING.fit, CPU),
            bank.path.parent / "elsewhere",
        )[0]
        targets, sequences = loaded.material.targets, loaded.material.sequences
        held = joined([hold_out(bundle, sequences, targets, fold.test, fold=fold.name) for fold in loaded.folds])
        held.scores = [np.eye(2, dtype=np.float32)[int(target)] for target in held.targets]
        held.decided = list(held.targets)
        return {"frozen head": held}

    _, _, results = run(bank, LEARNING, what="model", more=knows_all)
    assert next(iter(results["baselines"])) == "frozen head"
    assert "logistic regression on mean" in results["baselines"]
    assert results["baselines"]["frozen head"]["score"] == 1
    assert results["best_baseline"] == "frozen head"
    assert results["difference"] == pytest.approx(results["score"] - 1)
    said = capsys.readouterr().out
    assert "this model" in said
    assert "  frozen head " in said
    assert "this head" not in said
    assert "--no-centre" not in said


def test_begun_again_when_finished_it_shows_the_results(bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    loaded, _, _ = run(bank, LEARNING)
    first = capsys.readouterr().out
    (bank.path.parent / "run" / "splits.csv").unlink()
    assert begin(Display(), asked_for(bank, LEARNING), loaded.folds) == runs.FINISHED
    said = capsys.readouterr().out
    assert "is finished" in said
    assert first.split("\n\n")[-1] in said
    assert not (bank.path.parent / "run" / "splits.csv").exists(), "a finished run is left alone"


def test_a_run_that_another_command_took_meanwhile_is_left_alone(bank: Bank) -> None:
    config = bank.path.parent / "run" / "config.json"

    def wrap(train: Train) -> Train:
        def disturbed(fold: Fold, seed: int, folder: Path, on_epoch: OnEpoch) -> Trained:
            found = json.loads(config.read_text())
            found["config"]["split_seed"] = 9
            config.write_text(json.dumps(found))
            return train(fold, seed, folder, on_epoch)

        return disturbed

    with pytest.raises(UserError, match=r"split_seed is 9 \(that run\) and 0 \(now\)"):
        run(bank, LEARNING, wrap=wrap)
    assert not (bank.path.parent / "run" / "results.json").exists()


def test_a_column_of_groups_that_is_empty_is_refused(bank: Bank) -> None:
    with pytest.raises(UserError, match="column codec is empty"):
        load(Display(quiet=True), [bank], replace(LEARNING, group_column="codec"))


# Run by torchrun in each of two processes: heads as they were drawn, for it is not training that is looked at.
_RANK = """
import sys
from pathlib import Path
import torch
from pipeline import ranks, runs
from pipeline.bank import Bank
from pipeline.bundles import Bundle, Member, save_bundle
from pipeline.heads import Head
from pipeline.standardisation import statistics
from stages.console import Display
from stages.training_run import Trained, begin, load, train_and_score
from tests.test_training_run import CPU, LEARNING, asked_for

def say(line):  # in one piece: torchrun's processes do not buffer, and the other one may be speaking
    sys.stdout.write(f"\\n{line}\\n")

torch.set_num_threads(1)
with ranks.joined(), Bank(Path(sys.argv[1])) as bank:
    display, asked = Display(quiet=not ranks.first()), asked_for(bank, LEARNING)
    loaded = load(display, [bank], LEARNING)
    material = loaded.material

    def train(fold, seed, folder, on_epoch):
        torch.manual_seed(seed)
        prepared = statistics(material.sequences[0], material.positions(fold.train), LEARNING.head.inputs, pca=None)
        head = Head(LEARNING.head, material.sequences[0].feature_shape, 2, prepared).eval()
        member = Member(head, material.banks[0])
        bundle = Bundle((member,), "class", False, material.targets.labels, LEARNING.objective, LEARNING.selection)
        if ranks.first():
            save_bundle(folder, bundle)
        ranks.wait()
        return Trained(bundle, material.sequences, [{"member": 0, "epoch": 1, "train_loss": 1.0, "kept": 1}], [])

    say(f"state {begin(display, asked, loaded.folds)}")
    more = {}
    train_and_score(display, asked, LEARNING, loaded, train, device=CPU, cost=lambda: {"seconds": 1.0},
                    more_baselines=lambda: more.setdefault(ranks.rank(), {}))
    say(f"called {list(more)}")
ranks.leave(0)
"""


@pytest.mark.slow
def test_two_ranks_make_the_run_that_one_makes(bank: Bank, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (tmp_path / "rank.py").write_text(_RANK)
    results = []
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [*command, str(tmp_path / "rank.py"), str(bank.path)],
            env={**environment, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("state new") == processes
        assert sorted(line for line in done.stdout.splitlines() if line.startswith("called")) == [
            f"called [{rank}]" for rank in range(processes)
        ]
        assert done.stdout.count("this head") == 1, "one process speaks"
        out = (tmp_path / "run").rename(tmp_path / f"run{processes}")
        results.append((pd.read_csv(out / "predictions.csv"), json.loads((out / "results.json").read_text())))
    (one, alone), (two, together) = results
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-6)
    for name in ("score", "baselines", "difference_interval"):
        assert alone[name] == together[name]
