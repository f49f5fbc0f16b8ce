"""Pieces of work spread over the workers of a Dask cluster, whatever becomes of the workers.

Each worker has one piece at a time, so that when it dies it is clear which videos it had. What it had sealed is read
from the parts; the rest is split and given out again, what it had in work alone. A video whose worker dies twice while
it is alone in it goes into the ledger, and no other does. Dask itself never tries a piece again. Where worker after
worker dies and nothing is sealed meanwhile, it is the workers that are ill, and no video is blamed.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from distributed import Client, Future
from distributed.scheduler import KilledWorker, NoValidWorkerError

from pipeline import features as hdf5
from pipeline.bank import sealed_parts
from pipeline.engine import Progress
from pipeline.errors import UserError
from pipeline.extraction import STOPPING, stopping
from pipeline.pieces import Video, Waiting, split
from pipeline.sealing import PartWriter
from pipeline.worker import TOPIC, Work, run_piece, stop_run

TRIES = 2  # deaths of a worker that a video alone in it may cost
_DEATHS = 20  # in a row, without anything sealed: the workers are ill
_SILENT_SECONDS = 120.0  # without a heartbeat: the process hangs as a whole
_HEARTBEATS_SECONDS = 10.0  # in which one comes from a worker that lives, however many there are
_NOBODY_SECONDS = 600.0  # without any worker
_POLL_SECONDS = 1.0
_TICK_SECONDS = 0.25
_FETCH_SECONDS = 30.0
_TELL_SECONDS = 5.0  # for a message to all workers; a dead one, which the scheduler has not missed yet, takes none
_DAWDLING_SECONDS = 20.0  # pieces shorter than this never straggle
_SAFE = "Everything sealed before is safe; run the same command again to go on."


@dataclass(frozen=True)
class WorkerState:
    """What is known of one worker, for the person who watches.

    Attributes:
        address: where it is now, "" while it is gone.
        frames: rows embedded by it so far, over all of its pieces.
        frames_per_second: the same by the seconds that it was at work.
        videos: sealed by it so far.
        failures: of videos that it read.
        deaths: how often it died; it may have come back.
        last_seen: seconds since it was heard of.
        in_work: ids of the videos that it has in work, as it last said.
        straggling: its piece takes more than twice as long as the pace of all workers would have it.
    """

    address: str = ""
    frames: int = 0
    frames_per_second: float = 0.0
    videos: int = 0
    failures: int = 0
    deaths: int = 0
    last_seen: float = 0.0
    in_work: tuple[str, ...] = ()
    straggling: bool = False


def spread(
    table: pd.DataFrame,
    costs: Sequence[float],
    work: Work,
    client: Client,
    progress: Progress,
    *,
    alone: bool = False,
    on_progress: Callable[[Progress], None],
    on_workers: Callable[[Mapping[str, WorkerState]], None],
    on_note: Callable[[str], None],
) -> bool:
    """Bank videos with the workers of a cluster. The bank, `work.out`, exists.

    Args:
        table: one row per video, as `pipeline.resuming.with_state` gives it.
        costs: what each of them costs, see `pipeline.pieces.costs`.
        work: what the workers are told.
        client: of the cluster; workers may join and leave while it runs.
        progress: counts, updated in place; at the end its `time` is that of all workers.
        alone: whether there is one worker, and no other will join it.
        on_progress: called a few times a second.
        on_workers: called about once a second, with the workers by name.
        on_note: called with a line about what the person should know: a worker died, a video is given up.

    Returns:
        whether it was interrupted.

    Raises:
        UserError: the disk is full, a worker cannot do the work as it was told, the workers die one after the other,
            or the scheduler is gone. What was sealed stays.
    """
    run = _Run(table, costs, work, client, progress, on_note, alone=alone)
    with _lost_scheduler():
        client.subscribe_topic(TOPIC, run.hear)
    told = False
    try:
        with stopping() as stop:
            while run.running or (run.waits() and not stop.is_set() and run.error is None):
                if run.poll():
                    on_workers(run.workers())
                run.collect()
                if not stop.is_set() and run.error is None:
                    run.give()
                elif not told:
                    told = True
                    if run.error is None:
                        on_note(STOPPING)
                    run.stop_all()
                run.count()
                on_progress(progress)
                run.news.wait(_TICK_SECONDS)
                run.news.clear()
            if run.error is not None:
                raise run.error
            if not run.waits():
                run.blame()
                run.count()
    finally:
        run.close()
    on_workers(run.workers())
    on_progress(progress)
    return run.waits()


@contextmanager
def _lost_scheduler() -> Iterator[None]:
    """One clear line where the scheduler does not answer any more."""
    try:
        yield
    except (OSError, TimeoutError, CancelledError, RuntimeError) as error:
        raise UserError(f"The scheduler is gone ({str(error) or type(error).__name__}). {_SAFE}") from error


@dataclass
class _Piece:
    """A piece that a worker has."""

    number: int
    videos: list[Video]
    name: str  # of the worker
    address: str
    future: Future[Any]
    begun: float = field(default_factory=time.monotonic)
    process: str = ""  # that works on it, as it says itself
    in_work: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)  # those of `pipeline.engine.Progress`, as it last said
    restarted: bool = False  # another process has begun it anew

    @property
    def cost(self) -> float:
        return sum(video.cost for video in self.videos)


@dataclass
class _Known:
    """A worker, over its pieces and its deaths."""

    address: str = ""
    lanes: int = 1
    nanny: bool = False
    heartbeat: float = 0.0  # the last, by the clock of the scheduler
    heard: float = 0.0  # when that was seen, by our own
    hung: bool = False  # silent: it gets nothing until it is heard of
    deaths: int = 0
    seconds: float = 0.0  # at work, in pieces that are over
    counts: Counter[str] = field(default_factory=Counter)  # of pieces that are over


class _Sealed:
    """What was sealed since a run began, read from the parts; each part once."""

    def __init__(self, work: Work) -> None:
        self._out = work.out
        self._read = {part.name for part in sealed_parts(work.out)}
        self._rows: dict[str, dict[str, Any]] = {}

    def of(self, videos: Sequence[Video]) -> dict[str, dict[str, Any]]:
        """The catalog rows, or ledger rows, of those of the videos that are sealed, by id."""
        for part in sealed_parts(self._out):
            if part.name not in self._read:
                with suppress(FileNotFoundError):  # packed away by somebody else
                    contents = hdf5.read_contents(part)
                    for row in (*hdf5.records(contents.failures), *hdf5.records(contents.catalog)):
                        self._rows[row["id"]] = row
                self._read.add(part.name)
        found = {video.row["id"]: video.row for video in videos if video.row["id"] in self._rows}
        rows = {video_id: self._rows[video_id] for video_id in found}
        return {key: row for key, row in rows.items() if (row["size"], row["mtime"]) == _state(found[key])}


def _state(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["size"], row["mtime"]


class _Run:
    """One run over the workers: what waits, who has what, who died."""

    def __init__(
        self,
        table: pd.DataFrame,
        costs: Sequence[float],
        work: Work,
        client: Client,
        progress: Progress,
        on_note: Callable[[str], None],
        *,
        alone: bool,
    ) -> None:
        self.work, self.client, self.progress, self.note, self.alone = work, client, progress, on_note, alone
        self.waiting = Waiting(hdf5.records(table), costs)
        self.again: deque[list[Video]] = deque()  # parts of pieces whose worker died
        self.running: dict[int, _Piece] = {}
        self.error: BaseException | None = None  # what ends the run, once the other workers have sealed
        self.news = threading.Event()
        self._known: dict[str, _Known] = {}
        self._sealed = _Sealed(work)
        self._counts: Counter[str] = Counter()  # of pieces that are over
        self._lane_seconds = 0.0
        self._time: Counter[str] = Counter()  # lane-seconds spent on each part of the work
        self._done = (0.0, 0.0)  # cost of whole pieces, and seconds that they took
        self._number = 0
        self._deaths_in_row = 0
        self._most_sealed = 0
        self._alone: Counter[str] = Counter()  # deaths of workers that had this video alone
        self._blamed: list[Video] = []
        self._polled = self._last_worker = time.monotonic() - _POLL_SECONDS

    def waits(self) -> bool:
        """Whether videos are not done."""
        return bool(self.again or len(self.waiting) or self.running)

    def hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Take what a worker says of its piece (in the client's thread)."""
        message = event[1]
        piece = self.running.get(message["piece"]) if message["run"] == self.work.run else None
        if piece is not None:
            piece.restarted |= piece.process not in ("", message["process"])
            piece.process, piece.counts = message["process"], message["counts"]
            piece.in_work = tuple(message["in_work"])

    def poll(self) -> bool:
        """Ask the scheduler who is there, once a second. Returns whether it did.

        Raises:
            UserError: the scheduler does not answer, or there was no worker for ten minutes.
        """
        now = time.monotonic()
        if now - self._polled < _POLL_SECONDS:
            return False
        self._polled = now
        with _lost_scheduler():
            if self.client.status != "running" or self.client.scheduler is None:
                raise OSError("the connection broke off")
            workers = self.client.sync(self.client.scheduler.identity, callback_timeout=_FETCH_SECONDS)["workers"]
        for known in self._known.values():
            known.address = known.address if known.address in workers else ""
        for address, said in workers.items():
            known = self._known.setdefault(str(said["name"]), _Known())
            if (known.address, known.heartbeat) != (address, said["last_seen"]):
                known.heard, known.hung = now, False
            known.address, known.heartbeat, known.nanny = address, said["last_seen"], bool(said["nanny"])
            known.lanes = self.work.lanes or said["nthreads"]
        if workers:
            self._last_worker = now
        elif now - self._last_worker > _NOBODY_SECONDS:
            raise UserError(f"There has been no worker for {_NOBODY_SECONDS / 60:g} minutes. {_SAFE}")
        return True

    def give(self) -> None:
        """Give each worker that is free a piece."""
        busy = {piece.address for piece in self.running.values()}
        there = {name: known for name, known in self._known.items() if known.address and not known.hung}
        for name, known in there.items():
            if known.address in busy or not (self.again or len(self.waiting)):
                continue
            cost, seconds = self._done
            pace = cost / seconds if seconds else None
            if self.again:
                videos = self.again.popleft()
            else:
                videos = self.waiting.take(len(there), known.lanes, pace, alone=self.alone)
            self._number += 1
            with _lost_scheduler():
                future = self.client.submit(
                    run_piece,
                    self.work,
                    self._number,
                    [video.row for video in videos],
                    key=f"framebank-piece-{self.work.run[:8]}-{self._number}",
                    workers=[known.address],
                    allow_other_workers=False,
                    retries=0,
                    pure=False,
                )
            self.running[self._number] = _Piece(self._number, videos, name, known.address, future)
            future.add_done_callback(lambda _: self.news.set())

    def collect(self) -> None:
        """See to the pieces that are over: done, failed, or their worker is not there any more."""
        now = time.monotonic()
        silent = min(_SILENT_SECONDS, max(_HEARTBEATS_SECONDS, self.work.stall_limit))
        for piece in list(self.running.values()):
            known = self._known[piece.name]
            if piece.future.status == "finished":
                with suppress(OSError, TimeoutError, CancelledError, KilledWorker):
                    self._finish(piece, piece.future.result(timeout=_FETCH_SECONDS))
                    continue
                self._bury(piece, "died")  # between its last video and its word of it
            elif piece.future.status == "error":
                error = piece.future.exception(timeout=_FETCH_SECONDS)
                if isinstance(error, KilledWorker | NoValidWorkerError):
                    self._bury(piece, "died")
                else:
                    del self.running[piece.number]
                    self.error = self.error or error
            elif known.address != piece.address or piece.restarted or piece.future.status in ("cancelled", "lost"):
                self._bury(piece, "died")
            elif now - known.heard > silent:
                known.hung = True
                self._restart(piece)
                self._bury(piece, f"was silent for {silent:g} s")

    def _restart(self, piece: _Piece) -> None:
        """Have the process of a worker that hangs ended, in the background: its nanny starts another."""

        def restart() -> None:
            with suppress(OSError, TimeoutError, RuntimeError, ValueError, CancelledError):
                self.client.restart_workers([piece.address], timeout=_FETCH_SECONDS, raise_for_error=False)

        if self._known[piece.name].nanny:
            threading.Thread(target=restart, daemon=True).start()

    def _finish(self, piece: _Piece, result: Mapping[str, Any]) -> None:
        """Count a piece that is done."""
        del self.running[piece.number]
        known = self._known[piece.name]
        self._counts.update(result["counts"])
        known.counts.update(result["counts"])
        known.seconds += time.monotonic() - piece.begun
        cost, seconds = self._done
        self._done = (cost + piece.cost, seconds + result["seconds"])
        lane_seconds = result["seconds"] * result["lanes"]
        self._lane_seconds += lane_seconds
        self._time.update({part: share * lane_seconds for part, share in result["time"].items()})

    def _bury(self, piece: _Piece, how: str) -> None:
        """A worker is gone: count what it sealed, give out the rest again."""
        del self.running[piece.number]
        with suppress(OSError, RuntimeError, CancelledError):
            piece.future.cancel(force=True)
        known = self._known[piece.name]
        known.deaths += 1
        known.seconds += time.monotonic() - piece.begun
        sealed = self._sealed.of(piece.videos)
        banked = [row for row in sealed.values() if "rows" in row]
        counts = {name: piece.counts.get(name, 0) for name in ("frames", "padded")}
        counts |= {"videos_sealed": len(banked), "rows_sealed": sum(row["rows"] for row in banked)}
        counts |= {"failures": len(sealed) - len(banked), "partial": sum(row["partial"] != "" for row in banked)}
        self._counts.update(counts)
        known.counts.update(counts)
        rest = [video for video in piece.videos if video.row["id"] not in sealed]
        self.note(
            f"Worker {piece.name} {how} with {len(piece.videos)} videos to do: {len(sealed)} are sealed"
            + (f", {len(rest)} are given out again." if rest else ".")
        )
        self._deaths_in_row += not sealed
        if len(piece.videos) == 1 and rest:
            self._alone[rest[0].row["id"]] += 1
            if self._alone[rest[0].row["id"]] >= TRIES:
                self._blamed.extend(rest)
                rest = []
        self.again.extendleft(split(rest, piece.in_work)[::-1])
        if self._deaths_in_row >= _DEATHS and self.error is None:
            self.error = UserError(
                f"Workers died {_DEATHS} times in a row and nothing was sealed in between, so that it is not one "
                f"video's fault: have they too little memory? See their logs. {_SAFE}"
            )

    def blame(self) -> None:
        """Something was sealed, so the workers are well: enter into the ledger what killed some of them.

        Raises:
            UserError: the disk is full.
        """
        self._deaths_in_row = 0
        if not self._blamed:
            return
        writer = PartWriter(self.work.out, self.work.recorded, lambda *_: None, newer_than=self.work.newer_than)
        for video in self._blamed:
            reason = f"its worker died {TRIES} times while it was read: killed or out of memory"
            writer.fail(video.row, reason)
            self.note(f"{video.row['id']} is given up: {reason}.")
        writer.seal()
        self._counts["failures"] += len(self._blamed)
        self._blamed = []

    def count(self) -> None:
        """Bring the counts up to date: pieces that are over and those that run, as far as their workers said.

        Where more is sealed than before, the workers are well.
        """
        total = Counter(self._counts)
        for piece in list(self.running.values()):
            total.update(piece.counts)
        for name, value in total.items():
            setattr(self.progress, name, value)
        self.progress.time = {part: spent / self._lane_seconds for part, spent in self._time.items()}
        sealed = total["videos_sealed"] + total["failures"]
        if sealed > self._most_sealed:
            self._most_sealed = sealed
            self.blame()

    def workers(self) -> dict[str, WorkerState]:
        """All workers that there have been, by name."""
        now = time.monotonic()
        pieces = {piece.name: piece for piece in self.running.values()}
        cost, seconds = self._done
        states = {}
        for name, known in self._known.items():
            piece = pieces.get(name)
            counts, at_work = Counter(known.counts), known.seconds
            state = WorkerState(known.address, deaths=known.deaths, last_seen=now - known.heard)
            if piece is not None:
                counts.update(piece.counts)
                at_work += now - piece.begun
                expected = piece.cost * seconds / cost if cost else now
                slow = now - piece.begun > max(2 * expected, _DAWDLING_SECONDS)
                state = replace(state, in_work=piece.in_work, straggling=slow)
            states[name] = replace(
                state,
                frames=counts["frames"],
                frames_per_second=counts["frames"] / at_work if at_work else 0.0,
                videos=counts["videos_sealed"],
                failures=counts["failures"],
            )
        return states

    def stop_all(self) -> None:
        """Ask the workers that have pieces to seal what is finished."""
        addresses = [piece.address for piece in self.running.values()]

        def tell() -> None:
            with suppress(OSError, TimeoutError, RuntimeError, ValueError, CancelledError):
                self.client.run(stop_run, self.work.run, workers=addresses, wait=False, on_error="ignore")

        if addresses:
            thread = threading.Thread(target=tell, daemon=True)
            thread.start()
            thread.join(_TELL_SECONDS)

    def close(self) -> None:
        """Leave nothing behind that works for nobody."""
        if self.client.status == "running":  # else it would wait for a scheduler that is gone
            self.stop_all()
            with suppress(OSError):
                self.client.unsubscribe_topic(TOPIC)
