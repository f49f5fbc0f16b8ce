"""`framebank extract` as people run it: what it banks, what it skips, what it refuses, and what it survives."""

import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipeline import bank as banks
from pipeline.bank import Bank
from pipeline.sources import source_path, source_text
from tests.clips import make_clip
from tests.commands import SETTINGS, extract, framebank, said


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that ran through any backbone."""
    from pipeline import encoder

    sizes: list[int] = []
    normalise = encoder.normalise

    def counted(preprocessing: Any, rows: torch.Tensor, window: Any) -> torch.Tensor:
        sizes.append(len(rows))
        return normalise(preprocessing, rows, window)

    monkeypatch.setattr(encoder, "normalise", counted)
    return sizes


def test_a_folder_of_classes_is_banked(data: Path, out: Path) -> None:
    result = extract(data, out)
    assert result.exit_code == 0
    assert said(result, "Found").startswith("6 videos")
    assert said(result, "Classes") == "2: class0 3, class1 3"
    assert "WARNING: random weights" in result.stdout
    assert said(result, "Banked").startswith("6 videos · 39 frames")
    with Bank(out) as bank:
        assert list(bank) == [f"class{n}/clip{m}" for n in range(2) for m in range(n, 6, 2)]
        assert bank.catalog["label"].tolist() == ["class0"] * 3 + ["class1"] * 3
        assert bank.catalog["rows"].tolist() == [4, 6, 8, 5, 7, 9]
        assert bank["class0/clip0"].dtype == np.float16
        assert bank.timestamps("class0/clip0").tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
        assert bank.config["weights"] == "random (seed 0)"
        row = bank.catalog.set_index("id").loc["class1/clip5"]
        assert (row["width"], row["height"], row["codec"], row["frames_decoded"]) == (64, 48, "h264", 9)
        assert row["source"] == str(data / "class1" / "clip5.mp4")
        assert bank.verify() == []
    assert sorted(file.name for file in out.parent.iterdir()) == ["bank.h5", "data"]


def test_a_second_run_does_nothing(data: Path, out: Path, forwards: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    extract(data, out)
    before, state = out.read_bytes(), out.stat().st_mtime_ns
    forwards.clear()
    monkeypatch.setattr("pipeline.rows.read_frames", lambda *_: pytest.fail("decoded again"))
    result = extract(data, out)
    assert result.exit_code == 0
    assert said(result, "To do") == "nothing · 6 videos done before"
    assert forwards == []
    assert (out.read_bytes(), out.stat().st_mtime_ns) == (before, state)


def test_added_videos_are_banked_and_nothing_is_renamed(data: Path, out: Path) -> None:
    extract(data, out)
    make_clip(data / "class0" / "clip0.avi", frames=3, codec="mpeg4")
    make_clip(data / "class0" / "clip6.mp4", frames=3)
    assert said(extract(data, out), "Banked").startswith("2 videos · 6 frames")
    with Bank(out) as bank:
        assert len(bank) == 8
        assert len(bank["class0/clip0"]) == 4
        assert len(bank["class0/clip0.avi"]) == 3
        assert bank.verify() == []


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        (["--stride", "2"], "frames taken is every frame (banked) and one in 2 (now)"),
        (["--image-size", "64"], "preprocessing.crop is 48 (banked) and 64 (now)"),
        (["--fit", "squash"], "preprocessing.fit is crop (banked) and squash (now)"),
        (["--layer", "features.3"], "layer is features.12.cat:mean (banked) and features.3 (now)"),
        (["--seed", "1"], "random (seed 0) (banked)"),
        (["--store", "float32"], "store is float16 (banked) and float32 (now)"),
        (["--precision", "bf16"], "precision is fp32 (banked) and bf16 (now)"),
        (["--crop", "0,0,32,32"], "crop is none (banked) and 0,0,32,32 (now)"),
        (["--backbone", "squeezenet1_0"], "backbone is squeezenet1_1 (banked) and squeezenet1_0 (now)"),
    ],
)
def test_another_recipe_is_refused_with_both_values(
    changes: list[str], differing: str, data: Path, out: Path, forwards: list[int]
) -> None:
    extract(data, out)
    before = out.read_bytes()
    forwards.clear()
    result = extract(data, out, *changes)
    assert result.exit_code == 2
    assert differing in result.stderr
    assert result.stderr.count("\n") == 1
    assert forwards == []
    assert out.read_bytes() == before


def test_auto_keeps_to_what_the_bank_was_begun_with(data: Path, out: Path) -> None:
    first = [argument for argument in SETTINGS if argument not in ("--precision", "fp32")]
    framebank("extract", data, "--out", out, *first, "--precision", "fp32", "--batch-size", "3")
    make_clip(data / "new.mp4", frames=3)
    assert framebank("extract", data, "--out", out, *first).exit_code == 0
    with Bank(out) as bank:
        assert bank.config["recipe"]["precision"] == "fp32"
        assert bank.config["compute"]["batch_size"] == 3
        assert len(bank) == 7


def test_broken_videos_stand_in_the_ledger_and_can_be_retried(data: Path, out: Path) -> None:
    broken = data / "class1" / "broken.mp4"
    broken.write_bytes(b"")
    result = extract(data, out)
    assert result.exit_code == 3
    assert "class1/broken: empty file (0 bytes)" in result.stdout
    assert said(result, "Banked").startswith("6 videos")
    state = broken.stat()
    again = extract(data, out)
    assert again.exit_code == 3
    assert "1 failed before" in said(again, "To do")
    assert said(again, "Failed") == "1 video before"
    shutil.copy(data / "class1" / "clip1.mp4", broken)  # mended: another size, so it is tried without being asked
    assert extract(data, out).exit_code == 0
    with Bank(out) as bank:
        assert len(bank.failures) == 0
        assert len(bank["class1/broken"]) == 5
    broken.write_bytes(b"")
    os.utime(broken, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert extract(data, out, "--retry-failed").exit_code == 3


def test_partial_videos_are_failures_unless_allowed(tmp_path: Path, out: Path) -> None:
    whole = make_clip(tmp_path / "data" / "whole.mkv", frames=40, codec="mpeg4")
    (whole.parent / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    result = extract(whole.parent, out)
    assert result.exit_code == 3
    assert "--allow-partial" in result.stdout
    result = extract(whole.parent, out, "--allow-partial", "--retry-failed")
    assert result.exit_code == 0
    assert "1 only in part" in said(result, "Banked")
    with Bank(out) as bank:
        assert bank.catalog.set_index("id").loc["cut", "partial"].startswith("the file ends early")
    assert "1 video decoded only in part" in framebank("describe", out).stdout


def test_a_changed_source_is_noticed_and_a_copied_one_is_not_done_again(data: Path, out: Path) -> None:
    extract(data, out)
    for file in data.rglob("*.mp4"):
        os.utime(file, (1e9, 1e9))
    result = extract(data, out)
    assert said(result, "Skipped") == "6 videos done before"
    make_clip(data / "class0" / "clip0.mp4", frames=11)
    result = extract(data, out)
    assert said(result, "Changed").startswith("1 video since banked, e.g. class0/clip0")
    with Bank(out) as bank:
        assert len(bank["class0/clip0"]) == 11
        assert bank.verify() == []


def test_moved_data_is_recognised(data: Path, out: Path, forwards: list[int]) -> None:
    extract(data, out)
    moved = data.rename(data.with_name("moved"))
    forwards.clear()
    result = extract(moved, out)
    assert said(result, "Updated") == "source of 6 videos"
    assert forwards == []
    with Bank(out) as bank:
        assert bank.catalog["source"].str.startswith(str(moved)).all()


def test_one_id_for_two_files_is_refused(data: Path, out: Path) -> None:
    extract(data, out)
    other = make_clip(data.with_name("other") / "class0" / "clip0.mp4", frames=20)
    result = extract(other.parent.parent, out)
    assert result.exit_code == 2
    assert "'class0/clip0' from" in result.stderr
    assert len(Bank(out)["class0/clip0"]) == 4


def test_new_labels_reach_the_bank_without_a_forward(data: Path, out: Path, forwards: list[int]) -> None:
    extract(data, out)
    lines = ["path,label,split,group,camera"]
    lines += [f"class{n % 2}/clip{n}.mp4,new{n % 3},train,g{n},north" for n in range(6)]
    (data / "manifest.csv").write_text("\n".join(lines))
    forwards.clear()
    result = extract(data, out)
    assert result.exit_code == 0
    assert said(result, "Updated") == "label, split, group, camera of 6 videos"
    assert forwards == []
    with Bank(out) as bank:
        row = bank.catalog.set_index("id").loc["class0/clip4"]
        assert (row["label"], row["split"], row["group"], row["camera"]) == ("new1", "train", "g4", "north")
        assert bank.file_of("class0/clip4")["videos/class0/clip4"].attrs["label"] == "new1"
    (data / "manifest.csv").unlink()
    assert extract(data, out).exit_code == 0
    assert Bank(out).catalog["group"].tolist().count("g4") == 1  # a folder knows no groups, and erases none


def test_a_manifest_with_spans_and_crops(tmp_path: Path, out: Path) -> None:
    clip = make_clip(tmp_path / "data" / "day.mp4", frames=40, size=(64, 48))
    manifest = clip.parent / "list.csv"
    manifest.write_text(
        "path,start,end,label,crop_x,crop_y,crop_w,crop_h\nday.mp4,0,1,a,0,0,32,32\nday.mp4,1.5,2.5,b,,,,\nday.mp4,3,9,c,60,0,32,32\n"
    )
    result = extract(manifest, out)
    assert result.exit_code == 3
    assert "the crop region x=60" in result.stdout
    with Bank(out) as bank:
        assert bank.frame_index("day@0-1").tolist() == list(range(10))
        assert bank.frame_index("day@1.5-2.5").tolist() == list(range(15, 25))
        assert bank.catalog["crop"].tolist() == ["0,0,32,32", ""]
    manifest.write_text("path,id,start,end\nday.mp4,day@0-1,0,2\n")
    assert said(extract(manifest, out), "Changed").startswith("1 video")
    assert len(Bank(out)["day@0-1"]) == 20


def test_folders_of_images_beside_videos(tmp_path: Path, out: Path) -> None:
    from PIL import Image

    make_clip(tmp_path / "data" / "a" / "clip.mp4", frames=5)
    frames = tmp_path / "data" / "b" / "frames"
    frames.mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (40 + number, 30), (20 * number, 0, 0)).save(frames / f"{number}.png")
    assert extract(tmp_path / "data", out).exit_code == 0
    with Bank(out) as bank:
        assert len(bank["b/frames"]) == 12
        assert np.isnan(bank.timestamps("b/frames")).all()
        assert bank.verify() == []
    result = extract(tmp_path / "data", out, "--image-fps", "4")
    assert said(result, "Changed").startswith("1 video")
    assert Bank(out).timestamps("b/frames")[-1] == pytest.approx(11 / 4)


def test_conv_maps_and_uniform_frames(data: Path, out: Path) -> None:
    assert extract(data, out, "--layer", "features.12.cat", "--frames", "3").exit_code == 0
    with Bank(out) as bank:
        assert bank["class1/clip5"].shape == (3, 512, 2, 2)
        assert bank.frame_index("class1/clip5").tolist() == [1, 4, 7]
        assert bank.verify() == []
    assert "(T, 512, 2, 2) float16" in framebank("describe", out).stdout


def test_a_dry_run_writes_nothing_and_estimates(data: Path, out: Path) -> None:
    result = extract(data, out, "--dry-run")
    assert result.exit_code == 0
    assert "nothing was banked" in said(result, "Estimate")
    assert list(out.parent.iterdir()) == [data]
    extract(data, out)
    assert said(extract(data, out, "--dry-run"), "To do") == "nothing · 6 videos done before"


def test_quiet_is_quiet(data: Path, out: Path) -> None:
    result = extract(data, out, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_without_packing_the_bank_links_to_its_parts(data: Path, out: Path) -> None:
    assert extract(data, out, "--no-pack").exit_code == 0
    with h5py.File(out) as file:
        assert file["videos/class0/clip0/features"].shape == (4, 512)
    assert banks.parts_folder(out).exists()
    assert "packed" in framebank("pack", out).stdout
    assert Bank(out).verify() == []
    assert not banks.parts_folder(out).exists()


def test_names_that_are_not_utf8_are_banked_and_recognised(tmp_path: Path, out: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=3)
    folder = os.fsencode(tmp_path / "data")
    (tmp_path / "data").mkdir()
    shutil.copy(os.fsencode(clip), folder + b"/caf\xe9.mp4")
    assert extract(tmp_path / "data", out).exit_code == 0
    assert list(Bank(out)) == ["caf%E9"]
    assert said(extract(tmp_path / "data", out), "Skipped") == "1 video done before"
    name = os.fsdecode(b"/x/caf\xe9 \\ \xc3\xa9.mp4")
    assert source_path(source_text(name)) == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "resnet5"], "did you mean resnet"),
        (["--weights", "IMAGENET"], "has no weights 'IMAGENET'"),
        (["--weights", "missing.pth"], "missing.pth"),
        (["--layer", "features.99"], "features."),
        (["--preset", "X"], "no preset 'X'"),
        (["--device", "gpu"], "'gpu' is not usable here"),
        (["--image-size", "8"], "8"),
        (["--stride", "2", "--fps", "1"], "exclude one another"),
        (["--stride", "0"], "--stride"),
        (["--crop", "1,2,3"], "whole pixels"),
        (["--crop", "0,0,0,9"], "width, height of at least 1"),
        (["--batch-size", "many"], "neither auto"),
        (["--label-from", "("], "regular expression"),
        (["--split-list", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], message: str, data: Path, out: Path) -> None:
    result = extract(data, out, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_missing_data_and_impossible_banks_are_one_line(data: Path, out: Path, tmp_path: Path) -> None:
    assert "nowhere" in extract(tmp_path / "nowhere", out).stderr
    (tmp_path / "empty").mkdir()
    assert extract(tmp_path / "empty", out).exit_code == 2
    assert extract(data, tmp_path).exit_code == 2
    (tmp_path / "file").write_text("")
    result = extract(data, tmp_path / "file" / "bank.h5")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    out.write_bytes(b"something else")
    assert "cannot be read as a framebank bank" in extract(data, out).stderr
    assert out.read_bytes() == b"something else"


def test_a_bank_of_nothing_but_failures_takes_new_settings(data: Path, out: Path) -> None:
    assert extract(data, out, "--crop", "0,0,9000,9000").exit_code == 3
    assert len(Bank(out)) == 0
    result = extract(data, out, "--crop", "0,0,32,32")
    assert result.exit_code == 0
    with Bank(out) as bank:
        assert len(bank) == 6
        assert len(bank.failures) == 0
        assert bank.config["recipe"]["crop"] == "0,0,32,32"


def test_what_is_banked_of_a_deleted_file_stays(data: Path, out: Path) -> None:
    (data / "manifest.csv").write_text("path,label\nclass0/clip0.mp4,a\nclass1/clip1.mp4,b\n")
    extract(data, out)
    (data / "class0" / "clip0.mp4").unlink()
    result = extract(data, out)
    assert result.exit_code == 0
    assert said(result, "Gone").startswith("1 file, e.g. class0/clip0")
    assert len(Bank(out)["class0/clip0"]) == 4


def test_one_file_under_two_ids_is_remarked_on(data: Path, out: Path) -> None:
    extract(data, out)
    (data / "manifest.csv").write_text("path,id\nclass0/clip0.mp4,mine\n")
    assert "files banked already under other ids: 1, e.g. mine" in extract(data, out).stdout


def test_an_empty_bank_is_filled(data: Path, out: Path) -> None:
    """As a kill before the first part leaves one."""
    extract(data, out)
    framebank("remove", out, *Bank(out))
    assert len(Bank(out)) == 0
    assert extract(data, out).exit_code == 0
    assert len(Bank(out)) == 6


def test_a_bank_of_failures_alone_is_begun_again_with_settings_of_its_own(tmp_path: Path) -> None:
    """Those of the failures' run bind nothing: neither what was asked, nor how it was computed."""
    (tmp_path / "a.mp4").write_bytes(b"not a film")
    assert extract(tmp_path, tmp_path / "b.h5", "--batch-size", 3).exit_code == 3
    make_clip(tmp_path / "b.mp4", frames=4)
    assert extract(tmp_path, tmp_path / "b.h5", "--fit", "pad").exit_code == 3
    with Bank(tmp_path / "b.h5") as bank:
        assert list(bank) == ["b"]
        assert bank.config["compute"]["batch_size"] == 8
