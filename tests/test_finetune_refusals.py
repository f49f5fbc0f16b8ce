"""What `framebank finetune` refuses: one line that says what was wrong and what to do, exit status 2, nothing lost."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file

from pipeline import prefix_bank
from tests.clips import make_clip
from tests.commands import extract, framebank
from tests.finetuning import Start, finetune, finetuned, first_weights, make_clips, start_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("start")
    return start_of(folder, make_clips(folder / "data", 8))


@pytest.fixture
def own(start: Start, tmp_path: Path) -> Start:
    """A copy that a test may spoil. The bank is where the run says only if it is given with --bank."""
    data, bank, run = (tmp_path / each.name for each in start)
    shutil.copytree(start.data, data)
    shutil.copytree(start.run, run)
    shutil.copy(start.bank, bank)
    return Start(data, bank, run)


def refused(start: Start, out: Path, *arguments: object) -> str:
    """The one line of a call that must be refused and leave nothing that a right one would stumble over."""
    before = _content(out)
    done = finetune(start, out, *arguments)
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith(("Usage:", "Try ")) and line]
    assert line.startswith("Error: ")
    kept = _content(out)
    assert before == {name: kept[name] for name in before}
    assert set(kept) - set(before) <= {"config.json", "splits.csv", "prefix/plain.h5"}
    return line


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--unfreeze", "features.21"), "features.12"),
        (("--unfreeze", "classifier"), "classifier"),
        (("--unfreeze", 99), "99"),
        (("--unfreeze", "head"), "train-head"),
        (("--unfreeze", "0:head"), "train-head"),
        (("--unfreeze", "0:head,5:features.12"), "5 epochs have passed"),
        (("--unfreeze", "1:features.12"), "0"),
        (("--views", 2), "--augment"),
        (("--augment", "rotate"), "rotate"),
        (("--augment", "flip", "--views", 1, "--no-prefix-bank"), "--no-prefix-bank"),
        (("--folds", 3), "--folds is decided by the run"),
        (("--segments", "x.csv"), "--segments is decided by the run"),
        (("--hidden", 3), "--hidden is decided by the run"),
        (("--backbone", "resnet18"), "--backbone is decided by the run"),
        (("--chunk-steps", 64), "chunk-steps"),
        (("--precision", "fp16"), "fp16"),
        (("--device", "cuda"), "CUDA"),
        (("--seeds", 2), "--seeds"),
        (("--patience", 2, "--monitor", "macro_f1"), "validation"),
    ],
)
def test_options_that_do_not_fit(start: Start, tmp_path: Path, words: tuple[object, ...], said: str) -> None:
    line = refused(start, tmp_path / "out", *words)
    assert said.lower() in line.lower(), line
    assert not (tmp_path / "out").exists()


def test_neither_a_head_nor_weights(start: Start, tmp_path: Path) -> None:
    done = framebank("finetune", start.data, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "--head RUN" in done.stderr


@pytest.mark.parametrize("fuse", ["svm", "mean"])
def test_heads_of_several_banks_are_not_fused(fuse: str, start: Start, tmp_path: Path) -> None:
    done = framebank("finetune", start.data, "--out", tmp_path / "out", "--weights", "random", "--fuse", fuse)
    assert done.exit_code == 2
    assert f"--fuse {fuse} fuses the heads of several banks, and fine-tuning has one" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_out_folder_is_the_heads_run_or_something_else(own: Start, tmp_path: Path) -> None:
    assert "is the run that --head names" in refused(own, own.run, "--bank", own.bank)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all my work")
    assert "is no run" in refused(own, mine, "--bank", own.bank)


def test_a_bank_that_was_moved_must_be_given(own: Start, tmp_path: Path) -> None:
    config = own.run / "config.json"
    read = json.loads(config.read_text())
    read["data"]["banks"][0]["path"] = "/elsewhere/bank.h5"
    config.write_text(json.dumps(read))
    assert "--bank" in refused(own, tmp_path / "out")
    finetuned(own, tmp_path / "out", "--bank", own.bank)


def test_another_bank_or_another_set_of_labels(own: Start, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    assert extract(own.data, other, "--image-size", 64).exit_code == 0
    line = refused(own, tmp_path / "out", "--bank", other)
    assert "48" in line
    assert "64" in line
    make_clip(own.data / "class7" / "new.mp4")
    assert extract(own.data, own.bank).exit_code == 0
    assert "class7" in refused(own, tmp_path / "out", "--bank", own.bank)


@pytest.mark.parametrize("words", [("--backbone", "mobilenet_v2"), ("--layer", "features.9.cat:mean")])
def test_a_bank_of_another_network(start: Start, tmp_path: Path, words: tuple[object, ...]) -> None:
    other = tmp_path / "other.h5"
    assert extract(start.data, other, *words).exit_code == 0
    assert str(words[1]) in refused(start, tmp_path / "out", "--bank", other)


def test_weights_from_a_file_must_be_that_file(start: Start, tmp_path: Path) -> None:
    state = first_weights()
    save_file(state, tmp_path / "right.safetensors")
    save_file({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "wrong.safetensors")
    filed = start_of(tmp_path, start.data, network=("--weights", tmp_path / "right.safetensors"))
    assert "right.safetensors" in refused(filed, tmp_path / "out")
    assert "weights" in refused(filed, tmp_path / "out", "--weights", tmp_path / "wrong.safetensors")
    finetuned(filed, tmp_path / "out", "--weights", tmp_path / "right.safetensors")
    assert "weights" in refused(start, tmp_path / "other", "--weights", tmp_path / "wrong.safetensors")


def test_videos_that_vanished_or_changed(own: Start, tmp_path: Path) -> None:
    out, clip = tmp_path / "out", own.data / "class0" / "clip00.mp4"
    kept = clip.read_bytes()
    clip.rename(clip.with_name("renamed.mp4"))
    assert "class0/clip00" in refused(own, out, "--bank", own.bank)
    make_clip(clip, 4)
    assert "class0/clip00" in refused(own, out, "--bank", own.bank)
    clip.write_bytes(kept)
    finetuned(own, out, "--bank", own.bank)


def test_a_run_that_is_not_finished(own: Start, tmp_path: Path) -> None:
    (own.run / "results.json").unlink()
    assert "not finished" in refused(own, tmp_path / "out", "--bank", own.bank)
    assert "is no run" in refused(own._replace(run=own.data), tmp_path / "out", "--bank", own.bank)


def test_a_fine_tuned_run_and_one_of_several_banks(start: Start, tmp_path: Path) -> None:
    done = finetuned(start, tmp_path / "done", "--epochs", 1)
    assert "fine-tuned already" in refused(start._replace(run=done), tmp_path / "out", "--bank", start.bank)
    other = tmp_path / "other.h5"
    assert extract(start.data, other, "--image-size", 64).exit_code == 0
    for fuse in ("concat", "mean"):
        run = tmp_path / fuse
        trained = framebank("train-head", start.bank, other, "--out", run, "--epochs", 1, "--fuse", fuse)
        assert trained.exit_code == 0, trained.output
        assert "2 banks" in refused(start._replace(run=run), tmp_path / "out")


def test_a_head_on_features_that_no_backbone_made_here(own: Start, tmp_path: Path) -> None:
    model = json.loads((own.run / "model.json").read_text())
    model["members"][0]["banks"][0]["config"]["recipe"]["backbone"] = "imported"
    (own.run / "model.json").write_text(json.dumps(model))
    assert "imported features" in refused(own, tmp_path / "out", "--bank", own.bank)


def test_a_prefix_bank_that_is_another_bank(start: Start, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    shutil.copy(start.bank, other)
    line = refused(start, tmp_path / "out", "--prefix-bank", other)
    assert "features.12.cat:mean" in line
    assert other.read_bytes() == start.bank.read_bytes()
    assert "is the head's bank" in refused(start, tmp_path / "out", "--prefix-bank", start.bank)
    finetuned(start, tmp_path / "out", "--prefix-bank", tmp_path / "prefix.h5", "--unfreeze", 1)
    assert "features.11.cat" in refused(start, tmp_path / "two", "--prefix-bank", tmp_path / "prefix.h5")


def test_no_room_on_the_disk(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_bank.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    line = refused(start, tmp_path / "out")
    assert "--no-prefix-bank" in line
    assert "--prefix-bank" in line
    finetuned(start, tmp_path / "out", "--no-prefix-bank")


def test_a_head_that_was_trained_anew_meanwhile_is_noticed(own: Start, tmp_path: Path) -> None:
    out = finetuned(own, tmp_path / "out", "--bank", own.bank)
    shutil.rmtree(own.run)
    words = ("--hidden", 8, "--epochs", 1, "--learning-rate", 0.02)
    assert framebank("train-head", own.bank, "--out", own.run, *words).exit_code == 0
    assert "was run on other data: files.head is" in refused(own, out, "--bank", own.bank)
