"""Stage one: videos -> embeddings in a bank. Reads videos and weights; writes the bank, and only what it lacks."""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch

from pipeline import bank as banks
from pipeline import resuming
from pipeline.alike import own_label, own_settings
from pipeline.backbone import Backbone, load_backbone
from pipeline.bundles import load_bundle
from pipeline.compiling import Compiling
from pipeline.encoder import choose_batch_size, choose_device, choose_precision
from pipeline.engine import Progress
from pipeline.errors import UserError
from pipeline.extraction import (
    Encoding,
    embed,
    existing_bank,
    fold_in,
    latest,
    make_encoding,
    recipe_of,
    recorded_of,
    rows_expected,
    share_cores,
    with_region,
)
from pipeline.features import records
from pipeline.flow import Flow
from pipeline.gathering import named
from pipeline.headers import probe_videos
from pipeline.imported import is_imported
from pipeline.networks import absolute_name
from pipeline.pieces import dearest_first
from pipeline.rows import ReadOptions
from pipeline.sampling import Sampling
from pipeline.sealing import disk_errors
from pipeline.videos import Found, Listed, absolute_path, find_videos
from pipeline.views import Views, draws
from pipeline.windows import Window
from stages import summary
from stages.banking import Sealed
from stages.console import Display, megabytes, plain_time, row_unit, sampling_words, window_words

if TYPE_CHECKING:
    from pipeline.cluster import Cluster

OK, FAILURES, INTERRUPTED = 0, 3, 130
_ESTIMATE_VIDEOS = 3


@dataclass(frozen=True)
class ExtractConfig:
    """Everything that `framebank extract` can be told; the defaults are those of the command.

    `weights` may be the folder of a fine-tuned run. What of network and frames is None is then as in that run, else the
    usual: ResNet-50, its default layer, the preset of the weights and its image size, `fit` crop, every whole frame. A
    `window` that is None is the network's own: a frame, or a clip. `flow` is given with a window of flow alone.
    `data` is what `pipeline.gathering.named` takes: a folder, a manifest, a file, or several of them, patterns and `-`.
    """

    data: Path | Sequence[Path]
    out: Path
    backbone: str | None = None
    weights: str = "DEFAULT"
    layer: str | None = None
    preset: str | None = None
    image_size: int | None = None
    fit: str | None = None
    crop: str | None = None
    sampling: Sampling | None = None
    window: Window | None = None
    inflate: bool = False
    flow: Flow | None = None
    views: Views | None = None
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
    stall_limit: float = 600.0  # seconds; with workers alone
    pack: bool = True
    dry_run: bool = False
    quiet: bool = False


class _Network(NamedTuple):
    """What is asked of network and frames; the defaults are the usual."""

    weights: str
    backbone: str = "resnet50"
    layer: str | None = None
    preset: str | None = None
    image_size: int | None = None
    fit: str = "crop"
    crop: str = ""
    sampling: Sampling = Sampling()
    window: Window | None = None
    inflate: bool = False
    flow: Flow | None = None
    finetuned: bool = False  # the weights are those of a fine-tuned run


def run(config: ExtractConfig, cluster: "Cluster | None" = None) -> int:
    """Bank what the bank lacks, in this process or with the workers of a cluster.

    Returns:
        the exit status: 0 all banked, 3 finished with failures in the ledger, 130 interrupted (and resumable).

    Raises:
        UserError: it could not run as asked; what the bank held before is untouched.
    """
    started = time.monotonic()
    display = Display(quiet=config.quiet)
    network = _network(config)
    bank = existing_bank(config.out)
    banked = bank.config if bank is not None else {"recipe": {}, "compute": None}
    data = named(config.data)
    place = data.root if isinstance(data, Listed) else data
    with display.busy("looking for videos"):
        found = _find(config, data, network.crop, bank)
    summary.show_found(display, place, found)

    device, precision = _computing(display, config, cluster, banked["recipe"].get("precision"))
    with display.busy("loading the network"):
        backbone = _load(network, config.seed)
    options = _reading(config, network, backbone)
    recipe = recipe_of(backbone, options, crop=network.crop, precision=precision, store=config.store)
    if bank is not None and bank.fingerprint != banks.fingerprint_of(recipe):
        if not bank.only_failures and is_imported(bank.config["recipe"]):
            raise UserError(
                f"{config.out} holds imported features; embeddings need a bank of their own: another --out."
            )
        if not bank.only_failures:
            raise UserError(_differing(config.out, backbone, bank, recipe))
        bank, banked = None, {"recipe": {}, "compute": None}  # nothing came of the others: begin again with these
    with display.busy("comparing with the bank"):
        plan = resuming.plan(found.table, bank, retry_failed=config.retry_failed, allow_partial=config.allow_partial)
    with display.steps("reading headers", len(plan.todo), "videos") as show:
        probed = probe_videos(plan.todo, show)
    summary.show_plan(display, plan, probed)
    if len(plan.todo):
        summary.show_recipe(display, backbone, recipe, device.type)
    if network.finetuned:
        _warn_of_seen(display, Path(config.weights), plan.todo["id"])

    progress, interrupted = Progress(), False
    if len(plan.todo):
        batch_size = choose_batch_size(config.batch_size, device, banked["compute"], options.window)
        origin = str(absolute_path(place))
        if cluster is not None:
            compute: dict[str, Any] = {"device": device.type, "batch_size": batch_size}
            if banked["compute"] and banked["compute"].get("compiled"):
                compute["compiled"] = True
            recorded = recorded_of(backbone, recipe, options, compute, origin)
            from stages import workers

            interrupted = workers.spread(
                display,
                cluster,
                plan.todo,
                probed,
                progress,
                out=absolute_path(config.out),
                network=_arguments(network, config.seed),
                options=options,
                recorded=recorded,
                stall_limit=config.stall_limit,
                declared=_declared(probed, options),
                newer_than=latest(bank),
            )
        else:
            lanes, _ = share_cores(device.type, len(plan.todo))
            begun = banked["compute"] and banked["compute"].get("compiled", False)
            compiling = Compiling(rows_expected(probed, options), lanes, begun, display.note)
            with display.busy("preparing the network"):
                encoding = make_encoding(backbone, recipe, options, device, batch_size, origin, compiling)
            if config.dry_run:
                _estimate(display, plan, probed, encoding)
                return OK
            with disk_errors(config.out):
                banks.create(config.out, encoding.recorded)
            sealed = Sealed(config.out, plan.todo["id"])
            interrupted = _extract(
                display, config.out, plan, probed, encoding, progress, latest(bank), told=sealed.tell
            )
    elif config.dry_run:
        return OK
    with display.busy("packing"):
        folded = fold_in(config.out, plan, pack=config.pack, in_a_hurry=interrupted, on_note=display.note)
    summary.show_result(display, config.out, plan, progress, folded, time.monotonic() - started)
    if interrupted:
        return INTERRUPTED
    return FAILURES if progress.failures or len(plan.failed) else OK


def _network(config: ExtractConfig) -> _Network:
    """What was asked for, and where nothing was, what the fine-tuned run has that the weights are of, else the usual.

    Raises:
        UserError: the weights are of a run without weights of its own, or of another backbone.
    """
    folder = Path(config.weights)
    network = _Network(config.weights)
    if (folder / "model.json").exists() or (folder / "config.json").exists():
        network = network._replace(**own_settings(folder, config.backbone), finetuned=True)
    options = ("backbone", "layer", "preset", "image_size", "fit", "crop", "sampling", "window", "flow")
    asked = {name: getattr(config, name) for name in options} | {"inflate": config.inflate or None}
    return network._replace(**{name: value for name, value in asked.items() if value is not None})


def _warn_of_seen(display: Display, run: Path, ids: Iterable[str]) -> None:
    """Say that the fine-tuned backbone of a run has learnt from videos that it is about to embed."""
    seen = set(load_bundle(run).trained_on or {}).intersection(ids)
    if seen:
        display.field(
            "Note",
            f"this backbone was trained with {len(seen)} of these videos; a head that is tested on them scores too "
            f"well. Test other videos: where {run} tests some that are not among them, train-head --splits "
            f"{run / 'splits.csv'} does",
        )


def _computing(
    display: Display, config: ExtractConfig, cluster: "Cluster | None", banked: str | None
) -> tuple[torch.device, str]:
    """The device and the precision, of this process or of all workers.

    Raises:
        UserError: there is no such device, or the workers are not there or not of one kind.
    """
    if cluster is None:
        device = choose_device(config.device)
        return device, choose_precision(config.precision, device, banked)
    from stages import workers  # Dask takes most of a second to load, and most runs can do without

    return workers.computing(display, cluster, config.precision, banked)


def _arguments(network: _Network, seed: int) -> dict[str, Any]:
    """What `load_backbone` is given, here and on workers: these have another working folder."""
    file = Path(network.weights)
    return {
        "name": absolute_name(network.backbone),
        "weights": str(absolute_path(file)) if file.exists() else network.weights,
        "layer": network.layer,
        "preset": network.preset,
        "image_size": network.image_size,
        "fit": network.fit,
        "seed": seed,
        "window": network.window,
        "inflate": network.inflate,
    }


def _load(network: _Network, seed: int) -> Backbone:
    """The backbone, its weights named after the run where they are of a fine-tuned one."""
    backbone = load_backbone(**_arguments(network, seed) | {"name": network.backbone, "weights": network.weights})
    return replace(backbone, weights=own_label(Path(network.weights))) if network.finetuned else backbone


def _reading(config: ExtractConfig, network: _Network, backbone: Backbone) -> ReadOptions:
    """How the videos are read.

    Raises:
        UserError: views of maps, which no head reads, or views that the preprocessing has no room for.
    """
    if config.views is not None:
        if len(backbone.feature_shape) > 1:
            raise UserError(
                f"--views are of vectors, and layer {backbone.layer} gives maps; give --layer {backbone.layer}:mean."
            )
        draws(config.views, backbone.preprocessing, "")
    return ReadOptions(
        network.sampling,
        backbone.preprocessing,
        backbone.window,
        config.allow_partial,
        views=config.views,
        flow=network.flow,
    )


def _find(config: ExtractConfig, data: Path | Listed, crop: str, bank: banks.Bank | None) -> Found:
    out = config.out.absolute()
    root = data.root if isinstance(data, Listed) else data if data.is_dir() else data.parent
    found = find_videos(
        data,
        all_files=config.all_files,
        label_from=config.label_from,
        group_from=config.group_from,
        split_lists=config.split_lists,
        known=resuming.known_sources(bank, root),
        exclude=(out, banks.parts_folder(out), banks.lock_file(out)),
    )
    return replace(found, table=with_region(found.table, crop, config.image_fps))


def _differing(out: Path, backbone: Backbone, bank: banks.Bank, recipe: dict[str, Any]) -> str:
    """Why these settings cannot add to the bank, with both values of each that differs."""
    old, new = dict(bank.config["recipe"]), dict(recipe)
    for side in (old, new):
        side["frames taken"] = sampling_words(side.pop("sampling"))
        side["crop"] = side["crop"] or "none"
        side["rows"] = window_words(side)
        for name in ("window", "flow", "views", "inflated"):
            side.pop(name, None)
    if bank.config["weights"] == backbone.weights and old["layer"] != new["layer"]:
        old["weights_sha256"] = new["weights_sha256"]  # of the tensors up to the layer: it says nothing new
    if old["weights_sha256"] != new["weights_sha256"]:  # the names say more than the sums
        old["weights_sha256"] = f"{old['weights_sha256'][:12]}, {bank.config['weights']}"
        new["weights_sha256"] = f"{new['weights_sha256'][:12]}, {backbone.weights}"
    what = "; ".join(banks.differences(old, new))
    return f"{out} was made differently: {what}. Repeat its settings, or give another --out."


def _extract(
    display: Display,
    out: Path,
    plan: resuming.Plan,
    probed: pd.DataFrame,
    encoding: Encoding,
    progress: Progress,
    newer_than: str = "",
    told: Callable[[], None] = lambda: None,
) -> bool:
    """Run the engine over what is to do, `told` called now and then. Returns whether it was interrupted."""
    frames = _declared(probed, encoding.options)
    with display.progress(len(plan.todo), frames, row_unit(encoding.recorded["recipe"])) as show:

        def watch(done: Progress) -> None:
            told()
            show(done)

        try:
            videos = dearest_first(plan.todo, probed)
            return embed(
                out, videos, encoding, progress, newer_than=newer_than, on_progress=watch, on_note=display.note
            )
        finally:
            told()


def _declared(probed: pd.DataFrame, options: ReadOptions) -> int:
    """How many rows there will be, by the headers; 0 where that is not known."""
    whole = options.sampling == Sampling() and options.window.kind != "clip"
    return int(probed["frames_declared"].sum()) if whole and (probed["frames_declared"] > 0).all() else 0


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
        f"({progress.frames / seconds:.0f} {row_unit(encoding.recorded['recipe'])}s/s); nothing was banked",
    )
