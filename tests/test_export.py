"""Exports of a real bank, read as the programs that they are for read them, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.bank import Bank
from pipeline.exporting import flat_name, id_of
from tests.banks import bank_of, in_order
from tests.commands import framebank, said
from tests.exchange import actionformer, captioning, ms_tcn, real_bank

SEGMENTS = "id,start,end,label\npunch/a.b,0,0.35,raise arm\npunch/a.b,0.5,0.9,strike\nwalk/c,0.2,1.0,raise arm\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `bank.h5` and `segments.csv`."""
    folder = tmp_path_factory.mktemp("exports")
    real_bank(folder)
    (folder / "segments.csv").write_text(SEGMENTS)
    return folder


@pytest.fixture(scope="module")
def bank(folder: Path) -> Path:
    return folder / "bank.h5"


def test_npy_is_what_actionformer_loads(bank: Path, folder: Path, tmp_path: Path) -> None:
    segments = ("--segments", folder / "segments.csv")
    result = framebank("export", bank, "--to", "npy", "--out", tmp_path / "out", *segments)
    assert result.exit_code == 0, result.output
    assert said(result, "Exported").startswith("5 videos · 49 rows as npy")
    settings = tmp_path / "out" / "actionformer.yaml"
    assert json.loads(settings.read_text())["train_split"] == ["train"]
    assert json.loads(settings.read_text())["val_split"] == ["test"]
    taken = actionformer(settings, ["train", "test"])
    with Bank(bank) as opened:
        assert list(taken) == list(opened.catalog["id"])
        for video, found in taken.items():
            np.testing.assert_array_equal(found["features"], opened[video].astype(np.float32))
            assert found["duration"] == pytest.approx(len(opened[video]) / 10, abs=1e-4)
    # Row i stands for the time from i / 10 s on; ActionFormer puts it at i + 0.5 of its grid.
    np.testing.assert_allclose(taken["punch/a.b"]["grid"], [[-0.5, 3.0], [4.5, 8.5]], atol=1e-4)
    assert taken["punch/a.b"]["labels"] == [0, 1]
    assert taken["walk/a"]["labels"] == []
    assert sorted(actionformer(settings, ["test"])) == ["punch/ä one", "walk/c"]


def test_a_full_disk_is_said_with_the_file_and_what_is_written_stays(bank: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))"
    script = f"{limit}; from stages.cli import main; main()"
    bare = {
        name: value for name, value in os.environ.items() if not name.startswith("COV")
    }  # it could not write either
    asked = ["export", str(bank), "--to", "npy", "--out", str(tmp_path / "out")]
    child = subprocess.run(
        [sys.executable, "-c", script, *asked], capture_output=True, text=True, check=False, env=bare
    )
    assert child.returncode == 2
    assert re.match(rf"Error: Writing {tmp_path}/out/\S+ failed: File too large\. .* go on\.\n$", child.stderr)
    assert not list((tmp_path / "out").rglob(".framebank*"))
    assert framebank("export", bank, "--to", "npy", "--out", tmp_path / "out").exit_code == 0


def test_without_segments_each_label_is_of_the_whole_video(bank: Path, tmp_path: Path) -> None:
    result = framebank("export", bank, "--to", "npy", "--out", tmp_path / "out")
    assert "the label of each video" in said(result, "Note")
    taken = actionformer(tmp_path / "out" / "actionformer.yaml", ["train"])
    np.testing.assert_allclose(taken["walk/a"]["annotations"][0]["segment"], [0, 0.7], atol=1e-4)


def test_clips_and_strides_have_their_own_grid(tmp_path: Path) -> None:
    """Rows that are 4 frames apart, and rows that are clips of 8 frames every 4: what a row covers lies where it is."""
    videos = {"a": np.ones((6, 3), np.float32), "b": np.ones((4, 3), np.float32)}
    from pipeline import bank as banks
    from pipeline.sealing import PartWriter
    from tests.banks import config, row

    window = {"kind": "clip", "length": 8, "stride": 4}
    made = config(feature_shape=[3], store="float32", window=window)
    banks.create(tmp_path / "clips.h5", made)
    writer = PartWriter(tmp_path / "clips.h5", made, lambda *_: None)
    for video, rows in videos.items():
        frames = 4 * np.arange(len(rows))[:, None] + np.arange(8)
        sink = writer.open(row(video))
        sink.append(rows, (frames[:, 0] + 3.5) / 10 + 2, frames)  # the file's clock begins at 2 s
        sink.finish({"frames_decoded": 4 * len(rows) + 4, "duration": 10.0, "start_time": 2.0, "fps": 10.0})
    writer.seal()
    (tmp_path / "segments.csv").write_text("id,start,end,label\na,0.8,1.6,x\nb,0,1,y\n")
    arguments = ("--to", "npy", "--out", tmp_path / "out", "--segments", tmp_path / "segments.csv")
    assert framebank("export", tmp_path / "clips.h5", *arguments).exit_code == 0
    settings = json.loads((tmp_path / "out" / "actionformer.yaml").read_text())["dataset"]
    assert (settings["feat_stride"], settings["num_frames"]) == (4, 8)
    taken = actionformer(tmp_path / "out" / "actionformer.yaml", ["all"])
    np.testing.assert_allclose(taken["a"]["grid"], [[1, 3]], atol=1e-4)  # frames 8 to 16: the clips 1 to 3 are around


def test_rows_that_lie_unevenly_are_told(tmp_path: Path) -> None:
    from pipeline import bank as banks
    from pipeline.sealing import PartWriter
    from tests.banks import config, row

    made = config(feature_shape=[2], store="float32")
    banks.create(tmp_path / "bank.h5", made)
    writer = PartWriter(tmp_path / "bank.h5", made, lambda *_: None)
    sink = writer.open(row("a"))
    sink.append(np.ones((5, 2), np.float32), np.array([0, 0.1, 0.2, 0.3, 1.0]), np.arange(5))
    sink.finish({"frames_decoded": 5, "duration": 1.1, "start_time": 0.0, "fps": 10.0})
    writer.seal()
    result = framebank("export", tmp_path / "bank.h5", "--to", "npy", "--out", tmp_path / "out")
    assert "in a by up to 6.0 steps" in result.stdout


def test_c3d_is_what_captioning_loads(bank: Path, tmp_path: Path) -> None:
    out = tmp_path / "c3d.hdf5"
    assert framebank("export", bank, "--to", "c3d", "--out", out).exit_code == 0
    with Bank(bank) as opened:
        for video in opened:
            np.testing.assert_array_equal(captioning(out, video), opened[video].astype(np.float32))


def test_ms_tcn_is_what_it_loads(bank: Path, folder: Path, tmp_path: Path) -> None:
    segments = ("--segments", folder / "segments.csv", "--background", "none")
    result = framebank("export", bank, "--to", "ms-tcn", "--out", tmp_path / "out", *segments)
    assert result.exit_code == 0, result.output
    assert "'raise arm'" in result.stdout, "spaces become _, which is said"
    assert "3 videos" not in result.stdout
    train, test = (ms_tcn(tmp_path / "out", f"{part}.split1.bundle") for part in ("train", "test"))
    assert [id_of(name) for name in (*train, *test)] == ["punch/a.b", "walk/c"]
    mapping = dict(line.split() for line in (tmp_path / "out" / "mapping.txt").read_text().splitlines())
    features, classes = train[flat_name("punch/a.b")]
    with Bank(bank) as opened:
        np.testing.assert_array_equal(features, opened["punch/a.b"].T)
    said_classes = [mapping[str(code)] for code in classes]
    assert said_classes == ["raise_arm"] * 4 + ["none"] + ["strike"] * 4
    # Nothing of the bank is missing: videos that nobody labelled have features.
    assert sorted(id_of(file.stem) for file in (tmp_path / "out" / "features").glob("*.npy")) == sorted(Bank(bank))


def test_every_row_needs_a_label_for_ms_tcn(bank: Path, folder: Path, tmp_path: Path) -> None:
    result = framebank(
        "export", bank, "--to", "ms-tcn", "--out", tmp_path / "out", "--segments", folder / "segments.csv"
    )
    assert result.exit_code == 2
    assert "rows of 2 videos are in no segment" in result.stderr
    assert "--background" in result.stderr
    assert not (tmp_path / "out").exists()
    result = framebank("export", bank, "--to", "ms-tcn", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--segments" in result.stderr


def test_parquet_is_what_a_table_reader_loads(bank: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'framebank[parquet]'")
    assert framebank("export", bank, "--to", "parquet", "--out", tmp_path / "pooled.parquet").exit_code == 0
    table = pd.read_parquet(tmp_path / "pooled.parquet").set_index("id")
    with Bank(bank) as opened:
        assert list(table.index) == list(opened.catalog["id"])
        for video in opened:
            rows = opened[video].astype(np.float64)
            np.testing.assert_allclose(table.loc[video, "mean"], rows.mean(axis=0), rtol=1e-5)
            np.testing.assert_allclose(table.loc[video, "std"], rows.std(axis=0), rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(table.loc[video, "max"], rows.max(axis=0).astype(np.float32))
        assert list(table["label"]) == list(opened.catalog["label"])
        assert table["duration"].to_numpy() == pytest.approx(opened.catalog["duration"].to_numpy())


def test_csv_is_the_catalog(bank: Path, tmp_path: Path) -> None:
    assert framebank("export", bank, "--to", "csv", "--out", tmp_path / "catalog.csv").exit_code == 0
    table = pd.read_csv(tmp_path / "catalog.csv")
    with Bank(bank) as opened:
        assert list(table.columns) == list(opened.catalog.columns)
        assert list(table["id"]) == list(opened.catalog["id"])


@pytest.mark.parametrize(("form", "name"), [("npy", "out"), ("c3d", "out.hdf5"), ("csv", "out.csv")])
def test_what_is_there_is_kept_if_it_is_the_same_and_never_overwritten(
    form: str, name: str, bank: Path, tmp_path: Path
) -> None:
    out = tmp_path / name
    assert framebank("export", bank, "--to", form, "--out", out).exit_code == 0
    files = [path for path in (out.rglob("*") if out.is_dir() else [out]) if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    result = framebank("export", bank, "--to", form, "--out", out)
    assert result.exit_code == 0
    assert "all of it was there before" in said(result, "Exported")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    changed = files[-1]
    changed.write_bytes(b"something else")
    result = framebank("export", bank, "--to", form, "--out", out)
    assert result.exit_code == 2
    assert f"{changed} is there and holds something else" in result.stderr
    assert changed.read_bytes() == b"something else"
    assert not list(tmp_path.rglob(".*")), "nothing is left of the attempt"


def test_a_killed_export_goes_on(bank: Path, tmp_path: Path) -> None:
    """Killed in the middle, it is not whole (no manifest), holds only whole files, and goes on where it was."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        from pipeline import exporting_actionformer

        write = exporting_actionformer.write_video

        def once(*arguments: object) -> bool:
            written = write(*arguments)  # type: ignore[arg-type]
            os.write(writer, b".")
            signal.pause()
            return written

        exporting_actionformer.write_video = once
        framebank("export", bank, "--to", "npy", "--out", tmp_path / "out")
        os._exit(0)
    os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    assert not (tmp_path / "out" / "manifest.csv").exists()
    result = framebank("export", bank, "--to", "npy", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "1 video kept that were there before" in said(result, "Exported")
    assert len(actionformer(tmp_path / "out" / "actionformer.yaml", ["train", "test"])) == 5


@pytest.mark.parametrize("form", ["npy", "c3d", "ms-tcn", "parquet"])
def test_maps_and_views_are_no_vectors(form: str, tmp_path: Path) -> None:
    bank_of(tmp_path / "maps.h5", {"a": np.zeros((3, 4, 2, 2), np.float32)})
    result = framebank("export", tmp_path / "maps.h5", "--to", form, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "holds maps (4×2×2)" in result.stderr
    views = {"kind": "corners", "count": 5}
    from pipeline import bank as banks
    from tests.banks import config

    banks.create(tmp_path / "views.h5", config(views=views))
    result = framebank("export", tmp_path / "views.h5", "--to", form, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "5 views" in result.stderr


def test_options_that_a_format_has_no_use_for(bank: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    result = framebank("export", bank, "--to", "csv", "--out", out, "--segments", folder / "segments.csv")
    assert (result.exit_code, "--segments has no meaning" in result.stderr) == (2, True)
    result = framebank("export", bank, "--to", "npy", "--out", tmp_path / "y", "--background", "none")
    assert (result.exit_code, "--background has no meaning" in result.stderr) == (2, True)
    result = framebank("export", bank, "--to", "csv", "--out", tmp_path)
    assert (result.exit_code, "writes a file" in result.stderr) == (2, True)
    result = framebank("export", bank, "--to", "npy", "--out", bank)
    assert (result.exit_code, "is a file" in result.stderr) == (2, True)


def test_names_of_files_lead_back_to_ids() -> None:
    ids = ["a/b", "a.b", "a%2Fb", "%", "a%b", "ä/..x", "a", "%252F"]
    assert [id_of(flat_name(video)) for video in ids] == ids
    assert all("/" not in flat_name(video) and "." not in flat_name(video) for video in ids)
    assert len({flat_name(video) for video in ids}) == len(ids)


@pytest.mark.parametrize("video", ["a/c3d_features", "a/fps/b"])
def test_an_id_like_a_dataset_is_refused(tmp_path: Path, video: str) -> None:
    rows = next(iter(in_order(1).values()))
    bank_of(tmp_path / "bank.h5", {"a": rows, video: rows})
    result = framebank("export", tmp_path / "bank.h5", "--to", "c3d", "--out", tmp_path / "c3d.hdf5")
    assert result.exit_code == 2
    assert f"'{video}' takes the name of a dataset of 'a'" in result.stderr


def test_ids_may_be_as_long_as_names_of_files(tmp_path: Path) -> None:
    video = "\u65e5" * 80  # 240 bytes
    bank_of(tmp_path / "bank.h5", {video: next(iter(in_order(1).values()))})
    assert framebank("export", tmp_path / "bank.h5", "--to", "npy", "--out", tmp_path / "npy").exit_code == 0
    assert sorted(each.name for each in (tmp_path / "npy" / "features").iterdir()) == [
        f"{video}.npy",
        f"{video}.times.npz",
    ]
