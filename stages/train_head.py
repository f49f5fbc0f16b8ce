"""Stage two: bank -> trained head, in a run folder that says how good it is, and beside which baselines."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from pipeline import runs
from pipeline.bank import Bank
from pipeline.encoder import choose_device
from pipeline.epochs import steps_of
from pipeline.errors import UserError
from pipeline.heads import suited, vector_width
from pipeline.imported import is_imported
from pipeline.learning import COMPONENTS, EPOCHS, STEPS, Learning
from pipeline.material import Material
from pipeline.objectives import target_rows
from pipeline.splits import Fold
from pipeline.training import OnEpoch, Plan, train_fold
from stages import training_words as words
from stages.console import Display
from stages.training_run import Asked, Trained, begin, load, train_and_score

OK = 0


@dataclass(frozen=True)
class TrainHeadConfig(Learning):
    """Everything that `framebank train-head` can be told; the defaults are those of the command."""

    banks: tuple[Path, ...]
    out: Path
    device: str = "auto"
    quiet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.banks) == 1 and self.fuse != "concat":
            raise UserError(f"--fuse {self.fuse} fuses the heads of several banks, and one bank was given")
        if len(self.banks) == 1 and self.resampling is not None:
            raise UserError(
                f"--resample {self.resampling.method} reads other banks at the times of the first, and one bank was "
                "given; for fewer of its rows give --fps or --stride"
            )
        if len({path.resolve() for path in self.banks}) < len(self.banks):
            raise UserError("A bank is given twice; give each bank once.")

    def resolved(self) -> dict[str, Any]:
        """What was asked, as plain values: all that can change the result."""
        return {"banks": [str(path) for path in self.banks], **super().resolved()}


def run(config: TrainHeadConfig) -> int:
    """Train, score what was held out, and compare with the baselines.

    Returns:
        the exit status, 0.

    Raises:
        UserError: it could not be done as asked; what the run folder held is kept.
    """
    with threadpool_limits(limits=1, user_api="blas"):  # more threads lose more to waking than matrices this small gain
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return _run(config)
        finally:
            torch.set_num_threads(threads)


def _run(config: TrainHeadConfig) -> int:
    started = time.monotonic()
    display = Display(quiet=config.quiet)
    objective, device = config.objective, choose_device(config.device)
    with ExitStack() as stack:
        banks = [stack.enter_context(Bank(path)) for path in config.banks]
        loaded = load(display, banks, config)
        material, folds = loaded.material, loaded.folds
        epochs = _epochs(config, material, folds)
        config = replace(
            config,
            pca=_components(config, material, folds),
            epochs=epochs,
            fit=replace(config.fit, epochs=epochs),
        )
        files = {"targets": config.targets, "segments": config.segments, "frame values": config.frame_values}
        identity = runs.data_identity(banks, {**files, "splits": config.splits})
        sees = not any(is_imported(bank.config["recipe"]) for bank in banks)
        from_file = any(bank.config["weights"].startswith("file:") for bank in banks)
        asked = Asked(config.out, config.resolved(), identity, sees_videos=sees, weights_file=from_file)
        state = begin(display, asked, folds)
        if state == runs.FINISHED:
            return OK
        plan = Plan(
            head=replace(config.head, steps=objective.steps),
            objective=objective,
            selection=config.selection,
            fit=config.fit,
            device=device,
            pca=config.pca or None,
            fusion="none" if config.fuse == "concat" else config.fuse,
            validation_share=config.validation_share,
            min_seconds=config.min_seconds,
        )
        words.show_plan(display, plan, material, resumed=state == runs.UNFINISHED)

        def train(fold: Fold, seed: int, folder: Path, on_epoch: OnEpoch) -> Trained:
            seeded = replace(plan, fit=replace(plan.fit, seed=plan.fit.seed + seed))
            bundle, history, notes = train_fold(material, fold, seeded, folder, on_epoch)
            return Trained(bundle, material.sequences, history, notes)

        def cost() -> dict[str, Any]:
            embedded = sum(_rows(bank, material) for bank in banks)
            return {"seconds": time.monotonic() - started, "frames_embedded": embedded, "frames_trained": 0}

        train_and_score(display, asked, config, loaded, train, device=device, cost=cost)
    return OK


def _rows(bank: Bank, material: Material) -> int:
    """How many frames of the material's videos a bank has embedded."""
    return int(bank.catalog.set_index("id").loc[list(material.sequences[0].ids), "rows"].sum())


def _components(config: TrainHeadConfig, material: Material, folds: Sequence[Fold]) -> int:
    """Components of the PCA, 0 for none: as asked for, else 128 where inputs and training rows are more than that."""
    if config.pca is not None:
        return config.pca
    shapes = [each.feature_shape for each in material.sequences]
    widths = [config.head.inputs.width(vector_width(suited(config.head, shape), shape)) for shape in shapes]
    rows = min(int(each.lengths[material.positions(f.train)].sum()) for each in material.sequences for f in folds)
    if config.fuse == "svm":  # whose folds within a training part leave two thirds of it, or a validation part of them
        rows //= 4
    return COMPONENTS if min(*widths, rows) > COMPONENTS else 0


def _epochs(config: TrainHeadConfig, material: Material, folds: Sequence[Fold]) -> int:
    """As asked for, else as many as make enough steps in the smallest fold: few videos make few steps an epoch."""
    if config.epochs is not None:
        return config.epochs
    sequences = material.sequences[0]
    known = target_rows(material.targets, sequences)
    smallest = min(folds, key=lambda fold: len(fold.train))
    steps = steps_of(
        sequences,
        material.positions(smallest.train),
        known,
        config.selection,
        config.fit,
        bidirectional=config.head.bidirectional,
    )
    return max(EPOCHS, -(-STEPS // max(1, steps)))
