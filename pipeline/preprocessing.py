"""Preprocessing travels with the weights: each torchvision weight's own `transforms()`, split in two.

`prepare` is the part for one frame (region, resize, crop), from uint8 to uint8; `normalise` is the part for a batch
(to [0, 1], minus mean, over standard deviation), from uint8 to float32, on whatever device the batch is.

Frames are resized as torchvision's v2 transforms resize uint8 tensors, antialiased in whole numbers. That is Pillow's
own way, with which image weights were trained and evaluated: of frames of real videos one to three values in a thousand
differ from `weights.transforms()` on a Pillow image, by one level of 256 (bicubic, one in a million by two). On a uint8
tensor `transforms()` itself resizes in float32, which is slower and further from it: one value in ten differs, bicubic
by up to 24 levels. The weights of torchvision's video networks want no antialiasing; there `prepare` and `normalise`
equal `weights.transforms()` on the uint8 tensor bit for bit.

How a frame of any shape becomes the network's square of S×S pixels, the three ways to `fit`:

* `crop`, the reference: the shorter side is resized to `resize`, then the central S×S is cut out. Of a 16:9 frame
  this loses over 40 % of the width. Where `resize` is a pair, as most video networks have it, the frame becomes so high
  and so wide whatever its proportions. Another image size N keeps the proportion: `resize` becomes
  round(resize · N / S).
* `squash`: resized to exactly S×S; nothing is lost, proportions change.
* `pad`: the longer side is resized to S, the rest is filled evenly on both sides with the mean colour (which
  normalises to about 0); nothing is lost, proportions stay.

Where no image size is given, S is the one that the weights were evaluated with.

Rows of several frames (`pipeline.windows`) are normalised alike, frame by frame; grey ones by the mean of the three
channels' means and that of their deviations. Motion is centred at 128, which is none, and divided by 255 and by the
mean of the deviations, so that it spreads about as far as the pixels that the network was trained on.
"""

from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError, VideoError
from pipeline.windows import FRAME, Window

FITS = ("crop", "squash", "pad")
_STILL = 128  # the byte of no motion
# Resizing the shorter side of a 16×65520 frame would need gigabytes; no camera's frame comes near.
MAX_ELONGATION = 100


@dataclass(frozen=True)
class Preprocessing:
    """How a frame becomes the network's input. UserError at birth: unknown `fit`, impossible sizes.

    `preset` tells where the numbers come from; two that differ by it alone do the same and are equal.
    """

    # pixels: of the shorter side before the crop (`fit="crop"`), or (height, width) then; else the same as `crop`
    resize: int | tuple[int, int]
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
        shorter = self.resize if isinstance(self.resize, int) else min(self.resize)
        if shorter < self.crop:
            raise UserError(f"cannot crop {self.crop} pixels out of a side resized to {shorter}; resize to more")

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a prepared frame."""
        return (3, self.crop, self.crop)

    def describe(self) -> dict[str, Any]:
        """All that decides a pixel's value, for JSON; so not the preset's name."""
        description = asdict(self) | {"arithmetic": "uint8" if self.antialias else "float32"}
        del description["preset"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in description.items()}


def preprocessing_of(transforms: Any, preset: str) -> Preprocessing:
    """What the transforms of torchvision's weights do (`torchvision.transforms._presets`), under a name."""
    resize = transforms.resize_size
    return Preprocessing(
        resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        crop=transforms.crop_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
        antialias=getattr(transforms, "antialias", False),  # videos are resized without, and have no such setting
        fit="crop",
        preset=preset,
    )


def prepare(
    preprocessing: Preprocessing, rgb: np.ndarray | Tensor, region: tuple[int, int, int, int] | None = None
) -> Tensor:
    """One frame (H, W, 3) uint8 -> (3, S, S) uint8, sharing no memory with it.

    `region` (x, y, width, height in pixels of this frame) is cut out first. VideoError: the region leaves the frame, or
    the frame is too elongated for a crop. Runs in decoding threads: no state, no Python-level copy of the frame.
    """
    # torch takes neither read-only memory nor backward strides (a flipped or rotated view).
    if isinstance(rgb, np.ndarray):
        rgb = torch.from_numpy(rgb if rgb.flags.writeable and min(rgb.strides) >= 0 else rgb.copy())
    return prepare_together(preprocessing, rgb.permute(2, 0, 1)[None], region)[0]


def prepare_together(
    preprocessing: Preprocessing, images: Tensor, region: tuple[int, int, int, int] | None = None
) -> Tensor:
    """Frames of one size (N, 3, H, W) -> (N, 3, S, S) uint8 on the same device, sharing no memory with them.

    Frames of uint8, on a CPU, are resized in whole numbers; those of float32, whole numbers from 0 to 255, in float32
    and rounded after each direction. Of real frames less than one value in a hundred differs between the two, by one
    level of 256 (one in 500,000 by two). `region` and VideoError as `prepare`.
    """
    if region is not None:
        images = _cut(images, region)
    size = preprocessing.crop
    height, width = images.shape[2:]
    shorter, longer = sorted((height, width))
    if preprocessing.fit == "squash":
        return _resize(preprocessing, images, (size, size), (0, 0))
    if preprocessing.fit == "pad":
        fitted = tuple(size if side == longer else max(1, round(side * size / longer)) for side in (height, width))
        top, left = (size - fitted[0]) // 2, (size - fitted[1]) // 2
        colour = torch.tensor([round(255 * value) for value in preprocessing.mean], dtype=torch.uint8)
        canvas = colour.to(images.device).view(1, 3, 1, 1).repeat(len(images), 1, size, size)
        canvas[..., top : top + fitted[0], left : left + fitted[1]] = _resize(preprocessing, images, fitted, (0, 0))
        return canvas
    # torchvision's own arithmetic: the longer side is cut to a whole pixel, the margins are rounded half to even.
    target = preprocessing.resize
    if isinstance(target, tuple):
        resized: tuple[int, ...] = target
    elif longer > MAX_ELONGATION * shorter:
        raise VideoError(f"a frame of {width}×{height} pixels is too elongated to crop; --fit squash or pad takes it")
    else:
        resized = tuple(target if side == shorter else int(target * longer / shorter) for side in (height, width))
    return _resize(preprocessing, images, resized, tuple(round((side - size) / 2) for side in resized))


def normalise(preprocessing: Preprocessing, batch: Tensor, window: Window = FRAME) -> Tensor:
    """(N, *window.input_shape(S)) uint8 -> float32 of the same shape and device: x / 255, minus mean, divided by std.

    Of what is not RGB, by the rules above.
    """
    channels = by_channel(preprocessing, window)
    means, stds = (_channels(values, batch.ndim, batch.device) for values in channels)
    return batch.to(torch.float32).div_(255).sub_(means).div_(stds)


def by_channel(preprocessing: Preprocessing, window: Window = FRAME) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by which `normalise` takes each channel of what the network sees; or the one of each
    that all of them share."""
    mean, std = preprocessing.mean, preprocessing.std
    if window.kind == "flow" or window.grey:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    if window.kind == "flow":
        mean = (_STILL / 255,)
    times = window.length if window.kind == "stack" and not window.grey else 1
    return tuple(mean) * times, tuple(std) * times


@cache
def _channels(values: tuple[float, ...], axes: int, device: torch.device) -> Tensor:
    """One float32 value for each channel of a batch of so many axes, kept: sending it to a GPU would wait for it."""
    with torch.inference_mode(False):  # what is kept serves training too
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, *[1] * (axes - 2))


def region_of(crop: str) -> tuple[int, int, int, int] | None:
    """A region as tables of videos hold it, "x,y,width,height" in pixels of the frame, or "" for all of it."""
    if not crop:
        return None
    x, y, width, height = (int(value) for value in crop.split(","))
    return x, y, width, height


def _cut(images: Tensor, region: tuple[int, int, int, int]) -> Tensor:
    height, width = images.shape[2:]
    x, y, region_width, region_height = region
    if x < 0 or y < 0 or min(region_width, region_height) < 1 or x + region_width > width or y + region_height > height:
        raise VideoError(
            f"the crop region x={x} y={y} width={region_width} height={region_height} "
            f"does not lie within the frame of {width}×{height} pixels"
        )
    return images[..., y : y + region_height, x : x + region_width]


def _resize(preprocessing: Preprocessing, images: Tensor, resized: tuple[int, ...], corner: tuple[int, ...]) -> Tensor:
    """(N, 3, H, W) resized to `resized` (height, width); of that, from `corner` (top, left) on, S×S or less, as uint8.

    The operations of torchvision's `resize` on a uint8 tensor: v2's with antialiasing; without, those of
    `transforms()`, but clamped and rounded after the crop, not before. Antialiased in float32: as in whole numbers,
    first along x, then along y.
    """
    size = preprocessing.crop
    top, left = corner
    window = (..., slice(top, top + size), slice(left, left + size))
    if images.shape[2:] == resized:
        return images[window].to(torch.uint8, memory_format=torch.contiguous_format, copy=True)
    if preprocessing.antialias and images.dtype == torch.uint8:
        pixels = F.interpolate(images, size=resized, mode=preprocessing.interpolation, antialias=True)[window]
        return pixels.clone(memory_format=torch.contiguous_format)
    if preprocessing.antialias:
        for side in ((images.shape[2], resized[1]), resized):  # rounded between the two, as whole numbers are
            images = F.interpolate(images, size=side, mode=preprocessing.interpolation, antialias=True)
            images = images.clamp_(0, 255).round_()
        return images[window].to(torch.uint8, memory_format=torch.contiguous_format)
    pixels = F.interpolate(
        images.to(torch.float32, memory_format=torch.contiguous_format),
        size=resized,
        mode=preprocessing.interpolation,
        align_corners=False,
    )[window]
    if preprocessing.interpolation == "bicubic":  # which overshoots
        pixels = pixels.clamp(0, 255)
    return pixels.round().to(torch.uint8, memory_format=torch.contiguous_format)
