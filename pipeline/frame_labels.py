"""The files in which people keep labels over time -> one table of labelled spans per set of files.

A format is recognised by what a file holds, never by guessing; what fits none is refused. Known are, as text in UTF-8
with `,`, `;` or tab between cells, names of columns in any case of letters:

- segments: `start`, `end` (seconds) or `start_frame`, `end_frame`, and `label`; `id` names the video. Where a file has
  both, the seconds count.
- frame table: a column `frame` (or `time` in seconds), a column `label` or `phase`, and maybe `id`. Cholec80's
  `video01-phase.txt` is one (Twinanda et al. 2017).
- one-hot table: a column `frame` or `time`, maybe `id`, and a column of 0 and 1 per class. Cholec80's
  `video01-tool.txt` is one.
- one label per line per frame, without spaces, in a .txt: the `groundTruth/` of MS-TCN (Farha & Gall 2019).
- BORIS exports (Friard & Gamba 2016): tabular events (START, STOP, POINT; with or without the lines that older versions
  write above the table) and aggregated events (`Start (s)`, `Stop (s)`).

Without an id the file's name is the video's (`video01-phase.txt` and `video01-tool.txt` are of video01); a folder is
read with all .txt, .csv and .tsv files in it, which must be of one format. The rules:

- Times count from the video's first frame; so do frames, from 0.
- A span holds its start and not its end: two spans that touch don't overlap. That goes for `end_frame` too.
- A row of a frame or one-hot table holds until the next row, the last one as long as rows usually do; no table says
  anything of what lies outside its rows. A label that is empty is none.
- BORIS: a START is paired with the next STOP of the same subject, behaviour and modifiers; the behaviour is the label.
  Point events have no duration and are left out. A video is known by its media file, or else by its observation.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.errors import UserError
from pipeline.ids import natural_key, readable, split_suffix
from pipeline.tables import cells_of, column_of, numbers, read_table, read_text

KNOWN = (
    "segments (id, start, end, label; or start_frame, end_frame), a frame table (frame or time, and label or phase), "
    "a one-hot table (frame or time, and a column of 0 and 1 per class), one label per line (.txt, MS-TCN), "
    "BORIS tabular or aggregated events"
)
LABEL_SUFFIXES = (".txt", ".csv", ".tsv")
_FRAME, _TIME = ("frame", "frame_index"), ("time", "seconds", "timestamp")
_LABEL = ("label", "phase")
_SECONDS, _FRAMES = "a number of seconds like 2.5", "a frame number like 125"
_CHOLEC80 = re.compile(r"(.+)-(phase|tool)", re.IGNORECASE)
_NO_LABEL = re.compile(r"[\s,;{}\[\]]")  # in a list of labels; prose and JSON have them
_PREAMBLE_LINES = 200  # that BORIS may write above a table
_COLUMNS = ("video", "start", "end", "label", "where")


class Extent(NamedTuple):
    """What a table of frames says anything of: from its `first` row to the `end` of its `last` one."""

    first: float
    last: float
    end: float


@dataclass(frozen=True)
class Spans:
    """Labelled spans, as files have them.

    Attributes:
        format: which of the known formats, in words.
        unit: "seconds" or "frames", of all starts and ends.
        table: video (str, a key of `names`), start, end (float64), label (str, never empty), where (str, "a.csv,
            line 3"); in the order of the files.
        names: video -> the names by which it may be known, the first one first.
        covered: video -> its table's extent; of a video that isn't there all is covered.
        left_out: what was left out -> an example of each.
    """

    format: str
    unit: str
    table: pd.DataFrame
    names: Mapping[str, tuple[str, ...]]
    covered: Mapping[str, Extent] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_spans(path: Path) -> Spans:
    """Read one file of a known format, or a folder of them.

    Raises:
        UserError: nothing there, an unknown format, several formats, or a faulty file.
    """
    read = [_read_file(file, name) for file, name in _label_files(path)]
    first = read[0]
    names: dict[str, tuple[str, ...]] = {}
    covered: dict[str, Extent] = {}
    left_out: dict[str, list[str]] = defaultdict(list)
    for spans in read:
        if (spans.format, spans.unit) != (first.format, first.unit):
            raise UserError(
                f"{readable(str(path))} mixes {first.format} in {first.unit} and {spans.format} in {spans.unit}. "
                "Give files of one kind."
            )
        for video, known_as in spans.names.items():
            if names.setdefault(video, known_as) != known_as or (video in covered and video in spans.covered):
                raise UserError(f"{readable(str(path))} holds two files of {video!r}. Leave out or rename one of them.")
        covered |= spans.covered
        for what, examples in spans.left_out.items():
            left_out[what] += examples
    tables = [spans.table for spans in read if len(spans.table)] or [first.table]
    return Spans(first.format, first.unit, pd.concat(tables, ignore_index=True), names, covered, left_out)


def _label_files(path: Path) -> list[tuple[Path, str]]:
    """The files to read, and the name of the video of each: its path below the folder without the suffix."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix.lower() in LABEL_SUFFIXES and file.is_file()]
        names = {file: file.relative_to(path).as_posix() for file in files}
        files = [file for file in files if not any(part.startswith(".") for part in names[file].split("/"))]
        if not files:
            raise UserError(f"{readable(str(path))} holds no .txt, .csv or .tsv file. Known are {KNOWN}.")
        return [
            (file, split_suffix(names[file])[0]) for file in sorted(files, key=lambda file: natural_key(names[file]))
        ]
    if not path.is_file():
        raise UserError(f"{readable(str(path))} is not there. Give a file of labels over time, or a folder of them.")
    return [(path, split_suffix(path.name)[0])]


def _read_file(path: Path, name: str) -> Spans:
    text = read_text(path)
    lines = text.split("\n")
    for above, line in enumerate(lines[:_PREAMBLE_LINES]):
        cells = {cell.lower() for cell in cells_of(line)}
        if {"behavior", "start (s)", "stop (s)"} <= cells:
            return _aggregated_events(path, name, read_table(path, text, above))
        if {"behavior", "time"} <= cells and cells & {"status", "behavior type"}:
            return _tabular_events(path, name, read_table(path, text, above), lines[:above])
    header = next((line for line in lines if line.strip()), "")
    if len(cells_of(header)) > 1:
        return _read_columns(path, name, read_table(path, text))
    labels = text.rstrip().split("\n")
    plain = header and not any(_NO_LABEL.search(label.strip()) for label in labels)
    if path.suffix.lower() == ".txt" and plain:
        rows = pd.Series(labels, index=range(1, len(labels) + 1), dtype=object).str.strip()
        steps = np.arange(len(labels) + 1, dtype=np.float64)
        extent = Extent(0.0, steps[-2], steps[-1])
        table = _runs(path, name, rows, steps[:-1], steps[1:])
        return Spans("lists of one label per line", "frames", table, {name: (name,)}, {name: extent})
    raise _unknown(path, f"Its first line is {header.strip()[:60]!r}")


def _unknown(path: Path, why: str) -> UserError:
    return UserError(f"{readable(str(path))} is of no known format. {why}. Known are {KNOWN}.")


def _read_columns(path: Path, name: str, table: pd.DataFrame) -> Spans:
    """A table that is not BORIS's: segments, a frame table or a one-hot table."""
    video, label = column_of(table, ("id",)), column_of(table, _LABEL)
    seconds, frames = column_of(table, _TIME), column_of(table, _FRAME)
    bounds = [[column_of(table, (edge + ending,)) for edge in ("start", "end")] for ending in ("", "_frame")]
    if label and (all(bounds[0]) or all(bounds[1])):
        unit, (start, end) = ("seconds", bounds[0]) if all(bounds[0]) else ("frames", bounds[1])
        return _segments(path, name, unit, table[[column for column in (video, start, end, label) if column]])
    position = frames or seconds
    if position is None:
        raise _unknown(path, f"Its columns are {', '.join(table.columns)}")
    if not len(table):
        raise UserError(f"{readable(str(path))} holds a header and no row. Give it a row per frame.")
    classes = [column for column in table.columns if column not in (video, frames, seconds)]
    flags = table[classes].isin(("0", "1", "0.0", "1.0"))
    if not label and (not classes or not flags.to_numpy().all()):
        wrong = next((column for column in classes if not flags[column].all()), None)
        cell = "" if wrong is None else table[wrong][~flags[wrong]].iloc[0]
        why = "It has no column of labels" if wrong is None else f"Its column {wrong} holds {cell!r}, not 0 or 1"
        raise _unknown(path, why)
    unit = "frames" if frames else "seconds"
    videos = [(name, table)] if video is None else [(str(key), rows) for key, rows in table.groupby(video, sort=False)]
    read = {key: _steps(path, key, rows, position, unit, label, classes) for key, rows in videos}
    names: dict[str, tuple[str, ...]] = {key: (key,) for key in read}
    if video is None and (found := _CHOLEC80.fullmatch(name)):
        names[name] = (name, found.group(1))
    runs = pd.concat([rows for rows, _ in read.values()], ignore_index=True)
    covered = {key: extent for key, (_, extent) in read.items()}
    return Spans("frame tables" if label else "one-hot tables", unit, runs, names, covered)


def _segments(path: Path, name: str, unit: str, table: pd.DataFrame) -> Spans:
    *video, start, end, label = (table[column] for column in table.columns)
    what = _SECONDS if unit == "seconds" else _FRAMES
    spans = _as_table(path, video[0] if video else name, numbers(path, start, what), numbers(path, end, what), label)
    wrong = spans[(spans["start"] < 0) | (spans["end"] <= spans["start"])]
    if len(wrong):
        row = wrong.iloc[0]
        more = f" ({len(wrong)} such segments)" if len(wrong) > 1 else ""
        raise UserError(
            f"{row['where']}: a segment from {row['start']:g} to {row['end']:g}{more}; it takes 0 ≤ start < end. "
            "Mend or delete it."
        )
    unnamed = spans["video"] == ""
    if unnamed.any():
        raise UserError(f"{spans[unnamed].iloc[0]['where']}: the id is empty. Fill it in, or delete the row.")
    empty = spans["label"] == ""
    left_out = {"segments without a label, left out": spans["where"][empty].tolist()}
    names = {str(key): (str(key),) for key in spans["video"].unique()}
    return Spans("segments", unit, spans[~empty].reset_index(drop=True), names, left_out=left_out)


def _steps(
    path: Path, video: str, rows: pd.DataFrame, position: str, unit: str, label: str | None, classes: Sequence[str]
) -> tuple[pd.DataFrame, Extent]:
    """The spans of one video of a frame table (with a column `label`) or one-hot table, and what its rows cover."""
    starts = numbers(path, rows[position], _FRAMES if unit == "frames" else _SECONDS)
    fall = np.flatnonzero(np.diff(starts) <= 0)
    if len(fall) or starts[0] < 0:
        at = rows.index[fall[0] + 1 if len(fall) else 0]
        place = f"{readable(path.name)}, line {at}"
        raise UserError(f"{place}: {position} is {rows[position][at]!r}; it must rise from 0 on. Sort the rows.")
    if len(starts) == 1 and unit == "seconds":
        raise UserError(
            f"{readable(path.name)} has one row of {video!r}, at {starts[0]:g} s: nobody knows how long it holds. Give "
            "two rows at least."
        )
    step = float(np.median(np.diff(starts))) if len(starts) > 1 else 1.0
    ends = np.append(starts[1:], starts[-1] + step)
    held = [rows[label]] if label else [rows[name].isin(("1", "1.0")).map({True: name, False: ""}) for name in classes]
    tables = [_runs(path, video, column, starts, ends) for column in held]
    return pd.concat(tables, ignore_index=True), Extent(starts[0], starts[-1], ends[-1])


def _runs(path: Path, video: str, labels: pd.Series, starts: np.ndarray, ends: np.ndarray) -> pd.DataFrame:
    """Runs of equal labels, the empty ones left out. labels (n,), indexed by line; starts, ends (n,) float64."""
    changes = labels.to_numpy()[1:] != labels.to_numpy()[:-1]
    first = np.flatnonzero(np.concatenate(([True], changes)))
    last = np.append(first[1:], len(labels)) - 1
    runs = _as_table(path, video, starts[first], ends[last], labels.iloc[first])
    return runs[runs["label"] != ""]


def _as_table(path: Path, video: pd.Series | str, start: np.ndarray, end: np.ndarray, label: pd.Series) -> pd.DataFrame:
    where = [f"{readable(path.name)}, line {line}" for line in label.index]
    videos = video if isinstance(video, str) else video.to_numpy()
    return pd.DataFrame(
        {"video": videos, "start": start, "end": end, "label": label.to_numpy(), "where": where}, columns=_COLUMNS
    )


# --- BORIS -----------------------------------------------------------------------------------------------------------


def _aggregated_events(path: Path, name: str, table: pd.DataFrame) -> Spans:
    start, end, behaviour = (_boris_column(table, key) for key in ("start (s)", "stop (s)", "behavior"))
    starts, ends = (numbers(path, cells, _SECONDS) for cells in (start, end))
    kinds = _boris_column(table, "behavior type").str.upper()
    points = ((kinds == "POINT") | (starts == ends)).to_numpy()
    videos, names = _boris_videos(path, name, table, {})
    spans = _as_table(path, videos, starts, ends, behaviour)
    return _boris_spans(path, "BORIS aggregated events", spans, points, table, names)


def _tabular_events(path: Path, name: str, table: pd.DataFrame, above: Sequence[str]) -> Spans:
    given = {cells[0].lower(): cells[1] for cells in map(cells_of, above) if len(cells) > 1 and cells[0]}
    videos, names = _boris_videos(path, name, table, given)
    times = numbers(path, _boris_column(table, "time"), _SECONDS)
    behaviour = _boris_column(table, "behavior")
    status = _boris_column(table, "status" if column_of(table, ("status",)) else "behavior type").str.upper()
    strange = ~status.isin(("START", "STOP", "POINT"))
    if strange.any():
        line = status.index[strange][0]
        raise UserError(
            f"{readable(path.name)}, line {line}: {status[line]!r} is not START, STOP or POINT. Export again."
        )
    modifiers = [column for column in table.columns if column.lower().startswith("modifier")]
    alike = [videos, _boris_column(table, "subject"), behaviour, *(table[column] for column in modifiers)]
    ends = np.full(len(table), np.nan)
    alone: list[int] = []
    running: dict[tuple[str, ...], int] = {}
    # Stable, so that of events at one time the earlier line goes first: STOP, then START, as BORIS writes them.
    for row in np.argsort(times, kind="stable"):
        key = tuple(cells.iloc[row] for cells in alike)
        if status.iloc[row] == "START":
            alone += [running[key]] if key in running else []
            running[key] = row
        elif status.iloc[row] == "STOP" and key in running:
            ends[running.pop(key)] = times[row]
        elif status.iloc[row] == "STOP":
            alone.append(row)
    alone += running.values()
    if alone:
        row = min(alone)
        raise UserError(
            f"{readable(path.name)}: {len(alone)} START or STOP without the other, e.g. {status.iloc[row]} of "
            f"{behaviour.iloc[row]!r} in line {table.index[row]}. Mend the state events in BORIS and export again."
        )
    spans = _as_table(path, videos, times, ends, behaviour)
    points = (status == "POINT").to_numpy()
    kept = (status != "STOP").to_numpy()
    return _boris_spans(path, "BORIS tabular events", spans[kept], points[kept], table, names)


def _boris_spans(
    path: Path,
    kind: str,
    spans: pd.DataFrame,
    points: np.ndarray,
    table: pd.DataFrame,
    names: dict[str, tuple[str, ...]],
) -> Spans:
    points = points | (spans["start"] == spans["end"]).to_numpy()
    modifiers = [column for column in table.columns if column.lower().startswith("modifier")]
    modified = (table[modifiers] != "").any(axis=1)
    left_out = {
        "point events, left out": spans["where"][points].tolist(),
        "events whose modifiers are passed over": [f"{readable(path.name)}, line {at}" for at in table.index[modified]],
    }
    spans = spans[~points].reset_index(drop=True)
    wrong = spans[(spans["end"] < spans["start"]) | (spans["start"] < 0) | (spans["label"] == "")]
    if len(wrong):
        row = wrong.iloc[0]
        raise UserError(
            f"{row['where']}: {row['label']!r} from {row['start']:g} to {row['end']:g} s. Mend it in BORIS."
        )
    return Spans(kind, "seconds", spans, names, left_out=left_out)


def _boris_column(table: pd.DataFrame, *names: str) -> pd.Series:
    column = column_of(table, names)
    return pd.Series("", index=table.index, dtype=object) if column is None else table[column]


def _boris_videos(
    path: Path, name: str, table: pd.DataFrame, given: Mapping[str, str]
) -> tuple[pd.Series, dict[str, tuple[str, ...]]]:
    """The observation of each row; and by which names its video may be known: its media file, or its own name."""
    offsets = [*_boris_column(table, "time offset (s)"), given.get("time offset (s)", "")]
    shifted = next((text for text in offsets if text.strip("0.") not in ("", "NA")), None)
    if shifted is not None:  # BORIS adds it to every time as it is coded, but who changes it later changes no time
        raise UserError(
            f"{readable(path.name)}: its times are shifted by an offset of {shifted} s. Subtract it from the times and "
            "write 0 for the offset."
        )
    media = _boris_column(table, "media file name", "media file path", "media file").replace(["NA", "Not found"], "")
    media = media.where(media != "", given.get("player #1", ""))
    observations = _boris_column(table, "observation id")
    observations = observations.where(observations != "", given.get("observation id", name))
    names: dict[str, tuple[str, ...]] = {}
    for observation, files in media.groupby(observations, sort=False):
        several = [file for file in files.unique() if file]
        if len(several) > 1:
            raise UserError(
                f"{readable(path.name)}: the observation {observation!r} runs over several media files "
                f"({several[0]} and {several[1]}), whose times go on from one to the next. Export one per video."
            )
        known_as = [known for file in several for known in (file, PureWindowsPath(file).name)]
        names[str(observation)] = tuple(dict.fromkeys([*known_as, str(observation)]))
    return observations, names
