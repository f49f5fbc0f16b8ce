"""Folding parts into one self-contained bank file: pack, link, merge and remove.

Whatever happens here ends in one atomic replacement of the bank file, under the lock. Only then are the parts deleted
that were merged, and no others: a part that another writer sealed meanwhile stays.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

import pandas as pd

from pipeline import features as hdf5
from pipeline.bank import (
    Bank,
    differences,
    lock_file,
    newest,
    parts_folder,
    real_path,
    remove_abandoned,
    replacing,
    sealed_parts,
    total_size,
    unique_name,
    void_parts,
)
from pipeline.errors import UserError
from pipeline.lock import hold

PACK_FRACTION = 0.25  # packing rewrites the bank: worth it when the parts exceed this share of it
PACK_BYTES = 64 << 20  # or when all of it is no more than a second's work


class NoRoomError(UserError):
    """Not enough free disk to rewrite the bank."""


def _write_one_file(
    path: Path,
    banks: Iterable[tuple[Bank, pd.DataFrame]],
    failures: pd.DataFrame,
    absorbed: Iterable[Path],
    check: Callable[[], None],
    on_video: Callable[[int], None] | None,
) -> None:
    """Replace `path` by one file that holds the given catalog rows of the given banks and their embeddings."""
    copied = 0
    banks = list(banks)
    catalog = pd.concat([rows for _, rows in banks], ignore_index=True).sort_values("id")
    first = banks[0][0]
    contents = hdf5.Contents("", {}, catalog, failures, absorbed=[part.name for part in absorbed])
    small = sum(bank.nbytes for bank, _ in banks) < PACK_BYTES
    with replacing(path, check) as temporary, hdf5.Output(temporary, in_memory=small) as output:
        data = "; ".join(dict.fromkeys(bank.config["data"] for bank, _ in banks))
        hdf5.begin(output.file, {**first.config, "data": data}, first.fingerprint, first.created)
        for bank, rows in banks:
            for row in hdf5.records(bank.in_reading_order(rows)):
                if on_video is not None:
                    on_video(copied)
                copied += 1
                try:
                    hdf5.copy_video(bank.file_of(row["id"]), output, row)
                except FileNotFoundError as error:
                    raise UserError(f"{bank.path} was packed by somebody else meanwhile; run this again.") from error
                except (KeyError, RuntimeError, UnicodeError) as error:
                    raise UserError(
                        f"{bank.path} is damaged at {row['id']!r}; `framebank describe {bank.path} --verify` lists "
                        "what is, and `framebank remove` takes it out."
                    ) from error
        output.reserve(hdf5.ROW_BYTES * (len(catalog) + len(failures)))
        hdf5.write_contents(output.file, contents)


def _delete(parts: Iterable[Path], folder: Path) -> None:
    for part in parts:
        part.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: another writer is at work in it
        folder.rmdir()


def _relabelled(catalog: pd.DataFrame, updates: pd.DataFrame | None) -> pd.DataFrame:
    """The catalog with newer label, split, group, source and extra columns of some of its rows."""
    if updates is None or updates.empty:
        return catalog
    catalog, fresh = catalog.set_index("id"), updates.set_index("id")
    fresh = fresh[fresh.index.isin(catalog.index)]
    for column in fresh.columns:
        if column not in catalog:
            catalog[column] = ""
        catalog.loc[fresh.index, column] = fresh[column]
    return catalog.reset_index()


def _check_room(path: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise NoRoomError(
            f"{what} {path} needs {needed / 1e3:,.0f} kB of free disk and {free / 1e3:,.0f} kB are left; "
            "free some, or leave the bank in parts (it reads the same)."
        )


def pack(
    path: Path,
    *,
    without: Collection[str] = (),
    updates: pd.DataFrame | None = None,
    mended: Collection[str] = (),
    on_wait: Callable[[str], None] | None = None,
    on_video: Callable[[int], None] | None = None,
) -> int:
    """Rewrite a bank and its parts as one self-contained file.

    The new file names the parts that it has taken in, so that what is left of them after a kill is void.

    Args:
        path: the bank.
        without: ids to leave out, from the catalog and from the failures.
        updates: newer metadata of banked videos, a column `id` and those to change.
        mended: ids whose failure is to be forgotten.
        on_wait: called with the holder's name when another process is packing.
        on_video: called with the number of videos that were copied before each.

    Returns:
        how many parts were folded in.

    Raises:
        UserError: no such bank, a damaged one, or not enough free disk for the copy.
    """
    with hold(lock_file(path), on_wait=on_wait) as check:
        remove_abandoned(path)
        with Bank(path) as bank:
            _check_room(path, bank.nbytes, "Packing")
            catalog = _relabelled(bank.catalog[~bank.catalog["id"].isin(without)], updates)
            failures = bank.failures[~bank.failures["id"].isin({*without, *mended})]
            taken = [*bank.parts, *void_parts(path)]
            _write_one_file(path, [(bank, catalog)], failures, taken, check, on_video)
        _delete(taken, parts_folder(path))
    return len(bank.parts)


def link(
    path: Path,
    *,
    updates: pd.DataFrame | None = None,
    mended: Collection[str] = (),
    on_wait: Callable[[str], None] | None = None,
) -> None:
    """Make the bank file an index of relative external links into its parts, without copying any embedding.

    A bank file that holds embeddings itself first becomes a part (by a hard link, so that no moment is without it).
    Arguments are those of `pack`.

    Raises:
        UserError: no such bank, or a file system without hard links.
    """
    with hold(lock_file(path), on_wait=on_wait) as check:
        remove_abandoned(path)
        folder = parts_folder(path)
        with Bank(path) as bank:
            if not bank.parts and not mended and (updates is None or updates.empty):
                return
            parts = [bank.path_of(video_id) for video_id in bank]
            if path in parts:
                base = folder / unique_name("base")
                base.parent.mkdir(exist_ok=True)
                try:
                    os.link(real_path(path), base)
                except OSError as error:
                    raise UserError(
                        f"{path} cannot be hard-linked here ({error}); run `framebank pack` instead."
                    ) from error
                parts = [base if part == path else part for part in parts]
            catalog = _relabelled(bank.catalog, updates)
            failures = bank.failures[~bank.failures["id"].isin(mended)]
            # What the other parts say, of failures say, is in the index now, and void in them.
            void = [*void_parts(path), *(part for part in bank.parts if part not in parts)]
            with replacing(path, check) as temporary, hdf5.Output(temporary, in_memory=True) as output:
                hdf5.begin(output.file, bank.config, bank.fingerprint, bank.created)
                names = dict(zip(bank, (f"{folder.name}/{part.name}" for part in parts), strict=True))
                for row in hdf5.records(bank.in_reading_order(catalog)):
                    hdf5.link_video(output.file, bank.file_of(row["id"]), names[row["id"]], row)
                links, absorbed = [part.name for part in parts], [part.name for part in void]
                hdf5.write_contents(output.file, hdf5.Contents("", {}, catalog, failures, "", links, absorbed))
        _delete(void, folder)


def fold_in(
    path: Path,
    *,
    updates: pd.DataFrame | None = None,
    mended: Collection[str] = (),
    in_a_hurry: bool = False,
    on_wait: Callable[[str], None] | None = None,
) -> str:
    """End a run: pack when the parts are big enough, otherwise link. Arguments are those of `pack`.

    Args:
        in_a_hurry: pack only what takes no time.

    Returns:
        "packed", "linked", "linked: <why it could not be packed>", or "" when all was in order.
    """
    with Bank(path) as bank:
        linked = set(hdf5.read_contents(path).links) if path.exists() else set()
        parts = bank.parts
    base = [part for part in parts if part.name.startswith("base-")] or ([path] if not linked else [])
    rest = total_size(part for part in parts if part not in base)
    news = bool(mended) or (updates is not None and len(updates) > 0)
    if not parts and not news:
        return ""
    big = rest > PACK_FRACTION * total_size(base) and not in_a_hurry
    if big or rest + total_size(base) < PACK_BYTES:
        try:
            pack(path, updates=updates, mended=mended, on_wait=on_wait)
            return "packed"
        except NoRoomError as error:
            link(path, updates=updates, mended=mended, on_wait=on_wait)
            return f"linked: {error}"
    if news or {part.name for part in parts} - linked:
        link(path, updates=updates, mended=mended, on_wait=on_wait)
        return "linked"
    return ""


def _conflicts(catalogs: list[pd.DataFrame]) -> list[str]:
    """Ids that mean different embeddings in two banks: another source file, span, crop or number of rows."""
    everything = pd.concat(catalogs, ignore_index=True)
    variants = everything.drop_duplicates(["id", "digest", "start", "end", "crop", "rows"])
    return sorted(set(variants.loc[variants["id"].duplicated(), "id"]))


def merge(
    target: Path,
    sources: list[Path],
    *,
    on_wait: Callable[[str], None] | None = None,
    on_video: Callable[[int], None] | None = None,
) -> int:
    """Merge banks of the same fingerprint into one file. A target that exists already is merged too.

    The other arguments are those of `pack`.

    Returns:
        how many videos the merged bank holds.

    Raises:
        UserError: the banks were made differently, an id stands for two different videos, or the disk is too full.
    """
    target = target.absolute()
    with ExitStack() as stack:
        target.parent.mkdir(parents=True, exist_ok=True)
        check = stack.enter_context(hold(lock_file(target), on_wait=on_wait))
        paths = [target, *sources] if target.exists() or sealed_parts(target) else sources
        banks = [stack.enter_context(Bank(path)) for path in dict.fromkeys(path.absolute() for path in paths)]
        first = banks[0]
        for bank in banks[1:]:
            if bank.fingerprint != first.fingerprint:
                names = first.path.name, bank.path.name
                what = "; ".join(differences(first.config["recipe"], bank.config["recipe"], names))
                raise UserError(f"Embeddings that were made differently never mix: {what}.")
        conflicts = _conflicts([bank.catalog for bank in banks])
        if conflicts:
            raise UserError(
                f"{len(conflicts)} ids stand for different videos in these banks, e.g. {conflicts[0]!r}; "
                "`framebank remove` them from one of the banks first."
            )
        _check_room(target, sum(bank.nbytes for bank in banks), "Merging into")
        catalog, places = newest([bank.catalog for bank in banks], "banked")
        owners = [bank for bank in banks for _ in range(len(bank))]
        failures, _ = newest([bank.failures for bank in banks], "when")
        failures = failures[~failures["id"].isin(catalog["id"])]
        chosen = [(bank, catalog[[owners[place] is bank for place in places]]) for bank in banks]
        taken = [*first.parts, *void_parts(target)] if first.path == target else []
        _write_one_file(target, chosen, failures, taken, check, on_video)
        _delete(taken, parts_folder(target))
    return len(catalog)
