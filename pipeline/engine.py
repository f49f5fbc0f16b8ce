"""The hot loop of stage one: frames of many videos, into full batches, into embeddings, into the bank.

The work runs in lanes: threads that each take the next video, decode and preprocess it, fill a batch of one constant
shape across videos, run the backbone on it and give each row to its video. On a CPU every lane computes with its own
share of the cores, because forwards of one thread side by side beat one forward of many threads beside a decoder; on a
GPU the lanes decode and take turns. PyAV, torchvision and torch release the GIL while they work.

Memory is bounded by a batch per lane and by what `pipeline.sealing` keeps back, never by the length of a video.
"""

import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from pipeline.augmentation import Augmentation, preparing
from pipeline.encoder import Encode
from pipeline.errors import VideoError
from pipeline.frames import Decoded, Frame, read_frames
from pipeline.preprocessing import Preprocessing
from pipeline.sampling import Sampling
from pipeline.sealing import PartWriter, VideoSink
from pipeline.sources import source_digest

_SHOW_SECONDS = 0.25


@dataclass(frozen=True)
class ReadOptions:
    """How every video of a run is read; with an augmentation as it draws each video in this view."""

    sampling: Sampling
    preprocessing: Preprocessing
    allow_partial: bool = False
    augmentation: Augmentation | None = None
    view: int = 0


@dataclass
class Progress:
    """What a run has done so far; a video counts once it is sealed."""

    videos_sealed: int = 0
    rows_sealed: int = 0
    failures: int = 0
    frames: int = 0  # embedded, those of videos that failed or were dropped later among them
    partial: int = 0


@dataclass
class _Video:
    """A video between its first frame and the end of its sink."""

    row: Mapping[str, Any]
    sink: VideoSink
    waiting: int = 0  # rows that are in the batch but not yet embedded
    decoded: Decoded | None = None  # set when its last frame was read
    ended: bool = False


class _Lane:
    """One thread's share of the work: its batch, and the videos that have rows in it."""

    def __init__(
        self, options: ReadOptions, encode: Encode, batch_size: int, writer: PartWriter, progress: Progress
    ) -> None:
        size = options.preprocessing.crop
        self.frames = torch.zeros(batch_size, 3, size, size, dtype=torch.uint8)
        self.owners: list[tuple[_Video, float, int]] = []  # of the filled rows: video, seconds, frame index
        self.options, self.encode, self.writer, self.progress = options, encode, writer, progress

    def run(self, rows: Iterator[Mapping[str, Any]], stop: threading.Event) -> None:
        """Embed videos until there are no more, or until asked to stop: then what is in flight is dropped."""
        videos: dict[int, _Video] = {}
        try:
            for row in rows:
                video = _Video(row, self.writer.open(row))
                videos = {key: old for key, old in videos.items() if not old.ended} | {id(video): video}
                self.read(video, stop)
                if stop.is_set():
                    return
            if self.owners:
                self.flush()  # the last batch is filled up with leftovers, so that its shape is the same
        finally:
            for video in videos.values():
                if not video.ended:
                    video.sink.discard()

    def read(self, video: _Video, stop: threading.Event) -> None:
        """Decode one video into the batch, embedding whenever it is full."""
        decoded = Decoded()
        options = self.options
        look = preparing(options.preprocessing, video.row["crop"], options.augmentation, options.view, video.row["id"])
        try:
            with closing(_frames(video.row, self.options, decoded)) as frames:
                for frame in frames:
                    if stop.is_set() or video.ended:
                        return
                    self.frames[len(self.owners)] = look(frame.rgb)
                    self.owners.append((video, frame.seconds, frame.index))
                    video.waiting += 1
                    if len(self.owners) == len(self.frames):
                        self.flush()
            video.sink.row["digest"] = source_digest(video.row["path"], video.row["kind"])
        except VideoError as error:
            self.fail(video, str(error))
            return
        except OSError as error:
            self.fail(video, f"the file cannot be read: {error.strerror or error}")
            return
        video.decoded = decoded
        self.finish_if_complete(video)

    def flush(self) -> None:
        """Embed the batch and give each video its rows. Rows past the filled ones are leftovers that nobody reads."""
        embeddings = self.encode(self.frames)
        owners, self.owners = self.owners, []
        with self.writer.lock:
            self.progress.frames += len(owners)
        first = 0
        for _, group in groupby(owners, key=lambda owner: id(owner[0])):
            videos, seconds, index = zip(*group, strict=True)
            video, rows = videos[0], embeddings[first : first + len(index)]
            first += len(index)
            if video.ended:
                continue
            video.waiting -= len(index)
            try:
                video.sink.append(rows, np.array(seconds, np.float64), np.array(index, np.int64))
            except VideoError as error:
                self.fail(video, str(error))
                continue
            self.finish_if_complete(video)

    def fail(self, video: _Video, reason: str) -> None:
        """Enter a video into the ledger and drop its rows, unless that has happened."""
        if not video.ended:
            video.ended = True
            video.sink.discard()
            with self.writer.lock:
                self.progress.failures += 1
            self.writer.fail(video.row, reason)

    def finish_if_complete(self, video: _Video) -> None:
        """Hand a video over for sealing once its last row has its embedding."""
        if video.decoded is not None and not video.waiting and not video.ended:
            video.ended = True
            with self.writer.lock:
                self.progress.partial += bool(video.decoded.partial)
            video.sink.finish(asdict(video.decoded))


def _frames(row: Mapping[str, Any], options: ReadOptions, decoded: Decoded) -> Generator[Frame, None, None]:
    yield from read_frames(
        row["path"],
        row["kind"],
        options.sampling,
        decoded,
        start=row["start"],
        end=row["end"],
        image_fps=None if math.isnan(row["fps"]) else row["fps"],
        allow_partial=options.allow_partial,
    )


def _shared(rows: Iterable[Mapping[str, Any]]) -> Callable[[], Iterator[Mapping[str, Any]]]:
    """One queue of videos for several lanes: each calls the result for an iterator that takes what is next."""
    iterator, lock = iter(rows), threading.Lock()

    def take() -> Iterator[Mapping[str, Any]]:
        while True:
            with lock:
                row = next(iterator, None)
            if row is None:
                return
            yield row

    return take


def extract_videos(
    rows: Iterable[Mapping[str, Any]],
    options: ReadOptions,
    encode: Encode,
    batch_size: int,
    writer: PartWriter,
    *,
    lanes: int,
    threads_per_lane: int,
    stop: threading.Event,
    progress: Progress,
    on_progress: Callable[[Progress], None],
) -> None:
    """Embed the frames of videos and write them to a bank.

    Args:
        rows: one mapping per video: the columns of `pipeline.videos.find_videos`, with `source`, `size` and `mtime`.
        options: how to read the videos.
        encode: from (B, 3, S, S) uint8 to (B, …) float32, see `pipeline.encoder`; called by several threads.
        batch_size: B.
        writer: where finished videos and failures go.
        lanes: how many videos are in work at once.
        threads_per_lane: threads that torch uses in each lane.
        stop: set it (from a signal handler, say) to drop the videos in flight and return after sealing the rest.
        progress: counts, updated in place.
        on_progress: called a few times a second.

    Raises:
        UserError: the disk is full. What was sealed stays.
    """
    take = _shared(rows)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            torch.set_num_threads(threads_per_lane)
            _Lane(options, encode, batch_size, writer, progress).run(take(), stop)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the calling thread raises it
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=work, name=f"lane {number}") for number in range(lanes)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            next((thread for thread in threads if thread.is_alive()), threads[0]).join(_SHOW_SECONDS)
            writer.seal_if_due()
            on_progress(progress)
    except BaseException:
        stop.set()
        raise
    finally:
        for thread in threads:
            thread.join()
        writer.seal()
    if errors:
        raise errors[0]
