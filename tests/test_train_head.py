"""Stage two through the command: what it trains, prints, writes, refuses, and goes on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from safetensors.numpy import load_file

from pipeline import bank as banks
from tests.banks import bank_of, fill, in_order
from tests.commands import framebank

QUICK = ("--hidden", 16, "--epochs", 20, "--learning-rate", 0.01, "--batch-size", 8)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def train(bank: Path, out: Path, *arguments: object) -> Result:
    return framebank("train-head", bank, "--out", out, *QUICK, *arguments)


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


@pytest.fixture
def ordered(tmp_path: Path) -> Path:
    """40 videos of two classes that differ in the order of their rows alone, in 10 groups."""
    videos = in_order(40)
    columns = {video: {"group": f"g{number // 4}"} for number, video in enumerate(videos)}
    return bank_of(tmp_path / "ordered.h5", videos, columns)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_head_sees_the_order_that_baselines_cannot(ordered: Path, run: Path) -> None:
    done = train(ordered, run, "--folds", 4)
    assert done.exit_code == 0, done.output
    found = results(run)
    assert found["headline"] == "accuracy"
    assert found["score"] >= 0.95
    assert found["baselines"]["logistic regression on mean + std"]["score"] <= 0.75
    assert found["difference_interval"][0] > 0
    assert "the head adds something" in done.stdout
    for name in found["baselines"]:
        assert name in done.stdout
    assert {file.name for file in run.iterdir()} == {
        "config.json",
        "splits.csv",
        "metrics.csv",
        "predictions.csv",
        "results.json",
        "confusion.png",
        "curves.png",
        "model.json",
        "model.safetensors",
        "folds",
    }


def test_predictions_are_of_held_out_videos_once_each(ordered: Path, run: Path) -> None:
    train(ordered, run, "--folds", 4)
    told, parts = pd.read_csv(run / "predictions.csv", dtype={"fold": str}), pd.read_csv(run / "splits.csv")
    assert sorted(told["id"]) == sorted(in_order(40))
    tested = parts[parts["part"] == "test"]
    assert dict(zip(told["id"], told["fold"].astype(int), strict=True)) == dict(
        zip(tested["id"], tested["fold"], strict=True)
    )
    assert (told["target"] == told["id"].str.split("/").str[0]).all()
    chances = told[["p_falling", "p_rising"]]
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-5)
    assert (told["predicted"] == chances.idxmax(axis=1).str[2:]).all()
    assert results(run)["score"] == pytest.approx((told["target"] == told["predicted"]).mean())


def test_no_group_is_on_both_sides(ordered: Path, run: Path) -> None:
    train(ordered, run, "--folds", 4, "--validation-share", 0.25)
    parts = pd.read_csv(run / "splits.csv")
    with banks.Bank(ordered) as bank:
        parts["group"] = parts["id"].map(bank.catalog.set_index("id")["group"])
    assert set(parts["part"]) == {"train", "validation", "test"}
    for _, fold in parts.groupby("fold"):
        groups = [set(fold.loc[fold["part"] == part, "group"]) for part in ("train", "validation", "test")]
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]


def test_splits_are_read_back(ordered: Path, run: Path, tmp_path: Path) -> None:
    train(ordered, run, "--folds", 3, "--split-seed", 5)
    again = tmp_path / "again"
    train(ordered, again, "--splits", run / "splits.csv")
    assert (run / "splits.csv").read_text() == (again / "splits.csv").read_text()
    assert (run / "predictions.csv").read_text() == (again / "predictions.csv").read_text()


def test_the_last_head_learns_from_videos_that_no_fold_tests_too(ordered: Path, run: Path, tmp_path: Path) -> None:
    ids = list(in_order(40))
    lines = ["id,fold,part"]
    for fold, tested in ((1, ids[:8]), (2, ids[8:16])):
        lines += [f"{video},{fold},{'test' if video in tested else 'train'}" for video in ids]
    (tmp_path / "splits.csv").write_text("\n".join(lines))
    assert train(ordered, run, "--splits", tmp_path / "splits.csv", "--epochs", 2).exit_code == 0
    assert set(json.loads((run / "model.json").read_text())["trained_on"]) == set(ids)
    assert len(pd.read_csv(run / "predictions.csv")) == 16


def test_the_split_column_is_used(tmp_path: Path, run: Path) -> None:
    videos = in_order(40)
    columns = {video: {"split": ("train", "train", "val", "test")[n // 2 % 4]} for n, video in enumerate(videos)}
    done = train(bank_of(tmp_path / "bank.h5", videos, columns), run)
    assert "the bank's column split" in done.stdout
    parts = pd.read_csv(run / "splits.csv").set_index("id")["part"].replace("validation", "val")
    assert parts.to_dict() == {video: columns[video]["split"] for video in videos}
    assert set(pd.read_csv(run / "predictions.csv")["id"]) == {v for v in videos if columns[v]["split"] == "test"}


def test_the_same_call_again_does_nothing_and_another_is_refused(ordered: Path, run: Path) -> None:
    first = train(ordered, run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    second = train(ordered, run)
    assert second.exit_code == 0
    assert "is finished" in second.stdout
    assert first.stdout.split("\n\n")[1] in second.stdout  # the same results
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    other = train(ordered, run, "--cell", "gru")
    assert other.exit_code == 2
    assert "head.cell is lstm (that run) and gru (now)" in other.stderr
    bank_of(ordered, {"rising/new": np.ones((9, 6), np.float32)})
    changed = train(ordered, run)
    assert changed.exit_code == 2
    assert "other data" in changed.stderr


def test_a_folder_that_is_no_run_is_left_alone(ordered: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all my work")
    done = train(ordered, tmp_path / "mine")
    assert done.exit_code == 2
    assert "is no run" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_killed_and_called_again_gives_the_same_weights(ordered: Path, tmp_path: Path) -> None:
    arguments = ["--folds", "3", *map(str, QUICK), "--epochs", "30"]
    train(ordered, tmp_path / "whole", *arguments)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "stages.cli", "train-head", str(ordered), "--out", str(killed), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed / "folds" / "1" / "model.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (killed / "results.json").exists(), "it was not killed in time"
    assert train(ordered, killed, *arguments).exit_code == 0
    for name in ("model.safetensors", "folds/1/model.safetensors", "folds/3/model.safetensors"):
        one, other = load_file(tmp_path / "whole" / name), load_file(killed / name)
        assert one.keys() == other.keys()
        assert all((one[key] == other[key]).all() for key in one), name
    assert (tmp_path / "whole" / "predictions.csv").read_text() == (killed / "predictions.csv").read_text()


def test_several_seeds(ordered: Path, run: Path) -> None:
    done = train(ordered, run, "--seeds", 2, "--epochs", 3)
    found = results(run)
    assert len(found["seeds"]) == 2
    assert found["score"] == pytest.approx(np.mean(found["seeds"]))
    assert found["seeds_sd"] == pytest.approx(np.std(found["seeds"], ddof=1))
    assert "2 seeds" in done.stdout
    each = [pd.read_csv(run / name) for name in ("predictions.csv", "predictions-seed1.csv")]
    assert (each[0]["id"] == each[1]["id"]).all()
    assert (each[0]["p_rising"] != each[1]["p_rising"]).any()


def test_regression(tmp_path: Path, run: Path) -> None:
    videos = in_order(30)
    speed = {video: f"{100 + (5 if 'rising' in video else -5) + len(rows) / 100:.3f}" for video, rows in videos.items()}
    bank = bank_of(tmp_path / "bank.h5", videos, {video: {"speed": value} for video, value in speed.items()})
    done = train(bank, run, "--target", "speed", "--regression", "--epochs", 30)
    assert done.exit_code == 0, done.output
    found = results(run)
    assert found["headline"] == "mae"
    assert set(found["baselines"]) == {"mean", "ridge on mean", "ridge on mean + std"}
    assert found["score"] < 0.5 * found["baselines"]["mean"]["score"]
    assert found["difference"] > 0, "positive is in favour of the head"
    assert (run / "scatter.png").exists()
    told = pd.read_csv(run / "predictions.csv")
    np.testing.assert_allclose(told["target"], told["id"].map(speed).astype(float), rtol=1e-6)  # float32
    assert (told["predicted"] - told["target"]).abs().mean() == pytest.approx(found["score"], rel=1e-3)


def test_several_labels_per_video(tmp_path: Path, run: Path) -> None:
    videos = in_order(40)
    said = {}
    for number, (video, rows) in enumerate(videos.items()):
        loud = number % 4 < 2
        rows[:, 0] += 2 * loud
        said[video] = "|".join(["up"] * (number % 2) + ["loud"] * loud)
    bank = bank_of(tmp_path / "bank.h5", videos)
    (tmp_path / "tags.csv").write_text("id,tags\n" + "".join(f"{video},{tags}\n" for video, tags in said.items()))
    done = train(bank, run, "--targets", tmp_path / "tags.csv", "--multi-label", "--validation-share", 0.25)
    assert done.exit_code == 0, done.output
    found = results(run)
    assert found["headline"] == "mAP"
    assert found["score"] > 0.9
    assert set(found["baselines"]) == {"majority", "one-vs-rest on mean", "one-vs-rest on mean + std"}
    assert json.loads((run / "model.json").read_text())["thresholds"] is not None


def test_a_label_per_frame(tmp_path: Path, run: Path) -> None:
    generator = np.random.default_rng(0)
    videos, lines = {}, ["id,start,end,label"]
    for number in range(6):
        rows = generator.normal(scale=0.3, size=(40, 6))
        edge = int(generator.integers(15, 25))
        rows[:edge, 0] += 1
        rows[edge:, 1] += 1
        videos[f"day{number}"] = rows
        lines += [f"day{number},0,{edge / 10},calm", f"day{number},{edge / 10},4,busy"]
    (tmp_path / "segments.csv").write_text("\n".join(lines) + "\n")
    bank = bank_of(tmp_path / "bank.h5", videos)
    done = train(bank, run, "--segments", tmp_path / "segments.csv", "--folds", 3)
    assert done.exit_code == 0, done.output
    found = results(run)
    assert found["headline"] == "frame_accuracy"
    assert found["score"] > 0.9
    assert {"edit", "f1@10", "f1@25", "f1@50"} <= found["metrics"].keys()
    frames = pd.read_csv(run / "frames.csv")
    assert len(frames) == 240
    assert found["score"] == pytest.approx((frames["target"] == frames["predicted"]).mean())
    told = pd.read_csv(run / "predictions.csv")
    assert len(told) == 6
    assert told["right"].sum() == (frames["target"] == frames["predicted"]).sum()


def test_a_value_per_frame(tmp_path: Path, run: Path) -> None:
    generator = np.random.default_rng(0)
    videos = {f"v{number}": generator.normal(size=(30, 6)) for number in range(6)}
    lines = [f"{v},{t / 10},{10 + rows[t, 0]}" for v, rows in videos.items() for t in range(30)]
    (tmp_path / "angle.csv").write_text("id,time,angle\n" + "\n".join(lines) + "\n")
    bank = bank_of(tmp_path / "bank.h5", videos)
    done = train(bank, run, "--frame-values", tmp_path / "angle.csv", "--folds", 3, "--epochs", 30)
    assert done.exit_code == 0, done.output
    found = results(run)
    assert set(found["baselines"]) == {"mean", "ridge per frame"}
    assert found["score"] < 0.8 * found["baselines"]["mean"]["score"]


@pytest.mark.parametrize("fuse", ["concat", "mean", "svm"])
def test_two_banks(fuse: str, tmp_path: Path, run: Path) -> None:
    videos = in_order(40)
    first = bank_of(tmp_path / "rgb.h5", videos)
    second = bank_of(tmp_path / "flow.h5", {video: rows[:, :3] for video, rows in videos.items()}, layer="flow")
    done = framebank("train-head", first, second, "--out", run, *QUICK, "--fuse", fuse, "--test-share", 0.4)
    assert done.exit_code == 0, done.output
    assert results(run)["score"] >= 0.9
    made = json.loads((run / "model.json").read_text())
    assert len(made["members"]) == (1 if fuse == "concat" else 2)
    assert made["fusion"] == {"concat": "none"}.get(fuse, fuse)
    again = framebank("evaluate", run)
    assert again.exit_code == 0, again.output


def test_two_banks_that_take_different_frames(tmp_path: Path, run: Path) -> None:
    videos = in_order(24)
    first = bank_of(tmp_path / "rgb.h5", videos)
    second = bank_of(tmp_path / "flow.h5", {video: rows[::2, :3] for video, rows in videos.items()}, layer="flow")
    done = framebank("train-head", first, second, "--out", run, *QUICK, "--epochs", 2, "--fuse", "mean")
    assert done.exit_code == 0, done.output
    again = framebank("evaluate", run)
    assert again.exit_code == 0, again.output


# What is refused, in one line, before anything is written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "colour"], "colour"),
        (["--group-column", "person"], "person"),
        (["--split-column", "half"], "half"),
        (["--folds", "50"], "50"),
        (["--multi-label", "--regression"], "exclude one another"),
        (["--regression"], "falling"),
        (["--background", "none"], "--segments"),
        (["--fuse", "mean"], "one bank"),
        (["--spatial", "mean"], "spatial"),
        (["--pca", "500"], "500"),
        (["--stride", "2", "--tsn", "3"], "exclude one another"),
        (["--test-crops", "3"], "crops"),
        (["--cell", "none", "--bidirectional"], "recurrent"),
        (["--monitor", "beauty", "--validation-share", "0.2"], "beauty"),
        (["--amp", "--device", "cpu"], "GPU"),
        (["--mlp", "a"], "widths"),
        (["--validation-share", "nan"], "finite"),
        (["--hidden", "99999999999"], "hidden units"),
        (["--deltas", "99999999999999999999"], "lag"),
        (["--pca", "99999999999999999999"], "principal components"),
        (["--learning-rate", "1e10"], "lower learning rate"),
        (["--monitor", "macro_f1"], "--validation-share"),
        (["--group-column", "codec"], "empty"),
        (["--split-column", "codec"], "no video to train"),
        # Options that would change nothing are most likely mistaken for others.
        (["--pool", "mean", "--supervise", "growing"], "pools nothing"),
        (["--read", "mean"], "every-step"),
        (["--momentum", "0.5"], "sgd"),
        (["--step-epochs", "3"], "plateau"),
        (["--chunk-steps", "9"], "--segments"),
        (["--folds", "3", "--test-share", "0.3"], "decides the parts"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments: list[str], said: str, ordered: Path, run: Path) -> None:
    done = train(ordered, run, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert len(done.stderr.splitlines()) <= 4


def test_banks_that_cannot_be_trained_on(tmp_path: Path, run: Path) -> None:
    videos = in_order(12)
    one = bank_of(tmp_path / "one.h5", {v: rows for v, rows in videos.items() if "rising" in v})
    done = train(one, run)
    assert done.exit_code == 2
    assert "rising" in done.stderr
    lonely = bank_of(tmp_path / "lonely.h5", {**videos, "odd/1": np.ones((5, 6), np.float32)})
    done = train(lonely, run, "--folds", 3)
    assert done.exit_code == 2
    assert "odd" in done.stderr
    fill(tmp_path / "none.h5", {"a/1": 3, "b/1": 3}, failures={"b/2": "broken"})
    (tmp_path / "none.h5").write_bytes((tmp_path / "one.h5").read_bytes()[:1000])
    done = train(tmp_path / "none.h5", run)
    assert done.exit_code == 2
    assert "cannot be read" in done.stderr
    done = train(tmp_path / "missing.h5", run)
    assert done.exit_code == 2
    fill(tmp_path / "failures.h5", {}, failures={"b/2": "broken"})
    done = train(tmp_path / "failures.h5", run)
    assert (done.exit_code, "holds no video" in done.stderr) == (2, True)
    other = bank_of(tmp_path / "other.h5", {f"x{video}": rows for video, rows in videos.items()})
    done = train(lonely, run, other)
    assert (done.exit_code, "No video is in all banks" in done.stderr) == (2, True)
    done = train(lonely, run, lonely)
    assert (done.exit_code, "given twice" in done.stderr) == (2, True)
    assert not run.exists()


def test_not_a_number_among_the_features(tmp_path: Path, run: Path) -> None:
    bank = bank_of(tmp_path / "bank.h5", in_order(12))
    with h5py.File(
        bank.with_name("bank.h5.parts") / next((tmp_path / "bank.h5.parts").glob("*.h5")).name, "r+"
    ) as file:
        file["videos/rising/003/features"][2, 1] = np.nan
    done = train(bank, run)
    assert done.exit_code == 2
    assert "rising/003" in done.stderr


def test_videos_of_one_row(tmp_path: Path, run: Path) -> None:
    videos = in_order(20)
    videos["rising/001"], videos["falling/000"] = videos["rising/001"][:1], videos["falling/000"][:1]
    done = train(bank_of(tmp_path / "bank.h5", videos), run, "--folds", 3)
    assert done.exit_code == 0, done.output


def test_maps_need_to_be_told_how_they_are_read(tmp_path: Path, run: Path) -> None:
    videos = {video: rows[:, :, None, None] * np.ones((1, 1, 2, 3)) for video, rows in in_order(20).items()}
    bank = bank_of(tmp_path / "maps.h5", videos)
    done = train(bank, run)
    assert done.exit_code == 2
    assert "--spatial" in done.stderr
    for spatial in ("mean", "flatten", "attention"):
        done = train(bank, run.with_name(spatial), "--spatial", spatial, "--folds", 2, "--epochs", 2)
        assert done.exit_code == 0, done.output
        assert framebank("evaluate", run.with_name(spatial)).exit_code == 0


def test_groups_of_some_rows_are_missing(tmp_path: Path, run: Path) -> None:
    videos = in_order(20)
    columns = {video: {"group": "" if n < 3 else f"g{n // 4}"} for n, video in enumerate(videos)}
    done = train(bank_of(tmp_path / "bank.h5", videos, columns), run, "--folds", 2)
    assert done.exit_code == 0, done.output
    assert "without a group" in done.stdout


def test_defaults_of_the_command_are_those_of_the_configs(ordered: Path, run: Path) -> None:
    from pipeline.optimisation import FitConfig
    from stages.train_head import TrainHeadConfig

    framebank("train-head", ordered, "--out", run, "--epochs", 2)
    asked = json.loads((run / "config.json").read_text())["config"]
    plain = json.loads(
        json.dumps(TrainHeadConfig((ordered,), run, pca=0, epochs=2, fit=FitConfig(epochs=2)).resolved())
    )
    assert asked == plain


def test_few_videos_are_gone_over_more_often(ordered: Path, run: Path) -> None:
    framebank("train-head", ordered, "--out", run, "--hidden", 2)
    asked = json.loads((run / "config.json").read_text())["config"]
    assert asked["epochs"] == asked["fit"]["epochs"] == 120  # 32 training videos make 2 steps an epoch, 240 are wanted
    assert pd.read_csv(run / "metrics.csv")["epoch"].max() == 120
