"""One fold: banked sequences with targets -> a trained, calibrated bundle.

What training may look at is decided here: standardisation, PCA and weights come from the training part; the epoch that
is kept, the temperature and the thresholds from the validation part; fusion from scores that are out of fold within
both. The test part is not touched.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.svm import LinearSVC

from pipeline import runs
from pipeline.bundles import (
    Bundle,
    Member,
    Scores,
    fit_temperature,
    fit_thresholds,
    load_bundle,
    save_bundle,
    score_bundle,
    tempered,
)
from pipeline.fitting import fit, score
from pipeline.heads import Head, HeadConfig
from pipeline.material import Material
from pipeline.metrics import unmasked
from pipeline.objectives import Objective, target_rows
from pipeline.optimisation import FitConfig
from pipeline.selection import Selection
from pipeline.splits import Fold, cross_validation, with_validation
from pipeline.standardisation import statistics
from pipeline.targets import Targets

_FUSION_FOLDS = 3
_CALIBRATION_ROWS = 100_000

OnEpoch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """How heads are trained."""

    head: HeadConfig
    objective: Objective
    selection: Selection
    fit: FitConfig
    device: torch.device
    pca: int | None = None
    fusion: str = "none"
    validation_share: float = 0.2
    min_seconds: float = 0.0


def train_fold(
    material: Material, fold: Fold, plan: Plan, folder: Path, on_epoch: OnEpoch | None = None
) -> tuple[Bundle, list[dict[str, Any]], list[str]]:
    """The bundle of one fold, from its folder if it was finished before, else trained (on from its checkpoints).

    Returns:
        the bundle, one row per epoch and head, and lines worth telling.

    Raises:
        UserError: the loss is not finite, or the disk is full.
    """
    if (folder / "model.json").exists():
        return load_bundle(folder), runs.history(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    bundle, history, notes = _fit_members(material, fold, plan, folder, on_epoch)
    if plan.fusion == "svm":
        bundle = replace(bundle, fusion="svm", svm=_fit_svm(material, fold, plan))
    if fold.validation and bundle.kind != "value":
        bundle = _calibrate(bundle, material, fold, plan.device)
    runs.write_csv(folder / "metrics.csv", pd.DataFrame(history))
    save_bundle(folder, bundle)
    for checkpoint in (*folder.glob("checkpoint-*"), *folder.glob(".checkpoint-*")):
        checkpoint.unlink()
    return bundle, history, notes


def _fit_members(
    material: Material, fold: Fold, plan: Plan, folder: Path | None, on_epoch: OnEpoch | None
) -> tuple[Bundle, list[dict[str, Any]], list[str]]:
    """One head per member, trained on the fold's training part."""
    train, validation = material.positions(fold.train), material.positions(fold.validation)
    members: list[Member] = []
    history: list[dict[str, Any]] = []
    notes: list[str] = []
    for number, (sequences, banks) in enumerate(zip(material.sequences, material.banks, strict=True)):
        prepared = statistics(sequences, train, plan.head.inputs, pca=plan.pca)
        torch.manual_seed(plan.fit.seed)
        head = Head(plan.head, sequences.feature_shape, material.targets.outputs, prepared)
        fitted = fit(
            head,
            sequences,
            target_rows(material.targets, sequences),
            train,
            validation,
            plan.objective,
            plan.selection,
            plan.fit,
            device=plan.device,
            checkpoint=None if folder is None else folder / f"checkpoint-{number}.pt",
            on_epoch=on_epoch,
        )
        head.load_state_dict(fitted.state_dict)
        members.append(Member(head.eval(), banks, material.spatial))
        history += [
            {"member": number, **epoch, "kept": int(epoch["epoch"] == fitted.best_epoch)} for epoch in fitted.history
        ]
        notes += fitted.notes
    seen = {video: material.digests[video] for video in (*fold.train, *fold.validation)}
    bundle = Bundle(
        tuple(members),
        material.targets.kind,
        material.targets.per_frame,
        material.targets.labels,
        plan.objective,
        plan.selection,
        fusion="mean" if len(members) > 1 else "none",
        min_seconds=plan.min_seconds,
        trained_on=seen,
    )
    return bundle, history, notes


def _fit_svm(material: Material, fold: Fold, plan: Plan) -> np.ndarray:
    """(K, members × K + 1) float32 weights and biases of a linear SVM on the heads' scores.

    The scores are out of fold: each training video is scored by heads that were trained without it.
    """
    ids = (*fold.train, *fold.validation)
    scores, classes = [], []
    for inner in cross_validation(ids, material.strata, material.groups, _FUSION_FOLDS, plan.fit.seed):
        inner, _ = with_validation(inner, material.strata, material.groups, plan.validation_share, plan.fit.seed)
        heads, _, _ = _fit_members(material, inner, plan, None, None)
        videos = material.positions(inner.test)
        each = [
            score(member.head, sequences, videos, plan.objective, plan.selection, device=plan.device)
            for member, sequences in zip(heads.members, material.sequences, strict=True)
        ]
        scores.append(np.hstack([np.asarray(array) for array in each]))
        classes += [int(material.targets.values[video]) for video in inner.test]
    svm = LinearSVC(C=1.0, random_state=plan.fit.seed).fit(np.concatenate(scores), classes)
    weights = np.hstack([svm.coef_, svm.intercept_[:, None]])
    if len(weights) == 1:  # of two classes scikit-learn keeps the second's margin alone
        weights = np.vstack([np.zeros_like(weights), weights])
    return weights.astype(np.float32)


def _calibrate(bundle: Bundle, material: Material, fold: Fold, device: torch.device) -> Bundle:
    """The bundle with the temperature, and the thresholds of labels, that suit the validation part."""
    target, probability = labelled_rows(
        material.targets, fold.validation, held_out_scores(bundle, material, fold.validation, device)
    )
    if not len(target):
        return bundle
    stride = -(-len(target) // _CALIBRATION_ROWS)
    target, probability = target[::stride], probability[::stride]
    bundle = replace(bundle, temperature=fit_temperature(bundle.kind, probability, target))
    if bundle.kind == "multilabel":
        calibrated = tempered(bundle.kind, probability, bundle.temperature)
        bundle = replace(bundle, thresholds=fit_thresholds(calibrated, target))
    return bundle


def held_out_scores(bundle: Bundle, material: Material, ids: tuple[str, ...], device: torch.device) -> Scores:
    """What a bundle gives for videos of the material: (B, K), or per video (T, K)."""
    return score_bundle(bundle, material.sequences, material.positions(ids), device=device)


def labelled_rows(targets: Targets, ids: tuple[str, ...], scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Targets and scores row by row: of each video, or of each frame that has a target."""
    if not targets.per_frame:
        return np.stack([targets.values[video] for video in ids]), np.asarray(scores)
    chosen, kept = [], []
    for video, rows in zip(ids, scores, strict=True):
        wanted = targets.values[video]
        known = unmasked(targets.kind, wanted)
        chosen.append(wanted[known])
        kept.append(rows[known])
    return np.concatenate(chosen), np.concatenate(kept)
