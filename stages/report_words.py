"""What a report says in words, around the numbers of `pipeline.report_data`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import report_curves, report_data
from pipeline.bank import Bank
from pipeline.bundles import load_bundle
from pipeline.errors import UserError
from pipeline.imported import is_imported
from pipeline.metrics import higher_is_better
from pipeline.report_data import KINDS, Finished
from pipeline.results import Task
from pipeline.writing import plain
from stages.comparison import in_words
from stages.console import (
    counted,
    import_words,
    input_words,
    interval_words,
    number,
    plain_time,
    sampling_words,
    window_words,
)
from stages.training_words import METRIC_NAMES, verdict

_COSTS = {
    "seconds": "The run as a whole",
    "training_seconds": "Training all folds",
    "frames_embedded": "Frames through the frozen network",
    "frames_trained": "Frames × epochs through what trained",
    "trained_share": "Share of the network's computation that trained",
}
FILTERS: dict[str, Callable[..., str]] = {
    "number": number,
    "interval": interval_words,
    "percent": lambda value: f"{value:.2f}%",
    "share": lambda value: f"{value:.0%}",
    "whole": lambda value: f"{value:,}",
    "signed": lambda value: "n/a" if value is None else f"{value:+.3f}",
    "capitalize_first": lambda text: text[:1].upper() + text[1:],
}


def report(
    finished: Finished, cards: list[dict[str, Any]], gaps: Sequence[str], banks: Sequence[Bank], *, most: int
) -> dict[str, Any]:
    """All that the report's template names, but for the cells of the confusion matrix; `most` cards there could be."""
    task, results = finished.task, plain(finished.results)
    what = "model" if "finetune" in finished.asked else "head"
    title, said = _videos_words(task, cards, folds=len(results["folds"]), every=len(cards) < most)
    return {
        "title": f"{_name(finished.folder)} – framebank report",
        "name": _name(finished.folder),
        "task_words": task_words(task),
        "trained_words": "backbone and head trained together" if what == "model" else "head on a frozen backbone",
        "metric_words": METRIC_NAMES[results["headline"]],
        "up": higher_is_better(results["headline"]),
        "results": results,
        "verdict": verdict(results, what),
        "bars_data": report_data.scores(results, f"this {what}"),
        "charts": {name: spoken_chart(chart) for name, chart in report_data.charts(finished).items()},
        "classes": plain(report_data.classes(task, finished.held, results["per_class"])),
        "cards": [each | {"words": card_words(task, each), "chart": spoken_chart(each["chart"])} for each in cards],
        "videos_title": title,
        "videos_words": said,
        "gaps": list(gaps),
        "key": list(task.labels) if task.per_frame and task.labels else [],
        "labels": list(task.labels),
        "lane_words": lambda each, track, lane: lane_words(task, each, track, lane),
        "cell_words": cell_words,
        "learning_words": learning_words(finished),
        "split": plain(report_data.split_table(finished)),
        "cost": _cost(results["cost"], banks),
        "made": _made(finished),
        "provenance": report_data.provenance(finished),
    }


def _name(folder: Path) -> str:
    return folder.name or folder.resolve().name


def task_words(task: Task) -> str:
    """ "one class per video, 2 classes"."""
    labels = f", {counted(len(task.labels), 'class', 'classes')}" if task.labels else ""
    return f"{KINDS[task.kind].capitalize()} per {'frame' if task.per_frame else 'video'}{labels}"


def _videos_words(task: Task, cards: Sequence[Mapping[str, Any]], *, folds: int, every: bool) -> tuple[str, str]:
    """What the section of videos is called, and what it shows: of a run of so many folds, and whether every mistake."""
    steps = any(card["every_step"] for card in cards)
    over_time = course_words(every_step=steps)
    asked = "Each video was asked of the fold that had held it out." if folds > 1 else ""
    if task.per_frame:
        return "Over time", (
            f"Held-out videos, those with the {'largest error' if task.kind == 'value' else 'most wrong frames'} first "
            f"({len(cards)} shown): what is true and what was said, frame by frame, in seconds from the first frame."
        )
    if task.kind == "value":
        return "Largest errors", f"The {len(cards)} held-out videos that are furthest off. {over_time} {asked}".strip()
    if cards and cards[0]["wrong"]:
        which = f"The {counted(len(cards), 'mistake')} of which the head was surest"
        if every:
            few = {1: "The only mistake", 2: "Both mistakes, the surer first"}
            which = few.get(len(cards), f"All {len(cards)} mistakes, the surest first")
        return (
            "Surest mistakes",
            f"{which}. {over_time} {asked}".strip(),
        )
    return (
        "Nearest to a mistake",
        f"No held-out video was got wrong. These are nearest to it. {over_time} {asked}".strip(),
    )


def course_words(*, every_step: bool) -> str:
    """What the lines over the time of a video say."""
    if every_step:
        return (
            "The lines are the head's output at every step; one that reads in both directions knows there what comes "
            "later."
        )
    return (
        "The lines say what the head would have predicted had the video ended there: it was given longer and longer "
        "beginnings of it, and the end is the prediction itself."
    )


def card_words(task: Task, card: Mapping[str, Any]) -> str:
    """ "fight, said to be noFight with 0.931"."""
    score = number(card["score"])
    if task.per_frame:
        return f"mean error {score}" if task.kind == "value" else f"{card['score']:.1%} of the frames wrong"
    if task.kind == "value":
        return f"true {card['true']}, predicted {card['predicted']}: off by {score}"
    if task.kind == "multilabel":
        surest = "surest mistake" if card["wrong"] else "least sure of"
        return f"true: {card['true']} · predicted: {card['predicted']} · {surest}: {card['label']}, {score}"
    if card["wrong"]:
        return f"is {card['true']}, predicted {card['predicted']} with {score}"
    return f"is {card['true']} and predicted so; the next class has {score}"


def cell_words(cells: Mapping[str, Any], row: str, column: str, count: int, share: float) -> str:
    """ "12 videos of fight predicted as noFight (20 % of fight)"."""
    what = counted(count, cells["unit"])
    if not cells["several"]:
        return f"{what} of {row} predicted as {column} ({share:.0%} of {row})"
    return f"{what}: {row} {column}"


def absent(finished: Finished, cells: Mapping[str, Any] | None) -> list[str]:
    """A line on classes that the held-out part lacks."""
    if cells is None:
        return []
    none = [label for label, total in zip(cells["rows"], cells["totals"], strict=True) if not total]
    return [f"No held-out {cells['unit']} is of {', '.join(none)}."] if none else []


def lane_words(task: Task, card: Mapping[str, Any], track: Mapping[str, Any], lane: str) -> str:
    """A bar in words: "true: red 0.0 to 1.2 s, blue 1.2 to 3.4 s"."""
    length, unit = card["timeline"]["length"], "s" if card["timeline"]["unit"] == "Seconds" else "frames"
    bars = track["bars"][lane]
    name = {"target": "true", "predicted": "predicted", "differs": "differs"}[lane]
    parts = [
        ("" if lane == "differs" or track["name"] else f"{task.labels[label]} ")
        + f"{start * length:.1f} to {end * length:.1f} {unit}"
        for label, start, end in bars[:40]
    ]
    more = f", and {len(bars) - 40} more" if len(bars) > 40 else ""
    return f"{track['name'] + ', ' if track['name'] else ''}{name}: {', '.join(parts) or 'nowhere'}{more}"


def learning_words(finished: Finished) -> str:
    """What the learning curves show."""
    trainings = finished.epochs.groupby(["seed", "fold", "member"]).ngroups
    if trainings == 1:
        return "One training. The dot marks the epoch that was kept."
    final = " (the folds, and the final head on all videos)" if len(finished.folds) > 1 else ""
    return f"{trainings} trainings{final}: thin lines are one each, bold ones their mean. Dots mark the epochs kept."


def spoken_chart(chart: Any) -> Any:
    """A chart with its alternative text, and with its numbers as a table where they are few."""
    if not isinstance(chart, dict) or "alt" in chart:
        return chart
    bold = [each for each in chart["series"] if not each.get("thin") and not each.get("muted") and each["data"]]
    axes = f"{chart['y']['name']} over {chart['x']['name'].lower()}"
    ends = []
    for each in bold:
        (x0, y0), (x1, y1) = each["data"][0], each["data"][-1]
        if not each.get("scatter"):
            ends.append(f"{each['name']} from {_short(y0)} at {_short(x0)} to {_short(y1)} at {_short(x1)}")
        else:
            ends.append(f"{each['name']}: {counted(len(each['data']), 'point')}")
    made = chart | {"alt": f"{axes}. {'; '.join(ends)}."}
    if "bins" in chart:
        made["table"] = {
            "head": ["Mean probability", "Share that came true", "Number"],
            "rows": [[number(b["confidence"]), number(b["right"]), f"{b['count']:,}"] for b in chart["bins"]],
        }
    elif chart["x"].get("whole"):
        lines = [each for each in bold if not each.get("scatter")]
        values = {each["name"]: dict(map(tuple, each["data"])) for each in lines}
        steps = sorted({x for line in values.values() for x in line})
        rows = [[f"{x:.0f}", *(_short(line.get(x)) for line in values.values())] for x in steps]
        made["table"] = {"head": [chart["x"]["name"], *values], "rows": rows}
    return made


def _short(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"


def _cost(cost: Mapping[str, Any], banks: Sequence[Bank]) -> list[tuple[str, str]]:
    pairs = []
    for name, value in cost.items():
        if name.endswith("seconds"):
            said = plain_time(value)
        else:
            said = f"{value:.0%}" if name.endswith("share") else f"{value:,}" if isinstance(value, int) else str(value)
        pairs.append((_COSTS.get(name, name.replace("_", " ")), said))
    for bank in banks:
        compute = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in bank.config.get("compute", {}).items()
        )
        pairs.append(
            (f"Extraction of {bank.path.name}", f"{compute or 'not known'}; the bank does not say how long it took")
        )
    return pairs


def _made(finished: Finished) -> list[tuple[str, str]]:
    """What made the embeddings, bank by bank."""
    try:
        bundle = load_bundle(finished.folder)
    except UserError as error:
        return [("Model", str(error))]
    pairs = [("Run", str(finished.folder.resolve()))]
    made = [bank["config"] for member in bundle.members for bank in member.banks]
    for given, config in zip(finished.config["data"]["banks"], made, strict=False):
        pairs.append(("Bank", given["path"]))
        pairs += made_by(config)
    return pairs


def made_by(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What made the embeddings of a bank: names and values.

    Args:
        config: the bank's.
    """
    recipe = config["recipe"]
    shape = "×".join(map(str, recipe["feature_shape"]))
    if is_imported(recipe):
        from_where = ("Features", f"{shape} a row, {import_words(recipe)}")
        return [from_where, ("From", config["data"]), ("Stored", f"as {recipe['store']}")]
    return [
        ("Network", f"{recipe['backbone']}, layer {recipe['layer']} ({shape})"),
        ("Weights", f"{config.get('weights', '')}, SHA-256 {recipe['weights_sha256'][:12]}…"),
        ("Input", input_words(recipe["preprocessing"])),
        ("Frames", sampling_words(recipe["sampling"])),
        ("A row is of", window_words(recipe)),
        ("Precision", f"computed in {recipe['precision']}, stored as {recipe['store']}"),
    ]


def comparison(finished: Sequence[Finished], rows: Sequence[dict[str, Any]], warnings: Sequence[str]) -> dict[str, Any]:
    """All that the template of the comparison names; runs in the order of `rows`."""
    names = _names([each.folder for each in finished])
    titles = {
        "task": "Predicts",
        "split": "Split",
        "bank": "Bank",
        "backbone": "Backbone",
        "head": "Head",
        "frames": "Frames",
        "took": "Took",
    }
    said = [in_words(row) for row in rows]
    shared = {key for key in titles if len({each[key] for each in said}) == 1}
    columns = [key for key in titles if key not in shared]
    charts: dict[str, Any] = {}
    shown = []
    for number_, (each, row, spoken, name) in enumerate(zip(finished, rows, said, names, strict=True)):
        learning = report_curves.learning(each.epochs, each.monitor)
        mine = {f"learning-{number_}-{place}": spoken_chart(chart) for place, chart in enumerate(learning)}
        charts |= mine
        low, high = row["difference_low"], row["difference_high"]
        shown.append(
            {
                "name": name,
                "plain": row,
                "cells": [spoken[key] for key in columns],
                "difference_interval": None if low is None else (low, high),
                "charts": list(mine),
            }
        )
    return {
        "title": f"{len(rows)} runs compared – framebank report",
        "rows": shown,
        "warnings": list(warnings),
        "shared_words": " · ".join(said[0][key] for key in titles if key in shared and said[0][key]),
        "columns": [titles[key] for key in columns],
        "groups": _groups(rows, names),
        "by_class": _by_class(finished),
        "charts": charts,
    }


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or their whole paths where two are called alike."""
    names = [_name(folder) for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _groups(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Bars of the runs, metric by metric."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row, name in zip(rows, names, strict=True):
        interval = None if row["score_low"] is None else [row["score_low"], row["score_high"]]
        groups.setdefault(row["metric"], []).append(
            {"name": name, "score": row["score"], "interval": interval, "own": True}
        )
    return [
        (
            FILTERS["capitalize_first"](METRIC_NAMES[metric]),
            {"rows": bars, "end": report_data.axis_end(metric, bars), "up": higher_is_better(metric)},
        )
        for metric, bars in groups.items()
    ]


def _by_class(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """F1 of every class and run, where all runs know the same classes; else nothing."""
    tables = [{row["label"]: row for row in each.results["per_class"]} for each in finished]
    if not tables[0] or any(list(table) != list(tables[0]) for table in tables):
        return []
    return [
        {"label": label, "support": row["support"], "f1": [table[label]["f1"] for table in tables]}
        for label, row in tables[0].items()
    ]
