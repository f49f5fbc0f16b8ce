"""The hot loop of stage one: rows of many videos, into full batches, into embeddings, into the bank.

The work runs in lanes: threads that each take the next video, decode and preprocess it, fill a batch of one constant
shape across videos, run the backbone on it and give each row to its video. A row of K views takes K places, which may
lie in two batches. On a CPU every lane computes with its own share of the cores, because forwards of one thread side by
side beat one forward of many threads beside a decoder; it decodes several batches before it embeds them one by one,
since decoder and network each find the caches full of the other's data when they change. On a GPU a lane submits its
batch, decodes into another one meanwhile, and takes the embeddings of the first when that is full. PyAV, torchvision
and torch release the GIL while they work.

Memory is bounded by 32 MiB or one batch per lane, two batches on a GPU, and by what `pipeline.sealing` keeps back,
never by the length of a video.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.encoder import Encode
from pipeline.errors import VideoError
from pipeline.frames import Decoded
from pipeline.rows import ReadOptions, Row, read_rows
from pipeline.sealing import PartWriter, VideoSink
from pipeline.sources import source_digest
from pipeline.timing import Spent, shares
from pipeline.views import described

CPU = torch.device("cpu")
_SHOW_SECONDS = 0.25
_STAGED_BYTES = 32 << 20  # rows that a lane prepares on a CPU before it embeds them, at most
_STAGED_SECONDS = 0.5  # that it takes to embed them: at the end one lane waits for another by so much


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


class InWork(NamedTuple):
    """A video that a lane has in work."""

    row: Mapping[str, Any]
    seconds: float  # since its last row was read, or since it was begun


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
    """One thread's share of the work: its batches, and the videos that have rows in them."""

    def __init__(
        self,
        options: ReadOptions,
        encode: Encode,
        batch_size: int,
        buffers: Sequence[Tensor],
        writer: PartWriter,
        progress: Progress,
        stop: threading.Event,
        ending: Callable[[], bool],
    ) -> None:
        self.buffers = deque(buffers)  # the first is being filled; the others are those of batches under way
        self.batch_size, self.stop = batch_size, stop
        self.ready = batch_size  # places that are filled before they are embedded
        self.ending = ending  # whether hardly a video is left
        self.owners: list[_Video] = []  # of its filled places
        self.under_way: deque[tuple[Callable[[], np.ndarray], list[_Video]]] = deque()
        self.spent = Spent()
        self.now: tuple[Mapping[str, Any], float] | None = None  # what is read, and when its last row came
        self.views = len(options.draws(""))
        self.options, self.encode, self.writer, self.progress = options, encode, writer, progress

    def run(self, rows: Iterator[Mapping[str, Any]]) -> None:
        """Embed videos until there are no more, or until asked to stop: then what is in flight is dropped.

        Near the end a lane embeds every batch at once, so that it does not have many left when the others are done.
        """
        videos: dict[int, _Video] = {}
        try:
            for row in rows:
                video = _Video(row, self.open(row))
                videos = {key: old for key, old in videos.items() if not old.ended} | {id(video): video}
                self.read(video)
                if self.stop.is_set():
                    return
            if self.owners:
                self.flush()
            while self.under_way:
                self.take()
        finally:
            self.now = None
            for video in videos.values():
                if not video.ended:
                    video.sink.discard()

    def open(self, row: Mapping[str, Any]) -> VideoSink:
        """Where the rows of a video go, beside what its views show."""
        return self.writer.open(row, described(self.options.draws(row["id"])) if self.options.views else None)

    def read(self, video: _Video) -> None:
        """Decode one video into the buffer, embedding whenever it is full."""
        decoded = Decoded()
        self.now = (video.row, time.monotonic())
        try:
            with closing(read_rows(video.row, self.options, decoded, self.spent)) as rows:
                for row in rows:
                    self.now = (video.row, time.monotonic())
                    if self.stop.is_set() or video.ended:
                        return
                    if self.options.window.kind == "clip":
                        video.padded = len(row.frames) - len(set(row.frames))
                    self.fill(video, row)
            with self.spent.on("writing"):
                video.sink.row["digest"] = source_digest(video.row["path"], video.row["kind"])
        except VideoError as error:
            self.fail(video, str(error))
            return
        except OSError as error:
            self.fail(video, f"the file cannot be read: {error.strerror or error}")
            return
        video.decoded = decoded
        with self.spent.on("writing"):
            self.finish_if_complete(video)

    def fill(self, video: _Video, row: Row) -> None:
        """Put a row into the buffer, one place for each view."""
        video.waiting.append((row.seconds, row.frames))
        for inputs in row.inputs:
            with self.spent.on("preparing"):
                self.buffers[0][len(self.owners)] = inputs
            self.owners.append(video)
            if len(self.owners) >= (self.batch_size if self.ending() else self.ready):
                self.flush()

    def flush(self) -> None:
        """Submit what was filled, batch by batch, and take earlier results where there is no other buffer to fill.

        Places past the filled ones are leftovers that nobody reads: the shape of the last batch is the same.
        """
        buffer, owners, self.owners = self.buffers[0], self.owners, []
        self.buffers.rotate(-1)
        begun = time.perf_counter()
        for first in range(0, len(owners), self.batch_size):
            if self.stop.is_set():
                return
            places = slice(first, first + self.batch_size)
            with self.spent.on("forward"):
                self.under_way.append((self.encode(buffer[places]), owners[places]))
            if len(self.under_way) == len(self.buffers):
                self.take()
            if self.now:  # a slow network is no hanging video
                self.now = (self.now[0], time.monotonic())
        seconds_per_row = (time.perf_counter() - begun) / len(owners)
        batches = min(_STAGED_SECONDS / seconds_per_row, len(buffer)) // self.batch_size
        self.ready = max(1, int(batches)) * self.batch_size

    def take(self) -> None:
        """Wait for the results of the earliest batch under way, and give each video its rows."""
        result, owners = self.under_way.popleft()
        with self.spent.on("forward"):
            embeddings = result()
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


def _shared(
    rows: Iterable[Mapping[str, Any]], lanes: int
) -> tuple[Callable[[], Iterator[Mapping[str, Any]]], Callable[[], bool]]:
    """One queue of videos for several lanes: each calls the first result for an iterator that takes what is next; the
    second says whether there are fewer than `lanes` left."""
    iterator, lock = iter(rows), threading.Lock()
    following = deque(islice(iterator, lanes))

    def take() -> Iterator[Mapping[str, Any]]:
        while True:
            with lock:
                if not following:
                    return
                row = following.popleft()
                following.extend(islice(iterator, 1))
            yield row

    return take, lambda: len(following) < lanes


def _own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, what this thread copies to a GPU and prepares there goes beside what other threads do."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()


def row_buffers(options: ReadOptions, batch_size: int, device: torch.device, ahead: int) -> list[Tensor]:
    """Where a lane puts its rows: batches to fill, and one for each of those under way.

    They are where the rows are prepared; before a GPU in memory that it can read by itself.
    """
    shape = options.window.input_shape(options.preprocessing.crop)
    pinned = device.type == "cuda" and options.device is None
    batches = max(1, _STAGED_BYTES // (batch_size * prod(shape))) if device.type == "cpu" else 1
    return [
        torch.zeros(batches * batch_size, *shape, dtype=torch.uint8, device=options.device, pin_memory=pinned)
        for _ in range(ahead + 1)
    ]


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
    watch: Callable[[Sequence[InWork]], None] | None = None,
    device: torch.device = CPU,
    ahead: int = 0,
) -> None:
    """Embed the rows of videos and write them to a bank.

    Args:
        rows: one mapping per video: the columns of `pipeline.videos.find_videos`, with `source`, `size` and `mtime`.
        options: how to read the videos.
        encode: starts the forward of (B, *shape) uint8, the shape that of the window, and returns what waits for its
            (B, …) float32, see `pipeline.encoder`; called by several threads.
        batch_size: B.
        writer: where finished videos and failures go.
        lanes: how many videos are in work at once.
        threads_per_lane: threads that torch uses in each lane.
        stop: set it (from a signal handler, say) to drop the videos in flight and return after sealing the rest.
        progress: counts, updated in place.
        on_progress: called a few times a second.
        watch: called as often, with what each lane that is at work has in work.
        device: where `encode` computes.
        ahead: batches of each lane that may be under way while it fills the next, see `pipeline.encoder.batches_ahead`.

    Raises:
        UserError: the disk is full, or rows cannot be made as `options` say. What was sealed stays.
    """
    take, ending = _shared(rows, lanes)
    errors: list[BaseException] = []
    at_work: list[_Lane] = []
    begun = time.perf_counter()

    def work() -> None:
        try:
            torch.set_num_threads(threads_per_lane)
            with _own_stream(device):
                buffers = row_buffers(options, batch_size, device, ahead)
                lane = _Lane(options, encode, batch_size, buffers, writer, progress, stop, ending)
                at_work.append(lane)
                lane.run(take())
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
            if watch is not None:
                now = time.monotonic()
                watch([InWork(row, now - since) for row, since in [lane.now for lane in at_work if lane.now]])
    except BaseException:
        stop.set()
        raise
    finally:
        for thread in threads:
            thread.join()
        progress.time = shares([lane.spent for lane in at_work], time.perf_counter() - begun)
        writer.seal()
    if errors:
        raise errors[0]
