"""What heads are trained from: the sequences of the videos that have targets, with classes, groups and digests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import splits
from pipeline.bank import Bank
from pipeline.bundles import described
from pipeline.errors import UserError
from pipeline.resampling import Resampling
from pipeline.sequences import Sequences, load_same_videos, positions_of
from pipeline.targets import Targets


@dataclass(frozen=True)
class Material:
    """What heads are trained from.

    Attributes:
        sequences: what each head reads; all hold the same videos in the same order.
        banks: for each head what its bundle keeps of its banks (`pipeline.bundles.described`).
        spatial: how maps are read.
        targets: the targets.
        strata: video -> class, where classes are to be spread evenly over parts; None where there are none.
        groups: video -> group, None without groups.
        digests: video -> digest of its source.
        resampling: how the banks after the first are read at its times; None: as they are.
    """

    sequences: tuple[Sequences, ...]
    banks: tuple[tuple[dict[str, Any], ...], ...]
    spatial: str | None
    targets: Targets
    strata: Mapping[str, str] | None
    groups: Mapping[str, str] | None
    digests: Mapping[str, str]
    resampling: Resampling | None = None

    def positions(self, ids: tuple[str, ...]) -> np.ndarray:
        """(B,) int64 positions of videos in the sequences."""
        return positions_of(self.sequences[0], ids)


def load_material(
    banks: Sequence[Bank],
    targets: Targets,
    *,
    spatial: str | None,
    side_by_side: bool,
    group_column: str | None,
    resampling: Resampling | None = None,
) -> tuple[Material, list[str]]:
    """The videos that have a target and are in every bank, and lines worth telling.

    Args:
        banks: open banks; the first one's catalog says what group a video is of.
        targets: the targets.
        spatial: how maps are read.
        side_by_side: one head reads the features of all banks side by side; else each bank has a head of its own.
        group_column: the catalog's column of groups; None to do without.
        resampling: how the banks after the first are read at its times; None: as they are.

    Raises:
        UserError: no such column, or banks that do not fit together.
    """
    catalog = banks[0].catalog.set_index("id")
    if group_column is not None and group_column not in catalog.columns:
        known = ", ".join(map(str, catalog.columns))
        raise UserError(f"The bank has no column {group_column!r} for --group-column; it has {known}.")
    joined = [list(banks)] if side_by_side else [[bank] for bank in banks]
    wanted = [video for video in banks[0] if video in targets.values]
    sequences, notes = load_same_videos(
        joined, wanted, spatial=spatial, per_frame=targets.per_frame, resampling=resampling
    )
    ids = sequences[0].ids
    groups = None
    if group_column is not None:
        groups, more = splits.groups_from(ids, [str(catalog.at[video, group_column]) for video in ids])
        notes += more
    if groups is None and (warning := splits.sibling_warning(ids)):
        notes.append(warning)
    strata = None
    if targets.kind == "class" and not targets.per_frame:
        strata = {video: targets.labels[int(targets.values[video])] for video in ids}
    digests = {video: str(catalog.at[video, "digest"]) for video in ids}
    kept = tuple(tuple(described(bank) for bank in each) for each in joined)
    material = Material(tuple(sequences), kept, spatial, targets, strata, groups, digests, resampling)
    return material, list(dict.fromkeys(notes))
