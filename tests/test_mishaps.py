"""Mishaps: pipes that close, banks that are moved, files that lie. None may end in a traceback or a lost embedding."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import packing
from pipeline.bank import Bank
from pipeline.checkpoints import load_checkpoint
from pipeline.errors import UserError, VideoError
from pipeline.image_folders import read_image
from pipeline.lock import hold
from pipeline.runs import read_config
from tests.banks import bank_of, fill, in_order
from tests.clips import make_clip
from tests.commands import SETTINGS, extract, framebank
from tests.killing import Runs


def process(*arguments: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "stages.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parent.parent,
    )


def test_a_reader_that_goes_away_costs_no_extraction(tmp_path: Path) -> None:
    make_clip(tmp_path / "data" / "a.mp4", frames=3)
    run = process("extract", tmp_path / "data", "--out", tmp_path / "bank.h5", *SETTINGS)
    assert run.stdout is not None
    run.stdout.close()  # as `| head -1` does
    assert run.wait(60) != 0 or list(Bank(tmp_path / "bank.h5")) == ["a"]


def test_interrupted_without_a_reader_is_still_interrupted(tmp_path: Path) -> None:
    for number in range(20):
        make_clip(tmp_path / "data" / f"{number}.mp4", frames=150)
    out = tmp_path / "bank.h5"
    run = process("extract", tmp_path / "data", "--out", out, *SETTINGS)
    deadline = time.monotonic() + 60
    while not (tmp_path / "bank.h5.parts").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run.stdout is not None
    run.stdout.close()  # Ctrl-C ends `| tee log` as well
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(60) == 130 or len(Bank(out)) == 20


def test_a_linked_bank_that_lost_its_parts_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "a.h5", {"x": 3})
    packing.link(tmp_path / "a.h5")
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.h5").rename(tmp_path / "moved" / "a.h5")
    for arguments in (("describe", "moved/a.h5"), ("pack", "moved/a.h5"), ("describe", "moved/a.h5", "x")):
        result = framebank(*arguments)
        assert result.exit_code != 0
        assert "parts" in result.output


def test_a_linked_bank_renamed_with_its_parts_reads_the_same(tmp_path: Path) -> None:
    fill(tmp_path / "a.h5", {"x": 3})
    packing.link(tmp_path / "a.h5")
    (tmp_path / "a.h5").rename(tmp_path / "b.h5")
    (tmp_path / "a.h5.parts").rename(tmp_path / "b.h5.parts")
    assert Bank(tmp_path / "b.h5")["x"].shape == (3, 8)


def test_linking_a_bank_behind_a_symbolic_link_leaves_it_readable(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    fill(tmp_path / "real" / "bank.h5", {"x": 3})
    packing.pack(tmp_path / "real" / "bank.h5")
    (tmp_path / "bank.h5").symlink_to("real/bank.h5")
    packing.link(tmp_path / "bank.h5")
    assert list(Bank(tmp_path / "bank.h5")) == list(Bank(tmp_path / "real" / "bank.h5")) == ["x"]


def test_packing_keeps_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    fill(tmp_path / "real" / "bank.h5", {"x": 3})
    packing.pack(tmp_path / "real" / "bank.h5")
    (tmp_path / "bank.h5").symlink_to("real/bank.h5")
    packing.pack(tmp_path / "bank.h5", without=["x"])
    assert len(Bank(tmp_path / "real" / "bank.h5")) == 0


def test_removed_videos_stay_removed_when_killed_before_the_parts_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "bank.h5", {"x": 3, "y": 3})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "_delete", killed)
    with pytest.raises(KeyboardInterrupt):
        packing.pack(tmp_path / "bank.h5", without=["x"])
    assert list(Bank(tmp_path / "bank.h5")) == ["y"]


def test_new_labels_are_not_lost_with_no_pack(tmp_path: Path) -> None:
    make_clip(tmp_path / "data" / "a" / "x.mp4", frames=3)
    extract(tmp_path / "data", tmp_path / "bank.h5", "--no-pack")
    extract(tmp_path / "data", tmp_path / "bank.h5", "--no-pack", "--label-from", "x")
    assert list(Bank(tmp_path / "bank.h5").catalog["label"]) == ["x"]


def test_a_mended_file_leaves_the_ledger(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "data" / "x.mp4", frames=3)
    good = clip.read_bytes()
    extract(tmp_path / "data", tmp_path / "bank.h5")
    clip.write_bytes(b"junk" * 100)
    assert extract(tmp_path / "data", tmp_path / "bank.h5").exit_code == 3
    clip.write_bytes(good)
    assert extract(tmp_path / "data", tmp_path / "bank.h5").exit_code == 0
    assert len(Bank(tmp_path / "bank.h5").failures) == 0


def test_a_manifest_that_names_a_folder_without_images(tmp_path: Path) -> None:
    make_clip(tmp_path / "x.mp4", frames=3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.csv").write_text("path\nempty\nx.mp4\n")
    assert extract(tmp_path / "m.csv", tmp_path / "bank.h5").exit_code == 3
    assert list(Bank(tmp_path / "bank.h5")) == ["x"]


def test_a_manifest_may_have_a_column_named_file(tmp_path: Path) -> None:
    make_clip(tmp_path / "x.mp4", frames=3)
    (tmp_path / "m.csv").write_text("path,_file\nx.mp4,7\n")
    result = extract(tmp_path / "m.csv", tmp_path / "bank.h5")
    assert result.exit_code == 2 or list(Bank(tmp_path / "bank.h5").catalog["_file"]) == ["7"]


def test_an_image_with_unreadable_exif_is_an_image_or_a_failure(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0100] = 5
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    image.save(tmp_path / "a.jpg", exif=exif)
    raw = (tmp_path / "a.jpg").read_bytes()
    order = "big" if b"MM" in raw else "little"
    wide = (0x0100).to_bytes(2, order)
    at = raw.index(wide, raw.index(b"Exif") + 14)
    for kind in range(1, 14):  # the width, said in every type that TIFF knows
        damaged = bytearray(raw)
        damaged[at + 2 : at + 4] = kind.to_bytes(2, order)
        (tmp_path / "b.jpg").write_bytes(damaged)
        with suppress(VideoError):
            assert read_image(str(tmp_path / "b.jpg")).shape == (8, 8, 3)


@pytest.mark.parametrize("content", ["[]", "{}", '{"host": "elsewhere"}', "5"])
def test_a_lock_file_that_says_nothing_does_not_crash(tmp_path: Path, content: str) -> None:
    lock = tmp_path / "bank.h5.lock"
    lock.write_text(content)
    os.utime(lock, (0, 0))  # no heartbeat for decades
    with hold(lock):
        pass


@pytest.mark.parametrize("name", ["", "x" * 249 + ".h5", "x" * 300])
def test_an_impossible_name_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "data" / "x.mp4", frames=3)
    assert extract(Path("data"), name).exit_code == 2  # type: ignore[arg-type]
    assert framebank("describe", name).exit_code == 2
    if name:
        assert extract(Path(name), Path("bank.h5")).exit_code == 2


def test_a_seed_beyond_64_bits_is_one_line(tmp_path: Path) -> None:
    make_clip(tmp_path / "data" / "x.mp4", frames=3)
    assert extract(tmp_path / "data", tmp_path / "bank.h5", "--seed", 10**22).exit_code == 2


def test_tensors_without_data_are_one_line(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    state = squeezenet1_1(weights=None).state_dict()
    converted = {name: tensor.to("meta") for name, tensor in state.items()}
    torch.save(converted, tmp_path / "w.pth")
    make_clip(tmp_path / "data" / "x.mp4", frames=3)
    assert extract(tmp_path / "data", tmp_path / "bank.h5", "--weights", tmp_path / "w.pth").exit_code == 2


def test_a_checkpoint_that_holds_itself(tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "w.pth")
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "w.pth")


def test_an_interrupted_training_says_how_to_go_on(tmp_path: Path) -> None:
    bank = bank_of(tmp_path / "bank.h5", in_order(12))
    runs = Runs("import sklearn.linear_model, matplotlib.pyplot; from stages import train_head")
    for number in (signal.SIGINT, signal.SIGTERM):
        out, says = tmp_path / number.name, tmp_path / f"{number.name}.txt"
        asked = ("train-head", bank, "--out", out, "--device", "cpu", "-q", "--epochs", 100_000)
        training = runs.start(*asked, says=says)
        deadline = time.monotonic() + 60
        while not (out / "splits.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(training, number)
        assert runs.status() == 130
        assert says.read_text() == "Interrupted. Run the same command again to go on where it stopped.\n"
        assert read_config(out)["config"]["epochs"] == 100_000  # there to go on with
    runs.close()


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), UserError("?")):

        def run(_config: object, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr("stages.compare.run", run)
        done = framebank("compare", tmp_path)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
        assert ("not enough memory" in done.stderr) != isinstance(error, UserError)
