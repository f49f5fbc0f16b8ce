"""The naive loop (`stages.naive_loop`) on the videos of a bench: asked for the same, and held against the bank."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.backbone import Backbone, named_tensors
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.torchvision_networks import OPTIONS, image_networks
from pipeline.windows import FRAME
from stages.bench_parts import cosines
from stages.bench_processes import Fresh, run_naive
from stages.console import counted

BATCH_SIZES = (1, 32)  # as scripts have them
# What embeddings have in common with those of the naive loop at least: bfloat16, float16 and resizing round otherwise.
COSINE = 0.999


class Naive(NamedTuple):
    """What came of the naive loop.

    Attributes:
        fresh: what its process took.
        frames: that it embedded.
        rate: frames per second after its first batch.
        cosine: the least of one of its embeddings with the bank's.
        wrong: what is not as in the bank, in words; "" if nothing.
    """

    fresh: Fresh
    frames: int
    rate: float
    cosine: float
    wrong: str


def request_of(backbone: Backbone, device: torch.device, frames: int, folder: Path) -> dict[str, Any]:
    """What the naive loop is asked, but for videos and batches; the tensors are written into a folder for it.

    Raises:
        UserError: it would not compute the same.
    """
    preprocessing = backbone.preprocessing
    if backbone.name not in image_networks() or backbone.window != FRAME:
        raise UserError("The naive loop is of single frames, by image networks of torchvision's; leave --naive out.")
    known_layout = backbone.module.layout in ("vectors", "channels first")
    if preprocessing.fit != "crop" or not known_layout or len(backbone.feature_shape) > 1:
        raise UserError("The naive loop crops frames and keeps vectors; leave --naive, or --fit and --layer, out.")
    state = folder / "network.pt"
    torch.save({name: tensor.clone() for name, tensor in named_tensors(backbone.module.net).items()}, state)
    options: dict[str, Any] = dict(OPTIONS.get(backbone.name, {}))
    if backbone.name.startswith("vit_"):
        options["image_size"] = preprocessing.crop
    return {
        "network": backbone.name,
        "options": options,
        "state": str(state),
        "node": backbone.layer.removesuffix(":mean"),
        "mean": backbone.layer.endswith(":mean"),
        "transforms": {
            "crop_size": preprocessing.crop,
            "resize_size": preprocessing.resize,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "interpolation": preprocessing.interpolation,
        },
        "device": str(device),
        "frames": frames,
        "out": str(folder),
    }


def plain_videos(videos: Sequence[Mapping[str, Any]], bank: Bank, frames: int) -> list[Mapping[str, Any]]:
    """Those that the naive loop reads as we do: whole files, shown as they were filmed.

    They come in random order, always the same: the first of them are as long and as large as all, while ours come
    longest first.

    Raises:
        UserError: there are none, or all of its `frames` would be in its first batch, after which it is timed.
    """
    turned = set(bank.catalog.loc[bank.catalog["rotation"] != 0, "id"])
    whole = [video for video in videos if video["kind"] == "video" and video["id"] not in turned]
    plain = [video for video in whole if not video["crop"] and np.isnan(video["start"]) and np.isnan(video["end"])]
    if not plain:
        raise UserError("The naive loop reads videos as they are, no spans, crops or turned ones: leave --naive out.")
    plain = [plain[number] for number in np.random.default_rng(0).permutation(len(plain))]
    rows = bank.catalog.set_index("id")["rows"]
    timed = min(frames, int(rows[[video["id"] for video in plain]].sum()))
    if timed <= min(max(BATCH_SIZES), int(rows[plain[0]["id"]])):
        raise UserError(
            f"The naive loop is timed after its first batch, which holds all of its {counted(timed, 'frame')}; give "
            "--naive (and --frames) more, or leave it out."
        )
    return plain


def measure(request: Mapping[str, Any], batch_size: int, videos: Sequence[Mapping[str, Any]], bank: Bank) -> Naive:
    """Run it on videos of a bank, and hold its arrays against that."""
    asked = {**request, "batch_size": batch_size, "videos": [video["path"] for video in videos]}
    fresh, frames, rate = run_naive(asked)
    left, least = frames, 1.0
    for number, video in enumerate(videos):
        rows, ours = np.load(Path(request["out"]) / f"{number}.npy"), bank[video["id"]]
        if len(rows) != min(left, len(ours)):
            wrong = f"The naive loop finds {len(rows)} frames in {video['id']}, and framebank {len(ours)}"
            return Naive(fresh, frames, rate, least, wrong)
        least = min(least, float(cosines(rows, ours[: len(rows)]).min()))
        left -= len(rows)
        if not left:
            break
    wrong = "" if least >= COSINE else f"The naive loop's embeddings are others (least cosine {least:.6f})"
    return Naive(fresh, frames, rate, least, wrong)
