"""Real Dask clusters for tests, and what befalls their workers."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import torch
from distributed import Client, LocalCluster, Worker, WorkerPlugin

from pipeline import bank as banks
from pipeline import resuming
from pipeline.backbone import load_backbone
from pipeline.engine import Progress
from pipeline.extraction import Encoding, embed, make_encoding, recipe_of
from pipeline.headers import probe_videos
from pipeline.pieces import costs
from pipeline.rows import ReadOptions
from pipeline.sampling import Sampling
from pipeline.spreading import WorkerState, spread
from pipeline.videos import find_videos
from pipeline.worker import Work

NETWORK = {"name": "squeezenet1_1", "weights": "random", "image_size": 48}
SETTINGS = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")} | {
    "distributed.deploy.lost-worker-timeout": "10 minutes"  # how long a worker may take to come back
}


@contextmanager
def cluster(workers: int, **options: Any) -> Iterator[LocalCluster]:
    """A scheduler in this process and workers of their own, which have loaded torch."""
    with (
        dask.config.set(SETTINGS),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", preload=["pipeline.worker"],
            **{"memory_limit": 0, **options},
        ) as made,
    ):  # fmt: skip
        yield made


class Awkward(WorkerPlugin):
    """An environment in which some files are deadly: one with "poison" in its name kills the process that reads it, and
    of one with "stuck" no frame ever comes."""

    name = "awkward"

    def setup(self, worker: Worker) -> None:
        import av

        opened = av.open

        def opening(file: Any, *arguments: Any, **options: Any) -> Any:
            if "poison" in str(file):
                time.sleep(1.5)
                os.kill(os.getpid(), signal.SIGKILL)
            while "stuck" in str(file):
                time.sleep(3600)
            return opened(file, *arguments, **options)

        av.open = opening


def recorded() -> Encoding:
    """The network of the tests in this process, and what a bank records of it."""
    backbone = load_backbone(**NETWORK)
    options = ReadOptions(Sampling(), backbone.preprocessing)
    recipe = recipe_of(backbone, options, crop="", precision="fp32", store="float16")
    return make_encoding(backbone, recipe, options, torch.device("cpu"), 8, "/videos")


def to_do(data: Path, out: Path) -> Any:
    """The videos below a folder that are not in the bank."""
    bank = banks.Bank(out) if out.exists() else None
    return resuming.plan(find_videos(data, known={}).table, bank, retry_failed=False).todo


class Watched:
    """What a run has said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.states: Mapping[str, WorkerState] = {}
        self.progress = Progress()


def spread_over(client: Client, data: Path, out: Path, on_tick: Any = lambda _: None, **changes: Any) -> Watched:
    """Bank a folder with the workers of a cluster; `on_tick` is called with the progress a few times a second."""
    watched, encoding = Watched(), recorded()
    banks.create(out, encoding.recorded)
    table = to_do(data, out)
    work = Work(
        **{
            "out": out, "network": NETWORK, "options": encoding.options, "recorded": encoding.recorded,
            "device": "cpu", "stall_limit": 60.0, **changes,
        }
    )  # fmt: skip

    def on_workers(states: Mapping[str, WorkerState]) -> None:
        watched.states = states

    watched.interrupted = spread(
        table, costs(probe_videos(table)), work, client, watched.progress,
        on_progress=on_tick, on_workers=on_workers, on_note=watched.notes.append,
    )  # fmt: skip
    return watched


def alone(data: Path, out: Path) -> Path:
    """Bank a folder in this process."""
    encoding = recorded()
    banks.create(out, encoding.recorded)
    embed(out, to_do(data, out), encoding, Progress(), on_progress=lambda _: None, on_note=lambda _: None)
    return out
