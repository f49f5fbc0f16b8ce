"""Thumbnails show the frames that were banked, and a file that is gone leaves a stated gap."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.bank import Bank
from pipeline.thumbnails import evenly, picture, strip
from tests.clips import make_clip
from tests.commands import extract


def opened(uri: str) -> np.ndarray:
    head, _, content = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.fixture(scope="module")
def banked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of every second frame of one clip, and of a region of another; the videos beside it."""
    folder = tmp_path_factory.mktemp("thumbnails")
    make_clip(folder / "videos" / "whole.mp4", frames=12)
    make_clip(folder / "videos" / "cropped.mp4", frames=4)
    (folder / "videos" / "manifest.csv").write_text(
        "path,crop_x,crop_y,crop_w,crop_h\nwhole.mp4,,,,\ncropped.mp4,0,0,32,24\n"
    )
    assert extract(folder / "videos", folder / "bank.h5", "--stride", 2).exit_code == 0
    return folder


def test_pictures_are_of_the_banked_frames(banked: Path) -> None:
    with Bank(banked / "bank.h5") as bank:
        made = strip(bank, "whole", [0, 2, 2, 5])
    assert made.gap == ""
    shown = [round((np.median(opened(uri)[30:]) - 16) / 8) for uri in made.pictures]
    assert shown == [0, 4, 4, 10]  # every second frame was banked
    assert opened(made.pictures[0]).shape == (48, 64, 3), "smaller than the limit: as it is"


def test_pictures_are_of_the_region_that_was_banked(banked: Path) -> None:
    with Bank(banked / "bank.h5") as bank:
        (uri,) = strip(bank, "cropped", [0]).pictures
    shown = opened(uri)
    assert shown.shape == (24, 32, 3)
    assert shown.min() > 230, "the region is the white quarter"


def test_large_frames_are_made_small() -> None:
    assert opened(picture(np.zeros((720, 1280, 3), np.uint8))).shape == (90, 160, 3)
    assert opened(picture(np.zeros((720, 1280, 3), np.uint8), size=(32, 32))).shape == (18, 32, 3)


def test_a_file_that_changed_or_is_gone_is_a_gap(banked: Path) -> None:
    clip = banked / "videos" / "whole.mp4"
    content = clip.read_bytes()
    try:
        with Bank(banked / "bank.h5") as bank:
            clip.write_bytes(content + b"more")
            assert strip(bank, "whole", [0]).gap.endswith(f"and {len(content):,} when it was banked")
            clip.write_bytes(b"\0" * len(content))
            assert "cannot be read any more" in strip(bank, "whole", [0]).gap
            clip.unlink()
            made = strip(bank, "whole", [0])
            assert made.pictures == []
            assert made.gap == f"the file is not at {clip} any more"
    finally:
        clip.write_bytes(content)


def test_rows_evenly_spread_by_time() -> None:
    assert evenly(np.arange(8) / 10, 4).tolist() == [1, 3, 4, 6]
    assert evenly(np.array([0, 0.1, 0.2, 10]), 2).tolist() == [2, 3], "by time, not by number"
    assert evenly(np.full(4, np.nan), 2).tolist() == [1, 2]
    assert evenly(np.array([3.0]), 3).tolist() == [0, 0, 0]
