"""Extraction over real workers that are killed, hang and run out of memory: the bank is that of one process."""

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from pipeline import bank as banks
from pipeline import spreading
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.worker import Work, loaded_compute
from tests.clips import make_clip
from tests.clusters import NETWORK, Awkward, alone, cluster, recorded, spread_over
from tests.test_survival import same_banks

pytestmark = pytest.mark.usefixtures("one_torch_thread")
AS_BANKED = ["banked"]


@pytest.fixture(scope="module")
def two() -> Iterator[LocalCluster]:
    with cluster(2) as made, Client(made) as client:
        client.register_plugin(Awkward())
        yield made


@pytest.fixture
def client(two: LocalCluster) -> Iterator[Client]:
    with Client(two) as client:
        client.wait_for_workers(2, timeout=120)
        yield client


def clips(folder: Path, count: int, frames: int = 6, name: str = "clip") -> Path:
    for number in range(count):
        make_clip(folder / f"{name}{number:02}.mp4", frames=frames + number % 5, size=(64, 48))
    return folder


def equal(one: Path, other: Path) -> None:
    """Assert that two banks are the same but for the times at which their rows were banked."""
    same_banks(one, other)
    with Bank(one) as first, Bank(other) as second:
        assert first.config == second.config
        left, right = (bank.catalog.drop(columns=AS_BANKED).to_dict("records") for bank in (first, second))
        np.testing.assert_equal(left, right)


def pid_of(client: Client, address: str) -> int:
    return int(client.run(os.getpid, workers=[address])[address])


def test_a_worker_killed_midway_costs_nothing(client: Client, many: tuple[Path, Path], out: Path) -> None:
    data, expected = many
    first = next(iter(client.scheduler_info()["workers"]))
    process, killed = pid_of(client, first), threading.Event()

    def kill(progress: Any) -> None:
        if progress.videos_sealed and not killed.is_set():
            killed.set()
            os.kill(process, signal.SIGKILL)

    watched = spread_over(client, data, out, kill)
    assert killed.is_set()
    assert not watched.interrupted
    assert any("died" in note and "given out again" in note for note in watched.notes)
    assert (watched.progress.videos_sealed, watched.progress.failures) == (48, 0)
    assert watched.progress.rows_sealed == sum(80 + number % 5 for number in range(48))
    assert watched.progress.frames >= 0.8 * watched.progress.rows_sealed
    assert sum(watched.progress.time.values()) == pytest.approx(1, abs=0.02)
    assert sum(state.deaths for state in watched.states.values()) == 1
    assert all(state.frames_per_second > 0 for state in watched.states.values() if state.frames)
    equal(out, expected)


@pytest.mark.parametrize(("good", "poison"), [(15, 1), pytest.param(61, 3, marks=pytest.mark.slow)])
def test_videos_that_kill_their_worker_are_blamed_and_no_others(
    good: int, poison: int, client: Client, tmp_path: Path, out: Path
) -> None:
    data = clips(tmp_path / "data", good)
    clips(data, poison, frames=7, name="poison")
    watched = spread_over(client, data, out)
    assert not watched.interrupted
    with Bank(out) as bank:
        assert set(bank.failures["id"]) == {f"poison{number:02}" for number in range(poison)}
        assert set(bank.failures["reason"]) == {"its worker died 2 times while it was read: killed or out of memory"}
        assert len(bank) == good
        assert bank.verify() == []
    assert (watched.progress.videos_sealed, watched.progress.failures) == (good, poison)
    assert sum("given up" in note for note in watched.notes) == poison


def test_a_video_of_which_no_frame_comes_is_given_up(client: Client, tmp_path: Path, out: Path) -> None:
    data = clips(tmp_path / "data", 6)
    clips(data, 1, name="stuck")
    watched = spread_over(client, data, out, stall_limit=2.0)
    with Bank(out) as bank:
        assert bank.failures["id"].tolist() == ["stuck00"]
        assert bank.failures["reason"].tolist() == ["no frame of it came for 2 s; its worker was ended"]
        assert len(bank) == 6
    assert watched.progress.failures == 1


@pytest.mark.slow
def test_a_worker_that_hangs_as_a_whole_is_ended(
    client: Client, many: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, expected = many
    monkeypatch.setattr(spreading, "_HEARTBEATS_SECONDS", 4.0)  # where there are few workers, one comes each second
    address = next(iter(client.scheduler_info()["workers"]))
    process, stopped = pid_of(client, address), threading.Event()

    def stop(progress: Any) -> None:
        if progress.videos_sealed and not stopped.is_set():
            stopped.set()
            os.kill(process, signal.SIGSTOP)

    watched = spread_over(client, data, out, stop, stall_limit=4.0)
    assert stopped.is_set()
    assert any("was silent for 4 s" in note for note in watched.notes)
    equal(out, expected)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process}").exists():  # its nanny has ended it
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_interruption_seals_what_is_done_though_a_worker_has_just_died(
    client: Client, many: tuple[Path, Path], out: Path
) -> None:
    data, expected = many
    process, asked = pid_of(client, next(iter(client.scheduler_info()["workers"]))), threading.Event()

    def interrupt(progress: Any) -> None:
        if progress.videos_sealed and not asked.is_set():
            asked.set()
            os.kill(process, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGINT)

    watched = spread_over(client, data, out, interrupt)
    assert watched.interrupted
    assert any(note.startswith("Stopping") for note in watched.notes)
    with Bank(out) as bank:
        done = len(bank)
        assert 0 < done == watched.progress.videos_sealed < 48
    assert not spread_over(client, data, out).interrupted
    equal(out, expected)


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_ends_the_run_with_one_line(client: Client, tmp_path: Path, out: Path) -> None:
    data = clips(tmp_path / "data", 12)
    client.run(limit_files, 9000)
    with pytest.raises(UserError, match="Everything sealed before is safe"):
        spread_over(client, data, out)
    client.run(limit_files, resource.RLIM_INFINITY)
    assert not spread_over(client, data, out).interrupted
    assert len(Bank(out)) == 12


def test_workers_that_die_one_after_the_other_blame_no_video(
    client: Client, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spreading, "_DEATHS", 2)
    data = clips(tmp_path / "data", 2, name="poison")
    with pytest.raises(UserError, match=r"died 2 times in a row .* too little memory"):
        spread_over(client, data, out)
    with Bank(out) as bank:
        assert len(bank) == len(bank.failures) == 0


def test_another_network_on_the_workers_is_refused(client: Client, tmp_path: Path, out: Path) -> None:
    data = clips(tmp_path / "data", 2)
    with pytest.raises(UserError, match="would make other embeddings than the bank's: weights_sha256 is"):
        spread_over(
            client, data, out, network={"name": "squeezenet1_1", "weights": "random", "image_size": 48, "seed": 1}
        )
    assert banks.sealed_parts(out) == []


def lack_compiler(folder: Path) -> None:
    os.environ |= {"PATH": "", "TORCHINDUCTOR_CACHE_DIR": str(folder)}


def test_a_bank_begun_compiled_is_not_gone_on_with_by_a_network_loaded_before(
    client: Client, tmp_path: Path, out: Path
) -> None:
    encoding, address = recorded(), next(iter(client.scheduler_info()["workers"]))
    client.run(lack_compiler, tmp_path)

    def loaded(compute: dict[str, Any]) -> Any:
        work = Work(out, NETWORK, encoding.options, encoding.recorded | {"compute": compute}, "cpu", 60.0)
        return client.submit(loaded_compute, work, workers=[address], pure=False).result(timeout=120)

    plain = encoding.recorded["compute"]
    assert loaded(plain) == plain
    with pytest.raises(UserError, match=r"The network runs uncompiled .* Leave this worker out"):
        loaded(plain | {"compiled": True})


@pytest.mark.slow
def test_workers_may_join_while_it_runs(tmp_path: Path, out: Path) -> None:
    data = clips(tmp_path / "data", 60, frames=60)
    with cluster(1) as growing, Client(growing) as client:
        scaled = threading.Event()

        def grow(progress: Any) -> None:
            if progress.frames and not scaled.is_set():
                scaled.set()
                growing.scale(2)
                client.wait_for_workers(2, timeout=120)

        watched = spread_over(client, data, out, grow)
    assert all(state.videos for state in watched.states.values())
    assert len(watched.states) == 2
    equal(out, alone(data, tmp_path / "alone.h5"))
