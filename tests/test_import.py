"""Features that other programs made, imported: arrays, video_features, HDF5; and what is refused, video by video."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result

from pipeline.bank import Bank
from pipeline.errors import UserError, VideoError
from pipeline.import_sources import decide
from pipeline.imported import Counting, pieces, times_of
from tests.banks import in_order
from tests.commands import framebank, said
from tests.exchange import real_bank


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real bank, and its exports `npy/` and `c3d.hdf5`."""
    folder = tmp_path_factory.mktemp("exported")
    bank = real_bank(folder)
    assert framebank("export", bank, "--to", "npy", "--out", folder / "npy").exit_code == 0
    assert framebank("export", bank, "--to", "c3d", "--out", folder / "c3d.hdf5").exit_code == 0
    assert framebank("export", bank, "--to", "csv", "--out", folder / "catalog.csv").exit_code == 0
    return folder


def features(video: int, rows: int, columns: int = 6) -> np.ndarray:
    return np.random.default_rng(video).normal(size=(rows, columns)).astype(np.float32)


def arrays(folder: Path, count: int = 4, columns: int = 6) -> Path:
    """`count` .npy files T×D of two classes."""
    for video in range(count):
        path = folder / f"class{video % 2}" / f"v{video}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, features(video, 5 + video, columns))
    return folder


def imported(data: Path, out: Path, *arguments: object, status: int = 0) -> Result:
    result = framebank("import", data, "--out", out, *arguments)
    assert result.exit_code == status, result.output
    return result


def reasons(bank: Path) -> dict[str, str]:
    with Bank(bank) as opened:
        return dict(zip(opened.failures["id"], opened.failures["reason"], strict=True))


def same(one: Bank, other: Bank) -> None:
    """All that a bank says of its videos, but for where they came from and how they were decoded."""
    assert list(one) == list(other)
    for video in one:
        assert one[video].dtype == other[video].dtype
        np.testing.assert_array_equal(one[video], other[video])
        np.testing.assert_array_equal(one.timestamps(video), other.timestamps(video))
        np.testing.assert_array_equal(one.frame_index(video), other.frame_index(video))
    columns = ["id", "label", "split", "group", "camera", "fps", "duration", "start_time", "rows"]
    pd.testing.assert_frame_equal(one.catalog[columns], other.catalog[columns])


def test_npy_and_back_is_the_same_bank(exported: Path, out: Path) -> None:
    imported(exported / "npy", out)
    with Bank(exported / "bank.h5") as one, Bank(out) as other:
        same(one, other)
    assert framebank("describe", out, "--verify").exit_code == 0


def test_c3d_and_back_is_the_same_bank(exported: Path, out: Path) -> None:
    imported(exported / "c3d.hdf5", out, "--labels", exported / "catalog.csv")
    with Bank(exported / "bank.h5") as one, Bank(out) as other:
        same(one, other)
        assert other.catalog["digest"].is_unique, "though all are in one file"
    assert framebank("describe", out, "--verify").exit_code == 0


def test_ms_tcn_and_back_is_the_same_bank(exported: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "segments.csv").write_text("id,start,end,label\nwalk/a,0,0.3,x\nwalk/c,0,0.3,x\n")
    segments = ("--segments", tmp_path / "segments.csv", "--background", "none")
    result = framebank("export", exported / "bank.h5", "--to", "ms-tcn", "--out", tmp_path / "there", *segments)
    assert result.exit_code == 0, result.output
    imported(tmp_path / "there", out)
    with Bank(exported / "bank.h5") as one, Bank(out) as other:
        same(one, other)


def test_mixing_with_what_was_extracted_is_refused(exported: Path, out: Path, tmp_path: Path) -> None:
    imported(exported / "npy", out)
    result = framebank("merge", out, exported / "bank.h5", "--out", tmp_path / "both.h5")
    assert result.exit_code == 2
    assert "never mix: backbone is imported (bank.h5) and squeezenet1_1 (bank.h5)." in result.stderr
    result = framebank("import", exported / "npy", "--out", exported / "bank.h5")
    assert (result.exit_code, "was extracted from videos" in result.stderr) == (2, True)
    result = framebank(
        "extract", exported / "clips", "--out", out, "--backbone", "squeezenet1_1", "--weights", "random"
    )
    assert (result.exit_code, "holds imported features" in result.stderr) == (2, True)


def test_rows_that_come_second_are_found_and_turned(tmp_path: Path, out: Path) -> None:
    for video in range(3):
        np.save(tmp_path / f"v{video}.npy", features(video, 5 + video).T)
    (tmp_path / "data").mkdir()
    for video in range(3):
        (tmp_path / f"v{video}.npy").rename(tmp_path / "data" / f"v{video}.npy")
    imported(tmp_path / "data", out, "--store", "float32")
    with Bank(out) as bank:
        np.testing.assert_array_equal(bank["v1"], features(1, 6))
        assert bank.config["imported"]["layout"] == "dt"


def test_a_layout_that_is_not_certain_is_asked_for() -> None:
    assert decide({"a": (4, 6), "b": (5, 6)}, None) == ("td", 6)
    assert decide({"a": (6, 4), "b": (6, 5)}, None) == ("dt", 6)
    assert decide({"a": (4, 6), "b": (5, 6), "c": (4, 7)}, "td") == ("td", 6)
    assert decide({"a": (4, 6)}, None, is_td=True) == ("td", 6)
    assert decide({"a": (4, 6)}, None, rows={"a": 4}) == ("td", 6)
    assert decide({"a": (4, 6), "b": (4, 6)}, None, rows={"a": 6, "b": 6}) == ("dt", 4)
    for shapes in ({"a": (4, 6)}, {"a": (4, 6), "b": (4, 6)}, {"a": (4, 6), "b": (5, 6), "c": (4, 7)}):
        with pytest.raises(UserError, match=r"--layout td .* --layout dt"):
            decide(shapes, None)
    with pytest.raises(UserError, match="As many videos have 6 features as have 7"):
        decide({"a": (4, 6), "b": (4, 7)}, "td")
    with pytest.raises(UserError, match=r"no array of two axes.*\(4, 2, 2\)"):
        decide({"a": (4, 2, 2)}, None)


def test_each_kind_of_file(tmp_path: Path, out: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [features(video, 5 + video) for video in range(6)]
    np.save(data / "npy64.npy", rows[0].astype(np.float64))
    np.savez(data / "npz.npz", rows[1])
    np.savez_compressed(data / "timed.npz", features=rows[2], other=rows[0], timestamps=np.arange(7) / 4, fps=4)
    torch.save(torch.from_numpy(rows[3]), data / "tensor.pt")
    torch.save({"features": torch.from_numpy(rows[4]).bfloat16(), "fps": 5.0, "name": "x"}, data / "dict.pth")
    np.save(data / "whole.npy", np.arange(60, dtype=np.int16).reshape(10, 6))
    imported(data, out, "--store", "float32", "--fps", "2")
    with Bank(out) as bank:
        np.testing.assert_array_equal(bank["npy64"], rows[0])
        np.testing.assert_array_equal(bank["npz"], rows[1])
        np.testing.assert_array_equal(bank["timed"], rows[2])
        np.testing.assert_array_equal(bank["tensor"], rows[3])
        np.testing.assert_array_equal(bank["dict"], torch.from_numpy(rows[4]).bfloat16().float().numpy())
        np.testing.assert_array_equal(bank["whole"], np.arange(60).reshape(10, 6))
        np.testing.assert_array_equal(bank.timestamps("timed"), np.arange(7) / 4)
        np.testing.assert_array_equal(bank.timestamps("dict"), np.arange(9) / 5)
        np.testing.assert_array_equal(bank.timestamps("npz"), np.arange(6) / 2)


def test_what_video_features_writes(tmp_path: Path, out: Path) -> None:
    """v-iashin/video_features: models/_base/base_extractor.py (`action_on_extraction`) and utils/utils.py
    (`make_path`) name the files, models/_base/base_framewise_extractor.py says what is in them."""
    data = tmp_path / "i3d"
    data.mkdir()
    for video, stem in enumerate(("v_one", "v_two")):
        for feature in ("rgb", "flow"):
            np.save(data / f"{stem}_{feature}.npy", features(video, 5).astype(np.float64))  # as lists become arrays
        np.save(data / f"{stem}_fps.npy", np.array(25.0))
        np.save(data / f"{stem}_timestamps_ms.npy", 2560.0 * np.arange(1, 6))
    result = framebank("import", data, "--out", out)
    assert result.exit_code == 2
    assert "flow (2 files)" in result.stderr
    assert "rgb (2 files)" in result.stderr
    result = imported(data, out, "--feature", "rgb", "--store", "float32")
    assert "imported as i3d/rgb (video_features)" in said(result, "Features")
    with Bank(out) as bank:
        assert list(bank) == ["v_one", "v_two"]
        np.testing.assert_array_equal(bank["v_two"], features(1, 5))
        np.testing.assert_allclose(bank.timestamps("v_one"), 2.56 * np.arange(1, 6))
        assert list(bank.catalog["fps"]) == [25, 25]
    result = imported(data, out, "--feature", "rgb", "--store", "float32")
    assert said(result, "To do").startswith("nothing · 2 videos done before")
    for stem in ("v_one", "v_two"):
        (data / f"{stem}_flow.npy").unlink()
    assert "imported as i3d/rgb" in said(imported(data, tmp_path / "one.h5"), "Features"), "the only one needs no name"


@pytest.mark.parametrize("feature", [None, "vgg"])
def test_hdf5_of_datasets_and_of_groups(feature: str | None, tmp_path: Path, out: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for video in range(3):
            name = f"c{video % 2}/v{video}" + (f"/{feature}" if feature else "")
            file[name] = features(video, 5 + video)
            if feature:
                file[f"c{video % 2}/v{video}/other"] = np.zeros(3)
    if feature:
        result = framebank("import", tmp_path / "all.h5", "--out", out)
        assert (result.exit_code, "(other, vgg)" in result.stderr) == (2, True)
    chosen = ("--feature", feature) if feature else ()
    imported(
        tmp_path / "all.h5", out, "--store", "float32", "--fps", "16", "--feat-stride", "8", "--offset", "4", *chosen
    )
    with Bank(out) as bank:
        assert list(bank) == ["c0/v0", "c0/v2", "c1/v1"]
        assert list(bank.catalog["label"]) == ["c0", "c0", "c1"]
        np.testing.assert_array_equal(bank["c0/v2"], features(2, 7))
        np.testing.assert_array_equal(bank.frame_index("c0/v0"), [4, 12, 20, 28, 36])
        np.testing.assert_array_equal(bank.timestamps("c0/v0"), [0.25, 0.75, 1.25, 1.75, 2.25])


def test_every_fault_is_in_the_ledger_with_its_reason(tmp_path: Path, out: Path) -> None:
    data = arrays(tmp_path / "data")
    base = features(9, 6)
    for name, value in (("nan", np.nan), ("infinite", np.inf), ("large", 1e6)):
        changed = base.copy()
        changed[3, 2] = value
        np.save(data / f"{name}.npy", changed)
    np.save(data / "huge.npy", np.where(np.arange(6) == 1, 1e300, base.astype(np.float64)))
    np.save(data / "three.npy", np.zeros((4, 2, 3)))
    np.save(data / "flat.npy", np.zeros(6))
    np.save(data / "wide.npy", np.zeros((4, 7)))
    np.save(data / "none.npy", np.zeros((0, 6)))
    np.save(data / "text.npy", np.full((4, 6), "x"))
    np.save(data / "complex.npy", np.zeros((4, 6), complex))
    np.save(data / "objects.npy", np.array([[None] * 6] * 3), allow_pickle=True)
    (data / "cut.npy").write_bytes((data / "class0" / "v0.npy").read_bytes()[:150])
    (data / "zip.npz").write_bytes(b"PK no zip")
    (data / "word.pt").write_bytes(b"no tensor")
    torch.save({"model": torch.nn.Linear(2, 2)}, data / "module.pt")
    np.savez(data / "two.npz", a=base, b=base)
    np.savez(data / "times.npz", features=base, timestamps=np.arange(5))
    np.savez(data / "back.npz", features=base, timestamps=[0, 1, 2, 1, 3, 4])
    result = imported(data, out, "--layout", "td", "--fps", "5", status=3)
    assert said(result, "Failed").startswith("18 videos")
    found = reasons(out)
    for video, words in {
        "nan": "row 3 has nan at feature 2",
        "infinite": "row 3 has inf at feature 2",
        "large": "1e+06 is beyond float16; use --store float32",
        "huge": "row 0 has 1e+300, beyond float32, at feature 1",
        "three": "three.npy has shape (4, 2, 3)",
        "flat": "flat.npy has shape (6,)",
        "wide": "wide.npy has shape (4, 7); the others are T×D with D = 6",
        "none": "none.npy",
        "text": "no real numbers",
        "complex": "complex128",
        "objects": "Python objects",
        "cut": "cut.npy cannot be read",
        "zip": "zip.npz cannot be read",
        "word": "word.pt is damaged or holds more than plain tensors",
        "module": "module.pt is damaged or holds more than plain tensors",
        "two": "'a', 'b', not 'features'; --feature says which",
        "times": "timestamps has shape (5,); it takes 6",
        "back": "decrease or are missing at row 3 (2 s, then 1 s)",
    }.items():
        assert words in found.pop(video), video
    assert not found
    with Bank(out) as bank:
        assert list(bank) == ["class0/v0", "class0/v2", "class1/v1", "class1/v3"]
    assert said(imported(data, out, "--layout", "td", "--fps", "5", status=3), "To do").startswith("nothing · 4 videos")


def test_it_goes_on_and_does_changed_files_again(tmp_path: Path, out: Path) -> None:
    data = arrays(tmp_path / "data", 3)
    imported(data, out, "--fps", "5")
    np.save(data / "class1" / "v3.npy", features(3, 8))
    np.save(data / "class0" / "v0.npy", features(7, 9))
    result = imported(data, out, "--fps", "5")
    assert said(result, "To do").startswith("2 videos · 2 videos done before")
    with Bank(out) as bank:
        assert bank["class0/v0"].shape == (9, 6)
        assert len(bank) == 4
    result = framebank("import", data, "--out", out, "--fps", "6")
    assert result.exit_code == 2
    assert "fps is 5.0 (banked) and 6.0 (now)" in result.stderr
    (tmp_path / "data").rename(tmp_path / "moved")
    result = framebank("import", tmp_path / "moved", "--out", out, "--fps", "5")
    assert (result.exit_code, "name is data (banked) and moved (now)" in result.stderr) == (2, True)
    assert said(imported(tmp_path / "moved", out, "--fps", "5", "--name", "data"), "To do").startswith("nothing · 4")


def test_interrupted_it_seals_what_is_finished_and_goes_on(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import importing
    from stages import import_features

    def interrupting(*arguments: Any, on_video: Callable[[int, bool], None], **options: Any) -> bool:
        def then(rows: int, failed: bool) -> None:
            on_video(rows, failed)
            os.kill(os.getpid(), signal.SIGINT)

        return importing.import_all(*arguments, on_video=then, **options)

    data = arrays(tmp_path / "data")
    with monkeypatch.context() as patched:
        patched.setattr(import_features, "import_all", interrupting)
        result = imported(data, out, status=130)
    assert "Interrupted with 3 videos to go" in result.stdout
    with Bank(out) as bank:
        assert list(bank) == ["class0/v0"]
    assert said(imported(data, out), "To do").startswith("3 videos · 1 video done before")
    with Bank(out) as bank:
        assert len(bank) == 4


def test_labels_of_a_csv_are_joined(tmp_path: Path, out: Path) -> None:
    data = arrays(tmp_path / "data", 3)
    (tmp_path / "labels.csv").write_text("ID,label,group,weather\nv0,rain,g1,wet\nclass1/v1,,g2,dry\nv9,sun,g3,dry\n")
    result = imported(data, out, "--labels", tmp_path / "labels.csv")
    assert "ids in labels.csv that are not there: 1, e.g. v9" in result.stdout
    assert "videos that labels.csv does not name: 1, e.g. class0/v2" in result.stdout
    with Bank(out) as bank:
        assert list(bank.catalog["label"]) == ["rain", "class0", "class1"]
        assert list(bank.catalog["group"]) == ["g1", "", "g2"]
        assert list(bank.catalog["weather"]) == ["wet", "", "dry"]
    (tmp_path / "labels.csv").write_text("name,label\nv0,x\n")
    result = framebank("import", data, "--out", out, "--labels", tmp_path / "labels.csv")
    assert (result.exit_code, "no column id (its columns: name, label)" in result.stderr) == (2, True)
    (tmp_path / "labels.csv").write_text("id,label\nv0,x\nclass0/v0,y\n")
    result = framebank("import", data, "--out", out, "--labels", tmp_path / "labels.csv")
    assert (result.exit_code, "line 3: 'class0/v0' is there twice" in result.stderr) == (2, True)


def test_a_manifest_has_its_say(tmp_path: Path, out: Path) -> None:
    data = arrays(tmp_path / "data", 2)
    lines = (
        "path,id,label,split,fps\nclass0/v0.npy,zero,a,train,8\nclass1/v1.npy,one,b,test,\nclass1/gone.npy,gone,b,,\n"
    )
    (data / "manifest.csv").write_text(lines)
    imported(data, out, "--fps", "4", status=3)
    assert reasons(out) == {"gone": "the file does not exist"}
    with Bank(out) as bank:
        assert list(bank.catalog["id"]) == ["one", "zero"]
        assert list(bank.catalog["split"]) == ["test", "train"]
        np.testing.assert_array_equal(bank.timestamps("zero"), np.arange(5) / 8)
        np.testing.assert_array_equal(bank.timestamps("one"), np.arange(6) / 4)
    (data / "manifest.csv").write_text("path,start,end\nclass0/v0.npy,0,1\n")
    result = framebank("import", data, "--out", out)
    assert (result.exit_code, "spans or crops" in result.stderr) == (2, True)


def test_what_is_no_data(tmp_path: Path, exported: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data, words in (
        (tmp_path / "gone", "No such file"),
        (tmp_path / "empty", "holds no file of features"),
        (tmp_path / "gone.h5", "no such file"),
        (exported / "bank.h5", "is a framebank bank already"),
    ):
        result = framebank("import", data, "--out", out)
        assert (result.exit_code, words in result.stderr) == (2, True), result.stderr
    (tmp_path / "text.h5").write_text("no HDF5")
    result = framebank("import", tmp_path / "text.h5", "--out", out)
    assert (result.exit_code, "cannot be read as HDF5" in result.stderr) == (2, True)


def test_long_arrays_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.imported._PIECE_BYTES", 1000)
    array = features(0, 5, 1200)
    found = list(pieces(array, "dt"))
    assert len(found) > 1
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in found]), array.T)
    assert [place.start for place, _ in found[1:]] == [place.stop for place, _ in found[:-1]]


def test_times_that_nobody_gives_are_not_invented() -> None:
    times = times_of({}, 3, Counting(), float("nan"))
    assert np.isnan(times.seconds).all()
    assert (times.fps, times.frames.tolist()) == (0, [0, 1, 2])
    with pytest.raises(VideoError, match="frame_index does not increase at row 2"):
        times_of({"frame_index": np.array([0, 1, 1])}, 3, Counting(), float("nan"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `bank.h5` of imported features without times, `timed.h5` with, and `run`, a head on the first."""
    folder = tmp_path_factory.mktemp("run")
    for video, rows in in_order(24).items():
        (folder / "data" / video).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / "data" / f"{video}.npy", rows)
    imported(folder / "data", folder / "bank.h5", "--name", "saw")
    imported(folder / "data", folder / "timed.h5", "--name", "saw", "--fps", "10")
    settings = ("--epochs", "2", "--hidden", "4", "--pca", "0")
    result = framebank("train-head", folder / "bank.h5", "--out", folder / "run", *settings)
    assert result.exit_code == 0, result.output
    assert "evaluate" in said(result, "Next")
    return folder


def test_every_command_reads_it(run: Path, tmp_path: Path) -> None:
    bank = run / "bank.h5"
    shown = framebank("describe", bank)
    assert said(shown, "Imported").startswith(f"from {run / 'data'}: as saw (arrays); times of the files, else none")
    assert "Backbone" not in shown.stdout
    assert "none (--fps gives one)" in framebank("describe", bank, "rising/001").stdout
    assert framebank("describe", bank, "--stats").exit_code == 0
    assert framebank("describe", bank, "--verify").exit_code == 0
    assert framebank("explore", bank, "--out", tmp_path / "bank.html").exit_code == 0
    page = (tmp_path / "bank.html").read_text("utf-8")
    assert "imported as saw" in page
    assert "its features were imported" in page
    assert framebank("evaluate", run / "run").exit_code == 0
    assert framebank("evaluate", run / "run", bank, "--split", "all").exit_code in (0, 2)
    assert framebank("report", run / "run", "--out", tmp_path / "run.html").exit_code == 0
    assert "imported as saw" in (tmp_path / "run.html").read_text("utf-8")
    assert framebank("compare", run / "run").exit_code == 0
    assert framebank("merge", bank, "--out", tmp_path / "merged.h5").exit_code == 0
    assert framebank("remove", tmp_path / "merged.h5", "rising/001").exit_code == 0
    assert framebank("pack", tmp_path / "merged.h5").exit_code == 0
    with Bank(tmp_path / "merged.h5") as merged:
        assert len(merged) == 23


def test_a_head_on_it_cannot_see_a_video_and_says_what_to_do(run: Path, data: Path, tmp_path: Path) -> None:
    clip = next(data.rglob("*.mp4"))
    result = framebank("predict", run / "run", clip)
    assert result.exit_code == 2
    assert "no backbone here" in result.stderr
    assert "framebank predict RUN --bank BANK" in result.stderr
    result = framebank("finetune", data, "--head", run / "run", "--out", tmp_path / "tuned")
    assert (result.exit_code, "trained on imported features" in result.stderr) == (2, True)
    result = framebank("extract", data, "--weights", run / "run", "--out", tmp_path / "new.h5")
    assert (result.exit_code, "were imported" in result.stderr) == (2, True)


def test_new_features_are_scored_by_a_bank_of_theirs(run: Path, tmp_path: Path) -> None:
    for video, rows in in_order(6, seed=5).items():
        (tmp_path / "new" / video).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "new" / f"{video}.npy", rows)
    imported(tmp_path / "new", tmp_path / "new.h5", "--name", "saw")
    result = framebank("evaluate", run / "run", tmp_path / "new.h5", "--json", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "scores.json").read_text())
    labelled = framebank("predict", run / "run", "--bank", tmp_path / "new.h5", "--csv", tmp_path / "labels.csv")
    assert labelled.exit_code == 0, labelled.output
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 7


def test_segments_need_times(run: Path, tmp_path: Path) -> None:
    lines = [f"{'rising' if n % 2 else 'falling'}/{n:03},0,0.4,a" for n in range(24)]
    (tmp_path / "segments.csv").write_text("id,start,end,label\n" + "\n".join(lines) + "\n")
    settings = (
        "--segments",
        tmp_path / "segments.csv",
        "--background",
        "b",
        "--epochs",
        "1",
        "--hidden",
        "4",
        "--pca",
        "0",
    )
    result = framebank("train-head", run / "bank.h5", "--out", tmp_path / "no", *settings)
    assert result.exit_code == 2
    assert "has no clock" in result.stderr
    result = framebank("train-head", run / "timed.h5", "--out", tmp_path / "yes", *settings)
    assert result.exit_code == 0, result.output
    result = framebank("export", run / "bank.h5", "--to", "npy", "--out", tmp_path / "npy")
    assert "have no clock" in said(result, "Note")
    assert not (tmp_path / "npy" / "annotations.json").exists()
    imported(tmp_path / "npy", tmp_path / "again.h5")
    with Bank(tmp_path / "again.h5") as again:
        assert np.isnan(again.timestamps("rising/001")).all()
