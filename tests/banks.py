"""Banks for tests that need no CNN: embeddings drawn at random, written through the real writer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bank as banks
from pipeline.sealing import PartWriter

RECIPE = {
    "backbone": "squeezenet1_1",
    "layer": "features.12.cat:mean",
    "weights_sha256": "0" * 64,
    "feature_shape": [8],
    "preprocessing": {"resize": 256, "crop": 224, "fit": "crop", "interpolation": "bilinear", "antialias": True},
    "crop": "",
    "sampling": {"stride": 1},
    "precision": "fp32",
    "store": "float16",
}


def config(**changes: Any) -> dict[str, Any]:
    """The config of a bank, with changes to its recipe."""
    compute = {"device": "cpu", "batch_size": 16}
    return {
        "recipe": {**RECIPE, **changes},
        "weights": "random (seed 0)",
        "preset": "IMAGENET1K_V1",
        "compute": compute,
        "data": "/videos",
    }


def row(video_id: str, **changes: Any) -> dict[str, Any]:
    """The catalog row of a video, as it is known before decoding."""
    nan = float("nan")
    known = {"label": video_id.split("/")[0], "split": "", "group": "", "source": f"/videos/{video_id}.mp4"}
    return {
        "id": video_id,
        **known,
        "kind": "video",
        "start": nan,
        "end": nan,
        "crop": "",
        "size": 1,
        "mtime": 2,
        **changes,
    }


def embeddings(video_id: str, rows: int, shape: tuple[int, ...] = (8,)) -> np.ndarray:
    """(rows, *shape) float32 that depend on the id alone."""
    seed = sum(map(ord, video_id))
    return np.random.default_rng(seed).normal(size=(rows, *shape)).astype(np.float32)


def bank_of(
    path: Path,
    videos: Mapping[str, np.ndarray],
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    seconds: Mapping[str, np.ndarray] | None = None,
    start_time: float = 0.0,
    **changes: Any,
) -> Path:
    """A bank of given embeddings.

    Args:
        videos: id -> (T, D) or (T, C, H, W).
        columns: id -> changes to its catalog row.
        seconds: id -> (T,) times of its rows; ten a second where they are not given.
        start_time: presentation time of every video's first frame.
        changes: to the recipe.
    """
    made = config(**{"feature_shape": list(next(iter(videos.values())).shape[1:]), "store": "float32", **changes})
    banks.create(path, made)
    writer = PartWriter(path, made, lambda *_: None)
    for video_id, rows in videos.items():
        sink = writer.open(row(video_id, **{"digest": video_id, **(columns or {}).get(video_id, {})}))
        times = (seconds or {}).get(video_id, np.arange(len(rows)) / 10)
        sink.append(rows.astype(np.float32), times, np.arange(len(rows)))
        sink.finish({"frames_decoded": len(rows), "duration": len(rows) / 10, "start_time": start_time, "fps": 10.0})
    writer.seal()
    return path


def in_order(count: int, features: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """`count` videos of two classes, "rising/NN" and "falling/NN", that differ in the order of their rows alone."""
    generator = np.random.default_rng(seed)
    videos = {}
    for number in range(count):
        length = int(generator.integers(8, 16))
        saw = (np.arange(length) + generator.integers(6)) % 6 / 2.5 - 1  # six steps from -1 to 1, begun anywhere
        rows = saw[:, None] + generator.normal(scale=0.1, size=(length, features))
        name = "rising" if number % 2 else "falling"
        videos[f"{name}/{number:03}"] = (rows if number % 2 else rows[::-1]).astype(np.float32)
    return videos


def fill(path: Path, lengths: dict[str, int], *, failures: dict[str, str] | None = None, **changes: Any) -> None:
    """Seal one part with a video per entry (id: number of rows) beside the bank, which is made if need be."""
    made = config(**changes)
    banks.create(path, made)
    writer = PartWriter(path, made, lambda *_: None)
    for video_id, rows in lengths.items():
        sink = writer.open(row(video_id))
        if rows:
            sink.append(
                embeddings(video_id, rows, tuple(made["recipe"]["feature_shape"])),
                np.arange(rows) / 10,
                np.arange(rows),
            )
        sink.finish({"frames_decoded": rows, "duration": rows / 10})
    for video_id, reason in (failures or {}).items():
        writer.fail(row(video_id), reason)
    writer.seal()
