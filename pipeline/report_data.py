"""A finished run -> what its report says, as plain data: scores, baselines, curves, classes, folds, cost, provenance.

Everything comes from what the run wrote down; nothing is scored anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import recorded, report_curves, report_errors
from pipeline.errors import UserError
from pipeline.metrics import higher_is_better
from pipeline.recorded import Recorded
from pipeline.results import HeldOut, Task
from pipeline.splits import PARTS

KINDS = {"class": "one class", "multilabel": "any of the labels", "value": "a number"}


@dataclass(frozen=True)
class Finished(Recorded):
    """A finished run with metrics.csv and its held-out predictions."""

    epochs: pd.DataFrame
    held: HeldOut

    @property
    def monitor(self) -> str:
        """The metric that chose the epoch."""
        return self.asked["fit"]["monitor"]


def read(folder: Path) -> Finished:
    """A finished run. UserError if there is none, or a table of it is damaged."""
    run = recorded.read_run(folder)
    try:
        epochs = pd.read_csv(folder / "metrics.csv", dtype={"fold": str})
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise UserError(f"{folder / 'metrics.csv'} cannot be read ({said}); restore it, or train again.") from None
    return Finished(**vars(run), epochs=epochs, held=recorded.held_out(folder, run.task))


def scores(results: Mapping[str, Any], own: str) -> dict[str, Any]:
    """The headline beside the baselines, as bars: rows of name, score, low, high; and the end of their common axis.

    Args:
        results: results.json.
        own: what the run's own row is called.
    """
    said = [{"name": own, "score": results["score"], "interval": results["interval"], "own": True}]
    said += [{"name": name, **each, "own": False} for name, each in results["baselines"].items()]
    return {"rows": said, "end": axis_end(results["headline"], said)}


def axis_end(metric: str, rows: Sequence[Mapping[str, Any]]) -> float:
    """Where the axis of bars ends: 1 for shares, a little beyond the largest for errors."""
    if higher_is_better(metric):
        return 1.0
    largest = max((max(row["score"] or 0, *(row["interval"] or [0])) for row in rows), default=0)
    return 1.05 * largest or 1.0


def classes(task: Task, held: HeldOut, per_class: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of results.json's table of classes, with the areas under their curves beside them."""
    areas = report_curves.areas(task, held)
    return [{**row, **areas[row["label"]]} for row in per_class]


def split_table(finished: Finished) -> dict[str, Any]:
    """How many videos each fold trains, validates and tests on, how it scored, and of which classes it tests how many.

    Only held-out videos have their target in the run's folder, so the classes are those of the test parts.
    """
    task, held, headline = finished.task, finished.held, finished.results["headline"]
    by_fold = {fold["name"]: fold for fold in finished.results["folds"]}
    per_video = task.kind == "class" and not task.per_frame
    rows = []
    for fold in finished.folds:
        tested = held.of_fold(fold.name)
        codes = np.array(tested.targets, np.int64) if per_video else np.zeros(0, np.int64)
        counts = np.bincount(codes, minlength=len(task.labels)).tolist() if per_video else []
        rows.append(
            {
                "name": fold.name,
                **{part: len(getattr(fold, part)) for part in PARTS},
                "score": by_fold[fold.name].get(headline) if fold.name in by_fold else None,
                "classes": counts,
            }
        )
    return {"how": finished.results["split"], "rows": rows, "labels": list(task.labels) if per_video else []}


def provenance(finished: Finished) -> list[tuple[str, list[tuple[str, str]]]]:
    """All settings and versions, as sections of names and values; nested names are joined by dots."""
    asked = _flat(finished.asked)
    data = [
        (f"bank {number + 1}: {name}", value)
        for number, bank in enumerate(finished.config["data"]["banks"])
        for name, value in _flat(bank)
    ]
    data += [(f"file of {name}: SHA-256", value) for name, value in _flat(finished.config["data"]["files"])]
    return [("Settings", asked), ("Data", data), ("Versions", _flat(finished.config["versions"]))]


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, each in value.items() for pair in _flat(each, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        return [(name, ", ".join(map(str, value)) or "none")]
    return [(name, "none" if value is None else str(value))]


def charts(finished: Finished) -> dict[str, Any]:
    """Name -> chart, or a sentence that says why there is none."""
    task, held = finished.task, finished.held
    learning = report_curves.learning(finished.epochs, finished.monitor)
    return {
        **{f"learning-{number}": chart for number, chart in enumerate(learning)},
        "calibration": report_curves.calibration(task, held),
        "roc": report_curves.roc(task, held),
        "pr": report_curves.precision_recall(task, held),
        "scatter": report_curves.scatter(task, held),
    }


def listed(finished: Finished) -> dict[str, Any]:
    """What the confusion matrix lists when a cell is clicked: its cells, and id and fold of each video by its place."""
    cells = report_errors.cells(finished.task, finished.held)
    if cells is None:
        return {"cells": None, "videos": {}}
    places = {video[0] for videos in cells["listed"].values() for video in videos}
    held = finished.held
    return {"cells": cells, "videos": {place: [held.ids[place], held.folds[place]] for place in sorted(places)}}
