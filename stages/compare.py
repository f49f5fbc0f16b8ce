"""Several runs in one table: what each predicts, from what, how well, and against which baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import runs
from pipeline.errors import UserError
from pipeline.heads import HeadConfig
from pipeline.metrics import higher_is_better
from stages.console import Display, plain_time
from stages.training_words import head_words, interval_words, number

OK = 0
_SHOWN = ("run", "bank", "task", "split", "head", "metric", "score", "baseline", "difference", "took")


@dataclass(frozen=True)
class CompareConfig:
    """Everything that `framebank compare` can be told; the defaults are those of the command."""

    runs: tuple[Path, ...]
    csv: Path | None = None
    json: Path | None = None
    quiet: bool = False


def run(config: CompareConfig) -> int:
    """Print the table of the runs, the best first where they are comparable.

    Returns:
        the exit status, 0.

    Raises:
        UserError: a folder holds no finished run.
    """
    display = Display(quiet=config.quiet)
    rows = [_row(folder) for folder in config.runs]
    warnings = _warnings(config.runs, rows)
    if not warnings:
        up = higher_is_better(rows[0]["metric"])
        rows.sort(key=lambda row: (row["score"] is None, -(row["score"] or 0) if up else row["score"] or 0))
    for line in _table([_words(row) for row in rows]):
        display.line(line)
    for warning in warnings:
        display.line(f"WARNING: {warning}")
    if config.csv is not None:
        runs.write_csv(config.csv, pd.DataFrame(rows))
    if config.json is not None:
        runs.write_json(config.json, {"runs": rows, "warnings": warnings})
    return OK


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
    kinds = {"class": f"{len(task['labels'])} classes", "multilabel": f"{len(task['labels'])} labels", "value": "value"}
    return {
        "run": str(folder),
        "bank": " + ".join(Path(bank["path"]).name for bank in config["data"]["banks"]),
        "task": f"{kinds[task['kind']]} per {'frame' if task['per_frame'] else 'video'}",
        "split": results["split"],
        "head": head_words(head, asked["pca"]) + (f", fused by {asked['fuse']}" if asked["fuse"] != "concat" else ""),
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
        "seconds": results["cost"]["seconds"],
    }


def _words(row: dict[str, Any]) -> dict[str, str]:
    """The same as people read it."""

    def interval(name: str) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return "" if low is None else " " + interval_words((low, high))

    spread = f" ± {number(row['seeds_sd'])}" if row["seeds_sd"] is not None else ""
    sign = "" if row["difference"] is None else f"{row['difference']:+.3f}"
    return {
        **{name: str(row[name]) for name in ("run", "bank", "task", "split", "head")},
        "metric": row["metric"].replace("_", " "),
        "score": number(row["score"]) + spread + interval("score"),
        "baseline": f"{number(row['baseline_score'])} {row['best_baseline']}",
        "difference": (sign or "n/a") + interval("difference"),
        "took": plain_time(row["seconds"]),
    }


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    """A line per run under a line of names; what all runs share is said once, above."""
    shared = {name: rows[0][name] for name in _SHOWN if len(rows) > 1 and len({row[name] for row in rows}) == 1}
    columns = [name for name in _SHOWN if name not in shared]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    lines = [f"{name:<12}{text}" for name, text in shared.items()]
    lines += [""] if lines else []
    for row in [{name: name for name in columns}, *rows]:
        lines.append("  ".join(f"{row[name]:<{widths[name]}}" for name in columns).rstrip())
    return lines


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
    path = folder / "splits.csv"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        parts = table[table["part"] == "test"].groupby("fold")["id"].apply(lambda ids: tuple(sorted(ids)))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}; train the run again.") from None
    return {video: together for together in parts for video in together}
