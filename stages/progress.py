"""How far something is, for whoever watches: a live bar on a terminal, now and then a line in a log, or events.

All goes to standard error. In a log a line comes at most every ten seconds, and where nothing is counted for half a
minute one says what goes on, so that nobody has to wonder. One thing is watched at a time: what is begun within another
is silent.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from stages import events

_PLAIN_SECONDS = 10.0  # between two lines of progress when nobody watches a terminal
_BAR, _SHORT_BAR, _WIDE = 40, 12, 110  # columns of a bar on a terminal of so many or less, with room for the words
_STILL_SECONDS = 30.0  # without one, after which a line says what goes on


class Show(Protocol):
    """Called with how much is done, a text on it, and fields for its event."""

    def __call__(self, done: int, text: str = "", **fields: Any) -> None: ...


_watching = False


def say(line: str) -> None:
    """A line on standard error. If its reader has left, the work goes on without."""
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - so that closing it at exit succeeds


def on_terminal() -> bool:
    """Whether somebody watches who can be shown a bar."""
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return sys.stderr is not None and sys.stderr.isatty() and not dumb


@contextmanager
def watch(
    doing: str, total: int | None = None, unit: str = "", *, quiet: bool = False, still: bool = False
) -> Iterator[Show]:
    """Show how far something is.

    Args:
        doing: what is done, as "verifying"; stable, for events name it too.
        total: how many there are to do; None where nothing is counted.
        unit: what is counted, in the plural: "videos"; "" shows a share.
        quiet: show nothing, but events.
        still: draw nothing between two calls, which would take time of the processor from what is measured.
    """
    global _watching
    if _watching or (quiet and not events.on()):
        yield _nothing
        return
    _watching = True
    try:
        kind = _lines if events.on() or not on_terminal() else _live
        with kind(doing, total, unit, still) as show:
            yield show
    finally:
        _watching = False


def _nothing(done: int, text: str = "", **fields: Any) -> None:
    """Show nothing."""


@contextmanager
def _live(doing: str, total: int | None, unit: str, still: bool) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    width = _BAR if console.width >= _WIDE else _SHORT_BAR
    first = [SpinnerColumn()] if total is None else [BarColumn(width), *([MofNCompleteColumn()] if unit else [])]
    bar = Progress(
        *first,
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=not still,
        redirect_stdout=sys.stdout.isatty(),  # what goes into a file or a pipe stays out of its way
    )
    with bar:
        task = bar.add_task(doing, total=total)

        def show(done: int, text: str = "", **fields: Any) -> None:
            bar.update(task, completed=done, description=text or doing, refresh=still)

        yield show


@contextmanager
def _lines(doing: str, total: int | None, unit: str, still: bool) -> Iterator[Show]:
    tell = (_Told if events.on() else _Said)(doing, total, unit)
    over = threading.Event()
    watcher = threading.Thread(target=tell.heartbeat, args=(over,), name="heartbeat", daemon=True)
    with _running(watcher, over):
        yield tell.show


@contextmanager
def _running(thread: threading.Thread, over: threading.Event) -> Iterator[None]:
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Said:
    """Progress as lines."""

    def __init__(self, doing: str, total: int | None, unit: str) -> None:
        self.doing, self.total, self.unit = doing, total, unit
        self.begun = self.shown = time.monotonic()
        self.done, self.text, self.fields = 0, "", dict[str, Any]()
        self.lock = threading.Lock()

    def show(self, done: int, text: str = "", **fields: Any) -> None:
        """Take how far it is, and say it if it is time."""
        self.done, self.text, self.fields = done, text, fields
        self.due(_PLAIN_SECONDS)

    def heartbeat(self, over: threading.Event) -> None:
        """Say it, too, when nothing has been said for a while."""
        while not over.wait(max(0.05, min(1.0, _STILL_SECONDS / 4))):
            self.due(_STILL_SECONDS)

    def due(self, seconds: float) -> None:
        """Say it if so many seconds have passed since it was last said."""
        with self.lock:
            now = time.monotonic()
            if now - self.shown >= seconds:
                self.shown = now
                self.speak(now - self.begun)

    def speak(self, seconds: float) -> None:
        """Say how far it is."""
        text = (self.text or self.doing).replace("\n", "\n  ")
        if self.total is None:
            say(f"{text}, {seconds:.0f} s")
        elif self.unit:
            say(f"{self.done:,}/{self.total:,} {self.unit} · {text}")
        else:
            say(f"{self.done / max(1, self.total):.0%} · {text}")


class _Told(_Said):
    """Progress as events."""

    def speak(self, seconds: float) -> None:
        known: dict[str, Any] = {"doing": self.doing, "seconds": round(seconds, 3)}
        known |= {} if self.total is None else {"done": self.done, "total": self.total}
        known |= {"unit": self.unit} if self.unit else {}
        events.tell("progress", **known, **self.fields)
