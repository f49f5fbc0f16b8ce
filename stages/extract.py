"""Stage one: videos -> embeddings in a bank. Reads videos and weights; writes the bank, and only what it lacks."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import bank as banks
from pipeline import packing, resuming
from pipeline.backbone import Backbone, load_backbone
from pipeline.encoder import Encode, choose_batch_size, choose_device, choose_precision, make_encoder
from pipeline.engine import Progress, ReadOptions, extract_videos
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.sampling import Sampling
from pipeline.sealing import PartWriter, disk_errors
from pipeline.sources import source_text
from pipeline.videos import Found, absolute_path, find_videos, probe_videos
from stages import summary
from stages.console import Display, megabytes, plain_time, sampling_words

OK, FAILURES, INTERRUPTED = 0, 3, 130
_ESTIMATE_VIDEOS = 3


@dataclass(frozen=True)
class ExtractConfig:
    """Everything that `framebank extract` can be told; the defaults are those of the command."""

    data: Path
    out: Path
    backbone: str = "resnet50"
    weights: str = "DEFAULT"
    layer: str | None = None
    preset: str | None = None
    image_size: int | None = None
    fit: str = "crop"
    crop: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    image_fps: float | None = None
    label_from: str | None = None
    group_from: str | None = None
    split_lists: tuple[Path, ...] = ()
    all_files: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    store: str = "float16"
    batch_size: str = "auto"
    retry_failed: bool = False
    allow_partial: bool = False
    pack: bool = True
    dry_run: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Encoding:
    """How this run makes embeddings: the loaded encoder and what the bank records of it."""

    encode: Encode
    batch_size: int
    options: ReadOptions
    recorded: dict[str, Any]


def run(config: ExtractConfig) -> int:
    """Bank what the bank lacks.

    Returns:
        the exit status: 0 all banked, 3 finished with failures in the ledger, 130 interrupted (and resumable).

    Raises:
        UserError: it could not run as asked; what the bank held before is untouched.
    """
    started = time.monotonic()
    display = Display(quiet=config.quiet)
    bank = banks.Bank(config.out) if config.out.exists() or banks.sealed_parts(config.out) else None
    banked = bank.config if bank is not None else {"recipe": {}, "compute": None}
    found = _find(config, bank)
    summary.show_found(display, config.data, found)

    device = choose_device(config.device)
    precision = choose_precision(config.precision, device, banked["recipe"].get("precision"))
    backbone = load_backbone(
        config.backbone,
        weights=config.weights,
        layer=config.layer,
        preset=config.preset,
        image_size=config.image_size,
        fit=config.fit,
        seed=config.seed,
    )
    recipe = _recipe(config, backbone, precision)
    if bank is not None and bank.fingerprint != banks.fingerprint_of(recipe):
        if not bank.only_failures:
            raise UserError(_differing(config.out, backbone, bank, recipe))
        bank = None  # nothing came of the other settings: begin again with these
    plan = resuming.plan(found.table, bank, retry_failed=config.retry_failed, allow_partial=config.allow_partial)
    probed = probe_videos(plan.todo)
    summary.show_plan(display, plan, probed)
    if len(plan.todo):
        summary.show_recipe(display, backbone, recipe, device.type, preset_named=config.preset is not None)

    progress, interrupted = Progress(), False
    if len(plan.todo):
        batch_size = choose_batch_size(config.batch_size, device, banked["compute"])
        encode, batch_size = make_encoder(backbone, device, precision, batch_size)
        recorded = {
            "recipe": recipe,
            "weights": backbone.weights,
            "preset": backbone.preprocessing.preset,
            "compute": {"device": device.type, "batch_size": batch_size},
            "data": source_text(str(absolute_path(config.data))),
        }
        options = ReadOptions(config.sampling, backbone.preprocessing, config.allow_partial)
        encoding = Encoding(encode, batch_size, options, recorded)
        if config.dry_run:
            _estimate(display, plan, probed, encoding)
            return OK
        with disk_errors(config.out):
            banks.create(config.out, recorded)
        interrupted = _extract(display, config.out, plan, probed, encoding, progress, _latest(bank))
    elif config.dry_run:
        return OK
    folded = _fold_in(display, config, plan, interrupted)
    summary.show_result(display, config.out, plan, progress, folded, time.monotonic() - started)
    if interrupted:
        return INTERRUPTED
    return FAILURES if progress.failures or len(plan.failed) else OK


def _find(config: ExtractConfig, bank: banks.Bank | None) -> Found:
    out = config.out.absolute()
    root = config.data if config.data.is_dir() else config.data.parent
    found = find_videos(
        config.data,
        all_files=config.all_files,
        label_from=config.label_from,
        group_from=config.group_from,
        split_lists=config.split_lists,
        known=resuming.known_sources(bank, root),
        exclude=(out, banks.parts_folder(out), banks.lock_file(out)),
    )
    table = found.table.copy()
    table.loc[table["crop"] == "", "crop"] = config.crop
    if config.image_fps is not None:
        table.loc[(table["kind"] == "images") & table["fps"].isna(), "fps"] = config.image_fps
    return replace(found, table=table)


def _recipe(config: ExtractConfig, backbone: Backbone, precision: str) -> dict[str, Any]:
    """What decides the embeddings: two runs with the same recipe may share a bank."""
    preprocessing = backbone.preprocessing.describe()
    preprocessing.pop("preset", None)
    return {
        "backbone": backbone.name,
        "layer": backbone.layer,
        "weights_sha256": backbone.sha256,
        "feature_shape": list(backbone.feature_shape),
        "preprocessing": preprocessing,
        "crop": config.crop,
        "sampling": config.sampling.describe(),
        "precision": precision,
        "store": config.store,
    }


def _differing(out: Path, backbone: Backbone, bank: banks.Bank, recipe: dict[str, Any]) -> str:
    """Why these settings cannot add to the bank, with both values of each that differs."""
    old, new = dict(bank.config["recipe"]), dict(recipe)
    for side in (old, new):
        side["frames taken"] = sampling_words(side.pop("sampling"))
        side["crop"] = side["crop"] or "none"
    if bank.config["weights"] == backbone.weights and old["layer"] != new["layer"]:
        old["weights_sha256"] = new["weights_sha256"]  # of the tensors up to the layer: it says nothing new
    if old["weights_sha256"] != new["weights_sha256"]:  # the names say more than the sums
        old["weights_sha256"] = f"{old['weights_sha256'][:12]}, {bank.config['weights']}"
        new["weights_sha256"] = f"{new['weights_sha256'][:12]}, {backbone.weights}"
    what = "; ".join(banks.differences(old, new))
    return f"{out} was made differently: {what}. Repeat its settings, or give another --out."


def _latest(bank: banks.Bank | None) -> str:
    """The latest time in a bank, "" where there is none."""
    return "" if bank is None else max([*bank.catalog["banked"], *bank.failures["when"]], default="")


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second interrupts at once."""
    stop = threading.Event()

    def ask(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _lanes(device: str, videos: int) -> tuple[int, int]:
    """How many videos to work on at once, and with how many threads each: together the cores that we may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    lanes = max(1, min(cores, videos))
    return lanes, cores // lanes if device == "cpu" else 1


def _extract(
    display: Display,
    out: Path,
    plan: resuming.Plan,
    probed: pd.DataFrame,
    encoding: Encoding,
    progress: Progress,
    newer_than: str = "",
) -> bool:
    """Run the engine over what is to do. Returns whether it was interrupted."""

    def sealed(videos: int, failures: int, rows: int) -> None:
        progress.videos_sealed += videos
        progress.rows_sealed += rows

    writer = PartWriter(out, encoding.recorded, sealed, newer_than=newer_than)
    told = False

    def watch(done: Progress) -> None:
        nonlocal told
        if stop.is_set() and not told:
            told = True
            display.line("Stopping: videos in flight are dropped, finished ones sealed.")
        show(done)

    lanes, threads = _lanes(encoding.recorded["compute"]["device"], len(plan.todo))
    whole = encoding.options.sampling == Sampling()
    frames = int(probed["frames_declared"].sum()) if whole and (probed["frames_declared"] > 0).all() else 0
    with _stopping() as stop, display.progress(len(plan.todo), frames) as show:
        extract_videos(
            records(plan.todo),
            encoding.options,
            encoding.encode,
            encoding.batch_size,
            writer,
            lanes=lanes,
            threads_per_lane=threads,
            stop=stop,
            progress=progress,
            on_progress=watch,
        )
    return progress.videos_sealed + progress.failures < len(plan.todo)


def _fold_in(display: Display, config: ExtractConfig, plan: resuming.Plan, interrupted: bool) -> str:
    """Make the bank file show everything: packed into it, or linked from it. Returns what is to be said of it."""

    def waiting(holder: str) -> None:
        display.line(f"Waiting for {holder}, which is packing this bank.")

    with disk_errors(config.out):
        news: dict[str, Any] = {"updates": plan.updates, "mended": plan.mended, "on_wait": waiting}
        if config.pack:
            return packing.fold_in(config.out, **news, in_a_hurry=interrupted)
        packing.link(config.out, **news)
        return "linked"


def _estimate(display: Display, plan: resuming.Plan, probed: pd.DataFrame, encoding: Encoding) -> None:
    """Really bank two or three videos of different lengths in a temporary folder, and scale up."""
    order = probed["duration"].fillna(0).sort_values(kind="stable").index
    places = sorted({0, len(order) // 2, len(order) - 1})[:_ESTIMATE_VIDEOS]
    sample = plan.todo.loc[order[places]]
    progress = Progress()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "estimate.h5"
        banks.create(out, encoding.recorded)
        begun = time.monotonic()
        trial = replace(plan, todo=sample)
        _extract(Display(quiet=True), out, trial, probed.loc[sample.index], encoding, progress)
        seconds = time.monotonic() - begun
        size = sum(part.stat().st_size for part in banks.sealed_parts(out))
        with banks.Bank(out) as bank:
            reasons = [f"{row['id']}: {row['reason']}" for row in records(bank.failures)]
    if not progress.frames:
        display.line(f"None of the {len(sample)} videos tried could be read, so there is no estimate:")
        for reason in reasons:
            display.line(f"  {reason}")
        return
    seconds_of_video = probed.loc[sample.index, "duration"].sum()
    share = probed["duration"].sum() / seconds_of_video if seconds_of_video > 0 else len(plan.todo) / len(sample)
    display.field(
        "Estimate",
        f"{plain_time(seconds * share)} and {megabytes(size * share)}, from {len(sample)} videos "
        f"({progress.frames / seconds:.0f} frames/s); nothing was banked",
    )
