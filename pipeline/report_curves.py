"""The curves of a report: ROC, precision over recall, reliability, learning curves, predicted over true values.

Each is a chart as `page_assets/charts.js` draws it: a dict with axes `x` and `y`, and `series` of points. Where a task
has no such curve, or the held-out part gives none, there is a sentence that says so instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from pipeline.metrics import reliability
from pipeline.results import HeldOut, Task, rows_of

MOST_CURVES = 8  # drawn in one chart: the classes with most rows; the table has the areas of all
_POINTS = 200  # of a curve at most
_SCATTER = 2000  # points at most


def areas(task: Task, held: HeldOut) -> dict[str, dict[str, float | None]]:
    """Label -> {"auc", "ap"}: area under ROC and average precision of one against the rest; None where not defined."""
    found: dict[str, dict[str, float | None]] = {}
    for label, positive, probability in _one_against_rest(task, held):
        mixed = 0 < positive.sum() < len(positive)
        found[label] = {
            "auc": float(sk.roc_auc_score(positive, probability)) if mixed else None,
            "ap": float(sk.average_precision_score(positive, probability)) if positive.any() else None,
        }
    return found


def roc(task: Task, held: HeldOut) -> dict[str, Any] | str:
    """The rate of true positives over that of false ones."""
    if task.kind == "value":
        return "Does not apply: numbers are predicted, not classes."
    drawn = _most_frequent(task, held)
    series: list[dict[str, Any]] = []
    for label, positive, probability in drawn:
        if 0 < positive.sum() < len(positive):
            x, y, _ = sk.roc_curve(positive, probability)
            series.append({"name": label, "data": _thinned(x, y)})
    if not series:
        return "Not defined: the held-out part has rows of one class only."
    series.append({"name": "by chance", "data": [[0, 0], [1, 1]], "muted": True})
    return _unit_chart("False positive rate", "True positive rate", series) | {"left_out": _left_out(task, drawn)}


def precision_recall(task: Task, held: HeldOut) -> dict[str, Any] | str:
    """Precision over recall."""
    if task.kind == "value":
        return "Does not apply: numbers are predicted, not classes."
    drawn = _most_frequent(task, held)
    series: list[dict[str, Any]] = []
    for label, positive, probability in drawn:
        if positive.any():
            precision, recall, _ = sk.precision_recall_curve(positive, probability, drop_intermediate=True)
            series.append({"name": label, "data": _thinned(recall, precision), "step": True})
    if not series:
        return "Not defined: no held-out row has a label."
    return _unit_chart("Recall", "Precision", series) | {"left_out": _left_out(task, drawn)}


def calibration(task: Task, held: HeldOut) -> dict[str, Any] | str:
    """How often predictions come true, over how sure they were. `bins` has the numbers."""
    if task.kind == "value":
        return "Does not apply: the head gives no probabilities."
    target, scores, decided = rows_of(task, held)
    if task.kind == "class":
        right, confidence, y = target == decided, scores[np.arange(len(scores)), decided], "Share right"
    else:
        right, confidence, y = target.ravel() > 0, scores.ravel(), "Share that has the label"
    bins = reliability(right, confidence)
    filled = np.flatnonzero(bins.counts)
    points = [[bins.confidence[b], bins.right[b]] for b in filled]
    series = [
        {"name": "perfectly calibrated", "data": [[0, 0], [1, 1]], "muted": True},
        {"name": "held out", "data": points, "markers": True, "colour": 0},
    ]
    rows = [
        {"count": int(bins.counts[b]), "confidence": float(bins.confidence[b]), "right": float(bins.right[b])}
        for b in filled
    ]
    return _unit_chart("Mean probability", y, series) | {"bins": rows}


def scatter(task: Task, held: HeldOut) -> dict[str, Any] | str:
    """Predicted over true values."""
    if task.kind != "value":
        return "Does not apply: classes are predicted, not numbers."
    target, _, decided = rows_of(task, held)
    keep = np.linspace(0, len(target) - 1, min(len(target), _SCATTER)).astype(np.int64)
    low, high = float(min(target.min(), decided.min())), float(max(target.max(), decided.max()))
    return {
        "x": {"name": "True"},
        "y": {"name": "Predicted"},
        "square": True,
        "series": [
            {"name": "equal", "data": [[low, low], [high, high]], "muted": True},
            {
                "name": "held out",
                "data": np.stack([target, decided], axis=1)[keep].tolist(),
                "scatter": True,
                "colour": 0,
            },
        ],
        "shown": len(keep),
        "rows": len(target),
    }


def learning(epochs: pd.DataFrame, monitor: str) -> list[dict[str, Any]]:
    """Charts of the losses, and of the monitored metric where it is another: a thin line per training, and their mean.

    Args:
        epochs: metrics.csv of a run.
        monitor: the metric that chose the epoch.
    """
    trainings = [rows for _, rows in epochs.groupby(["seed", "fold", "member"], sort=False)]
    metric = f"validation_{monitor}"
    panels = [("Loss", [("train_loss", "training", 0), ("validation_loss", "validation", 1)])]
    if monitor != "loss" and metric in epochs.columns:
        panels.append((f"Validation {monitor.replace('_', ' ')}", [(metric, "validation", 1)]))
    charts = []
    for title, lines in panels:
        series: list[dict[str, Any]] = []
        for column, name, colour in lines:
            if column in epochs.columns and epochs[column].notna().any():
                series += _trainings(trainings, column, name, colour)
        kept = [rows[rows["kept"] == 1].iloc[0] for rows in trainings if (rows["kept"] == 1).any()]
        marked = lines[-1][0] if lines[-1][0] in epochs.columns and epochs[lines[-1][0]].notna().any() else lines[0][0]
        points = [[int(row["epoch"]), float(row[marked])] for row in kept if np.isfinite(row[marked])]
        series.append({"name": "epoch kept", "data": points, "scatter": True, "hollow": True})
        y = {"name": title, **({} if title == "Loss" else {"fit": True})}
        charts.append({"title": title, "x": {"name": "Epoch", "whole": True}, "y": y, "series": series})
    return charts


def _trainings(trainings: Sequence[pd.DataFrame], column: str, name: str, colour: int) -> list[dict[str, Any]]:
    lines = [
        {"name": name, "data": rows[["epoch", column]].dropna().to_numpy().tolist(), "colour": colour}
        for rows in trainings
    ]
    dashed = {"dash": True} if colour else {}
    if len(lines) == 1:
        return [line | dashed for line in lines]
    table = pd.DataFrame({place: rows.set_index("epoch")[column] for place, rows in enumerate(trainings)}).sort_index()
    mean = table.mean(axis=1)[table.notna().sum(axis=1) * 2 >= len(trainings)]
    bold = {"name": f"{name}, mean", "data": [[e, v] for e, v in mean.items()], "colour": colour, **dashed}
    return [*(line | {"thin": True} for line in lines), bold]


def _one_against_rest(task: Task, held: HeldOut) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Label, (n,) bool whether a row is of it, (n,) its probability."""
    if task.kind == "value":
        return []
    target, scores, _ = rows_of(task, held)
    every = range(len(task.labels))
    return [(task.labels[k], target == k if task.kind == "class" else target[:, k] > 0, scores[:, k]) for k in every]


def _most_frequent(task: Task, held: HeldOut) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The same of the labels with most rows, in the labels' order. Of two classes one stands for both."""
    every = _one_against_rest(task, held)
    if task.kind == "class" and len(every) == 2:
        return every[1:]  # as auc is reckoned
    often = sorted(range(len(every)), key=lambda k: (-int(every[k][1].sum()), k))[:MOST_CURVES]
    return [every[k] for k in sorted(often)]


def _left_out(task: Task, drawn: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> list[str]:
    """Why the chart does not have a curve for every class, in sentences."""
    said = []
    if len(task.labels) > MOST_CURVES:
        said.append(f"The {MOST_CURVES} of {len(task.labels)} classes with most rows are drawn.")
    elif task.kind == "class" and len(task.labels) == 2:
        said.append(f"Of two classes one stands for both: {drawn[0][0]}.")
    none = [label for label, positive, _ in drawn if not positive.any()]
    if none:
        said.append(f"No held-out row is of {', '.join(none)}.")
    return said


def _thinned(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).round().astype(np.int64))
    return np.round(np.stack([x, y], axis=1)[keep], 4).tolist()


def _unit_chart(x: str, y: str, series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "x": {"name": x, "min": 0, "max": 1},
        "y": {"name": y, "min": 0, "max": 1},
        "square": True,
        "series": list(series),
    }
