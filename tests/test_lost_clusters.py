"""The client of a cluster killed and started again, its scheduler lost, and a video that is too big for its memory."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from pipeline import bank as banks
from pipeline.bank import Bank
from pipeline.errors import UserError
from tests.clips import make_clip
from tests.clusters import cluster, spread_over
from tests.conftest import REPOSITORY
from tests.test_spreading import clips, equal

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CLIENT = """
import sys
from pathlib import Path
from distributed import Client
from tests.clusters import spread_over
with Client(sys.argv[1]) as client:
    spread_over(client, Path(sys.argv[2]), Path(sys.argv[3]))
"""


def started(*arguments: object) -> subprocess.Popen[str]:
    """A process of its own, in a process group of its own."""
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, cwd=REPOSITORY, start_new_session=True, **quiet)


@contextmanager
def separate_cluster(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A scheduler and one worker, as people start them; gives the scheduler's process and its address."""
    file = folder / "scheduler.json"
    run = ("-m", "dask")
    scheduler = started(*run, "scheduler", "--port", 0, "--no-dashboard", "--scheduler-file", file)
    worker = started(
        *run, "worker", "--scheduler-file", file, "--nthreads", 1, "--no-dashboard", "--death-timeout", 20,
        "--local-directory", folder, "--preload", "pipeline.worker",
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.2)
        with Client(scheduler_file=str(file), timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
            address = client.scheduler.address
        yield scheduler, address
    finally:
        for process in (worker, scheduler):
            with suppress(ProcessLookupError):  # a worker ends itself when its scheduler is gone for good
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_client_killed_and_started_again_and_then_the_scheduler_lost(
    many: tuple[Path, Path], tmp_path: Path, out: Path
) -> None:
    data, expected = many
    with separate_cluster(tmp_path) as (scheduler, address):
        first = started("-c", CLIENT, address, data, out)
        while not banks.sealed_parts(out):
            assert first.poll() is None
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        with Client(address) as client:  # while its piece may still run
            watched = spread_over(client, data, out)
        assert 0 < watched.progress.videos_sealed <= 48
        equal(out, expected)

        again = tmp_path / "again.h5"

        def kill(progress: object) -> None:
            if banks.sealed_parts(again):
                scheduler.kill()

        with (
            Client(address) as client,
            pytest.raises(UserError, match=r"The scheduler is gone .* sealed before is safe"),
        ):
            spread_over(client, data, again, kill)
    with Bank(again) as bank, Bank(expected) as whole:
        assert len(bank) > 0
        assert bank.verify() == []
        assert all(np.array_equal(bank[video], whole[video]) for video in bank)


@pytest.mark.slow
def test_a_video_that_needs_more_memory_than_a_worker_has_is_given_up(tmp_path: Path, out: Path) -> None:
    data = clips(tmp_path / "data", 5)
    huge = np.full((8192, 8192, 3), 128, np.uint8)
    make_clip(data / "huge.avi", codec="mjpeg", size=(8192, 8192), images=[huge] * 4)
    with cluster(1, memory_limit="1000MB") as made, Client(made) as client:
        watched = spread_over(client, data, out)
    with Bank(out) as bank:
        assert bank.failures["id"].tolist() == ["huge"]
        assert "killed or out of memory" in bank.failures["reason"][0]
        assert len(bank) == 5
    assert watched.progress.failures == 1
