"""Runs side by side, as plain values and in words, and why they cannot be compared where they cannot."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import runs, splits
from pipeline.errors import UserError
from pipeline.heads import HeadConfig
from pipeline.metrics import higher_is_better
from stages.console import interval_words, number, plain_time
from stages.training_words import head_words


def side_by_side(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """A row of plain values per run, the best first where they are comparable; and why they are not, in sentences.

    Raises:
        UserError: a folder holds no finished run.
    """
    rows = [_row(folder) for folder in folders]
    warnings = _warnings(folders, rows)
    if not warnings:
        up = higher_is_better(rows[0]["metric"])
        rows.sort(key=lambda row: (row["score"] is None, -(row["score"] or 0) if up else row["score"] or 0))
    return rows, warnings


def _row(folder: Path) -> dict[str, Any]:
    """One run as plain values."""
    config, results = runs.read_config(folder), runs.read_results(folder)
    asked, task = config["config"], results["task"]
    try:
        head = replace(HeadConfig(**asked["head"]), steps=task["per_frame"] or asked["supervise"] != "pooled")
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} is of another version ({error}); train the run again.") from None
    low, high = results["interval"] or (None, None)
    difference_low, difference_high = results["difference_interval"] or (None, None)
    trained = asked.get("finetune")
    kinds = {"class": f"{len(task['labels'])} classes", "multilabel": f"{len(task['labels'])} labels", "value": "value"}
    return {
        "run": str(folder),
        "bank": " + ".join(Path(bank["path"]).name for bank in config["data"]["banks"]) + _resampled(asked),
        "task": f"{kinds[task['kind']]} per {'frame' if task['per_frame'] else 'video'}",
        "split": results["split"],
        "head": head_words(head, asked["pca"]) + (f", fused by {asked['fuse']}" if asked["fuse"] != "concat" else ""),
        "backbone": "frozen" if trained is None else _trained(trained["unfreeze"]),
        "metric": results["headline"],
        "score": results["score"],
        "score_low": low,
        "score_high": high,
        "seeds": len(results["seeds"]),
        "seeds_sd": results["seeds_sd"],
        "best_baseline": results["best_baseline"],
        "baseline_score": results["baselines"][results["best_baseline"]]["score"],
        "difference": results["difference"],
        "difference_low": difference_low,
        "difference_high": difference_high,
        "frames_embedded": results["cost"].get("frames_embedded"),
        "frames_trained": results["cost"].get("frames_trained"),
        "seconds": results["cost"]["seconds"],
    }


def _resampled(asked: dict[str, Any]) -> str:
    """How the banks after the first were read at its times."""
    return f", {asked['resampling']['method']} in time" if "resampling" in asked else ""


def _trained(unfreeze: str) -> str:
    """What of the backbone was trained, from the option that said so."""
    if unfreeze.isdecimal():
        return "last block trained" if int(unfreeze) == 1 else f"last {unfreeze} blocks trained"
    return f"{unfreeze} trained"


def in_words(row: dict[str, Any]) -> dict[str, str]:
    """A row as people read it."""

    def interval(name: str) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return "" if low is None else " " + interval_words((low, high))

    spread = f" ± {number(row['seeds_sd'])}" if row["seeds_sd"] is not None else ""
    sign = "" if row["difference"] is None else f"{row['difference']:+.3f}"
    return {
        **{name: str(row[name]) for name in ("run", "bank", "task", "split", "head", "backbone")},
        "metric": row["metric"].replace("_", " "),
        "score": number(row["score"]) + spread + interval("score"),
        "baseline": f"{number(row['baseline_score'])} {row['best_baseline']}",
        "difference": (sign or "n/a") + interval("difference"),
        "frames": _frames(row["frames_embedded"], row["frames_trained"]),
        "took": plain_time(row["seconds"]),
    }


def _frames(embedded: int | None, trained: int | None) -> str:
    """ "1,200 embedded, 36,000 trained": frames through the CNN or its frozen part, and frames × epochs through its
    trained part."""
    if embedded is None or trained is None:
        return "n/a"
    return f"{embedded:,} embedded" + (f", {trained:,} trained" if trained else "")


def _warnings(folders: Sequence[Path], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Why the runs cannot be compared: other videos held out, other targets or another metric than the first run's."""
    first, *others = [(folder, row, _tested(folder)) for folder, row in zip(folders, rows, strict=True)]
    warnings = []
    for folder, row, tested in others:
        if (row["task"], row["metric"]) != (first[1]["task"], first[1]["metric"]):
            what = f"predicts {row['task']} ({row['metric']}), {first[0]} {first[1]['task']} ({first[1]['metric']})"
            warnings.append(f"{folder} {what}: their figures are not comparable.")
        elif tested != first[2]:
            both = len(set(first[2].items()) & set(tested.items()))
            warnings.append(
                f"{folder} and {first[0]} were split differently ({both:,} of {len(first[2]):,} videos are tested in "
                "the same fold): their figures are not comparable. Train with --splits of the other's splits.csv."
            )
    return warnings


def _tested(folder: Path) -> dict[str, tuple[str, ...]]:
    """id -> the videos that were tested with it: folds of other names but the same videos are the same."""
    folds, _ = splits.read_splits(folder / "splits.csv")
    return {video: tuple(sorted(fold.test)) for fold in folds for video in fold.test}
