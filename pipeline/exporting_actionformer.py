"""A bank as ActionFormer reads it: `features/ID.npy` (T×D), a database of annotations, and the settings of its dataset.

ActionFormer places row i of a video at (i * feat_stride + num_frames / 2) / fps seconds: rows lie evenly, from 0 on. So
fps, feat_stride and num_frames are those of frames where the rows of all videos are so many frames apart, and else
those of rows: feat_stride 1, and as fps how many there are in a second. Segments count from the first row's first
frame, and the duration does too. How far rows really lie from that grid is found out and told.

Beside `ID.npy` lies `ID.times.npz` with the times and frame numbers as the bank has them, and `manifest.csv` has
labels, splits and groups: `pipeline.imported` reads both, so that nothing is lost on the way there and back.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.exporting import MANIFEST, Plan, manifest_of, write_features
from pipeline.features import records
from pipeline.frame_labels import read_spans
from pipeline.segments import Clock, clocks, place
from pipeline.videos import label_order
from pipeline.windows import window_in
from pipeline.writing import plain

FEATURES, ANNOTATIONS, SETTINGS = "features", "annotations.json", "actionformer.yaml"
_UNSPLIT = "all"  # the subset of videos without a split
_UNEVEN = 0.5  # of a step: a row that lies farther from the grid is nearer to another row's place


class Grid(NamedTuple):
    """How ActionFormer counts the rows of a bank.

    Attributes:
        feat_stride, num_frames: of all videos.
        fps: id -> frames per second.
        origin: id -> the time of the first row's first frame, from the first frame of the video.
        uneven: id -> how many steps a row lies off the grid at most, where that is more than half of one.
    """

    feat_stride: int
    num_frames: int
    fps: dict[str, float]
    origin: dict[str, float]
    uneven: dict[str, float]


def grid_of(bank: Bank, known: Mapping[str, Clock]) -> Grid:
    """The grid that fits a bank whose videos all have a clock.

    Raises:
        UserError: a video of one row that says neither its frame rate nor its duration.
    """
    window = window_in(bank.config["recipe"])
    frames = window.length if window.kind == "clip" else 1
    steps = {int(step) for clock in known.values() for step in np.unique(np.diff(clock.frame_index))}
    by_frames = len(steps) <= 1 and all(clock.fps > 0 for clock in known.values())
    stride = steps.pop() if by_frames and steps else 1
    fps, origin, uneven = {}, {}, {}
    for video, clock in known.items():
        rate = clock.fps if by_frames else 1 / clock.step if clock.step > 0 else 1 / clock.duration
        if not (np.isfinite(rate) and rate > 0):
            raise UserError(
                f"{video!r} has one row, and neither its frame rate nor its duration is known; leave it out."
            )
        first = clock.seconds[0] - (frames - 1) / 2 / rate if clock.clip is not None else clock.seconds[0]
        fps[video], origin[video] = float(rate), float(first)
        off = (
            np.abs(clock.seconds - clock.seconds[0] - np.arange(len(clock.seconds)) * stride / rate).max()
            * rate
            / stride
        )
        if off > _UNEVEN:
            uneven[video] = float(off)
    return Grid(stride, frames if by_frames else 1, fps, origin, uneven)


def plan(bank: Bank, out: Path, segments: Path | None) -> Plan:
    """What the small files will hold.

    Args:
        bank: of vectors.
        out: the folder.
        segments: labels over time; None: the label of each video, from its beginning to its end.

    Raises:
        UserError: segments that do not fit the bank, or that are given for videos without a clock.
    """
    manifest = {MANIFEST: manifest_of(bank, lambda video: f"{FEATURES}/{video}.npy")}
    known = clocks(bank)
    timeless = [video for video, clock in known.items() if np.isnan(clock.seconds).any()]
    if timeless:
        if segments is not None:
            raise UserError(
                f"{len(timeless)} videos have no clock, e.g. {timeless[0]!r}, and ActionFormer counts in "
                "seconds: bank them with their frame rate, or leave --segments out."
            )
        note = f"{ANNOTATIONS} and {SETTINGS} are not written: {len(timeless)} videos have no clock, e.g. {timeless[0]}"
        return Plan(manifest, [note])
    grid = grid_of(bank, known)
    spans, notes = _annotated(bank, known, segments)
    labels = label_order({label for found in spans.values() for _, _, label in found})
    database = {}
    for row in records(bank.catalog):
        video, clock = row["id"], known[row["id"]]
        begin, rate = grid.origin[video], grid.fps[video]
        covered = (len(clock.seconds) - 1) * grid.feat_stride / rate + grid.num_frames / rate
        duration = max(covered, clock.duration - begin) if clock.duration == clock.duration else covered
        annotations = [
            {
                "segment": [round(max(0.0, start - begin), 6), round(min(duration, end - begin), 6)],
                "label": label,
                "label_id": labels.index(label),
            }
            for start, end, label in spans.get(video, ())
        ]
        about = {"subset": row["split"].lower() or _UNSPLIT, "duration": round(duration, 6), "fps": rate}
        database[video] = {**about, "annotations": annotations}
    files = {ANNOTATIONS: _json({"version": "framebank", "database": database})}
    subsets = {split.lower() or _UNSPLIT for split in bank.catalog["split"]}
    files[SETTINGS] = _json(_settings(bank, out, grid, len(labels), subsets))
    if grid.uneven:
        video = max(grid.uneven, key=lambda name: grid.uneven[name])
        notes.append(
            f"rows of {len(grid.uneven)} videos do not lie evenly in time, which ActionFormer takes for "
            f"granted: in {video} by up to {grid.uneven[video]:.1f} steps"
        )
    return Plan(files | manifest, notes)


def _annotated(
    bank: Bank, known: Mapping[str, Clock], segments: Path | None
) -> tuple[dict[str, list[tuple[float, float, str]]], list[str]]:
    """For each video its labelled spans, in seconds from its first frame; and lines worth telling."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    if segments is None:
        for row in records(bank.catalog):
            if row["label"]:
                found[row["id"]] = [(-np.inf, np.inf, row["label"])]
        return found, ["annotations: the label of each video, from its beginning to its end (--segments gives others)"]
    spans = read_spans(segments)
    placed = place(spans, known, exclusive=False, allow=frozenset())
    for row in records(placed.table):
        rate = 1.0 if spans.unit == "seconds" else known[row["id"]].fps
        if not rate > 0:
            raise UserError(f"{row['id']!r} has segments in frames, and its frame rate is not known: give seconds.")
        found.setdefault(row["id"], []).append((row["start"] / rate, row["end"] / rate, row["label"]))
    return found, list(placed.notes)


def _settings(bank: Bank, out: Path, grid: Grid, classes: int, subsets: set[str]) -> dict[str, Any]:
    """What a configuration of ActionFormer says of its data. JSON is YAML. Its dataset `anet` takes features of any
    length; `thumos` would leave class 4 out, which there is a special case."""
    folder = out.absolute()
    return {
        "dataset_name": "anet",
        "train_split": sorted(subsets - {"test", "val", "validation"}),
        "val_split": sorted(subsets & {"test", "val", "validation"}),
        "dataset": {
            "json_file": str(folder / ANNOTATIONS),
            "feat_folder": str(folder / FEATURES),
            "file_prefix": None,
            "file_ext": ".npy",
            "num_classes": classes,
            "input_dim": bank.config["recipe"]["feature_shape"][0],
            "feat_stride": grid.feat_stride,
            "num_frames": grid.num_frames,
            "default_fps": None,
        },
    }


def _json(content: Any) -> bytes:
    return (json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n").encode()


def write_video(bank: Bank, row: Mapping[str, Any], out: Path) -> bool:
    """Write the features and the times of one video, given by its catalog row. Returns whether they are new."""
    return write_features(bank, row, out / FEATURES / f"{row['id']}.npy")
