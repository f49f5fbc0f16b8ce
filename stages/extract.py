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
from pipeline.preprocessing import presets
from pipeline.sampling import Sampling
from pipeline.sealing import PartWriter, disk_errors
from pipeline.sources import source_text
from pipeline.videos import Found, find_videos, label_order, probe_videos
from stages.console import Display, counted, input_words, megabytes, plain_time

OK, FAILURES, INTERRUPTED = 0, 3, 130
_ESTIMATE_VIDEOS = 3
_SHOWN_FAILURES = 10


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
    if not config.data.exists():
        raise UserError(f"There is nothing at {config.data}; give a folder of videos, a CSV manifest or one video.")
    bank = banks.Bank(config.out) if config.out.exists() or banks.sealed_parts(config.out) else None
    banked = bank.config if bank else {"recipe": {}, "compute": None}
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
    if bank is not None:
        _refuse_other_recipe(config, backbone, bank, recipe)

    found = _find(config, bank)
    plan = resuming.plan(found.table, bank, retry_failed=config.retry_failed, allow_partial=config.allow_partial)
    if bank is not None:
        bank.close()
    probed = probe_videos(plan.todo)
    _show_found(display, config, found, plan, probed)
    _show_backbone(display, config, backbone, device.type, precision)

    progress, interrupted = Progress(), False
    if len(plan.todo):
        batch_size = choose_batch_size(config.batch_size, device, banked["compute"])
        encode, batch_size = make_encoder(backbone, device, precision, batch_size)
        recorded = {
            "recipe": recipe,
            "weights": backbone.weights,
            "preset": backbone.preprocessing.preset,
            "compute": {"device": device.type, "batch_size": batch_size},
            "data": source_text(str(config.data.absolute())),
        }
        options = ReadOptions(config.sampling, backbone.preprocessing, config.allow_partial)
        encoding = Encoding(encode, batch_size, options, recorded)
        if config.dry_run:
            _show_estimate(display, config, plan, probed, encoding)
            return OK
        with disk_errors(config.out):
            banks.create(config.out, recorded)
        interrupted = _extract(display, config.out, plan, probed, encoding, progress)
    elif config.dry_run:
        display.line("Nothing to do.")
        return OK
    folded = _fold_in(display, config, plan, interrupted)
    _show_result(display, config, plan, progress, folded, time.monotonic() - started)
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


def _refuse_other_recipe(config: ExtractConfig, backbone: Backbone, bank: banks.Bank, recipe: dict[str, Any]) -> None:
    if banks.fingerprint_of(recipe) == bank.fingerprint or not len(bank):
        return
    old, new = dict(bank.config["recipe"]), dict(recipe)
    if old["weights_sha256"] != new["weights_sha256"]:  # the names say more than the sums
        old["weights_sha256"] = f"{old['weights_sha256'][:12]}, {bank.config['weights']}"
        new["weights_sha256"] = f"{new['weights_sha256'][:12]}, {backbone.weights}"
    what = "; ".join(banks.differences(old, new))
    raise UserError(f"{config.out} was made differently: {what}. Repeat its settings, or give another --out.")


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
    display: Display, out: Path, plan: resuming.Plan, probed: pd.DataFrame, encoding: Encoding, progress: Progress
) -> bool:
    """Run the engine over what is to do. Returns whether it was interrupted."""

    def sealed(videos: int, failures: int) -> None:
        progress.videos_sealed += videos

    writer = PartWriter(out, encoding.recorded, sealed)
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
        if interrupted or not config.pack:
            packing.link(config.out, updates=plan.updates, mended=plan.mended, on_wait=waiting)
            return "linked to its parts"
        return packing.fold_in(config.out, updates=plan.updates, mended=plan.mended, on_wait=waiting)


def _show_found(
    display: Display, config: ExtractConfig, found: Found, plan: resuming.Plan, probed: pd.DataFrame
) -> None:
    table = found.table
    display.field("Found", f"{counted(len(table), 'video')} in {config.data} ({found.origin})")
    labels = table["label"].value_counts()
    classes = [f"{label} {labels[label]:,}" for label in label_order(list(labels.index))]
    if classes:
        shown = ", ".join(classes[:8]) + (f", and {len(classes) - 8} more" if len(classes) > 8 else "")
        groups = table.loc[table["group"] != "", "group"].nunique()
        display.field("Classes", f"{len(classes)}: {shown}" + (f" · {counted(groups, 'group')}" if groups else ""))
    unlabelled = int(labels.get("", 0))
    if unlabelled:
        display.field("Unlabelled", counted(unlabelled, "video"))
    if found.ignored:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(found.ignored.items()))
        total = sum(found.ignored.values())
        display.field("Ignored", f"{counted(total, 'file')} ({kinds}); --all-files tries every file")
    for note in found.notes:
        display.field("Note", note)
    display.field(
        "To do",
        f"{counted(len(plan.todo), 'video')} · {counted(len(plan.done), 'video')} done before"
        + (f" · {len(plan.failed)} failed before (--retry-failed tries them again)" if len(plan.failed) else ""),
    )
    if len(plan.todo):
        known = probed["frames_declared"].clip(lower=0)
        silent = int((known == 0).sum())
        display.field(
            "",
            f"{probed['duration'].sum() / 3600:.2f} h, {counted(int(known.sum()), 'frame')} as declared"
            + (f" ({counted(silent, 'video')} declare none)" if silent else ""),
        )
    if plan.gone:
        display.field("Gone", f"{counted(len(plan.gone), 'file')}, e.g. {plan.gone[0]}: what is banked of them stays")
    if plan.doubled:
        display.field("Note", f"files banked already under other ids: {len(plan.doubled)}, e.g. {plan.doubled[0]}")
    if plan.changed:
        display.field(
            "Changed", f"{counted(len(plan.changed), 'video')} since banked, e.g. {plan.changed[0]}: banked again"
        )


def _show_backbone(display: Display, config: ExtractConfig, backbone: Backbone, device: str, precision: str) -> None:
    shape = "×".join(map(str, backbone.feature_shape))
    display.field("Backbone", f"{backbone.name}, layer {backbone.layer} ({shape}), {backbone.weights}")
    if backbone.weights.startswith("random"):
        display.field("", "WARNING: random weights. The embeddings carry no knowledge of images.")
    several = (
        config.preset is None and backbone.weights.startswith("file:") and len(set(presets(backbone.name).values())) > 1
    )
    preset = backbone.preprocessing.preset
    assumed = f"; {preset} is assumed, --preset says which goes with this file" if several else ""
    display.field("Input", input_words(backbone.preprocessing.describe()) + assumed)
    display.field("Computing", f"{precision} on {device}, stored as {config.store}")


def _show_estimate(
    display: Display, config: ExtractConfig, plan: resuming.Plan, probed: pd.DataFrame, encoding: Encoding
) -> None:
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
    if not progress.frames:
        display.line(f"None of the {len(sample)} videos tried could be read, so there is no estimate.")
        return
    seconds_of_video = probed.loc[sample.index, "duration"].sum()
    share = probed["duration"].sum() / seconds_of_video if seconds_of_video > 0 else len(plan.todo) / len(sample)
    display.field(
        "Estimate",
        f"{plain_time(seconds * share)} and {megabytes(size * share)}, from {len(sample)} videos "
        f"({progress.frames / seconds:.0f} frames/s); nothing was banked",
    )


def _show_result(
    display: Display, config: ExtractConfig, plan: resuming.Plan, progress: Progress, folded: str, seconds: float
) -> None:
    with banks.Bank(config.out) as bank:
        failures = bank.failures
        size, rows = bank.nbytes, int(bank.catalog["rows"].sum())
    rate = progress.frames / seconds
    display.field(
        "Banked",
        f"{counted(progress.videos_sealed, 'video')} · {counted(progress.frames, 'frame')} in {plain_time(seconds)}"
        f" ({rate:.0f} frames/s)" + (f" · {progress.partial} only in part" if progress.partial else ""),
    )
    display.field("Skipped", f"{counted(len(plan.done), 'video')} done before")
    if len(plan.updates):
        display.field("Updated", f"label, split, group or source of {counted(len(plan.updates), 'video')}")
    found = failures[failures["id"].isin({*plan.todo["id"], *plan.failed["id"]})]
    if len(found):
        display.field("Failed", counted(len(found), "video"))
        for row in found.head(_SHOWN_FAILURES).itertuples():
            display.line(f"  {row.id}: {row.reason}")
        if len(found) > _SHOWN_FAILURES:
            display.line(f"  … and {len(found) - _SHOWN_FAILURES} more: framebank describe {config.out} --failures")
    display.field(
        "Bank", f"{config.out}: {counted(rows, 'row')}, {megabytes(size)}" + (f", {folded}" if folded else "")
    )
    left = len(plan.todo) - progress.videos_sealed - progress.failures
    if left:
        display.line(f"Interrupted with {counted(left, 'video')} to go; run the same command again to go on.")
