"""What train-head and finetune have in common: folds and seeds trained and scored, beside baselines, into a run folder.

Every rank (`pipeline.ranks`) goes through all of it, for they train and score together; the first one alone fits the
baselines, and writes.
"""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from pipeline import baselines, figures, ranks, runs, splits
from pipeline.bank import Bank
from pipeline.bundles import Bundle, load_bundle, save_bundle
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.folds import choose_folds
from pipeline.held_out import hold_out, hold_out_baselines
from pipeline.learning import Learning
from pipeline.material import Material, load_material
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
from pipeline.selection import caution
from pipeline.sequences import Sequences
from pipeline.splits import Fold
from pipeline.targets import as_asked
from pipeline.training import OnEpoch
from pipeline.writing import write_csv, write_json
from stages import training_words as words
from stages.console import Display


@dataclass(frozen=True)
class Asked:
    """What tells one run from another.

    Attributes:
        out: the run folder.
        config: what was asked, resolved to plain values.
        data: what identifies the data (`pipeline.runs.data_identity`).
        what: what it trains, in a word: "head" or "model".
        sees_videos: whether new videos can be predicted; of imported features, only banks can be scored.
        weights_file: whether the backbone's weights are of a file, which must be given again for that.
    """

    out: Path
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    what: str = "head"
    sees_videos: bool = True
    weights_file: bool = False


def _next(asked: Asked) -> str:
    """What a finished run is for, as a command."""
    run = shlex.quote(str(asked.out))
    if not asked.sees_videos:
        return f"framebank evaluate {run} BANK scores another bank"
    return f"framebank predict {run} VIDEO…{' --weights FILE' if asked.weights_file else ''} labels new videos"


class Loaded(NamedTuple):
    """The videos with their targets, the folds, and how these came about."""

    material: Material
    folds: list[Fold]
    how: str


class Trained(NamedTuple):
    """One fold, trained.

    Attributes:
        bundle: what scores the test part. What predicts is read from the fold's folder.
        sequences: what each of its heads reads; all videos of the material, in its order.
        history: a row per epoch and head, as `pipeline.training.train_fold` gives them.
        notes: lines worth telling.
    """

    bundle: Bundle
    sequences: Sequence[Sequences]
    history: list[dict[str, Any]]
    notes: list[str]


# Of a fold, the number of the seed (0 for the first), the folder that keeps the bundle, and what an epoch's end calls.
Train = Callable[[Fold, int, Path, OnEpoch], Trained]


def load(display: Display, banks: Sequence[Bank], learning: Learning) -> Loaded:
    """Read what is to be learnt and choose what is held out; says so.

    Raises:
        UserError: targets, groups or splits are not as asked for.
    """
    targets = as_asked(learning.resolved(), banks[0])
    column = learning.group_column
    with display.busy("reading the bank"):
        material, notes = load_material(
            banks,
            targets,
            spatial=learning.head.spatial,
            side_by_side=learning.fuse == "concat",
            group_column=None if column == "none" else column,
            resampling=learning.resampling,
        )
    if material.groups is None and column not in ("group", "none"):
        raise UserError(f"The bank's column {column} is empty; give another --group-column, or none.")
    folds, how, more = choose_folds(learning, banks[0], material)
    table = splits.preflight(material.strata, material.groups, folds) if material.strata else []
    said = caution(learning.selection, material.sequences[0].lengths)
    words.show_task(display, banks, material, targets, how, table, [*notes, *more, *([said] if said else [])])
    return Loaded(material, folds, how)


def begin(display: Display, asked: Asked, folds: Sequence[Fold]) -> str:
    """Begin the run, or go on with it; of a finished one show the results.

    Returns:
        one of `runs.NEW`, `UNFINISHED` and `FINISHED`, the same on all ranks.

    Raises:
        UserError: the folder holds something else.
    """
    state: str = ranks.same(runs.begin(asked.out, asked.config, asked.data) if ranks.first() else "")
    if state == runs.FINISHED:
        display.line(f"{asked.out} is finished; this is what came of it.")
        words.show_results(display, asked.out, runs.read_results(asked.out), asked.what, _next(asked))
    elif ranks.first():
        splits.write_splits(asked.out / "splits.csv", folds)
    return state


def train_and_score(
    display: Display,
    asked: Asked,
    learning: Learning,
    loaded: Loaded,
    train: Train,
    *,
    device: torch.device,
    cost: Callable[[], Mapping[str, Any]],
    more_baselines: Callable[[], Mapping[str, HeldOut]] | None = None,
) -> None:
    """Train every fold with every seed, score what each holds out, and write and show what came of it.

    Args:
        display: what the person sees.
        asked: the run, begun.
        learning: what is learnt; its `fit.epochs` are the epochs of a training.
        loaded: from what.
        train: trains a fold, or takes it from its folder if that is finished.
        device: where the bundles score.
        cost: what there is to say of the cost when all is done, beside the seconds of training.
        more_baselines: what else the held-out videos are given to, in the order of the folds; called on all ranks when
            the folds are trained.

    Raises:
        UserError: a training failed, or another command has changed the run meanwhile.
    """
    material, folds = loaded.material, loaded.folds
    labels = material.targets.labels
    background = labels.index(learning.background) if learning.background in labels else None
    task = Task(material.targets.kind, material.targets.per_frame, labels, background)
    held, history, training_seconds = _train_folds(display, asked, learning, loaded, train, device)
    with display.busy("scoring the frozen backbone"):
        more = {} if more_baselines is None else more_baselines()
    against = {**more, **(_baselines(display, learning, loaded, task) if ranks.first() else {})}
    history += _finish(display, asked, learning, loaded, train)
    if ranks.first():
        runs.begin(asked.out, asked.config, asked.data)  # refuses what another command has made of it meanwhile
        groups = None if material.groups is None else [material.groups[video] for video in held[0].ids]
        results = {
            "task": asdict(task),
            "split": loaded.how,
            **compare_with_baselines(task, held, against, groups),
            "metrics": metrics_of(task, held[0]),
            "baseline_metrics": {name: metrics_of(task, said) for name, said in against.items()},
            "folds": [
                {"name": fold.name, "videos": len(fold.test), **metrics_of(task, held[0].of_fold(fold.name))}
                for fold in folds
            ],
            "per_class": class_table(task, held[0]),
            "cost": {"training_seconds": training_seconds, **cost()},
        }
        with display.busy("writing the run"):
            _write(asked.out, task, held, pd.DataFrame(history), learning.fit.monitor, results)
    ranks.wait()
    words.show_results(display, asked.out, runs.read_results(asked.out), asked.what, _next(asked))


def _train_folds(
    display: Display, asked: Asked, learning: Learning, loaded: Loaded, train: Train, device: torch.device
) -> tuple[list[HeldOut], list[dict[str, Any]], float]:
    """Every fold with every seed: what each seed said of the held-out videos, the epochs of all, and the seconds."""
    held, history, began, told = [], [], time.monotonic(), set()
    with words.watch_training(display, learning.seeds * len(loaded.folds), learning.fit.epochs) as watch:
        for seed in range(learning.seeds):
            said: list[HeldOut] = []
            for fold in loaded.folds:
                watch.begin(fold.name, seed)
                done = train(fold, seed, runs.fold_folder(asked.out, seed, fold.name), watch.epoch)
                history += [{"seed": seed, "fold": fold.name, **epoch} for epoch in done.history]
                targets = loaded.material.targets
                said.append(hold_out(done.bundle, done.sequences, targets, fold.test, fold=fold.name, device=device))
                for note in done.notes:
                    if note not in told:
                        told.add(note)
                        display.note(f"Fold {fold.name}: {note}")
            held.append(joined(said))
    return held, history, time.monotonic() - began


def _baselines(display: Display, learning: Learning, loaded: Loaded, task: Task) -> dict[str, HeldOut]:
    """What does without order, on the same held-out videos."""
    fits = len(loaded.folds) * len(baselines.NAMES[task.kind, task.per_frame])
    with words.watch_baselines(display, fits) as advance:
        against, notes = hold_out_baselines(
            loaded.material, loaded.folds, task, learning.fit.seed, learning.min_seconds, advance
        )
    for note in notes:
        display.field("Note", note)
    return against


def _finish(display: Display, asked: Asked, learning: Learning, loaded: Loaded, train: Train) -> list[dict[str, Any]]:
    """The bundle that predicts: of one split the one that was scored; of several, one trained on all their videos.

    Returns the epochs of that training.
    """
    material, folds = loaded.material, loaded.folds
    final, history = folds[0], []
    if len(folds) > 1:
        parts = [*(fold.test for fold in folds), *((*fold.train, *fold.validation) for fold in folds)]
        ids = tuple(dict.fromkeys(video for part in parts for video in part))  # a file may not test every video
        final = Fold("all", ids, (), ())
        if share := learning.validation_share:
            final, _ = splits.with_validation(final, material.strata, material.groups, share, learning.split_seed)
        with words.watch_training(display, 1, learning.fit.epochs) as watch:
            watch.begin(final.name, 0)
            done = train(final, 0, runs.fold_folder(asked.out, 0, final.name), watch.epoch)
        history = [{"seed": 0, "fold": final.name, **epoch} for epoch in done.history]
    if ranks.first():
        save_bundle(asked.out, load_bundle(runs.fold_folder(asked.out, 0, final.name)))
    return history


def _write(
    out: Path, task: Task, held: Sequence[HeldOut], epochs: pd.DataFrame, monitor: str, results: dict[str, Any]
) -> None:
    """Tables and pictures, and results.json last: with it the run is finished."""
    write_csv(out / "metrics.csv", epochs)
    for seed, said in enumerate(held):
        write_csv(runs.seed_file(out, "predictions", seed), prediction_table(task, said))
        if task.per_frame:
            write_csv(runs.seed_file(out, "frames", seed), frame_table(task, said))
    kept = {
        (row["seed"], row["fold"], row["member"]): int(row["epoch"]) for row in records(epochs[epochs["kept"] == 1])
    }
    figures.learning_curves(out / "curves.png", epochs, monitor=monitor, best=kept)
    counts = confusion(task, held[0])
    if counts is not None:
        figures.confusion_matrix(out / "confusion.png", counts, task.labels)
    elif task.kind == "value":
        target, _, decided = rows_of(task, held[0])
        figures.scatter(out / "scatter.png", target, decided)
    write_json(out / "results.json", results)
