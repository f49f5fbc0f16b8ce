"""torchvision's classification models, of images and of videos.

Image models see a frame. Video models see a clip, and where none is asked for one of 16 frames (64 for S3D, 32 for
Swin3D), a new one every half clip.

GoogLeNet's and Inception's published weights expect inputs in [-1, 1]: of single frames the model itself converts ours
(`transform_input`), which it can of three channels alone.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models

from pipeline.blueprints import Blueprint, Published
from pipeline.downloads import downloaded
from pipeline.preprocessing import Preprocessing, preprocessing_of
from pipeline.windows import FRAME, Window

OPTIONS = {  # of the whole model, as its published weights need them
    "googlenet": {"transform_input": True, "aux_logits": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "aux_logits": True, "init_weights": False},
}
_FIXED_SIZE = ("vit_", "maxvit_", "mvit_")  # position embeddings of one image size
_FIXED_LENGTH = "mvit_"  # and of one length
_CLIP_LENGTHS = {"s3d": 64, "swin3d_t": 32, "swin3d_s": 32, "swin3d_b": 32}
_CLIP_LENGTH = 16  # of all other video networks


def image_networks() -> list[str]:
    """The names of torchvision's image classification models."""
    return list_models(module=torchvision.models)


def video_networks() -> list[str]:
    """The names of torchvision's video classification models."""
    return list_models(module=torchvision.models.video)


def blueprint(name: str) -> Blueprint:
    """One of these models."""
    enumeration: type[WeightsEnum] = get_model_weights(name)
    entries = enumeration.__members__
    published = {
        alias: Published(
            name=entry.name,
            file=partial(_file, name, entry),
            classes=partial(_classes, entry),
            shortest=entry.meta.get("min_temporal_size", 1),
        )
        for alias, entry in entries.items()
    }
    is_image = name in image_networks()
    length = _CLIP_LENGTHS.get(name, _CLIP_LENGTH)
    return Blueprint(
        name=name,
        build=partial(_build, name),
        presets=partial(_presets, entries),
        published=published,
        enumeration=f"{enumeration.__name__}.",
        window=FRAME if is_image else Window("clip", length, length // 2),
        kinds=("frame",) if is_image else ("clip",),
        is_image=is_image,
        inflatable=is_image,
        fixed_size=name.startswith(_FIXED_SIZE),
        fixed_length=name.startswith(_FIXED_LENGTH),
        converts=name in OPTIONS,
    )


def _presets(entries: Mapping[str, WeightsEnum]) -> dict[str, Preprocessing]:
    return {entry.name: preprocessing_of(entry.transforms(), entry.name) for entry in entries.values()}


def _file(name: str, entry: WeightsEnum) -> Path:
    return downloaded(name, entry.name, entry.url, f"--weights FILE --preset {entry.name}")


def _classes(entry: WeightsEnum) -> list[str]:
    return [str(each) for each in entry.meta["categories"]]


def _build(name: str, window: Window, preset: Preprocessing, _seed: int) -> nn.Module:
    """An image network is built for one RGB frame."""
    options: dict[str, Any] = dict(OPTIONS.get(name, {}))
    if name in OPTIONS and window != FRAME:
        options["transform_input"] = False
    if name.startswith("vit_"):
        options["image_size"] = preset.crop
    model: nn.Module = get_model(name, weights=None, **options)
    return model
