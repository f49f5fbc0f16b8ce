"""A second bank with times of its own, from training to the labels of new videos, through the commands."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from pipeline.bank import Bank
from tests.banks import bank_of, in_order
from tests.clips import make_clip
from tests.commands import extract, framebank

TRAIN = ("--epochs", 2, "--hidden", 6, "--pca", 4, "--quiet", "--device", "cpu")
BOTH = ("--bank", "bank.h5", "--bank", "slow.h5")
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, a bank of all of their frames and one of four a second, of new clips too, and `run` on both in time."""
    folder = tmp_path_factory.mktemp("modalities")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for number in range(10):
        images = [*np.random.default_rng(number).integers(0, 255, (7 + number % 4, 48, 64, 3), np.uint8)]
        make_clip(folder / "data" / f"class{number % 2}" / f"clip{number}.mp4", images=images)
    make_clip(folder / "new" / "late.mkv", pts=[0.5 + 0.1 * step for step in range(9)], frames=9, codec="mpeg4")
    make_clip(folder / "new" / "plain.mp4", frames=11)
    for data, where in (("data", folder), ("new", folder / "banked")):
        where.mkdir(exist_ok=True)
        assert extract(folder / data, where / "bank.h5").exit_code == 0
        assert extract(folder / data, where / "slow.h5", "--fps", 4).exit_code == 0
    done = framebank("train-head", *banks(folder), "--out", folder / "run", "--resample", "linear", *TRAIN)
    torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    return folder


def banks(folder: Path) -> tuple[Path, Path]:
    return folder / "bank.h5", folder / "slow.h5"


def given(folder: Path) -> tuple[object, ...]:
    """Both banks, as predict takes them."""
    first, second = banks(folder)
    return "--bank", first, "--bank", second


@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_a_head_is_that_of_features_joined_by_hand_to_the_bit(method: str, tmp_path: Path) -> None:
    """Times are eighths and fourths of a second and features whole numbers, so that no arithmetic is rounded."""
    first = {video: np.round(8 * rows) for video, rows in in_order(16).items()}
    fast = {video: np.arange(len(rows)) / 8 for video, rows in first.items()}
    slow = {video: np.arange(len(rows) // 2 + 1) / 4 for video, rows in first.items()}
    second = {
        video: np.random.default_rng(number).integers(-8, 8, (len(times), 3)).astype(np.float32)
        for number, (video, times) in enumerate(slow.items())
    }
    by_hand = {}
    for video, rows in first.items():
        there = slow[video]
        if method == "linear":
            other = np.stack([np.interp(fast[video], there, column) for column in second[video].T], axis=1)
        else:
            other = second[video][[int(np.abs(there - time).argmin()) for time in fast[video]]]
        by_hand[video] = np.hstack([rows, other])
    joined = bank_of(tmp_path / "joined.h5", by_hand, seconds=fast)
    rgb = bank_of(tmp_path / "rgb.h5", first, seconds=fast, store="float16")
    sound = bank_of(tmp_path / "sound.h5", second, seconds=slow, layer="sound", store="float16")
    one = framebank("train-head", joined, "--out", tmp_path / "one", *TRAIN)
    two = framebank("train-head", rgb, sound, "--out", tmp_path / "two", "--resample", method, *TRAIN)
    assert (one.exit_code, two.exit_code) == (0, 0), two.output
    tensors, others = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert tensors.keys() == others.keys()
    assert all(np.array_equal(tensors[name], others[name]) for name in tensors)
    said, other_said = (pd.read_csv(tmp_path / name / "predictions.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(said, other_said)


def test_a_run_keeps_how_and_goes_on_with_it_alone(folder: Path) -> None:
    run = folder / "run"
    wanted = {"method": "linear", "max_gap": None}
    assert json.loads((run / "config.json").read_text())["config"]["resampling"] == wanted
    assert json.loads((run / "model.json").read_text())["resampling"] == wanted
    call = ("train-head", *banks(folder), "--out", run, *TRAIN)
    again = framebank(*call, "--resample", "linear")
    assert again.exit_code == 0, again.output
    for other in (["--resample", "nearest"], ["--resample", "linear", "--max-gap", 1]):
        refused = framebank(*call, *other)
        assert refused.exit_code == 2
        assert "holds another run: resampling." in refused.stderr
    evaluated = framebank("evaluate", run)
    assert evaluated.exit_code == 0, evaluated.output
    assert "As before" in evaluated.output
    compared = framebank("compare", run)
    assert "bank.h5 + slow.h5, linear in time" in " ".join(compared.output.split())
    assert framebank("report", run).exit_code == 0
    page = (run / "report.html").read_text()
    assert "resampling.method" in page
    assert "No pictures and no course" not in page


def test_a_run_without_it_is_that_of_earlier_versions(tmp_path: Path) -> None:
    bank = bank_of(tmp_path / "bank.h5", in_order(12))
    assert framebank("train-head", bank, "--out", tmp_path / "run", *TRAIN).exit_code == 0
    assert "resampling" not in json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    made = json.loads((tmp_path / "run" / "model.json").read_text())
    del made["resampling"]
    (tmp_path / "run" / "model.json").write_text(json.dumps(made))
    assert framebank("evaluate", tmp_path / "run").exit_code == 0


def test_new_videos_from_their_files_and_from_their_banks(folder: Path, tmp_path: Path) -> None:
    """The times of one of them begin at 0.5 s."""
    files = framebank("predict", folder / "run", folder / "new", "--csv", tmp_path / "files.csv")
    assert files.exit_code == 0, files.output
    banked = framebank(
        "predict",
        folder / "run",
        *given(folder / "banked"),
        "--csv",
        tmp_path / "banked.csv",
        "--json",
        tmp_path / "j.json",
    )
    assert banked.exit_code == 0, banked.output
    assert "slow.h5 is read at the times of" in " ".join(banked.output.split())
    first, second = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("files", "banked"))
    assert list(first["id"]) == ["late", "plain"]
    pd.testing.assert_frame_equal(first, second, atol=1e-6)
    written = json.loads((tmp_path / "j.json").read_text())["videos"]
    assert [each["path"] for each in written] == [str(folder / "new" / name) for name in ("late.mkv", "plain.mp4")]
    shown = framebank("predict", folder / "run", *given(folder / "banked"), "--timeline", tmp_path / "t.json")
    assert shown.exit_code == 0, shown.output
    seconds = json.loads((tmp_path / "t.json").read_text())["videos"][0]["seconds"]
    np.testing.assert_allclose(seconds, np.arange(9) / 10, atol=0.002)


def test_videos_that_trained_the_head_are_remarked_on_and_those_of_one_bank_left_out(
    folder: Path, tmp_path: Path
) -> None:
    first, second = banks(folder)
    some = tmp_path / "some.h5"
    assert framebank("merge", second, "--out", some).exit_code == 0
    assert framebank("remove", some, "class0/clip0").exit_code == 0
    done = framebank("predict", folder / "run", "--bank", first, "--bank", some, "--csv", tmp_path / "p.csv")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "left out: 1, e.g. class0/clip0" in said
    assert "the head was trained on" in said
    assert len(pd.read_csv(tmp_path / "p.csv")) == 9


@pytest.mark.parametrize("fuse", ["concat", "mean"])
def test_a_label_per_frame_from_both(folder: Path, tmp_path: Path, fuse: str) -> None:
    """Heads of their own have the same rows then, and what they say of each can be averaged."""
    lines = ["id,start,end,label"]
    for number in range(10):
        lines += [f"class{number % 2}/clip{number},0,0.3,early", f"class{number % 2}/clip{number},0.3,0.7,late"]
    (tmp_path / "segments.csv").write_text("\n".join(lines) + "\n")
    call = ("train-head", *banks(folder), "--segments", tmp_path / "segments.csv", "--fuse", fuse, *TRAIN)
    if fuse == "mean":
        refused = framebank(*call, "--out", tmp_path / "apart")
        assert refused.exit_code == 2
        assert "--resample linear" in refused.stderr
    done = framebank(*call, "--out", tmp_path / "run", "--resample", "nearest")
    assert done.exit_code == 0, done.output
    frames = pd.read_csv(tmp_path / "run" / "frames.csv")
    with Bank(folder / "bank.h5") as bank:
        for video, rows in frames.groupby("id"):
            assert len(rows) == len(bank.timestamps(video))
    assert framebank("evaluate", tmp_path / "run").exit_code == 0
    predicted = framebank("predict", tmp_path / "run", folder / "new", "--frames", tmp_path / "f.csv")
    assert predicted.exit_code == 0, predicted.output
    assert pd.read_csv(tmp_path / "f.csv").groupby("id").size().to_dict() == {"late": 9, "plain": 11}


@pytest.mark.parametrize("spatial", ["mean", "attention"])
def test_heads_of_maps_and_of_vectors_are_fused(spatial: str, tmp_path: Path) -> None:
    videos = in_order(12, 4)
    maps = {video: np.stack([rows, 2 * rows], axis=-1)[..., None] for video, rows in videos.items()}
    first = bank_of(tmp_path / "vectors.h5", videos)
    second = bank_of(tmp_path / "maps.h5", maps, layer="features")
    call = ("--out", tmp_path / "run", "--fuse", "mean", "--spatial", spatial, *TRAIN)
    done = framebank("train-head", first, second, *call)
    assert done.exit_code == 0, done.output
    one, two = json.loads((tmp_path / "run" / "model.json").read_text())["members"]
    assert (len(one["feature_shape"]), len(two["feature_shape"])) == (1, 3 if spatial == "attention" else 1)
    assert framebank("evaluate", tmp_path / "run").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train-head", "bank.h5", "--out", "x", "--resample", "linear"], "one bank was given"),
        (["train-head", "bank.h5", "slow.h5", "--out", "x", "--max-gap", "1"], "it is for --resample"),
        (["train-head", "bank.h5", "slow.h5", "--out", "x", "--resample", "linear", "--max-gap", "0"], "--max-gap"),
        (["train-head", "bank.h5", "slow.h5", "--out", "x"], "read the second at the times of the first (--resample"),
        (
            ["train-head", "bank.h5", "slow.h5", "--out", "x", "--resample", "linear", "--max-gap", "0.01"],
            "0.01 s are all",
        ),
        (["finetune", "data", "--head", "run", "--out", "x"], "reads 2 banks (bank.h5, slow.h5)"),
        (["predict", "run"], "Missing VIDEO"),
        (["predict", "run", "new", *BOTH], "give one of both"),
        (["predict", "run", *BOTH, "--image-fps", "5"], "--image-fps is for VIDEO"),
        (["predict", "run", "--bank", "bank.h5"], "reads 2 bank(s) side by side and 1 were given"),
        (["predict", "run", "--bank", "slow.h5", "--bank", "bank.h5"], "The head was trained on other embeddings"),
        (["predict", "run", *BOTH, "--csv", "bank.h5"], "bank.h5"),
        (["predict", "--backbone", "resnet18", "new", *BOTH], "--bank is of the head of RUN"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(
    arguments: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = framebank(*arguments)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.stderr.split())
    assert not Path("x").exists() or not any(Path("x").iterdir())
