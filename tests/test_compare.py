"""Runs side by side: the figures that each wrote down, the best first, and a warning where they cannot be compared."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline import runs
from pipeline.errors import UserError
from pipeline.heads import HeadConfig
from pipeline.writing import write_json
from stages.compare import CompareConfig, run


def finished(folder: Path, score: float, *, head: HeadConfig | None = None, shift: int = 0, **changes: Any) -> Path:
    """A run folder as `framebank train-head` leaves it; `shift` moves videos to other folds."""
    folder.mkdir()
    asked = {"head": asdict(head or HeadConfig()), "pca": None, "fuse": "concat", "supervise": "pooled"}
    config = {"format": runs.FORMAT, "schema": runs.SCHEMA, "config": asked, "data": {"banks": [{"path": "/b/one.h5"}]}}
    results = {
        "task": {"kind": "class", "per_frame": False, "labels": ["run", "walk"], "background": None},
        "split": "2 folds, seed 0",
        "headline": "accuracy",
        "score": score,
        "interval": [score - 0.1, score + 0.1],
        "seeds": [score],
        "seeds_sd": None,
        "baselines": {
            "majority": {"score": 0.5, "interval": [0.5, 0.5]},
            "mean": {"score": 0.6, "interval": [0.5, 0.7]},
        },
        "best_baseline": "mean",
        "difference": score - 0.6,
        "difference_interval": [score - 0.7, score - 0.5],
        "cost": {"seconds": 12.0},
        **changes,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "results.json", results)
    rows = [(f"v{place}", str((place + shift) // 3 % 2), "test") for place in range(6)]
    rows += [(f"v{place}", str((place + shift) // 3 % 2 ^ 1), "train") for place in range(6)]
    pd.DataFrame(rows, columns=["id", "fold", "part"]).to_csv(folder / "splits.csv", index=False)
    return folder


def test_the_best_run_comes_first_and_what_is_shared_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = finished(tmp_path / "one", 0.625)
    two = finished(tmp_path / "two", 0.75, head=HeadConfig(cell="gru", bidirectional=True, pool="attention"))
    assert run(CompareConfig((one, two))) == 0
    lines = capsys.readouterr().out.splitlines()
    shared = ["bank        one.h5", "task        2 classes per video", "split       2 folds, seed 0"]
    assert lines[:3] == shared
    table = [line.split("  ") for line in lines[-3:]]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in table]
    assert cells[0] == ["run", "head", "score", "difference"]
    assert cells[1] == [
        str(two),
        "bidirectional GRU 128, attention pool",
        "0.750 [0.650, 0.850]",
        "+0.150 [0.050, 0.250]",
    ]
    assert cells[2][1:] == ["LSTM 128, last state", "0.625 [0.525, 0.725]", "+0.025 [-0.075, 0.125]"]
    assert "baseline    0.600 mean" in lines


def test_a_narrow_terminal_gets_a_block_per_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_of = tuple(finished(tmp_path / name, score) for name, score in (("one", 0.625), ("two", 0.75)))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "1000")
    assert run(CompareConfig(runs_of)) == 0
    wide = capsys.readouterr().out.splitlines()
    assert wide[-3].split()[:2] == ["run", "score"]
    monkeypatch.setenv("COLUMNS", "60")
    assert run(CompareConfig(runs_of)) == 0
    narrow = capsys.readouterr().out.splitlines()
    blocks = "\n".join(narrow[narrow.index("") + 1 :]).split("\n\n")
    assert [block.splitlines()[0].split() for block in blocks] == [["run", str(runs_of[1])], ["run", str(runs_of[0])]]
    assert [block.splitlines()[1] for block in blocks] == [
        "score       0.750 [0.650, 0.850]",
        "score       0.625 [0.525, 0.725]",
    ]


def test_smaller_errors_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"kind": "value", "per_frame": True, "labels": [], "background": None}
    runs_made = [
        finished(tmp_path / name, score, headline="mae", task=task)
        for name, score in (("worse", 3.0), ("better", 1.5), ("middle", 2.0))
    ]
    assert run(CompareConfig(tuple(runs_made), csv=tmp_path / "c.csv")) == 0
    table = pd.read_csv(tmp_path / "c.csv")
    assert [Path(name).name for name in table["run"]] == ["better", "middle", "worse"]
    assert table["task"].unique().tolist() == ["value per frame"]
    assert "every step" in capsys.readouterr().out


def test_folds_of_other_names_but_the_same_videos_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, turned = finished(tmp_path / "one", 0.7), finished(tmp_path / "turned", 0.8, shift=3)
    assert run(CompareConfig((one, turned))) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_other_splits_and_other_tasks_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = finished(tmp_path / "one", 0.7), finished(tmp_path / "other", 0.8, shift=1)
    task = {"kind": "class", "per_frame": False, "labels": ["run", "walk", "swim"], "background": None}
    strange = finished(tmp_path / "strange", 0.9, task=task)
    assert run(CompareConfig((one, other, strange), json=tmp_path / "c.json", csv=tmp_path / "c.csv")) == 0
    out = capsys.readouterr().out
    assert f"WARNING: {other} and {one} were split differently (0 of 6 videos are tested in the same fold)" in out
    assert f"WARNING: {strange} predicts 3 classes per video (accuracy), {one} 2 classes per video" in out
    content = json.loads((tmp_path / "c.json").read_text())
    assert len(content["warnings"]) == 2
    assert [Path(row["run"]).name for row in content["runs"]] == ["one", "other", "strange"]  # as they were given


def test_a_single_run_and_undefined_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"interval": None, "difference": None, "difference_interval": None, "seeds": [0.6, 0.8], "seeds_sd": 0.14}
    assert run(CompareConfig((finished(tmp_path / "one", 0.7, **changes),))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][:2] == ["run", "bank"], "a line for each thing, not one wide row"
    assert "score       0.700 ± 0.140" in lines
    assert "difference  n/a" in lines
    assert not any("[" in line for line in lines)


def test_what_trained_besides_the_head_and_over_how_many_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = {"seconds": 12.0, "frames_embedded": 1200, "frames_trained": 0}
    frozen = finished(tmp_path / "frozen", 0.7, cost=cost)
    tuned = finished(tmp_path / "tuned", 0.8, cost=cost | {"frames_trained": 36000})
    config = json.loads((tuned / "config.json").read_text())
    config["config"]["finetune"] = {"data": "/videos", "unfreeze": "features.12", "precision": "fp32"}
    write_json(tuned / "config.json", config)
    old = finished(tmp_path / "old", 0.6)
    assert run(CompareConfig((frozen, tuned, old), csv=tmp_path / "c.csv")) == 0
    table = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[-4:]]
    assert table[0] == ["run", "backbone", "score", "difference", "frames"]
    shown = {Path(line[0]).name: (line[1], line[-1]) for line in table[1:]}
    assert shown == {
        "tuned": ("features.12 trained", "1,200 embedded, 36,000 trained"),
        "frozen": ("frozen", "1,200 embedded"),
        "old": ("frozen", "n/a"),
    }
    kept = pd.read_csv(tmp_path / "c.csv").set_index(pd.Index(["tuned", "frozen", "old"]))
    assert kept["frames_embedded"].tolist()[:2] == [1200, 1200]
    assert kept["frames_trained"].tolist()[:2] == [36000, 0]
    assert kept.loc["old", ["frames_embedded", "frames_trained"]].isna().all()


def test_what_the_heads_share_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads = {name: HeadConfig(cell=name, centre=True, norm="batch") for name in ("lstm", "gru")}
    folders = [finished(tmp_path / name, 0.7, head=head) for name, head in heads.items()]
    deeper = finished(tmp_path / "deeper", 0.6, head=replace(heads["lstm"], mlp=(8,)))
    assert run(CompareConfig(tuple(folders))) == 0
    out = capsys.readouterr().out
    assert "head        centred, …, last state, batch norm\n" in out
    assert re.search(r"lstm +LSTM 128  ", out, re.MULTILINE)
    assert run(CompareConfig((folders[0], deeper))) == 0
    out = capsys.readouterr().out
    assert "head        centred, LSTM 128, last state, batch norm, …\n" in out
    assert re.search(r"lstm +- +0\.700", out)
    assert re.search(r"deeper +MLP 8 +0\.600", out)


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", 0.7)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no run"):
        run(CompareConfig((one, tmp_path / "empty")))
    (one / "results.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        run(CompareConfig((one,)))


def test_runs_of_the_same_score_each_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = finished(tmp_path / "one", 0.75, head=HeadConfig(layers=1))
    two = finished(tmp_path / "two", 0.75, head=HeadConfig(layers=2))
    assert run(CompareConfig((one, two))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("score ") for line in lines)
    assert sum("0.750 [0.650, 0.850]" in line and "+0.150" in line for line in lines) == 2
