"""A lock file with a heartbeat: one holder at a time, on one machine or on a shared file system.

The file names its holder (host, pid, random token) and the holder touches it while it works. A lock is stale when its
process is gone (same host) or when its heartbeat has stopped; a stale lock is broken. A file made with O_EXCL works on
network file systems, where flock often does not.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import UserError

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
_POLL_SECONDS = 0.2


class LostLockError(UserError):
    """The lock was broken by somebody else while it was held; what it guarded must not be committed."""


def is_running(pid: int) -> bool:
    """Whether a process of that number lives on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _holder(path: Path) -> dict[str, object] | None:
    """Who holds the lock, or None when nobody does (or the file is only being written)."""
    try:
        content = json.loads(path.read_text())
        return {key: content[key] for key in ("host", "pid", "token")}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return {"host": "?", "pid": 0, "token": ""}


def _is_stale(path: Path, holder: dict[str, object]) -> bool:
    if holder["host"] == socket.gethostname() and not is_running(int(str(holder["pid"]))):
        return True
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return False


def _break(path: Path, token: object) -> None:
    """Take a stale lock away, unless somebody else was quicker and the lock is a fresh one by now."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    moved = _holder(aside)
    if moved is not None and moved["token"] != token:
        with suppress(FileExistsError):  # a fresh lock was taken away by mistake: put it back
            os.link(aside, path)
    aside.unlink()


@contextmanager
def hold(path: Path, *, on_wait: Callable[[str], None] | None = None) -> Iterator[Callable[[], None]]:
    """Hold the lock file, waiting for it as long as its holder lives.

    Args:
        path: the lock file.
        on_wait: called once with "pid 12 on host" when somebody else holds the lock.

    Yields:
        a check to call right before committing: it raises `LostLockError` when the lock is no longer ours.
    """
    token = uuid.uuid4().hex
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "token": token})
    told = False
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            holder = _holder(path)
            if holder is not None and _is_stale(path, holder):
                _break(path, holder["token"])
            elif holder is not None:
                if on_wait is not None and not told:
                    on_wait(f"pid {holder['pid']} on {holder['host']}")
                    told = True
                time.sleep(_POLL_SECONDS)
            continue
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(content)
        except OSError:  # a full disk: do not leave a lock that nobody holds
            path.unlink()
            raise
        break

    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            with suppress(FileNotFoundError):
                os.utime(path)

    def check() -> None:
        holder = _holder(path)
        if holder is None or holder["token"] != token:
            raise LostLockError(f"{path} was taken over by another process; nothing was changed. Run it again.")

    heart = threading.Thread(target=beat, name="lock heartbeat", daemon=True)
    heart.start()
    try:
        yield check
    finally:
        done.set()
        heart.join()
        with suppress(LostLockError):
            check()
            path.unlink()
