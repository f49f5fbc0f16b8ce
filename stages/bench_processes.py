"""Commands in fresh processes, timed from their start to their first frame and to their end, with the memory they take.

`framebank extract` is given a terminal, where it shows how many frames it has embedded; the naive loop says so itself.
"""

import json
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any, NamedTuple

from pipeline.errors import UserError
from stages.machine import pss_bytes

_TICK_SECONDS = 0.05
_PSS_SECONDS = 0.25  # between two looks at the memory, each of which takes some milliseconds
_FRAMES_SHOWN = re.compile(r"\b([1-9][\d,]*) (?:frame|row)s? ·")
_DONE = (0, 3)  # exit statuses of an extraction that has banked what could be


class Fresh(NamedTuple):
    """What a process took.

    Attributes:
        first_seconds: from its start to the first frame's embedding, as far as it shows that.
        seconds: from its start to its end.
        peak_bytes: of memory, with its descendants, each shared page counted once; None where the system cannot say.
    """

    first_seconds: float
    seconds: float
    peak_bytes: int | None


def run_extract(arguments: Sequence[str]) -> Fresh:
    """`framebank extract` with these arguments, as a person runs it at a terminal.

    Its first frame shows up to a third of a second after it was embedded, since what is shown changes that rarely.

    Raises:
        UserError: it failed; with its own words.
    """
    command = [sys.executable, "-m", "stages.cli", "extract", *arguments]
    # A terminal on which the line of progress has room, and can be drawn again.
    wide = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
    shown, first = "", 0.0

    def read(text: str, seconds: float) -> None:
        nonlocal shown, first
        shown = shown[-2000:] + text
        if not first and _FRAMES_SHOWN.search(shown):
            first = seconds

    ours, theirs = pty.openpty()
    with tempfile.TemporaryFile("w+") as said:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=theirs, env=wide)
        finally:
            os.close(theirs)
        try:
            seconds, peak = _watched(process, ours, read)
        finally:
            os.close(ours)
        if process.returncode not in _DONE or not first:
            raise UserError(f"framebank extract failed in a process of its own: {_last_line(shown) or _end_of(said)}")
    return Fresh(first, seconds, peak)


def run_naive(asked: dict[str, Any]) -> tuple[Fresh, int, float]:
    """`stages.naive_loop`, asked as it says.

    Returns:
        what it took, how many frames it embedded, and how many per second after its first batch.

    Raises:
        UserError: it failed; with its own last words.
    """
    said: list[tuple[float, int]] = []

    def read(text: str, seconds: float) -> None:
        said.extend((seconds, int(count)) for count in text.split())

    with tempfile.TemporaryFile("w+") as request, tempfile.TemporaryFile("w+") as errors:
        json.dump(asked, request)
        request.seek(0)
        command = [sys.executable, "-m", "stages.naive_loop"]
        process = subprocess.Popen(command, stdin=request, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        with process.stdout:
            seconds, peak = _watched(process, process.stdout.fileno(), read)
        if process.returncode or len(said) != 2:
            raise UserError(f"The naive loop failed: {_end_of(errors)}")
    (first, begun), (end, frames) = said
    rate = (frames - begun) / (end - first) if frames > begun else frames / end
    return Fresh(first, seconds, peak), frames, rate


def _watched(
    process: "subprocess.Popen[Any]", output: int, read: Callable[[str, float], None]
) -> tuple[float, int | None]:
    """Read what a process writes until it ends, and look at its memory meanwhile.

    Returns:
        its seconds, and the most memory that it was seen to hold.
    """
    begun, looked, peak = time.perf_counter(), 0.0, 0
    is_open = True
    try:
        while is_open:
            if select.select([output], [], [], _TICK_SECONDS)[0]:
                try:
                    text = os.read(output, 1 << 16).decode("utf-8", "replace")
                except OSError:  # how Linux says that nobody holds the other end of a terminal
                    text = ""
                is_open = bool(text)
                read(text, time.perf_counter() - begun)
            if time.perf_counter() - looked > _PSS_SECONDS:
                looked = time.perf_counter()
                peak = max(peak, pss_bytes(process.pid) or 0)
        process.wait()
    except BaseException:
        process.terminate()
        with suppress(OSError):
            while os.read(output, 1 << 16):  # what it still says, or it would wait for somebody to read that
                pass
        process.wait()
        raise
    return time.perf_counter() - begun, peak or None


def _end_of(file: IO[str]) -> str:
    file.seek(0)
    return _last_line(file.read())


def _last_line(text: str) -> str:
    """The last line in which anything is said, without what moves the cursor."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()]
    return next((line for line in reversed(lines) if line), "")
