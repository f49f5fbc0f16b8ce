"""One HDF5 file of embeddings: the schema, writing it and reading it. The only file that imports h5py.

A bank is one such file, or several (`pipeline.bank` overlays them). `data/README.md` describes the layout to readers
in any language: `/videos/<id>/features` (T, D) or (T, C, H, W) with `timestamps` and `frame_index` beside it, the
`/catalog` of one row per video, and `/failures`, the ledger of the videos that could not be banked.
"""

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd

FORMAT = "framebank"
SCHEMA = 1

# kind of each catalog column: s text, f float64 (NaN unknown), i int64 (-1 unknown), b uint8 flag
CATALOG: dict[str, str] = {
    "id": "s",
    "label": "s",
    "split": "s",
    "group": "s",
    "source": "s",
    "kind": "s",
    "start": "f",
    "end": "f",
    "crop": "s",
    "size": "i",
    "mtime": "i",
    "digest": "s",
    "width": "i",
    "height": "i",
    "rotation": "i",
    "fps": "f",
    "codec": "s",
    "duration": "f",
    "start_time": "f",
    "frames_declared": "i",
    "frames_decoded": "i",
    "frames_corrupt": "i",
    "times_mended": "i",
    "rows": "i",
    "partial": "s",
    "banked": "s",
}
FAILURES: dict[str, str] = {"id": "s", "path": "s", "reason": "s", "when": "s", "size": "i", "mtime": "i"}
_EMPTY: dict[str, Any] = {"s": "", "f": np.nan, "i": -1, "b": 0}
_DTYPES: dict[str, str] = {"s": "object", "f": "float64", "i": "int64", "b": "uint8"}
_FEATURE_AXES = {1: ("feature",), 3: ("channel", "height", "width")}
# netCDF's mark for a dimension without coordinate values: xarray then counts it and no bytes are stored
_NO_COORDINATE = "This is a netCDF dimension but not a netCDF variable.{:10d}"
_CHUNK_BYTES = 1 << 20
_COPY_BYTES = 32 << 20


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, as dicts."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


@dataclass
class Contents:
    """What one file says of itself: everything but the embeddings."""

    fingerprint: str
    config: dict[str, Any]
    catalog: pd.DataFrame
    failures: pd.DataFrame
    parts: list[str] = field(default_factory=list)  # files beside it that its external links lead to
    created: str = ""


def utc_now() -> str:
    """The time now in UTC as sortable ISO 8601 text with microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def empty_table(columns: Mapping[str, str]) -> pd.DataFrame:
    """A table of no rows with the columns and dtypes of the schema."""
    return pd.DataFrame({name: pd.Series(dtype=_DTYPES[kind]) for name, kind in columns.items()})


def as_table(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Rows as a table with the columns of the schema (unknown values filled in) followed by any extra text columns."""
    extra = {name: "s" for row in rows for name in row if name not in columns}
    kinds = {**columns, **extra}
    return pd.DataFrame(
        {
            name: pd.Series([row.get(name, _EMPTY[kind]) for row in rows], dtype=_DTYPES[kind])
            for name, kind in kinds.items()
        }
    )


def open_file(path: Path) -> h5py.File:
    """A bank file, opened for reading, also on network file systems that know no locks."""
    return h5py.File(path, "r", locking=False)


class _Forgiving(io.FileIO):
    """A file that keeps the first error of writing to itself, and from then on takes everything and stores nothing.

    HDF5 cannot close a file whose last flush fails, and crashes at exit over it; so it never hears of a full disk.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        while rest and self.error is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        if self.error is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.error = error
        return size or 0


class Output:
    """A new bank file being written, in a format that every HDF5 library since 1.10 reads.

    Attributes:
        file: the h5py file.

    Raises:
        OSError: on `check` and on `close`, when writing failed: the disk is full, say. HDF5 itself is unharmed.
    """

    def __init__(self, path: Path) -> None:
        self._raw = _Forgiving(path, "w+")
        self.file = h5py.File(self._raw, "w", libver=("v110", "v110"))

    def check(self) -> None:
        """Raise the error that writing ran into, if any; called wherever much more would be written for nothing."""
        if self._raw.error is not None:
            raise self._raw.error

    def close(self) -> None:
        """Flush and close."""
        self.file.close()
        self._raw.close()
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError):
                self.close()


@cache
def _versions() -> str:
    return json.dumps({name: version(name) for name in ("framebank", "torch", "torchvision", "av", "h5py")})


def begin(file: h5py.File, config: Mapping[str, Any], fingerprint: str, created: str = "") -> None:
    """Write what identifies a bank file: format, schema, fingerprint, config and library versions."""
    now = utc_now()
    file.attrs["format"] = FORMAT
    file.attrs["schema"] = SCHEMA
    file.attrs["fingerprint"] = fingerprint
    file.attrs["config"] = json.dumps(config, ensure_ascii=False, sort_keys=True)
    file.attrs["versions"] = _versions()
    file.attrs["created"] = created or now
    file.attrs["updated"] = now
    file.create_group("videos")


def _label_axes(group: h5py.Group, features: h5py.Dataset) -> None:
    """Attach dimension scales to every axis: xarray (h5netcdf) refuses a dataset with only some of them."""
    time = group["timestamps"]
    time.make_scale("timestamps")
    for dataset in (features, group["frame_index"]):
        dataset.dims[0].attach_scale(time)
    for axis, name in enumerate(_FEATURE_AXES[features.ndim - 1], start=1):
        size = features.shape[axis]
        scale = group.create_dataset(name, shape=(size,), dtype=">f4")
        scale.make_scale(_NO_COORDINATE.format(size))
        features.dims[axis].attach_scale(scale)


class VideoWriter:
    """Writes one video's rows: at once into contiguous datasets, or appended in whole-row chunks when it streams."""

    def __init__(self, file: h5py.File, video_id: str, *, label: str, source: str) -> None:
        self.group = file.require_group(f"videos/{video_id}")
        self.label, self.source = label, source
        self.rows = 0

    def write(self, features: np.ndarray, timestamps: np.ndarray, frame_index: np.ndarray) -> None:
        """Write all T rows at once, (T, D) or (T, C, H, W) features, (T,) float64 seconds and (T,) int64 indices."""
        self.group.create_dataset("features", data=features)
        self.group.create_dataset("timestamps", data=timestamps, dtype=np.float64)
        self.group.create_dataset("frame_index", data=frame_index, dtype=np.int64)
        self.rows = len(features)

    def append(self, features: np.ndarray, timestamps: np.ndarray, frame_index: np.ndarray) -> None:
        """Append rows to chunked datasets, so that a video of any length is written in bounded memory."""
        pieces = {"features": features, "timestamps": timestamps, "frame_index": frame_index}
        for name, piece in pieces.items():
            if name not in self.group:
                row_bytes = max(1, piece[:1].nbytes)
                chunk = (max(1, _CHUNK_BYTES // row_bytes), *piece.shape[1:])
                shape, maxshape = (0, *piece.shape[1:]), (None, *piece.shape[1:])
                self.group.create_dataset(name, shape=shape, maxshape=maxshape, chunks=chunk, dtype=piece.dtype)
            dataset = self.group[name]
            dataset.resize(self.rows + len(piece), axis=0)
            dataset[self.rows :] = piece
        self.rows += len(features)

    def finish(self) -> None:
        """Label the axes and set `complete`, last."""
        _label_axes(self.group, self.group["features"])
        self.group.attrs["label"] = self.label
        self.group.attrs["source"] = self.source
        self.group.attrs["complete"] = np.uint8(1)


def copy_video(source: h5py.File, target: h5py.File, video_id: str, *, label: str) -> None:
    """Rewrite one video in another file, in bounded memory.

    `Group.copy` would break the references between datasets and their scales, so the datasets are written anew.
    """
    group = source[f"videos/{video_id}"]
    writer = VideoWriter(target, video_id, label=label, source=group.attrs["source"])
    features = group["features"]
    rows_at_once = max(1, _COPY_BYTES // max(1, features[:1].nbytes))
    if len(features) <= rows_at_once:
        writer.write(features[:], group["timestamps"][:], group["frame_index"][:])
    else:
        for start in range(0, len(features), rows_at_once):
            piece = slice(start, start + rows_at_once)
            writer.append(features[piece], group["timestamps"][piece], group["frame_index"][piece])
    writer.finish()


def link_video(index: h5py.File, part: h5py.File, folder: str, video_id: str, *, label: str) -> None:
    """Let an index file lead to a video in a part in the given folder beside it, by relative external links.

    The links are made for each dataset, not for the group, so that video `a` and video `a/b` can lie in two parts.
    """
    source = part[f"videos/{video_id}"]
    part_name = f"{folder}/{Path(part.filename).name}"
    group = index.require_group(f"videos/{video_id}")
    for name, item in source.items():
        if isinstance(item, h5py.Dataset):
            group[name] = h5py.ExternalLink(part_name, item.name)
    for name, value in source.attrs.items():
        group.attrs[name] = value
    group.attrs["label"] = label


def write_table(file: h5py.File, name: str, table: pd.DataFrame, columns: Mapping[str, str]) -> None:
    """Write a table as one 1-D dataset per column: text as fixed-length UTF-8, flags as uint8."""
    group = file.create_group(name)
    group.attrs["columns"] = json.dumps(list(table.columns), ensure_ascii=False)
    for column in table.columns:
        if columns.get(column, "s") == "s":
            encoded = [str(value).encode() for value in table[column]]
            dtype = h5py.string_dtype("utf-8", max(1, max(map(len, encoded), default=1)))
            group.create_dataset(column, data=np.array(encoded, dtype=dtype))
        else:
            group.create_dataset(column, data=table[column].to_numpy(dtype=_DTYPES[columns[column]]))


def read_table(file: h5py.File, name: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read such a table back, in the order its columns were written."""
    group = file[name]
    data: dict[str, Any] = {}
    for column in json.loads(group.attrs["columns"]):
        values = group[column][:]
        if columns.get(column, "s") == "s":
            values = np.array([value.decode() for value in values.tolist()], dtype=object)
        data[column] = values
    return pd.DataFrame(data)


def read_contents(path: Path) -> Contents:
    """Read everything but the embeddings of one file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is not HDF5, or it was cut off.
        ValueError: it is HDF5 but not a framebank bank of this schema.
    """
    with open_file(path) as file:
        if file.attrs.get("format") != FORMAT:
            raise ValueError(f"{path} is an HDF5 file, but not a framebank bank (no format attribute)")
        if file.attrs["schema"] != SCHEMA:
            raise ValueError(f"{path} has schema {file.attrs['schema']}, and this framebank reads schema {SCHEMA}")
        return Contents(
            fingerprint=file.attrs["fingerprint"],
            config=json.loads(file.attrs["config"]),
            catalog=read_table(file, "catalog", CATALOG),
            failures=read_table(file, "failures", FAILURES),
            parts=json.loads(file.attrs.get("parts", "[]")),
            created=file.attrs["created"],
        )


def write_contents(file: h5py.File, contents: Contents) -> None:
    """Write catalog, failures and the list of linked parts, last, into a file that was begun."""
    write_table(file, "catalog", contents.catalog, CATALOG)
    write_table(file, "failures", contents.failures, FAILURES)
    if contents.parts:
        file.attrs["parts"] = json.dumps(contents.parts)


def stored_ids(file: h5py.File) -> set[str]:
    """Ids of all groups that hold a video, found by walking: only verification needs it."""
    found: set[str] = set()
    prefix = len("/videos/")

    def walk(group: h5py.Group) -> None:
        for item in group.values():
            if isinstance(item, h5py.Group):
                if "complete" in item.attrs or "features" in item:
                    found.add(item.name[prefix:])
                walk(item)

    walk(file["videos"])
    return found


def check_video(file: h5py.File, row: Mapping[str, Any]) -> list[str]:
    """What is wrong with one stored video, held against its catalog row; empty when all is well."""
    video_id = row["id"]
    try:
        group = file[f"videos/{video_id}"]
        features, timestamps, frame_index = (group[name] for name in ("features", "timestamps", "frame_index"))
    except KeyError as error:
        return [f"cannot be read: {error.args[0]}"]
    problems = []
    if not group.attrs.get("complete", False):
        problems.append("not marked complete")
    if features.ndim not in (2, 4):
        problems.append(f"features have shape {features.shape}; expected (T, D) or (T, C, H, W)")
    if len(features) == 0 or len(features) != row["rows"]:
        problems.append(f"features have {len(features)} rows, the catalog says {row['rows']}")
    if not len(features) == len(timestamps) == len(frame_index):
        problems.append(
            f"{len(features)} feature rows, {len(timestamps)} timestamps and {len(frame_index)} frame indices"
        )
    try:
        rows_at_once = max(1, _COPY_BYTES // max(1, features[:1].nbytes))
        for start in range(0, len(features), rows_at_once):
            bad = ~np.isfinite(features[start : start + rows_at_once]).reshape(-1, int(np.prod(features.shape[1:])))
            if bad.any():
                problems.append(f"features are not finite, first in row {start + int(bad.any(axis=1).argmax())}")
                break
        seconds = timestamps[:]
        if not np.isnan(seconds).all() and not (np.diff(seconds) >= 0).all():
            problems.append("timestamps decrease or are missing")
        if not (np.diff(frame_index[:]) > 0).all():
            problems.append("frame indices do not increase")
    except OSError as error:
        problems.append(f"cannot be read: {error}")
    return problems
