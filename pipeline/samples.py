"""A small set of real video files whose classes differ in the order of their frames and in nothing else.

Every clip shows a dark disc on a coloured ground: the hue runs around the colour circle while the disc's size runs
through a sawtooth. The class says which way each of the two runs: forwards or backwards, swelling or shrinking. The
clips of one scene, one per class, show exactly the same frames equally often, each class in another order. So no single
frame can tell the class, and neither can an average, a spread or any other pooling that forgets the order; whatever
learns these classes has learned time.

How the frames come out equal: P hues and Q sizes with no common divisor. Stepping through both at once, either way and
from any start, meets each of the P·Q pairs once before it repeats; a clip is one such full round.
"""

import colorsys
import json
import os
import random
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd

from pipeline.errors import UserError

CLASSES = {  # label -> steps of hue and of size per frame
    "forwards-swelling": (1, 1),
    "forwards-shrinking": (1, -1),
    "backwards-swelling": (-1, 1),
    "backwards-shrinking": (-1, -1),
}
HUES = 5  # P
SIZES = [4, 6, 7]  # Q, one of these per scene: clips of 20, 30 or 35 frames
SPLITS = ["train", "train", "train", "val", "test"]  # by scene, so that no scene is both learned and tested
MARKER = ".framebank-samples.json"


def make_samples(folder: Path, *, clips_per_class: int = 50, seed: int = 0) -> pd.DataFrame:
    """Write the clips as H.264 mp4 files in class folders, with their `manifest.csv`, unless they are there already.

    A clip has 20 to 35 frames of 64 to 96 pixels a side, at 10 to 15 frames per second. The same arguments give the
    same files byte for byte (with the same FFmpeg).

    Returns the manifest, str columns: path (relative to `folder`), label, split (train, val, test), group (the scene).
    Raises UserError for a folder that holds something else, or that cannot be written.
    """
    made_by = {"version": 1, "clips_per_class": clips_per_class, "seed": seed}
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            folder.absolute().parent.mkdir(parents=True, exist_ok=True)
            # Made beside its place and renamed when complete: an interrupted run leaves no half set that looks whole.
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.absolute().parent) as beside:
                unfinished = Path(beside) / "samples"
                unfinished.mkdir()
                _write(unfinished, clips_per_class, seed)
                (unfinished / MARKER).write_text(json.dumps(made_by))
                unfinished.replace(folder)
        return _read(folder, made_by)
    except OSError as error:
        raise UserError(
            f"cannot make the sample set in {folder}: {error.strerror or error}; choose a folder that can be written"
        ) from error


def _read(folder: Path, made_by: dict[str, int]) -> pd.DataFrame:
    """The manifest of a complete sample set made with the arguments `made_by`."""
    marker = folder / MARKER
    if not marker.is_file():
        raise UserError(f"{folder} is there already and is no sample set; choose a new or an empty folder")
    manifest = folder / "manifest.csv"
    table = pd.read_csv(manifest, dtype=str) if manifest.is_file() else pd.DataFrame({"path": ["manifest.csv"]})
    whole = all((folder / path).is_file() for path in table["path"])
    if marker.read_text() != json.dumps(made_by) or not whole:
        raise UserError(
            f"{folder} holds a sample set that is incomplete or made with other settings; "
            "delete that folder and run this again, or choose another"
        )
    return table


def _write(folder: Path, clips_per_class: int, seed: int) -> None:
    """Write every clip, then the manifest."""
    rows = []
    for scene in range(clips_per_class):
        draw = random.Random(f"{seed}/{scene}")  # a scene's own stream: it looks the same however many there are
        rate = draw.choice([10, 12, 15])
        frames = _draw_frames(draw)
        sizes = frames.shape[1]
        for label, (hue_step, size_step) in CLASSES.items():
            path = Path(label) / f"{label}_{scene:03d}.mp4"
            (folder / label).mkdir(exist_ok=True)
            hue, size = draw.randrange(HUES), draw.randrange(sizes)
            steps = np.arange(HUES * sizes)
            _encode(folder / path, frames[(hue + hue_step * steps) % HUES, (size + size_step * steps) % sizes], rate)
            rows.append((path.as_posix(), label, SPLITS[scene % len(SPLITS)], f"scene_{scene:03d}"))
    table = pd.DataFrame(rows, columns=["path", "label", "split", "group"])
    table.to_csv(folder / "manifest.csv", index=False)


def _draw_frames(draw: random.Random) -> np.ndarray:
    """All frames of one scene, (P, Q, H, W, 3) uint8: a dark disc of Q sizes on a ground of P hues."""
    sizes = draw.choice(SIZES)
    height, width = draw.randrange(64, 97, 2), draw.randrange(64, 97, 2)
    side = min(height, width)
    centre_y = height / 2 + side * draw.uniform(-0.02, 0.02)
    centre_x = width / 2 + side * draw.uniform(-0.02, 0.02)
    disc = draw.uniform(0, 40)
    first_hue, saturation = draw.random(), draw.uniform(0.9, 1.0)
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - centre_y, x - centre_x)  # (H, W)
    frames = np.empty((HUES, sizes, height, width, 3), np.uint8)
    for p in range(HUES):
        ground = 255 * np.array(colorsys.hsv_to_rgb(first_hue + p / HUES, saturation, 1.0))
        for q in range(sizes):
            radius = side * (0.15 + 0.27 * q / (sizes - 1))
            cover = np.clip(radius - distance + 0.5, 0, 1)[..., None]  # (H, W, 1), smooth at the edge
            frames[p, q] = np.rint(ground + (disc - ground) * cover)
    return frames


def _encode(path: Path, frames: np.ndarray, rate: int) -> None:
    """Write (T, H, W, 3) uint8 frames as an H.264 mp4 file whose bytes are always the same."""
    # One thread, and no macroblock tree: with it x264 gives small frames other bytes now and then.
    options = {"preset": "veryfast", "crf": "12", "x264-params": "mbtree=0"}
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for rgb in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
