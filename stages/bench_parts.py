"""The parts of an extraction by themselves, and the whole: each timed in as many lanes as the engine uses.

A lane is a thread, as in `pipeline.engine`, and counts its own busy seconds: a rate is that of all lanes while none of
them waits for another, so that the parts add up to a bound that the whole cannot pass. Every part does what the whole
does for the same videos: decoding reads all of their frames, preparing makes as many rows out of frames of their sizes,
the forward computes as many rows of theirs in full batches, and writing seals as many.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice, takewhile
from math import ceil, isnan
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline import bank as banks
from pipeline.bank import Bank
from pipeline.engine import Progress, row_buffers
from pipeline.extraction import Encoding, embed
from pipeline.features import records
from pipeline.frames import Decoded, Frame, read_frames
from pipeline.headers import probe_videos
from pipeline.pieces import dearest_first
from pipeline.planes import at_once
from pipeline.resuming import with_state
from pipeline.rows import Assembler, ReadOptions, Shown, read_rows
from pipeline.sealing import PartWriter, stored
from pipeline.sources import source_digest
from pipeline.timing import PARTS
from pipeline.windows import windows

DECODING, PREPARING, FORWARD, WRITING = PARTS
_HELD_BYTES = 64 << 20  # prepared rows that lie in memory for the forward, and to hold its embeddings against the bank
_CYCLED_BYTES = 16 << 20  # decoded frames of a video that are prepared in turn: more than a core's own caches hold
_PROBED_AT_ONCE = 64
_Video = Mapping[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Sample:
    """What the parts are measured on.

    Attributes:
        videos: rows of `with_state` that the engine has banked whole.
        frames, rows: of each of them, by id: how many were decoded, and banked.
        encoding: how.
        lanes, threads: how many there are, and torch's threads in each.
        inputs: (M, *input_shape) uint8: prepared rows, the first ones of the first videos.
        inputs_of: how many of `inputs` each of those videos has, by id.
        stop: set when the bench is interrupted: no more frames are read.
    """

    videos: Sequence[_Video]
    frames: Mapping[str, int]
    rows: Mapping[str, int]
    encoding: Encoding
    lanes: int
    threads: int
    inputs: Tensor
    inputs_of: Mapping[str, int]
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def all_rows(self) -> int:
        """How many rows the videos have together."""
        return sum(self.rows.values())


def chosen(table: pd.DataFrame, frames: int) -> pd.DataFrame:
    """Videos of a table of `find_videos`, drawn at random but always the same, that declare so many frames together.

    What does not declare any counts as long as the others do on average. They come in the order of an extraction.
    """
    drawn = np.random.default_rng(0).permutation(len(table))
    taken, declared, known = 0, 0, 0
    while taken < len(table):
        probed = probe_videos(table.iloc[drawn[taken : taken + _PROBED_AT_ONCE]])
        for count in probed["frames_declared"]:
            taken, known, declared = taken + 1, known + (count > 0), declared + max(0, int(count))
            if known and declared * taken / known >= frames:
                return _ordered(table.iloc[np.sort(drawn[:taken])])
    return _ordered(table)


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    return with_state(dearest_first(table, probe_videos(table)))


def whole(out: Path, table: pd.DataFrame, encoding: Encoding) -> tuple[Progress, float, bool]:
    """Bank videos at `out` with the engine, to the last sealed part.

    Returns:
        what it has done, its seconds, and whether it was interrupted.
    """
    progress = Progress()
    banks.create(out, encoding.recorded)
    begun = time.perf_counter()
    stopped = embed(out, table, encoding, progress, on_progress=lambda _: None, on_note=lambda _: None)
    return progress, time.perf_counter() - begun, stopped


def sample_of(bank: Bank, table: pd.DataFrame, encoding: Encoding, lanes: int, threads: int) -> Sample:
    """The videos of a table that a bank holds whole, and rows of theirs prepared."""
    catalog = bank.catalog.set_index("id")
    videos = [video for video in records(table) if video["id"] in catalog.index]
    inputs, inputs_of = _prepared(videos, encoding)
    frames = {str(key): int(each) for key, each in catalog["frames_decoded"].items()}
    rows = {str(key): int(each) for key, each in catalog["rows"].items()}
    return Sample(videos, frames, rows, encoding, lanes, threads, inputs, inputs_of)


def _prepared(videos: Iterable[_Video], encoding: Encoding) -> tuple[Tensor, dict[str, int]]:
    shape = encoding.options.window.input_shape(encoding.options.preprocessing.crop)
    room = max(encoding.batch_size, _HELD_BYTES // int(np.prod(shape)))
    inputs: list[Tensor] = []
    inputs_of: dict[str, int] = {}
    for video in videos:
        with closing(read_rows(video, encoding.options, Decoded())) as rows:
            own = [row.inputs for row in islice(rows, room - len(inputs))]
        inputs, inputs_of[video["id"]] = [*inputs, *own], len(own)
        if len(inputs) == room:
            break
    together = torch.cat(inputs)
    sent = encoding.device.type == "cuda" and together.device.type == "cpu"
    return together.pin_memory() if sent else together, inputs_of


def decoding(sample: Sample) -> float:
    """Rows per second of all lanes, if decoding were all."""

    def lane(videos: Iterator[_Video]) -> float:
        begun = time.perf_counter()
        for video in videos:
            deque(_frames(sample, video), maxlen=0)
        return time.perf_counter() - begun

    return sample.all_rows / _lane_seconds(sample, lane, sample.videos)


def preparing(sample: Sample) -> float:
    """Rows per second of all lanes, if preparing were all, up to rows that lie in the lanes' batches.

    Each video's first frames are prepared over and over, as often as it has frames, as if they were other ones. Where
    motion is measured they are the frames of one row, since motion between the same two is measured once.
    """
    encoding, options = sample.encoding, sample.encoding.options

    def lane(videos: Iterator[_Video]) -> float:
        seconds, filled = 0.0, 0
        (buffer,) = row_buffers(options, encoding.batch_size, encoding.device, 0)
        for video in videos:
            few = list(_first_frames(_frames(sample, video), options))
            begun = time.perf_counter()
            draws = options.draws(video["id"])
            assembler = Assembler(options.preprocessing, options.window, options.flow, video["crop"], draws)
            numbers = takewhile(lambda _: not sample.stop.is_set(), range(sample.frames[video["id"]]))
            frames = (few[number % len(few)]._replace(index=number) for number in numbers)
            for window in windows(options.window, _shown(assembler, frames, options.device)):
                for inputs in assembler.row(window).inputs:
                    buffer[filled % len(buffer)] = inputs
                    filled += 1
            buffer.flatten()[0].item()  # a device is done with all of them
            seconds += time.perf_counter() - begun
        return seconds

    return sample.all_rows / _lane_seconds(sample, lane, sample.videos)


def forward(sample: Sample, turn: int) -> tuple[float, np.ndarray]:
    """Rows per second of all lanes, if the forward were all, and the embeddings of `sample.inputs`.

    In every turn the rows lie in other places of other batches; the last batch is filled up with the first rows.

    Returns:
        the rate, and (M, …) float32.
    """
    encode, size = sample.encoding.encode, sample.encoding.batch_size
    held = len(sample.inputs)
    places = (np.arange(ceil(held / size) * size) + turn) % held
    batches = [_gathered(sample.inputs, each) for each in np.split(places, len(places) // size)]
    results: dict[int, np.ndarray] = {}
    numbers = range(max(len(batches), ceil(sample.all_rows / size)))

    def lane(mine: Iterator[int]) -> float:
        begun = time.perf_counter()
        before: tuple[int, Callable[[], np.ndarray]] | None = None
        for number in mine:
            submitted = number, encode(batches[number % len(batches)])
            if before is not None:
                results[before[0] % len(batches)] = before[1]()
            before = submitted
        if before is not None:
            results[before[0] % len(batches)] = before[1]()
        return time.perf_counter() - begun

    rate = len(numbers) * size / _lane_seconds(sample, lane, numbers)
    found = np.concatenate([results[number] for number in range(len(batches))])
    embeddings = np.empty((held, *found.shape[1:]), found.dtype)
    embeddings[places] = found
    return rate, embeddings


def _gathered(inputs: Tensor, places: np.ndarray) -> Tensor:
    """Rows at some places, in such memory as they lie in."""
    rows = inputs[torch.from_numpy(places)]
    return rows.pin_memory() if inputs.is_pinned() else rows


def writing(sample: Sample, out: Path) -> float:
    """Rows per second of all lanes, if writing were all: embeddings of this shape, sealed as a bank of these videos."""
    encoding = sample.encoding
    banks.create(out, encoding.recorded)
    writer = PartWriter(out, encoding.recorded, lambda *_: None)
    shape = encoding.recorded["recipe"]["feature_shape"]
    batch = np.random.default_rng(0).random((encoding.batch_size, *shape), np.float32)
    frames_per_row = encoding.options.window.frames

    def lane(videos: Iterator[_Video]) -> float:
        begun = time.perf_counter()
        for video in videos:
            sink, rows = writer.open(video), sample.rows[video["id"]]
            for first in range(0, rows, len(batch)):
                numbers = np.arange(first, min(rows, first + len(batch)))
                windowed = np.repeat(numbers[:, None], frames_per_row, axis=1)
                sink.append(batch[: len(numbers)], numbers / 25, windowed)
            sink.row["digest"] = source_digest(video["path"], video["kind"])
            sink.finish(asdict(Decoded(frames_decoded=sample.frames[video["id"]])))
        return time.perf_counter() - begun

    busy = _lane_seconds(sample, lane, sample.videos)
    begun = time.perf_counter()
    writer.seal()
    return sample.all_rows / (busy + time.perf_counter() - begun)


def differing(one: Bank, other: Bank) -> list[str]:
    """The videos whose embeddings or frames are not bit for bit the same in two banks, or not in both."""
    return sorted({*one} ^ {*other}) + [
        video
        for video in one
        if video in other
        and not (np.array_equal(one[video], other[video]) and np.array_equal(one.frames(video), other.frames(video)))
    ]


def against_bank(sample: Sample, embeddings: np.ndarray, bank: Bank) -> tuple[bool, float]:
    """Embeddings of `sample.inputs` held against those that the whole has banked.

    Returns:
        whether they are the same bit for bit, and the least cosine of any two that belong together.
    """
    banked = np.concatenate([bank[video][:count] for video, count in sample.inputs_of.items()])
    ours = stored(embeddings, np.dtype(bank.config["recipe"]["store"]))
    return np.array_equal(ours, banked), float(cosines(ours, banked).min())


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N,) float64: the cosine of each row of two arrays (N, …) with the other's; 1 where both are zero."""
    first, second = (each.reshape(len(each), -1).astype(np.float64) for each in (one, other))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    both = (first == second).all(axis=1)
    return np.where(both, 1.0, products / np.maximum(lengths, 1e-30))


def _shown(assembler: Assembler, frames: Iterator[Frame], device: torch.device | None) -> Iterator[Shown]:
    """Frames of one video, prepared by a device several together as the engine does it, or else one by one."""
    for frame in frames:
        if device is None or frame.planes is None:
            yield assembler.show(frame.rgb, frame.seconds, frame.index)
        else:
            yield from assembler.show_together([frame, *islice(frames, at_once(frame.planes) - 1)], device)


def _first_frames(frames: Iterator[Frame], options: ReadOptions) -> Iterator[Frame]:
    """Those of one row, and without motion as many as caches don't hold."""
    held = 0
    for number, frame in enumerate(frames):
        if number >= options.window.frames and (options.flow is not None or held >= _CYCLED_BYTES):
            return
        held += frame.rgb.nbytes if frame.planes is None else sum(plane.nbytes for plane in frame.planes[:3])
        yield frame


def _frames(sample: Sample, video: _Video) -> Iterator[Frame]:
    """The frames of a video, decoded as the engine does."""
    options = sample.encoding.options
    reading = read_frames(
        video["path"],
        video["kind"],
        options.sampling,
        Decoded(),
        start=video["start"],
        end=video["end"],
        image_fps=None if isnan(video["fps"]) else video["fps"],
        planes=options.device is not None,
    )
    with closing(reading):
        yield from takewhile(lambda _: not sample.stop.is_set(), reading)


def _lane_seconds(sample: Sample, work: Callable[[Iterator[_T]], float], items: Iterable[_T]) -> float:
    """Have the lanes share items between them. Returns the busy seconds of the lanes, on average.

    `work` takes a lane's items one by one and returns its busy seconds; what it raises is raised here.
    """
    todo = deque(items)

    def taken() -> Iterator[_T]:
        while todo:
            try:
                item = todo.popleft()
            except IndexError:  # another lane was faster
                return
            yield item

    def run() -> float:
        try:
            torch.set_num_threads(sample.threads)
            return work(taken())
        except BaseException:
            todo.clear()
            raise

    # A pool, at whose end all lanes have ended: an interrupted Thread.join() takes its thread for ended (Python 3.11).
    with ThreadPoolExecutor(sample.lanes, thread_name_prefix="lane") as pool:
        lanes = [pool.submit(run) for _ in range(sample.lanes)]
        try:
            return sum(lane.result() for lane in lanes) / sample.lanes
        except BaseException:  # Ctrl-C, say
            sample.stop.set()
            todo.clear()
            raise
