"""Frames of banked videos as small JPEG pictures within a page, decoded from the files that the bank was made of.

A file that is gone, or that is another by now, leaves a gap with its reason: a page without pictures is better than
none.
"""

import base64
import io
from collections.abc import Sequence
from contextlib import closing
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline.bank import Bank
from pipeline.errors import VideoError
from pipeline.features import records
from pipeline.frames import Decoded, read_frames
from pipeline.preprocessing import region_of
from pipeline.sampling import Sampling
from pipeline.sources import source_path, source_state

SIZE = (160, 120)  # pixels at most, width and height
_QUALITY = 70


class Strip(NamedTuple):
    """Pictures of one video, as data URIs in the order of the rows asked for; or none of them, and why."""

    pictures: list[str]
    gap: str = ""


def evenly(seconds: np.ndarray, count: int) -> np.ndarray:
    """Which rows stand for the middles of `count` equal stretches of a video: the nearest in time.

    Args:
        seconds: (T,) times of the rows, never falling; where one is unknown all rows count as equally long.
        count: of the stretches.

    Returns:
        (count,) int64, never falling.
    """
    clock = seconds if len(seconds) and np.isfinite(seconds).all() else np.arange(len(seconds), dtype=np.float64)
    middles = clock[0] + (np.arange(count) + 0.5) / count * (clock[-1] - clock[0])
    return np.abs(clock[None] - middles[:, None]).argmin(axis=1)


def strip(bank: Bank, video: str, rows: Sequence[int] | np.ndarray, *, size: tuple[int, int] = SIZE) -> Strip:
    """The frames of some banked rows, the region that was banked, made small.

    The video is decoded up to the last of them; only they are converted.

    Args:
        bank: which has the video.
        video: its id.
        rows: numbers of its rows, never falling, some perhaps repeated.
        size: width and height in pixels that no picture exceeds.
    """
    (row,) = records(bank.catalog[bank.catalog["id"] == video])
    path = source_path(row["source"])
    if gap := _gap(row, path):
        return Strip([], gap)
    wanted = [int(number) for number in bank.frame_index(video)[np.asarray(rows, np.int64)]]
    found: dict[int, str] = {}
    rate = _image_rate(row)
    try:
        frames = read_frames(
            path, row["kind"], Sampling(), Decoded(), image_fps=rate, allow_partial=True, indices=set(wanted)
        )
        with closing(frames):
            for frame in frames:
                found[frame.index] = picture(frame.rgb, crop=row["crop"], size=size)
    except (VideoError, OSError) as error:
        return Strip([], f"the file cannot be read any more ({error})")
    if missing := sorted(set(wanted) - set(found)):
        return Strip([], f"the file has no frame {missing[0]} any more")
    return Strip([found[number] for number in wanted])


def _gap(row: dict[str, Any], path: str) -> str:
    """Why there can be no pictures of a video, "" if there can."""
    if row["kind"] == "features":
        return "its features were imported, and where the video is was not said"
    size, _ = source_state(path, row["kind"])
    if size < 0:
        return f"the file is not at {path} any more"
    if size != row["size"] and row["size"] >= 0:
        return f"the file at {path} has {size:,} bytes, and {row['size']:,} when it was banked"
    return ""


def _image_rate(row: dict[str, Any]) -> float | None:
    return float(row["fps"]) if row["kind"] == "images" and isfinite(row["fps"]) and row["fps"] > 0 else None


def picture(rgb: np.ndarray, *, crop: str = "", size: tuple[int, int] = SIZE) -> str:
    """One frame as a data URI.

    Args:
        rgb: (H, W, 3) uint8.
        crop: the region that is shown, as catalogs hold it ("x,y,w,h"; "" for all).
        size: width and height in pixels that it does not exceed.
    """
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if region := region_of(crop):
        x, y, width, height = region
        image = image.crop((x, y, x + width, y + height))
    image.thumbnail(size)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def pixels(uri: str) -> np.ndarray:
    """A picture as it was made above -> (H, W, 3) uint8."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))
