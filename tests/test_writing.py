"""Files that are written whole or not at all."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.writing import STDOUT, check_outputs, replace_file, write_csv, write_json


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [float("nan"), np.float32(1.5), np.int64(2)], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5, 2], "b": {"c": None}}


def test_tables_survive_any_name(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": ["a,b", "č ", 'say "x"'], "score": [0.5, 1.0, 0.1]})
    write_csv(tmp_path / "t.csv", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), table)


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "x", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "x", b"new and longer")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")  # as /dev/stdout may be
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    replace_file(tmp_path / "pipe", b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_outputs_that_would_cost_something(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.touch()
    check_outputs({"--csv": tmp_path / "x.csv", "--json": tmp_path / "x.json", "--frames": None}, [video])
    check_outputs({"--csv": Path(os.devnull), "--json": Path(os.devnull)})
    with pytest.raises(UserError, match=r"--csv .*a\.mp4 would be written over what is read"):
        check_outputs({"--csv": tmp_path / ".." / tmp_path.name / "a.mp4"}, [video])
    with pytest.raises(UserError, match="--csv and --json are one file"):
        check_outputs({"--csv": tmp_path / "x", "--json": tmp_path / "x"})
    with pytest.raises(UserError, match="it is a folder"):
        check_outputs({"--csv": tmp_path})
    with pytest.raises(UserError, match="its folder is not a folder"):
        check_outputs({"--csv": tmp_path / "none" / "x"})


NAMES = {"paths": ["bäd \udcff.mp4", "日本 🎬.mp4"], "score": float("nan")}


def test_names_that_are_no_text_are_written_all_the_same(tmp_path: Path) -> None:
    write_json(tmp_path / "out.json", NAMES)
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == NAMES | {"score": None}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_standard_output_of_any_encoding_has_json(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding, errors="backslashreplace"))
    write_json(STDOUT, NAMES)
    assert json.loads(content.getvalue().decode("utf-8")) == NAMES | {"score": None}


def test_closed_standard_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OSError, match="standard output is closed"):
        write_json(STDOUT, NAMES)
