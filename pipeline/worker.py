"""What a worker process of a cluster does: it loads the network once, embeds pieces, seals its own parts.

A piece is a list of videos. The worker runs the same engine over it as one machine does and seals what is finished on
the storage that all share; embeddings never leave it, only counts do. About once a second it says how far it is. A
video of which no frame comes any more goes into the ledger, and the process ends itself with its stuck decoder.

Dask can load this module before a worker gets its first piece (`--preload pipeline.worker`): torch is there by then.
"""

import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from distributed import get_worker

from pipeline.backbone import load_backbone
from pipeline.bank import differences
from pipeline.compiling import Compiling
from pipeline.engine import InWork, Progress
from pipeline.errors import UserError
from pipeline.extraction import Encoding, embed_videos, make_encoding, recipe_of
from pipeline.rows import ReadOptions
from pipeline.sealing import PartWriter

TOPIC = "framebank"  # of the events in which workers say how far they are
STALLED = 86  # exit status of a process that ends itself
_REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class Work:
    """What every worker of a run is told; it can be pickled.

    Attributes:
        out: the bank, an absolute path that is the same on every worker.
        network: the arguments of `pipeline.backbone.load_backbone`, by name, `name` among them; files by absolute path.
        options: how videos are read.
        recorded: the bank's config, as the `recorded` of `pipeline.extraction.make_encoding`. A worker whose network
            or way of computing is another refuses to work. For `loaded_compute`, of `compute` the batch size alone
            counts; None finds one.
        device: where each worker computes: "cpu", "mps" or "cuda", which is the first GPU that the worker sees.
        stall_limit: seconds; a video of which no frame comes for so long is given up.
        lanes: how many videos each worker has in work at once, at one core each; None: as many as its Dask threads.
        newer_than: the latest time in the bank before the run; what is sealed counts as newer.
        run: tells this run from others on the same workers.
    """

    out: Path
    network: Mapping[str, Any]
    options: ReadOptions
    recorded: Mapping[str, Any]
    device: str
    stall_limit: float
    lanes: int | None = None
    newer_than: str = ""
    run: str = field(default_factory=lambda: uuid4().hex)


_one_at_a_time = threading.Lock()  # pieces of two runs may come to one worker
_network: tuple[tuple[Any, ...], Encoding] | None = None  # the last that was loaded, and what decided it
_writer: tuple[Work, PartWriter] | None = None  # of the last run: kept, so that it seals less and less often
_stopped: set[str] = set()  # runs that were asked to stop


async def stop_run(run: str) -> None:
    """Let the piece of a run drop its videos in flight, seal the finished ones and end (called by its client).

    Asynchronous, as Dask wants what a client does not wait for.
    """
    _stopped.add(run)


def loaded_compute(work: Work) -> dict[str, Any]:
    """Load the network in this worker. Returns what the bank is to record as `compute`, as this worker computes.

    Raises:
        UserError: the network cannot be loaded here, is another one here, or the device has no room for it.
    """
    with _one_at_a_time:
        compute: dict[str, Any] = _encoding(work).recorded["compute"]
        return compute


def run_piece(work: Work, number: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Bank videos, in a task of a Dask worker.

    Args:
        work: how.
        number: of this piece among those of the run.
        rows: the videos, as rows of the table of `pipeline.resuming.with_state`.

    Returns:
        `counts`, those of `pipeline.engine.Progress`; `time`, its shares; `seconds` that it took, and `lanes`, how many
        videos were in work at once.

    Raises:
        UserError: the disk is full, or this worker cannot do the work as it was told. What was sealed stays.
    """
    with _one_at_a_time:
        worker, progress, stop = get_worker(), Progress(), threading.Event()
        encoding = replace(_agreeing(work), recorded=dict(work.recorded))
        writer = _writer_of(work)
        begun = time.monotonic()  # loading the network says nothing of the pace
        reported = begun - _REPORT_SECONDS

        def sealed(videos: int, failures: int, rows: int) -> None:
            progress.videos_sealed += videos
            progress.rows_sealed += rows

        def report(in_work: Sequence[InWork]) -> None:
            worker.log_event(
                TOPIC,
                {
                    "run": work.run,
                    "piece": number,
                    "process": f"{socket.gethostname()}:{os.getpid()}",
                    "in_work": [str(each.row["id"]) for each in in_work],
                    "counts": _counts(progress),
                },
            )

        def watch(in_work: Sequence[InWork]) -> None:
            nonlocal reported
            if work.run in _stopped:
                stop.set()
            stuck = [each for each in in_work if each.seconds > work.stall_limit]
            if stuck:
                _end_with(stuck, writer, work.stall_limit)
            if time.monotonic() - reported >= _REPORT_SECONDS:
                reported = time.monotonic()
                report(in_work)

        writer.on_sealed = sealed
        lanes = max(1, min(work.lanes or worker.state.nthreads, len(rows)))
        embed_videos(
            rows,
            encoding,
            writer,
            progress,
            lanes=lanes,
            threads=1,  # always: with more, some networks round otherwise
            stop=stop,
            on_progress=lambda _: None,
            watch=watch,
        )
        seconds = time.monotonic() - begun
        return {"counts": _counts(progress), "time": progress.time, "seconds": seconds, "lanes": lanes}


def _counts(progress: Progress) -> dict[str, int]:
    counts = asdict(progress)
    del counts["time"]
    return counts


def _writer_of(work: Work) -> PartWriter:
    global _writer
    if _writer is None or _writer[0] != work:
        _writer = work, PartWriter(work.out, work.recorded, lambda *_: None, newer_than=work.newer_than)
    return _writer[1]


def _agreeing(work: Work) -> Encoding:
    """The network as this worker computes it.

    Raises:
        UserError: it cannot be loaded, or computes otherwise than the bank was begun.
    """
    encoding = _encoding(work)
    recorded, own = work.recorded["compute"], encoding.recorded["compute"]
    if recorded != own:
        what = "; ".join(differences(recorded, own, ("the bank", "here")))
        raise UserError(f"{_here()} computes otherwise than the bank was begun: {what}; leave this worker out.")
    return encoding


def _encoding(work: Work) -> Encoding:
    """The network loaded and put on the device, unless it is there.

    Raises:
        UserError: it cannot be, or it would make other embeddings than those of the bank.
    """
    global _network
    recipe, compute = work.recorded["recipe"], work.recorded["compute"]
    batch_size, begun_compiled = compute["batch_size"], compute.get("compiled", False)
    deciding = (work.network, work.options, recipe, work.device, begun_compiled)
    if _network is not None and _network[0] == deciding and batch_size in (None, _network[1].batch_size):
        return _network[1]
    _network = None  # before the next is loaded, so that there is room
    backbone = load_backbone(**work.network)
    own = recipe_of(backbone, work.options, crop=recipe["crop"], precision=recipe["precision"], store=recipe["store"])
    if own != recipe:
        what = "; ".join(differences(recipe, own, ("the bank", "here")))
        raise UserError(f"{_here()} would make other embeddings than the bank's: {what}; mend that or leave it out.")
    device = torch.device(work.device)
    reasons: list[str] = []
    compiling = Compiling(0, 1, begun_compiled, reasons.append)  # as the bank was begun
    encoding = make_encoding(backbone, own, work.options, device, batch_size, work.recorded["data"], compiling)
    if reasons:
        raise UserError(f"{_here()}: {reasons[0]} Leave this worker out.")
    _network = deciding, encoding
    return encoding


def _here() -> str:
    return f"Worker {get_worker().name} on {socket.gethostname()}"


def _end_with(stuck: Sequence[InWork], writer: PartWriter, limit: float) -> None:
    """Enter videos into the ledger, seal what is finished and end this process: a decoder that hangs ends no other way.

    Its nanny starts another.
    """
    for row, _ in stuck:
        writer.fail(row, f"no frame of it came for {limit:g} s; its worker was ended")
    writer.seal()
    os._exit(STALLED)
