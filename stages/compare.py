"""Several runs in one table: what each predicts, from what, how well, and against which baseline."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline import runs
from pipeline.writing import check_outputs, write_csv, write_json
from stages.comparison import in_words, side_by_side
from stages.console import Display

OK = 0
_SHOWN = (
    "run",
    "bank",
    "task",
    "split",
    "head",
    "backbone",
    "metric",
    "score",
    "baseline",
    "difference",
    "frames",
    "took",
)
_RESULTS = ("score", "difference")


@dataclass(frozen=True)
class CompareConfig:
    """Everything that `framebank compare` can be told; the defaults are those of the command."""

    runs: tuple[Path, ...]
    csv: Path | None = None
    json: Path | None = None


def run(config: CompareConfig) -> int:
    """Print the table of the runs, the best first where they are comparable.

    Returns:
        the exit status, 0.

    Raises:
        UserError: a folder holds no finished run.
    """
    display = Display.beside(config.json)
    made = [folder / name for folder in config.runs for name in runs.MADE]
    check_outputs({"--csv": config.csv, "--json": config.json}, made)
    rows, warnings = side_by_side(config.runs)
    width = shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None
    for line in _table([in_words(row) for row in rows], width):
        display.line(line)
    for warning in warnings:
        display.line(f"WARNING: {warning}")
    if config.csv is not None:
        write_csv(config.csv, pd.DataFrame(rows))
    if config.json is not None:
        write_json(config.json, {"runs": rows, "warnings": warnings})
    return OK


def _table(rows: Sequence[dict[str, str]], width: int | None = None) -> list[str]:
    """A line per run under a line of names; what all runs share is said once, above: of one run everything. Where a
    terminal is too narrow for that, a block per run.

    What came out stays in each run's line: two runs with the same score do not share it, they have met.
    """
    own = _RESULTS if len(rows) > 1 else ()
    shared = {name: rows[0][name] for name in _SHOWN if name not in own and len({row[name] for row in rows}) == 1}
    if "head" not in shared:
        shared["head"], heads = _heads([row["head"].split(", ") for row in rows])
        rows = [row | {"head": head} for row, head in zip(rows, heads, strict=True)]
    columns = [name for name in _SHOWN if name in own or len({row[name] for row in rows}) > 1]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    lines = [f"{name:<12}{text}" for name, text in shared.items() if text]
    if not columns:
        return lines
    lines += [""] if lines else []
    if width is not None and sum(widths[name] + 2 for name in columns) - 2 > width:
        blocks = [[f"{name:<12}{row[name]}" for name in columns] for row in rows]
        return lines + [line for block in blocks for line in (*block, "")][:-1]
    for row in [{name: name for name in columns}, *rows]:
        lines.append("  ".join(f"{row[name]:<{widths[name]}}" for name in columns).rstrip())
    return lines


def _heads(heads: Sequence[list[str]]) -> tuple[str, list[str]]:
    """What all heads have in common before and after "…", which stands for what is each one's own; and the latter."""
    least, first = min(map(len, heads)), heads[0]
    before = next((at for at in range(least) if any(head[at] != first[at] for head in heads)), least)
    ends = range(least - before)
    after = next((at for at in ends if any(head[-1 - at] != first[-1 - at] for head in heads)), least - before)
    common = [*first[:before], "…", *first[len(first) - after :]] if before + after else []
    return ", ".join(common), [", ".join(head[before : len(head) - after]) or "-" for head in heads]
