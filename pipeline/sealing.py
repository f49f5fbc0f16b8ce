"""Writing embeddings to disk so that a kill at any instant costs only the videos in flight.

Finished videos are collected in memory and sealed together as a part (`pipeline.bank`): a video counts as banked when
it is sealed. That happens four times a second where it takes no time, and so seldom that what every part takes, however
few videos it has, is no more than 1 % of a core's time; later in a run less often, so that there are not too many
parts: what is in memory may be 1 % of the run, and never more than half a minute of it. A video too long for memory
streams into a part of its own. One thread writes at a time, and the others go on with their work meanwhile.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import features as hdf5
from pipeline.bank import fingerprint_of, parts_folder, seal, unique_name, unsealed
from pipeline.errors import UserError, VideoError
from pipeline.sources import source_text

STREAM_BYTES = 32 << 20  # a video with more embeddings than this goes to disk as it comes
PENDING_BYTES = 32 << 20  # finished videos that wait in memory to be sealed
_OFTEN, _SELDOM = 0.25, 30.0  # seconds between two seals, at least and at most
_BUSY = 0.01  # of the time, at most, goes into sealing parts, beside what each video takes
_IN_MEMORY = 0.01  # of the run so far may wait to be sealed

_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
_Views = Sequence[Mapping[str, Any]] | None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a used-up quota or a folder that cannot be written into one clear line.

    Raises:
        UserError: writing beside `path` failed. What was sealed before stays.
    """
    try:
        yield
    except BrokenPipeError:  # of our own output, not of the disk
        raise
    except OSError as error:
        raise UserError(
            f"Writing {path} failed: {error.strerror or error}. Everything sealed before is safe; "
            "mend that and run the same command again to go on."
        ) from error


def stored(rows: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Rows in the dtype of the bank.

    Args:
        rows: (N, …) float32 embeddings.
        dtype: float16 or float32.

    Raises:
        VideoError: a value is not finite, or lies beyond float16.
    """
    if not np.isfinite(rows).all():
        raise VideoError("the backbone gave values that are not finite (NaN or infinity); are these the right weights?")
    with np.errstate(over="ignore"):
        converted = rows.astype(dtype)
    if not np.isfinite(converted).all():
        raise VideoError(f"an embedding value of {np.abs(rows).max():.6g} is beyond float16; use --store float32")
    return converted


@dataclass
class _Finished:
    """A video that waits to be sealed.

    Attributes:
        row: of the catalog.
        arrays: what `hdf5.VideoWriter.write` takes.
        views, padded: as of `VideoSink`.
    """

    row: dict[str, Any]
    arrays: _Arrays
    views: _Views
    padded: int

    @property
    def bytes(self) -> int:
        """What its arrays take."""
        return sum(array.nbytes for array in self.arrays)


class VideoSink:
    """Takes the rows of one video in order, then either `finish` or `discard`.

    Args:
        writer: seals the video.
        row: the catalog values known beforehand.
        views: what each of K views shows, as plain values; None for a video without views.
    """

    def __init__(self, writer: "PartWriter", row: Mapping[str, Any], views: _Views = None) -> None:
        self._writer, self._views = writer, views
        self.row = {key: value for key, value in row.items() if key != "path"}
        self.rows = 0
        self._pieces: list[_Arrays] = []
        self._bytes = 0
        self._temporary: Path
        self._output: hdf5.Output
        self._stream: hdf5.VideoWriter | None = None

    def append(self, features: np.ndarray, timestamps: np.ndarray, frames: np.ndarray) -> None:
        """Add N rows.

        Args:
            features: (N, D), (N, C, H, W) or (N, K, D) float32.
            timestamps: (N,) float64 seconds.
            frames: (N, F) int64 numbers of the frames of each row; (N,) where it is one.

        Raises:
            VideoError: a value cannot be stored.
            UserError: the disk is full.
        """
        features = stored(features, self._writer.dtype)
        frames = frames[:, None] if frames.ndim == 1 else frames
        self._pieces.append((features, timestamps, frames))
        self._bytes += features.nbytes + frames.nbytes
        self.rows += len(features)
        if self._bytes > STREAM_BYTES:
            try:
                with disk_errors(self._writer.path):
                    self._flush()
            except BaseException:
                self.discard()
                raise

    def _gathered(self) -> _Arrays:
        features, timestamps, frames = (np.concatenate(pieces) for pieces in zip(*self._pieces, strict=True))
        return features, timestamps, frames

    def _flush(self) -> None:
        """Write what waits."""
        with self._writer.disk:
            if self._stream is None:
                self._stream = self._opened()
            if self._pieces:
                self._output.reserve(self._bytes)
                self._stream.append(*self._gathered())
                self._output.file.flush()
            self._pieces, self._bytes = [], 0

    def _opened(self) -> hdf5.VideoWriter:
        """Begin a part for this video alone."""
        self._temporary = unsealed(parts_folder(self._writer.path))
        try:
            self._output = hdf5.Output(self._temporary, in_memory=False)
        except OSError:
            self._temporary.unlink()
            raise
        hdf5.begin(self._output.file, self._writer.config, self._writer.fingerprint)
        return hdf5.VideoWriter(self._output.file, self.row["id"], label=self.row["label"], source=self.row["source"])

    def finish(self, found: Mapping[str, Any], *, padded: int = 0) -> None:
        """The video is complete.

        Args:
            found: the catalog values that only decoding told.
            padded: how often its last frame was repeated, in a video shorter than one clip.
        """
        self.row.update(found, rows=self.rows, banked=self._writer.moment())
        if self._stream is None:
            self._writer.accept(_Finished(self.row, self._gathered(), self._views, padded))
            return
        try:
            with self._writer.disk, disk_errors(self._writer.path):
                self._flush()
                self._output.reserve(hdf5.ROW_BYTES)
                self._stream.finish(views=self._views, padded=padded)
                self._writer.close_part(self._output, self._temporary, [self.row], [])
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Forget the video and remove what it wrote."""
        self._pieces = []
        if self._stream is not None:
            self._output.close()
            self._temporary.unlink(missing_ok=True)


class PartWriter:
    """Seals the finished videos and the failures of one process as parts of a bank; several threads may use it.

    Args:
        path: the bank.
        config: what made the embeddings; `config["recipe"]["store"]` is the dtype.
        newer_than: the latest time in the bank; what is written now counts as newer, also where clocks disagree.
        on_sealed: called with the numbers of videos, failures and rows of each sealed part.

    Attributes:
        lock: held while counts change, and never for long.
        disk: held while something is written: two together would overrun the room that each has found.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        on_sealed: Callable[[int, int, int], None],
        *,
        newer_than: str = "",
    ) -> None:
        self.path = path
        self.config = dict(config)
        self.fingerprint = fingerprint_of(config["recipe"])
        self.dtype = np.dtype(config["recipe"]["store"])
        self.lock, self.disk = threading.RLock(), threading.RLock()  # the first may be taken within the second
        self._newer_than = newer_than
        self.on_sealed = on_sealed
        self._finished: list[_Finished] = []
        self._failures: list[dict[str, Any]] = []
        self._bytes = 0
        self._begun = self._sealed_at = time.monotonic()
        self._least_seconds = 0.0  # that sealing has taken so far: hardly more than what every part takes

    def moment(self) -> str:
        """The time to enter for something written now."""
        return hdf5.utc_after(self._newer_than)

    def open(self, row: Mapping[str, Any], views: _Views = None) -> VideoSink:
        """A sink for the rows of one video; arguments are those of `VideoSink`."""
        return VideoSink(self, row, views)

    def accept(self, finished: _Finished) -> None:
        """Take a finished video that fits in memory (called by its sink)."""
        with self.lock:
            self._finished.append(finished)
            self._bytes += finished.bytes
        self.seal_if_due()

    def fail(self, row: Mapping[str, Any], reason: str) -> None:
        """Enter a video into the ledger."""
        entry = {"id": row["id"], "path": row["source"], "reason": source_text(reason), "when": self.moment()}
        with self.lock:
            self._failures.append({**entry, "size": row["size"], "mtime": row["mtime"]})
        self.seal_if_due()

    def seal_if_due(self) -> None:
        """Seal when enough time has passed, unless another thread does, or when enough bytes wait."""
        now = time.monotonic()
        interval = min(_SELDOM, max(_OFTEN, _IN_MEMORY * (now - self._begun), self._least_seconds / _BUSY))
        full = self._bytes > PENDING_BYTES
        if (full or now - self._sealed_at >= interval) and self.disk.acquire(blocking=full):
            try:
                self.seal()
            finally:
                self.disk.release()

    def seal(self) -> None:
        """Seal everything that is finished.

        Raises:
            UserError: the disk is full.
        """
        with self.disk, disk_errors(self.path):
            with self.lock:
                finished, failures = self._finished, self._failures
                self._finished, self._failures = [], []
            if not finished and not failures:
                return
            begun = time.monotonic()
            try:
                self._write_part(finished, failures)
            except BaseException:
                with self.lock:
                    self._finished, self._failures = finished + self._finished, failures + self._failures
                raise
            with self.lock:
                self._bytes -= sum(each.bytes for each in finished)
            self._sealed_at = time.monotonic()
            took = self._sealed_at - begun
            self._least_seconds = min(took, self._least_seconds or took)

    def _write_part(self, finished: list[_Finished], failures: list[dict[str, Any]]) -> None:
        temporary = unsealed(parts_folder(self.path))
        try:
            with hdf5.Output(temporary, in_memory=True) as output:
                hdf5.begin(output.file, self.config, self.fingerprint)
                for each in finished:
                    row = each.row
                    video = hdf5.VideoWriter(output.file, row["id"], label=row["label"], source=row["source"])
                    video.write(*each.arrays)
                    video.finish(views=each.views, padded=each.padded)
                self.close_part(output, temporary, [each.row for each in finished], failures)
        finally:
            temporary.unlink(missing_ok=True)

    def close_part(
        self, output: hdf5.Output, temporary: Path, rows: list[dict[str, Any]], failures: list[dict[str, Any]]
    ) -> None:
        """Write the catalog of a part, close it and give it its name.

        Raises:
            UserError: another run has given the bank other settings meanwhile.
        """
        if self.path.exists() and hdf5.read_fingerprint(self.path) != self.fingerprint:
            raise UserError(f"Another run has made {self.path} anew with other settings; give this one another --out.")
        catalog = hdf5.as_table(rows, hdf5.CATALOG)
        ledger = hdf5.as_table(failures, hdf5.FAILURES)
        hdf5.write_contents(output.file, hdf5.Contents("", {}, catalog, ledger))
        output.close()
        seal(temporary, parts_folder(self.path) / unique_name("part"))
        with self.lock:
            self.on_sealed(len(rows), len(failures), sum(row["rows"] for row in rows))
