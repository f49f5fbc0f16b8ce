"""`--log-json`: what happens, as JSON Lines on standard error; one object a line, their names and fields stable.

Every line has `time` (ISO 8601, UTC), `level` (info, warning, error) and `event`, then the fields of that event;
docs/how-to/scripting.md lists them. Nobody asked: nothing is said. While it is on, whatever else a library or Python
prints on `sys.stderr` comes as the event `message`, so that every line can be read.
"""

import io
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any

_INTERRUPTED = 130


class _Log:
    """The lines of one command."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.begun, self.ended = stream, time.monotonic(), False
        self.lock = threading.RLock()

    def write(self, event: str, level: str, fields: Mapping[str, Any]) -> None:
        from pipeline.writing import plain  # with pandas, which a command that only refuses can do without

        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps(plain({"time": moment, "level": level, "event": event, **fields}), default=str)
        with self.lock:
            try:
                self.stream.write(line + "\n")
                self.stream.flush()
            except (BrokenPipeError, ValueError):  # whoever read it has left; the work goes on
                self.stream = io.StringIO()


class _Stray(io.TextIOBase):
    """In the place of `sys.stderr`: each line that is printed there becomes an event."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self) -> None:
        self._rest = ""
        self._lock = threading.RLock()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                tell("message", message=line.strip())
        return len(text)


_current: _Log | None = None


def on() -> bool:
    """Whether events are told."""
    return _current is not None


def tell(event: str, level: str = "info", **fields: Any) -> None:
    """Say that something has happened. Fields are plain values; numbers that are not finite become null."""
    if _current is not None:
        _current.write(event, level, fields)


def end(status: int, *, resumable: bool) -> None:
    """The last lines of a command: its exit status, and before it whether the same call goes on if it was interrupted.

    The first time counts, for a command that leaves the process by itself.
    """
    if _current is None or _current.ended:
        return
    _current.ended = True
    if status == _INTERRUPTED:
        tell("interrupted", "warning", resumable=resumable)
    seconds = round(time.monotonic() - _current.begun, 3)
    tell("end", "error" if status in (1, 2) else "info", exit_status=status, seconds=seconds)


@contextmanager
def told(asked: bool) -> Iterator[None]:
    """Within it events are told, if that was asked for."""
    global _current
    if not asked or _current is not None:
        yield
        return
    before, stray = sys.stderr, _Stray()
    _current = _Log(before)
    sys.stderr = stray
    try:
        yield
    finally:
        stray.write("\n")
        sys.stderr, _current = before, None
