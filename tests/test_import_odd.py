"""Files of features that are damaged or odd: a failure of their video, not of the import, and never another's rows."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipeline.bank import Bank
from pipeline.errors import VideoError
from pipeline.imported import Counting, opened, times_of
from tests.commands import framebank, said

ROWS = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float16)


def reasons(bank: Path) -> dict[str, str]:
    with Bank(bank) as held:
        return dict(zip(held.failures["id"], held.failures["reason"], strict=True))


def test_one_odd_tensor_stops_nothing(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "bank.h5"
    data.mkdir()
    tensors = torch.from_numpy(ROWS).float()
    for name, held in {
        "fine": tensors[:5],
        "conjugate": tensors.to(torch.complex64).conj(),
        "eight": {"features": tensors.to(torch.float8_e4m3fn)},
        "list": [tensors],
    }.items():
        torch.save(held, data / f"{name}.pt")
    np.save(data / "header.npy", ROWS)
    (data / "header.npy").write_bytes((data / "header.npy").read_bytes().replace(b"}", b"{", 1))
    np.save(data / "nothing.npy", ROWS[:, :0])
    result = framebank("import", data, "--out", out, "--layout", "td")
    assert result.exit_code == 3, result.output
    found = reasons(out)
    assert "complex64, no real numbers" in found["conjugate"]
    assert "features of eight.pt is no array for NumPy" in found["eight"]
    assert found["list"] == "list.pt holds list and no tensor; save a tensor, or a dict of tensors"
    assert "header.npy cannot be read" in found["header"]
    assert "nothing.npy has shape (9, 0)" in found["nothing"]
    with Bank(out) as bank:
        assert list(bank) == ["fine"]


def test_damaged_bytes_are_never_a_traceback(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    np.savez_compressed(tmp_path / "a.npz", features=ROWS)
    torch.save(torch.from_numpy(ROWS), tmp_path / "a.pt")
    places = np.random.default_rng(0)
    for source in ("a.npy", "a.npz", "a.pt"):
        whole, read = (tmp_path / source).read_bytes(), 0
        for _ in range(150):
            content = bytearray(whole)
            content[places.integers(min(len(content), 128))] = places.integers(256)
            (tmp_path / f"x{source}").write_bytes(content)
            try:
                with opened(tmp_path / f"x{source}"):
                    read += 1
            except VideoError:
                continue
        assert read < 150


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"timestamps": np.array([0, 2, 1], np.uint32)}, r"at row 2 \(2 s, then 1 s\)"),
        ({"frame_index": np.array([0, 2, 1], np.uint32)}, "does not increase at row 2"),
        ({"frame_index": np.array([0.2, 0.7, 1.1])}, "has 0.2 at row 0; it takes whole numbers from 0"),
        ({"frame_index": np.array([0, 1, np.nan])}, "has nan at row 2"),
        ({"frame_index": np.array([0, 1, 2**63], np.uint64)}, r"has 9.22\S* at row 2"),
        ({"start_time": np.array(np.inf)}, "start_time is inf"),
        ({"duration": np.array(-1.0)}, "duration is -1"),
    ],
)
def test_times_that_are_none(beside: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(VideoError, match=words):
        times_of(beside, 3, Counting(), float("nan"))


def test_one_row_at_no_time() -> None:
    with pytest.raises(VideoError, match=r"at row 0 \(inf s\)"):
        times_of({"timestamps": np.array([np.inf])}, 1, Counting(), float("nan"))


@pytest.mark.parametrize("theirs", [False, True])
def test_times_that_changed_are_read_again(tmp_path: Path, theirs: bool) -> None:
    data, out = tmp_path / "data", tmp_path / "bank.h5"
    data.mkdir()

    def write(scale: float) -> None:
        times = np.arange(9) * scale
        if theirs:
            np.save(data / "a_timestamps_ms.npy", times * 1000)
        else:
            np.savez(data / "a_rgb.times.npz", timestamps=times)

    def seconds() -> list[float]:
        with Bank(out) as bank:
            return bank.timestamps(next(iter(bank)))[:3].tolist()

    np.save(data / "a_rgb.npy", ROWS)
    write(1.0)
    assert framebank("import", data, "--out", out, "--layout", "td").exit_code == 0
    assert seconds() == [0, 1, 2]
    assert said(framebank("import", data, "--out", out), "To do").startswith("nothing")
    write(2.0)
    assert framebank("import", data, "--out", out).exit_code == 0
    assert seconds() == [0, 2, 4]
    for file in data.iterdir():
        os.utime(file)
    assert said(framebank("import", data, "--out", out), "To do").startswith("nothing")


def test_links_of_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["a"] = ROWS + 1
    with h5py.File(tmp_path / "links.hdf5", "w") as file:
        file["a"], file["b"] = ROWS, ROWS[:5]
        file["x"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/a")  # its own name is that of another here
        file["gone"] = h5py.ExternalLink(str(tmp_path / "nowhere.hdf5"), "/a")
        file["empty"] = h5py.Empty("f4")
        file["g/c"] = ROWS[:3]
        file["g/round"] = file["g"]
    out = tmp_path / "bank.h5"
    assert framebank("import", tmp_path / "links.hdf5", "--out", out).exit_code == 3
    with Bank(out) as bank:
        assert list(bank) == ["a", "b", "g/c", "x"]
        np.testing.assert_array_equal(bank["a"], ROWS)
        np.testing.assert_array_equal(bank["x"], ROWS + 1)
    found = reasons(out)
    assert found.keys() == {"empty", "gone"}
    assert "cannot be read" in found["gone"]


def test_names_of_hdf5_that_meet(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "names.hdf5", "w") as file:
        file["\u00e9"], file["e\u0301"] = ROWS, ROWS
    result = framebank("import", tmp_path / "names.hdf5", "--out", tmp_path / "bank.h5")
    assert result.exit_code == 2
    assert "'e\\u0301' and '\\xe9' would both be the video" in result.stderr


def test_what_an_hdf5_file_holds_besides_is_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "mixed.hdf5", "w") as file:
        file["a/c3d_features"], file["a/fps"], file["v"] = ROWS, 25.0, ROWS
        file["b"] = h5py.SoftLink("/nowhere")
    result = framebank("import", tmp_path / "mixed.hdf5", "--out", tmp_path / "bank.h5")
    assert "without a c3d_features beside them, left out: 1, e.g. v" in said(result, "Note")
    assert result.exit_code == 3
    assert reasons(tmp_path / "bank.h5").keys() == {"b"}
