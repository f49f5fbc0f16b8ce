"""A prefix bank: what the frozen part of a network gives for every frame, computed once for a training of many epochs.

It is a bank like any other, its layer the boundary where the part that trains begins. So it resumes, and it refuses
what was made differently. What is computed in float32 is stored so, and training from it is the same bit for bit as
computing it anew; bfloat16 has fewer digits than float16, which takes half the disk. Maps are large: a big one stays
in its parts, which takes half the disk that packing does.
"""

import copy
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline import bank as banks
from pipeline import ranks, resuming
from pipeline.backbone import Backbone
from pipeline.bank import Bank
from pipeline.engine import Progress
from pipeline.errors import UserError
from pipeline.extraction import Encoding, embed, existing_bank, fold_in, latest, make_encoding, recipe_of, with_region
from pipeline.features import records
from pipeline.rows import ReadOptions
from pipeline.sealing import disk_errors

_STORE = {"fp32": "float32", "bf16": "float16", "fp16": "float16"}  # of what is computed in this precision
_TIME_BYTES = 16  # of a row besides its activations: seconds and frame index
_NAMED = 5  # of the videos that failed
_FOLLOW = {"feature_shape", "weights_sha256"}  # from the layer


def prefix_bytes(feature_shape: Sequence[int], rows: int, precision: str) -> int:
    """Bytes that a prefix bank of so many rows takes: of a shape (C, H, W) or (D,), computed in this precision."""
    return rows * (math.prod(feature_shape) * np.dtype(_STORE[precision]).itemsize + _TIME_BYTES)


def check_room(outs: Sequence[Path], needed: int) -> None:
    """Make sure that a disk has room for prefix banks.

    Args:
        outs: the banks, on one disk; their folder need not exist yet. What they hold already is not needed again.
        needed: bytes of all of them together.

    Raises:
        UserError: there is not enough.
    """
    folder = banks.real_path(outs[0]).absolute().parent
    while not folder.exists():
        folder = folder.parent
    missing = needed - banks.total_size(file for out in outs for file in (out, *banks.sealed_parts(out)))
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(
            f"Banking what the frozen part of the network gives needs {missing / 1e6:,.0f} MB, and "
            f"{free / 1e6:,.0f} MB are free in {folder}; give --prefix-bank FILE on another disk, or --no-prefix-bank "
            "(it is computed in every epoch then), or start from a bank of fewer frames (extract --stride N)."
        )


def bank_prefix(
    out: Path,
    prefix: Backbone,
    table: pd.DataFrame,
    options: ReadOptions,
    *,
    crop: str,
    precision: str,
    device: torch.device,
    batch_size: int | None,
    data: str = "",
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> bool:
    """Bank what a frozen prefix gives for videos, as far as the bank lacks it. Of several ranks each does its share.

    Args:
        out: the bank; its folder is made if need be.
        prefix: float32 and on the CPU, where it stays: a copy computes.
        table: one row per video, as `pipeline.videos.find_videos` gives it.
        options: how the videos are read; in part where they break off, if the head's bank has such videos.
        crop, precision: as in a bank's recipe.
        device: where the prefix runs.
        batch_size: rows per forward, None for what a probe finds; halved while the device has no room.
        data: where the videos came from, for the bank's own record.
        on_progress: called a few times a second.
        on_note: called with lines worth telling the user.

    Returns:
        whether it was interrupted, on all ranks if on one; what was finished is banked.

    Raises:
        UserError: the bank was made differently, the disk is full, or videos cannot be read; what was banked stays.
    """
    recipe = recipe_of(prefix, options, crop=crop, precision=precision, store=_STORE[precision])
    table = with_region(table, crop, None)
    bank = existing_bank(out)
    if bank is not None and bank.fingerprint != banks.fingerprint_of(recipe):
        if not bank.only_failures:
            raise UserError(_differing(out, bank.config["recipe"], recipe))
        bank = None  # nothing came of the other settings
    plan = resuming.plan(table, bank, retry_failed=True, allow_partial=options.allow_partial)
    ranks.wait()  # until all have planned from the same bank
    interrupted = False
    if len(plan.todo):
        copied = replace(prefix, module=copy.deepcopy(prefix.module))
        encoding = make_encoding(copied, recipe, options, device, batch_size, data)
        interrupted = _embed_share(out, plan.todo, encoding, latest(bank), on_progress, on_note)
    if ranks.first():
        fold_in(out, plan, pack=True, in_a_hurry=True, on_note=on_note)
    ranks.wait()
    if not interrupted:
        _check_complete(out, table)
    return interrupted


def _embed_share(
    out: Path,
    todo: pd.DataFrame,
    encoding: Encoding,
    newer_than: str,
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> bool:
    """Embed this rank's share of the videos into the bank, which the first rank makes. Returns whether any rank was
    interrupted."""
    if ranks.first():
        with disk_errors(out):
            banks.create(out, encoding.recorded)
    ranks.wait()
    share = todo.iloc[ranks.share(np.arange(len(todo)))]
    stopped = embed(out, share, encoding, Progress(), newer_than=newer_than, on_progress=on_progress, on_note=on_note)
    return bool(ranks.sum_(torch.tensor([float(stopped)])))


def _differing(out: Path, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Why a bank cannot be added to, with both values of each setting that differs."""
    follow = set() if all(old.get(key) == new[key] for key in ("backbone", "layer")) else _FOLLOW
    old, new = ({key: value for key, value in side.items() if key not in follow} for side in (old, new))
    what = "; ".join(banks.differences(old, new))
    return f"{out} was made differently: {what}. Give another --prefix-bank, or delete it."


def _check_complete(out: Path, table: pd.DataFrame) -> None:
    """Make sure that the bank holds every video of a table, as it is now."""
    with Bank(out) as bank:
        failed = records(bank.failures[bank.failures["id"].isin(table["id"])])
    if not failed:
        return
    reasons = [f"{row['id']}: {row['reason']}" for row in failed[:_NAMED]]
    more = f", and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    if all("beyond float16" in row["reason"] for row in failed):
        remedy = "the frozen part of this network cannot be banked; give --no-prefix-bank"
    else:
        remedy = (
            "they were banked before, so their files have changed since: put them back, or `framebank extract` them "
            "anew and train the head again"
        )
    raise UserError(f"{len(failed)} of {len(table)} videos failed ({'; '.join(reasons)}{more}); {remedy}.")
