"""What a bank of many videos costs beside its features: finding, sealing, opening, describing, resuming, packing.

The videos are links to one small clip and their embeddings are made up, few and tiny, so that what is measured is what
grows with the number of videos. They are written by the writers that an extraction uses. Each bank is measured in a
fresh process, and the peak of its memory (Linux) is taken of every step by itself, the commands left out.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bank as banks
from pipeline import packing, resuming
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.headers import probe_videos
from pipeline.samples import make_samples
from pipeline.sealing import PartWriter, disk_errors
from pipeline.videos import find_videos
from pipeline.writing import check_outputs, write_json
from stages.console import Display, counted, megabytes

OK, WRONG = 0, 1
_CLASSES = 100
_READS = 1000
_SCALE_RECIPE = {
    "backbone": "made up",
    "layer": "made up",
    "weights_sha256": "0" * 64,
    "preprocessing": {"resize": 256, "crop": 224, "fit": "crop", "interpolation": "bilinear", "antialias": True},
    "crop": "",
    "sampling": {"stride": 1},
    "precision": "fp32",
    "store": "float16",
}


@dataclass(frozen=True)
class BenchBankConfig:
    """Everything that `framebank bench bank` can be told; the defaults are those of the command."""

    videos: tuple[int, ...] = (1000, 10_000)
    rows: int = 8
    features: int = 16
    parts: int = 10
    json: Path | None = None


@dataclass
class _Steps:
    """Seconds (by the clock and of the cores) and peak memory in bytes (None: not measured) of each step."""

    wall: dict[str, float]
    cpu: dict[str, float]
    peak: dict[str, int | None]

    @contextmanager
    def step(self, name: str, *, command: bool = False) -> Iterator[None]:
        """Measure what is done meanwhile: in this process, or by a command of its own, whose memory is not measured."""
        _forget_peak()
        wall, cpu = time.perf_counter(), _cpu_seconds()
        yield
        self.wall[name], self.cpu[name] = time.perf_counter() - wall, _cpu_seconds() - cpu
        self.peak[name] = None if command else _peak()


def _cpu_seconds() -> float:
    """Of this process and of the commands that it has run."""
    return sum(os.times()[:4])


def _forget_peak() -> None:
    """Begin a new peak: without it the steps after the largest would all seem as large."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """The most memory that this process held since, in bytes."""
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def run(config: BenchBankConfig) -> int:
    """Measure, print, and write JSON if asked.

    Returns:
        the exit status: 0, or 1 if a video that is banked was to be done again.

    Raises:
        UserError: more parts than videos, or no room for the files.
    """
    from stages.machine import machine, machine_words, versions  # with torch, which is not to count below

    display = Display.beside(config.json)
    check_outputs({"--json": config.json}, [])
    if config.parts > min(config.videos):
        raise UserError(f"--parts {config.parts} are more than {min(config.videos)} videos; give fewer.")
    known = machine()
    display.field("Machine", machine_words(known))
    display.field(
        "Banks", f"{config.rows} rows × {config.features} a video, float16, in {counted(config.parts, 'part')}"
    )
    found = {}
    spawn = multiprocessing.get_context("spawn")
    for videos in sorted(set(config.videos)):
        doing = f"measuring {counted(videos, 'video')}"
        with ProcessPoolExecutor(1, mp_context=spawn) as process, display.steps(doing, 1, still=True):
            found[videos] = process.submit(_measured, videos, config).result()
        _show(display, videos, found[videos])
    if config.json is not None:
        asked = {**asdict(config), "json": str(config.json)}
        write_json(config.json, {"machine": known, "versions": versions(), "asked": asked, "banks": found})
    if left := sum(each["left"] for each in found.values()):
        display.line(f"{counted(left, 'video')} were to be done again, though nothing had changed.")
    return WRONG if left else OK


def _show(display: Display, videos: int, found: dict[str, Any]) -> None:
    display.line()
    size = f"{megabytes(found['bytes'])}, {found['bytes'] / videos:,.0f} bytes each"
    display.line(f"{f'{videos:,} videos ({size})':<48}{'seconds':>9}{'CPU':>9}{'peak memory':>13}")
    for name, seconds in found["wall"].items():
        peak = found["peak"][name]
        memory = "not measured" if peak is None else megabytes(peak)
        display.line(f"{name:<48}{seconds:>9.2f}{found['cpu'][name]:>9.2f}{memory:>13}")


def _measured(videos: int, config: BenchBankConfig) -> dict[str, Any]:
    """All steps on one bank, in a temporary folder."""
    steps = _Steps({}, {}, {})
    with tempfile.TemporaryDirectory(prefix="framebank-bench-") as temporary:
        folder, out = Path(temporary) / "videos", Path(temporary) / "bank.h5"
        with disk_errors(folder):
            _link(folder, Path(temporary) / "clips", videos)
        with steps.step("find the videos"):
            table = find_videos(folder).table
        with steps.step("probe their headers"):
            probe_videos(table)
        with steps.step("decide what to do, without a bank"):
            todo = resuming.plan(table, None, retry_failed=False).todo
        recipe = {**_SCALE_RECIPE, "feature_shape": [config.features]}
        made = {
            "recipe": recipe,
            "weights": "made up",
            "preset": "IMAGENET1K_V1",
            "compute": {"device": "cpu", "batch_size": 8},
            "data": str(folder),
        }
        banks.create(out, made)
        with steps.step("write and seal them"):
            _seal(out, made, records(todo), config)
        with steps.step(f"open in {counted(len(banks.sealed_parts(out)), 'part')}"), Bank(out):
            pass
        with steps.step("pack"):
            packing.pack(out)
        with steps.step("open"):
            bank = Bank(out)
        with bank:
            for options in ((), ("--stats",)):
                with steps.step(" ".join(["framebank describe", *options]), command=True):
                    words = [sys.executable, "-m", "stages.cli", "describe", str(out), *options]
                    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            with steps.step(f"read {_READS:,} videos at random"):
                ids = list(bank)
                for place in np.random.default_rng(0).integers(len(ids), size=_READS):
                    bank[ids[place]]
            with steps.step("decide what is left to do"):
                found = find_videos(folder, known=resuming.known_sources(bank, folder))
                plan = resuming.plan(found.table, bank, retry_failed=False)
        return {**asdict(steps), "bytes": out.stat().st_size, "left": videos - len(plan.done)}


def _link(folder: Path, clips: Path, videos: int) -> None:
    """So many links to one clip, in class folders."""
    clip = clips / make_samples(clips, clips_per_class=1)["path"][0]
    for number in range(_CLASSES):
        (folder / f"class_{number:03}").mkdir(parents=True)
    for number in range(videos):
        (folder / f"class_{number % _CLASSES:03}" / f"video_{number:07}.mp4").symlink_to(clip)


def _seal(out: Path, made: dict[str, Any], rows: list[dict[str, Any]], config: BenchBankConfig) -> None:
    """Seal made-up embeddings of all videos, in so many parts: more where one takes longer than a writer waits."""
    features = np.random.default_rng(0).normal(size=(config.rows, config.features)).astype(np.float32)
    numbers = np.arange(config.rows)
    decoded = {
        "width": 96,
        "height": 64,
        "rotation": 0,
        "fps": 10.0,
        "codec": "h264",
        "duration": config.rows / 10,
        "start_time": 0.0,
        "frames_declared": config.rows,
        "frames_decoded": config.rows,
        "frames_corrupt": 0,
        "times_mended": 0,
        "partial": "",
        "digest": "0" * 64,
    }
    size = ceil(len(rows) / config.parts)
    for place in range(0, len(rows), size):
        writer = PartWriter(out, made, lambda *_: None)
        for row in rows[place : place + size]:
            sink = writer.open(row)
            sink.append(features, numbers / 10, numbers)
            sink.finish(decoded)
        writer.seal()
