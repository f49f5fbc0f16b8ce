"""How fast extraction is here: its parts by themselves, the whole beside what bounds it, and beside a naive loop.

Everything is measured in turn, in rounds, on the same videos: whatever else the machine does falls on all of it, and
ratios, each of one round, hold better than rates. Where the CPU does everything, n lanes that never wait would reach
n / (the sum of core-seconds that a frame takes in each part); beside a GPU the slowest of decoding with preparing,
forward and writing bounds them.

What is fast and wrong is worth nothing, so the embeddings are held against each other while this goes on: those of the
whole, of the whole in reversed order (so in other batches), of the forward by itself, and of the command in a process
of its own must be the same bit for bit, and those of the naive loop must point the same way.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from pipeline import bank as banks
from pipeline.backbone import Backbone, load_backbone
from pipeline.bank import Bank
from pipeline.compiling import Compiling
from pipeline.encoder import choose_batch_size, choose_device, choose_precision
from pipeline.errors import UserError
from pipeline.extraction import Encoding, make_encoding, recipe_of, rows_expected, share_cores, with_region
from pipeline.flow import Flow
from pipeline.headers import probe_videos
from pipeline.rows import ReadOptions
from pipeline.sampling import Sampling
from pipeline.timing import PARTS
from pipeline.videos import absolute_path, find_videos
from pipeline.windows import Window
from pipeline.writing import check_outputs, write_csv, write_json
from stages import bench_naive, bench_words
from stages import bench_parts as parts
from stages.bench_parts import DECODING, FORWARD, PREPARING, WRITING, Sample
from stages.bench_processes import Fresh, run_extract
from stages.console import Display, counted
from stages.machine import clock_mhz, machine, versions

OK, DIFFER, INTERRUPTED = 0, 1, 130
_WHOLE = "the whole"


@dataclass(frozen=True)
class BenchExtractConfig:
    """Everything that `framebank bench extract` can be told; the defaults are those of the command."""

    data: Path
    backbone: str | None = None
    weights: str = "DEFAULT"
    layer: str | None = None
    preset: str | None = None
    image_size: int | None = None
    fit: str | None = None
    crop: str | None = None
    window: Window | None = None
    inflate: bool = False
    flow: Flow | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    batch_size: str = "auto"
    frames: int = 1000
    rounds: int = 3
    naive: int | None = None
    json: Path | None = None


class _Bench(NamedTuple):
    """What all rounds have in common.

    Attributes:
        config: as it was asked.
        folder: for what they write.
        sample: what the parts are measured on.
        table: its videos.
        bank: their embeddings, as the engine made them before the first round, the last video first.
        request: what the naive loop is asked; None without it.
        plain: the videos that it can read.
    """

    config: BenchExtractConfig
    folder: Path
    sample: Sample
    table: pd.DataFrame
    bank: Bank
    request: dict[str, Any] | None
    plain: Sequence[Mapping[str, Any]]


def run(config: BenchExtractConfig) -> int:
    """Measure, print, and write JSON if asked.

    Returns:
        the exit status: 0; 1 if embeddings that must agree do not; 130 if it was interrupted.

    Raises:
        UserError: it cannot be measured as asked, or none of the videos can be read.
    """
    check_outputs({"--json": config.json})
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="framebank-") as folder:
        try:
            return _run(config, Path(folder), Display.beside(config.json))
        finally:
            torch.set_num_threads(threads)


def _run(config: BenchExtractConfig, folder: Path, display: Display) -> int:
    table = with_region(find_videos(config.data).table, config.crop or "", None)
    device = choose_device(config.device)
    if any((Path(config.weights) / name).exists() for name in ("model.json", "config.json")):
        raise UserError(f"{config.weights} is a run; name the network, and a weights file.")
    backbone = load_backbone(
        config.backbone or "resnet50",
        weights=config.weights,
        layer=config.layer,
        preset=config.preset,
        image_size=config.image_size,
        fit=config.fit or "crop",
        seed=config.seed,
        window=config.window,
        inflate=config.inflate,
    )
    request = bench_naive.request_of(backbone, device, config.naive, folder) if config.naive else None
    drawn = parts.chosen(table, config.frames)
    lanes, threads = share_cores(device.type, len(drawn))
    encoding = _encoding(config, backbone, device, drawn, lanes, display)
    with display.busy("embedding for the first time"):
        interrupted = parts.whole(folder / "first.h5", drawn[::-1], encoding)[2]
    if interrupted:
        return INTERRUPTED
    with Bank(folder / "first.h5") as bank:
        if not len(bank):
            row = bank.failures.iloc[0]
            raise UserError(f"None of {counted(len(drawn), 'video')} could be read, e.g. {row['id']}: {row['reason']}")
        drawn = drawn[drawn["id"].isin(bank.catalog["id"])]
        sample = parts.sample_of(bank, drawn, encoding, lanes, threads)
        plain = bench_naive.plain_videos(sample.videos, bank, config.naive) if config.naive else []
        bench = _Bench(config, folder, sample, drawn, bank, request, plain)
        rounds: list[dict[str, Any]] = []
        wrong: list[str] = []
        with display.steps("measuring", config.rounds, "rounds", still=True) as show:
            for turn in range(config.rounds):
                measured = _round(bench, turn, wrong, partial(show, turn))
                if measured is None:
                    return INTERRUPTED
                rounds.append(measured)
    result = _result(bench, backbone, rounds, wrong, len(table))
    bench_words.show(display, result)
    if config.json is not None:
        write_json(config.json, result)
    for line in wrong:
        display.line(f"{line}: that is an error in framebank; please report it.")
    return DIFFER if wrong else OK


def _encoding(
    config: BenchExtractConfig,
    backbone: Backbone,
    device: torch.device,
    table: pd.DataFrame,
    lanes: int,
    display: Display,
) -> Encoding:
    """How `framebank extract` would make the embeddings, of every frame of these videos."""
    options = ReadOptions(Sampling(), backbone.preprocessing, backbone.window, flow=config.flow)
    precision = choose_precision(config.precision, device)
    recipe = recipe_of(backbone, options, crop=config.crop or "", precision=precision, store="float16")
    size = choose_batch_size(config.batch_size, device, None, backbone.window)
    compiling = Compiling(rows_expected(probe_videos(table), options), lanes, None, display.note)
    return make_encoding(backbone, recipe, options, device, size, str(absolute_path(config.data)), compiling)


def _round(bench: _Bench, turn: int, wrong: list[str], show: Callable[[str], None]) -> dict[str, Any] | None:
    """Everything once, for JSON; what is not as it must be is added to `wrong`. None if it was interrupted.

    `show` is called with what is measured next.
    """
    sample, bank, folder = bench.sample, bench.bank, bench.folder
    show(DECODING)
    rates = {DECODING: parts.decoding(sample)}
    show(PREPARING)
    rates[PREPARING] = parts.preparing(sample)
    show(FORWARD)
    rates[FORWARD], embeddings = parts.forward(sample, turn)
    show(WRITING)
    rates[WRITING] = parts.writing(sample, folder / f"written{turn}.h5")
    show(_WHOLE)
    bound, limit = _bound(rates, sample.encoding)
    progress, seconds, interrupted = parts.whole(folder / f"whole{turn}.h5", bench.table, sample.encoding)
    if interrupted:
        return None
    rates[_WHOLE] = progress.rows_sealed / seconds

    same, cosine = parts.against_bank(sample, embeddings, bank)
    if not same:
        wrong.append(f"The forward by itself gives other embeddings than the whole (least cosine {cosine:.6f})")
    with Bank(folder / f"whole{turn}.h5") as other:
        if differing := parts.differing(bank, other):
            wrong.append(f"In another order {counted(len(differing), 'video')} came out otherwise, e.g. {differing[0]}")
    show("the command in a process of its own")
    fresh = _command(bench, folder / f"command{turn}.h5", wrong)
    found: dict[str, Any] = {
        "clock_mhz": clock_mhz(),
        "rates": rates,
        "bound": bound,
        "limit": limit,
        "reached": rates[_WHOLE] / bound,
        "time": progress.time,
        "command": fresh._asdict(),
    }
    if bench.request is not None:
        show("the naive loop")
        found["naive"] = {size: _naive(bench, size, rates[_WHOLE], fresh, wrong) for size in bench_naive.BATCH_SIZES}
    return found


def _bound(rates: Mapping[str, float], encoding: Encoding) -> tuple[float, str]:
    """The rows per second that the parts allow, and which part limits them most."""
    if encoding.device.type == "cpu":
        return 1 / sum(1 / rate for rate in rates.values()), min(rates, key=lambda name: rates[name])
    prepares = {DECODING: 1 / rates[PREPARING], FORWARD: 0.0}
    if encoding.options.device is not None:  # what computes the forward prepares too
        prepares = {DECODING: 0.0, FORWARD: prepares[DECODING]}
    stages = {
        f"{name}{f' and {PREPARING}' * bool(more)}": 1 / (1 / rates[name] + more) for name, more in prepares.items()
    }
    stages[WRITING] = rates[WRITING]
    limit = min(stages, key=lambda name: stages[name])
    return stages[limit], limit


def _command(bench: _Bench, out: Path, wrong: list[str]) -> Fresh:
    """`framebank extract` on the same videos, whose ids are numbers there, in a process of its own."""
    table, manifest = bench.table, bench.folder / "manifest.csv"
    listed = table[["path", "start", "end", "fps"]].assign(id=range(len(table)))
    regions = [region.split(",") if region else [""] * 4 for region in table["crop"]]
    for name, values in zip("xywh", zip(*regions, strict=True), strict=True):
        listed[f"crop_{name}"] = values
    write_csv(manifest, listed)
    banks.create(out, bench.sample.encoding.recorded)  # compiled or not, that is gone on with
    fresh = run_extract([str(manifest), "--out", str(out), *_arguments(bench.config, bench.sample.encoding)])
    with Bank(out) as other:
        numbers = {video: str(number) for number, video in enumerate(table["id"])}
        differing = [video for video in bench.bank if not np.array_equal(bench.bank[video], other[numbers[video]])]
    if differing:
        many = counted(len(differing), "video")
        wrong.append(f"In a process of its own {many} came out otherwise, e.g. {differing[0]}")
    return fresh


def _arguments(config: BenchExtractConfig, encoding: Encoding) -> list[str]:
    """The options of `framebank extract` that ask for the same."""
    names = ("backbone", "weights", "layer", "preset", "image_size", "fit", "crop", "seed", "device")
    named: dict[str, Any] = {name: getattr(config, name) for name in names}
    named |= {"precision": encoding.recorded["recipe"]["precision"], "batch_size": encoding.batch_size}
    flags = ["--inflate"] if config.inflate else []
    if config.window is not None:
        name = "clip_length" if config.window.kind == "clip" else config.window.kind
        named |= {name: config.window.length} | ({"clip_stride": config.window.stride} if name == "clip_length" else {})
        flags += ["--grey"] if config.window.grey else []
    if config.flow is not None:
        named |= {"flow_method": config.flow.method, "flow_weights": config.flow.weights}
    given = {f"--{name.replace('_', '-')}": str(value) for name, value in named.items() if value not in (None, "")}
    return [*flags, *(word for pair in given.items() for word in pair)]


def _naive(bench: _Bench, batch_size: int, rate: float, command: Fresh, wrong: list[str]) -> dict[str, Any]:
    """The naive loop beside the whole's rate, and with start-up beside the command on all frames of the sample."""
    assert bench.request is not None
    naive = bench_naive.measure(bench.request, batch_size, bench.plain, bench.bank)
    if naive.wrong:
        wrong.append(naive.wrong)
    seconds = naive.fresh.seconds + (bench.sample.all_rows - naive.frames) / naive.rate
    return {
        **naive.fresh._asdict(),
        "frames": naive.frames,
        "rate": naive.rate,
        "cosine": naive.cosine,
        "times_as_fast": rate / naive.rate,
        "times_as_fast_with_start": seconds / command.seconds,
    }


def _result(
    bench: _Bench, backbone: Backbone, rounds: Sequence[dict[str, Any]], wrong: list[str], videos: int
) -> dict[str, Any]:
    """All figures, for JSON."""
    sample, recorded = bench.sample, bench.sample.encoding.recorded
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "asked": asdict(bench.config) | {"data": str(bench.config.data), "json": str(bench.config.json)},
        "backbone": backbone.name,
        "layer": backbone.layer,
        "weights": backbone.weights,
        "recipe": recorded["recipe"],
        "compute": recorded["compute"],
        "lanes": sample.lanes,
        "threads": sample.threads,
        "videos": videos,
        "videos_measured": len(sample.videos),
        "rows": sample.all_rows,
        "rounds": rounds,
        "median": _summed_up(rounds, sample.encoding),
        "wrong": wrong,
    }
    return result


def _summed_up(rounds: Sequence[dict[str, Any]], encoding: Encoding) -> dict[str, Any]:
    """The medians, and what limits by these."""
    median: dict[str, Any] = _medians(rounds)
    return median | {"limit": _bound({part: median["rates"][part] for part in PARTS}, encoding)[1]}


def _medians(rounds: Sequence[Any]) -> Any:
    """Of every figure of several rounds the median; None where one was not measured, and of words the first."""
    first = rounds[0]
    if isinstance(first, dict):
        return {name: _medians([each[name] for each in rounds]) for name in first}
    if isinstance(first, str):
        return first
    return None if None in rounds else float(np.median(rounds))
