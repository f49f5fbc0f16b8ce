"""Stage two: bank -> trained head, in a run folder that says how good it is, and beside which baselines."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from pipeline import baselines, figures, runs, splits
from pipeline.bank import Bank
from pipeline.bundles import load_bundle, save_bundle
from pipeline.encoder import choose_device
from pipeline.epochs import steps_of
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.heads import HeadConfig, vector_width
from pipeline.held_out import hold_out, hold_out_baselines
from pipeline.material import Material, load_material
from pipeline.objectives import Objective, target_rows
from pipeline.optimisation import FitConfig
from pipeline.results import (
    HeldOut,
    Task,
    class_table,
    compare_with_baselines,
    confusion,
    frame_table,
    joined,
    metrics_of,
    prediction_table,
    rows_of,
)
from pipeline.selection import Selection
from pipeline.splits import Fold
from pipeline.targets import Targets, as_asked
from pipeline.training import Plan, train_fold
from pipeline.writing import write_csv, write_json
from stages import training_words as words
from stages.console import Display

OK = 0

# What was best on developing splits of surveillance and motion clips; docstrings of `pipeline.inputs` say why it helps.
HEAD = HeadConfig(
    hidden=64,
    bidirectional=True,
    pool="max+stats",
    norm="batch",
    output_dropout=0.5,
    centre=True,
    changes=(4,),
)
COMPONENTS = 128  # of the PCA, where the inputs are wider and nothing else was asked for
SMOOTHING = 0.1  # of class targets
EPOCHS, STEPS = 30, 240  # at least so many epochs, and so many steps of the optimiser


@dataclass(frozen=True)
class TrainHeadConfig:
    """Everything that `framebank train-head` can be told; the defaults are those of the command."""

    banks: tuple[Path, ...]
    out: Path
    target: str | None = None
    targets: Path | None = None
    segments: Path | None = None
    frame_values: Path | None = None
    multi_label: bool = False
    regression: bool = False
    background: str | None = None
    allow: frozenset[str] = frozenset()
    min_seconds: float = 0.0
    split_column: str = "split"
    splits: Path | None = None
    folds: int | None = None
    test_share: float = 0.2
    validation_share: float = 0.0
    group_column: str = "group"
    split_seed: int = 0
    selection: Selection = field(default_factory=Selection)
    head: HeadConfig = HEAD
    pca: int | None = None
    supervise: str = "pooled"
    read: str = "last"
    loss: str | None = None
    label_smoothing: float | None = None
    fuse: str = "concat"
    epochs: int | None = None
    fit: FitConfig = field(default_factory=FitConfig)
    seeds: int = 1
    device: str = "auto"
    quiet: bool = False

    def __post_init__(self) -> None:
        sources = {"--targets": self.targets, "--segments": self.segments, "--frame-values": self.frame_values}
        given = [name for name, path in sources.items() if path is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} both give targets; give one of them")
        if self.multi_label and self.regression:
            raise UserError("--multi-label and --regression exclude one another: labels, or a number")
        if self.frame_values is not None and self.multi_label:
            raise UserError("--frame-values gives numbers, and --multi-label asks for labels; leave it out")
        if self.segments is not None and self.regression:
            raise UserError("--segments gives labels, and --regression asks for numbers; use --frame-values")
        if self.segments is None and (self.background is not None or self.allow):
            raise UserError("--background and the --allow options are for --segments; leave them out")
        if self.segments is not None and self.target is not None:
            raise UserError("--target names a column, and --segments files have their own; leave it out")
        if self.segments is None and self.min_seconds:
            raise UserError("--min-seconds smooths predicted segments; it needs --segments")
        if len(self.banks) == 1 and self.fuse != "concat":
            raise UserError(f"--fuse {self.fuse} fuses the heads of several banks, and one bank was given")
        if self.fuse == "svm" and (self.per_frame or self.kind != "class"):
            raise UserError("--fuse svm is for one class per video; use --fuse mean")
        if len({path.resolve() for path in self.banks}) < len(self.banks):
            raise UserError("A bank is given twice; give each bank once.")
        if self.splits is not None and self.folds is not None:
            raise UserError("--splits and --folds exclude one another; give one of them")

    @property
    def kind(self) -> str:
        """Kind of the targets."""
        if self.regression or self.frame_values is not None:
            return "value"
        return "multilabel" if self.multi_label else "class"

    @property
    def per_frame(self) -> bool:
        """Whether there is one target per frame."""
        return self.segments is not None or self.frame_values is not None

    @property
    def smoothing(self) -> float:
        """Label smoothing as asked for, or the default of the kind of target."""
        if self.label_smoothing is not None:
            return self.label_smoothing
        return SMOOTHING if self.kind == "class" else 0.0

    def resolved(self) -> dict[str, Any]:
        """What was asked, as plain values: all that can change the result."""
        plain = asdict(self) | {"label_smoothing": self.smoothing}
        for name in ("out", "device", "quiet"):
            plain.pop(name)
        plain["banks"] = [str(path) for path in self.banks]
        plain["allow"] = sorted(self.allow)
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


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
    objective = Objective(
        kind=config.kind,
        per_frame=config.per_frame,
        supervise=config.supervise,
        read=config.read,
        loss=config.loss or "",
        label_smoothing=config.smoothing,
    )
    device = choose_device(config.device)
    with ExitStack() as stack:
        opened = [stack.enter_context(Bank(path)) for path in config.banks]
        wanted = as_asked(config.resolved(), opened[0])
        material, notes = load_material(
            opened,
            wanted,
            spatial=config.head.spatial,
            side_by_side=config.fuse == "concat",
            group_column=None if config.group_column == "none" else config.group_column,
        )
        if material.groups is None and config.group_column not in ("group", "none"):
            raise UserError(f"The bank's column {config.group_column} is empty; give another --group-column, or none.")
        folds, how, more = _folds(config, opened[0], material)
        table = splits.preflight(material.strata, material.groups, folds) if material.strata else []
        words.show_task(display, opened, material, wanted, how, table, [*notes, *more])
        epochs = _epochs(config, material, folds)
        config = replace(
            config,
            pca=_components(config, material, folds),
            epochs=epochs,
            fit=replace(config.fit, epochs=epochs),
        )
        files = {"targets": config.targets, "segments": config.segments, "frame values": config.frame_values}
        identity = runs.data_identity(opened, {**files, "splits": config.splits})
        state = runs.begin(config.out, config.resolved(), identity)
        if state == runs.FINISHED:
            display.line(f"{config.out} is finished; this is what came of it.")
            words.show_results(display, config.out, runs.read_results(config.out))
            return OK
        splits.write_splits(config.out / "splits.csv", folds)
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
        task = Task(wanted.kind, wanted.per_frame, wanted.labels, _background(config, wanted))
        held, history, training_seconds = _train(display, config, plan, material, folds)
        with words.watch_baselines(display, len(folds) * len(baselines.NAMES[task.kind, task.per_frame])) as advance:
            against, said = hold_out_baselines(material, folds, task, config.fit.seed, config.min_seconds, advance)
        for note in said:
            display.field("Note", note)
        _finish(display, config, plan, material, folds, history)
        runs.begin(config.out, config.resolved(), identity)  # refuses what another command has made of it meanwhile
        groups = None if material.groups is None else [material.groups[video] for video in held[0].ids]
        results = {
            "task": asdict(task),
            "split": how,
            **compare_with_baselines(task, held, against, groups),
            "metrics": metrics_of(task, held[0]),
            "baseline_metrics": {name: metrics_of(task, said) for name, said in against.items()},
            "folds": [
                {"name": fold.name, "videos": len(fold.test), **metrics_of(task, held[0].of_fold(fold.name))}
                for fold in folds
            ],
            "per_class": class_table(task, held[0]),
            "cost": {"training_seconds": training_seconds, "seconds": time.monotonic() - started},
        }
        _write(config, task, held, history, results)
    words.show_results(display, config.out, runs.read_results(config.out))
    return OK


def _components(config: TrainHeadConfig, material: Material, folds: Sequence[Fold]) -> int:
    """Components of the PCA, 0 for none: as asked for, else 128 where inputs and training rows are more than that."""
    if config.pca is not None:
        return config.pca
    widths = [config.head.inputs.width(vector_width(config.head, each.feature_shape)) for each in material.sequences]
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


def _background(config: TrainHeadConfig, wanted: Targets) -> int | None:
    return wanted.labels.index(config.background) if config.background in wanted.labels else None


def _folds(config: TrainHeadConfig, bank: Bank, material: Material) -> tuple[list[Fold], str, list[str]]:
    """The splits, how they came about in words, and lines worth telling."""
    ids = material.sequences[0].ids
    strata, groups, seed = material.strata, material.groups, config.split_seed
    kinds = f"{'grouped' if groups else ''}{' and ' if groups and strata else ''}{'stratified' if strata else ''}"
    catalog = bank.catalog.set_index("id")
    notes: list[str] = []
    if config.splits is not None:
        folds, notes = splits.read_splits(config.splits, ids)
        how = f"as in {config.splits}"
    elif config.folds is not None:
        folds = splits.cross_validation(ids, strata, groups, config.folds, seed)
        how = f"{config.folds} folds{', ' if kinds else ''}{kinds}, seed {seed}"
    else:
        if config.split_column not in catalog.columns:
            raise UserError(
                f"The bank has no column {config.split_column!r} for --split-column; it has "
                f"{', '.join(map(str, catalog.columns))}."
            )
        values = [str(catalog.at[video, config.split_column]) for video in ids]
        if any(values) or config.split_column != "split":
            fold, notes = splits.from_column(ids, values)
            folds, how = [fold], f"the bank's column {config.split_column}"
        else:
            folds = [splits.holdout(ids, strata, groups, config.test_share, seed)]
            how = f"{config.test_share:.0%} held out at random{', ' if kinds else ''}{kinds}, seed {seed}"
    finished = []
    for fold in folds:
        if not fold.validation and config.validation_share:
            fold, note = splits.with_validation(fold, strata, groups, config.validation_share, seed)
            notes += [note] if note else []
        finished.append(fold)
    leaks = [*splits.leakage(finished, groups), *splits.shared_files(finished, material.digests)]
    return finished, how, [*notes, *leaks]


def _train(
    display: Display, config: TrainHeadConfig, plan: Plan, material: Material, folds: Sequence[Fold]
) -> tuple[list[HeldOut], list[dict[str, Any]], float]:
    """Every fold with every seed: what each seed said of the held-out videos, and the epochs of all."""
    held, history, began, told = [], [], time.monotonic(), set()
    with words.watch_training(display, config.seeds * len(folds), config.fit.epochs) as watch:
        for seed in range(config.seeds):
            seeded = replace(plan, fit=replace(plan.fit, seed=plan.fit.seed + seed))
            said: list[HeldOut] = []
            for fold in folds:
                watch.begin(fold.name, seed)
                folder = runs.fold_folder(config.out, seed, fold.name)
                bundle, epochs, notes = train_fold(material, fold, seeded, folder, watch.epoch)
                history += [{"seed": seed, "fold": fold.name, **epoch} for epoch in epochs]
                said.append(
                    hold_out(
                        bundle, material.sequences, material.targets, fold.test, fold=fold.name, device=plan.device
                    )
                )
                for note in notes:
                    if note not in told:
                        told.add(note)
                        display.line(f"Fold {fold.name}: {note}")
            held.append(joined(said))
    return held, history, time.monotonic() - began


def _finish(
    display: Display,
    config: TrainHeadConfig,
    plan: Plan,
    material: Material,
    folds: Sequence[Fold],
    history: list[dict[str, Any]],
) -> None:
    """The bundle that predicts: of one split the head that was scored; of several, one trained on all their videos."""
    if len(folds) == 1:
        save_bundle(config.out, load_bundle(runs.fold_folder(config.out, 0, folds[0].name)))
        return
    parts = [*(fold.test for fold in folds), *((*fold.train, *fold.validation) for fold in folds)]
    ids = tuple(dict.fromkeys(video for part in parts for video in part))  # a file of splits may not test every video
    whole = Fold("all", ids, (), ())
    if config.validation_share:
        whole, _ = splits.with_validation(
            whole, material.strata, material.groups, config.validation_share, config.split_seed
        )
    with words.watch_training(display, 1, config.fit.epochs) as watch:
        watch.begin("all", 0)
        bundle, epochs, _ = train_fold(material, whole, plan, runs.fold_folder(config.out, 0, "all"), watch.epoch)
    history += [{"seed": 0, "fold": "all", **epoch} for epoch in epochs]
    save_bundle(config.out, bundle)


def _write(
    config: TrainHeadConfig,
    task: Task,
    held: Sequence[HeldOut],
    history: list[dict[str, Any]],
    results: dict[str, Any],
) -> None:
    """Tables and pictures, and results.json last: with it the run is finished."""
    out = config.out
    epochs = pd.DataFrame(history)
    write_csv(out / "metrics.csv", epochs)
    for seed, said in enumerate(held):
        write_csv(runs.seed_file(out, "predictions", seed), prediction_table(task, said))
        if task.per_frame:
            write_csv(runs.seed_file(out, "frames", seed), frame_table(task, said))
    kept = {
        (row["seed"], row["fold"], row["member"]): int(row["epoch"]) for row in records(epochs[epochs["kept"] == 1])
    }
    figures.learning_curves(out / "curves.png", epochs, monitor=config.fit.monitor, best=kept)
    counts = confusion(task, held[0])
    if counts is not None:
        figures.confusion_matrix(out / "confusion.png", counts, task.labels)
    elif task.kind == "value":
        target, _, decided = rows_of(task, held[0])
        figures.scatter(out / "scatter.png", target, decided)
    write_json(out / "results.json", results)
