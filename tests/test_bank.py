"""The bank over its parts: overlay, sealing, streaming, ledger, verification, reading by other programs."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

from pipeline import bank as banks
from pipeline import features as hdf5
from pipeline import packing, sealing
from pipeline.bank import Bank
from pipeline.errors import UserError, VideoError
from pipeline.sealing import PartWriter
from tests.banks import config, embeddings, fill, row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bank.h5"


def test_videos_come_back_as_they_were_written(path: Path) -> None:
    fill(path, {"a/x": 5, "b/ünï ✓": 1})
    with Bank(path) as bank:
        assert list(bank) == ["a/x", "b/ünï ✓"]
        np.testing.assert_array_equal(bank["a/x"], embeddings("a/x", 5).astype(np.float16))
        np.testing.assert_array_equal(bank.timestamps("a/x"), np.arange(5) / 10)
        assert bank.timestamps("a/x").dtype == np.float64
        assert bank.frame_index("b/ünï ✓").tolist() == [0]
        assert bank.catalog["label"].tolist() == ["a", "b"]
        assert bank.catalog["rows"].tolist() == [5, 1]
        assert bank.verify() == []
    with pytest.raises(KeyError):
        Bank(path)["c"]


def test_a_missing_bank_says_how_to_make_one(path: Path) -> None:
    with pytest.raises(UserError, match="framebank extract"):
        Bank(path)


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all" * 100])
def test_a_file_that_is_no_bank_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a framebank bank"):
        Bank(path)


def test_other_hdf5_and_other_schemas_are_refused(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="not a framebank bank"):
        Bank(path)
    with h5py.File(path, "a") as file:
        file.attrs["format"], file.attrs["schema"] = "framebank", 99
    with pytest.raises(UserError, match="schema 99"):
        Bank(path)


def test_a_truncated_bank_is_refused_by_name(path: Path) -> None:
    fill(path, {"a": 50})
    packing.pack(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"bank\.h5 cannot be read"):
        Bank(path)


def test_the_newest_row_of_a_video_counts(path: Path) -> None:
    fill(path, {"a": 3})
    packing.pack(path)
    fill(path, {"a": 7})
    with Bank(path) as bank:
        assert len(bank["a"]) == 7
    packing.pack(path)
    with Bank(path) as bank:
        assert len(bank["a"]) == 7
        assert bank.parts == []
        assert bank.verify() == []


def test_a_failure_is_forgotten_once_the_video_is_banked(path: Path) -> None:
    fill(path, {"a": 3}, failures={"b": "no video stream"})
    with Bank(path) as bank:
        assert bank.failures[["id", "reason"]].values.tolist() == [["b", "no video stream"]]
    fill(path, {"b": 2})
    with Bank(path) as bank:
        assert bank.failures.empty
        assert set(bank) == {"a", "b"}


def test_parts_that_were_made_differently_are_never_mixed(path: Path) -> None:
    fill(path, {"a": 3})
    other = path.with_name("other.h5")
    fill(other, {"b": 3}, layer="features.3")
    shutil.copy(banks.sealed_parts(other)[0], banks.parts_folder(path))
    with pytest.raises(UserError, match=r"layer is features\.12\.cat:mean \(bank\.h5\) and features\.3 \(part-"):
        Bank(path)


def test_a_long_video_streams_to_a_part_of_its_own_in_bounded_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "STREAM_BYTES", 1000)
    sealed: list[tuple[int, ...]] = []
    banks.create(path, config())
    writer = PartWriter(path, config(), lambda *counts: sealed.append(counts))
    sink = writer.open(row("long"))
    expected = embeddings("long", 1000)
    for start in range(0, 1000, 7):
        piece = expected[start : start + 7]
        sink.append(piece, np.arange(start, start + len(piece)) / 10, np.arange(start, start + len(piece)))
        assert sum(rows[0].nbytes for rows in sink._pieces) <= 1000 + 7 * 16
    sink.finish({"frames_decoded": 1000})
    assert sealed == [(1, 0, 1000)]
    for _ in range(2):
        with Bank(path) as bank:
            np.testing.assert_array_equal(bank["long"], expected.astype(np.float16))
            assert bank.verify() == []
            assert bank.file_of("long")["videos/long/features"].dims[0][0].name == "/videos/long/timestamps"
        packing.pack(path)


def test_a_discarded_video_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "STREAM_BYTES", 10)
    banks.create(path, config())
    writer = PartWriter(path, config(), lambda *_: None)
    sink = writer.open(row("a"))
    sink.append(embeddings("a", 100), np.arange(100.0), np.arange(100))
    assert len(list(banks.parts_folder(path).iterdir())) == 1
    sink.discard()
    writer.seal()
    assert list(banks.parts_folder(path).iterdir()) == []


def test_values_beyond_float16_are_an_error_and_never_infinity() -> None:
    rows = np.array([[1.0, 70000.0]], np.float32)
    with pytest.raises(VideoError, match="70000 is beyond float16; use --store float32"):
        sealing.stored(rows, np.dtype(np.float16))
    np.testing.assert_array_equal(sealing.stored(rows, np.dtype(np.float32)), rows)
    with pytest.raises(VideoError, match="not finite"):
        sealing.stored(rows * np.nan, np.dtype(np.float32))


def test_temporary_files_of_the_dead_go_and_of_the_living_stay(path: Path) -> None:
    fill(path, {"a": 3})
    folder = banks.parts_folder(path)
    script = f"from pathlib import Path; from pipeline.bank import unsealed; print(unsealed(Path({str(folder)!r})))"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    dead, living, old = Path(child.stdout.strip()), banks.unsealed(path.parent), banks.unsealed(path.parent)
    os.utime(old, (time.time() - 90000,) * 2)
    banks.remove_abandoned(path)
    assert [dead.exists(), living.exists(), old.exists()] == [False, True, False]


def test_verify_lists_what_is_wrong(path: Path) -> None:
    fill(path, {"a": 3, "b": 3, "c": 3, "d": 3, "e": 3})
    packing.pack(path)
    with h5py.File(path, "a") as file:
        file["videos/a/features"][1] = np.nan
        file["videos/b/timestamps"][:] = [0, 2, 1]
        file["videos/c/frame_index"][:] = [0, 2, 2]
        file["videos/d"].attrs["complete"] = False
        del file["videos/e/features"]
        file.create_group("videos/stranger").attrs["complete"] = True
        file["catalog/rows"][3] = 9
    with Bank(path) as bank:
        problems = dict(bank.verify())
    assert "not finite, first in row 1" in problems["a"]
    assert "timestamps decrease" in problems["b"]
    assert "frame indices do not increase" in problems["c"]
    assert "3 rows, the catalog says 9" in problems["d"]
    assert "cannot be read" in problems["e"]
    assert "not in the catalog" in problems["stranger"]


@pytest.mark.parametrize("shape", [[8], [6, 3, 2]])
def test_xarray_reads_a_packed_bank_with_coordinates(path: Path, shape: list[int]) -> None:
    fill(path, {"a": 4, "a/b": 5}, feature_shape=shape)
    packing.pack(path)
    fill(path, {"c": 4}, feature_shape=shape)
    packing.pack(path)
    for video_id, rows in {"a": 4, "a/b": 5, "c": 4}.items():
        with xarray.open_dataset(path, group=f"videos/{video_id}", engine="h5netcdf") as dataset:
            assert dataset["features"].dims[0] == "timestamps"
            assert set(dataset.coords) == {"timestamps"}
            assert dataset["features"].shape == (rows, *shape)
            np.testing.assert_allclose(dataset["timestamps"], np.arange(rows) / 10)
            np.testing.assert_array_equal(
                dataset["features"], embeddings(video_id, rows, tuple(shape)).astype(np.float16)
            )


@pytest.mark.parametrize("how", ["packed", "linked"])
def test_h5py_and_the_hdf5_tools_read_the_bank(path: Path, how: str) -> None:
    fill(path, {"a/x": 4, "a/y": 2})
    (packing.pack if how == "packed" else packing.link)(path)
    with h5py.File(path) as file:
        assert file["catalog/id"].asstr()[:].tolist() == ["a/x", "a/y"]
        assert file["catalog/rows"][:].tolist() == [4, 2]
        assert file["videos/a/x/features"].shape == (4, 8)
        assert file["videos/a/x"].attrs["complete"]
        assert len(file["videos/a/x"].attrs) <= 8
    if shutil.which("h5ls") is None:
        pytest.skip("needs h5ls and h5dump (Debian: hdf5-tools)")
    listing = subprocess.run(["h5ls", "-r", "-E", path], capture_output=True, text=True, check=True)
    assert "/videos/a/x/features" in listing.stdout
    assert "{4, 8}" in listing.stdout
    dump = subprocess.run(["h5dump", "-d", "/videos/a/x/timestamps", path], capture_output=True, text=True, check=True)
    assert "0.3" in dump.stdout


def test_extra_manifest_columns_are_kept(path: Path) -> None:
    banks.create(path, config())
    writer = PartWriter(path, config(), lambda *_: None)
    for video_id, extra in (("a", {"camera": "north"}), ("b", {})):
        sink = writer.open(row(video_id, **extra))
        sink.append(embeddings(video_id, 2), np.arange(2.0), np.arange(2))
        sink.finish({})
        writer.seal()
    for _ in range(2):
        with Bank(path) as bank:
            assert bank.catalog.set_index("id")["camera"].to_dict() == {"a": "north", "b": ""}
        packing.pack(path)


@pytest.mark.parametrize("step", ["seal", "many", "stream", "pack"])
def test_a_full_disk_is_one_clear_error_and_the_bank_still_opens(path: Path, step: str) -> None:
    fill(path, {"before": 100})
    script = f"""
import resource
from tests.banks import *
from pipeline import packing, sealing
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
if {step!r} == "stream":
    sealing.STREAM_BYTES = 1000
with sealing.disk_errors(Path({str(path)!r})):
    if {step!r} == "pack":
        fill(Path({str(path)!r}), {{"small": 4000}})
        fill(Path({str(path)!r}), {{"too": 4000}})
        packing.pack(Path({str(path)!r}))
    elif {step!r} == "many":
        fill(Path({str(path)!r}), dict.fromkeys(map(str, range(3000)), 1))
    else:
        fill(Path({str(path)!r}), {{"too": 40000}})
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "UserError" in child.stderr.splitlines()[-1]
    assert "Everything sealed before is safe" in child.stderr
    with Bank(path) as bank:
        assert len(bank["before"]) == 100
        assert bank.verify() == []
    packing.pack(path)
    assert [file.name for file in path.parent.iterdir()] == ["bank.h5"]


def test_the_hdf5_library_writes_what_older_readers_read(path: Path) -> None:
    fill(path, {"a": 3})
    packing.pack(path)
    with hdf5.open_file(path) as file:
        assert file.attrs["format"] == "framebank"
    superblock = path.read_bytes()[8]
    assert superblock <= 3  # HDF5 1.10 reads up to version 3
