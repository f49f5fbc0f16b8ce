"""What `framebank extract` says: what was found, how it will be embedded, and at the end what came of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.backbone import Backbone
from pipeline.bank import Bank
from pipeline.engine import Progress
from pipeline.features import CATALOG, records
from pipeline.resuming import Plan
from pipeline.videos import COLUMNS, Found, label_order
from stages import events
from stages.console import (
    Display,
    counted,
    input_words,
    megabytes,
    plain_frames,
    plain_time,
    row_unit,
    sampling_words,
    window_words,
    workers_words,
)
from stages.progress import say

_SHOWN_CLASSES = 8
_SHOWN_FAILURES = 10


def show_found(display: Display, data: Path, found: Found) -> None:
    """Videos, classes, groups, files passed over."""
    table = found.table
    _tell_found(data, found)
    display.field("Found", f"{counted(len(table), 'video')} in {data} ({found.origin})")
    labels = table["label"].value_counts()
    classes = [f"{label} {labels[label]:,}" for label in label_order(list(labels.index))]
    if classes:
        more = f", and {len(classes) - _SHOWN_CLASSES} more" if len(classes) > _SHOWN_CLASSES else ""
        display.field("Classes", f"{len(classes)}: {', '.join(classes[:_SHOWN_CLASSES])}{more}")
    if labels.get("", 0):
        display.field("Unlabelled", counted(int(labels[""]), "video"))
    if (table["group"] != "").any():
        none = int((table["group"] == "").sum())
        groups = counted(table.loc[table["group"] != "", "group"].nunique(), "group")
        display.field("Groups", groups + (f" ({counted(none, 'video')} in none)" if none else ""))
    if found.ignored:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in sorted(found.ignored.items()))
        total = sum(found.ignored.values())
        display.field("Ignored", f"{counted(total, 'file')} ({kinds}); --all-files tries every file")
    extra = [name for name in table.columns if name not in COLUMNS and name not in CATALOG]
    if extra:
        display.field("Columns", f"{', '.join(extra)} kept as they are")
    outside = table.loc[table["id"].str.startswith("%2E%2E/"), "id"]
    if len(outside):
        what = counted(len(outside), "file")
        display.field("Note", f"{what} outside the manifest's folder, e.g. {outside.iloc[0]}; a column id names them")
    for note in found.notes:
        display.field("Note", note)


def _tell_found(data: Path, found: Found) -> None:
    labels = found.table["label"]
    events.tell(
        "found",
        data=str(data),
        origin=found.origin,
        videos=len(found.table),
        classes={label: int((labels == label).sum()) for label in label_order(list(labels))},
        ignored=found.ignored,
    )


def show_plan(display: Display, plan: Plan, probed: pd.DataFrame) -> None:
    """What is to do, and what will not be done again."""
    events.tell(
        "plan",
        to_do=len(plan.todo),
        done_before=len(plan.done),
        failed_before=len(plan.failed),
        changed=len(plan.changed),
        seconds_of_video=float(probed["duration"].sum()),
        frames_declared=int(probed["frames_declared"].clip(lower=0).sum()),
    )
    before = f"{counted(len(plan.done), 'video')} done before"
    if len(plan.failed):
        before += f" · {len(plan.failed)} failed before (--retry-failed tries them again)"
    display.field("To do", f"{counted(len(plan.todo), 'video') if len(plan.todo) else 'nothing'} · {before}")
    if len(plan.todo):
        known = probed["frames_declared"].clip(lower=0)
        silent = int((known == 0).sum())
        unsaid = f" ({silent:,} of the videos do not say)" if silent else ""
        length = plain_time(probed["duration"].sum())
        display.field("", f"{length} of video, {counted(int(known.sum()), 'frame')} as declared{unsaid}")
    unreadable = probed[probed["problem"] != ""]
    if len(unreadable):
        first = unreadable.index[0]
        example = f"{plan.todo.loc[first, 'id']}: {unreadable.loc[first, 'problem']}"
        display.field("Unreadable", f"{counted(len(unreadable), 'video')} by the header, e.g. {example}")
    if plan.gone:
        display.field("Gone", f"{counted(len(plan.gone), 'file')}, e.g. {plan.gone[0]}: what is banked of them stays")
    if plan.doubled:
        display.field("Note", f"files banked already under other ids: {len(plan.doubled)}, e.g. {plan.doubled[0]}")
    if plan.changed:
        what = counted(len(plan.changed), "video")
        display.field("Changed", f"{what} since banked, e.g. {plan.changed[0]}: banked again")


def show_recipe(display: Display, backbone: Backbone, recipe: dict[str, Any], device: str) -> None:
    """Backbone, weights, input, frames and precision; loudly where they carry no knowledge or were assumed."""
    shape = "×".join(map(str, backbone.feature_shape))
    inflated = " inflated to 3D" if backbone.inflated else ""
    display.field("Backbone", f"{backbone.name}{inflated}, layer {backbone.layer} ({shape}), {backbone.weights}")
    if backbone.weights.startswith("random"):
        display.field("", "WARNING: random weights. The embeddings carry no knowledge of images.")
    preset = backbone.preprocessing.preset
    if backbone.whole:
        display.field("Note", f"the network is taken in one piece ({backbone.whole}): it has no layers but its output")
    doubt = " (assumed: --preset says which goes with this file)" if backbone.assumed else ""
    display.field("Input", f"{input_words(recipe['preprocessing'])}, normalised as {preset}{doubt}")
    display.field("Frames", sampling_words(recipe["sampling"]))
    if not plain_frames(recipe):
        display.field("Rows", window_words(recipe))
    if backbone.window.kind == "flow" and not backbone.weights.startswith("random"):
        display.field("Note", "weights that were learnt on pictures are a beginning for training, and know no motion")
    display.field("Computing", f"{recipe['precision']} on {device}, stored as {recipe['store']}")


def show_workers(display: Display, unit: str) -> None:
    """What the workers did, and how often they died."""
    workers = display.workers
    deaths = sum(state.deaths for state in workers.values())
    died = f" · died {counted(deaths, 'time')}" if deaths else ""
    display.field("Workers", f"{workers_words(workers, unit)}{died}")


def time_words(shares: Mapping[str, float]) -> str:
    """How the time of a run was spent: "decoding 21 %, preparing 30 %, …; most goes into preparing"."""
    most = max(shares, key=lambda part: shares[part])
    limits = "waiting for a free device or disk" if most == "waiting" else f"most of it {most}"
    return f"{', '.join(f'{part} {share:.0%}' for part, share in shares.items())}: {limits}"


def show_result(display: Display, out: Path, plan: Plan, progress: Progress, folded: str, seconds: float) -> None:
    """Banked, updated, failed; the size of the bank; how to go on."""
    with Bank(out) as bank:
        failures = bank.failures
        size, rows, videos = bank.nbytes, int(bank.catalog["rows"].sum()), len(bank)
        unit = row_unit(bank.config["recipe"])
    left = len(plan.todo) - progress.videos_sealed - progress.failures
    events.tell(
        "result",
        bank=str(out),
        banked=progress.videos_sealed,
        rows=progress.rows_sealed,
        failed=progress.failures,
        partial=progress.partial,
        done_before=len(plan.done),
        failed_before=len(plan.failed),
        left=left,
        bank_videos=videos,
        bank_rows=rows,
        bank_bytes=size,
        seconds=seconds,
        rows_per_second=progress.frames / seconds if seconds else None,
        shares=progress.time,
    )
    if len(plan.todo):
        dropped = f" · {counted(left, 'video')} to go" if left else ""
        partial = f" · {progress.partial} only in part" if progress.partial else ""
        partial += f" · {progress.padded} shorter than a clip, padded" if progress.padded else ""
        display.field(
            "Banked",
            f"{counted(progress.videos_sealed, 'video')} · {counted(progress.rows_sealed, unit)} in "
            f"{plain_time(seconds)} ({progress.frames / seconds:.0f} {unit}s/s){partial}{dropped}",
        )
        if progress.time:
            display.field("Time", time_words(progress.time))
        if display.workers:
            show_workers(display, unit)
    if len(plan.done):
        display.field("Skipped", f"{counted(len(plan.done), 'video')} done before")
    if len(plan.updates):
        columns = ", ".join(name for name in plan.updates.columns if name != "id")
        display.field("Updated", f"{columns} of {counted(len(plan.updates), 'video')}")
    found = failures[failures["id"].isin({*plan.todo["id"], *plan.failed["id"]})]
    if len(found):
        tried = "" if progress.failures else " before"
        display.field("Failed", f"{counted(len(found), 'video')}{tried}")
        for row in records(found.head(_SHOWN_FAILURES)):
            display.line(f"  {row['id']}: {row['reason']}")
        if len(found) > _SHOWN_FAILURES:
            display.line(f"  … and {len(found) - _SHOWN_FAILURES} more: framebank describe {out} --failures")
        if display.quiet:
            say(f"{counted(len(found), 'video')} failed: framebank describe {out} --failures")
    where = {"": "", "packed": "", "linked": f", of which {out.name}.parts/ is a part: keep them together"}
    state = where.get(folded, f", {folded}")
    display.field("Bank", f"{out}: {counted(videos, 'video')}, {counted(rows, 'row')}, {megabytes(size)}{state}")
    if left:
        display.line(f"Interrupted with {counted(left, 'video')} to go; run the same command again to go on.")
