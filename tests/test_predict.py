"""New videos through the backbone and a head: the same as from the bank, or a refusal that says why."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from pipeline.backbone import load_backbone
from pipeline.bank import Bank
from pipeline.bundles import Bundle, Member, described, save_bundle, score_bundle
from pipeline.errors import UserError
from pipeline.frames import Frame, read_frames
from pipeline.heads import Head, HeadConfig
from pipeline.objectives import Objective
from pipeline.predictions import decide_steps
from pipeline.sampling import Sampling
from pipeline.segments import clocks
from pipeline.selection import Selection
from pipeline.sequences import load_sequences
from pipeline.standardisation import statistics
from pipeline.targets import from_segments
from stages.extract import ExtractConfig
from stages.extract import run as extract
from stages.predict import PredictConfig, run
from tests.clips import make_clip

LABELS = ("left", "right", "up")
BACKBONE: dict[str, Any] = {"backbone": "squeezenet1_1", "weights": "random", "image_size": 48, "precision": "fp32"}

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of four clips, one that begins late among them, and a bank of them by `framebank extract`."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(3):
        make_clip(folder / "data" / f"clip{number}.mp4", frames=5 + 3 * number)
    make_clip(folder / "data" / "late.mkv", pts=[0.5 + 0.1 * step for step in range(7)], frames=7, codec="mpeg4")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert extract(ExtractConfig(data=folder / "data", out=folder / "bank.h5", quiet=True, **BACKBONE)) == 0
    torch.set_num_threads(threads)
    return folder / "data", folder / "bank.h5"


def bundle_of(*banks: Path, side_by_side: bool = False, min_seconds: float = 0.0, **settings: Any) -> Bundle:
    """An untrained bundle that reads banks; `settings` are of its objective."""
    objective = Objective(**{"kind": "class", **settings})
    config = HeadConfig(hidden=6, steps=objective.steps)
    labels = () if objective.kind == "value" else LABELS
    torch.manual_seed(3)
    opened = [Bank(path) for path in banks]
    joined = [opened] if side_by_side else [[bank] for bank in opened]
    members = []
    for each in joined:
        sequences = load_sequences(each)
        prepared = statistics(sequences, np.arange(len(sequences)))
        head = Head(config, sequences.feature_shape, len(labels) or 1, prepared)
        for parameter in head.parameters():  # predictions that differ from frame to frame
            parameter.data.mul_(4)
        members.append(Member(head.eval(), tuple(described(bank) for bank in each)))
    fusion = "mean" if len(members) > 1 else "none"
    return Bundle(
        tuple(members),
        objective.kind,
        objective.per_frame,
        labels,
        objective,
        Selection(),
        fusion=fusion,
        min_seconds=min_seconds,
        trained_on={},
    )


def saved(folder: Path, bundle: Bundle) -> Path:
    save_bundle(folder, bundle)
    return folder


def from_bank(bundle: Bundle, *banks: Path) -> tuple[list[str], Any]:
    """What the bundle makes of the banks themselves."""
    sequences = [load_sequences([Bank(path)]) for path in banks]
    return list(sequences[0].ids), score_bundle(bundle, sequences, np.arange(len(sequences[0])))


def test_the_same_as_from_the_bank(made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, bank = made
    bundle = bundle_of(bank)
    ids, wanted = from_bank(bundle, bank)
    run_folder = saved(tmp_path / "run", bundle)
    asked = PredictConfig(run_folder, (data,), csv=tmp_path / "p.csv", json=tmp_path / "p.json", device="cpu")
    assert run(asked) == 0
    table = pd.read_csv(tmp_path / "p.csv")
    assert list(table.columns) == ["id", "predicted", "p_left", "p_right", "p_up"]
    assert table["id"].tolist() == ids == ["clip0", "clip1", "clip2", "late"]
    np.testing.assert_allclose(table.iloc[:, 2:], wanted, atol=1e-6)
    assert table["predicted"].tolist() == [LABELS[place] for place in wanted.argmax(1)]
    assert len(np.unique(wanted.round(3))) > 3, "the head must tell the videos apart, or nothing was tested"
    videos = json.loads((tmp_path / "p.json").read_text())["videos"]
    assert [video["id"] for video in videos] == ids
    assert videos[3]["path"] == str(data / "late.mkv")
    assert videos[1]["probability"]["up"] == pytest.approx(wanted[1, 2], abs=1e-6)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:-1] == [
        f"{video:<5}  {LABELS[row.argmax()]} {row.max():.3f}" for video, row in zip(ids, wanted, strict=True)
    ]
    assert lines[-1] == f"Written     {tmp_path / 'p.csv'}, {tmp_path / 'p.json'}"


def test_frames_and_segments_of_a_head_that_predicts_every_frame(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    bundle = bundle_of(bank, per_frame=True)
    _, wanted = from_bank(bundle, bank)
    asked = PredictConfig(
        saved(tmp_path / "run", bundle),
        (data,),
        csv=tmp_path / "p.csv",
        frames=tmp_path / "f.csv",
        segments=tmp_path / "s.csv",
        device="cpu",
    )
    assert run(asked) == 0
    frames = pd.read_csv(tmp_path / "f.csv")
    np.testing.assert_allclose(frames[["p_left", "p_right", "p_up"]], np.concatenate(wanted), atol=1e-6)
    late = frames[frames["id"] == "late"]
    assert late["seconds"].tolist() == pytest.approx([0.1 * step for step in range(7)])  # from its first frame on
    assert late["frame"].tolist() == list(range(7))
    assert frames["predicted"].nunique() > 1
    table = pd.read_csv(tmp_path / "p.csv").set_index("id")
    assert table.loc["clip2", "p_up"] == pytest.approx(wanted[2][:, 2].mean(), abs=1e-6)
    assert table.loc["clip2", "predicted"] == frames[frames["id"] == "clip2"]["predicted"].mode()[0]
    # the segments, read as training reads them, are the predictions again
    with Bank(bank) as opened:
        again = from_segments(tmp_path / "s.csv", clocks(opened))
    said = [again.labels[code] for video in sorted(again.values) for code in again.values[video]]
    assert said == frames["predicted"].tolist()


def test_short_segments_are_smoothed_away(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    rough = PredictConfig(
        saved(tmp_path / "rough", bundle_of(bank, per_frame=True)), (data,), segments=tmp_path / "r.csv", device="cpu"
    )
    smooth = PredictConfig(
        saved(tmp_path / "smooth", bundle_of(bank, per_frame=True, min_seconds=0.35)),
        (data,),
        segments=tmp_path / "s.csv",
        device="cpu",
    )
    assert (run(rough), run(smooth)) == (0, 0)
    before, after = pd.read_csv(tmp_path / "r.csv"), pd.read_csv(tmp_path / "s.csv")
    assert (before["end"] - before["start"]).min() < 0.35
    alone = after.groupby("id")["id"].transform("size") == 1
    assert ((after["end"] - after["start"] >= 0.35 - 1e-6) | alone).all()
    assert len(after) < len(before)
    asked = PredictConfig(tmp_path / "rough", (data,), segments=tmp_path / "a.csv", min_seconds=0.35, device="cpu")
    assert run(asked) == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "s.csv").read_text(), "as if trained with it"


def test_smoothing_what_has_no_segments_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    config = PredictConfig(saved(tmp_path / "run", bundle_of(bank)), (data,), min_seconds=1, device="cpu")
    with pytest.raises(UserError, match="no segments that --min-seconds could smooth"):
        run(config)


def test_several_labels_are_smoothed_each_by_itself(made: tuple[Path, Path]) -> None:
    bundle = bundle_of(made[1], kind="multilabel", per_frame=True, min_seconds=0.2)
    held = np.array([[0.9, 0.1, 0], [0.9, 0.9, 0], [0.1, 0.9, 0], [0.9, 0.9, 0]])
    seconds = np.arange(4) / 10
    assert decide_steps(bundle, held, seconds).tolist() == [[1, 1, 0]] * 4
    timeless = np.full(4, np.nan)  # nobody knows how long anything lasts
    assert decide_steps(bundle, held, timeless).tolist() == (held > 0.5).astype(int).tolist()


def test_frames_of_a_head_supervised_at_every_step(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    bundle = bundle_of(bank, supervise="every-step", read="mean")
    run_folder = saved(tmp_path / "run", bundle)
    asked = PredictConfig(run_folder, (data,), csv=tmp_path / "p.csv", frames=tmp_path / "f.csv", device="cpu")
    assert run(asked) == 0
    means = pd.read_csv(tmp_path / "f.csv").groupby("id")[["p_left", "p_right", "p_up"]].mean()
    np.testing.assert_allclose(pd.read_csv(tmp_path / "p.csv").iloc[:, 2:], means, atol=1e-6)
    with pytest.raises(UserError, match=r"one label per video, .* leave --segments out"):
        run(PredictConfig(run_folder, (data,), segments=tmp_path / "s.csv"))


@pytest.mark.parametrize(("kind", "columns"), [("value", 2), ("multilabel", 5)])
def test_values_and_several_labels(kind: str, columns: int, made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    bundle = bundle_of(bank, kind=kind)
    _, wanted = from_bank(bundle, bank)
    asked = PredictConfig(saved(tmp_path / "run", bundle), (data,), csv=tmp_path / "p.csv", device="cpu")
    assert run(asked) == 0
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    assert len(table.columns) == columns
    if kind == "value":
        np.testing.assert_allclose(table["predicted"], wanted[:, 0], atol=1e-6)
    else:
        chosen = ["|".join(label for label, p in zip(LABELS, row, strict=True) if p >= 0.5) for row in wanted]
        assert table["predicted"].tolist() == chosen


def test_a_broken_video_is_told_and_the_others_are_predicted(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, bank = made
    (tmp_path / "bad.mp4").write_bytes(b"")
    run_folder = saved(tmp_path / "run", bundle_of(bank))
    videos = (data / "clip0.mp4", tmp_path / "bad.mp4")
    asked = PredictConfig(run_folder, videos, csv=tmp_path / "p.csv", json=tmp_path / "p.json", device="cpu")
    assert run(asked) == 3
    assert "bad: not predicted, empty file (0 bytes)" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "p.csv")["id"].tolist() == ["clip0"]
    assert json.loads((tmp_path / "p.json").read_text())["failed"] == [{"id": "bad", "reason": "empty file (0 bytes)"}]
    only_bad = PredictConfig(run_folder, (tmp_path / "bad.mp4",), csv=tmp_path / "n.csv", device="cpu", quiet=True)
    assert run(only_bad) == 3
    assert capsys.readouterr().err == "1 video could not be read\n"
    assert not (tmp_path / "n.csv").exists()


def test_files_of_one_name_are_told_apart_and_one_named_twice_counts_once(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    data, bank = made
    shutil.copytree(data, tmp_path / "copy")
    make_clip(tmp_path / "copy" / "clip0.mp4", frames=20)
    videos = (data / "clip0.mp4", tmp_path / "copy" / "clip0.mp4", data / "clip1.mp4", data / "clip0.mp4")
    asked = PredictConfig(saved(tmp_path / "run", bundle_of(bank)), videos, json=tmp_path / "p.json", device="cpu")
    assert run(asked) == 0
    said = json.loads((tmp_path / "p.json").read_text())["videos"]
    assert sorted(video["path"] for video in said) == sorted({str(path) for path in videos})
    assert len({video["id"] for video in said}) == 3


def test_a_table_is_never_written_over_a_video(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    shutil.copytree(data, tmp_path / "copy")
    before = (tmp_path / "copy" / "clip0.mp4").read_bytes()
    asked = PredictConfig(saved(tmp_path / "run", bundle_of(bank)), (tmp_path / "copy",), device="cpu")
    with pytest.raises(UserError, match="over what is read"):
        run(replace(asked, csv=tmp_path / "copy" / "clip0.mp4"))
    with pytest.raises(UserError, match="one file"):
        run(replace(asked, csv=tmp_path / "p", json=tmp_path / "p"))
    assert (tmp_path / "copy" / "clip0.mp4").read_bytes() == before


def test_two_videos_under_one_id_are_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    for number in range(2):
        (tmp_path / f"{number}.csv").write_text(f"id,path\nsame,{data / f'clip{number}.mp4'}\n")
    asked = PredictConfig(saved(tmp_path / "run", bundle_of(bank)), (tmp_path / "0.csv", tmp_path / "1.csv"))
    with pytest.raises(UserError, match=r"'same' is the id of two videos.*predict them in turn"):
        run(asked)


def test_frames_are_sampled_as_in_the_bank(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = made
    bank = tmp_path / "sparse.h5"
    assert extract(ExtractConfig(data=data, out=bank, sampling=Sampling(stride=3), quiet=True, **BACKBONE)) == 0
    bundle = bundle_of(bank, per_frame=True)
    asked = PredictConfig(saved(tmp_path / "run", bundle), (data,), frames=tmp_path / "f.csv", device="cpu")
    assert run(asked) == 0
    frames = pd.read_csv(tmp_path / "f.csv")
    assert frames[frames["id"] == "clip2"]["frame"].tolist() == [0, 3, 6, 9]


def test_heads_on_two_backbones(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    other = tmp_path / "other.h5"
    assert extract(ExtractConfig(data=data, out=other, seed=7, quiet=True, **BACKBONE)) == 0
    bundle = bundle_of(bank, other)
    _, wanted = from_bank(bundle, bank, other)
    asked = PredictConfig(saved(tmp_path / "run", bundle), (data,), csv=tmp_path / "p.csv", device="cpu")
    assert run(asked) == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "p.csv").iloc[:, 2:], wanted, atol=1e-6)
    joined = bundle_of(bank, other, side_by_side=True)
    sequences = load_sequences([Bank(bank), Bank(other)])
    wanted = score_bundle(joined, [sequences], np.arange(4))
    asked = PredictConfig(saved(tmp_path / "joined", joined), (data,), csv=tmp_path / "p.csv", device="cpu")
    assert run(asked) == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "p.csv").iloc[:, 2:], wanted, atol=1e-6)


def test_heads_that_take_different_frames(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    other = tmp_path / "other.h5"
    assert extract(ExtractConfig(data=data, out=other, sampling=Sampling(stride=2), quiet=True, **BACKBONE)) == 0
    bundle = bundle_of(bank, other, supervise="every-step", read="mean")
    _, wanted = from_bank(bundle, bank, other)
    run_folder = saved(tmp_path / "run", bundle)
    assert run(PredictConfig(run_folder, (data,), csv=tmp_path / "p.csv", device="cpu")) == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "p.csv").iloc[:, 2:], wanted, atol=1e-6)
    with pytest.raises(UserError, match="leave out --frames"):
        run(PredictConfig(run_folder, (data,), frames=tmp_path / "f.csv", device="cpu"))
    run_folder = saved(tmp_path / "steps", bundle_of(bank, other, per_frame=True))
    with pytest.raises(UserError, match="different frames of 4 of 4 videos"):
        run(PredictConfig(run_folder, (data,), device="cpu"))


def test_one_video_cannot_be_both_of_two_banks_made_alike(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    run_folder = saved(tmp_path / "run", bundle_of(bank, bank))
    with pytest.raises(UserError, match="made alike, of different files"):
        run(PredictConfig(run_folder, (data,), device="cpu"))


def test_weights_of_a_file_must_be_given_and_be_the_same(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = made
    files = []
    for seed in range(2):
        module = load_backbone("squeezenet1_1", weights="random", seed=seed).module
        state = {name.removeprefix("net."): tensor for name, tensor in module.state_dict().items()}
        files.append(str(tmp_path / f"mine{seed}.safetensors"))
        save_file(state, files[-1])
    bank = tmp_path / "mine.h5"
    assert extract(ExtractConfig(data=data, out=bank, quiet=True, **{**BACKBONE, "weights": files[0]})) == 0
    run_folder = saved(tmp_path / "run", bundle_of(bank))
    with pytest.raises(UserError, match=r"was made with mine0.safetensors .*give that file by --weights FILE"):
        run(PredictConfig(run_folder, (data,), device="cpu"))
    with Bank(bank) as opened:
        trained = opened.config["recipe"]["weights_sha256"]
    loaded = load_backbone("squeezenet1_1", weights=files[1]).sha256
    with pytest.raises(UserError, match=f"weights_sha256 is {trained} .* and {loaded}"):
        run(PredictConfig(run_folder, (data,), weights=(files[1],), device="cpu"))
    assert run(PredictConfig(run_folder, (data,), weights=(files[0],), device="cpu", quiet=True)) == 0


def test_weights_too_many_are_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    run_folder = saved(tmp_path / "run", bundle_of(bank))
    with pytest.raises(UserError, match=r"found by their name: give --weights no times, not 2"):
        run(PredictConfig(run_folder, (data,), weights=("a.pth", "b.pth"), device="cpu"))


def test_another_precision_is_only_remarked_on(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, bank = made
    asked = PredictConfig(saved(tmp_path / "run", bundle_of(bank)), (data,), precision="bf16", device="cpu")
    assert run(asked) == 0
    assert "precision is fp32" in capsys.readouterr().out


def test_what_the_head_cannot_give_is_refused_before_any_work(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, bank = made
    monkeypatch.setattr("pipeline.alike.load_backbone", lambda *_, **__: pytest.fail("began to work"))
    run_folder = saved(tmp_path / "run", bundle_of(bank))
    for wrong, message in (
        ({"frames": tmp_path / "f.csv"}, "predicts whole videos, not frames"),
        ({"csv": tmp_path / "nowhere" / "p.csv"}, "its folder is not a folder"),
        ({"json": tmp_path}, "it is a folder"),
    ):
        with pytest.raises(UserError, match=message):
            run(PredictConfig(run_folder, (data,), **wrong))
    with pytest.raises(UserError, match="holds no finished model"):
        run(PredictConfig(tmp_path / "nothing", (data,)))


def test_files_that_trained_the_head_are_remarked_on(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, bank = made
    with Bank(bank) as opened:
        digests = dict(zip(opened.catalog["id"], opened.catalog["digest"], strict=True))
    bundle = replace(bundle_of(bank), trained_on={"under/another/name": digests["clip1"]})
    assert run(PredictConfig(saved(tmp_path / "run", bundle), (data,), device="cpu")) == 0
    assert "the head was trained on 1 of these, e.g. clip1" in capsys.readouterr().out


def test_an_interrupted_prediction_writes_nothing(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, bank = made

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Frame]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)  # until the main thread has noticed
        yield from read_frames(*arguments, **options)

    monkeypatch.setattr("pipeline.rows.read_frames", interrupted)
    only = (data / "clip0.mp4",)  # a second signal would stop it at once
    asked = PredictConfig(saved(tmp_path / "run", bundle_of(bank)), only, csv=tmp_path / "p.csv", device="cpu")
    assert run(asked) == 130
    assert "Interrupted; nothing was predicted." in capsys.readouterr().out
    assert not (tmp_path / "p.csv").exists()
