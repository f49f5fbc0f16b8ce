"""What train-head and finetune say: the task, the split, the head, how training goes, and what came of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.bank import Bank
from pipeline.heads import Head, HeadConfig, suited
from pipeline.material import Material
from pipeline.metrics import higher_is_better
from pipeline.selection import Selection
from pipeline.standardisation import Standardisation
from pipeline.targets import Targets
from pipeline.training import Plan
from stages import events
from stages.console import Display, counted, interval_words, number, plain_frames, plain_time, window_words
from stages.progress import Show

_SHOWN_CLASSES = 30
_FEW_UNITS = 10  # resampling fewer says little about others
METRIC_NAMES = {
    "accuracy": "accuracy",
    "frame_accuracy": "frame accuracy",
    "mAP": "mAP",
    "mae": "mean absolute error",
}
_KINDS = {"class": "one class", "multilabel": "any of the labels", "value": "a number"}


def show_task(
    display: Display,
    banks: Sequence[Bank],
    material: Material,
    targets: Targets,
    how: str,
    table: Sequence[str],
    notes: Sequence[str],
) -> None:
    """The banks, what is to be predicted, the split, and what is worth knowing before it begins."""
    for bank in banks:
        recipe = bank.config["recipe"]
        shape = " × ".join(map(str, recipe["feature_shape"]))
        rows = f"; {window_words(recipe)}" if not plain_frames(recipe) else ""
        display.field("Bank", f"{bank.path}: {counted(len(bank), 'video')}, {recipe['backbone']} ({shape}){rows}")
    lengths = material.sequences[0].lengths
    per = "frame" if targets.per_frame else "video"
    labels = f", {counted(len(targets.labels), 'class', 'classes')}" if targets.labels else ""
    display.field("Target", f"{_KINDS[targets.kind]} per {per}{labels}")
    low, high = int(lengths.min()), int(lengths.max())
    each = f"{low:,} each" if low == high else f"{low:,} to {high:,} a video"
    display.field("Videos", f"{len(lengths):,} with a target · {int(lengths.sum()):,} rows, {each}")
    for note in (*targets.notes, *notes):
        display.field("Note", note)
    display.field("Split", how)
    for line in table[: _SHOWN_CLASSES + 1]:
        display.line(f"  {line}")
    if len(table) > _SHOWN_CLASSES + 1:
        display.line(f"  … and {len(table) - _SHOWN_CLASSES - 1} more classes")


def head_words(head: HeadConfig, pca: int | None = None) -> str:
    """ "centred, changes over 4, PCA 64, bidirectional GRU 128 × 2, attention pool, MLP 128"."""
    parts = [f"maps by {head.spatial}"] if head.spatial else []
    parts += ["centred"] if head.centre else []
    parts += [f"differences over {', '.join(map(str, head.deltas))}"] if head.deltas else []
    parts += [f"changes over {', '.join(map(str, head.changes))}"] if head.changes else []
    parts += [f"PCA {pca}"] if pca else []
    parts += [f"projection {head.projection}"] if head.projection else []
    if head.cell == "none":
        parts += ["no recurrence"]
    else:
        parts += ["dropout masks of a sequence"] if head.variational_dropout else []
        layers = f" × {head.layers} layers" if head.layers > 1 else ""
        parts += [f"{'bidirectional ' if head.bidirectional else ''}{head.cell.upper()} {head.hidden}{layers}"]
    parts += [f"MLP {', '.join(map(str, head.step_mlp))} at every step"] if head.step_mlp else []
    parts += ["every step"] if head.steps else [f"{head.pool} pool" if head.pool != "last" else "last state"]
    parts += ["batch norm"] if head.norm == "batch" else []
    parts += [f"MLP {', '.join(map(str, head.mlp))}"] if head.mlp else []
    return ", ".join(parts)


def selection_words(selection: Selection) -> str:
    """Which rows are seen, as ", rows by --window 32, the mean of 5 draws in testing"; "" for all."""
    if selection.rule == "all":
        return ""
    name = "window" if selection.rule == "crop" else selection.rule
    draws = f", the mean of {selection.test_crops} draws in testing" if selection.test_crops > 1 else ""
    return f", rows by --{name} {selection.amount:g}{draws}"


def show_plan(display: Display, plan: Plan, material: Material, *, resumed: bool) -> None:
    """The head, and how it is trained."""
    fit = plan.fit
    outputs = material.targets.outputs
    parameters = sum(_parameters(plan, sequences.feature_shape, outputs) for sequences in material.sequences)
    heads = f"{len(material.sequences)} heads, " if len(material.sequences) > 1 else ""
    display.field("Head", f"{heads}{head_words(plan.head, plan.pca)} · {parameters:,} parameters")
    stop = f", stops after {fit.patience} without improvement" if fit.patience else ""
    chosen = plan.selection
    frames = selection_words(chosen)
    display.field(
        "Training",
        f"{counted(fit.epochs, 'epoch')}{stop}, batches of {fit.batch_size}, {fit.optimizer} {fit.learning_rate:g}, "
        f"{fit.schedule} schedule{frames}, on {plan.device.type}",
    )
    if resumed:
        display.field("Resumed", "what an earlier call of this command finished is not done again")


def _parameters(plan: Plan, feature_shape: Sequence[int], outputs: int) -> int:
    """How many numbers a head learns; counted on a device without memory."""
    with torch.device("meta"):
        channels = torch.zeros(feature_shape[0]) if len(feature_shape) == 3 else None
        width = plan.head.inputs.width(feature_shape[0])
        components = None if plan.pca is None else torch.zeros(width, min(plan.pca, width))
        prepared = Standardisation(torch.zeros(width), torch.ones(width), components, channels, channels)
        head = Head(suited(plan.head, feature_shape), feature_shape, outputs, prepared)
    return sum(parameter.numel() for parameter in head.parameters())


class Watch:
    """How far training is, over all seeds and folds."""

    def __init__(self, show: Show, trainings: int, epochs: int) -> None:
        self._show, self._trainings, self._epochs, self._done = show, trainings, epochs, -1
        self._what, self._fields = "", dict[str, Any]()

    def begin(self, fold: str, seed: int) -> None:
        """The next fold begins."""
        self._done += 1
        # a single split is one fold called "test"; "all" comes last, and is the head that is kept
        which = {"test": [], "all": ["head that is kept, on all videos"]}.get(fold, [f"fold {fold}"])
        self._what = ", ".join([*which, *([f"seed {seed}"] if seed else [])]) or "training"
        self._fields = {"fold": fold, "seed": seed}
        events.tell("training", **self._fields, number=self._done + 1, of=self._trainings, epochs=self._epochs)
        self._show(self._done * self._epochs, self._what, **self._fields)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch has ended."""
        losses = f"loss {row['train_loss']:.3f}"
        if "validation_loss" in row:
            losses += f", validation {row['validation_loss']:.3f}"
        events.tell("epoch", **self._fields, **row)
        done = self._done * self._epochs + int(row["epoch"])
        self._show(done, f"{self._what}, epoch {row['epoch']}, {losses}", **self._fields)


@contextmanager
def watch_training(display: Display, trainings: int, epochs: int) -> Iterator[Watch]:
    """Show progress while something trains `trainings` times for at most `epochs` epochs."""
    with display.steps("training", trainings * epochs) as show:
        yield Watch(show, trainings, epochs)


@contextmanager
def watch_baselines(display: Display, fits: int) -> Iterator[Callable[[], None]]:
    """Show progress while baselines are fitted."""
    with display.steps("baselines", fits) as show:
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            show(done)

        yield advance


def show_results(display: Display, out: Path, results: Mapping[str, Any], what: str, following: str) -> None:
    """The headline beside the baselines, the difference and what it means, and where everything lies.

    `what` was trained, in a word; `following` says what can be done with it.
    """
    name = results["headline"]
    told = ("headline", "score", "interval", "best_baseline", "difference", "difference_interval", "metrics", "cost")
    events.tell("result", run=str(out), **{key: results[key] for key in told})
    display.line()
    unit, units = results["resampled"], results["units"]
    few = ", too few to lean on it" if units < _FEW_UNITS else ""
    display.line(
        f"{METRIC_NAMES[name].capitalize()} on held-out videos (95 % interval: bootstrap of {units} {unit}{few})"
    )
    rows = [(f"this {what}", results["score"], results["interval"])]
    rows += [(known, said["score"], said["interval"]) for known, said in results["baselines"].items()]
    width = max(len(row[0]) for row in rows)
    for known, value, interval in rows:
        display.line(f"  {known:<{width}}  {number(value)}  {interval_words(interval)}".rstrip())
    if results["score"] == 1 and name in ("accuracy", "frame_accuracy"):
        display.line(f"  (no error among {units} {unit} still allows a rate of up to {3 / units:.0%}: rule of three)")
    if results["seeds_sd"] is not None:
        values = ", ".join(number(value) for value in results["seeds"])
        display.line(f"  ({len(results['seeds'])} seeds: {values}; sd {number(results['seeds_sd'])})")
    display.line()
    display.field("Difference", verdict(results, what))
    others = {key: value for key, value in results["metrics"].items() if key != name and value is not None}
    display.field("Also", " · ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in others.items()))
    if len(results["folds"]) > 1:
        display.field("Folds", ", ".join(number(fold[name]) for fold in results["folds"]))
    cost = results["cost"]
    display.field("Took", f"{plain_time(cost['seconds'])}, {plain_time(cost['training_seconds'])} of it training")
    display.field("Run", f"{out}: predictions.csv, metrics.csv, curves.png, model.safetensors, …")
    display.field("Next", following)


def verdict(results: Mapping[str, Any], what: str) -> str:
    """The paired difference to the best baseline, in words that do not promise more than the interval does."""
    difference, interval = results["difference"], results["difference_interval"]
    if difference is None:
        return "not defined on these videos"
    how_sure = "" if interval is None else f" {interval_words(interval)}"
    said = f"{difference:+.3f}{how_sure} against {results['best_baseline']}"
    lower = "" if higher_is_better(results["headline"]) else " (positive: smaller error)"
    if interval is None:
        return f"{said}{lower}: too few held out for an interval; --folds tests every video"
    if interval[0] > 0:
        return f"{said}{lower}: the {what} adds something"
    if interval[1] < 0:
        scenery = what == "head" and results["best_baseline"].endswith(" on mean")
        advice = " What it knows is scenery: try --no-centre." if scenery else ""
        return f"{said}{lower}: the baseline is better; the {what} adds nothing here.{advice}"
    return f"{said}{lower}: the interval includes 0, so it is not shown that the {what} adds anything"
