"""What is left to do: the videos that were found, held against what the bank already has."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import features as hdf5
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.sources import source_digest, source_path, source_state, source_text
from pipeline.videos import absolute_path

_REQUEST = ("start", "end", "crop")  # what of a video was asked for; another request means other embeddings
_COMPARED = ["id", "source", "kind", "fps", *_REQUEST, "size", "mtime", "digest"]  # a digest is of banked videos alone
_THREADS = 8  # that ask for the state of files: on shared storage every answer takes a while
_AT_ONCE = 256  # files that a thread asks for
_OWN = {*hdf5.CATALOG, "path"} - {"label", "split", "group"}


@dataclass(frozen=True)
class Plan:
    """The split of the found videos.

    Attributes:
        todo: rows to extract, with `source`, `size` and `mtime`.
        done: rows that the bank holds already.
        failed: ledger rows of found videos that are not tried again.
        gone: ids among `done` whose file is not there any more; their embeddings stay.
        mended: ids among `done` that the ledger still lists.
        doubled: ids among `todo` whose very file the bank holds under another id.
        changed: ids among `todo` whose source, span or crop is another than when it was banked.
        updates: column `id` and the metadata of done videos that is new (label, split, group, source, extra columns).
    """

    todo: pd.DataFrame
    done: pd.DataFrame
    failed: pd.DataFrame
    gone: list[str]
    mended: list[str]
    doubled: list[str]
    changed: list[str]
    updates: pd.DataFrame


def known_sources(bank: Bank | None, root: Path) -> dict[str, str]:
    """The ids that the bank has given to files below a folder, and those files."""
    if bank is None:
        return {}
    below = str(absolute_path(root)).rstrip("/") + "/"
    paths = dict(zip(bank.catalog["id"], map(source_path, bank.catalog["source"]), strict=True))
    paths |= dict(zip(bank.failures["id"], map(source_path, bank.failures["path"]), strict=True))
    return {video_id: path for video_id, path in paths.items() if path.startswith(below)}


def _same_content(row: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    if (row["size"], row["mtime"]) == (old["size"], old["mtime"]):
        return True
    if row["size"] != old["size"] or row["size"] < 0:
        return False
    return bool(source_digest(row["path"], row["kind"]) == old["digest"])


def _same_request(row: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    if row["kind"] == "images" and not _same(row["fps"] or nan, old["fps"] or nan):
        return False
    if row["kind"] == "features" and row["fps"] > 0 and row["fps"] != old["fps"]:  # else its file may know it
        return False
    return all(_same(row[name], old[name]) for name in _REQUEST)


def _span(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells a video's source and span; as text, since NaN equals nothing."""
    return row["source"], str(row["start"]), str(row["end"])


def _same(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))


def _states(sources: list[tuple[str, str]]) -> list[tuple[int, int]]:
    return [source_state(path, kind) for path, kind in sources]


def with_state(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `find_videos` with what a bank keeps of each source: source str, size (bytes), mtime (ns) int64."""
    sources = list(zip(table["path"], table["kind"], strict=True))
    pieces = [sources[place : place + _AT_ONCE] for place in range(0, len(sources), _AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as threads:
        states = [state for found in threads.map(_states, pieces) for state in found]
    return table.assign(
        source=[source_text(path) for path in table["path"]],
        size=[size for size, _ in states],
        mtime=[mtime for _, mtime in states],
    )


def plan(table: pd.DataFrame, bank: Bank | None, *, retry_failed: bool, allow_partial: bool = False) -> Plan:
    """Decide what to do with each video that was found.

    A video is done when the bank holds it from the same file (size and time, or else content) with the same span and
    crop, or when that file is gone. One in the ledger is tried again when its file has changed, when asked to, or when
    it only lacked permission to be banked in part.

    Raises:
        UserError: an id that is banked from one file now stands for another file, and the first is still there.
    """
    table = with_state(table)
    if bank is None:
        return Plan(table, table[:0], hdf5.empty_table(hdf5.FAILURES), [], [], [], [], table[["id"]][:0])
    banked = {row["id"]: row for row in hdf5.records(bank.catalog[_COMPARED])}
    ledger = {row["id"]: row for row in hdf5.records(bank.failures)}
    spans = {_span(row) for row in banked.values()}
    todo, done, failed, gone, changed, doubled, moved_onto = [], [], [], [], [], [], []
    for row in hdf5.records(table[[*_COMPARED[:-1], "path"]]):
        video_id = row["id"]
        old, failure = banked.get(video_id), ledger.get(video_id)
        partial = failure is not None and allow_partial and "--allow-partial" in failure["reason"]
        retry = retry_failed or partial
        if old is not None and row["size"] < 0 and row["source"] == old["source"] and _same_request(row, old):
            gone.append(video_id)
            done.append(video_id)
        elif failure is not None and not retry and (failure["size"], failure["mtime"]) == (row["size"], row["mtime"]):
            failed.append(video_id)
        elif old is None:
            todo.append(video_id)
            if _span(row) in spans:
                doubled.append(video_id)
        elif _same_content(row, old) and _same_request(row, old):
            done.append(video_id)
        else:
            if row["source"] != old["source"] and Path(source_path(old["source"])).exists():
                moved_onto.append((video_id, old["source"], row["source"]))
            changed.append(video_id)
            todo.append(video_id)
    if moved_onto:
        video_id, first, second = moved_onto[0]
        raise UserError(
            f"{len(moved_onto)} ids are banked from other files, e.g. {video_id!r} from {first}, now {second}; "
            "use another bank, or give ids in a manifest."
        )
    done_rows = table[table["id"].isin(done)]
    return Plan(
        todo=table[table["id"].isin(todo)],
        done=done_rows,
        failed=bank.failures[bank.failures["id"].isin(failed)],
        gone=gone,
        mended=[video_id for video_id in done if video_id in ledger],
        doubled=doubled,
        changed=changed,
        updates=_updates(done_rows, bank.catalog),
    )


def _updates(done: pd.DataFrame, catalog: pd.DataFrame) -> pd.DataFrame:
    """Rows of `done` whose metadata differs from the catalog's: an id column and the columns that differ anywhere.

    What is blank now erases nothing: a folder read without its manifest knows no groups.
    """
    columns = [name for name in done.columns if name not in _OWN] + ["source"]
    old = catalog.set_index("id").reindex(done["id"]).reindex(columns=columns, fill_value="")
    new = done.set_index("id")[columns]
    new = new.where(new != "", old)
    differs = old != new
    rows, names = differs.any(axis=1), differs.any(axis=0)
    return new.loc[rows, names].reset_index()
