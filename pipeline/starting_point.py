"""What fine-tuning starts from: a finished run of train-head with its bank, its backbone, its splits and its very
heads; or a bank of a backbone's first embeddings, and new heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline import rescoring, resuming, runs
from pipeline.alike import Alike, load_alike, load_backbone_of
from pipeline.backbone import Backbone
from pipeline.bank import Bank
from pipeline.bundles import Bundle, Member, check_banks, load_bundle
from pipeline.errors import UserError
from pipeline.extraction import with_region
from pipeline.heads import Head
from pipeline.ids import readable
from pipeline.imported import is_imported
from pipeline.learning import Learning, learning_of
from pipeline.material import Material
from pipeline.splits import Fold
from pipeline.standardisation import statistics
from pipeline.videos import find_videos


@dataclass(frozen=True)
class StartingPoint:
    """Where it begins.

    Attributes:
        learning: what is learnt, and how.
        bank: the bank of the backbone's embeddings.
        backbone: that which made the bank.
        precision: in which backbone and head will be trained.
        run: the folder of the run whose heads are taken; None for new ones.
        notes: lines worth telling the user.
        typed: the name of the backbone as it was typed, if it was.
    """

    learning: Learning
    bank: Bank
    backbone: Backbone
    precision: str
    run: Path | None = None
    notes: tuple[str, ...] = ()
    typed: str | None = None

    def check(self, material: Material, folds: Sequence[Fold], seeds: int) -> None:
        """Make sure, before any work, that the heads of the run are there and know what is to be learnt.

        Raises:
            UserError: the bank's videos have other labels by now, or the run has too few heads.
        """
        if self.run is None:
            return
        for seed in range(seeds):
            for fold in folds:
                labels = self.head(material, fold, seed).labels
                if labels != material.targets.labels:
                    new = sorted(set(labels) ^ set(material.targets.labels))
                    raise UserError(
                        f"The head in {self.run} tells {len(labels)} labels apart, and the bank's videos have "
                        f"{len(material.targets.labels)} by now ({', '.join(new[:5])} on one side only). Train a new "
                        "head on the bank, and fine-tune that."
                    )

    def head(self, material: Material, fold: Fold, seed: int) -> Bundle:
        """The head that a fold starts from; it has never seen the fold's test part.

        Raises:
            UserError: the run has no such head.
        """
        if self.run is not None:
            folder = runs.fold_folder(self.run, seed, fold.name)
            if not (folder / "model.json").exists():
                raise UserError(
                    f"{self.run} has no head of fold {fold.name} with seed number {seed + 1}; ask for at most as many "
                    f"--seeds "
                    "as it was trained with."
                )
            return load_bundle(folder)
        (sequences,) = material.sequences
        learning, objective = self.learning, self.learning.objective
        prepared = statistics(sequences, material.positions(fold.train), learning.head.inputs, pca=learning.pca or None)
        torch.manual_seed(learning.fit.seed + seed)
        config = replace(learning.head, steps=objective.steps)
        head = Head(config, sequences.feature_shape, material.targets.outputs, prepared).eval()
        return Bundle(
            (Member(head, material.banks[0], material.spatial),),
            learning.kind,
            learning.per_frame,
            material.targets.labels,
            objective,
            learning.selection,
            min_seconds=learning.min_seconds,
        )


def open_run(
    run: Path,
    bank: Bank,
    weights: Sequence[str],
    *,
    device: torch.device,
    precision: str,
    typed: str | None = None,
) -> StartingPoint:
    """Open a finished run to start from.

    Args:
        run: its folder.
        bank: the bank that it was trained on, wherever it lies now.
        weights: the checkpoint file of the backbone, if it came from one.
        device: where backbone and head will be trained.
        precision: that of the backbone; "auto" is that of the bank.
        typed: the name of the backbone, as in `pipeline.alike.load_alike`.

    Raises:
        UserError: no finished run, one that backbone and head cannot be joined for, another bank, other weights.
    """
    config = runs.read_config(run)
    runs.read_results(run)
    bundle = load_bundle(run)
    if bundle.weights is not None:
        raise UserError(
            f"{run} is fine-tuned already. To go on from it, bank the videos with it (`framebank extract --weights "
            f"{run}`), "
            "train a head on that bank, and fine-tune from there."
        )
    read = [made for member in bundle.members for made in member.banks]
    _check_views(read[0]["config"])
    if len(read) > 1:
        names = ", ".join(Path(each["path"]).name for each in config["data"]["banks"])
        raise UserError(
            f"The head in {run} reads {len(read)} banks ({names}), made by as many backbones or of different files; "
            f"only a "
            "head on one bank can be joined with its backbone. Train one with `framebank train-head BANK`."
        )
    if is_imported(read[0]["config"]["recipe"]):
        raise UserError(
            f"The head in {run} was trained on imported features: there is no backbone to join it with. Extract a "
            f"bank with "
            "`framebank extract` and train a head on that."
        )
    notes = check_banks(bundle, [bank])
    (alike,) = load_alike(bundle, weights, device=device, precision=precision, typed=typed)
    precision, more = _trained_in(alike, precision, device)
    learning = replace(learning_of(config["config"]), splits=run / "splits.csv", folds=None)
    return StartingPoint(learning, bank, alike.backbone, precision, run, (*notes, *alike.notes, *more), typed)


def open_bank(
    learning: Learning,
    bank: Bank,
    weights: Sequence[str],
    *,
    device: torch.device,
    precision: str,
    typed: str | None = None,
) -> StartingPoint:
    """Start from the backbone of a bank, with new heads.

    Args:
        learning: what is learnt.
        bank, weights, device, precision, typed: as in `open_run`.

    Raises:
        UserError: other weights than the bank's.
    """
    _check_views(bank.config)
    alike = load_backbone_of(bank, weights, device=device, precision=precision, typed=typed)
    precision, more = _trained_in(alike, precision, device)
    return StartingPoint(learning, bank, alike.backbone, precision, notes=(*alike.notes, *more), typed=typed)


def _trained_in(alike: Alike, asked: str, device: torch.device) -> tuple[str, list[str]]:
    """The precision of training, and lines worth telling.

    On the CPU torch's bfloat16 gradients of 3D convolutions are wrong where two time steps meet a kernel of three (seen
    in 2.11 and 2.14: what was in memory before), as in the last group of R3D on clips of 16 frames.

    Raises:
        UserError: bfloat16 was asked for there.
    """
    precision = str(alike.recipe["precision"])
    weights = alike.backbone.module.parameters()  # also of what tracing went through, such as torchvision's R3D
    in_3d = any(weight.ndim == 5 and weight.shape[2] > 1 for weight in weights)
    if device.type != "cpu" or precision != "bf16" or not in_3d:
        return precision, []
    why = "torch's bfloat16 gradients of 3D convolutions on the CPU are not to be trusted"
    if asked == "bf16":
        raise UserError(f"{why}; give --precision fp32, or leave it out.")
    return "fp32", [f"{alike.backbone.name} is trained in float32: {why}"]


def _check_views(made: Mapping[str, Any]) -> None:
    if "views" in made["recipe"]:
        raise UserError(
            f"The bank has {made['recipe']['views']['count']} views of each video, and a network trains on the videos "
            "themselves; start from a bank without --views, and give finetune --augment crop,flip."
        )


def bank_of(run: Path, given: Path | None) -> Path:
    """Where the bank of a run lies. UserError: it is not where it was, and no other place was given."""
    if given is not None:
        return given
    paths = rescoring.banks_of(runs.read_config(run), run, remedy="give where it lies now: --bank BANK")
    return paths[0]


def find_sources(
    data: Path, bank: Bank, ids: Sequence[str], *, all_files: bool = False, image_fps: float | None = None
) -> pd.DataFrame:
    """The files of banked videos: the rows of `find_videos`, in the order of their ids.

    Args:
        data: folder, manifest or file that the bank was made of, wherever it lies now.
        bank: the bank.
        ids: the videos that are needed.
        all_files: whether files of any suffix are taken.
        image_fps: rate of image folders.

    Raises:
        UserError: videos that are not there any more, or that are not what was banked.
    """
    known = resuming.known_sources(bank, data if data.is_dir() else data.parent)
    found = find_videos(data, all_files=all_files, known=known).table.set_index("id", drop=False)
    catalog = bank.catalog.set_index("id")
    if lost := [video for video in ids if video not in found.index]:
        raise UserError(_vanished(lost, ids, f"not in {data}", catalog))
    table = with_region(found.loc[list(ids)].reset_index(drop=True), bank.config["recipe"]["crop"], image_fps)
    plan = resuming.plan(table, bank, retry_failed=False)
    if plan.gone:
        raise UserError(_vanished(plan.gone, ids, "gone", catalog))
    if len(plan.todo):
        raise UserError(
            f"{len(plan.todo)} of {len(ids)} videos in {data} are not what was banked, e.g. "
            f"{readable(plan.todo['id'].iloc[0])}: another file, or another span or crop of it. Extract the bank "
            f"again (only "
            "what has changed is done), and train the head on it."
        )
    return table


def _vanished(lost: Sequence[str], ids: Sequence[str], how: str, catalog: pd.DataFrame) -> str:
    source = str(catalog.at[lost[0], "source"])
    return (
        f"{len(lost)} of {len(ids)} videos of the head's run are {how}, e.g. {readable(lost[0])}, which was banked "
        f"from "
        f"{source}. Give the folder or manifest that was extracted, with them in it."
    )
