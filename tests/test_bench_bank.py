"""`framebank bench bank`: every step is timed on banks of the sizes asked for, and what cannot be asked is refused."""

import json
import sys
from pathlib import Path

from tests.commands import framebank


def test_every_step_is_timed_for_every_size(tmp_path: Path) -> None:
    done = framebank("bench", "bank", "--videos", 30, "--videos", 6, "--parts", 3, "--json", tmp_path / "b.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "b.json").read_text())
    assert list(found["banks"]) == ["6", "30"]
    for videos, each in found["banks"].items():
        assert list(each["wall"]) == list(each["cpu"]) == list(each["peak"])
        assert all(seconds > 0 for seconds in each["wall"].values())
        assert {"open", "pack", "framebank describe", "framebank describe --stats", "decide what is left to do"} <= set(
            each["wall"]
        )
        if sys.platform == "linux":
            unknown = {name for name, peak in each["peak"].items() if peak is None}
            assert unknown == {"framebank describe", "framebank describe --stats"}
            assert all(peak > 10 << 20 for name, peak in each["peak"].items() if name not in unknown)
        assert each["left"] == 0
        assert each["bytes"] > int(videos) * 8 * 16 * 2
        assert f"{videos} videos (" in done.stdout
    assert found["machine"]["cores"] >= 1
    assert found["asked"]["rows"] == 8


def test_more_parts_than_videos_are_refused(tmp_path: Path) -> None:
    done = framebank("bench", "bank", "--videos", 3, "--parts", 4)
    assert done.exit_code == 2
    assert "--parts 4 are more than 3 videos" in done.stderr
