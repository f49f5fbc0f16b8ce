"""The networks that can be a backbone: where they come from, and which weights, presets and windows go together.

`ORIGINS` is the table of where they come from: torchvision, our own (`pipeline.video_nets`), timm (`timm/NAME`), and a
user's own function (`module:function`). Each gives a `pipeline.blueprints.Blueprint`, and nothing else in framebank
asks where a network is from.

An image network sees a frame; with another first convolution (`pipeline.first_convolution`) a stack of frames or of
motion, and, of torchvision's, inflated (`pipeline.inflation`) a clip. A user's own sees frames. What the others see
their blueprints say. A network that converts its inputs itself (`Blueprint.converts`) does not for windows of anything
but frames: mean and deviation are 0.5 then.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from pipeline import own_entries, timm_networks, torchvision_networks, video_nets
from pipeline.blueprints import DEFAULT, Blueprint, Published
from pipeline.errors import UserError, did_you_mean
from pipeline.preprocessing import Preprocessing
from pipeline.torchvision_networks import image_networks, video_networks
from pipeline.video_nets import NETS
from pipeline.windows import FRAME, Window

CLASSIC_PRESET = "IMAGENET1K_V1"
WEIGHT_FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar")


class Origin(NamedTuple):
    """Where networks come from.

    Attributes:
        has: whether a name is one of its networks', by the name alone.
        blueprint: the network of such a name.
        recorded: how banks call it. UserError: it is written wrongly.
        absolute: the same name for a process with another working folder.
        packages: what they need besides torchvision, by the names under which it is installed.
        runs_code: whether loading one runs code of the user's, so that somebody must have typed its name.
    """

    has: Callable[[str], bool]
    blueprint: Callable[[str], Blueprint]
    recorded: Callable[[str], str] = str
    absolute: Callable[[str], str] = str
    runs_code: bool = False
    packages: tuple[str, ...] = ()


ORIGINS = (
    Origin(
        own_entries.is_entry,
        own_entries.blueprint,
        recorded=own_entries.recorded_name,
        absolute=own_entries.absolute,
        runs_code=True,
    ),
    Origin(timm_networks.is_timm, timm_networks.blueprint, timm_networks.recorded_name, packages=("timm",)),
    Origin(lambda name: name in NETS, video_nets.blueprint),
    Origin(lambda name: name in (*image_networks(), *video_networks()), torchvision_networks.blueprint),
)


def blueprint_of(name: str) -> Blueprint:
    """What is known of a network, by the name that was typed. UserError: there is no such network."""
    return _origin(name).blueprint(name)


def recorded_name(name: str) -> str:
    """How banks call a network: however it was typed. UserError: there is no such network."""
    return _origin(name).recorded(name)


def absolute_name(name: str) -> str:
    """The same network for a process with another working folder. UserError: there is no such network."""
    return _origin(name).absolute(name)


def packages_of(name: str) -> tuple[str, ...]:
    """What a network needs besides torchvision. UserError: there is no such network."""
    return _origin(name).packages


def typed_name(recorded: str, typed: str | None) -> str:
    """By which name to load a network that a bank or run names: code of a user's runs only where it was typed, again.

    Args:
        recorded: what the bank says.
        typed: `--backbone`, None where it was not given.

    Raises:
        UserError: it was not typed and has to be, or it was and is another.
    """
    if typed is not None and recorded_name(typed) != recorded:
        raise UserError(f"the bank was made with {recorded}, not with {typed}; give --backbone {recorded}, or none")
    if typed is None and _origin(recorded).runs_code:
        raise UserError(
            f"the bank was made with {recorded}, which is code of yours, and framebank runs none that a file names; if "
            f"you trust it, type it again: --backbone {recorded}, or FILE.py:{recorded.rpartition(':')[2]}"
        )
    return typed or recorded


def _origin(name: str) -> Origin:
    for origin in ORIGINS:
        if origin.has(name):
            return origin
    known = [*image_networks(), *video_networks()]
    raise UserError(
        f"unknown backbone {name!r}{did_you_mean(name, [*known, *NETS])}; any torchvision model that classifies images "
        f"or videos will do: {', '.join(known)}; or one without published weights: {', '.join(NETS)}; or timm/NAME; or "
        "your own as FILE.py:FUNCTION"
    )


def named_weights(network: str | Blueprint, weights: str) -> Published | None:
    """What `--weights` means: the published entry of that name, or None for "random", for a file, and for DEFAULT where
    the network brings its own.

    A file is what exists, has a folder in its name, or ends in one of WEIGHT_FILE_SUFFIXES; a weights name comes first
    (`./DEFAULT` is a file). UserError: neither.
    """
    known = _known(network)
    name = weights.removeprefix(known.enumeration)
    if name in known.published:
        return known.published[name]
    path = Path(weights)
    if known.brings_weights:
        if weights == "random":
            raise UserError(
                f"{known.name} makes its weights itself; leave --weights out, or let the function return a network "
                "with random ones"
            )
        if weights == DEFAULT:
            return None
    if weights == "random" or path.suffix in WEIGHT_FILE_SUFFIXES or path.name != weights or path.exists():
        return None
    if known.brings_weights:
        raise UserError(f"--weights {weights} is no file; {known.name} takes a checkpoint file, or none")
    if not known.published:
        raise UserError(
            f"nobody publishes weights for {known.name}; --weights takes random (to train it end to end), or a "
            "checkpoint file"
        )
    raise UserError(
        f"{known.name} has no weights {weights!r}{did_you_mean(weights, known.published)}; "
        f"--weights takes {', '.join(known.published)}, random, or a checkpoint file"
    )


def presets(network: str | Blueprint) -> dict[str, Preprocessing]:
    """The preprocessing of each of a network's published weights, by their names; others have one each.

    UserError: unknown network.
    """
    return dict(_known(network).presets())


def choose_preset(
    network: str | Blueprint,
    weights: str = DEFAULT,
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
    known = _known(network)
    named = named_weights(known, weights)
    table, names = known.presets(), known.names
    if preset is not None and preset not in names:
        raise UserError(
            f"{known.name} has no preset {preset!r}{did_you_mean(preset, names)}; --preset takes {', '.join(names)}"
        )
    chosen = None if preset is None else table[names[preset]]
    if named is not None:
        if chosen is not None and chosen != table[named.name]:
            raise UserError(
                f"the weights {named.name} bring their own preprocessing, so --preset {preset} cannot apply; leave "
                "--preset out (it goes with a checkpoint file or random weights)"
            )
        chosen = table[named.name]
    elif chosen is None:
        chosen = table[names.get(known.default, known.default)]
        if weights != "random":
            chosen = table.get(CLASSIC_PRESET, chosen)
        if weights != "random" and CLASSIC_PRESET not in table and any(other != chosen for other in table.values()):
            raise UserError(
                f"which preprocessing goes with {weights}? {known.name} weights come with more than one: "
                f"{_differences(table)}; add --preset NAME"
            )
    if known.converts and window != FRAME:
        chosen = replace(chosen, mean=(0.5,) * 3, std=(0.5,) * 3)
    size = chosen.crop if image_size is None else image_size
    return replace(chosen, crop=size, resize=_resized(chosen, size) if fit == "crop" else size, fit=fit)


def window_of(network: str | Blueprint, window: Window | None = None, *, inflate: bool = False) -> Window:
    """What of a video a network is to see: the window that is asked for, else the network's own by the rules above.

    UserError: unknown network, or one that does not go with the window, or with `inflate`.
    """
    known = _known(network)
    if inflate and not known.inflatable:
        raise UserError(f"{known.name} is not an image network of torchvision's, which --inflate is for; leave it out")
    if known.is_image:
        if inflate and (window is None or window.kind != "clip"):
            raise UserError("an inflated network sees clips; give their length, as in --clip-length 64 --inflate")
        if window is not None and window.kind == "clip" and not inflate:
            raise UserError(
                f"{known.name} sees single images, not clips; give "
                f"{'--inflate, or ' if known.inflatable else ''}a video network such as r2plus1d_18"
            )
        return window or FRAME
    own = known.window
    if window is None:
        return own
    if window.kind not in known.kinds:
        way = "--clip-length" if own.kind == "clip" else f"--{own.kind}"
        instead = f", or give {way} {own.length} instead" if own != FRAME else ""
        raise UserError(
            f"{known.name} sees a {' or '.join(known.kinds)}, not a {window.kind}; leave --{_option(window)} out"
            f"{instead}"
        )
    least = max((entry.shortest for entry in known.published.values()), default=1)
    if known.fixed_length and window.length != least:
        raise UserError(f"{known.name} takes clips of {least} frames only, not of {window.length}")
    if window.length < least:
        raise UserError(f"{known.name} takes clips of at least {least} frames, not of {window.length}")
    return window


def _option(window: Window) -> str:
    """What asks for such a window on the command line."""
    return "clip-length" if window.kind == "clip" else window.kind


def build(network: str | Blueprint, window: Window, preset: Preprocessing, *, seed: int) -> nn.Module:
    """The whole network, randomly initialised after `seed`, in evaluation mode, without gradients.

    `preset` says the image size, for which position embeddings of images are made. UserError: the network does not take
    the size, or the window.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the GPUs as well
        model = _known(network).build(window, preset, seed)
    return model.eval().requires_grad_(False)


def categories(network: str | Blueprint, weights: str, outputs: int) -> list[str] | None:
    """The classes of a network's own classifier, in the order of its outputs; None where nobody can tell.

    Named weights name theirs. A file (`weights` as `named_weights` reads them) is taken to have the classes of the
    network's DEFAULT weights if it has as many outputs. Random weights know no classes, nor do our own networks.
    """
    known = _known(network)
    entry = named_weights(known, weights)
    if entry is None and weights != "random":
        entry = known.published.get(DEFAULT)
    if entry is None:
        return None
    names = list(entry.classes())
    return names if len(names) == outputs else None


def _known(network: str | Blueprint) -> Blueprint:
    return blueprint_of(network) if isinstance(network, str) else network


def _resized(preset: Preprocessing, size: int) -> int | tuple[int, int]:
    """To what a frame is resized before a crop of `size`, in proportion."""
    if isinstance(preset.resize, int):
        return round(preset.resize * size / preset.crop)
    height, width = preset.resize
    return round(height * size / preset.crop), round(width * size / preset.crop)


def _differences(table: Mapping[str, Preprocessing]) -> str:
    """ "NAME (resize 256), OTHER (resize 232)": of each preset only what distinguishes it from some other."""
    descriptions = {name: preset.describe() for name, preset in table.items()}
    first = next(iter(descriptions.values()))
    fields = [key for key in first if any(described[key] != first[key] for described in descriptions.values())]
    return ", ".join(
        f"{name} ({', '.join(f'{key} {described[key]}' for key in fields)})" for name, described in descriptions.items()
    )
