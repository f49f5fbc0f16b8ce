"""Looking into a bank: overview, one video, the catalog as CSV, statistics, and verification of every byte."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.bank import Bank
from pipeline.imported import is_imported
from pipeline.videos import label_order
from pipeline.writing import check_outputs, write_json
from stages import described, events
from stages.console import (
    Display,
    counted,
    import_words,
    input_words,
    megabytes,
    plain_frames,
    plain_time,
    sampling_words,
    window_words,
)

OK, DAMAGED = 0, 1
_SHOWN_CLASSES = 30


def overview(path: Path) -> None:
    """Print what a bank holds, what made it, and what could not be banked."""
    display = Display()
    with Bank(path) as bank:
        catalog, recipe = bank.catalog, bank.config["recipe"]
        rows = int(catalog["rows"].sum())
        parts = f", in {counted(len(bank.parts), 'part')}" if bank.parts else ""
        display.field("Bank", f"{path}: {megabytes(bank.nbytes)}{parts}")
        display.field("Videos", f"{len(catalog):,} · {counted(rows, 'row')} · {_lengths(catalog)}")
        special = not plain_frames(recipe)
        views = [recipe["views"]["count"]] if "views" in recipe else []
        shape = ", ".join(map(str, [*views, "T", *recipe["feature_shape"]]))
        display.field("Features", f"({shape}) {recipe['store']}{'' if special else ', one row per frame taken'}")
        if is_imported(recipe):
            display.field("Imported", f"from {bank.config['data']}: {import_words(recipe).removeprefix('imported ')}")
        elif special:
            display.field("Rows", window_words(recipe))
        if not is_imported(recipe):
            _print_network(display, bank.config)
        display.field("Made", f"{bank.created}, from {bank.config['data']}")
        display.field("Fingerprint", f"{bank.fingerprint[:16]}… (two banks with the same fingerprint may be merged)")
        partial, mended = int((catalog["partial"] != "").sum()), int((catalog["frames_corrupt"] > 0).sum())
        if partial:
            display.field("Partial", f"{counted(partial, 'video')} decoded only in part")
        if mended:
            display.field("Corrupt", f"{counted(mended, 'video')} with frames that the decoder marked corrupt")
        _print_counts(display, catalog)
        if len(bank.failures):
            display.field("Failures", counted(len(bank.failures), "video"))
            for row in bank.failures.head(10).itertuples():
                display.line(f"  {row.id}: {row.reason}")
            if len(bank.failures) > 10:
                display.line(f"  … and {len(bank.failures) - 10} more: framebank describe {path} --failures")


def _print_network(display: Display, config: Mapping[str, Any]) -> None:
    """What made the embeddings of a bank."""
    recipe, compute = config["recipe"], config["compute"]
    display.field("Backbone", f"{recipe['backbone']}, layer {recipe['layer']}")
    display.field("Weights", f"{config['weights']} (sha256 {recipe['weights_sha256'][:12]}…)")
    display.field("Input", f"{input_words(recipe['preprocessing'])}, normalised as {config['preset']}")
    display.field("Frames", sampling_words(recipe["sampling"]))
    if recipe["crop"]:
        display.field("Crop", recipe["crop"])
    display.field("Computed", f"{recipe['precision']} on {compute['device']}, batches of {compute['batch_size']}")


def statistics(path: Path) -> None:
    """Print what the values of a bank are like, read once in blocks, so also of a bank larger than memory.

    Raises:
        UserError: it holds no rows, or some that cannot be read.
    """
    display = Display()
    with Bank(path) as bank, display.busy("reading all values"):
        found = described.statistics(bank)
    features, values, what = found["features"], found["values_each"], found["of"]
    display.field("Values", f"{values * features:,}: {features:,} {what}s, {values:,} of each")
    if not found["finite"]:
        display.field("Not finite", f"some are: framebank describe {path} --verify says which")
        return
    display.field("Range", f"{found['least']:.4g} to {found['greatest']:.4g}")
    display.field("Mean", f"{found['mean']:.4g}, standard deviation {found['standard_deviation']:.4g} over all of them")
    display.field("Zeros", f"{found['zeros']:.1%} of all values")
    display.field("Constant", f"{counted(found['constant'], what)} of {features:,}")
    display.line()
    display.line(f"{f'of {what}s':<24}{'least':>12}{'median':>12}{'greatest':>12}")
    named = {"mean": "mean", "standard deviation": "standard_deviation", "share of zeros": "zeros"}
    for name, each in ((name, found["each"][key]) for name, key in named.items()):
        display.line(f"{name:<24}{min(each):>12.4g}{np.median(each):>12.4g}{max(each):>12.4g}")


def _lengths(catalog: pd.DataFrame) -> str:
    if catalog.empty:
        return "empty"
    lengths = catalog["rows"]
    span = f"{lengths.min():,} to {lengths.max():,} rows a video, median {lengths.median():,.0f}"
    if lengths.min() == lengths.max():
        span = f"{lengths.min():,} each"
    seconds = catalog["duration"].sum()
    return f"{span} · {plain_time(seconds)} of video" if seconds > 0 else span


def _print_counts(display: Display, catalog: pd.DataFrame) -> None:
    """A table of videos per class, and per split where there are splits."""
    if catalog.empty or (catalog["label"] == "").all():
        return
    splits = sorted(set(catalog["split"]))
    counts = pd.crosstab(catalog["label"], catalog["split"])
    order = label_order(list(counts.index)) + [""] * ("" in counts.index)
    headers = ["videos", *(split or "no split" for split in splits)] if splits != [""] else ["videos"]
    width = max(len("class"), *(len(label) for label in order))
    display.line()
    display.line("  ".join([f"{'class':<{width}}", *(f"{header:>8}" for header in headers)]))
    for label in order[:_SHOWN_CLASSES]:
        numbers = [counts.loc[label].sum(), *(counts.loc[label, split] for split in splits if len(headers) > 1)]
        display.line("  ".join([f"{label or '(none)':<{width}}", *(f"{number:>8,}" for number in numbers)]))
    if len(order) > _SHOWN_CLASSES:
        display.line(f"… and {len(order) - _SHOWN_CLASSES} more classes: framebank describe … --csv")
    display.line()


def one_video(path: Path, video_id: str) -> None:
    """Print one video's catalog row and a look at its embeddings.

    Raises:
        UserError: the bank has no such video; if it is in the ledger, with the reason.
    """
    display = Display()
    with Bank(path) as bank:
        found = described.video(bank, video_id)
        views, imported = "views" in bank.config["recipe"], is_imported(bank.config["recipe"])
    display.field("Video", video_id)
    for name, value in found["catalog"].items():
        if value not in ("", -1) and value == value:
            display.line(f"  {name:<16}{value}")
    shape = ", ".join(map(str, found["shape"]))
    display.field("Features", f"({shape}), from {found['least']:.4g} to {found['greatest']:.4g}")
    seconds = found["seconds"]
    clock = (
        f"none ({'--fps' if imported else '--image-fps'} gives one)"
        if seconds is None
        else f"{seconds[0]:.3f} s to {seconds[1]:.3f} s"
    )
    display.field("Time", clock)
    if found["padded"]:
        display.field("Padded", f"shorter than a clip: its last frame stands for {found['padded']} more")
    change = "" if found["change"] is None else f"; change from row to row {found['change']:.4g} on average"
    display.field("Norm", f"{found['norm']:.4g} on average{change}{', of the plain view' if views else ''}")


def catalog_csv(path: Path) -> None:
    """Write the catalog to standard output as CSV, one row per video."""
    with Bank(path) as bank:
        bank.catalog.to_csv(sys.stdout, index=False)


def failures_csv(path: Path) -> None:
    """Write the ledger to standard output as CSV, one row per video that could not be banked."""
    with Bank(path) as bank:
        bank.failures.to_csv(sys.stdout, index=False)


def verify(path: Path) -> int:
    """Read everything in a bank. Returns the exit status: 0 sound, 1 with the list of what is wrong."""
    display = Display()
    with Bank(path) as bank:
        count, views = len(bank), bank.config["recipe"].get("views")
        with display.steps("verifying", count, "videos") as show:
            problems = described.verified(bank, show)["problems"]
    events.tell("result", bank=str(path), videos=count, problems=len(problems))
    for each in problems:
        display.line(f"{each['id']}: {each['problem']}")
    if problems:
        display.line(
            f"{counted(len(problems), 'problem')} in {counted(count, 'video')}; "
            "`framebank remove` the broken ones and extract again."
        )
        return DAMAGED
    each_of = f", {views['count']} views of each" if views else ""
    display.line(f"{counted(count, 'video')} read{each_of}: all complete, finite and consistent with the catalog.")
    return OK


def as_json(
    path: Path, out: Path, video_id: str | None, *, failures: bool = False, checked: bool = False, stats: bool = False
) -> int:
    """Write what was asked for, else the overview, as one JSON document.

    Args:
        path: the bank.
        out: the file, or `pipeline.writing.STDOUT`.
        video_id, failures, checked, stats: one of them: the video, the ledger, what `verify` finds, or the statistics.

    Returns:
        the exit status: that of `verify`, else 0.

    Raises:
        UserError: as those that print it.
    """
    display = Display.beside(out)
    content: dict[str, Any]
    with Bank(path) as bank:
        check_outputs({"--json": out}, bank.files)
        if checked:
            with display.steps("verifying", len(bank), "videos") as show:
                content = described.verified(bank, show)
        elif stats:
            with display.busy("reading all values"):
                content = described.statistics(bank)
        elif video_id is not None:
            content = described.video(bank, video_id)
        elif failures:
            content = {"bank": str(path), **described.failures(bank)}
        else:
            content = described.overview(bank)
    write_json(out, content)
    return DAMAGED if content.get("problems") else OK
