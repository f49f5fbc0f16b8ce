"""The run folder: begun, gone on with, refused."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline import runs
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.writing import write_json
from tests.banks import bank_of, fill

CONFIG = {"hidden": 8, "head": {"cell": "lstm"}}
DATA = {"banks": [{"path": "/a.h5", "fingerprint": "f"}], "files": {}}


def test_begun_gone_on_and_finished(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    assert runs.begin(out, CONFIG, DATA) == runs.NEW
    assert runs.begin(out, {"hidden": 9}, DATA) == runs.NEW, "nothing came of it yet, so another may begin"
    assert runs.begin(out, CONFIG, DATA) == runs.NEW
    (out / "folds" / "1").mkdir(parents=True)
    (out / "folds" / "1" / "checkpoint-0.pt").touch()
    assert runs.begin(out, CONFIG, DATA) == runs.UNFINISHED
    with pytest.raises(UserError, match="has not finished"):
        runs.read_results(out)
    write_json(out / "results.json", dict.fromkeys(runs.RESULTS, 1))
    assert runs.begin(out, CONFIG, DATA) == runs.UNFINISHED  # without its model; the same command makes that again
    for name in runs.MADE[:2]:
        (out / name).touch()
    assert runs.begin(out, CONFIG, DATA) == runs.FINISHED
    assert runs.read_results(out)["score"] == 1
    assert runs.read_config(out)["config"] == CONFIG
    assert {"framebank", "torch", "python"} <= runs.read_config(out)["versions"].keys()


def test_another_run_is_refused_with_both_values(tmp_path: Path) -> None:
    runs.begin(tmp_path / "run", CONFIG, DATA)
    (tmp_path / "run" / "metrics.csv").touch()
    with pytest.raises(UserError, match=r"head.cell is lstm \(that run\) and gru \(now\)"):
        runs.begin(tmp_path / "run", {**CONFIG, "head": {"cell": "gru"}}, DATA)
    with pytest.raises(UserError, match="other data"):
        runs.begin(tmp_path / "run", CONFIG, {**DATA, "files": {"targets": "0"}})


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert runs.begin(tmp_path / "empty", CONFIG, DATA) == runs.NEW
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is no run"):
        runs.begin(tmp_path / "file", CONFIG, DATA)
    for what in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=r"is no run: it has no config\.json"):
            runs.read_config(what)
    (tmp_path / "config.json").write_text('{"format": "something"}')
    with pytest.raises(UserError, match="not of this version"):
        runs.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        runs.read_config(tmp_path)


def test_data_is_known_by_its_content(tmp_path: Path) -> None:
    fill(tmp_path / "bank.h5", {"a/1": 3, "b/1": 4})
    (tmp_path / "labels.csv").write_text("id,label\na/1,x\n")

    def identity() -> dict[str, object]:
        with Bank(tmp_path / "bank.h5") as bank:
            return runs.data_identity([bank], {"targets": tmp_path / "labels.csv", "segments": None})

    before = identity()
    assert before == identity()
    (tmp_path / "labels.csv").write_text("id,label\na/1,y\n")
    changed = identity()
    assert changed["files"] != before["files"]
    assert changed["banks"] == before["banks"]
    fill(tmp_path / "bank.h5", {"c/1": 3})
    assert identity()["banks"] != before["banks"]


def test_folders_of_folds_and_tables_of_seeds(tmp_path: Path) -> None:
    assert runs.fold_folder(tmp_path, 0, "3") == tmp_path / "folds" / "3"
    assert runs.fold_folder(tmp_path, 2, "3") == tmp_path / "folds" / "3-seed2"
    assert runs.seed_file(tmp_path, "frames", 0) == tmp_path / "frames.csv"
    assert runs.seed_file(tmp_path, "frames", 2) == tmp_path / "frames-seed2.csv"


def test_when_a_video_was_banked_does_not_matter(tmp_path: Path) -> None:
    videos = {"a/1": np.ones((3, 2)), "b/1": np.zeros((3, 2))}
    moved = {video: {"source": f"/elsewhere/{video}.mp4", "mtime": 3} for video in videos}
    paths = [bank_of(tmp_path / "one.h5", videos), bank_of(tmp_path / "other.h5", videos, moved)]
    described = []
    for path in paths:
        with Bank(path) as bank:
            (made,) = runs.data_identity([bank], {})["banks"]
            assert made.pop("path") == str(path)
            described.append(made)
    assert described[0] == described[1]


@pytest.mark.parametrize("content", ["[1, 2]", "null", "{}", "5", ""])
@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_damaged_files_of_a_run(name: str, content: str, tmp_path: Path) -> None:
    runs.begin(tmp_path / "run", CONFIG, DATA)
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} (is damaged|cannot be read)"):
        runs.read_results(tmp_path / "run")


def test_only_label_files_of_a_folder_are_read(tmp_path: Path) -> None:
    fill(tmp_path / "bank.h5", {"a/1": 3})
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("x\n")
    with Bank(tmp_path / "bank.h5") as bank:
        before = runs.data_identity([bank], {"segments": tmp_path / "labels"})
        os.mkfifo(tmp_path / "labels" / "pipe.csv")  # whoever reads it waits for ever
        (tmp_path / "labels" / "a.mp4").write_bytes(b"a long video")
        assert runs.data_identity([bank], {"segments": tmp_path / "labels"}) == before
