"""What the commands show: plain lines on standard output, progress on standard error; and both of them as events."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import events
from stages.progress import Show, say, watch

if TYPE_CHECKING:  # the engine loads torch, and most commands can do without
    from pipeline import engine
    from pipeline.spreading import WorkerState

_NAMED_WORKERS = 4  # more are summed up
_SILENT_SECONDS = 30.0  # without a heartbeat: it is said


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """ "1 video", "2,000 videos"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def megabytes(size: float) -> str:
    """Bytes for people, in powers of ten as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def plain_time(seconds: float) -> str:
    """ "0.4 s", "12 s", "3 min 05 s", "7 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def input_words(preprocessing: Mapping[str, Any]) -> str:
    """How a frame becomes the network's input, as "resized to 256 (bilinear), middle 224×224"."""
    size, fit = preprocessing["crop"], preprocessing["fit"]
    how = f"{preprocessing['interpolation']}{', antialiased' if preprocessing['antialias'] else ''}"
    if fit == "crop":
        resize = preprocessing["resize"]
        resized = f"shorter side resized to {resize}"
        if not isinstance(resize, int):
            resized = f"resized to {resize[1]}×{resize[0]}"
        return f"{resized} ({how}), middle {size}×{size} cropped"
    return f"{'padded' if fit == 'pad' else 'squashed'} to {size}×{size} ({how})"


def sampling_words(sampling: Mapping[str, Any]) -> str:
    """Which frames are taken: "every frame", "one in 5", "2 per second", "8 per video, evenly spread"."""
    if sampling.get("fps"):
        return f"{sampling['fps']:g} per second"
    if sampling.get("frames"):
        return f"{sampling['frames']} per video, evenly spread"
    stride = sampling.get("stride", 1)
    return "every frame" if stride == 1 else f"one in {stride}"


def plain_frames(recipe: Mapping[str, Any]) -> bool:
    """Whether each row of a bank is one frame, seen once."""
    return "window" not in recipe and "views" not in recipe and "imported" not in recipe


def row_unit(recipe: Mapping[str, Any]) -> str:
    """What one row of a bank is called: a frame, where it is of one."""
    return "frame" if plain_frames(recipe) else "row"


def import_words(recipe: Mapping[str, Any]) -> str:
    """Where imported features come from: "imported as i3d (arrays); times of the files, else 25 fps, a row every 8"."""
    made, counting = recipe["imported"], recipe["imported"]["counting"]
    fps, stride, offset = counting["fps"], counting["feat_stride"], counting["offset"]
    steps = f", a row every {counted(stride, 'frame')}" if stride != 1 else ""
    steps += f", the first at frame {offset}" if offset else ""
    otherwise = f"{fps:g} fps{steps}" if fps else f"none{steps}"
    return f"imported as {recipe['layer']} ({made['format']}); times of the files, else {otherwise}"


def window_words(recipe: Mapping[str, Any]) -> str:
    """What of a video makes one row: "one frame", "5 grey frames side by side", "clips of 16 frames, one every 8"."""
    if "imported" in recipe:
        return import_words(recipe)
    window = recipe.get("window", {"kind": "frame", "length": 1})
    length = window["length"]
    words = {
        "frame": "one frame",
        "stack": f"{counted(length, 'grey frame' if window.get('grey') else 'frame')}"
        + (" side by side, as channels" if length > 1 else ""),
        "clip": f"clips of {counted(length, 'frame')}, one every {window.get('stride')}",
        "flow": f"optical flow between {length + 1} frames",
    }[window["kind"]]
    if "flow" in recipe:
        words += f" ({recipe['flow']['method'].upper()}, up to {recipe['flow']['bound']:g} pixels)"
    if "views" in recipe:
        words += f"; {recipe['views']['count']} views of each video ({recipe['views']['kind']})"
    return words


def number(value: float | None) -> str:
    """ "0.712", "12.4", "1,234": three decimals, three digits, or whole; "n/a"."""
    if value is None or isnan(value):
        return "n/a"
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def interval_words(interval: Sequence[float] | None) -> str:
    """ "[0.61, 0.79]"."""
    return "" if interval is None else f"[{number(interval[0])}, {number(interval[1])}]"


def workers_words(workers: Mapping[str, WorkerState], unit: str) -> str:
    """ "2 workers: worker 0 152 frames/s, worker 1 98 frames/s; 1 straggling, at a": how fast, who is in trouble."""
    there = {name: state for name, state in workers.items() if state.address}
    rates = sorted((state.frames_per_second, name) for name, state in there.items())
    text = counted(len(there), "worker")
    if rates and len(rates) <= _NAMED_WORKERS:
        each = (
            f"worker {name} {state.frames_per_second:.0f} {unit}s/s"
            + (f" ({state.failures} failed)" if state.failures else "")
            for name, state in there.items()
        )
        text += f": {', '.join(each)}"
    elif rates:
        (least, slowest), (middle, _) = rates[0], rates[len(rates) // 2]
        text += f": {middle:.0f} {unit}s/s each, the slowest {slowest} {least:.0f}"
    straggling = [name for name, state in there.items() if state.straggling]
    if straggling:
        name = straggling[0]
        more = f" and {len(straggling) - 1} more" if len(straggling) > 1 else ""
        text += f"; {name}{more} straggling, at {', '.join(there[name].in_work) or 'an unknown video'}"
    silent = [name for name, state in there.items() if state.last_seen > _SILENT_SECONDS]
    if silent:
        text += f"; {', '.join(silent[:_NAMED_WORKERS])} not heard of for {plain_time(there[silent[0]].last_seen)}"
    gone = len(workers) - len(there)
    return text + (f"; {gone} gone" if gone else "")


@dataclass
class Display:
    """Lines and progress of one command; `quiet` leaves only what went wrong.

    Attributes:
        aside: the lines go to standard error, since standard output has a JSON document.
    """

    quiet: bool = False
    aside: bool = False
    workers: Mapping[str, WorkerState] = field(default_factory=dict)  # of a cluster, as they were last seen

    @classmethod
    def beside(cls, json: Path | None, *, quiet: bool = False) -> Display:
        """The display of a command that writes JSON into a file, to standard output (`-`), or not at all."""
        return cls(quiet, aside=json is not None and str(json) == "-")

    def see_workers(self, workers: Mapping[str, WorkerState]) -> None:
        """Take what the progress shows of the workers from now on."""
        for name, state in workers.items():
            before = self.workers.get(name)
            if state.deaths > (before.deaths if before else 0) or (before and before.address and not state.address):
                events.tell("worker_lost", "warning", worker=name, deaths=state.deaths)
            if state.address and state.address != (before.address if before else ""):
                events.tell("worker_joined", worker=name, address=state.address)
            if state.straggling and not (before and before.straggling):
                events.tell("worker_straggling", "warning", worker=name, in_work=state.in_work)
        self.workers = workers

    def line(self, text: str = "") -> None:
        """One line on standard output, unless quiet."""
        if self.quiet:
            return
        if self.aside:
            say(text)
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:  # whoever read our output has left; the work goes on
            self.quiet = True
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - so that closing it at exit succeeds

    def field(self, name: str, text: str) -> None:
        """A line of a summary, its name in a column of its own."""
        if name == "Note":
            events.tell("note", message=text)
        self.line(f"{name:<12}{text}")

    def note(self, text: str) -> None:
        """A line about something on the way that is worth knowing."""
        events.tell("note", message=text)
        self.line(text)

    def steps(self, doing: str, total: int, unit: str = "", *, still: bool = False) -> AbstractContextManager[Show]:
        """Show how far something is that is counted; arguments are those of `stages.progress.watch`."""
        return watch(doing, total, unit, quiet=self.quiet, still=still)

    def busy(self, doing: str) -> AbstractContextManager[Show]:
        """Show that something goes on of which nothing can be counted."""
        return watch(doing, quiet=self.quiet)

    @contextmanager
    def progress(
        self, videos: int, frames: int, unit: str = "frame", doing: str = "embedding"
    ) -> Iterator[Callable[[engine.Progress], None]]:
        """Show how far an extraction is: videos, frames, frames/s, time left, failures.

        Args:
            videos: how many there are to do.
            frames: how many frames they declare; 0 when unknown.
            unit: what is embedded: a frame, or a row of several.
            doing: what it is called in events.
        """
        started = time.monotonic()
        with watch(doing, videos, "videos", quiet=self.quiet) as show:

            def take(progress: engine.Progress) -> None:
                seconds = time.monotonic() - started
                text = _rates(progress, videos, frames, seconds, unit)
                if self.workers:
                    text += f"\n{workers_words(self.workers, unit)}"
                left = _seconds_left(progress, videos, frames, seconds)
                show(
                    progress.videos_sealed + progress.failures,
                    text,
                    rows=progress.frames,
                    rows_per_second=progress.frames / seconds if seconds else None,
                    seconds_left=left,
                    failed=progress.failures,
                )

            yield take


def _seconds_left(progress: engine.Progress, videos: int, frames: int, seconds: float) -> float | None:
    """None where that is not known."""
    share = progress.frames / frames if frames else (progress.videos_sealed + progress.failures) / max(1, videos)
    return seconds / share - seconds if 0 < share < 1 else None


def _rates(progress: engine.Progress, videos: int, frames: int, seconds: float, unit: str) -> str:
    """ "1,200 frames · 98 frames/s · 2 min 05 s left · 1 failed"."""
    rate = progress.frames / seconds if seconds else 0.0
    known = _seconds_left(progress, videos, frames, seconds)
    left = "…" if known is None else f"{plain_time(known)} left"
    return f"{counted(progress.frames, unit)} · {rate:.0f} {unit}s/s · {left} · {progress.failures} failed"
