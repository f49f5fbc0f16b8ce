"""A bank for Python's own tools: a mapping of arrays, and as dask arrays, xarray, and a data set of torch."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framebank.asking import StrPath
from pipeline import bank as banks
from pipeline.blockwise import rows_at_once
from pipeline.errors import UserError
from pipeline.features import records, time_axis

if TYPE_CHECKING:
    from dask.array import Array as DaskArray
    from xarray import DataArray

    from framebank.datasets import SequenceDataset

_DIMENSIONS = {2: ("time", "feature"), 3: ("view", "time", "feature"), 4: ("time", "channel", "height", "width")}


class Bank(banks.Bank):
    """A bank, opened for reading: a mapping of video ids to their embeddings, each read when it is asked for.

    `bank[id]` is (T, D) float16 or float32, of maps (T, C, H, W), of K views (K, T, D). A `Bank` may be given wherever
    the path of one may.

    Attributes:
        path: the file.
        catalog: DataFrame, one row per video: id, label, split, group, rows (T), fps, duration (seconds), source, and
            columns of your own manifest (text).
        failures: DataFrame, one row per video that could not be banked: id, path, reason, when.
        config: what made the embeddings (`recipe`) and on what (`compute`).
        fingerprint: sha256 of the recipe: banks with the same one may be mixed.

    Raises:
        UserError: there is no such bank, it cannot be read, or its files were made differently.
    """

    def __init__(self, path: StrPath) -> None:
        super().__init__(Path(path))

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __reduce__(self) -> tuple[type["Bank"], tuple[str]]:
        return Bank, (os.fspath(self.path),)

    def shape(self, video_id: str) -> tuple[int, ...]:
        """Shape of the embeddings of one video, without reading them. KeyError: there is no such video."""
        rows, recipe = self._rows[video_id], self.config["recipe"]
        views = (recipe["views"]["count"],) if "views" in recipe else ()
        return (*views, rows, *recipe["feature_shape"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored embeddings: float16 or float32."""
        return np.dtype(self.config["recipe"]["store"])

    @property
    def _rows(self) -> dict[str, int]:
        return dict(zip(self.catalog["id"], self.catalog["rows"].tolist(), strict=True))

    def dask(self, video_id: str | None = None) -> "DaskArray":
        """The embeddings of one video as a dask array, or of all videos, one after the other in the catalog's order.

        Args:
            video_id: the video; None for all.

        Returns:
            the array, of the shape and type of `bank[video_id]`, its rows in chunks that are read when they are
            computed. Of all videos the rows are joined: (N, D), N being `bank.catalog["rows"].sum()`.

        Raises:
            KeyError: there is no such video.
            UserError: all of a bank without videos.
        """
        import dask.array

        if video_id is not None:
            return self._dask(video_id, self.shape(video_id))
        if not len(self):
            raise UserError(f"{self.path} holds no video, so there are no rows.")
        rows, first = self._rows, self.shape(next(iter(self)))
        axis = len(first) - 1 - len(self.config["recipe"]["feature_shape"])
        parts = [self._dask(each, (*first[:axis], rows[each], *first[axis + 1 :])) for each in self]
        return dask.array.concatenate(parts, axis=axis)

    def _dask(self, video_id: str, shape: tuple[int, ...]) -> "DaskArray":
        import dask.array
        from dask.base import tokenize

        rows = _Rows(self, video_id, shape)
        chunks = [-1] * len(shape)
        chunks[rows.axis] = rows_at_once(int(np.prod([size for axis, size in enumerate(shape) if axis != rows.axis])))
        name = f"framebank-{tokenize(os.fspath(self.path.absolute()), self.fingerprint, video_id, shape)}"
        return dask.array.from_array(rows, chunks=tuple(chunks), name=name, asarray=True)

    def xarray(self, video_id: str) -> "DataArray":
        """The embeddings of one video with named dimensions, which needs the package xarray.

        Args:
            video_id: the video.

        Returns:
            dimensions (time, feature), of maps (time, channel, height, width), of views (view, time, feature).
            Coordinate `time` in seconds (float64, NaN where the source has no clock), and along it `frame`, the number
            of the frame in its source. The catalog's row is in `attrs`.

        Raises:
            KeyError: there is no such video.
            UserError: xarray is not installed.
        """
        try:
            import xarray
        except ImportError:
            raise UserError("Bank.xarray needs the package xarray: pip install 'framebank[xarray]'") from None
        features = self[video_id]
        row = records(self.catalog[self.catalog["id"] == video_id])[0]
        return xarray.DataArray(
            features,
            dims=_DIMENSIONS[features.ndim],
            coords={"time": self.timestamps(video_id), "frame": ("time", self.frame_index(video_id))},
            name="features",
            attrs={"id": video_id, "label": row["label"], "source": row["source"], "fingerprint": self.fingerprint},
        )

    def torch_dataset(
        self,
        ids: Iterable[str] | None = None,
        *,
        target: str | None = None,
        targets: StrPath | None = None,
        segments: StrPath | None = None,
        frame_values: StrPath | None = None,
        multi_label: bool = False,
        regression: bool = False,
        background: str | None = None,
        allow: Collection[str] = (),
    ) -> "SequenceDataset":
        """The videos that have a target as a data set of torch, for a training loop of one's own.

        Args:
            ids: which videos, in this order; None for all.
            target, targets, segments, frame_values, multi_label, regression, background: as of `train_head`; the
                bank's label unless said otherwise.
            allow: any of "overlap", "unknown", "beyond", as `--allow-overlap` and the others of `framebank train-head`.

        Returns:
            the data set, of (sequence, target) pairs; see `SequenceDataset`.

        Raises:
            UserError: the targets cannot be read or do not fit the bank, an id that is not there, or no video left.
        """
        from framebank.datasets import SequenceDataset
        from pipeline.targets import as_asked

        files = {"targets": targets, "segments": segments, "frame_values": frame_values}
        asked: dict[str, Any] = {name: None if file is None else Path(file) for name, file in files.items()}
        asked |= {"target": target, "multi_label": multi_label, "regression": regression}
        asked |= {"background": background, "allow": allow}
        return SequenceDataset(self, as_asked(asked, self), ids)


class _Rows:
    """The embeddings of one video as something that dask takes for an array: shape, type, and slices that are read."""

    def __init__(self, bank: Bank, video_id: str, shape: tuple[int, ...]) -> None:
        self._bank, self._id, self.shape, self.dtype, self.ndim = bank, video_id, shape, bank.dtype, len(shape)
        self.axis = time_axis(np.empty((0,) * len(shape)))

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        start, stop, step = index[self.axis].indices(self.shape[self.axis])
        rows = self._bank.read(self._id, start, max(start, stop))
        return rows[tuple(slice(None, None, step) if axis == self.axis else each for axis, each in enumerate(index))]
