"""From a table of videos to sealed parts of a bank: what making a bank and predicting new videos have in common.

A recipe says what an embedding is, an `Encoding` how this process makes it, and `embed` runs the engine over videos in
lanes: threads that share the cores. The first SIGINT or SIGTERM drops the videos in flight and seals the finished ones.
`embed_videos` is the same for a process that is told otherwise when to stop.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline import bank as banks
from pipeline import packing, ranks
from pipeline.backbone import Backbone
from pipeline.bank import Bank
from pipeline.batch_probe import probed_batch_size, sizes_for
from pipeline.compiling import Compiling
from pipeline.encoder import Encode, batches_ahead, make_encoder
from pipeline.engine import InWork, Progress, extract_videos
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.flow import Flow, measuring
from pipeline.preprocessing import Preprocessing
from pipeline.resuming import Plan
from pipeline.rows import ReadOptions
from pipeline.sampling import Sampling
from pipeline.sealing import PartWriter, disk_errors
from pipeline.sources import source_text
from pipeline.views import Views
from pipeline.windows import FRAME, window_in

STOPPING = "Stopping: videos in flight are dropped, finished ones sealed."


@dataclass(frozen=True)
class Encoding:
    """How this run makes embeddings: the loaded encoder and what the bank records of it."""

    encode: Encode
    batch_size: int
    options: ReadOptions
    recorded: dict[str, Any]  # the bank's config: recipe, weights, preset, compute, data
    device: torch.device


def recipe_of(backbone: Backbone, options: ReadOptions, *, crop: str, precision: str, store: str) -> dict[str, Any]:
    """What decides the embeddings: two runs with the same recipe may share a bank. What is not used is not named."""
    recipe: dict[str, Any] = {
        "backbone": backbone.name,
        "layer": backbone.layer,
        "weights_sha256": backbone.sha256,
        "feature_shape": list(backbone.feature_shape),
        "preprocessing": backbone.preprocessing.describe(),
        "crop": crop,
        "sampling": options.sampling.describe(),
        "precision": precision,
        "store": store,
    }
    if options.augmentation is not None:
        recipe["view"] = {"number": options.view, **options.augmentation.describe()}
    if options.window != FRAME:
        recipe["window"] = options.window.describe()
    if backbone.inflated:
        recipe["inflated"] = True
    if backbone.code:
        recipe["code_sha256"] = backbone.code
    if options.views is not None:
        recipe["views"] = options.views.describe()
    if options.flow is not None:
        recipe["flow"] = options.flow.describe()
    return recipe


def reading_of(made: Mapping[str, Any], preprocessing: Preprocessing, *, allow_partial: bool = False) -> ReadOptions:
    """How the videos of a bank were read, by its config.

    Raises:
        UserError: the weights that its optical flow was measured with are not there.
    """
    recipe = made["recipe"]
    return ReadOptions(
        Sampling(**recipe["sampling"]),
        preprocessing,
        window_in(recipe),
        allow_partial,
        views=Views(**recipe["views"]) if "views" in recipe else None,
        flow=flow_of(made),
    )


def flow_of(made: Mapping[str, Any]) -> Flow | None:
    """How the motion in a bank was measured, by its config; None where it was not.

    Raises:
        UserError: the weights that it was measured with are not there.
    """
    described = made["recipe"].get("flow")
    if described is None:
        return None
    flow = Flow(described["method"], described["bound"], made["flow"]["given"])
    if flow.describe() != described:
        raise UserError(
            f"The optical flow of the bank was measured with {flow.weights}, which holds other weights now; put the "
            "file back."
        )
    return flow


def existing_bank(out: Path) -> Bank | None:
    """The bank at a path, its parts alone where no bank file was made yet; None where there is nothing."""
    return Bank(out) if out.exists() or banks.sealed_parts(out) else None


def latest(bank: Bank | None) -> str:
    """The latest time in a bank, "" where there is none."""
    return "" if bank is None else max([*bank.catalog["banked"], *bank.failures["when"]], default="")


def recorded_of(
    backbone: Backbone, recipe: dict[str, Any], options: ReadOptions, compute: Mapping[str, Any], data: str
) -> dict[str, Any]:
    """What a bank records of how it is made: its config. `compute` says how this machine, or a worker, computes."""
    recorded: dict[str, Any] = {
        "recipe": recipe,
        "weights": backbone.weights,
        "preset": backbone.preprocessing.preset,
        "compute": dict(compute),
        "data": source_text(data),
    }
    if options.flow is not None:
        weights = options.flow.weights
        given = str(Path(weights).absolute()) if weights is not None and Path(weights).is_file() else weights
        recorded["flow"] = {**options.flow.recorded(), "given": given}
    return recorded


def make_encoding(
    backbone: Backbone,
    recipe: dict[str, Any],
    options: ReadOptions,
    device: torch.device,
    batch_size: int | None,
    data: str,
    compiling: Compiling | None = None,
) -> Encoding:
    """Put the backbone on the device, and note what the bank is to record; `data` names where the videos came from.

    A batch size of None is found by a probe. On a GPU, plain frames are prepared there too. What `compiling` decides is
    recorded; None leaves the network as it is.

    Raises:
        UserError: the device has no room for one frame, or can't compute in the recipe's precision; or motion cannot be
            measured on frames of this size.
    """
    if options.flow is not None:  # what it cannot be measured on shows now
        blank = torch.zeros(3, options.preprocessing.crop, options.preprocessing.crop, dtype=torch.uint8)
        measuring(options.flow)(blank, blank)
    if batch_size is None:
        batch_size = probed_batch_size(backbone, device, recipe["precision"], sizes_for(options.window))
    encode, batch_size = make_encoder(backbone, device, recipe["precision"], batch_size, compiling)
    compute: dict[str, Any] = {"device": device.type, "batch_size": batch_size}
    if device.type == "cuda" and options.plain:
        options = replace(options, device=device)
        compute["prepared"] = "device"
    if compiling is not None and compiling.done:
        compute["compiled"] = True
    recorded = recorded_of(backbone, recipe, options, compute, data)
    return Encoding(encode, batch_size, options, recorded, device)


def rows_expected(probed: pd.DataFrame, options: ReadOptions) -> int:
    """About how many inputs the network will see of videos, by what `probe_videos` says of them; 0 if it does not."""
    sampling, window = options.sampling, options.window
    if sampling.frames is not None:
        frames = float(sampling.frames * len(probed))
    elif sampling.fps is not None:
        frames = float(probed["duration"].sum()) * sampling.fps
    else:
        frames = float(probed["frames_declared"].sum()) / sampling.stride
    return int(frames / window.stride * len(options.draws("")))


def with_region(table: pd.DataFrame, crop: str, image_fps: float | None) -> pd.DataFrame:
    """The table of `find_videos` with a crop and a frame rate of image folders where a row has none of its own."""
    table = table.copy()
    table.loc[table["crop"] == "", "crop"] = crop
    if image_fps is not None:
        table.loc[(table["kind"] == "images") & table["fps"].isna(), "fps"] = image_fps
    return table


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second interrupts at once. Only a process's main thread hears
    signals: elsewhere nothing sets it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

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


def cores() -> int:
    """How many cores this process may use: its share, where several ranks run on this machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // ranks.size())


def share_cores(device: str, videos: int) -> tuple[int, int]:
    """How many videos to work on at once, and with how many threads each: together the cores that we may use."""
    lanes = max(1, min(cores(), videos))
    return lanes, cores() // lanes if device == "cpu" else 1


def embed_videos(
    rows: Iterable[Mapping[str, Any]],
    encoding: Encoding,
    writer: PartWriter,
    progress: Progress,
    *,
    lanes: int,
    threads: int,
    stop: threading.Event,
    on_progress: Callable[[Progress], None],
    watch: Callable[[Sequence[InWork]], None] | None = None,
) -> None:
    """Run the engine over videos as an encoding says; the arguments are those of `pipeline.engine.extract_videos`.

    Raises:
        UserError: the disk is full. What was sealed stays.
    """
    extract_videos(
        rows,
        encoding.options,
        encoding.encode,
        encoding.batch_size,
        writer,
        lanes=lanes,
        threads_per_lane=threads,
        stop=stop,
        progress=progress,
        on_progress=on_progress,
        watch=watch,
        device=encoding.device,
        ahead=batches_ahead(encoding.device),
    )


def embed(
    out: Path,
    table: pd.DataFrame,
    encoding: Encoding,
    progress: Progress,
    *,
    newer_than: str = "",
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> bool:
    """Run the engine over videos in this process and seal them as parts of the bank `out`, which exists.

    Args:
        out: the bank.
        table: one row per video, as `pipeline.resuming.with_state` gives it.
        encoding: how.
        progress: counts, updated in place.
        newer_than: a time that what is sealed must be later than.
        on_progress: called a few times a second.
        on_note: called with a line, once, when the run is asked to stop.

    Returns:
        whether it was interrupted.

    Raises:
        UserError: the disk is full. What was sealed stays.
    """

    def sealed(videos: int, failures: int, rows: int) -> None:
        progress.videos_sealed += videos
        progress.rows_sealed += rows

    told = False

    def watch(done: Progress) -> None:
        nonlocal told
        if stop.is_set() and not told:
            told = True
            on_note(STOPPING)
        on_progress(done)

    writer = PartWriter(out, encoding.recorded, sealed, newer_than=newer_than)
    lanes, threads = share_cores(encoding.recorded["compute"]["device"], len(table))
    with stopping() as stop:
        embed_videos(
            records(table), encoding, writer, progress, lanes=lanes, threads=threads, stop=stop, on_progress=watch
        )
    return progress.videos_sealed + progress.failures < len(table)


def fold_in(out: Path, plan: Plan, *, pack: bool, in_a_hurry: bool, on_note: Callable[[str], None]) -> str:
    """Make the bank file show everything: parts packed into it, or linked from it.

    Args:
        out: the bank.
        plan: what was to do: with the metadata that is new.
        pack: whether parts may be packed; if not, they are linked.
        in_a_hurry: pack only what takes no time.
        on_note: called with a line when another process has to be waited for.

    Returns:
        as `pipeline.packing.fold_in`.

    Raises:
        UserError: the disk is full. What was sealed stays.
    """

    def waiting(holder: str) -> None:
        on_note(f"Waiting for {holder}, which is packing this bank.")

    with disk_errors(out):
        if pack:
            return packing.fold_in(
                out, updates=plan.updates, mended=plan.mended, in_a_hurry=in_a_hurry, on_wait=waiting
            )
        packing.link(out, updates=plan.updates, mended=plan.mended, on_wait=waiting)
        return "linked"
