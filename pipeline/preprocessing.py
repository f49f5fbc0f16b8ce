"""Preprocessing travels with the weights: each torchvision weight's own `transforms()`, split in two.

`prepare` is the part for one frame (region, resize, crop), from uint8 to uint8; `normalise` is the part for a batch
(to [0, 1], minus mean, over standard deviation), from uint8 to float32, on whatever device the batch is. One after the
other equal `weights.transforms()` on the frame as a uint8 tensor bit for bit: the same operations in the same order
and precision (the resize in float32, antialiased, rounded back to uint8), only without the pixels that the crop
drops and without copies.

How a frame of any shape becomes the network's square of S×S pixels, the three ways to `fit`:

* `crop`, the reference: the shorter side is resized to `resize`, then the central S×S is cut out. Of a 16:9 frame
  this loses over 40 % of the width. Another image size N keeps the proportion: `resize` becomes round(resize · N / S).
* `squash`: resized to exactly S×S; nothing is lost, proportions change.
* `pad`: the longer side is resized to S, the rest is filled evenly on both sides with the mean colour (which
  normalises to about 0); nothing is lost, proportions stay.

Where no image size is given, S is the one that the weights were evaluated with.
"""

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights, list_models

from pipeline.errors import UserError, VideoError

FITS = ("crop", "squash", "pad")
CLASSIC_PRESET = "IMAGENET1K_V1"
WEIGHT_FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar")
# Resizing the shorter side of a 16×65520 frame would need gigabytes; no camera's frame comes near.
MAX_ELONGATION = 100


@dataclass(frozen=True)
class Preprocessing:
    """How a frame becomes the network's input. UserError at birth: unknown `fit`, impossible sizes.

    `preset` tells where the numbers come from; two that differ by it alone do the same and are equal.
    """

    resize: int  # pixels: of the shorter side before the crop (`fit="crop"`), else the same as `crop`
    crop: int  # pixels: both sides of the output
    mean: tuple[float, ...]  # per channel, of values in [0, 1]
    std: tuple[float, ...]
    interpolation: str  # "bilinear" or "bicubic"
    antialias: bool
    fit: str  # one of FITS
    preset: str = field(compare=False)  # name of the torchvision weights that it belongs to

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UserError(f"unknown fit {self.fit!r}; choose one of {', '.join(FITS)}")
        if self.crop < 1:
            raise UserError(f"an image size of {self.crop} is impossible; give at least 1 pixel")
        if self.resize < self.crop:
            raise UserError(f"cannot crop {self.crop} pixels out of a side resized to {self.resize}; resize to more")

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a prepared frame."""
        return (3, self.crop, self.crop)

    def describe(self) -> dict[str, Any]:
        """All that decides a pixel's value, for JSON; so not the preset's name."""
        description = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        del description["preset"]
        return description


def prepare(
    preprocessing: Preprocessing, rgb: np.ndarray | Tensor, region: tuple[int, int, int, int] | None = None
) -> Tensor:
    """One frame (H, W, 3) uint8 -> (3, S, S) uint8, sharing no memory with it.

    `region` (x, y, width, height in pixels of this frame) is cut out first. VideoError: the region leaves the frame, or
    the frame is too elongated for a crop. Runs in decoding threads: no state, no Python-level copy of the frame.
    """
    if isinstance(rgb, np.ndarray):
        # torch takes neither read-only memory nor backward strides (a flipped or rotated view).
        rgb = torch.from_numpy(rgb if rgb.flags.writeable and min(rgb.strides) >= 0 else rgb.copy())
    if region is not None:
        rgb = _cut(rgb, region)
    image = rgb.permute(2, 0, 1)  # (3, H, W) view
    size = preprocessing.crop
    height, width = image.shape[1:]
    shorter, longer = sorted((height, width))
    if preprocessing.fit == "squash":
        return _resize(preprocessing, image, (size, size), (0, 0))
    if preprocessing.fit == "pad":
        fitted = tuple(size if side == longer else max(1, round(side * size / longer)) for side in (height, width))
        top, left = (size - fitted[0]) // 2, (size - fitted[1]) // 2
        colour = torch.tensor([round(255 * value) for value in preprocessing.mean], dtype=torch.uint8)
        canvas = colour.view(3, 1, 1).repeat(1, size, size)
        canvas[:, top : top + fitted[0], left : left + fitted[1]] = _resize(preprocessing, image, fitted, (0, 0))
        return canvas
    if longer > MAX_ELONGATION * shorter:
        raise VideoError(f"a frame of {width}×{height} pixels is too elongated to crop; --fit squash or pad takes it")
    # torchvision's own arithmetic: the longer side is cut to a whole pixel, the margins are rounded half to even.
    resized = tuple(
        preprocessing.resize if side == shorter else int(preprocessing.resize * longer / shorter)
        for side in (height, width)
    )
    return _resize(preprocessing, image, resized, tuple(round((side - size) / 2) for side in resized))


def normalise(preprocessing: Preprocessing, batch: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 -> float32 of the same shape and device: x / 255, minus mean, divided by std."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=batch.device).view(-1, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return batch.to(torch.float32).div_(255).sub_(mean).div_(std)


def model_weights(model_name: str) -> type[WeightsEnum]:
    """The torchvision weights of a classification model. UserError: there is no such model."""
    known = list_models(module=torchvision.models)
    if model_name not in known:
        raise UserError(
            f"unknown backbone {model_name!r}{did_you_mean(model_name, known)}; "
            f"any torchvision classification model will do: {', '.join(known)}"
        )
    return get_model_weights(model_name)


def named_weights(model_name: str, weights: str) -> WeightsEnum | None:
    """What `--weights` means: the torchvision entry of that name, or None for "random" and for a file.

    A file is what exists, has a folder in its name, or ends in one of WEIGHT_FILE_SUFFIXES; a weights name comes first
    (`./DEFAULT` is a file). UserError: neither.
    """
    entries = model_weights(model_name)
    name = weights.removeprefix(f"{entries.__name__}.")
    if name in entries.__members__:
        return entries[name]
    path = Path(weights)
    if weights == "random" or path.suffix in WEIGHT_FILE_SUFFIXES or path.name != weights or path.exists():
        return None
    raise UserError(
        f"{model_name} has no weights {weights!r}{did_you_mean(weights.upper(), entries.__members__)}; "
        f"--weights takes {', '.join(entries.__members__)}, random, or a checkpoint file"
    )


def presets(model_name: str) -> dict[str, Preprocessing]:
    """The preprocessing of each of a model's torchvision weights, by their names. UserError: unknown model."""
    result = {}
    for entry in model_weights(model_name):
        reference = entry.transforms()
        result[entry.name] = Preprocessing(
            resize=reference.resize_size[0],
            crop=reference.crop_size[0],
            mean=tuple(reference.mean),
            std=tuple(reference.std),
            interpolation=reference.interpolation.value,
            antialias=reference.antialias,
            fit="crop",
            preset=entry.name,
        )
    return result


def choose_preset(
    model_name: str,
    weights: str = "DEFAULT",
    preset: str | None = None,
    image_size: int | None = None,
    fit: str = "crop",
) -> Preprocessing:
    """The preprocessing that goes with `weights` (as `named_weights` reads them), then `image_size` and `fit`.

    Named weights bring their own. Other weights take the preset that is named. Else a file takes IMAGENET1K_V1's, with
    which nearly everybody trains (where the model has it, or all of its weights agree), and random weights DEFAULT's.
    UserError: unknown names, a preset beside named weights that bring another, none where they differ.
    """
    table = presets(model_name)
    entries = model_weights(model_name)
    if preset is not None and preset not in entries.__members__:
        raise UserError(
            f"{model_name} has no preset {preset!r}{did_you_mean(preset.upper(), entries.__members__)}; "
            f"--preset takes {', '.join(entries.__members__)}"
        )
    chosen = None if preset is None else table[entries[preset].name]
    named = named_weights(model_name, weights)
    if named is not None:
        if chosen is not None and chosen != table[named.name]:
            raise UserError(
                f"the weights {named.name} bring their own preprocessing, so --preset {preset} cannot apply; leave "
                "--preset out (it goes with a checkpoint file or random weights)"
            )
        chosen = table[named.name]
    elif chosen is None:
        chosen = table[entries["DEFAULT"].name]
        if weights != "random":
            chosen = table.get(CLASSIC_PRESET, chosen)
        if weights != "random" and CLASSIC_PRESET not in table and any(other != chosen for other in table.values()):
            raise UserError(
                f"which preprocessing goes with {weights}? {model_name} weights come with more than one: "
                f"{_differences(table)}; add --preset NAME"
            )
    size = chosen.crop if image_size is None else image_size
    resize = round(chosen.resize * size / chosen.crop) if fit == "crop" else size
    return replace(chosen, crop=size, resize=resize, fit=fit)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean A, or B?)" for the nearest of the known words, "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {', or '.join(near)}?)" if near else ""


def region_of(crop: str) -> tuple[int, int, int, int] | None:
    """A region as tables of videos hold it, "x,y,width,height" in pixels of the frame, or "" for all of it."""
    if not crop:
        return None
    x, y, width, height = (int(value) for value in crop.split(","))
    return x, y, width, height


def _cut(rgb: Tensor, region: tuple[int, int, int, int]) -> Tensor:
    height, width = rgb.shape[:2]
    x, y, region_width, region_height = region
    if x < 0 or y < 0 or min(region_width, region_height) < 1 or x + region_width > width or y + region_height > height:
        raise VideoError(
            f"the crop region x={x} y={y} width={region_width} height={region_height} "
            f"does not lie within the frame of {width}×{height} pixels"
        )
    return rgb[y : y + region_height, x : x + region_width]


def _resize(preprocessing: Preprocessing, image: Tensor, resized: tuple[int, ...], corner: tuple[int, ...]) -> Tensor:
    """(3, H, W) uint8 resized to `resized` (height, width); of that, the S×S (or less) from `corner` (top, left) on.

    The operations of torchvision's `resize` on a uint8 tensor, but clamped and rounded after the crop, not before.
    """
    size = preprocessing.crop
    top, left = corner
    window = (slice(None), slice(top, top + size), slice(left, left + size))
    if image.shape[1:] == resized:
        return image[window].clone(memory_format=torch.contiguous_format)
    pixels = F.interpolate(
        image.unsqueeze(0).to(torch.float32, memory_format=torch.contiguous_format),
        size=resized,
        mode=preprocessing.interpolation,
        align_corners=False,
        antialias=preprocessing.antialias,
    )[0][window]
    if preprocessing.interpolation == "bicubic":  # which overshoots
        pixels = pixels.clamp(0, 255)
    return pixels.round().to(torch.uint8, memory_format=torch.contiguous_format)


def _differences(table: dict[str, Preprocessing]) -> str:
    """ "NAME (resize 256), OTHER (resize 232)": of each preset only what distinguishes it from some other."""
    descriptions = {name: preset.describe() for name, preset in table.items()}
    first = next(iter(descriptions.values()))
    fields = [key for key in first if any(described[key] != first[key] for described in descriptions.values())]
    return ", ".join(
        f"{name} ({', '.join(f'{key} {described[key]}' for key in fields)})" for name, described in descriptions.items()
    )
