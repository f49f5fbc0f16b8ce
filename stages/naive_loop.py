"""The loop that people write by hand, in a process of its own: what `framebank bench extract --naive` compares with.

One video after the other: PyAV decodes, every frame becomes a Pillow image and goes by itself through the transforms
that torchvision's image weights have, the network runs in float32 on batches that never span two videos, and each video
becomes an array file. Nothing of framebank is in it.

Standard input is JSON: `network` (torchvision's name), `options` (of its builder), `state` (a file of its tensors),
`node` (where it is cut), `mean` (over space, of what the node gives), `transforms` (those of `ImageClassification`),
`device`, `batch_size`, `videos` (paths), `frames` (it stops after so many) and `out` (a folder for the arrays 0.npy,
1.npy, …). On standard output it says how many frames it has embedded after its first batch, and at its end.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode


def _load(asked: dict[str, Any]) -> nn.Module:
    """The network, cut at a node: (N, 3, S, S) float32 -> {"features": what the node gives}."""
    model = get_model(asked["network"], weights=None, **asked["options"])
    model.load_state_dict(torch.load(asked["state"], weights_only=True), strict=False)  # the classifier is not in it
    return create_feature_extractor(model.eval(), {asked["node"]: "features"}).eval().to(asked["device"])


def _batches(path: str, frames: int, asked: dict[str, Any]) -> Iterator[Tensor]:
    """(N, 3, S, S) float32 of at most so many frames of a video."""
    interpolation = InterpolationMode(asked["transforms"]["interpolation"])
    transforms = ImageClassification(**{**asked["transforms"], "interpolation": interpolation})
    batch: list[Tensor] = []
    with av.open(path) as container:
        for number, frame in enumerate(container.decode(video=0), start=1):
            batch.append(transforms(frame.to_image()))
            if len(batch) == asked["batch_size"] or number == frames:
                yield torch.stack(batch)
                batch = []
            if number == frames:
                return
    if batch:
        yield torch.stack(batch)


@torch.no_grad()
def main() -> None:
    """Embed and write until there are no more videos, or enough frames."""
    asked = json.load(sys.stdin)
    network, done = _load(asked), 0
    for number, path in enumerate(asked["videos"]):
        rows = []
        for batch in _batches(path, asked["frames"] - done, asked):
            features = network(batch.to(asked["device"]))["features"]
            rows.append((features.mean((2, 3)) if asked["mean"] else features).cpu().numpy())
            if not done and len(rows) == 1:
                print(len(batch), flush=True)
        np.save(Path(asked["out"]) / f"{number}.npy", np.concatenate(rows))
        done += sum(map(len, rows))
        if done == asked["frames"]:
            break
    print(done, flush=True)


if __name__ == "__main__":
    main()
