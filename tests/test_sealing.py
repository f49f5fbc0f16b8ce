"""Writers of a bank: what is finished while another thread writes, and what becomes of it when writing fails."""

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import bank as banks
from pipeline import sealing
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.sealing import PartWriter
from tests.banks import config, embeddings, row

PATIENCE_SECONDS = 30


class SlowDisk:
    """Parts get their names when `go` is set; `begun` says that one waits for that."""

    def __init__(self) -> None:
        self.begun, self.go, self.parts = threading.Event(), threading.Event(), 0

    def seal(self, temporary: Path, target: Path) -> None:
        self.begun.set()
        assert self.go.wait(PATIENCE_SECONDS)
        self.parts += 1
        banks.seal(temporary, target)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    disk = SlowDisk()
    monkeypatch.setattr(sealing, "seal", disk.seal)
    return disk


@pytest.fixture
def writer(tmp_path: Path) -> PartWriter:
    made = config()
    banks.create(tmp_path / "bank.h5", made)
    return PartWriter(tmp_path / "bank.h5", made, lambda *_: None)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def finish(writer: PartWriter, video: str, rows: int = 3) -> None:
    sink = writer.open(row(video))
    sink.append(embeddings(video, rows), np.arange(rows) / 10, np.arange(rows))
    sink.finish({"frames_decoded": rows, "duration": rows / 10})


def banked(writer: PartWriter) -> set[str]:
    with Bank(writer.path) as bank:
        return set(bank)


def test_nobody_waits_for_a_disk_that_another_thread_writes_to(
    writer: PartWriter, disk: SlowDisk, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_OFTEN", 0.0)  # every video is due at once
    first = pool.submit(finish, writer, "a")
    assert disk.begun.wait(PATIENCE_SECONDS)
    for video in ("b", "c"):  # would never return while the disk takes its time
        pool.submit(finish, writer, video).result(PATIENCE_SECONDS)
    writer.fail(row("d"), "broken")
    assert not first.done()
    assert banked(writer) == set()
    disk.go.set()
    first.result(PATIENCE_SECONDS)
    assert banked(writer) == {"a"}
    writer.seal()
    assert disk.parts == 2  # b, c and d together
    with Bank(writer.path) as bank:
        assert set(bank) == {"a", "b", "c"}
        assert list(bank.failures["id"]) == ["d"]
        for video in bank:
            assert np.array_equal(bank[video], embeddings(video, 3).astype(np.float16))


def test_memory_is_bounded_however_slow_the_disk(
    writer: PartWriter, disk: SlowDisk, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "PENDING_BYTES", 0)  # one video is too much
    first = pool.submit(finish, writer, "a")
    assert disk.begun.wait(PATIENCE_SECONDS)
    second = pool.submit(finish, writer, "b")
    with pytest.raises(TimeoutError):
        second.result(0.3)  # waits for the disk
    disk.go.set()
    first.result(PATIENCE_SECONDS)
    second.result(PATIENCE_SECONDS)
    assert banked(writer) == {"a", "b"}
    monkeypatch.setattr(sealing, "PENDING_BYTES", 1 << 10)
    finish(writer, "c")  # alone in memory again, so there is room
    assert banked(writer) == {"a", "b"}
    finish(writer, "d", rows=100)
    assert banked(writer) == {"a", "b", "c", "d"}


def test_what_could_not_be_written_is_written_the_next_time(
    writer: PartWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    finish(writer, "a")
    writer.fail(row("b"), "broken")
    with monkeypatch.context() as patched:
        patched.setattr(sealing, "seal", full)
        with pytest.raises(UserError, match="No space left on device"):
            writer.seal()
    assert banked(writer) == set()
    finish(writer, "c")
    writer.seal()
    with Bank(writer.path) as bank:
        assert list(bank.catalog["id"]) == ["a", "c"]
        assert list(bank.failures["id"]) == ["b"]
    assert sorted(banks.parts_folder(writer.path).iterdir()) == banks.sealed_parts(writer.path)  # nothing half written


def test_videos_that_come_fast_are_sealed_together(writer: PartWriter) -> None:
    for number in range(200):
        finish(writer, f"{number:03}")
    writer.seal()
    assert len(banks.sealed_parts(writer.path)) < 20
    assert len(banked(writer)) == 200


def test_videos_that_take_long_to_seal_are_not_kept_back(writer: PartWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealing them seldom would save nothing, cost memory, and lose them all when the process is killed."""
    now, parts = 1000.0, [1000.0]

    class Clock:
        monotonic = staticmethod(lambda: now)

    def write(finished: list[Any], _: list[Any]) -> None:
        nonlocal now
        now += 0.005 + 0.0005 * len(finished)
        parts.append(now)

    monkeypatch.setattr(sealing, "time", Clock)
    monkeypatch.setattr(writer, "_begun", now)
    monkeypatch.setattr(writer, "_sealed_at", now)
    monkeypatch.setattr(writer, "_write_part", write)
    for number in range(6000):  # in a minute
        now += 0.01
        finish(writer, f"{number}")
    pauses = np.diff(parts)
    assert len(parts) > 25
    assert pauses.max() < 3
    assert 0.005 * len(parts) < 0.01 * 60  # what parts take by themselves
