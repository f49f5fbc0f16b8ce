"""One fold: what training looks at and what it leaves alone, calibration, and fusion by scores that are out of fold."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.bank import Bank
from pipeline.bundles import Bundle, score_bundle
from pipeline.calibration import fit_temperature
from pipeline.heads import HeadConfig
from pipeline.material import Material, load_material
from pipeline.objectives import Objective
from pipeline.optimisation import FitConfig
from pipeline.selection import Selection
from pipeline.splits import Fold
from pipeline.targets import Targets, from_catalog
from pipeline.training import Plan, train_fold
from tests.banks import bank_of, in_order

pytestmark = pytest.mark.usefixtures("one_torch_thread")
VIDEOS = in_order(48)
IDS = tuple(VIDEOS)
FOLD = Fold("1", IDS[:24], IDS[24:36], IDS[36:])
PLAN = Plan(
    head=HeadConfig(hidden=8, cell="gru"),
    objective=Objective("class"),
    selection=Selection(),
    fit=FitConfig(epochs=6, learning_rate=1e-2),
    device=torch.device("cpu"),
)


def material_of(*banks: Mapping[str, np.ndarray], folder: Path, targets: Targets | None = None) -> Material:
    """Each bank has a head of its own."""
    opened = [Bank(bank_of(folder / f"{number}.h5", videos)) for number, videos in enumerate(banks)]
    wanted = targets or from_catalog(opened[0].catalog)
    material, _ = load_material(opened, wanted, spatial=None, side_by_side=False, group_column=None)
    for bank in opened:
        bank.close()
    return material


def weights(bundle: Bundle) -> dict[str, torch.Tensor]:
    return {f"{n} {name}": t for n, each in enumerate(bundle.members) for name, t in each.head.state_dict().items()}


def same(one: Bundle, other: Bundle) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_test_videos_change_nothing_and_validation_videos_no_statistics(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plan = replace(PLAN, pca=3)
    plain, _, _ = train_fold(material_of(VIDEOS, folder=tmp_path), FOLD, plan, tmp_path / "plain")
    other = {video: rows * 9 + 5 if video in FOLD.test else rows for video, rows in VIDEOS.items()}
    tested, _, _ = train_fold(material_of(other, folder=tmp_path / "a"), FOLD, plan, tmp_path / "tested")
    assert same(plain, tested)
    assert plain.temperature == tested.temperature
    other = {video: rows * 9 + 5 if video in FOLD.validation else rows for video, rows in VIDEOS.items()}
    chosen, _, _ = train_fold(material_of(other, folder=tmp_path / "b"), FOLD, plan, tmp_path / "chosen")
    for name in ("0 mean", "0 scale", "0 components"):
        assert torch.equal(weights(plain)[name], weights(chosen)[name])
    assert plain.trained_on == {video: video for video in (*FOLD.train, *FOLD.validation)}


def test_a_finished_fold_is_read_and_not_trained_again(tmp_path: Path) -> None:
    material = material_of(VIDEOS, folder=tmp_path)
    epochs: list[Any] = []
    made, history, _ = train_fold(material, FOLD, PLAN, tmp_path / "fold", epochs.append)
    assert len(epochs) == PLAN.fit.epochs == len(history)
    assert sum(row["kept"] for row in history) == 1
    assert {path.name for path in (tmp_path / "fold").iterdir()} == {"metrics.csv", "model.json", "model.safetensors"}
    again, told, _ = train_fold(material, FOLD, PLAN, tmp_path / "fold", epochs.append)
    assert len(epochs) == PLAN.fit.epochs
    assert same(made, again)
    assert [row["train_loss"] for row in told] == pytest.approx([row["train_loss"] for row in history])


def test_calibration_is_that_of_the_validation_part(tmp_path: Path) -> None:
    material = material_of(VIDEOS, folder=tmp_path)
    made, _, _ = train_fold(material, FOLD, PLAN, tmp_path / "with")
    raw = np.asarray(
        score_bundle(replace(made, temperature=1.0), material.sequences, material.positions(FOLD.validation))
    )
    target = np.array([material.targets.values[video] for video in FOLD.validation])
    assert made.temperature == pytest.approx(fit_temperature("class", raw, target))
    assert made.temperature != 1
    without, _, _ = train_fold(material, replace(FOLD, validation=()), PLAN, tmp_path / "without")
    assert without.temperature == 1


def test_frames_that_nobody_labelled_calibrate_nothing(tmp_path: Path) -> None:
    values = {video: np.where(np.arange(len(rows)) < 4, rows[:, 0] > 0, -100) for video, rows in VIDEOS.items()}
    targets = Targets("class", True, ("low", "high"), values, ())
    material = material_of(VIDEOS, folder=tmp_path, targets=targets)
    plan = replace(PLAN, head=replace(PLAN.head, steps=True), objective=Objective("class", per_frame=True))
    made, _, _ = train_fold(material, FOLD, plan, tmp_path / "fold")
    positions = material.positions(FOLD.validation)
    raw = score_bundle(replace(made, temperature=1.0), material.sequences, positions)
    target = np.concatenate([values[video][:4] for video in FOLD.validation])
    expected = fit_temperature("class", np.concatenate([steps[:4] for steps in raw]), target)
    assert made.temperature == pytest.approx(expected)


def test_the_svm_does_not_trust_a_head_that_learnt_its_videos_by_heart(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    noise = {video: np.tile(generator.normal(size=24), (len(rows), 1)) for video, rows in VIDEOS.items()}
    material = material_of(VIDEOS, noise, folder=tmp_path)
    plan = replace(PLAN, fusion="svm", validation_share=0.2, fit=replace(PLAN.fit, epochs=12, learning_rate=0.03))
    fold = Fold("1", IDS[:36], (), IDS[36:])
    made, _, _ = train_fold(material, fold, plan, tmp_path / "fold")
    train = material.positions(fold.train)
    target = np.array([material.targets.values[video] for video in fold.train])
    for member, sequences in zip(made.members, material.sequences, strict=True):
        alone = replace(made, members=(member,), fusion="none", svm=None)
        by_heart = np.asarray(score_bundle(alone, [sequences], train)).argmax(axis=1) == target
        assert by_heart.mean() > 0.9, "in training both heads look good"
    assert made.svm is not None
    assert made.svm.shape == (2, 2 * 2 + 1)
    informative, learnt_by_heart = np.abs(made.svm[1, :2]).sum(), np.abs(made.svm[1, 2:4]).sum()
    assert learnt_by_heart < informative / 3


def test_a_class_of_no_video_in_the_split_shifts_no_other_class(tmp_path: Path) -> None:
    classes = {video: np.int64(1 + (rows[0, 0] < rows[-1, 0])) for video, rows in VIDEOS.items()}
    values = {**classes, **dict.fromkeys(IDS[-3:], np.int64(0))}
    material = material_of(
        VIDEOS, VIDEOS, folder=tmp_path, targets=Targets("class", False, ("none", "falling", "rising"), values, ())
    )
    made, _, _ = train_fold(material, Fold("1", IDS[:36], (), IDS[36:45]), replace(PLAN, fusion="svm"), tmp_path / "1")
    said = np.asarray(score_bundle(made, material.sequences, material.positions(IDS[36:45])))
    assert said.shape == (9, 3)
    assert (said[:, 0] < 1e-6).all()
    assert (said.argmax(axis=1) == [classes[video] for video in IDS[36:45]]).mean() > 0.8
