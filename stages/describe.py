"""Looking into a bank: overview, one video, the catalog as CSV, statistics, and verification of every byte."""

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.feature_statistics import feature_statistics
from pipeline.imported import is_imported
from pipeline.videos import label_order
from pipeline.windows import window_in
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
    with Bank(path) as bank:
        found = feature_statistics(bank)
        what = "channel" if len(bank.config["recipe"]["feature_shape"]) > 1 else "feature"
    features = len(found.mean)
    display.field("Values", f"{found.values * features:,}: {features:,} {what}s, {found.values:,} of each")
    if not np.isfinite([*found.least, *found.greatest]).all():
        display.field("Not finite", f"some are: framebank describe {path} --verify says which")
        return
    mean = found.mean.mean()
    deviation = np.sqrt((found.deviation**2 + (found.mean - mean) ** 2).mean())
    display.field("Range", f"{found.least.min():.4g} to {found.greatest.max():.4g}")
    display.field("Mean", f"{mean:.4g}, standard deviation {deviation:.4g} over all of them")
    display.field("Zeros", f"{found.zeros.mean():.1%} of all values")
    display.field("Constant", f"{counted(int((found.least == found.greatest).sum()), what)} of {features:,}")
    display.line()
    display.line(f"{f'of {what}s':<24}{'least':>12}{'median':>12}{'greatest':>12}")
    for name, each in (("mean", found.mean), ("standard deviation", found.deviation), ("share of zeros", found.zeros)):
        display.line(f"{name:<24}{each.min():>12.4g}{np.median(each):>12.4g}{each.max():>12.4g}")


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
        if video_id not in bank:
            failure = bank.failures.loc[bank.failures["id"] == video_id, "reason"]
            if len(failure):
                raise UserError(f"{video_id!r} could not be banked: {failure.iloc[0]}")
            raise UserError(f"{path} has no video {video_id!r}{_near(video_id, bank)}; --csv lists the ids.")
        row = bank.catalog.set_index("id").loc[video_id]
        features = bank[video_id].astype(np.float32)
        plain = features[0] if "views" in bank.config["recipe"] else features  # the first of several views
        seconds = bank.timestamps(video_id)
        display.field("Video", video_id)
        for name, value in row.items():
            if value not in ("", -1) and value == value:
                display.line(f"  {name:<16}{value}")
        display.field("Features", f"{features.shape}, from {features.min():.4g} to {features.max():.4g}")
        option = "--fps" if is_imported(bank.config["recipe"]) else "--image-fps"
        clock = (
            f"{seconds[0]:.3f} s to {seconds[-1]:.3f} s" if np.isfinite(seconds).all() else f"none ({option} gives one)"
        )
        display.field("Time", clock)
        if window_in(bank.config["recipe"]).kind == "clip":
            first = bank.frames(video_id)[0]
            if repeated := len(first) - len(set(first.tolist())):
                display.field("Padded", f"shorter than a clip: its last frame stands for {repeated} more")
        flat = plain.reshape(len(plain), -1)
        norms, steps = np.linalg.norm(flat, axis=1), np.linalg.norm(np.diff(flat, axis=0), axis=1)
        change = f"; change from row to row {steps.mean():.4g} on average" if len(steps) else ""
        of = "" if plain is features else ", of the plain view"
        display.field("Norm", f"{norms.mean():.4g} on average{change}{of}")


def _near(video_id: str, bank: Bank) -> str:
    """ " (did you mean a/x?)": ids that end alike, else similar ones."""
    near = [known for known in bank if known.endswith(f"/{video_id}")] or difflib.get_close_matches(video_id, bank)
    return f" (did you mean {', or '.join(near[:3])}?)" if near else ""


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
        problems = bank.verify()
        count, views = len(bank), bank.config["recipe"].get("views")
    for video_id, problem in problems:
        display.line(f"{video_id}: {problem}")
    if problems:
        display.line(
            f"{counted(len(problems), 'problem')} in {counted(count, 'video')}; "
            "`framebank remove` the broken ones and extract again."
        )
        return 1
    each = f", {views['count']} views of each" if views else ""
    display.line(f"{counted(count, 'video')} read{each}: all complete, finite and consistent with the catalog.")
    return 0
