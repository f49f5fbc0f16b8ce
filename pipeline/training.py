"""One fold: banked sequences with targets -> a trained, calibrated bundle.

What training may look at is decided here: standardisation, PCA and weights come from the training part; the epoch that
is kept, the temperature and the thresholds from the validation part; fusion from scores that are out of fold within
both. The test part is not touched.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from pipeline import runs
from pipeline.bundles import Bundle, Member, load_bundle, save_bundle, score_bundle
from pipeline.calibration import fit_temperature, fit_thresholds, tempered
from pipeline.fitting import fit
from pipeline.heads import Head, HeadConfig, suited
from pipeline.material import Material
from pipeline.metrics import rows_with_target
from pipeline.objectives import Objective, target_rows
from pipeline.optimisation import FitConfig
from pipeline.scoring import score
from pipeline.selection import Selection
from pipeline.splits import Fold, cross_validation, with_validation
from pipeline.standardisation import statistics
from pipeline.writing import write_csv

_FUSION_FOLDS = 3
_NEVER = -100.0  # a margin that leaves a class no probability
_CALIBRATION_ROWS = 100_000

OnEpoch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """How the heads of a run are trained.

    Attributes:
        head, objective, selection, fit: of every head.
        device: where they are trained.
        pca: components of the PCA; None for none.
        fusion: of several heads' scores: "mean" or "svm"; "none" with one head.
        validation_share: of the training parts within which the SVM's scores are made, see `_fit_svm`.
        min_seconds: the bundle's.
    """

    head: HeadConfig
    objective: Objective
    selection: Selection
    fit: FitConfig
    device: torch.device
    pca: int | None = None
    fusion: str = "none"
    validation_share: float = 0.0
    min_seconds: float = 0.0


def train_fold(
    material: Material, fold: Fold, plan: Plan, folder: Path, on_epoch: OnEpoch | None = None
) -> tuple[Bundle, list[dict[str, Any]], list[str]]:
    """The bundle of one fold, from its folder if it was finished before, else trained (on from its checkpoints).

    Returns:
        the bundle, one row per epoch and head, and lines worth telling.

    Raises:
        UserError: what `pipeline.fitting.fit` refuses, or features or folds that cannot be made.
    """
    if (folder / "model.json").exists():
        return load_bundle(folder), runs.history(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    bundle, history, notes = _fit_members(material, fold, plan, folder, on_epoch)
    if plan.fusion == "svm":
        bundle = replace(bundle, fusion="svm", svm=_fit_svm(material, fold, plan))
    if fold.validation and bundle.kind != "value":
        bundle = calibrate(bundle, material, fold, plan.device)
    finish_fold(folder, bundle, history)
    return bundle, history, notes


def finish_fold(
    folder: Path, bundle: Bundle, history: Sequence[Mapping[str, Any]], backbone: Mapping[str, Tensor] | None = None
) -> None:
    """Write what came of a fold, the bundle last, and remove the checkpoints.

    Args:
        folder: of the fold.
        bundle: its heads, and what makes predictions of their outputs.
        history: a row per epoch and head.
        backbone: its tensors, if it was trained with the head.
    """
    write_csv(folder / "metrics.csv", pd.DataFrame(list(history)))
    save_bundle(folder, bundle, backbone)
    for checkpoint in (*folder.glob("checkpoint-*"), *folder.glob(".checkpoint-*")):
        checkpoint.unlink()


def _fit_members(
    material: Material, fold: Fold, plan: Plan, folder: Path | None, on_epoch: OnEpoch | None
) -> tuple[Bundle, list[dict[str, Any]], list[str]]:
    """One head per member, trained on the fold's training part."""
    train, validation = material.positions(fold.train), material.positions(fold.validation)
    members: list[Member] = []
    history: list[dict[str, Any]] = []
    notes: list[str] = []
    for number, (sequences, banks) in enumerate(zip(material.sequences, material.banks, strict=True)):
        config = suited(plan.head, sequences.feature_shape)
        prepared = statistics(sequences, train, config.inputs, pca=plan.pca)
        torch.manual_seed(plan.fit.seed)
        head = Head(config, sequences.feature_shape, material.targets.outputs, prepared)
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
        resampling=material.resampling,
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
    margins = np.hstack([svm.coef_, svm.intercept_[:, None]])
    if len(margins) == 1:  # of two classes scikit-learn keeps the second's margin alone
        margins = np.vstack([np.zeros_like(margins), margins])
    weights = np.zeros((material.targets.outputs, margins.shape[1]))
    weights[:, -1] = _NEVER  # a class of videos that are in no part of the split
    weights[svm.classes_] = margins
    return weights.astype(np.float32)


def calibrate(bundle: Bundle, material: Material, fold: Fold, device: torch.device) -> Bundle:
    """A bundle with the temperature, and the thresholds of labels, that suit the validation part."""
    scores = score_bundle(bundle, material.sequences, material.positions(fold.validation), device=device)
    targets = [material.targets.values[video] for video in fold.validation]
    if bundle.per_frame:
        target, probability = rows_with_target(bundle.kind, targets, list(scores))
    else:
        target, probability = np.stack(targets), np.asarray(scores)
    if not len(target):
        return bundle
    stride = -(-len(target) // _CALIBRATION_ROWS)
    target, probability = target[::stride], probability[::stride]
    bundle = replace(bundle, temperature=fit_temperature(bundle.kind, probability, target))
    if bundle.kind == "multilabel":
        calibrated = tempered(bundle.kind, probability, bundle.temperature)
        bundle = replace(bundle, thresholds=fit_thresholds(calibrated, target))
    return bundle
