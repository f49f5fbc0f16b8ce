"""Banking new videos exactly as another bank was made: its recipe read back into a loaded backbone, and checked.

Weights that have a name are loaded by it, random ones drawn again from their seed; those that came from a file must be
given again. What is loaded must have the recipe of that bank, tensor for tensor (`weights_sha256`): anything else would
give numbers that mean something else. Only the compute precision and the stored type may differ, which is said.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline import bank as banks
from pipeline.backbone import Backbone, load_backbone
from pipeline.bundles import Bundle, check_recipe
from pipeline.encoder import choose_batch_size, choose_precision
from pipeline.engine import Progress, ReadOptions
from pipeline.errors import UserError
from pipeline.extraction import embed, make_encoding, recipe_of, with_region
from pipeline.resuming import with_state
from pipeline.sampling import Sampling

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


def load_alike(bundle: Bundle, weights: Sequence[str], *, device: torch.device, precision: str = "auto") -> list[Alike]:
    """The backbone of each different recipe that a bundle's heads read, in their order.

    Args:
        bundle: the bundle.
        weights: checkpoint files, or names of weights: one for every recipe, or one for every recipe that was made with
            a checkpoint file, in order.
        device: where they will run.
        precision: the compute precision; "auto" is that of the recipe.

    Raises:
        UserError: too few or too many weights, weights that cannot be loaded, a recipe that is not the bundle's, or
            two banks of one recipe, which must have been made of different files.
    """
    read = [made for member in bundle.members for made in member.banks]
    wanted = {made["fingerprint"]: made["config"] for made in read}
    if len(wanted) < len(read):
        raise UserError(
            f"The head reads {len(read)} banks, and some of them were made alike, of different files (frames and flow, "
            "say). A new video is only one of these, so nothing can be predicted. Bank both kinds, and give the banks "
            "to `framebank evaluate`."
        )
    result = []
    for (fingerprint, made), given in zip(wanted.items(), _shared_out(weights, list(wanted.values())), strict=True):
        recipe = made["recipe"]
        backbone = _load(made, given)
        now = recipe_of(
            backbone,
            Sampling(**recipe["sampling"]),
            crop=recipe["crop"],
            precision=choose_precision(precision, device, recipe["precision"]),
            store=recipe["store"],
        )
        notes = check_recipe(recipe, now, f"{backbone.name} {backbone.weights}")
        result.append(Alike(fingerprint, made, backbone, now, notes))
    return result


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
    raise UserError(
        f"{what[0].upper()}{what[1:]}: give --weights {len(names) or 'no'} time{'s' * (len(names) != 1)}, "
        f"not {len(given)}."
    )


def _load(made: Mapping[str, Any], given: str | None) -> Backbone:
    """The backbone of a bank's config, with the weights that are given or by the name that the config has for them."""
    recipe, weights, seed = made["recipe"], given or made["weights"], 0
    if drawn := _RANDOM.fullmatch(weights):
        weights, seed = "random", int(drawn[1])
    return load_backbone(
        recipe["backbone"],
        weights=weights,
        layer=recipe["layer"],
        preset=made["preset"],
        image_size=recipe["preprocessing"]["crop"],
        fit=recipe["preprocessing"]["fit"],
        seed=seed,
    )


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
    videos = with_state(with_region(found, alike.recipe["crop"], image_fps))
    options = ReadOptions(Sampling(**alike.recipe["sampling"]), alike.backbone.preprocessing, allow_partial)
    size = choose_batch_size(batch_size, device, alike.made["compute"])
    encoding = make_encoding(alike.backbone, alike.recipe, options, device, size, "")
    banks.create(out, encoding.recorded)
    return embed(out, videos, encoding, Progress(), on_progress=on_progress, on_stop=lambda: None)
