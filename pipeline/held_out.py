"""What heads and baselines say of the test part of a fold. Nothing else looks at it, and nobody looks twice."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from pipeline import baselines
from pipeline.bundles import Bundle, decide, score_bundle
from pipeline.material import Material
from pipeline.objectives import Objective
from pipeline.predictions import decide_steps
from pipeline.results import HeldOut, Task, joined
from pipeline.scoring import Scores
from pipeline.selection import Selection
from pipeline.sequences import Sequences, positions_of
from pipeline.splits import Fold
from pipeline.targets import Targets


def hold_out(
    bundle: Bundle,
    sequences: Sequence[Sequences],
    targets: Targets,
    ids: Sequence[str],
    *,
    fold: str = "",
    device: torch.device | str = "cpu",
) -> HeldOut:
    """What a bundle says of some videos, beside their targets.

    Args:
        bundle: the bundle.
        sequences: what each of its heads reads.
        targets: in terms of the bundle; it has all of `ids`.
        ids: the videos.
        fold: the name of the fold that tests them.
        device: where the heads run.
    """
    positions = positions_of(sequences[0], ids)
    return _decided(bundle, sequences[0], targets, ids, fold, score_bundle(bundle, sequences, positions, device=device))


def _decided(
    bundle: Bundle, sequences: Sequences, targets: Targets, ids: Sequence[str], fold: str, scores: Scores
) -> HeldOut:
    held = HeldOut()
    for video, position, each in zip(ids, positions_of(sequences, ids).tolist(), scores, strict=True):
        held.ids.append(video)
        held.folds.append(fold)
        held.targets.append(targets.values[video])
        held.scores.append(each)
        if bundle.per_frame:
            held.seconds.append(sequences.seconds(position))
            held.decided.append(decide_steps(bundle, each, held.seconds[-1]))
        else:
            held.decided.append(decide(bundle, each[None])[0])
    return held


def hold_out_baselines(
    material: Material, folds: Sequence[Fold], task: Task, seed: int, min_seconds: float, on_fit: Callable[[], None]
) -> tuple[dict[str, HeldOut], list[str]]:
    """What each baseline says of all test parts, and lines worth telling.

    A baseline learns from the training and the validation part: it chooses its own settings inside them. Its segments
    are smoothed as the head's are, or the difference would be that of smoothing.
    """
    names = baselines.NAMES[task.kind, task.per_frame]
    against: dict[str, list[HeldOut]] = {name: [] for name in names}
    objective = Objective(task.kind, task.per_frame)
    plain = Bundle((), task.kind, task.per_frame, task.labels, objective, Selection(), min_seconds=min_seconds)
    notes: list[str] = []
    for fold in folds:
        train = _pooled(material, (*fold.train, *fold.validation), training=True)
        test = _pooled(material, fold.test, training=False)
        notes += train.notes
        first = material.sequences[0]
        ends = np.cumsum(first.lengths[material.positions(fold.test)])
        for name in names:
            rows = baselines.fit_and_score(
                name, task.kind, task.per_frame, train, test, seed, outputs=material.targets.outputs
            )
            scores = np.split(rows, ends[:-1]) if task.per_frame else rows
            against[name].append(_decided(plain, first, material.targets, fold.test, fold.name, scores))
            on_fit()
    return {name: joined(each) for name, each in against.items()}, list(dict.fromkeys(notes))


def _pooled(material: Material, ids: tuple[str, ...], *, training: bool) -> baselines.Pooled:
    """The videos without order: all banked rows, features of all heads side by side, maps averaged over places.

    Of several views it is the plain one.
    """
    positions = material.positions(ids).tolist()
    values = material.targets.values
    groups = [material.groups[video] if material.groups else video for video in ids]

    def rows(position: int) -> np.ndarray:
        return np.concatenate([_flat(each.read(position).numpy()) for each in material.sequences], axis=1)

    if not material.targets.per_frame:  # each bank by itself: they may hold different rows of a video
        targets = np.stack([values[video] for video in ids])
        pooled = [
            baselines.pool_videos((_flat(each.read(position).numpy()) for position in positions), targets, groups)
            for each in material.sequences
        ]
        mean, std, last = (np.hstack([getattr(part, name) for part in pooled]) for name in ("mean", "std", "last"))
        return replace(pooled[0], mean=mean, std=std, last=last)
    wanted = [values[video] for video in ids]
    return baselines.pool_frames(map(rows, positions), wanted, groups, kind=material.targets.kind, training=training)


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows if rows.ndim == 2 else rows.mean(axis=(2, 3))
