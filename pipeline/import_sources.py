"""What there is to import: a folder or a manifest of feature files, one file, or HDF5 -> a table with a row per video.

Ids, labels, groups and splits come from where those of videos come from (`pipeline.videos`): class folders, a manifest,
rules, split lists. Besides, a CSV of labels is joined by id, which is the only way to label an HDF5 file whose ids have
no folders.

Formats. `hdf5` is one HDF5 file. `video_features` is what that program writes into a folder, `STEM_FEATURE.npy` beside
`STEM_timestamps_ms.npy` and `STEM_fps.npy`: the id is made from STEM. All else are `arrays`, a file per video.

Layout. An array is T×D or D×T, and a number does not say which it is. Sizes do, where they are the same along one axis
in all files and not along the other: that one is D. Where they are not, somebody has to say.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import other_hdf
from pipeline.errors import UserError, VideoError
from pipeline.features import records
from pipeline.ids import natural_key, readable
from pipeline.imported import HDF5_SUFFIXES, LAYOUTS, SUFFIXES, Given, opened, shape_words
from pipeline.segments import ids_meant
from pipeline.sources import TIMES_OF_STEM, TIMES_SUFFIX
from pipeline.tables import column_of, read_table
from pipeline.videos import (
    COLUMNS,
    RESERVED_COLUMNS,
    Found,
    absolute_path,
    as_table,
    find_videos,
    label_rows,
    new_row,
)

FORMATS = ("arrays", "video_features", "hdf5")
_LABELS = ("label", "split", "group")


@dataclass(frozen=True)
class Sources:
    """What was found.

    Attributes:
        found: as of videos; the kind of every row is "features".
        format: of `FORMATS`.
        feature: the name of the arrays, where they have one.
        datasets: id -> dataset, of an HDF5 file.
        shapes: id -> shape, of an HDF5 file.
    """

    found: Found
    format: str
    feature: str | None
    datasets: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    def opened(self, row: Mapping[str, Any]) -> AbstractContextManager[Given]:
        """The features of a video, given by its row, as `pipeline.imported.opened` has them."""
        path = Path(row["path"])
        if self.format == "hdf5":
            return opened(path, dataset=self.datasets[row["id"]])
        is_theirs = self.format == "video_features" and path.stem.endswith(f"_{self.feature}")
        stem = path.stem.removesuffix(f"_{self.feature}") if is_theirs else None
        return opened(path, feature=self.feature, stem=stem)

    def name(self, data: Path) -> str:
        """What these features are called unless somebody says: as the data is, and as they are in it."""
        stem = data.resolve().stem if data.is_file() else data.resolve().name
        own = self.feature if self.format != "arrays" else None
        return readable(f"{stem}/{own}" if own else stem)


def find_features(
    data: Path,
    *,
    feature: str | None = None,
    labels: Path | None = None,
    label_from: str | None = None,
    group_from: str | None = None,
    split_lists: Sequence[Path] = (),
    known: Mapping[str, str] | None = None,
    exclude: Sequence[Path] = (),
) -> Sources:
    """Find the features in a folder, a manifest, one file of arrays or an HDF5 file.

    Args:
        data: which of these.
        feature: what the features of every video are called in files that have several.
        labels: CSV of id and label, split, group or further columns.
        label_from, group_from, split_lists, known, exclude: as in `pipeline.videos.find_videos`.

    Raises:
        UserError: nothing there, several features and none chosen, a faulty manifest or file of labels.
    """
    if data.suffix.lower() in HDF5_SUFFIXES and not data.is_dir():
        sources = _of_hdf5(data, feature, label_from, group_from, split_lists)
    else:
        found = find_videos(
            data,
            suffixes=SUFFIXES,
            label_from=label_from,
            group_from=group_from,
            split_lists=split_lists,
            known=known,
            exclude=exclude,
        )
        sources = _of_files(data, found, feature, known or {})
    if labels is not None:
        sources = replace(sources, found=_labelled(sources.found, labels))
    return sources


def _of_hdf5(
    data: Path, feature: str | None, label_from: str | None, group_from: str | None, split_lists: Sequence[Path]
) -> Sources:
    if split_lists:
        raise UserError("--split-list is for files; give an HDF5 file its splits by --labels, in a column split.")
    if not data.exists():
        raise UserError(f"{readable(str(data))}: no such file. Give a folder, a manifest, or a file of features.")
    entries, notes = other_hdf.entries_in(data, feature)
    entries.sort(key=lambda entry: natural_key(entry.video_id))
    where = absolute_path(data)
    rows = [new_row(where, "features") | {"id": e.video_id, "below": e.video_id} for e in entries]
    label_rows(rows, "label", "1" if label_from is None else label_from, required=label_from is not None, notes=notes)
    label_rows(rows, "group", group_from, required=True, notes=notes)
    name = entries[0].dataset.rpartition("/")[2] if entries[0].dataset != entries[0].video_id else None
    return Sources(
        Found(as_table(rows, ()), "HDF5", {}, notes),
        "hdf5",
        name,
        {entry.video_id: entry.dataset for entry in entries},
        {entry.video_id: entry.shape for entry in entries},
    )


def _of_files(data: Path, found: Found, feature: str | None, known: Mapping[str, str]) -> Sources:
    table = found.table
    if (table["kind"] == "images").any():
        table = table[table["kind"] != "images"]
    if table[["start", "end"]].notna().any(axis=None) or (table["crop"] != "").any():
        raise UserError("The manifest has spans or crops, which cannot be imported: features are taken as they are.")
    names = [Path(path).name for path in table["path"]]
    beside = {
        name for name in names if name.endswith(TIMES_SUFFIX) and name.removesuffix(TIMES_SUFFIX) + ".npy" in names
    }
    table, names = table[[name not in beside for name in names]], [name for name in names if name not in beside]
    theirs = _of_video_features(names, feature)
    if theirs is None:
        return Sources(replace(found, table=table.assign(kind="features")), "arrays", feature, {}, {})
    chosen = [name.endswith(f"_{theirs}.npy") for name in names]
    others = Counter(name.rpartition("_")[2] for name, is_taken in zip(names, chosen, strict=True) if not is_taken)
    for kind in ("ms.npy", "fps.npy"):
        others.pop(kind, None)
    notes = list(found.notes)
    if others:
        notes.append(f"files that hold other features: {sum(others.values())}, e.g. _{next(iter(others))}")
    table = table[chosen].assign(kind="features")
    ids = [video if video in known else video.removesuffix(f"_{theirs}") for video in table["id"]]
    if len(set(ids)) < len(ids):
        doubled = next(video for video, count in Counter(ids).items() if count > 1)
        raise UserError(f"{doubled!r} would be the id of two videos; give ids in a manifest.")
    found = replace(found, table=table.assign(id=ids), notes=notes)
    return Sources(found, "video_features", theirs, {}, {})


def _of_video_features(names: Sequence[str], feature: str | None) -> str | None:
    """The features of a folder that video_features has written, None where it was something else.

    Raises:
        UserError: it holds several features, or not those that were asked for.
    """
    stems = {
        name.removesuffix(f"_{meta}.npy") for name in names for meta in TIMES_OF_STEM if name.endswith(f"_{meta}.npy")
    }
    if feature is not None:
        return feature if any(name.endswith(f"_{feature}.npy") for name in names) else None
    if not any(name.endswith("_timestamps_ms.npy") for name in names):
        return None
    features: Counter[str] = Counter()
    for name in names:
        parts = name.removesuffix(".npy").split("_")
        ends = ("_".join(parts[place:]) for place in range(1, len(parts)) if "_".join(parts[:place]) in stems)
        features.update(end for end in list(ends)[-1:] if end not in TIMES_OF_STEM)
    if len(features) != 1:
        shown = ", ".join(f"{name} ({count} files)" for name, count in features.most_common())
        raise UserError(f"This folder of video_features holds {shown or 'no features'}; say which: --feature NAME.")
    return next(iter(features))


def _labelled(found: Found, path: Path) -> Found:
    """The table with what a CSV says of each video; where a cell is blank, what is known already stays.

    Raises:
        UserError: no column id, nothing else in it, no id that is meant, or a video that is named twice.
    """
    cells, table, name = read_table(path), found.table, readable(path.name)
    ids = column_of(cells, ("id",))
    if ids is None:
        raise UserError(
            f"{name} has no column id (its columns: {', '.join(cells.columns)}). Name the column of ids id."
        )
    columns = [column for column in cells.columns if column != ids and column not in {*RESERVED_COLUMNS, *COLUMNS[:3]}]
    columns = [column for column in columns if column not in ("start", "end", "fps")]
    if not columns:
        raise UserError(f"{name} has nothing beside ids. Give it a column label, split or group.")
    meant = ids_meant({str(text): [str(text)] for text in cells[ids]}, table["id"])
    rows = cells[ids].map(meant)
    if rows.isna().all():
        raise UserError(f"{name}: none of its {len(rows)} ids is there, e.g. {cells[ids].iloc[0]!r}. Other ids?")
    if (doubled := rows.dropna().duplicated()).any():
        line = doubled.index[doubled][0]
        raise UserError(f"{name}, line {line}: {rows[line]!r} is there twice. Leave one out.")
    joined = cells.assign(id=rows).dropna(subset="id").set_index("id").reindex(table["id"])
    table = table.copy()
    for column in columns:
        new = [readable(value) if isinstance(value, str) else "" for value in joined[column]]
        old = table[column] if column in table else [""] * len(table)
        table[column] = pd.Series([n or o for n, o in zip(new, old, strict=True)], index=table.index, dtype="object")
    notes = list(found.notes)
    if rows.isna().any():
        first = cells.loc[rows.isna(), ids].iloc[0]
        notes.append(f"ids in {name} that are not there: {int(rows.isna().sum())}, e.g. {first}")
    missing = sorted(set(table["id"]) - set(rows.dropna()))
    if missing:
        notes.append(f"videos that {name} does not name: {len(missing)}, e.g. {missing[0]}")
    return replace(found, table=table, notes=notes)


def shapes_of(sources: Sources, table: pd.DataFrame) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """The shapes of the videos of a table that can be read, by their headers where files have them; and how many rows
    those have whose times lie beside them."""
    if sources.format == "hdf5":
        return {video: sources.shapes[video] for video in table["id"]}, {}
    shapes, rows = {}, {}
    for row in records(table[["id", "path"]]):
        try:
            with sources.opened(row) as given:
                shapes[row["id"]] = tuple(given.array.shape)
                for name in {"timestamps", "frame_index"} & set(given.beside):
                    rows[row["id"]] = given.beside[name].size
        except VideoError:  # it will fail again when it is read, and be entered into the ledger
            continue
    return shapes, rows


def decide(
    shapes: Mapping[str, tuple[int, ...]], layout: str | None, *, is_td: bool = False, rows: Mapping[str, int] = {}
) -> tuple[str, int]:
    """Which axis is time, and how many features there are.

    Args:
        shapes: id -> shape.
        layout: "td", "dt", or None: whichever is certain.
        is_td: rows come first by the format's own rule.
        rows: id -> how many rows it has, where that is known.

    Returns:
        the layout and D, which most videos have.

    Raises:
        UserError: nobody said, and the shapes leave it open; or as many videos have one D as have another.
    """
    flat = {video: shape for video, shape in shapes.items() if len(shape) == 2}
    if not flat:
        what = f", e.g. {next(iter(shapes))!r} of shape {shape_words(next(iter(shapes.values())))}" if shapes else ""
        raise UserError(f"There is no array of two axes, T×D or D×T{what}.")
    if layout is None:
        same = [len({shape[axis] for shape in flat.values()}) == 1 for axis in (0, 1)]
        counted = [all(shape[axis] == rows.get(video) for video, shape in flat.items()) for axis in (0, 1)]
        if is_td or counted == [True, False] or same == [False, True]:
            layout = "td"
        elif counted == [False, True] or same == [True, False]:
            layout = "dt"
        else:
            shown = ", ".join(f"{video} {shape_words(shape)}" for video, shape in list(flat.items())[:3])
            raise UserError(
                f"The shapes do not say which axis is time ({shown}): give --layout td where rows come first, "
                "--layout dt where features do."
            )
    sizes = Counter(shape[LAYOUTS.index(layout) ^ 1] for shape in flat.values()).most_common(2)
    if len(sizes) > 1 and sizes[0][1] == sizes[1][1]:
        raise UserError(
            f"As many videos have {sizes[0][0]} features as have {sizes[1][0]} ({sizes[0][1]} each): import "
            "one kind at a time, or give another --layout."
        )
    return layout, sizes[0][0]


def counted_fps(row: Mapping[str, float]) -> float:
    """The frame rate that a manifest has for a video, else NaN."""
    return float(row["fps"]) if row["fps"] > 0 else nan
