"""What a head is to predict: one class, several labels or a value, per video or per frame, by the ids of a bank.

Targets come from a column of the bank's catalog (its labels, or whatever its manifest had), from a CSV joined by id,
or over time from files of labelled segments (`pipeline.frame_labels`) or of values per frame. The rules:

- A cell that is empty is no target: the video is left out, counted and named in the notes. So is a video that no row,
  segment or file speaks of, and one of which no banked frame is labelled.
- Several labels in a cell are separated by `|`.
- Classes are in the natural order of their names (`2_walk` before `10_run`).
- One class per frame: a frame that no segment holds is masked, or is of the background class where one is given.
- Several labels per frame: in a frame that no segment holds, no label holds, or the background label where given.
- A frame outside the rows of a frame table, a one-hot table or a list of labels is masked, background or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.frame_labels import read_spans
from pipeline.ids import readable
from pipeline.sampling import nearest
from pipeline.segments import IGNORED, TOLERANCE_SECONDS, Clock, clocks, ids_meant, place, rows_of
from pipeline.tables import LARGEST, column_of, numbers, read_table
from pipeline.videos import label_order

SEPARATOR = "|"  # between several labels in one cell


@dataclass(frozen=True)
class Targets:
    """The targets of the videos that have any.

    Attributes:
        kind: "class" (one of K), "multilabel" (any of K), "value" (regression, K = 1).
        per_frame: one target per banked frame instead of one per video.
        labels: the names of the K classes; () for values.
        values: id -> per video: class int64 (), multilabel float32 (K,) of 0 and 1, value float32 (); per frame: class
            int64 (T,), IGNORED where masked; multilabel float32 (T, K), a masked row NaN; value float32 (T,), NaN
            where masked.
        notes: lines worth telling the user.
    """

    kind: str
    per_frame: bool
    labels: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    notes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """K, the number of outputs that a head needs."""
        return len(self.labels) or 1


def from_catalog(catalog: pd.DataFrame, column: str = "label", *, kind: str = "class") -> Targets:
    """Targets per video from a column of a bank's catalog.

    Raises:
        UserError: no such column, nothing in it, one class only, or a value that is no finite number.
    """
    if column not in catalog.columns:
        raise UserError(_no_column("The bank", column, catalog.columns))
    if catalog.empty:
        raise UserError("The bank holds no video. `framebank describe BANK --failures` lists what could not be banked.")
    cells = ["" if pd.isna(cell) else str(cell).strip() for cell in catalog[column]]
    return _per_video(dict(zip(catalog["id"], cells, strict=True)), kind, f"the bank's column {column}", [])


def from_csv(path: Path, ids: Sequence[str], column: str | None, *, kind: str = "class") -> Targets:
    """Targets per video from a CSV with a column `id`, and a column of targets.

    Args:
        path: the file; its ids may be given with a suffix, and with more or fewer folders than the bank's.
        ids: of the bank.
        column: None for the only column beside the id, or else `label`.
        kind: of the targets.

    Raises:
        UserError: a faulty file, no such column, an id that is there twice or that may be several videos, nothing that
            is in the bank, one class only, or a value that is no finite number.
    """
    table = read_table(path)
    name = readable(path.name)
    key = _key_column(path, table)
    column = _target_column(path, table, column, {key})
    found, notes = _found_ids(table[key], ids, name)
    twice = found[found.duplicated()]
    if len(twice):
        at = twice.index[0]
        raise UserError(f"{name}, line {at}: {twice[at]!r} is there a second time. Leave one row per video.")
    cells = dict.fromkeys(ids, "") | dict(zip(found, table[column][found.index], strict=True))
    return _per_video(cells, kind, f"{name}, column {column}", notes)


def from_segments(
    path: Path,
    clocks: Mapping[str, Clock],
    *,
    kind: str = "class",
    background: str | None = None,
    allow: frozenset[str] = frozenset(),
) -> Targets:
    """Targets per frame from files of segments or labels of frames, in any format of `pipeline.frame_labels`.

    Args:
        path: a file, or a folder of files.
        clocks: of the bank's videos, from `pipeline.segments.clocks`.
        kind: "class" (segments must not overlap) or "multilabel".
        background: the label of frames that no segment holds, a new one or one of the file's; None for none.
        allow: of "overlap", "unknown" and "beyond" what is counted but not fatal, see `pipeline.segments.place`.

    Raises:
        UserError: faulty files, what isn't allowed, no banked frame that is labelled, or one class only.
    """
    spans = read_spans(path)
    placed = place(spans, clocks, exclusive=kind == "class", allow=allow)
    labels = tuple(label_order({*placed.table["label"], *([background] if background else [])}))
    if not labels:
        raise UserError(f"{readable(str(path))} holds no segment with a label and a duration. Other files?")
    codes = {label: code for code, label in enumerate(labels)}
    notes, values, passed, masked, unlabelled, total = list(placed.notes), {}, [], 0, 0, 0
    groups = dict(iter(placed.table.groupby("id")))
    for video_id, clock in clocks.items():
        if video_id not in groups and video_id not in placed.covered:
            continue
        steps = len(clock.frame_index)
        held = np.zeros((steps, len(labels)), bool)
        winner = np.full(steps, IGNORED, np.int64)
        rows = groups.get(video_id, placed.table[:0])
        first, stop = rows_of(rows["start"].to_numpy(), rows["end"].to_numpy(), clock, spans.unit)
        for label, where, a, b in zip(rows["label"], rows["where"], first, stop, strict=True):
            held[a:b, codes[label]] = True
            winner[a:b] = codes[label]  # in order of start: the one that starts later counts
            passed += [where] if a == b else []
        nobody = ~held.any(axis=1)
        if background:
            held[nobody, codes[background]] = True
            winner[nobody] = codes[background]
        outside = np.zeros(steps, bool)
        if video_id in placed.covered:
            extent = placed.covered[video_id]
            (a,), (b,) = rows_of(np.array([extent.first]), np.array([extent.end]), clock, spans.unit)
            outside[:a] = outside[b:] = True
        silent = outside | (nobody if kind == "class" and not background else False)
        if silent.all():
            continue
        if kind == "class":
            values[video_id] = np.where(silent, IGNORED, winner)
        else:
            values[video_id] = np.where(silent[:, None], np.float32(np.nan), held.astype(np.float32))
        masked, total = masked + int(silent.sum()), total + steps
        unlabelled += int((nobody & ~outside).sum())
    if passed:
        notes.append(f"segments that hold no banked frame: {len(passed)}, e.g. {passed[0]}")
    if masked:
        notes.append(f"frames that nobody labelled, masked: {masked} of {total}")
    if unlabelled and background:
        notes.append(f"frames without a segment, labelled {background!r}: {unlabelled} of {total}")
    elif unlabelled and kind == "multilabel":
        notes.append(f"frames without a segment, taken as without any label: {unlabelled} of {total}")
    _note_missing(clocks, values, notes, "labelled frames")
    if not values:
        raise UserError(f"No banked frame lies in a segment of {readable(str(path))}. Other labels?")
    seen = _seen_classes(values, kind, len(labels))
    lost = [label for label, any_frame in zip(labels, seen, strict=True) if not any_frame]
    if lost:
        notes.append(f"labels of no banked frame: {len(lost)}, e.g. {lost[0]!r}")
    if kind == "class" and sum(seen) < 2:
        only = labels[int(np.argmax(seen))]
        raise UserError(
            f"All labelled frames are of one class, {only!r}; two are needed. Give the others a label with "
            "--background, say."
        )
    return Targets(kind, True, labels, values, tuple(notes))


def from_frame_values(path: Path, clocks: Mapping[str, Clock], column: str | None) -> Targets:
    """A value per frame from a CSV with `id`, `time` (seconds from the first frame) or `frame` (from 0), and a value.

    By `frame`, which goes first, a value belongs to the banked frame of that number. By `time` each banked frame gets
    the value nearest to it, if that is at most half a frame interval of the video away. Other frames are masked.

    Args:
        path: the file; in one without ids its name is the video's.
        clocks: of the bank's videos.
        column: of the values; None for the only one that is left.

    Raises:
        UserError: a faulty file, no such column, times that do not rise, a value that is no finite number, times for
            a video without a clock, nothing that fits a banked frame, or one value only.
    """
    table = read_table(path)
    name = readable(path.name)
    key, frame, time = column_of(table, ("id",)), *(column_of(table, names) for names in (("frame",), ("time",)))
    position = frame or time
    if position is None:
        raise UserError(f"{name} has neither a column frame nor a column time, but {_listed(table.columns)}. Add one.")
    column = _target_column(path, table, column, {name for name in (key, frame, time) if name})
    named = table[key] if key else pd.Series(path.stem, index=table.index, dtype=object)
    found, notes = _found_ids(named, list(clocks), name)
    table = table.loc[found.index]
    empty = table[column] == ""
    if empty.any():
        notes.append(f"rows of {name} without a value: {empty.sum()}, e.g. line {table.index[empty][0]}")
    table, found = table[~empty], found[~empty]
    places = numbers(path, table[position], "a number like 12")
    numeric = numbers(path, table[column], "a finite number like 2.5").astype(np.float32)
    values, used, masked, total = {}, 0, 0, 0
    for video_id, rows in pd.Series(range(len(found)), index=found).groupby(level=0):
        clock, at, given = clocks[str(video_id)], places[rows], numeric[rows]
        fall = np.flatnonzero(np.diff(at) <= 0)
        if len(fall):
            line = table.index[rows.iloc[fall[0] + 1]]
            raise UserError(
                f"{name}, line {line}: {position} {at[fall[0] + 1]:g} does not rise. Sort the rows, one each."
            )
        if not frame and len(clock.seconds) and np.isnan(clock.seconds).any():
            raise UserError(f"{video_id!r} has no clock, so times mean nothing there. Give a column frame.")
        steps = clock.frame_index.astype(np.float64) if frame else clock.seconds
        near = nearest(at, steps)
        reach = 0.0 if frame else (0.5 / clock.fps if clock.fps > 0 else 0.0) + TOLERANCE_SECONDS
        fits = np.abs(at[near] - steps) <= reach
        if fits.any():
            values[str(video_id)] = np.where(fits, given[near], np.float32(np.nan))
            used += len(np.unique(near[fits]))
            masked, total = masked + int((~fits).sum()), total + len(steps)
    if not values:
        raise UserError(f"No row of {name} belongs to a banked frame. Does {position} count from the first frame, 0?")
    if used < len(table):
        notes.append(f"values of {name} that belong to no banked frame: {len(table) - used} of {len(table)}")
    if masked:
        notes.append(f"frames without a value, masked: {masked} of {total}")
    _note_missing(clocks, values, notes, "a value")
    _check_spread(np.concatenate(list(values.values())), f"{name}, column {column}")
    return Targets("value", True, (), values, tuple(notes))


def _per_video(cells: Mapping[str, str], kind: str, origin: str, notes: list[str]) -> Targets:
    """Targets from one stripped cell of text per id."""
    filled = {video_id: cell for video_id, cell in cells.items() if cell}
    if not filled:
        raise UserError(
            f"{_start(origin)} is empty for all {len(cells)} videos. Give another --target, --targets or --segments."
        )
    values: dict[str, np.ndarray]
    if kind == "value":
        values = _values(filled, origin)
        _check_spread(np.array(list(values.values())), origin)
        _note_missing(cells, values, notes, "a target")
        return Targets(kind, False, (), values, tuple(notes))
    several = {
        video_id: [part for part in map(str.strip, cell.split(SEPARATOR)) if part] if kind == "multilabel" else [cell]
        for video_id, cell in filled.items()
    }
    several = {video_id: parts for video_id, parts in several.items() if parts}
    labels = tuple(label_order({label for parts in several.values() for label in parts}))
    if len(labels) < 2:
        raise UserError(
            f"{_start(origin)} has {f'one class only, {labels[0]!r}' if labels else 'no label'}; two are needed."
        )
    codes = {label: code for code, label in enumerate(labels)}
    if kind == "class":
        values = {video_id: np.array(codes[label], np.int64) for video_id, (label,) in several.items()}
    else:
        values = {
            video_id: np.isin(np.arange(len(labels)), [codes[label] for label in parts]).astype(np.float32)
            for video_id, parts in several.items()
        }
    _note_missing(cells, values, notes, "a target")
    return Targets(kind, False, labels, values, tuple(notes))


def _values(filled: Mapping[str, str], origin: str) -> dict[str, np.ndarray]:
    numeric = pd.to_numeric(pd.Series(filled, dtype=object), errors="coerce").astype(np.float64)
    wrong = numeric.index[~(numeric.abs() < LARGEST)]
    if len(wrong):
        raise UserError(
            f"{_start(origin)}: {len(wrong)} of {len(filled)} values are no finite numbers, e.g. "
            f"{filled[wrong[0]]!r} of {wrong[0]!r}. Write them like 2.5, or leave them empty."
        )
    return {str(video_id): np.array(value, np.float32) for video_id, value in numeric.items()}


def _check_spread(values: np.ndarray, origin: str) -> None:
    values = values[~np.isnan(values)]
    if (values == values[0]).all():
        raise UserError(
            f"{_start(origin)}: all {len(values)} values are {values[0]:g}; there is nothing to learn. "
            "Give another column."
        )


def _start(origin: str) -> str:
    """As a sentence begins with it; the name of a file stays as it is."""
    return origin.replace("the bank", "The bank", 1) if origin.startswith("the bank") else origin


def _seen_classes(values: Mapping[str, np.ndarray], kind: str, count: int) -> list[bool]:
    seen = np.zeros(count, bool)
    for target in values.values():
        if kind == "class":
            seen[np.unique(target[target != IGNORED])] = True
        else:
            seen |= (target == 1).any(axis=0)
    return seen.tolist()


def _key_column(path: Path, table: pd.DataFrame) -> str:
    key = column_of(table, ("id",))
    if key is None:
        raise UserError(
            f"{readable(path.name)} has no column id, but {_listed(table.columns)}. Name the videos in one."
        )
    return key


def _target_column(path: Path, table: pd.DataFrame, column: str | None, others: set[str]) -> str:
    """The column of targets, by name, or the only one beside the others, or `label`."""
    left = [str(name) for name in table.columns if name not in others]
    if column is not None:
        if column not in left:
            raise UserError(_no_column(readable(path.name), column, left))
        return column
    chosen = left[0] if len(left) == 1 else column_of(table, ("label",))
    if not left:
        raise UserError(f"{readable(path.name)} has no column of targets beside the ids. Add one.")
    if chosen is None:
        raise UserError(f"{readable(path.name)} has several columns ({_listed(left)}). Say which holds the targets.")
    return chosen


def _found_ids(named: pd.Series, ids: Sequence[str], name: str) -> tuple[pd.Series, list[str]]:
    """The ids that the names of rows mean, by line, without the rows of other videos; and notes on these."""
    known = ids_meant({text: (text,) for text in named.unique()}, ids)
    strangers = [text for text, video_id in known.items() if video_id is None]
    if strangers and len(strangers) == len(known):
        example = f"{ids[0]!r}" if len(ids) else "nothing"
        raise UserError(f"{name} names no video of the bank, e.g. {strangers[:1]}; the bank has {example}. Other ids?")
    notes = [f"videos of {name} that are not in the bank: {len(strangers)}, e.g. {strangers[0]!r}"] if strangers else []
    return named.map(known).dropna(), notes


def _note_missing(every: Mapping[str, object], values: Mapping[str, object], notes: list[str], what: str) -> None:
    missing = [video_id for video_id in every if video_id not in values]
    if missing:
        notes.append(f"videos without {what}, left out: {len(missing)} of {len(every)}, e.g. {missing[0]}")


def _no_column(where: str, column: str, columns: Sequence[str] | pd.Index) -> str:
    near = get_close_matches(column.lower(), [str(name).lower() for name in columns], n=3)
    near = [str(name) for name in columns if str(name).lower() in near]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {_listed(columns)}."
    return f"{where} has no column {column!r}. {hint}"


def _listed(columns: Sequence[str] | pd.Index) -> str:
    return ", ".join(map(str, columns))


def as_asked(asked: Mapping[str, Any], bank: Bank) -> Targets:
    """The targets of a bank's videos from where a run took its own.

    Args:
        asked: target, targets, segments, frame_values, multi_label, regression, background and allow, as the `config`
            of a run's config.json has them.
        bank: the bank, or the first of several.

    Raises:
        UserError: the targets cannot be read, or do not fit the bank.
    """
    kind = "multilabel" if asked["multi_label"] else "value" if asked["regression"] else "class"
    if asked["segments"] is not None:
        return from_segments(
            Path(asked["segments"]),
            clocks(bank),
            kind=kind,
            background=asked["background"],
            allow=frozenset(asked["allow"]),
        )
    if asked["frame_values"] is not None:
        return from_frame_values(Path(asked["frame_values"]), clocks(bank), asked["target"])
    if asked["targets"] is not None:
        return from_csv(Path(asked["targets"]), list(bank), asked["target"], kind=kind)
    return from_catalog(bank.catalog, asked["target"] or "label", kind=kind)
