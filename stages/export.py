"""A bank -> files as other programs read them. Reads the bank, and segments where the format has labels over time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import exporting_actionformer, exporting_hdf, exporting_ms_tcn, exporting_tables
from pipeline.bank import Bank
from pipeline.engine import Progress
from pipeline.errors import UserError
from pipeline.exporting import check_files, check_vectors, write_files
from pipeline.features import records
from stages.console import Display, counted, plain_time

_FOLDERS = {"npy": exporting_actionformer, "ms-tcn": exporting_ms_tcn}


@dataclass(frozen=True)
class ExportConfig:
    """Everything that `framebank export` can be told."""

    bank: Path
    form: str
    out: Path
    segments: Path | None = None
    background: str | None = None
    quiet: bool = False


def run(config: ExportConfig) -> int:
    """Write a bank in one format. Returns the exit status, 0.

    Raises:
        UserError: the format cannot hold this bank, or something else is there already, or no such bank.
    """
    _check(config)
    display, started = Display(quiet=config.quiet), time.monotonic()
    with Bank(config.bank) as bank:
        if config.form != "csv":
            check_vectors(bank, config.form)
        progress = Progress()
        with display.progress(len(bank), int(bank.catalog["rows"].sum()), "row") as show:

            def done(rows: int) -> None:
                progress.videos_sealed += 1
                progress.frames += rows
                show(progress)

            notes, kept = _write(config, bank, done)
        videos, rows = len(bank), int(bank.catalog["rows"].sum())
    for note in notes:
        display.field("Note", note)
    there = "all of it was" if kept == videos else f"{counted(kept, 'video')} kept that were"
    before = f" · {there} there before" if kept else ""
    took = plain_time(time.monotonic() - started)
    display.field("Exported", f"{counted(videos, 'video')} · {counted(rows, 'row')} as {config.form} in {took}{before}")
    display.field("Written", str(config.out))
    return 0


def _check(config: ExportConfig) -> None:
    """UserError: an output that cannot be one, or options that the format has no use for."""
    if config.form in _FOLDERS and config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out} is a file, and --to {config.form} writes a folder.")
    if config.form not in _FOLDERS and (config.out.is_dir() or not config.out.absolute().parent.is_dir()):
        raise UserError(
            f"{config.out} cannot be written: {'it is' if config.out.is_dir() else 'its folder is not'} a "
            f"folder, and --to {config.form} writes a file."
        )
    if config.segments is not None and config.form not in _FOLDERS:
        raise UserError(f"--segments has no meaning for --to {config.form}: it has no labels over time. Leave it out.")
    if config.background is not None and config.form != "ms-tcn":
        raise UserError(f"--background has no meaning for --to {config.form}. Leave it out.")


def _write(config: ExportConfig, bank: Bank, done: Callable[[int], None]) -> tuple[list[str], int]:
    """Write everything. Returns lines worth telling, and how many videos were there before."""
    if config.form == "csv":
        new = exporting_tables.write_csv(bank, config.out)
        return [], 0 if new else len(bank)
    if config.form == "parquet":
        new = exporting_tables.write_parquet(bank, config.out, done)
        return [], 0 if new else len(bank)
    if config.form == "c3d":
        new = exporting_hdf.write(bank, config.out, done)
        return [], 0 if new else len(bank)
    if config.form == "npy":
        plan = exporting_actionformer.plan(bank, config.out, config.segments)
    else:
        plan = exporting_ms_tcn.plan(bank, config.segments, config.background)
    writer = _FOLDERS[config.form]
    check_files(config.out, plan)
    kept = 0
    for row in records(bank.catalog):
        kept += not writer.write_video(bank, row, config.out)
        done(row["rows"])
    write_files(config.out, plan)
    return plan.notes, kept
