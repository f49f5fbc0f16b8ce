"""A finished run scored again: the same as it wrote down, or a difference that is told; and on other banks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import bank as banks
from pipeline.bank import Bank
from pipeline.bundles import load_bundle, score_bundle
from pipeline.errors import UserError
from pipeline.heads import HeadConfig
from pipeline.rescoring import in_terms_of
from pipeline.sealing import PartWriter
from pipeline.segments import IGNORED
from pipeline.sequences import load_sequences
from pipeline.targets import Targets
from stages.evaluate import EvaluateConfig, run
from stages.train_head import TrainHeadConfig
from stages.train_head import run as train
from tests.banks import config, embeddings, row

pytestmark = pytest.mark.usefixtures("one_torch_thread")
ROWS = 6


def fill(path: Path, names: list[str], *, digests: dict[str, str] | None = None, **columns: Any) -> Path:
    """A bank of videos `class/name`, whose class shifts their features; each has a digest of its own."""
    settings = {name: columns.pop(name) for name in ("feature_shape", "layer") if name in columns}
    made = config(**settings)
    shape = tuple(made["recipe"]["feature_shape"])
    banks.create(path, made)
    writer = PartWriter(path, made, lambda *_: None)
    for name in names:
        known = {key: value(name) if callable(value) else value for key, value in columns.items()}
        sink = writer.open(row(name, digest=(digests or {}).get(name, f"sha of {name}"), **known))
        shift = 0.4 * (name.split("/")[0] == "walk")
        sink.append(embeddings(name, ROWS, shape) + shift, np.arange(ROWS) / 10, np.arange(ROWS))
        sink.finish({"frames_decoded": ROWS, "duration": ROWS / 10, "start_time": 0.0, "fps": 10.0})
    writer.seal()
    return path


def names_of(first: int, last: int) -> list[str]:
    return [f"{label}/clip{number:02}" for label in ("run", "walk") for number in range(first, last)]


def trained(folder: Path, bank: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"folds": 2, "head": HeadConfig(hidden=4), "epochs": 2, **changes}
    train(TrainHeadConfig(banks=(bank,), out=folder / "run", device="cpu", quiet=True, **settings))
    return folder / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two folds and two seeds, and its bank."""
    folder = tmp_path_factory.mktemp("finished")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    bank = fill(folder / "bank.h5", names_of(0, 10), group=lambda name: name[-2])
    made = trained(folder, bank, seeds=2, group_column="none", validation_share=0.2)
    torch.set_num_threads(threads)
    return made, bank


@pytest.fixture
def copied(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    """The run's folder, to be tampered with."""
    return shutil.copytree(finished[0], tmp_path / "run")


def test_the_held_out_videos_get_the_same_scores_again(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = finished
    assert run(EvaluateConfig(made, json=tmp_path / "e.json", device="cpu")) == 0
    said, wrote = json.loads((tmp_path / "e.json").read_text()), json.loads((made / "results.json").read_text())
    assert said["largest_difference"] < 1e-6
    assert said["changed_predictions"] == 0
    assert said["videos"] == 20
    for name in ("metrics", "per_class"):
        assert said[name] == pytest.approx(wrote[name]) if name == "metrics" else said[name] == wrote[name]
    out = capsys.readouterr().out
    assert "the first of 2 seeds" in out
    assert f"accuracy           {said['score']:.3f}  [" in out
    assert "0 predictions changed, all seeds" in out


@pytest.mark.parametrize("file", ["predictions.csv", "predictions-seed1.csv"])
def test_other_scores_than_those_written_down_are_told(
    file: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(copied / file)
    table.loc[3, "p_run"] += 0.02
    table.loc[3, "predicted"] = {"run": "walk", "walk": "run"}[table.loc[3, "predicted"]]
    table.to_csv(copied / file, index=False)
    assert run(EvaluateConfig(copied, device="cpu")) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("DIFFERENT"))
    assert "1 prediction changed" in line


def test_a_row_that_is_missing_is_a_difference(copied: Path) -> None:
    pd.read_csv(copied / "predictions.csv").iloc[1:].to_csv(copied / "predictions.csv", index=False)
    assert run(EvaluateConfig(copied, device="cpu", quiet=True)) == 1


def test_all_parts_of_the_folds(finished: tuple[Path, Path], tmp_path: Path) -> None:
    made, bank = finished
    assert run(EvaluateConfig(made, split="all", json=tmp_path / "e.json", device="cpu", quiet=True)) == 0
    parts = json.loads((tmp_path / "e.json").read_text())["parts"]
    splits = pd.read_csv(made / "splits.csv", dtype=str)
    with Bank(bank) as opened:
        sequences = load_sequences([opened])
    for part in ("train", "validation", "test"):
        right = []
        for fold in ("1", "2"):
            ids = splits.loc[(splits["fold"] == fold) & (splits["part"] == part), "id"]
            places = np.array([sequences.ids.index(video) for video in ids])
            said = np.asarray(score_bundle(load_bundle(made / "folds" / fold), [sequences], places)).argmax(1)
            right += [("run", "walk")[code] == video.split("/")[0] for code, video in zip(said, ids, strict=True)]
        assert parts[part]["accuracy"] == pytest.approx(np.mean(right))


def test_a_bank_that_moved_is_asked_for_and_known_again(
    finished: tuple[Path, Path], copied: Path, tmp_path: Path
) -> None:
    _, bank = finished
    text = (copied / "config.json").read_text()
    (copied / "config.json").write_text(text.replace(str(bank), str(tmp_path / "gone.h5")))
    with pytest.raises(UserError, match=r"gone.h5, which is not there any more; .*evaluate .*run BANK"):
        run(EvaluateConfig(copied))
    moved = Path(shutil.copy(bank, tmp_path / "moved.h5"))
    shutil.copytree(bank.with_name("bank.h5.parts"), tmp_path / "moved.h5.parts")
    assert run(EvaluateConfig(copied, (moved,), device="cpu", quiet=True)) == 0
    with pytest.raises(UserError, match="keep their own targets"):
        run(EvaluateConfig(copied, (moved,), target="group"))


def test_videos_of_another_bank_without_those_it_was_trained_on(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = finished
    new = names_of(10, 14)
    known = ["run/clip00", "walk/clip03"]
    renamed = {"walk/under_another_name": "sha of walk/clip04"}
    bank = fill(tmp_path / "new.h5", [*new, *known, *renamed], digests=renamed)
    assert run(EvaluateConfig(made, (bank,), json=tmp_path / "e.json", device="cpu")) == 0
    assert "videos that the head was trained on, left out: 3" in capsys.readouterr().out
    said = json.loads((tmp_path / "e.json").read_text())
    assert (said["videos"], said["left_out"]) == (8, 3)
    with Bank(bank) as opened:
        sequences = load_sequences([opened], new)
    bundle = load_bundle(made)
    chosen = np.asarray(score_bundle(bundle, [sequences], np.arange(len(new)))).argmax(1)
    right = [bundle.labels[code] == video.split("/")[0] for code, video in zip(chosen, sequences.ids, strict=True)]
    assert said["score"] == pytest.approx(np.mean(right))
    assert said["interval"][0] <= said["score"] <= said["interval"][1]


def test_the_same_id_with_other_content_is_another_video(finished: tuple[Path, Path], tmp_path: Path) -> None:
    made, _ = finished
    new = ["run/clip00", "walk/clip00"]
    bank = fill(tmp_path / "new.h5", new, digests=dict.fromkeys(new, "another"))
    assert run(EvaluateConfig(made, (bank,), json=tmp_path / "e.json", device="cpu", quiet=True)) == 0
    assert json.loads((tmp_path / "e.json").read_text())["left_out"] == 0


def test_nothing_but_training_videos_is_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    made, _ = finished
    bank = fill(tmp_path / "same.h5", names_of(0, 3))
    with pytest.raises(UserError, match=r"was trained on all 6 videos of .*same.h5"):
        run(EvaluateConfig(made, (bank,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_shape": [5]}, r"feature_shape is \[8\] \(the head's bank\) and \[5\] \(.*other.h5\)"),
        ({"layer": "features.3"}, r"layer is features.12.cat:mean \(.*\) and features.3 \("),
    ],
)
def test_other_embeddings_are_refused_with_both_values(
    changes: dict[str, Any], message: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    bank = fill(tmp_path / "other.h5", names_of(0, 2), **changes)
    with pytest.raises(UserError, match=message):
        run(EvaluateConfig(finished[0], (bank,)))


def test_the_number_of_banks_must_be_that_of_the_head(finished: tuple[Path, Path]) -> None:
    made, bank = finished
    with pytest.raises(UserError, match=r"reads 1 bank.* and 2 were given"):
        run(EvaluateConfig(made, (bank, bank)))


def test_labels_that_the_head_does_not_know(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = finished
    bank = fill(tmp_path / "new.h5", [*names_of(10, 12), "swim/clip1"])
    assert run(EvaluateConfig(made, (bank,), json=tmp_path / "e.json", device="cpu")) == 0
    out = capsys.readouterr().out
    assert "labels that the head does not know: 1, e.g. 'swim', videos of them alone left out: 1" in out
    assert json.loads((tmp_path / "e.json").read_text())["videos"] == 4
    bank = fill(tmp_path / "strange.h5", ["swim/clip1", "fly/clip1"])
    with pytest.raises(UserError, match=r"None of the labels \(fly, swim\) .* knows \(run, walk\)"):
        run(EvaluateConfig(made, (bank,)))


def test_targets_in_terms_of_the_head(finished: tuple[Path, Path]) -> None:
    bundle = load_bundle(finished[0])
    frames = np.array([2, IGNORED, 0, 1])
    given = Targets("class", True, ("fly", "run", "walk"), {"a": frames, "b": frames[1:3]}, ())
    said = in_terms_of(replace(bundle, per_frame=True), given)
    assert said.labels == ("run", "walk")
    assert {video: value.tolist() for video, value in said.values.items()} == {"a": [1, IGNORED, IGNORED, 0]}
    assert said.notes == ("labels that the head does not know: 1, e.g. 'fly', videos of them alone left out: 1",)
    several = np.array([[1, 0, 1], [np.nan, np.nan, np.nan]], np.float32)
    given = Targets("multilabel", True, ("fly", "hop", "walk"), {"a": several}, ())
    said = in_terms_of(replace(bundle, kind="multilabel", per_frame=True), given)
    np.testing.assert_array_equal(said.values["a"], [[0, 1], [np.nan, np.nan]])
    with pytest.raises(UserError, match="trained on one class per video, and these targets are several labels per fr"):
        in_terms_of(bundle, given)


def test_the_test_part_of_another_bank(finished: tuple[Path, Path], tmp_path: Path) -> None:
    made, _ = finished
    names = names_of(10, 14)
    bank = fill(tmp_path / "new.h5", names, split=lambda name: "Test" if name.endswith(("10", "11")) else "train")
    asked = {"split": "test", "json": tmp_path / "e.json", "device": "cpu", "quiet": True}
    assert run(EvaluateConfig(made, (bank,), **asked)) == 0
    assert json.loads((tmp_path / "e.json").read_text())["videos"] == 4
    bank = fill(tmp_path / "none.h5", names)
    with pytest.raises(UserError, match=r"No video of .*none.h5 is called test in its column 'split'"):
        run(EvaluateConfig(made, (bank,), **asked))


def test_targets_of_another_bank_from_a_file(finished: tuple[Path, Path], tmp_path: Path) -> None:
    made, _ = finished
    names = names_of(10, 12)
    bank = fill(tmp_path / "new.h5", names, label="")
    lines = [f"{name},{'walk' if name.startswith('run') else 'run'}" for name in names]  # all the other way round
    (tmp_path / "t.csv").write_text("\n".join(["id,label", *lines]))
    asked = {"targets": tmp_path / "t.csv", "json": tmp_path / "e.json", "device": "cpu", "quiet": True}
    assert run(EvaluateConfig(made, (bank,), **asked)) == 0
    turned = json.loads((tmp_path / "e.json").read_text())["score"]
    right = fill(tmp_path / "right.h5", names)
    assert run(EvaluateConfig(made, (right,), json=tmp_path / "e.json", device="cpu", quiet=True)) == 0
    assert turned == pytest.approx(1 - json.loads((tmp_path / "e.json").read_text())["score"])


def test_a_run_with_a_target_per_frame(tmp_path: Path) -> None:
    names = names_of(0, 4)
    bank = fill(tmp_path / "bank.h5", names)
    lines = [f"{name},0,0.3,up\n{name},0.3,0.5,down" for name in names]  # the last frame is nobody's
    (tmp_path / "s.csv").write_text("\n".join(["id,start,end,label", *lines]))
    made = trained(tmp_path, bank, segments=tmp_path / "s.csv")
    assert run(EvaluateConfig(made, json=tmp_path / "e.json", device="cpu", quiet=True)) == 0
    said, wrote = json.loads((tmp_path / "e.json").read_text()), json.loads((made / "results.json").read_text())
    assert said["metrics"] == pytest.approx(wrote["metrics"])
    assert sum(line["support"] for line in said["per_class"]) == 5 * len(names)
    frames = pd.read_csv(made / "frames.csv")
    frames.loc[0, "p_up"] += 0.1
    frames.to_csv(made / "frames.csv", index=False)
    assert run(EvaluateConfig(made, device="cpu", quiet=True)) == 1


def test_a_run_that_has_not_finished(copied: Path, tmp_path: Path) -> None:
    (copied / "results.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        run(EvaluateConfig(copied))
    with pytest.raises(UserError, match="is no run"):
        run(EvaluateConfig(tmp_path))


def test_a_table_that_is_no_table_any_more(copied: Path) -> None:
    (copied / "predictions.csv").write_text("{}")
    with pytest.raises(UserError, match="has no column id"):
        run(EvaluateConfig(copied, device="cpu"))


def test_the_scores_are_not_written_over_the_run(copied: Path) -> None:
    with pytest.raises(UserError, match="over what is read"):
        run(EvaluateConfig(copied, json=copied / "results.json", device="cpu"))
