"""Several crops of a video, banked side by side: each view is cut from every frame alike, so motion stays motion.

The first view is always the plain one, as without views. Then, by kind:

- `corners`: the four corners, top left, top right, bottom left, bottom right, and with a count of 10 the mirror images
  of these five: S×S pixels of the resized frame's middle square, 224 of 256 as Krizhevsky et al. 2012 test, "ImageNet
  classification with deep convolutional neural networks".
- `random`: crops and flips as `pipeline.augmentation` draws them, fixed for each video by its id and the seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline.augmentation import PLAIN, Augmentation, Draw, draw, wider
from pipeline.errors import UserError
from pipeline.preprocessing import Preprocessing

KINDS = ("corners", "random")
_CORNERS = (5, 10)
_MOST = 100  # more is a slip of the finger
_DRAWN = ("crop", "flip")


@dataclass(frozen=True)
class Views:
    """Which views of each video are banked: `count` of them, K. UserError for a number that the kind does not have.

    Attributes:
        kind: one of `KINDS`.
        count: 5 or 10 with `corners`; from 2 with `random`, the plain one among them.
        seed: of what is drawn at random.
    """

    kind: str
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"there are no views {self.kind!r}; choose {' or '.join(KINDS)}")
        if self.kind == "corners" and self.count not in _CORNERS:
            raise UserError(
                f"centre and corners are 5 views, 10 with their mirror images, not {self.count}; random:{self.count} "
                "draws as many"
            )
        if self.kind == "random" and not 2 <= self.count <= _MOST:
            raise UserError(f"{self.count} random views are impossible; give from 2 (one of them plain) to {_MOST}")

    def describe(self) -> dict[str, Any]:
        """In one canonical form for the fingerprint: equal views give equal, JSON-able dicts."""
        return {"kind": self.kind, "count": self.count} | ({"seed": self.seed} if self.kind == "random" else {})


def read_views(text: str) -> Views:
    """What `--views` says: "5", "10" or "random:K". UserError: anything else."""
    kind, _, count = text.rpartition(":")
    if kind in ("", "random") and count.isascii() and count.isdigit() and len(count) <= len(str(_MOST)):
        return Views(kind or "corners", int(count))
    raise UserError(
        f"unknown views {text!r}; give 5 (centre and corners), 10 (these and their mirror images), or random:K"
    )


def draws(views: Views, preprocessing: Preprocessing, video_id: str) -> list[Draw]:
    """What is done to every frame of a video in each view, in their order.

    Raises:
        UserError: corners where the preprocessing leaves nothing around the centre.
    """
    if views.kind == "random":
        augmentation = Augmentation(_DRAWN, views.seed)
        return [PLAIN, *(draw(augmentation, number, video_id) for number in range(1, views.count))]
    size, whole = preprocessing.crop, wider(preprocessing).crop
    if size == whole:
        raise UserError(
            f"there is nothing around the centre: frames are prepared as {size}×{size} pixels without cropping; give "
            "random:K views, or --fit crop with weights that crop"
        )
    share, rest = size / whole, 1 - size / whole
    corners = [PLAIN._replace(box=(top, left, share, share)) for top, left in product((0.0, rest), repeat=2)]
    plain = [PLAIN, *corners]
    return plain if views.count == len(plain) else plain + [each._replace(flip=True) for each in plain]


def described(drawn: Sequence[Draw]) -> list[Mapping[str, Any]]:
    """Views as a bank keeps them, for JSON: the `box` that was cut out (null: as without views), and `flip`."""
    return [{"box": None if each.box is None else list(each.box), "flip": each.flip} for each in drawn]
