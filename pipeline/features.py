"""One HDF5 file of embeddings: the schema, writing it and reading it. The only file that imports h5py.

A bank is one such file, or several (`pipeline.bank` overlays them). `data/README.md` describes the layout to readers
in any language: `/videos/<id>/features` (T, D), (T, C, H, W) or (K, T, D) with `timestamps` and `frame_index` beside
it, the `/catalog` of one row per video, and `/failures`, the ledger of the videos that could not be banked.
"""

import errno
import json
import math
import os
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, cast

import h5py
import numpy as np
import pandas as pd

from pipeline.ids import RESERVED_SEGMENTS

FORMAT = "framebank"
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"
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
TIME = "timestamps"
_AXES = {2: (TIME, "feature"), 3: ("view", TIME, "feature"), 4: (TIME, "channel", "height", "width")}
WINDOW_FRAMES = "window_frames"  # the dataset of all frames of each row, where it has more than one
# netCDF's mark for a dimension without coordinate values: xarray then counts it and no bytes are stored
_NO_COORDINATE = "This is a netCDF dimension but not a netCDF variable.{:10d}"
_CHUNK_BYTES = 1 << 20
_METADATA_BYTES = 4 << 20  # what HDF5 keeps of an open file: it would be 32 MiB of each, and many are open
_SLACK_BYTES = 4 << 20  # what HDF5 may write besides: its metadata cache
_LONG_TEXT_BYTES = 64 << 20
ROW_BYTES = 4096  # of a catalog row and its video's metadata, generously
_COPY_BYTES = 32 << 20


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, as dicts."""
    return cast("list[dict[str, Any]]", table.to_dict("records"))  # names are str; copying 100,000 rows takes seconds


@dataclass
class Contents:
    """What one file says of itself: everything but the embeddings."""

    fingerprint: str
    config: dict[str, Any]
    catalog: pd.DataFrame
    failures: pd.DataFrame
    created: str = ""
    links: list[str] = field(default_factory=list)  # of an index file: for each catalog row the part that holds it
    absorbed: list[str] = field(default_factory=list)  # parts that this file has taken in; what is left of them is void


def utc_now() -> str:
    """The time now in UTC as sortable ISO 8601 text with microseconds."""
    return datetime.now(UTC).strftime(_TIME_FORMAT)


def utc_after(moment: str) -> str:
    """The time now, or a microsecond after `moment` where the clock has not got there."""
    now = utc_now()
    if now > moment:
        return now
    later = datetime.strptime(moment, _TIME_FORMAT) + timedelta(microseconds=1)
    return later.strftime(_TIME_FORMAT)


def empty_table(columns: Mapping[str, str]) -> pd.DataFrame:
    """A table of no rows with the columns and dtypes of the schema."""
    return _empty_table(tuple(columns.items())).copy()


@cache
def _empty_table(columns: tuple[tuple[str, str], ...]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=_DTYPES[kind]) for name, kind in columns})


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
    file = h5py.File(path, "r", locking=False)
    cache = file.id.get_mdc_config()
    cache.max_size = _METADATA_BYTES
    file.id.set_mdc_config(cache)
    return file


def _check_free(folder: Path, size: int) -> None:
    if size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Output:
    """A new bank file being written, in a format that every HDF5 library since 1.10 reads.

    HDF5 cannot close a file that it failed to flush, and crashes over it when the process ends; so it must never meet a
    full disk. A file that fits in memory is made there and written by Python; for a larger one `reserve` makes sure
    beforehand that the disk has room.

    Args:
        path: the file.
        in_memory: make the file in memory; for what is known to be small.

    Attributes:
        file: the h5py file.
    """

    def __init__(self, path: Path, *, in_memory: bool) -> None:
        self._path, self._in_memory = path, in_memory
        if not in_memory:
            _check_free(path.parent, _SLACK_BYTES)
        memory: dict[str, Any] = {"driver": "core", "backing_store": False, "block_size": _CHUNK_BYTES}
        self.file = h5py.File(path, "w", libver=("v110", "v110"), **(memory if in_memory else {"locking": False}))

    def reserve(self, size: int) -> None:
        """Make sure that `size` more bytes, and what HDF5 keeps back, can be written.

        Raises:
            OSError: the disk is too full, or the file would grow beyond what the process may write (`ulimit -f`).
        """
        if self._in_memory:
            return
        size += _SLACK_BYTES
        _check_free(self._path.parent, size)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and self.file.id.get_filesize() + size > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    def close(self) -> None:
        """Close the file; everything is written then.

        Raises:
            OSError: the disk is full.
        """
        if self._in_memory and self.file:
            self.file.flush()
            image = self.file.id.get_file_image()
            self.file.close()
            self._path.write_bytes(image)
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.file.close()


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


def time_axis(features: h5py.Dataset | np.ndarray) -> int:
    """Which axis of the features of a video counts its rows: 1 of (K, T, D), 0 of (T, D) and (T, C, H, W)."""
    return _AXES[features.ndim].index(TIME)


def of_rows(features: h5py.Dataset, rows: slice) -> tuple[slice, ...]:
    """What selects some rows of the features of a video, of all of its views."""
    return (*[slice(None)] * time_axis(features), rows)


def _label_axes(group: h5py.Group, datasets: Mapping[str, h5py.Dataset]) -> None:
    """Attach dimension scales to every axis: xarray (h5netcdf) refuses a dataset with only some of them.

    By h5py's low level: looking every dataset up again took most of the time that a short video takes to write.
    """
    scales = {TIME: datasets[TIME].id}
    h5py.h5ds.set_scale(scales[TIME], TIME.encode())
    features = _AXES[datasets["features"].ndim]
    axes = {"features": features, "frame_index": (TIME,), WINDOW_FRAMES: (TIME, "window_frame")}
    for dataset, names in axes.items():
        if dataset not in datasets:
            continue
        for axis, name in enumerate(names):
            if name not in scales:
                size = datasets[dataset].shape[axis]
                scales[name] = group.create_dataset(name, shape=(size,), dtype=">f4").id
                h5py.h5ds.set_scale(scales[name], _NO_COORDINATE.format(size).encode())
            h5py.h5ds.attach_scale(datasets[dataset].id, scales[name], axis)


class VideoWriter:
    """Writes one video's rows: at once into contiguous datasets, or appended in whole-row chunks when it streams.

    Rows come first on every axis that it is given; those of views, (n, K, D), are stored view after view, (K, T, D).
    """

    def __init__(self, file: h5py.File, video_id: str, *, label: str, source: str) -> None:
        self.group = file.require_group(f"videos/{video_id}")
        self.label, self.source = label, source
        self.rows = 0
        self._datasets: dict[str, h5py.Dataset] = {}

    def write(self, features: np.ndarray, timestamps: np.ndarray, frames: np.ndarray) -> None:
        """Write all T rows at once.

        Args:
            features: (T, D), (T, C, H, W) or (T, K, D).
            timestamps: (T,) float64 seconds.
            frames: (T, F) int64 numbers of the frames of each row, of which the one in the middle stands for it.
        """
        for name, data in _datasets(features, timestamps, frames).items():
            self._datasets[name] = self.group.create_dataset(name, data=data)
        self.rows = len(features)

    def append(self, features: np.ndarray, timestamps: np.ndarray, frames: np.ndarray) -> None:
        """Append rows to chunked datasets, so that a video of any length is written in bounded memory. The arguments
        are those of `write`."""
        for name, piece in _datasets(features, timestamps, frames).items():
            axis = time_axis(piece) if name == "features" else 0
            dataset = self._datasets.get(name)
            if dataset is None:
                dataset = self._datasets[name] = self._created(name, piece, axis)
            dataset.resize(self.rows + piece.shape[axis], axis=axis)
            dataset[(*[slice(None)] * axis, slice(self.rows, None))] = piece
        self.rows += len(features)

    def _created(self, name: str, piece: np.ndarray, axis: int) -> h5py.Dataset:
        """An empty dataset of rows like those of a piece, in chunks of whole rows of one view."""
        views, row = piece.shape[:axis], piece.shape[axis + 1 :]
        row_bytes = max(1, math.prod(row) * piece.dtype.itemsize)
        chunk = (*[1] * axis, max(1, _CHUNK_BYTES // row_bytes), *row)
        return self.group.create_dataset(
            name, shape=(*views, 0, *row), maxshape=(*views, None, *row), chunks=chunk, dtype=piece.dtype
        )

    def finish(self, *, views: Sequence[Mapping[str, Any]] | None = None, padded: int = 0) -> None:
        """Label the axes and set `complete`, last.

        Args:
            views: what each view shows, where there are any.
            padded: how many frames of its only clip are its last one repeated.
        """
        _label_axes(self.group, self._datasets)
        if views is not None:
            self._datasets["features"].attrs["views"] = json.dumps(list(views))
        if padded:
            self.group.attrs["padded"] = padded
        self.group.attrs["label"] = self.label
        self.group.attrs["source"] = self.source
        self.group.attrs["complete"] = np.uint8(1)


def _datasets(features: np.ndarray, timestamps: np.ndarray, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Rows as they are stored, by the names of their datasets."""
    stored = {
        "features": np.moveaxis(features, 0, 1) if features.ndim == 3 else features,
        TIME: timestamps.astype(np.float64),
        "frame_index": frames[:, frames.shape[1] // 2].astype(np.int64),
    }
    return stored | ({WINDOW_FRAMES: frames.astype(np.int64)} if frames.shape[1] > 1 else {})


def copy_video(source: h5py.File, output: Output, row: Mapping[str, Any]) -> None:
    """Rewrite one video, given by its catalog row, in another file, in bounded memory.

    `Group.copy` would break the references between datasets and their scales, so the datasets are written anew.

    Raises:
        OSError: the disk is full.
    """
    group = source[f"videos/{row['id']}"]
    writer = VideoWriter(output.file, row["id"], label=row["label"], source=row["source"])
    features, frames = group["features"], group[WINDOW_FRAMES if WINDOW_FRAMES in group else "frame_index"]
    axis = time_axis(features)
    rows = features.shape[axis]
    rows_at_once = max(1, _COPY_BYTES // max(1, features.nbytes // max(1, rows)))
    write = writer.write if rows <= rows_at_once else writer.append
    for start in range(0, max(1, rows), rows_at_once):
        piece = slice(start, start + rows_at_once)
        copied = np.moveaxis(features[:, piece], 1, 0) if axis else features[piece]
        numbers = frames[piece] if frames.ndim == 2 else frames[piece][:, None]
        output.reserve(copied.nbytes + numbers.nbytes)
        write(copied, group[TIME][piece], numbers)
    views = features.attrs.get("views")
    writer.finish(views=None if views is None else json.loads(views), padded=int(group.attrs.get("padded", 0)))


def link_video(index: h5py.File, part: h5py.File, part_name: str, row: Mapping[str, Any]) -> None:
    """Let an index file lead to a video, given by its catalog row, in a part beside it, by relative external links.

    The links are made for each dataset, not for the group, so that video `a` and video `a/b` can lie in two parts.
    """
    source = part[f"videos/{row['id']}"]
    group = index.require_group(f"videos/{row['id']}")
    for name in RESERVED_SEGMENTS.intersection(source):  # by name: opening each to see what it is takes twice as long
        group[name] = h5py.ExternalLink(part_name, f"{source.name}/{name}")
    for name, value in source.attrs.items():
        group.attrs[name] = value
    group.attrs["label"], group.attrs["source"] = row["label"], row["source"]


def write_table(file: h5py.File, name: str, table: pd.DataFrame, columns: Mapping[str, str]) -> None:
    """Write a table as one 1-D dataset per column: text as fixed-length UTF-8, flags as uint8."""
    group = file.create_group(name)
    group.attrs["columns"] = json.dumps(list(table.columns), ensure_ascii=False)
    for column in table.columns:
        if columns.get(column, "s") == "s":
            _write_texts(group, column, [str(value) for value in table[column]])
        else:
            group.create_dataset(column, data=table[column].to_numpy(dtype=_DTYPES[columns[column]]))


def _write_texts(group: h5py.Group, name: str, texts: list[str]) -> None:
    """Text as fixed-length UTF-8, which reads ten times faster; of variable length where one giant would swell all."""
    encoded = [text.encode() for text in texts]
    length = max(1, max(map(len, encoded), default=1))
    dtype = h5py.string_dtype("utf-8", length if length * len(encoded) < _LONG_TEXT_BYTES else None)
    group.create_dataset(name, data=np.array(encoded, dtype=dtype))


def _read_column(group: h5py.Group, name: str) -> np.ndarray:
    """One column, whole. By h5py's low level, in a third of the time: a bank in thousands of parts has 32 of each."""
    dataset = h5py.h5d.open(group.id, name.encode())
    values = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def _read_texts(group: h5py.Group, name: str) -> list[str]:
    return [value.decode() for value in _read_column(group, name).tolist()]


def read_table(file: h5py.File, name: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """Read such a table back, in the order its columns were written."""
    group = file[name]
    data: dict[str, Any] = {}
    names = json.loads(group.attrs["columns"])
    if not len(_read_column(group, names[0])):  # the ledger of most parts: no need to look at every column
        return empty_table({column: columns.get(column, "s") for column in names})
    for column in names:
        text = columns.get(column, "s") == "s"
        data[column] = np.array(_read_texts(group, column), dtype=object) if text else _read_column(group, column)
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
            created=file.attrs["created"],
            links=_read_texts(file["parts"], "links") if "parts/links" in file else [],
            absorbed=_read_texts(file["parts"], "absorbed") if "parts/absorbed" in file else [],
        )


def read_fingerprint(path: Path) -> str:
    """The fingerprint of one file alone."""
    with open_file(path) as file:
        return str(file.attrs["fingerprint"])


def write_contents(file: h5py.File, contents: Contents) -> None:
    """Write catalog, failures and what there is to say of parts, last, into a file that was begun."""
    write_table(file, "catalog", contents.catalog, CATALOG)
    write_table(file, "failures", contents.failures, FAILURES)
    for name, parts in (("links", contents.links), ("absorbed", contents.absorbed)):
        if parts:
            _write_texts(file.require_group("parts"), name, parts)


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
