"""timm's image networks, as `timm/NAME` or `timm/NAME.TAG`: DINOv2, CLIP and SigLIP image towers and a thousand others.

A tag is the name of published weights, and of their preset: `timm/vit_small_patch14_dinov2.lvd142m` is
`--backbone timm/vit_small_patch14_dinov2 --weights lvd142m`, and no other weights are its then. Without a tag timm's
own default is meant.

Preprocessing is what timm's evaluation transforms do by the weights' own configuration: the shorter side is resized to
floor(size / crop_pct), or where `crop_mode` is "squash" both sides are, and the middle is cut out. What these cannot
say ("border", other interpolations, images that are not square or not RGB) is refused.

The network ends before its classifier, with what timm calls pre-logits: `forward_features`, then `forward_head` with
the pooling of its configuration. It takes other image sizes as timm's `set_input_size` lets it, which resamples
position embeddings.

Weights are looked for in the cache of the Hugging Face hub, where timm puts them, and downloaded there if absent. They
are read as tensors alone, and translated by timm where a file names them as others do (open_clip's, DINOv2's own).
"""

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.blueprints import Blueprint, Published
from pipeline.downloads import downloaded
from pipeline.errors import UserError, did_you_mean
from pipeline.preprocessing import Preprocessing
from pipeline.windows import Window

PREFIX = "timm/"
_INTERPOLATIONS = ("bilinear", "bicubic")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_ABSENT = ("EntryNotFoundError", "RemoteEntryNotFoundError")  # the hub has the repository, and not this file of it
_UNTAGGED = "timm"  # the preset of weights without a tag, and of networks without weights


def is_timm(name: str) -> bool:
    """Whether the name of a backbone says that it is timm's."""
    return name.startswith(PREFIX)


def recorded_name(name: str) -> str:
    """Without the tag, which banks record as the weights."""
    return name.partition(".")[0]


def blueprint(name: str) -> Blueprint:
    """One of these networks. UserError: timm is not installed, or has no such network or weights."""
    timm = _timm()
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    if architecture not in timm.list_models():
        raise UserError(
            f"timm {timm.__version__} has no network {architecture!r}{did_you_mean(architecture, timm.list_models())}; "
            "timm.list_models('*dinov2*') in Python lists those whose name is like that"
        )
    configs = _configs(architecture)
    if tag and tag not in configs:
        raise UserError(
            f"timm/{architecture} has no weights {tag!r}{did_you_mean(tag, configs)}; it has "
            f"{', '.join(each for each in configs if each != _UNTAGGED) or 'none'}"
        )
    if tag:
        configs = {tag: configs[tag]}
    published = {
        each: Published(each, partial(_file, architecture, each, config), partial(_classes, config))
        for each, config in configs.items()
        if config.has_weights
    }
    default = next(iter(configs))
    if default in published:
        published["DEFAULT"] = published[default]
    return Blueprint(
        name=f"{PREFIX}{architecture}",
        build=partial(_build, architecture),
        presets=lambda: {each: _preprocessing(architecture, each, config) for each, config in configs.items()},
        published=published,
        default=default,
        is_image=True,
        shorten=_shorten,
        classifier=_classifier,
        translate=partial(_translate, architecture),
        tracing=_tracing(),
        checked=True,
    )


def _timm() -> Any:
    """UserError: it is not installed."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError("backbones of timm need an extra: pip install 'framebank[timm]'") from error
    return timm


@cache
def _configs(architecture: str) -> dict[str, Any]:
    """The configurations of a network's weights by tag, the default first; of one without weights its only one."""
    from timm.models import get_pretrained_cfg, list_pretrained

    names = [architecture, *list_pretrained(f"{architecture}.*")]
    configs: list[Any] = [get_pretrained_cfg(name) for name in names]
    return {config.tag or _UNTAGGED: config for config in configs}


def _tracing() -> dict[str, Any]:
    """timm registers which of its modules and functions are to be taken as one."""
    from timm.models import get_notrace_functions, get_notrace_modules

    return {"leaf_modules": get_notrace_modules(), "autowrap_functions": tuple(get_notrace_functions())}


def _preprocessing(architecture: str, tag: str, config: Any) -> Preprocessing:
    """What timm's evaluation transforms do. UserError: this project's preprocessing cannot do that."""
    from timm.data.config import resolve_data_config

    shown = resolve_data_config({}, pretrained_cfg=config.to_dict())
    channels, height, width = shown["input_size"]
    odd = {
        f"images of {width}×{height}": width != height,
        f"{channels} channels": channels != 3,
        f"the interpolation {shown['interpolation']}": shown["interpolation"] not in _INTERPOLATIONS,
        f"the crop mode {shown['crop_mode']}": shown["crop_mode"] not in ("center", "squash"),
        f"a crop of {shown['crop_pct']:g} of the image": shown["crop_pct"] > 1,
    }
    if wrong := [what for what, is_odd in odd.items() if is_odd]:
        raise UserError(
            f"timm/{architecture}.{tag} wants {' and '.join(wrong)}, which framebank does not prepare; choose other "
            "weights, or write a function that returns the network (--backbone FILE.py:FUNCTION)"
        )
    resize = math.floor(height / shown["crop_pct"])
    return Preprocessing(
        resize=(resize, resize) if shown["crop_mode"] == "squash" else resize,
        crop=height,
        mean=tuple(shown["mean"]),
        std=tuple(shown["std"]),
        interpolation=shown["interpolation"],
        antialias=True,
        fit="crop",
        preset=tag,
    )


def _build(architecture: str, _window: Window, preset: Preprocessing, _seed: int, **options: Any) -> nn.Module:
    """The whole model for images of the preset's size. UserError: it does not take that size."""
    import timm

    full = architecture if preset.preset == _UNTAGGED else f"{architecture}.{preset.preset}"
    model: Any = timm.create_model(full, **{"pretrained": False, **options})
    own, size = int(model.pretrained_cfg["input_size"][-1]), preset.crop
    if size != own:
        resized = getattr(model, "set_input_size", None)
        try:
            if resized is not None:
                resized(img_size=(size, size))
            elif model.pretrained_cfg.get("fixed_input_size"):
                raise ValueError("its size is fixed")
        except (AssertionError, ValueError, RuntimeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"timm/{architecture} does not take {size}×{size} images ({reason}); its own are {own}×{own}: give "
                "another --image-size, or none"
            ) from error
    network: nn.Module = model
    return network


def _shorten(model: nn.Module) -> None:
    """Let a model's forward end with what its classifier would read."""
    kind: Any = type(model)

    def ending(self: Any, images: Tensor) -> Tensor:
        features: Tensor = self.forward_head(self.forward_features(images), pre_logits=True)
        return features

    # In the globals of timm's own forward torch.fx looks for the functions that it is not to trace.
    forward = FunctionType(ending.__code__, kind.forward.__globals__, "forward")
    model.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def _classifier(model: Any) -> str:
    names = model.pretrained_cfg.get("classifier") or ""  # several, of distilled models
    return str(names if isinstance(names, str) else names[0]).partition(".")[0]


def _translate(architecture: str, state: Mapping[str, Tensor], preset: Preprocessing) -> dict[str, Tensor]:
    """By timm's own loader, given the tensors. It raises nearly anything where they are of another network."""
    overlay = {"state_dict": dict(state), "custom_load": False}
    with torch.random.fork_rng(devices=[]):
        model = _build(architecture, Window(), preset, 0, pretrained=True, pretrained_cfg_overlay=overlay)
    return model.state_dict()


def _classes(config: Any) -> list[str]:
    """The names of a classifier's classes, where timm knows them."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(config.to_dict())
    if subset is None:
        return []
    info = ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(info.num_classes())]


def _file(architecture: str, tag: str, config: Any) -> Path:
    """The file of published weights, downloaded if absent. UserError: it cannot be, or is damaged."""
    name, otherwise = f"timm/{architecture}", f"--weights FILE --preset {tag}"
    if not config.hf_hub_id:
        return downloaded(name, tag, config.url, otherwise)
    from huggingface_hub import constants, hf_hub_download, logging, try_to_load_from_cache

    logging.set_verbosity_error()  # of every attempt to reach the hub it says a line; what came of them is said below
    repository, _, revision = config.hf_hub_id.partition("@")
    names = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
    for each in names:
        path = try_to_load_from_cache(repository, each, revision=revision or None)
        if isinstance(path, str):
            return _undamaged(Path(path), otherwise)
    for each in names:
        try:
            return _undamaged(Path(hf_hub_download(repository, each, revision=revision or None)), otherwise)
        except UserError:
            raise
        except Exception as error:  # the hub's own, those of the network and of the disk have no base in common
            if type(error).__name__ in _ABSENT and each != names[-1]:
                continue
            raise UserError(
                f"cannot download {names[0]}, the weights {tag} of {name} ({type(error).__name__}); where there is a "
                f"network, `hf download {repository} {names[0]}` puts it below {constants.HF_HUB_CACHE} (HF_HOME moves "
                f"it): copy that folder here, or name any copy of the file by {otherwise}"
            ) from error
    raise AssertionError("one of the names is the last")


def _undamaged(path: Path, otherwise: str) -> Path:
    """The hub's cache names large files by their SHA-256. UserError: it is another."""
    stored = path.resolve()
    with suppress(ValueError):
        if len(stored.name) == 64 and int(stored.name, 16) >= 0:
            with stored.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != stored.name:
                raise UserError(
                    f"{path} is damaged (its SHA-256 is {digest[:12]}…, not {stored.name[:12]}…); delete {stored} and "
                    f"run again to download it, or name another copy by {otherwise}"
                )
    return path
