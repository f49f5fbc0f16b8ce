"""A Dask cluster to extract with: worker processes started on this machine, or a cluster joined that is there already.

Nothing here loads torch: a cluster is started first, so that its workers load it while the command does.
"""

import ctypes
import importlib
import importlib.util
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import get_backend
from distributed.core import Status
from distributed.gc import disable_gc_diagnosis
from distributed.utils import silence_logging_cmgr

from pipeline.errors import UserError

_CONNECT_SECONDS = 10
_JOIN_SECONDS = 30  # for the first worker of a cluster that is there
_START_SECONDS = 300  # for workers of our own: a cold disk takes long to read torch
_POLL_SECONDS = 0.1
_DASHBOARD_PORT = 8787  # or another where that one is taken
_PRELOAD = "pipeline.worker_start"
_STOPS = (signal.SIGINT, signal.SIGTERM)
_SETTINGS = {
    # Work is one long task on each worker, and what it holds is bounded: a worker that pauses would never go on.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    # What watches the workers takes no more of their cores than it must.
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "500 ms",
    "distributed.admin.system-monitor.interval": "2 s",
    # A worker that died loads torch again, on a busy machine for longer than the 15 s after which Dask would let it go.
    "distributed.deploy.lost-worker-timeout": "1 hour",
}


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up, its workers perhaps not yet.

    Attributes:
        client: of its scheduler.
        address: of its scheduler.
        started: how many workers were started on this machine; 0 where the cluster was joined.
        device: what the workers are to compute on, for `pipeline.encoder.choose_device` on each of them.
        dashboard: the address of Dask's dashboard, "" where there is none.
        lost: how many of those that were started died before they were up: they do not come again.
    """

    client: Client
    address: str
    started: int
    device: str
    dashboard: str
    lost: Callable[[], int] = lambda: 0


@contextmanager
def started(workers: int, device: str = "auto") -> Iterator[Cluster]:
    """Worker processes on this machine, which end with the context; it does not wait for them to be ready.

    They share out the cores: each has as many Dask threads as it may work on videos at once. Where there are NVIDIA
    GPUs each worker sees one of them, in turn where there are more workers than GPUs. Where dask-cuda is installed, it
    also puts each worker on the cores nearest to its GPU.

    Args:
        workers: how many.
        device: as it was asked for; of "cuda:1" the workers see that GPU alone.
    """
    gpus = _gpus(device)
    options = {
        "threads_per_worker": max(1, CPU_COUNT // workers),
        "memory_limit": 1 / workers,
        "preload": [_PRELOAD],
        "dashboard_address": f"127.0.0.1:{_free_port()}",
        "silence_logs": logging.CRITICAL,  # what becomes of workers is said by `pipeline.spreading`
    }
    with dask.config.set(_SETTINGS), ExitStack() as stack:
        for number in _STOPS:
            stack.callback(signal.signal, number, signal.getsignal(number))  # `_end_at_once` may change it
        _start_tracker()
        plain = workers > len(gpus) or not importlib.util.find_spec("dask_cuda")
        with warnings.catch_warnings():
            # Somebody may take the dashboard's port after `_free_port` has looked; Dask goes elsewhere then.
            warnings.filterwarnings("ignore", "Port .* is already in use", UserWarning)
            if plain:
                local = stack.enter_context(_Local(gpus, n_workers=0, **options))
            else:
                cuda = importlib.import_module("dask_cuda")
                local = stack.enter_context(cuda.LocalCUDACluster(gpus, workers, **options))
        # By its address: a client of the cluster itself would wait for the workers.
        address = local.scheduler_address
        client = stack.enter_context(closing(Client(address)))
        stack.push(_end_at_once(local))
        if plain:
            # Ctrl-C reaches every process of a terminal, and workers are asked by the client to stop. They are born
            # with these signals blocked, as the thread is that starts them (starting the tracker would unblock them).
            disable_gc_diagnosis()  # its callback is where Python drops a KeyboardInterrupt
            local.loop.add_callback(signal.pthread_sigmask, signal.SIG_BLOCK, set(_STOPS))
            local.scale(workers)
        device = "cuda" if device.startswith("cuda") else device
        yield Cluster(client, address, workers, device, local.dashboard_link, lambda: _lost(local))


def _start_tracker() -> None:
    """Python's process that clears away what dead processes leave: of a worker that was killed it need not say so."""
    quiet = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(quiet)  # what processes are given that start now
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


def _lost(local: LocalCluster) -> int:
    return sum(nanny.status == Status.failed for nanny in list(local._created))


def _end_at_once(local: LocalCluster) -> Callable[..., None]:
    """What leaving the context of a cluster begins with: its workers are killed, where an error ends it.

    From then on nothing interrupts the rest: the workers hear no signal, and would keep this process waiting for ever.
    """

    def leave(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number in _STOPS:
            signal.signal(number, signal.SIG_IGN)
        if error is not None:
            for nanny in list(local._created):  # also those that are not up yet
                nanny.close_gracefully()  # which starts no other
            for process in multiprocessing.active_children():
                process.kill()

    return leave


def _free_port() -> int:
    """Where the dashboard goes; 0: wherever the system says."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", _DASHBOARD_PORT))
        except OSError:
            return 0
    return _DASHBOARD_PORT


class _Local(LocalCluster):
    """A cluster of this machine whose workers see one GPU each, in turn."""

    def __init__(self, gpus: list[str], **options: Any) -> None:
        self._gpus = gpus
        super().__init__(**options)

    def new_worker_spec(self) -> dict[int, Any]:
        """What Dask starts the next worker with."""
        [(number, spec)] = super().new_worker_spec().items()
        if self._gpus:
            environment = {"CUDA_VISIBLE_DEVICES": self._gpus[number % len(self._gpus)]}
            spec = spec | {"options": spec["options"] | {"env": environment}}
        return {number: spec}


def _gpus(device: str) -> list[str]:
    """The GPUs that CUDA shows to this process, as CUDA_VISIBLE_DEVICES names them; of "cuda:1" the second one.

    The driver is asked, not torch, which takes seconds to load.
    """
    if device != "auto" and not device.startswith("cuda"):
        return []
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # no NVIDIA driver
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = (listed or [str(number) for number in range(count.value)])[: count.value]
    number = device.partition(":")[2]
    if number.isdecimal() and int(number) < len(names):
        return [names[int(number)]]
    return names


@contextmanager
def joined(address: str | None = None, scheduler_file: Path | None = None, device: str = "auto") -> Iterator[Cluster]:
    """A cluster that is there already, and stays there.

    Args:
        address: of its scheduler, as tcp://host:8786; or else
        scheduler_file: the file that `dask scheduler --scheduler-file` writes.
        device: as it was asked for.

    Raises:
        UserError: no scheduler answers, or a single GPU was named, which is another one on each machine.
    """
    if device.startswith("cuda:"):
        raise UserError(
            f"{device} names a GPU of one machine. Give --device cuda, and start each worker with CUDA_VISIBLE_DEVICES."
        )
    if scheduler_file is not None:
        address = _address_in(scheduler_file)
    assert address is not None
    try:
        scheme, place = parse_address(address)
        get_backend(scheme)
        parse_host_port(place)
    except ValueError as error:
        raise UserError(
            f"{address!r} is no scheduler's address ({error}). It is of the form tcp://host:8786."
        ) from error
    with ExitStack() as stack:
        stack.enter_context(silence_logging_cmgr(logging.CRITICAL))  # we say ourselves when the scheduler is lost
        try:
            client = stack.enter_context(closing(Client(address, timeout=_CONNECT_SECONDS)))
        except (OSError, ImportError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"No Dask scheduler answers at {address} within {_CONNECT_SECONDS} s ({reason}). Is it running, and is "
                "its port open to this machine?"
            ) from error
        dashboard = client.dashboard_link if "dashboard" in _identity(client)["services"] else ""
        yield Cluster(client, address, 0, device, dashboard)


def _address_in(scheduler_file: Path) -> str:
    try:
        return str(json.loads(scheduler_file.read_text("utf-8"))["address"])
    except OSError as error:
        raise UserError(
            f"{scheduler_file}: {error.strerror}. `dask scheduler --scheduler-file {scheduler_file}` writes it."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{scheduler_file} is no file that `dask scheduler --scheduler-file` has written.") from error


def await_workers(cluster: Cluster) -> None:
    """Wait until the workers that were started are ready, or one of a cluster that was joined.

    Raises:
        UserError: they are not, after a time.
    """
    wanted, seconds = (cluster.started, _START_SECONDS) if cluster.started else (1, _JOIN_SECONDS)
    deadline = time.monotonic() + seconds
    while (ready := len(names(cluster))) < wanted:
        if lost := cluster.lost():
            raise UserError(
                f"{lost} of {wanted} worker processes died while they started: killed or out of memory. Give fewer "
                "--workers."
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"Only {ready} of {wanted} worker processes started within {seconds} s; give fewer --workers."
                if cluster.started
                else f"No worker has joined the scheduler at {cluster.address} within {seconds} s. Start some: dask "
                f"worker {cluster.address}"
            )
        time.sleep(_POLL_SECONDS)


def names(cluster: Cluster) -> dict[str, str]:
    """What the workers are called, by their addresses: "worker 0", or "worker tcp://10.0.0.7:40123" without a name."""
    return {address: f"worker {info['name']}" for address, info in _workers(cluster).items()}


def silent(cluster: Cluster) -> str:
    """What the worker is called that was not heard of for the longest."""
    workers = _workers(cluster)
    return names(cluster)[min(workers, key=lambda address: workers[address]["last_seen"])]


def hosts(cluster: Cluster) -> int:
    """How many machines the workers are on."""
    return len({info["host"] for info in _workers(cluster).values()})


def _workers(cluster: Cluster) -> dict[str, Any]:
    """What the scheduler knows of its workers, by their addresses.

    Raises:
        UserError: it does not answer.
    """
    return _identity(cluster.client)["workers"]


def _identity(client: Client) -> Any:
    try:
        return client.sync(client.scheduler.identity, callback_timeout=_JOIN_SECONDS)  # type: ignore[union-attr]
    except (OSError, AttributeError) as error:
        raise UserError("The scheduler does not answer any more. Nothing was begun; run the command again.") from error
