"""Pack, link, merge, remove: nothing is lost, whoever else is at work."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from pipeline import bank as banks
from pipeline import lock, packing
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.sealing import PartWriter
from tests.banks import config, embeddings, fill, row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bank.h5"


def hold_everything(path: Path, lengths: dict[str, int]) -> None:
    """Assert that the bank holds exactly these videos with the right embeddings."""
    with Bank(path) as bank:
        assert {video_id: len(bank[video_id]) for video_id in bank} == lengths
        for video_id, rows in lengths.items():
            np.testing.assert_array_equal(bank[video_id], embeddings(video_id, rows).astype(np.float16))
        assert bank.verify() == []


def test_pack_makes_one_self_contained_file(path: Path, tmp_path: Path) -> None:
    fill(path, {"a": 3, "a/b": 4}, failures={"z": "empty file"})
    fill(path, {"c": 5})
    assert packing.pack(path) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["bank.h5"]
    path = path.rename(tmp_path / "elsewhere.h5")
    hold_everything(path, {"a": 3, "a/b": 4, "c": 5})
    assert Bank(path).failures["id"].tolist() == ["z"]


def test_link_copies_nothing_and_plain_h5py_sees_everything(path: Path) -> None:
    fill(path, {"a": 300, "a/b": 4}, failures={"z": "empty file"})
    packing.pack(path)
    packed = path.stat().st_ino
    for lengths in ({"c": 5}, {"a/d": 6}):
        fill(path, lengths)
        packing.link(path)
        with h5py.File(path) as file:
            assert file["videos/a/features"].shape == (300, 8)
            assert file["videos/c/features"].shape == (5, 8)
    assert packed in {part.stat().st_ino for part in banks.sealed_parts(path)}
    everything = {"a": 300, "a/b": 4, "a/d": 6, "c": 5}
    hold_everything(path, everything)
    assert Bank(path).failures["id"].tolist() == ["z"]
    packing.pack(path)
    hold_everything(path, everything)
    assert not banks.parts_folder(path).exists()


def test_linking_an_empty_bank_changes_nothing(path: Path) -> None:
    fill(path, {})
    before = path.read_bytes()
    packing.link(path)
    assert path.read_bytes() == before


def test_a_bank_of_failures_alone_keeps_them(path: Path) -> None:
    fill(path, {}, failures={"z": "empty file"})
    packing.pack(path)
    fill(path, {"a": 3})
    packing.link(path)
    assert Bank(path).failures["id"].tolist() == ["z"]


def test_the_end_of_a_run_packs_big_parts_and_links_small_ones(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, {"a": 30})
    assert packing.fold_in(path, updates=None) == "packed"
    fill(path, {"a": 30, "b": 3})
    assert packing.fold_in(path, updates=None) == "packed"  # all of it is small
    monkeypatch.setattr(packing, "PACK_BYTES", 0)
    fill(path, {"a": 3000})
    assert packing.fold_in(path, updates=None) == "packed"
    fill(path, {"b": 3})
    assert packing.fold_in(path, updates=None) == "linked"
    assert packing.fold_in(path, updates=None) == ""
    hold_everything(path, {"a": 3000, "b": 3})
    updates = pd.DataFrame({"id": ["b"], "label": ["new"], "person": ["Ada"]})
    assert packing.fold_in(path, updates=updates) == "linked"
    fill(path, {"c": 1})
    packing.link(path)
    for _ in range(2):
        with Bank(path) as bank:
            assert bank.catalog.set_index("id").loc["b", ["label", "person"]].tolist() == ["new", "Ada"]
            assert bank.catalog.set_index("id").loc["a", "person"] == ""
        with h5py.File(path) as file:
            assert file["videos/b"].attrs["label"] == "new"
        packing.pack(path)


def test_without_room_for_a_copy_the_parts_are_linked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, {"a": 3000})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    assert packing.fold_in(path, updates=None).startswith("linked: Packing")
    hold_everything(path, {"a": 3000})
    with pytest.raises(UserError, match="free disk"):
        packing.pack(path)


def test_merge_joins_banks_made_alike(path: Path, tmp_path: Path) -> None:
    fill(tmp_path / "one.h5", {"a": 3, "b": 4}, failures={"c": "broken"})
    fill(tmp_path / "two.h5", {"b": 4, "c": 5})
    assert packing.merge(path, [tmp_path / "one.h5", tmp_path / "two.h5"]) == 3
    hold_everything(path, {"a": 3, "b": 4, "c": 5})
    assert Bank(path).failures.empty
    fill(tmp_path / "three.h5", {"d": 6})
    fill(path, {"e": 1})
    packing.merge(path, [tmp_path / "three.h5"])
    hold_everything(path, {"a": 3, "b": 4, "c": 5, "d": 6, "e": 1})
    assert not banks.parts_folder(path).exists()


def test_merge_refuses_what_must_not_mix(path: Path, tmp_path: Path) -> None:
    fill(tmp_path / "one.h5", {"a": 3})
    fill(tmp_path / "two.h5", {"a": 4})
    with pytest.raises(UserError, match=r"1 ids stand for different videos in these banks, e\.g\. 'a'"):
        packing.merge(path, [tmp_path / "one.h5", tmp_path / "two.h5"])
    fill(tmp_path / "three.h5", {"b": 4}, precision="bf16")
    with pytest.raises(UserError, match=r"precision is fp32 \(one\.h5\) and bf16 \(three\.h5\)"):
        packing.merge(path, [tmp_path / "one.h5", tmp_path / "three.h5"])
    assert not path.exists()


def test_removed_videos_are_gone_and_their_space_is_free(path: Path) -> None:
    fill(path, {"a": 3000, "b": 3}, failures={"z": "empty file"})
    packing.pack(path)
    size = path.stat().st_size
    packing.pack(path, without=["a", "z"])
    hold_everything(path, {"b": 3})
    assert Bank(path).failures.empty
    assert path.stat().st_size < size - 3000 * 16


PACK = "import sys; from pathlib import Path; from pipeline import packing; packing.pack(Path(sys.argv[1]))"


def test_packs_and_writers_at_once_lose_nothing(path: Path) -> None:
    lengths = {f"v{n}": 1 + n % 5 for n in range(30)}
    fill(path, {})
    packers = [
        subprocess.Popen(
            [sys.executable, "-c", PACK.replace("packing.pack(", "[packing.pack(") + " for _ in range(10)]", str(path)]
        )
        for _ in range(2)
    ]
    for video_id, rows in lengths.items():
        fill(path, {video_id: rows})
        with Bank(path) as bank:
            assert video_id in bank
    assert [packer.wait(60) for packer in packers] == [0, 0]
    hold_everything(path, lengths)
    packing.pack(path)
    hold_everything(path, lengths)


def test_a_pack_killed_at_any_moment_costs_nothing(path: Path) -> None:
    lengths = {f"v{n}": 400 for n in range(40)}
    for number, (video_id, rows) in enumerate(lengths.items()):
        fill(path, {video_id: rows})
        if number % 8 == 7:
            packer = subprocess.Popen([sys.executable, "-c", PACK, str(path)])
            while not banks.lock_file(path).exists() and packer.poll() is None:
                time.sleep(0.002)
            time.sleep(0.004 * number)
            packer.send_signal(signal.SIGKILL)
            packer.wait()
            with Bank(path) as bank:
                assert len(bank) == number + 1
                assert bank.verify() == []
    packing.pack(path)
    hold_everything(path, lengths)
    assert [file.name for file in path.parent.iterdir()] == ["bank.h5"]


def test_a_lock_waits_for_the_living_and_breaks_the_dead(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    waited: list[str] = []
    order: list[str] = []

    def second() -> None:
        with lock.hold(file, on_wait=waited.append):
            order.append("second")

    with lock.hold(file):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert waited == [f"pid {os.getpid()} on {socket.gethostname()}"]
    assert not file.exists()

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for holder in ({"host": socket.gethostname(), "pid": gone.pid}, {"host": "elsewhere", "pid": 1}):
        file.write_text(json.dumps({**holder, "token": "old"}))
        os.utime(file, (time.time() - 2 * lock.STALE_SECONDS,) * 2)
        with lock.hold(file) as check:
            check()


def test_who_lost_the_lock_must_not_commit(path: Path) -> None:
    fill(path, {"a": 3})
    with lock.hold(path.with_name("lock")) as check:
        path.with_name("lock").unlink()
        with pytest.raises(lock.LostLockError):
            check()


def test_a_fresh_lock_that_was_broken_by_mistake_is_put_back(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with lock.hold(file) as check:
        lock._break(file, "the token of an older lock")
        check()
        lock._break(tmp_path / "nothing", "")


def test_a_reader_loses_nothing_to_a_pack_at_the_worst_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, {"a": 3})
    packing.pack(path)
    fill(path, {"b": 4})
    read_file, packed = banks._read_file, []

    def read_and_pack(file: Path) -> object:
        contents = read_file(file)
        if not packed:
            packed.append(True)
            packing.pack(path)
        return contents

    monkeypatch.setattr(banks, "_read_file", read_and_pack)
    with Bank(path) as bank:
        assert list(bank) == ["a", "b"]


def test_a_bank_cannot_be_redefined_under_a_run(path: Path) -> None:
    fill(path, {})
    with pytest.raises(UserError, match="Another run has just made"):
        banks.create(path, config(precision="bf16"))
    other = path.with_name("other.h5")
    fill(other, {}, failures={"z": "broken"})
    writer = PartWriter(other, config(), lambda *_: None)
    banks.create(other, config(precision="bf16"))
    writer.fail(row("late"), "broken")
    with pytest.raises(UserError, match="anew with other settings"):
        writer.seal()
    assert Bank(other).failures.empty


@pytest.mark.parametrize("then", ["pack", "link", "merge", "create"])
def test_what_a_killed_removal_left_stays_void(path: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    fill(path, {"x": 3, "y": 3} if then != "create" else {"x": 3})
    with monkeypatch.context() as killed:
        killed.setattr(packing, "_delete", lambda *_: None)
        packing.pack(path, without=["x"])
    if then == "pack":
        packing.pack(path)
    elif then == "link":
        fill(path, {"z": 1})
        packing.link(path)
    elif then == "merge":
        fill(path.with_name("other.h5"), {"z": 1})
        packing.merge(path, [path.with_name("other.h5")])
    else:
        fill(path, {}, failures={"z": "broken"})
        banks.create(path, config(precision="bf16"))
    assert "x" not in Bank(path)


def test_linking_forgets_what_is_mended_for_good(path: Path) -> None:
    fill(path, {"a": 3})
    fill(path, {}, failures={"a": "broken"})
    packing.link(path, mended=["a"])
    assert Bank(path).failures.empty
    assert packing.fold_in(path, in_a_hurry=True) == "packed"
    assert Bank(path).failures.empty


def test_new_embeddings_count_as_newer_whatever_the_clock_says(path: Path) -> None:
    fill(path, {"a": 3})
    with Bank(path) as bank:
        future = bank.catalog["banked"][0].replace("20", "21", 1)
    writer = PartWriter(path, config(), lambda *_: None, newer_than=future)
    sink = writer.open(row("a"))
    sink.append(embeddings("a", 5), np.arange(5.0), np.arange(5))
    sink.finish({})
    writer.seal()
    with Bank(path) as bank:
        assert len(bank["a"]) == 5
        assert bank.catalog["banked"][0] > future


def test_a_reason_that_is_not_unicode_is_written_escaped(path: Path) -> None:
    fill(path, {"a": 1}, failures={"b": "image \udcff1.jpg cannot be read"})
    assert Bank(path).failures["reason"].tolist() == ["image \\xff1.jpg cannot be read"]


def test_a_lock_without_a_heartbeat_is_broken_even_if_its_pid_lives_again(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": "of another life"}))
    os.utime(file, (time.time() - 2 * lock.STALE_SECONDS,) * 2)
    with lock.hold(file) as check:
        check()
