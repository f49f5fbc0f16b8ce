"""Random changes of a clip that are the same for every frame of it, so that motion stays motion.

* `crop`: a random part of the picture, resized to the network's square (Szegedy et al. 2015, "Going deeper with
  convolutions"): 50 to 100 % of its area, sides 3:4 to 4:3. It is cut from a larger prepared square (`wider`), so that
  detail is not lost.
* `flip`: left and right are swapped, half of the time. Not for what direction tells apart.
* `jitter`: brightness, contrast and saturation by up to 20 %, hue by up to 5 % of the circle.

What is drawn depends on the seed, the number of the epoch or view, and the id of the video: not on the order of videos,
nor on any generator that others use.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.preprocessing import Preprocessing, prepare, region_of

PARTS = ("crop", "flip", "jitter")
AREA, ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
FLIP, STRENGTH, HUE = 0.5, 0.2, 0.05
_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """Which of `PARTS` are applied, and the seed of what is drawn. UserError for parts that are unknown or doubled."""

    parts: tuple[str, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise UserError(f"unknown augmentation {part!r}; choose from {', '.join(PARTS)}")
            if self.parts.count(part) > 1:
                raise UserError(f"the augmentation {part} is asked for twice; give it once")

    def wider(self, preprocessing: Preprocessing) -> Preprocessing:
        """How frames are to be prepared: for `crop` as all of which a part is cut out."""
        return wider(preprocessing) if "crop" in self.parts else preprocessing

    def describe(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self) | {"parts": sorted(self.parts)}


class Draw(NamedTuple):
    """What is done to every frame of one clip.

    Attributes:
        box: top, left, height, width of the part that is cut out, as shares of the side; None: the middle.
        flip: whether left and right are swapped.
        brightness, contrast, saturation: factors; hue: a share of the circle; None: colours stay.
    """

    box: tuple[float, float, float, float] | None
    flip: bool
    colours: tuple[float, float, float, float] | None


PLAIN = Draw(None, False, None)


def wider(preprocessing: Preprocessing) -> Preprocessing:
    """A preprocessing that leaves nothing out where it can: of a resized frame the whole middle square."""
    if preprocessing.fit != "crop":
        return preprocessing
    resize = preprocessing.resize
    return replace(preprocessing, crop=min(resize) if isinstance(resize, tuple) else resize)


def draw(augmentation: Augmentation, number: int, video_id: str) -> Draw:
    """What is done to a video in the epoch, or the view, of this number."""
    digest = hashlib.sha256(video_id.encode("utf-8", "surrogatepass")).digest()
    words = np.frombuffer(digest[:16], np.uint32).tolist()
    generator = np.random.default_rng([augmentation.seed, number, *words])
    # All is drawn whether it is asked for or not, so that leaving a part out does not change the others.
    box, flip = _box(generator), bool(generator.random() < FLIP)
    brightness, contrast, saturation = (float(generator.uniform(1 - STRENGTH, 1 + STRENGTH)) for _ in range(3))
    colours = (brightness, contrast, saturation, float(generator.uniform(-HUE, HUE)))
    parts = augmentation.parts
    return Draw(box if "crop" in parts else None, flip and "flip" in parts, colours if "jitter" in parts else None)


def _box(generator: np.random.Generator) -> tuple[float, float, float, float]:
    """A part of the unit square, as torchvision's RandomResizedCrop draws it."""
    for _ in range(_TRIES):
        area = generator.uniform(*AREA)
        aspect = math.exp(generator.uniform(*np.log(ASPECT)))
        width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if width <= 1 and height <= 1:
            return float(generator.uniform(0, 1 - height)), float(generator.uniform(0, 1 - width)), height, width
    return 0.0, 0.0, 1.0, 1.0


def apply(drawn: Draw, frames: Tensor, size: int) -> Tensor:
    """Frames (n, 3, S', S') uint8 of one video -> (n, 3, S, S) uint8 with S = `size`, each by itself."""
    side = frames.shape[-1]
    if drawn.box is not None:
        top, left, height, width = (round(part * side) for part in drawn.box)
        height, width = max(1, min(height, side - top)), max(1, min(width, side - left))
        frames = F.resized_crop(frames, top, left, height, width, [size, size], antialias=True)
    elif side != size:
        frames = F.center_crop(frames, [size, size])
    if drawn.flip:
        frames = F.horizontal_flip(frames)
    if drawn.colours is not None:
        brightness, contrast, saturation, hue = drawn.colours
        frames = F.adjust_brightness(frames, brightness)
        frames = F.adjust_contrast(frames, contrast)
        frames = F.adjust_saturation(frames, saturation)
        frames = F.adjust_hue(frames, hue)
    return frames


def preparing(preprocessing: Preprocessing, crop: str, draws: Sequence[Draw]) -> Callable[[np.ndarray], Tensor]:
    """What makes of each frame (H, W, 3) uint8 of one video what the network is to see of it, once for each draw.

    Args:
        preprocessing: how a frame is prepared.
        crop: the region of it that is used, as tables of videos hold it.
        draws: K of them.

    Returns:
        a function to (K, 3, S, S) uint8. It raises VideoError as `pipeline.preprocessing.prepare`.
    """
    region, size, whole = region_of(crop), preprocessing.crop, wider(preprocessing)
    cut = [drawn.box is not None for drawn in draws]

    def prepared(rgb: np.ndarray) -> Tensor:
        # What is not cut out is as without draws to the last pixel, which the middle of the wider square may not be:
        # of two crops in a row each rounds.
        frames = {part: prepare(whole if part else preprocessing, rgb, region)[None] for part in set(cut)}
        shown = [apply(drawn, frames[part], size) for drawn, part in zip(draws, cut, strict=True)]
        return torch.cat(shown) if len(shown) > 1 else shown[0].contiguous()

    return prepared
