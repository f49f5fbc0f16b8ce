"""Files that are written whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.writing import replace_file, write_csv, write_json


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
