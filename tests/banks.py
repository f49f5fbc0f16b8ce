"""Banks for tests that need no CNN: embeddings drawn at random, written through the real writer."""

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
