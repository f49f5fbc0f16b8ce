"""Keeping banks: pack parts into one file, merge banks, remove videos."""

from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline import packing
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.sealing import disk_errors
from stages import events
from stages.console import Display, counted, megabytes


def _waiting(holder: str) -> None:
    Display().note(f"Waiting for {holder}, which holds the lock of this bank.")


def pack(path: Path) -> None:
    """Fold the parts of a bank into one self-contained file."""
    with Bank(path) as bank:  # a bank that is not there or not readable is said before the lock is touched
        videos = len(bank)
    with disk_errors(path), Display().steps("packing", videos, "videos") as show:
        parts = packing.pack(path, on_wait=_waiting, on_video=show)
    _say(path, f"packed {counted(parts, 'part')}")


def merge(target: Path, sources: Sequence[Path]) -> None:
    """Merge banks made alike into one file."""
    videos = 0
    for source in sources:
        with Bank(source) as bank:
            videos += len(bank)
    with disk_errors(target), Display().steps("merging", videos, "videos") as show:
        packing.merge(target, list(sources), on_wait=_waiting, on_video=show)
    _say(target, f"merged {counted(len(sources), 'bank')}")


def remove(path: Path, ids: Collection[str]) -> None:
    """Remove videos from a bank, and from its ledger of failures.

    Raises:
        UserError: an id is in neither; nothing is removed then.
    """
    with Bank(path) as bank:
        unknown = sorted(set(ids) - set(bank) - set(bank.failures["id"]))
        left = len(set(bank) - set(ids))
    if unknown:
        raise UserError(f"{path} has no video {unknown[0]!r}; `framebank describe {path} --csv` lists the ids.")
    with disk_errors(path), Display().steps("packing", left, "videos") as show:
        packing.pack(path, without=ids, on_wait=_waiting, on_video=show)
    _say(path, f"removed {counted(len(set(ids)), 'video')}")


def _say(path: Path, what: str) -> None:
    with Bank(path) as bank:
        rows, size = int(bank.catalog["rows"].sum()), bank.nbytes
        events.tell("result", bank=str(path), bank_videos=len(bank), bank_rows=rows, bank_bytes=size)
        Display().line(f"{path}: {what}; {counted(len(bank), 'video')}, {counted(rows, 'row')}, {megabytes(size)}")
