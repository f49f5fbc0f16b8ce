"""Features that other programs made -> a bank. Reads files of arrays; writes the bank, and only what it lacks."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import bank as banks
from pipeline import resuming
from pipeline.engine import Progress
from pipeline.errors import UserError
from pipeline.extraction import existing_bank, fold_in, latest, stopping
from pipeline.import_sources import Sources, decide, find_features, shapes_of
from pipeline.imported import Counting, is_imported
from pipeline.importing import import_all, recipe_of_import, recorded_of_import
from pipeline.sealing import PartWriter, disk_errors
from pipeline.videos import absolute_path
from stages import summary
from stages.console import Display, counted, import_words

OK, FAILURES, INTERRUPTED = 0, 3, 130


@dataclass(frozen=True)
class ImportConfig:
    """Everything that `framebank import` can be told; the defaults are those of the command.

    A `layout` that is None is the bank's where there is one, else whichever the shapes make certain. A `name` that is
    None is that of the data.
    """

    data: Path
    out: Path
    name: str | None = None
    feature: str | None = None
    layout: str | None = None
    fps: float | None = None
    feat_stride: int = 1
    offset: int = 0
    labels: Path | None = None
    label_from: str | None = None
    group_from: str | None = None
    split_lists: tuple[Path, ...] = ()
    store: str = "float16"
    retry_failed: bool = False
    quiet: bool = False


def run(config: ImportConfig) -> int:
    """Import what the bank lacks.

    Returns:
        the exit status: 0 all imported, 3 finished with failures in the ledger, 130 interrupted (and resumable).

    Raises:
        UserError: it could not run as asked; what the bank held before is untouched.
    """
    started = time.monotonic()
    display = Display(quiet=config.quiet)
    bank = existing_bank(config.out)
    if bank is not None and not is_imported(bank.config["recipe"]) and not bank.only_failures:
        raise UserError(f"{config.out} was extracted from videos; imported features need a bank of their own: --out.")
    sources = _find(config, bank)
    summary.show_found(display, config.data, sources.found)
    plan = resuming.plan(sources.found.table, bank, retry_failed=config.retry_failed)
    if sources.format == "hdf5":  # all of its videos are in the one file
        plan = replace(plan, doubled=[])
    recorded = _recorded(config, sources, plan.todo, bank)
    recipe = recorded["recipe"]
    if bank is not None and bank.fingerprint != banks.fingerprint_of(recipe):
        if not bank.only_failures:
            what = "; ".join(banks.differences(_shown(bank.config["recipe"]), _shown(recipe)))
            raise UserError(f"{config.out} was made differently: {what}. Repeat its settings, or give another --out.")
        bank = None
        plan = resuming.plan(sources.found.table, None, retry_failed=False)
    before = f"{counted(len(plan.done), 'video')} done before"
    if len(plan.failed):
        before += f" · {len(plan.failed)} failed before (--retry-failed tries them again)"
    display.field("To do", f"{counted(len(plan.todo), 'video') if len(plan.todo) else 'nothing'} · {before}")
    display.field(
        "Features", f"{recipe['feature_shape'][0]} a row, {import_words(recipe)}, stored as {recipe['store']}"
    )
    progress, interrupted = Progress(), False
    if len(plan.todo):
        with disk_errors(config.out):
            banks.create(config.out, recorded)
        interrupted = _import(display, config, sources, plan.todo, recorded, progress, latest(bank))
    folded = fold_in(config.out, plan, pack=True, in_a_hurry=interrupted, on_note=display.line)
    summary.show_result(display, config.out, plan, progress, folded, time.monotonic() - started)
    if len(plan.todo) and not interrupted:
        _note_of_clocks(display, config.out)
    if interrupted:
        return INTERRUPTED
    return FAILURES if progress.failures or len(plan.failed) else OK


def _find(config: ImportConfig, bank: banks.Bank | None) -> Sources:
    out = config.out.absolute()
    root = config.data if config.data.is_dir() else config.data.parent
    return find_features(
        config.data,
        feature=config.feature,
        labels=config.labels,
        label_from=config.label_from,
        group_from=config.group_from,
        split_lists=config.split_lists,
        known=resuming.known_sources(bank, root),
        exclude=(out, banks.parts_folder(out), banks.lock_file(out)),
    )


def _recorded(config: ImportConfig, sources: Sources, todo: pd.DataFrame, bank: banks.Bank | None) -> dict[str, Any]:
    """The config of the bank. Layout and number of features are the bank's where it has any.

    Raises:
        UserError: the shapes leave open which axis is time.
    """
    made = None if bank is None or bank.only_failures else bank.config
    layout = config.layout or (made["imported"]["layout"] if made else None)
    if made is not None:
        features = int(made["recipe"]["feature_shape"][0])
    else:
        is_td = sources.format == "video_features" or sources.feature == "c3d_features"
        shapes, rows = shapes_of(sources, todo)
        layout, features = decide(shapes, layout, is_td=is_td, rows=rows)
    assert layout is not None  # every bank of imported features records it
    name = config.name or sources.name(config.data)
    counting = Counting(config.fps, config.feat_stride, config.offset)
    recipe = recipe_of_import(name, sources, counting, features=features, store=config.store)
    return recorded_of_import(recipe, sources, layout, absolute_path(config.data))


def _shown(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe under the names of the options."""
    shown = {**recipe["imported"]["counting"], "format": recipe["imported"]["format"]} if is_imported(recipe) else {}
    return {"name": recipe["layer"], "features of a row": recipe["feature_shape"][0], "store": recipe["store"], **shown}


def _import(
    display: Display,
    config: ImportConfig,
    sources: Sources,
    todo: pd.DataFrame,
    recorded: dict[str, Any],
    progress: Progress,
    newer_than: str,
) -> bool:
    """Import what is to do. Returns whether it was interrupted."""

    def sealed(videos: int, failures: int, rows: int) -> None:
        progress.videos_sealed += videos
        progress.rows_sealed += rows

    recipe = recorded["recipe"]
    writer = PartWriter(config.out, recorded, sealed, newer_than=newer_than)
    with display.progress(len(todo), 0, "row") as show, stopping() as stop:

        def done(rows: int, failed: bool) -> None:
            progress.frames += rows
            progress.failures += failed
            show(progress)

        return import_all(
            todo,
            sources,
            writer,
            layout=recorded["imported"]["layout"],
            features=recipe["feature_shape"][0],
            counting=Counting(config.fps, config.feat_stride, config.offset),
            stop=stop,
            on_video=done,
        )


def _note_of_clocks(display: Display, out: Path) -> None:
    """Say where there are no times: what needs them will refuse."""
    with banks.Bank(out) as bank:
        without = bank.catalog.loc[bank.catalog["fps"] == 0, "id"]
        timeless = [video for video in without if bank.timestamps(video)[:1] != bank.timestamps(video)[:1]]
    if timeless:
        display.field(
            "Times",
            f"none for {counted(len(timeless), 'video')}, e.g. {timeless[0]}: what needs seconds will say so "
            "(--fps N, of the rows or with --feat-stride of the video, counts them)",
        )
