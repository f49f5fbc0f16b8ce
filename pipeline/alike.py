"""Banking new videos exactly as another bank was made: its recipe read back into a loaded backbone, and checked.

Weights that have a name are loaded by it, random ones drawn again from their seed; those that came from a file must be
given again, and those that were trained with the head lie beside it. What is loaded must have the recipe of that bank,
tensor for tensor (`weights_sha256`): anything else would give numbers that mean something else. Only the compute
precision and the stored type may differ, which is said.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline import bank as banks
from pipeline.backbone import Backbone, load_backbone
from pipeline.bank import Bank
from pipeline.bundles import BACKBONE_FILE, Bundle, check_recipe, load_bundle
from pipeline.encoder import choose_batch_size, choose_precision
from pipeline.engine import Progress
from pipeline.errors import UserError
from pipeline.extraction import Encoding, embed, flow_of, make_encoding, reading_of, recipe_of, with_region
from pipeline.imported import is_imported
from pipeline.networks import typed_name
from pipeline.resuming import with_state
from pipeline.sampling import Sampling
from pipeline.windows import window_in

_RANDOM = re.compile(r"random \(seed (\d+)\)")


@dataclass(frozen=True)
class Alike:
    """How to bank as another bank was made.

    Attributes:
        fingerprint: of that bank.
        made: its config.
        backbone: loaded again.
        recipe: of what will be banked.
        notes: what differs without making the embeddings others.
    """

    fingerprint: str
    made: Mapping[str, Any]
    backbone: Backbone
    recipe: dict[str, Any]
    notes: list[str]


def load_alike(
    bundle: Bundle,
    weights: Sequence[str],
    *,
    device: torch.device,
    precision: str = "auto",
    typed: str | None = None,
) -> list[Alike]:
    """The backbone of each different recipe that a bundle's heads read, in their order.

    Args:
        bundle: the bundle.
        weights: checkpoint files, or names of weights: one for every recipe, or one for every recipe that was made with
            a checkpoint file, in order. None for a bundle that has its own.
        device: where they will run.
        precision: the compute precision; "auto" is that of the recipe.
        typed: the name of the backbone, as it must be typed where it is a user's own (`pipeline.networks.typed_name`).

    Raises:
        UserError: too few or too many weights, weights that cannot be loaded, a recipe that is not the bundle's, or
            two banks of one recipe, which must have been made of different files.
    """
    read = [made for member in bundle.members for made in member.banks]
    wanted = {made["fingerprint"]: made["config"] for made in read}
    _check_made_here(wanted.values())
    if len(wanted) < len(read):
        raise UserError(
            f"The head reads {len(read)} banks, and some of them were made alike, of different files (frames and flow, "
            "say). A new video is only one of these, so nothing can be predicted. Bank both kinds, and give the banks "
            f"in the order of training: `framebank predict RUN{' --bank BANK' * len(read)}`."
        )
    if bundle.weights is not None:
        if weights:
            raise UserError(
                f"The backbone was trained with this head, and {bundle.weights} holds what came of it: with other "
                "weights the head would read numbers that it does not know. Leave --weights out."
            )
        backbones = [load_own(bundle, typed)]
    else:
        shared_out = _shared_out(weights, list(wanted.values()))
        backbones = [_load(made, given, typed) for made, given in zip(wanted.values(), shared_out, strict=True)]
    return [
        _alike(fingerprint, made, backbone, device, precision)
        for (fingerprint, made), backbone in zip(wanted.items(), backbones, strict=True)
    ]


def _check_made_here(wanted: Iterable[Mapping[str, Any]]) -> None:
    """UserError: features that were imported; what made them is not known."""
    for made in wanted:
        if is_imported(made["recipe"]):
            name = made["recipe"]["layer"]
            raise UserError(
                f"The features were imported ({name}), so there is no backbone here to make them of a video: import "
                f"those of new videos too (`framebank import --name {name}`), and give that bank to `framebank "
                "predict RUN --bank BANK`."
            )


def load_backbone_of(
    bank: Bank, weights: Sequence[str], *, device: torch.device, precision: str = "auto", typed: str | None = None
) -> Alike:
    """The backbone that made a bank.

    Args:
        bank: the bank.
        weights: the checkpoint file, if they came from one; none otherwise.
        device, precision, typed: as in `load_alike`.

    Raises:
        UserError: as `load_alike`.
    """
    _check_made_here([bank.config])
    (given,) = _shared_out(weights, [bank.config])
    return _alike(bank.fingerprint, bank.config, _load(bank.config, given, typed), device, precision)


def _alike(
    fingerprint: str, made: Mapping[str, Any], backbone: Backbone, device: torch.device, precision: str
) -> Alike:
    recipe = made["recipe"]
    now = recipe_of(
        backbone,
        reading_of(made, backbone.preprocessing),
        crop=recipe["crop"],
        precision=choose_precision(precision, device, recipe["precision"]),
        store=recipe["store"],
    )
    return Alike(fingerprint, made, backbone, now, check_recipe(recipe, now, f"{backbone.name} {backbone.weights}"))


def _shared_out(given: Sequence[str], wanted: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """For each recipe the weights that were given for it; None where they are found by their name."""
    from_files = [made["weights"].startswith("file:") for made in wanted]
    if len(given) == len(wanted):
        return list(given)
    if len(given) == sum(from_files):
        rest = iter(given)
        return [next(rest) if from_file else None for from_file in from_files]
    names = [
        f"{made['weights'].removeprefix('file:')} ({made['recipe']['backbone']})"
        for made, from_file in zip(wanted, from_files, strict=True)
        if from_file
    ]
    what = f"the bank was made with {', then '.join(names)}" if names else "the bank's weights are found by their name"
    if len(names) == 1 and not given:
        raise UserError(f"{what[0].upper()}{what[1:]}: give that file by --weights FILE.")
    raise UserError(
        f"{what[0].upper()}{what[1:]}: give --weights {len(names) or 'no'} time{'s' * (len(names) != 1)}, "
        f"not {len(given)}."
    )


def load_own(bundle: Bundle, typed: str | None = None) -> Backbone:
    """The backbone that was trained with a bundle's head, cut as its recipe says; "file:FOLDER" are its weights.

    `typed` is its name, as in `load_alike`.

    Raises:
        UserError: its weights cannot be read, or are of another model.
    """
    assert bundle.weights is not None
    [made] = [bank["config"] for member in bundle.members for bank in member.banks]
    return replace(_load(made, str(bundle.weights), typed), weights=own_label(bundle.weights))


def own_label(weights: Path) -> str:
    """What a bank says of the weights of a fine-tuned run: their file has the same name in every run."""
    return f"file:{weights.resolve().parent.name}"


def own_settings(folder: Path, typed: str | None = None) -> dict[str, Any]:
    """What banking videos with the backbone of a fine-tuned run takes, by the names of the options of `extract`.

    Args:
        folder: of the run, or of one of its folds.
        typed: the name of its backbone, as in `load_alike`.

    Returns:
        backbone, weights (the file), layer, preset, image_size, fit, window, inflate, crop, sampling and flow.

    Raises:
        UserError: no finished run, one whose backbone was not trained, or one of another backbone.
    """
    bundle = load_bundle(folder)
    read = [bank["config"] for member in bundle.members for bank in member.banks]
    if bundle.weights is None:
        _check_made_here(read)
        used = list(
            dict.fromkeys(f"--backbone {made['recipe']['backbone']} {_option(made['weights'])}" for made in read)
        )
        raise UserError(
            f"{folder} is a run of train-head, whose backbone stayed as it was; give the weights that its bank was "
            f"made with: {', or '.join(used)}."
        )
    [made] = read
    recipe = made["recipe"]
    return {
        "backbone": typed_name(recipe["backbone"], typed),
        "weights": str(bundle.weights),
        **_cut(made),
        "crop": recipe["crop"],
        "sampling": Sampling(**recipe["sampling"]),
        "flow": flow_of(made),
    }


def _option(weights: str) -> str:
    """What a bank says of its weights as options of `extract`."""
    if drawn := _RANDOM.fullmatch(weights):
        return f"--weights random --seed {drawn[1]}"
    return f"--weights {weights.removeprefix('file:')}"


def _load(made: Mapping[str, Any], given: str | None, typed: str | None) -> Backbone:
    """The backbone of a bank's config, with the weights that are given or by the name that the config has for them."""
    weights, seed = given or made["weights"], 0
    if (Path(weights) / BACKBONE_FILE).is_file():  # the folder of a fine-tuned run
        weights = str(Path(weights) / BACKBONE_FILE)
    if drawn := _RANDOM.fullmatch(weights):
        weights, seed = "random", int(drawn[1])
    name = typed_name(made["recipe"]["backbone"], typed)
    return load_backbone(name, weights=weights, **_cut(made), seed=seed)


def _cut(made: Mapping[str, Any]) -> dict[str, Any]:
    """Where a backbone is cut and what it is shown, as arguments of `load_backbone`."""
    recipe = made["recipe"]
    shown = recipe["preprocessing"]
    return {
        "layer": recipe["layer"],
        "preset": made["preset"],
        "image_size": shown["crop"],
        "fit": shown["fit"],
        "window": window_in(recipe),
        "inflate": recipe.get("inflated", False),
    }


def bank_alike(
    out: Path,
    found: pd.DataFrame,
    alike: Alike,
    *,
    device: torch.device,
    batch_size: str = "auto",
    image_fps: float | None = None,
    allow_partial: bool = False,
    on_progress: Callable[[Progress], None],
) -> bool:
    """Bank videos in a new bank.

    Args:
        out: the bank.
        found: the table of `find_videos`.
        alike: how.
        device: where the backbone runs.
        batch_size: frames per forward; "auto" is that of the other bank on such a device.
        image_fps, allow_partial: as in `framebank extract`.
        on_progress: called a few times a second.

    Returns:
        whether it was interrupted. What could not be read is in the bank's ledger of failures.
    """
    encoding = encoding_alike(alike, device=device, batch_size=batch_size, allow_partial=allow_partial)
    return bank_with(out, found, encoding, image_fps=image_fps, on_progress=on_progress)


def encoding_alike(
    alike: Alike, *, device: torch.device, batch_size: str = "auto", allow_partial: bool = False
) -> Encoding:
    """The encoder that `bank_alike` makes, to be used for one bank or for several; the arguments are the same."""
    options = reading_of(alike.made, alike.backbone.preprocessing, allow_partial=allow_partial)
    size = choose_batch_size(batch_size, device, alike.made["compute"], options.window)
    return make_encoding(alike.backbone, alike.recipe, options, device, size, "")


def bank_with(
    out: Path,
    found: pd.DataFrame,
    encoding: Encoding,
    *,
    image_fps: float | None = None,
    on_progress: Callable[[Progress], None],
) -> bool:
    """Bank videos in a new bank with an encoder that was made; arguments and result are those of `bank_alike`."""
    videos = with_state(with_region(found, encoding.recorded["recipe"]["crop"], image_fps))
    banks.create(out, encoding.recorded)
    return embed(out, videos, encoding, Progress(), on_progress=on_progress, on_note=lambda _: None)
