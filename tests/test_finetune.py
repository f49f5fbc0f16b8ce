"""Stage three through the command: what trains, that all ways of computing it agree, what it leaves behind."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.bank import Bank
from pipeline.bundles import load_bundle
from pipeline.encoder import native_bf16
from pipeline.errors import UserError
from pipeline.gathering import find_all
from pipeline.rescoring import embedded_anew
from pipeline.video_model import VideoModel
from tests.clips import make_clip
from tests.commands import extract, framebank, said
from tests.finetuning import (
    QUICK_HEAD,
    SGD,
    Start,
    backbone_of,
    chances,
    changed,
    far_apart,
    finetune,
    finetuned,
    first_weights,
    losses,
    make_clips,
    metrics,
    results,
    start_of,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LAST = {f"features.12.{part}.{kind}" for part in ("squeeze", "expand1x1", "expand3x3") for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("start")
    return start_of(folder, make_clips(folder / "data"))


@pytest.fixture(scope="module")
def plain_head(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Another head on the same bank, without what draws at random or looks at a whole batch."""
    run = tmp_path_factory.mktemp("plain") / "run"
    words = ("--hidden", 8, "--epochs", 3, "--norm", "none", "--output-dropout", 0, "--pool", "mean")
    assert framebank("train-head", start.bank, "--out", run, *words).exit_code == 0
    return start._replace(run=run)


@pytest.fixture(scope="module")
def run(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained the last block."""
    return finetuned(start, tmp_path_factory.mktemp("run") / "run", "--unfreeze", 1)


def test_what_is_named_trains_and_the_rest_is_as_it_was(run: Path) -> None:
    assert changed(run) == LAST


def test_the_run_folder_is_as_that_of_a_head_with_the_backbone_beside_it(start: Start, run: Path) -> None:
    theirs = {file.relative_to(start.run).as_posix() for file in start.run.rglob("*")}
    ours = {file.relative_to(run).as_posix() for file in run.rglob("*")}
    assert ours == theirs | {"backbone.safetensors", "folds/test/backbone.safetensors"}


def test_the_same_videos_are_held_out(start: Start, run: Path) -> None:
    assert (run / "splits.csv").read_bytes() == (start.run / "splits.csv").read_bytes()
    ours, theirs = (pd.read_csv(each / "predictions.csv") for each in (run, start.run))
    assert ours[["id", "target"]].equals(theirs[["id", "target"]])
    beside = results(run)["baselines"]["frozen backbone"]["score"]
    assert beside == pytest.approx(results(start.run)["score"])


def test_a_second_call_does_nothing(start: Start, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = finetune(start, run, "--unfreeze", 1)
    assert again.exit_code == 0
    assert "is finished" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    other = finetune(start, run, "--unfreeze", 2)
    assert other.exit_code == 2
    assert "finetune.unfreeze is 1 (that run) and 2 (now)" in other.stderr


def test_from_the_prefix_bank_and_from_the_videos_it_learns_the_same(start: Start, tmp_path: Path) -> None:
    banked = finetuned(start, tmp_path / "banked", "--prefix-bank", tmp_path / "prefix.h5")
    decoded = finetuned(start, tmp_path / "decoded", "--no-prefix-bank")
    np.testing.assert_allclose(losses(banked), losses(decoded), rtol=1e-4)
    # In float32, whose roundings in batches of another size grow with every step.
    np.testing.assert_allclose(chances(banked), chances(decoded), atol=1e-3)
    assert far_apart(banked, decoded) < 1e-3
    assert (tmp_path / "prefix.h5").exists()
    assert results(banked)["cost"]["frames_embedded"] < results(decoded)["cost"]["frames_embedded"]


def test_pieces_and_recomputing_change_nothing(start: Start, tmp_path: Path) -> None:
    whole = finetuned(start, tmp_path / "whole", *SGD, "--keep")
    again = finetuned(start, tmp_path / "again", *SGD, "--recompute")
    assert losses(again) == losses(whole)
    assert far_apart(again, whole) == 0
    pieces = finetuned(start, tmp_path / "pieces", *SGD, "--micro-batch", 5, "--keep")  # convolutions round otherwise
    np.testing.assert_allclose(losses(pieces), losses(whole), rtol=1e-4)
    assert far_apart(pieces, whole) < 1e-5


@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch(plain_head: Start, tmp_path: Path) -> None:
    large = finetuned(plain_head, tmp_path / "large", *SGD, "--batch-size", 12)
    small = finetuned(plain_head, tmp_path / "small", *SGD, "--batch-size", 4, "--accumulate", 3)
    alone = finetuned(plain_head, tmp_path / "alone", *SGD, "--batch-size", 4)
    np.testing.assert_allclose(losses(small), losses(large), rtol=1e-4)
    assert far_apart(small, large) < 1e-5 < far_apart(alone, large)


def test_a_schedule_leaves_the_backbone_alone_at_first(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = {}
    begin = VideoModel.begin_epoch

    def noting(model: VideoModel, passed: int) -> None:
        states = (model.suffix.net.state_dict(), model.head.state_dict())
        seen[passed] = tuple({name: tensor.clone() for name, tensor in state.items()} for state in states)  # type: ignore[assignment]
        begin(model, passed)

    monkeypatch.setattr(VideoModel, "begin_epoch", noting)
    out = finetuned(start, tmp_path / "out", "--unfreeze", "0:head,1:features.12,2:features.11", "--epochs", 3)

    def moved(passed: int, part: int) -> set[str]:
        """What has changed in the epoch before."""
        before, after = seen[passed - 1][part], seen[passed][part]
        return {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}

    assert moved(1, 0) == set()
    assert moved(1, 1)
    assert moved(2, 0) == {f"features.12.{part}" for part in ("squeeze", "expand1x1", "expand3x3")}
    assert {name.split(".")[1] for name in changed(out)} == {"11", "12"}


@pytest.mark.slow
def test_folds_each_have_a_backbone_and_the_last_is_of_all_videos(start: Start, tmp_path: Path) -> None:
    folded = start_of(tmp_path, start.data, "--folds", 2, "--seeds", 2)
    out = finetuned(folded, tmp_path / "out", "--seeds", 2)
    names = ["1", "1-seed1", "2", "2-seed1", "all"]
    assert sorted(folder.name for folder in (out / "folds").iterdir()) == names
    backbones = [backbone_of(out / "folds" / name) for name in names]
    features = [each["features.12.squeeze.weight"] for each in backbones]
    assert not any(torch.equal(one, features[-1]) for one in features[:-1])
    assert torch.equal(backbone_of(out)["features.12.squeeze.weight"], features[-1])
    assert (out / "splits.csv").read_bytes() == (folded.run / "splits.csv").read_bytes()
    first, second = (pd.read_csv(out / name) for name in ("predictions.csv", "predictions-seed1.csv"))
    assert sorted(first["id"]) == sorted(second["id"])
    assert first["id"].nunique() == 14
    rescored = framebank("evaluate", out)
    assert rescored.exit_code == 0, rescored.output
    named = framebank("predict", out, start.data / "class0" / "clip00.mp4")
    assert named.exit_code == 0, named.output


def test_the_best_epoch_of_the_validation_part_is_kept(start: Start, tmp_path: Path) -> None:
    chosen = start_of(tmp_path, start.data, "--validation-share", 0.3)
    out = finetuned(chosen, tmp_path / "out", "--epochs", 12, "--patience", 1, "--backbone-rate", 0.003)
    told = metrics(out)
    best = int(told["validation_loss"].idxmin())
    assert told["kept"].tolist() == [int(row == best) for row in range(len(told))]
    assert len(told) in (best + 2, 12)


def segments_of(start: Start, folder: Path) -> Path:
    """Every clip is dark for its first or last three frames (0.3 s), and bright else."""
    lines = ["id,start,end,label"]
    with_rows = pd.read_csv(start.run / "splits.csv")["id"]
    lines += [f"{video},0,0.3,one\n{video},0.3,9,two" for video in with_rows]
    (folder / "segments.csv").write_text("\n".join(lines))
    return folder / "segments.csv"


def targets_of(start: Start, folder: Path, column: str, values: list[str]) -> Path:
    ids = sorted(pd.read_csv(start.run / "splits.csv")["id"])
    lines = [f"{video},{values[number % len(values)]}" for number, video in enumerate(ids)]
    (folder / "targets.csv").write_text("\n".join([f"id,{column}", *lines]))
    return folder / "targets.csv"


def test_labels_of_frames_are_learnt_in_chunks(start: Start, tmp_path: Path) -> None:
    framed = start_of(tmp_path, start.data, "--segments", segments_of(start, tmp_path), "--allow-beyond")
    out = finetuned(framed, tmp_path / "out", "--chunk-steps", 8)
    assert len(pd.read_csv(out / "frames.csv")) == len(pd.read_csv(framed.run / "frames.csv"))
    assert changed(out) > LAST
    rescored = framebank("evaluate", out)
    assert rescored.exit_code == 0, rescored.output


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        pytest.param("--regression", ["1.5", "20", "-3"], marks=pytest.mark.slow),
        ("--multi-label", ["a", "a|b", "b", "b|a"]),
    ],
)
def test_numbers_and_several_labels_are_learnt(start: Start, tmp_path: Path, kind: str, values: list[str]) -> None:
    targets = targets_of(start, tmp_path, "wanted", values)
    head = start_of(tmp_path, start.data, "--targets", targets, "--target", "wanted", kind)
    out = finetuned(head, tmp_path / "out")
    assert changed(out) > LAST
    assert results(out)["task"] == results(head.run)["task"]
    assert framebank("evaluate", out).exit_code == 0
    targets.write_text(targets.read_text() + "\n")
    done = finetune(head, tmp_path / "later")
    assert done.exit_code == 2
    assert "is not what it was when that head was trained" in done.stderr
    assert not (tmp_path / "later").exists()


@pytest.mark.parametrize(
    "spatial",
    [pytest.param("mean", marks=pytest.mark.slow), pytest.param("flatten", marks=pytest.mark.slow), "attention"],
)
def test_heads_on_maps_keep_reading_them(start: Start, tmp_path: Path, spatial: str) -> None:
    words = ("--spatial", spatial, "--pca", 0)
    maps = start_of(tmp_path, start.data, *words, network=("--layer", "features.12.cat"))
    out = finetuned(maps, tmp_path / "out", "--unfreeze", 1)
    assert changed(out) == LAST
    assert framebank("evaluate", out).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--tsn", 4), ("--window", 4, "--test-crops", 2), ("--stride", 2)])
def test_frames_may_be_chosen(start: Start, tmp_path: Path, words: tuple[object, ...]) -> None:
    banked = finetuned(start, tmp_path / "banked", *words)
    decoded = finetuned(start, tmp_path / "decoded", *words, "--no-prefix-bank")
    np.testing.assert_allclose(losses(banked), losses(decoded), rtol=1e-5)
    assert metrics(banked)["rows"].iloc[0] < 14 * 5


def test_augmentation_is_drawn_anew_or_banked_in_views(start: Start, tmp_path: Path) -> None:
    augment = ("--augment", "crop,flip,jitter", "--epochs", 1)
    drawn = finetuned(start, tmp_path / "drawn", *augment)
    views = finetuned(start, tmp_path / "views", *augment, "--views", 1, "--prefix-bank", tmp_path / "prefix.h5")
    plain = finetuned(start, tmp_path / "plain", "--epochs", 1, "--prefix-bank", tmp_path / "prefix.h5")
    assert losses(views)[0] == pytest.approx(losses(drawn)[0], rel=5e-3)  # both show draw 1 first
    assert losses(plain)[0] != pytest.approx(losses(drawn)[0], rel=5e-3)
    assert sorted(file.name for file in tmp_path.glob("prefix*.h5")) == ["prefix-view1.h5", "prefix.h5"]


def test_other_commands_take_the_run(start: Start, run: Path, tmp_path: Path) -> None:
    rescored = framebank("evaluate", run)
    assert rescored.exit_code == 0, rescored.output
    compared = framebank("compare", start.run, run)
    assert compared.exit_code == 0, compared.output
    assert "frozen" in compared.stdout
    bank = tmp_path / "with.h5"
    extracted = framebank("extract", start.data, "--weights", run, "--out", bank, "--device", "cpu")
    assert extracted.exit_code == 0, extracted.output
    banked = framebank("evaluate", run, bank)
    assert banked.exit_code == 0, banked.output
    held = pd.read_csv(run / "predictions.csv").set_index("id")
    video = held.index[0]
    told = tmp_path / "told.csv"
    named = framebank("predict", run, start.data / f"{video}.mp4", "--csv", told)
    assert named.exit_code == 0, named.output
    np.testing.assert_allclose(
        pd.read_csv(told).filter(regex="^p_").to_numpy()[0], held.loc[video].filter(regex="^p_").to_numpy(float),
        atol=1e-3,
    )  # fmt: skip


def test_from_scratch_every_block_trains_and_an_unreadable_video_is_passed_over(tmp_path: Path) -> None:
    data = make_clips(tmp_path / "data")
    (data / "class0" / "broken.mp4").write_bytes(b"not a video")
    out = tmp_path / "out"
    done = framebank(
        "finetune", data, "--out", out, "--backbone", "squeezenet1_1", "--weights", "random", "--image-size", 48,
        "--precision", "fp32", "--unfreeze", "all", "--hidden", 8, "--epochs", 2,
    )  # fmt: skip
    assert done.exit_code == 3, done.output
    assert changed(out) == set(first_weights())
    assert "nothing" in said(done, "Frozen")
    assert (tmp_path / "out.h5").exists()
    assert len(pd.read_csv(out / "splits.csv")) == 14


@pytest.mark.slow
def test_training_the_backbone_lowers_the_loss_further_than_the_head_alone_does(start: Start, tmp_path: Path) -> None:
    words = ("--epochs", 15, "--learning-rate", 2e-4, "--unfreeze", 2)
    ends = [
        np.mean(losses(finetuned(start, tmp_path / str(rate), *words, "--backbone-rate", rate))[-3:])
        for rate in (1e-9, 3e-4)
    ]
    assert ends[1] < 0.8 * ends[0]


def test_it_says_so_if_what_was_kept_is_from_before_the_backbone_trained(start: Start, tmp_path: Path) -> None:
    validated = start_of(tmp_path, start.data, "--validation-share", 0.2, "--norm", "none")
    still = ("--monitor", "accuracy", "--learning-rate", 1e-9, "--backbone-rate", 1e-9)  # all epochs are equal
    done = finetune(validated, tmp_path / "out", "--unfreeze", "0:head,1:features.12", *still)
    assert done.exit_code == 0, done.output
    assert changed(tmp_path / "out") == set()
    assert "chose epoch 1, before anything of the backbone trained" in done.output
    later = finetune(validated, tmp_path / "later", "--unfreeze", 1)
    assert "before anything of the backbone" not in later.output


def test_a_first_video_of_one_frame_is_no_reason_not_to_train_batch_norm(tmp_path: Path) -> None:
    data = make_clips(tmp_path / "data", 10, 32)
    make_clip(data / "class0" / "a.mp4", size=(32, 32), frames=1)
    small = start_of(tmp_path, data, network=("--backbone", "resnet18", "--image-size", 32))
    done = finetune(small, tmp_path / "out", "--unfreeze", 1, "--train-batch-norm", "--epochs", 1)
    assert done.exit_code == 0, done.output


CPU = torch.device("cpu")
CLIPS = ("--weights", "random", "--image-size", 32, "--clip-length", 4, "--clip-stride", 2, "--device", "cpu")
INFLATED = ("--backbone", "squeezenet1_1", "--inflate")


def made_of_clips(folder: Path, precision: str, network: tuple[object, ...] = INFLATED) -> Start:
    """A network in three dimensions, whose clips begin every 2 frames, on the CPU."""
    start = Start(make_clips(folder / "data", 6, 32), folder / "bank.h5", folder / "run")
    for done in (
        extract(start.data, start.bank, *CLIPS, *network, "--precision", precision),
        framebank("train-head", start.bank, "--out", start.run, *QUICK_HEAD, "--cell", "none", "--test-share", 0.4),
    ):
        assert done.exit_code == 0, done.output
    return start


@pytest.mark.skipif(not native_bf16(CPU), reason="this CPU does not compute in bfloat16 itself")
@pytest.mark.parametrize(
    "network",
    [
        INFLATED,
        pytest.param(("--backbone", "r3d_18"), marks=pytest.mark.slow),
        pytest.param(("--backbone", "rmc3_18"), marks=pytest.mark.slow),  # whose 3D convolutions are no modules, traced
    ],
    ids=lambda words: words[1],
)
def test_3d_convolutions_are_trained_in_float32_on_the_cpu(network: tuple[object, ...], tmp_path: Path) -> None:
    """torch's bfloat16 gradients of them are wrong there, while the embeddings of a bank are right."""
    start = made_of_clips(tmp_path, "bf16", network)
    words = ("--unfreeze", 1, "--epochs", 1, "--device", "cpu")
    anew = (*CLIPS, *network, "--bank", start.bank, "--hidden", 4, "--cell", "none", "--test-share", 0.4)
    for name, begun in (("headed", ("--head", start.run)), ("anew", anew)):
        call = ("finetune", start.data, *begun, *words, "--out", tmp_path / name)
        done = framebank(*call, "--precision", "bf16")
        assert done.exit_code == 2
        assert "bfloat16 gradients of 3D convolutions on the CPU are not to be trusted" in done.stderr
        assert "give --precision fp32" in done.stderr
        assert not (tmp_path / name).exists()
        done = framebank(*call)
        assert done.exit_code == 0, done.output
        assert said(done, "Note").startswith(f"{network[1]} is trained in float32: torch's bfloat16 gradients")
        kept = json.loads((tmp_path / name / "model.json").read_text())["members"][0]["banks"][0]["config"]["recipe"]
        assert kept["precision"] == "fp32"
    with Bank(start.bank) as bank:
        assert bank.config["recipe"]["precision"] == "bf16"


def test_a_clip_of_other_frames_around_the_same_middle_is_noticed(tmp_path: Path) -> None:
    start = made_of_clips(tmp_path, "fp32")
    clip = start.data / "class0" / "clip00.mp4"
    whole, short = (list(np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)) for n in (4, 3))
    make_clip(clip, size=(32, 32), images=short)
    assert extract(start.data, start.bank, *CLIPS, *INFLATED).exit_code == 0
    out = finetuned(start, tmp_path / "out", "--unfreeze", 1, "--epochs", 1, "--device", "cpu")
    found, _ = find_all([start.data])

    def embed() -> list[list[int]]:
        with (
            Bank(start.bank) as bank,
            embedded_anew(load_bundle(out), found, bank, device=CPU, on_progress=lambda _: None) as anew,
        ):
            return anew.frames("class0/clip00").tolist()

    assert embed() == [[0, 1, 2, 2]]
    make_clip(clip, size=(32, 32), images=whole)  # one clip as before, its middle frame 2 as before
    with pytest.raises(UserError, match=r"1 of 6 videos are not what was banked, e\.g\. class0/clip00"):
        embed()
