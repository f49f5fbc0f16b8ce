"""The networks that can be a backbone: their names, weights and presets, and what of a video each of them sees.

There are three kinds. torchvision's image classification models see a frame; with another first convolution
(`pipeline.first_convolution`) a stack of frames or of motion, and inflated (`pipeline.inflation`) a clip. torchvision's
video classification models see a clip, and where none is asked for one of 16 frames (64 for S3D, 32 for Swin3D), a new
one every half clip. Our own (`pipeline.video_nets`) see what their papers say; nobody publishes weights for them.

A *preset* is the preprocessing of published weights, named as these are. GoogLeNet's and Inception's published weights
expect inputs in [-1, 1]: of single frames the model itself converts ours (`transform_input`), which it can of three
channels alone; so with all other windows it does not, and mean and deviation are 0.5.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models

from pipeline.errors import UserError
from pipeline.preprocessing import Preprocessing
from pipeline.video_nets import NETS
from pipeline.windows import FRAME, Window

CLASSIC_PRESET = "IMAGENET1K_V1"
WEIGHT_FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar")
OPTIONS = {  # of the whole model, as its published weights need them
    "googlenet": {"transform_input": True, "aux_logits": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "aux_logits": True, "init_weights": False},
}
FIXED_SIZE = ("vit_", "maxvit_", "mvit_")  # position embeddings of one image size
_FIXED_LENGTH = "mvit_"  # and of one length
_CLIP_LENGTHS = {"s3d": 64, "swin3d_t": 32, "swin3d_s": 32, "swin3d_b": 32}
_CLIP_LENGTH = 16  # of all other video networks


def image_networks() -> list[str]:
    """The names of torchvision's image classification models."""
    return list_models(module=torchvision.models)


def video_networks() -> list[str]:
    """The names of torchvision's video classification models."""
    return list_models(module=torchvision.models.video)


def model_weights(model_name: str) -> Mapping[str, WeightsEnum]:
    """A network's published weights by their names, DEFAULT among them; none for our own.

    UserError: there is no such network.
    """
    if model_name in NETS:
        return {}
    known = [*image_networks(), *video_networks()]
    if model_name not in known:
        raise UserError(
            f"unknown backbone {model_name!r}{did_you_mean(model_name, [*known, *NETS])}; any torchvision model that "
            f"classifies images or videos will do: {', '.join(known)}; or one without published weights: "
            f"{', '.join(NETS)}"
        )
    weights: type[WeightsEnum] = get_model_weights(model_name)
    return weights.__members__


def named_weights(model_name: str, weights: str) -> WeightsEnum | None:
    """What `--weights` means: the published entry of that name, or None for "random" and for a file.

    A file is what exists, has a folder in its name, or ends in one of WEIGHT_FILE_SUFFIXES; a weights name comes first
    (`./DEFAULT` is a file). UserError: neither.
    """
    entries = model_weights(model_name)
    for name, entry in entries.items():
        if weights in (name, f"{type(entry).__name__}.{name}"):
            return entry
    path = Path(weights)
    if weights == "random" or path.suffix in WEIGHT_FILE_SUFFIXES or path.name != weights or path.exists():
        return None
    if not entries:
        raise UserError(
            f"nobody publishes weights for {model_name}; --weights takes random (to train it end to end), or a "
            "checkpoint file"
        )
    raise UserError(
        f"{model_name} has no weights {weights!r}{did_you_mean(weights.upper(), entries)}; "
        f"--weights takes {', '.join(entries)}, random, or a checkpoint file"
    )


def presets(model_name: str) -> dict[str, Preprocessing]:
    """The preprocessing of each of a network's published weights, by their names; our own have one each.

    UserError: unknown network.
    """
    entries = model_weights(model_name)
    if not entries:
        preprocessing = NETS[model_name].preprocessing
        return {preprocessing.preset: preprocessing}
    result = {}
    for entry in entries.values():
        reference = entry.transforms()
        resize = reference.resize_size
        result[entry.name] = Preprocessing(
            resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
            crop=reference.crop_size[0],
            mean=tuple(reference.mean),
            std=tuple(reference.std),
            interpolation=reference.interpolation.value,
            antialias=getattr(reference, "antialias", False),  # videos are resized without, and have no such setting
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
    window: Window = FRAME,
) -> Preprocessing:
    """The preprocessing that goes with `weights` (as `named_weights` reads them), then `image_size` and `fit`.

    Named weights bring their own. Other weights take the preset that is named. Else a file takes IMAGENET1K_V1's, with
    which nearly everybody trains (where the network has it, or all of its weights agree), and random weights DEFAULT's.
    UserError: unknown names, a preset beside named weights that bring another, none where they differ.
    """
    table = presets(model_name)
    entries = model_weights(model_name)
    names = {name: entry.name for name, entry in entries.items()} or {name: name for name in table}
    if preset is not None and preset not in names:
        raise UserError(
            f"{model_name} has no preset {preset!r}{did_you_mean(preset.upper(), names)}; "
            f"--preset takes {', '.join(names)}"
        )
    chosen = None if preset is None else table[names[preset]]
    named = named_weights(model_name, weights)
    if named is not None:
        if chosen is not None and chosen != table[named.name]:
            raise UserError(
                f"the weights {named.name} bring their own preprocessing, so --preset {preset} cannot apply; leave "
                "--preset out (it goes with a checkpoint file or random weights)"
            )
        chosen = table[named.name]
    elif chosen is None:
        chosen = table[names.get("DEFAULT", next(iter(table)))]
        if weights != "random":
            chosen = table.get(CLASSIC_PRESET, chosen)
        if weights != "random" and CLASSIC_PRESET not in table and any(other != chosen for other in table.values()):
            raise UserError(
                f"which preprocessing goes with {weights}? {model_name} weights come with more than one: "
                f"{_differences(table)}; add --preset NAME"
            )
    if model_name in OPTIONS and window != FRAME:
        chosen = replace(chosen, mean=(0.5,) * 3, std=(0.5,) * 3)
    size = chosen.crop if image_size is None else image_size
    return replace(chosen, crop=size, resize=_resized(chosen, size) if fit == "crop" else size, fit=fit)


def window_of(model_name: str, window: Window | None = None, *, inflate: bool = False) -> Window:
    """What of a video a network is to see: the window that is asked for, else the network's own by the rules above.

    UserError: unknown network, or one that does not go with the window, or with `inflate`.
    """
    entries = model_weights(model_name)
    if model_name in image_networks():
        if inflate and (window is None or window.kind != "clip"):
            raise UserError("an inflated network sees clips; give their length, as in --clip-length 64 --inflate")
        if window is not None and window.kind == "clip" and not inflate:
            raise UserError(
                f"{model_name} sees single images, not clips; give --inflate, or a video network such as r2plus1d_18"
            )
        return window or FRAME
    if inflate:
        raise UserError(f"{model_name} is not an image network of torchvision's, which --inflate is for; leave it out")
    if model_name in NETS:
        own, kinds = NETS[model_name].window, NETS[model_name].kinds
    else:
        length = _CLIP_LENGTHS.get(model_name, _CLIP_LENGTH)
        own, kinds = Window("clip", length, length // 2), ("clip",)
    if window is None:
        return own
    if window.kind not in kinds:
        way = "--clip-length" if own.kind == "clip" else f"--{own.kind}"
        raise UserError(
            f"{model_name} sees a {' or '.join(kinds)}, not a {window.kind}; leave --{_option(window)} out, or give "
            f"{way} {own.length} instead"
        )
    least = max((entry.meta.get("min_temporal_size", 1) for entry in entries.values()), default=1)
    if model_name.startswith(_FIXED_LENGTH) and window.length != least:
        raise UserError(f"{model_name} takes clips of {least} frames only, not of {window.length}")
    if window.length < least:
        raise UserError(f"{model_name} takes clips of at least {least} frames, not of {window.length}")
    return window


def _option(window: Window) -> str:
    """What asks for such a window on the command line."""
    return "clip-length" if window.kind == "clip" else window.kind


def build(model_name: str, window: Window, *, own_size: int, seed: int) -> nn.Module:
    """The whole network, randomly initialised after `seed`, in evaluation mode, without gradients.

    `own_size` is the image size of its preset, for which position embeddings of images are made. An image network is
    built for one RGB frame; our own are built for `window` (UserError: one does not take it).
    """
    options: dict[str, Any] = dict(OPTIONS.get(model_name, {}))
    if model_name in OPTIONS and window != FRAME:
        options["transform_input"] = False
    if model_name.startswith("vit_"):
        options["image_size"] = own_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the GPUs as well
        model = NETS[model_name].build(window) if model_name in NETS else get_model(model_name, weights=None, **options)
    return model.eval().requires_grad_(False)


def categories(model_name: str, weights: str, outputs: int) -> list[str] | None:
    """The classes of a network's own classifier, in the order of its outputs; None where nobody can tell.

    Named weights name theirs. A file (`weights` as `named_weights` reads them) is taken to have the classes of the
    network's DEFAULT weights if it has as many outputs. Random weights know no classes, nor do our own networks.
    """
    entry = named_weights(model_name, weights)
    if entry is None and weights != "random":
        entry = model_weights(model_name).get("DEFAULT")
    if entry is None:
        return None
    names = [str(name) for name in entry.meta["categories"]]
    return names if len(names) == outputs else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean A, or B?)" for the nearest of the known words, "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {', or '.join(near)}?)" if near else ""


def _resized(preset: Preprocessing, size: int) -> int | tuple[int, int]:
    """To what a frame is resized before a crop of `size`, in proportion."""
    if isinstance(preset.resize, int):
        return round(preset.resize * size / preset.crop)
    height, width = preset.resize
    return round(height * size / preset.crop), round(width * size / preset.crop)


def _differences(table: dict[str, Preprocessing]) -> str:
    """ "NAME (resize 256), OTHER (resize 232)": of each preset only what distinguishes it from some other."""
    descriptions = {name: preset.describe() for name, preset in table.items()}
    first = next(iter(descriptions.values()))
    fields = [key for key in first if any(described[key] != first[key] for described in descriptions.values())]
    return ", ".join(
        f"{name} ({', '.join(f'{key} {described[key]}' for key in fields)})" for name, described in descriptions.items()
    )
