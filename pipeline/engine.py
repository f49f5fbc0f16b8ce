"""The hot loop of stage one: rows of many videos, into full batches, into embeddings, into the bank.

The work runs in lanes: threads that each take the next video, decode and preprocess it, fill a batch of one constant
shape across videos, run the backbone on it and give each row to its video. A row of K views takes K places, which may
lie in two batches. On a CPU every lane computes with its own share of the cores, because forwards of one thread side by
side beat one forward of many threads beside a decoder; on a GPU the lanes decode and take turns. PyAV, torchvision and
torch release the GIL while they work.

Memory is bounded by a batch per lane and by what `pipeline.sealing` keeps back, never by the length of a video.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch

from pipeline.encoder import Encode
from pipeline.errors import VideoError
from pipeline.frames import Decoded
from pipeline.rows import ReadOptions, Row, read_rows
from pipeline.sealing import PartWriter, VideoSink
from pipeline.sources import source_digest
from pipeline.timing import Spent, shares
from pipeline.views import described

_SHOW_SECONDS = 0.25


@dataclass
class Progress:
    """What a run has done so far; a video counts once it is sealed."""

    videos_sealed: int = 0
    rows_sealed: int = 0
    failures: int = 0
    frames: int = 0  # rows embedded, those of videos that failed or were dropped later among them
    partial: int = 0
    padded: int = 0  # videos shorter than one clip, whose last frame was repeated
    time: dict[str, float] = field(default_factory=dict)  # at the end, see `pipeline.timing.shares`


@dataclass
class _Video:
    """A video between its first row and the end of its sink."""

    row: Mapping[str, Any]
    sink: VideoSink
    waiting: list[tuple[float, tuple[int, ...]]] = field(
        default_factory=list
    )  # seconds and frames of rows in the batch
    ahead: np.ndarray | None = None  # embeddings of the first of them in its first views, where it lacks others
    padded: int = 0  # frames that were repeated to fill the only clip
    decoded: Decoded | None = None  # set when its last frame was read
    ended: bool = False


class _Lane:
    """One thread's share of the work: its batch, and the videos that have rows in it."""

    def __init__(
        self, options: ReadOptions, encode: Encode, batch_size: int, writer: PartWriter, progress: Progress
    ) -> None:
        shape = options.window.input_shape(options.preprocessing.crop)
        self.inputs = torch.zeros(batch_size, *shape, dtype=torch.uint8)
        self.owners: list[_Video] = []  # of the filled places
        self.spent = Spent()
        self.views = len(options.draws(""))
        self.options, self.encode, self.writer, self.progress = options, encode, writer, progress

    def run(self, rows: Iterator[Mapping[str, Any]], stop: threading.Event) -> None:
        """Embed videos until there are no more, or until asked to stop: then what is in flight is dropped."""
        videos: dict[int, _Video] = {}
        try:
            for row in rows:
                video = _Video(row, self.open(row))
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

    def open(self, row: Mapping[str, Any]) -> VideoSink:
        """Where the rows of a video go, beside what its views show."""
        return self.writer.open(row, described(self.options.draws(row["id"])) if self.options.views else None)

    def read(self, video: _Video, stop: threading.Event) -> None:
        """Decode one video into the batch, embedding whenever it is full."""
        decoded = Decoded()
        try:
            with closing(read_rows(video.row, self.options, decoded, self.spent)) as rows:
                for row in rows:
                    if stop.is_set() or video.ended:
                        return
                    if self.options.window.kind == "clip":
                        video.padded = len(row.frames) - len(set(row.frames))
                    self.fill(video, row)
            video.sink.row["digest"] = source_digest(video.row["path"], video.row["kind"])
        except VideoError as error:
            self.fail(video, str(error))
            return
        except OSError as error:
            self.fail(video, f"the file cannot be read: {error.strerror or error}")
            return
        video.decoded = decoded
        self.finish_if_complete(video)

    def fill(self, video: _Video, row: Row) -> None:
        """Put a row into the batch, one place for each view."""
        video.waiting.append((row.seconds, row.frames))
        for inputs in row.inputs:
            self.inputs[len(self.owners)] = inputs
            self.owners.append(video)
            if len(self.owners) == len(self.inputs):
                self.flush()

    def flush(self) -> None:
        """Embed the batch and give each video its rows. Places past the filled ones are leftovers that nobody reads."""
        with self.spent.on("forward"):
            embeddings = self.encode(self.inputs)
        owners, self.owners = self.owners, []
        first = 0
        for _, group in groupby(owners, key=id):
            places = list(group)
            video, own = places[0], embeddings[first : first + len(places)]
            first += len(places)
            if not video.ended:
                with self.spent.on("writing"):
                    self.give(video, own)

    def give(self, video: _Video, embeddings: np.ndarray) -> None:
        """Hand the rows on that have all of their embeddings now: (n, …) float32 more of them, view after view."""
        if video.ahead is not None:
            embeddings = np.concatenate([video.ahead, embeddings])
        count = len(embeddings) // self.views
        complete, rest = np.split(embeddings, [count * self.views])
        video.ahead = rest if len(rest) else None
        if not count:
            return
        with self.writer.lock:
            self.progress.frames += count
        seconds, frames = zip(*video.waiting[:count], strict=True)
        del video.waiting[:count]
        if self.options.views:
            complete = complete.reshape(count, self.views, *complete.shape[1:])
        try:
            video.sink.append(complete, np.array(seconds, np.float64), np.array(frames, np.int64))
        except VideoError as error:
            self.fail(video, str(error))
            return
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
                self.progress.padded += bool(video.padded)
            video.sink.finish(asdict(video.decoded), padded=video.padded)


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
    """Embed the rows of videos and write them to a bank.

    Args:
        rows: one mapping per video: the columns of `pipeline.videos.find_videos`, with `source`, `size` and `mtime`.
        options: how to read the videos.
        encode: from (B, *shape) uint8, the shape that of the window, to (B, …) float32, see `pipeline.encoder`; called
            by several threads.
        batch_size: B.
        writer: where finished videos and failures go.
        lanes: how many videos are in work at once.
        threads_per_lane: threads that torch uses in each lane.
        stop: set it (from a signal handler, say) to drop the videos in flight and return after sealing the rest.
        progress: counts, updated in place.
        on_progress: called a few times a second.

    Raises:
        UserError: the disk is full, or rows cannot be made as `options` say. What was sealed stays.
    """
    take = _shared(rows)
    errors: list[BaseException] = []
    spent: list[Spent] = []
    begun = time.perf_counter()

    def work() -> None:
        try:
            torch.set_num_threads(threads_per_lane)
            lane = _Lane(options, encode, batch_size, writer, progress)
            spent.append(lane.spent)
            lane.run(take(), stop)
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
        progress.time = shares(spent, time.perf_counter() - begun)
        writer.seal()
    if errors:
        raise errors[0]
