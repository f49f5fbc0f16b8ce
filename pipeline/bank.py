"""The bank: one HDF5 file plus the sealed parts beside it, read as one.

A killed writer can leave an HDF5 file that no library opens, so nobody ever writes into the bank. Writers seal parts:
a file in `BANK.parts/` is written under a temporary name, flushed, synced and renamed. The bank file itself is only
ever replaced, atomically (`pipeline.packing`). Readers overlay the parts; for each video its newest row counts.
"""

import errno
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from pipeline import features as hdf5
from pipeline.checking import check_video
from pipeline.errors import UserError
from pipeline.imported import IMPORTED
from pipeline.lock import hold, is_running
from pipeline.windows import window_in

_ABANDONED_SECONDS = 24 * 3600.0
_OPEN_FILES = 64  # of a bank in thousands of parts, so as not to run out of file descriptors


def fingerprint_of(recipe: Mapping[str, Any]) -> str:
    """The sha256 of everything that decides what an embedding is: backbone, weights, preprocessing, sampling, …"""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, str] = ("banked", "now"), prefix: str = ""
) -> Iterator[str]:
    """The values that differ between two recipes, as "preprocessing.resize is 232 (banked) and 256 (now)"."""
    made_elsewhere = [recipe.get("backbone") == IMPORTED for recipe in (one, other)]
    keys = {*one, *other} if made_elsewhere[0] == made_elsewhere[1] else {"backbone"}  # else all the others differ too
    for key in sorted(keys):
        first, second = one.get(key, "unset"), other.get(key, "unset")
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from differences(first, second, names, f"{prefix}{key}.")
        elif first != second:
            yield f"{prefix}{key} is {first} ({names[0]}) and {second} ({names[1]})"


def real_path(path: Path) -> Path:
    """The bank itself where `path` is a symbolic link to it: its parts lie beside the file, not beside the link."""
    return path.resolve() if path.is_symlink() else path


def parts_folder(path: Path) -> Path:
    """Where the parts of a bank lie."""
    return real_path(path).with_name(real_path(path).name + ".parts")


def lock_file(path: Path) -> Path:
    """The lock that whoever replaces the bank file holds."""
    return real_path(path).with_name(real_path(path).name + ".lock")


def sealed_parts(path: Path) -> list[Path]:
    """The sealed parts of a bank, oldest first."""
    try:
        files = [file for file in parts_folder(path).iterdir() if file.suffix == ".h5" and file.name[0] != "."]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(files)


def sync(path: Path) -> None:
    """Make sure that a file or a folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unique_name(stem: str) -> str:
    """A file name that sorts by time and that no other writer, host or process will choose."""
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"{time.time() % 1:.6f}"[1:]
    return f"{stem}-{moment}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.h5"


def unsealed(folder: Path) -> Path:
    """An empty temporary file in a folder, which is made if need be; readers never look at it."""
    temporary = folder / f".{unique_name('unsealed')}"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # somebody who packs removed the empty folder just now
            temporary.touch()
            return temporary


def seal(temporary: Path, target: Path, check: Callable[[], None] | None = None) -> None:
    """Give a finished temporary file its name, once its bytes are on the disk; `check` may still object then."""
    sync(temporary)
    if check is not None:
        check()
    temporary.replace(target)
    with suppress(FileNotFoundError):  # a part that was packed, and its folder removed, at once
        sync(target.parent)


@contextmanager
def replacing(target: Path, check: Callable[[], None] | None = None) -> Iterator[Path]:
    """A temporary path that replaces `target` when the block ends well, and is removed when it doesn't.

    `check` is called last, when all is on the disk; what it raises prevents the replacement.
    """
    target = real_path(target)
    temporary = unsealed(target.parent)
    try:
        yield temporary
        seal(temporary, target, check)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> None:
    """Remove temporary files beside a bank whose writer is dead: killed on this host, or silent for a day."""
    for folder in (real_path(path).parent, parts_folder(path)):
        for file in folder.glob(".unsealed-*.h5"):
            pid = file.name.rsplit("-", 2)[1]
            ours = file.name.endswith(f"-{socket.gethostname()}-{pid}-{file.name.rsplit('-', 1)[1]}")
            with suppress(FileNotFoundError):
                old = time.time() - file.stat().st_mtime > _ABANDONED_SECONDS
                if old or (ours and not is_running(int(pid))):
                    file.unlink()


def create(path: Path, config: Mapping[str, Any]) -> None:
    """Write an empty bank, unless there is one; one that holds nothing but failures takes the new config.

    Two runs that start together cannot both define what the bank holds: it is made under the lock.

    Raises:
        UserError: the bank was made differently meanwhile.
        OSError: the folder cannot be written.
    """
    fingerprint = fingerprint_of(config["recipe"])
    if path.exists() and _read_file(path).fingerprint == fingerprint:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(lock_file(path)):
        absorbed: list[str] = []
        if path.exists() or sealed_parts(path):
            with Bank(path) as bank:
                if bank.fingerprint != fingerprint and not bank.only_failures:
                    what = "; ".join(differences(bank.config["recipe"], config["recipe"]))
                    raise UserError(f"Another run has just made {path} differently: {what}. Give another --out.")
                if bank.fingerprint != fingerprint:
                    absorbed = [part.name for part in (*bank.parts, *void_parts(path))]
                elif path.exists():
                    return
        contents = hdf5.Contents(
            fingerprint,
            dict(config),
            hdf5.empty_table(hdf5.CATALOG),
            hdf5.empty_table(hdf5.FAILURES),
            absorbed=absorbed,
        )
        with replacing(path) as temporary, hdf5.Output(temporary, in_memory=True) as output:
            hdf5.begin(output.file, contents.config, contents.fingerprint)
            hdf5.write_contents(output.file, contents)


def void_parts(path: Path) -> list[Path]:
    """Parts that the bank file has taken in already and that a killed run has left."""
    return [parts_folder(path) / name for name in _read_file(path).absorbed] if path.exists() else []


def newest(tables: list[pd.DataFrame], moment: str) -> tuple[pd.DataFrame, list[int]]:
    """Concatenate tables; of rows with the same id only the newest stays, of equally old ones that of the later table.

    Returns:
        the rows sorted by id, and the place that each had among all rows.
    """
    table = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    kept = table.sort_values(moment, kind="stable").drop_duplicates("id", keep="last").sort_values("id").index
    text = [name for name in table.columns if hdf5.CATALOG.get(name, "s") == "s"]
    return table.loc[kept].reset_index(drop=True).fillna(dict.fromkeys(text, "")), list(kept)


class Bank(Mapping[str, np.ndarray]):
    """A bank opened for reading: a mapping of video ids to their embeddings, read when asked for.

    Attributes:
        parts: the sealed parts that were read, or that the bank file links to.
        catalog: one row per video (see `pipeline.features.CATALOG`).
        failures: one row per video that could not be banked.
        config: what made the embeddings (`recipe`) and on what (`compute`).

    Raises:
        UserError: there is no such bank, it cannot be read, or its files were made differently.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._open_files: dict[Path, Any] = {}
        self._lock = threading.RLock()  # over what is open: HDF5 reads one thing at a time anyway
        self._read_again()

    def _read_again(self) -> None:
        """Read the bank as it is now, though others may be sealing and packing parts meanwhile."""
        for _ in range(20):
            try:
                self._read()
                return
            except FileNotFoundError as error:  # a part was packed away between being listed and being read: list again
                missing = error
                if not self.path.exists() and not sealed_parts(self.path):
                    raise UserError(f"There is no bank at {self.path}; `framebank extract` makes one.") from None
                time.sleep(0.05)
        raise UserError(
            f"{self.path} leads to parts that are not there ({missing.filename}); put {parts_folder(self.path).name} "
            "back beside it, or restore both from a copy."
        )

    def _read(self) -> None:
        """Overlay the bank file and its parts."""
        listed = sealed_parts(self.path)  # before main: a part that is packed from here on is in main, or missing
        main = _read_file(self.path) if self.path.exists() else None
        folder = parts_folder(self.path)
        void = set(main.absorbed) if main else set()
        linked = set(main.links) if main else set()
        for name in linked:
            if not (folder / name).exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        self.parts = sorted({part for part in listed if part.name not in void} | {folder / name for name in linked})
        contents = [(part, _read_file(part)) for part in self.parts if part.name not in linked]
        if main is not None:  # last: of equally old rows its own count, as they may have got newer labels
            contents.append((self.path, main))
        if not contents:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        first_path, first = contents[-1]
        for file, read in contents:
            if read.fingerprint != first.fingerprint:
                names = first_path.name, file.name
                what = "; ".join(differences(first.config["recipe"], read.config["recipe"], names))
                raise UserError(f"{file} and {first_path} were made differently: {what}. Move one elsewhere.")
        self.config, self.fingerprint, self.created = first.config, first.fingerprint, first.created
        self.files = list(dict.fromkeys([file for file, _ in contents] + self.parts))
        self.catalog, places = newest([read.catalog for _, read in contents], "banked")
        files = [folder / name for _, read in contents for name in read.links]  # only the last, main, has any
        files = [file for file, read in contents if not read.links for _ in range(len(read.catalog))] + files
        self._where: dict[str, Path] = {
            row: files[place] for row, place in zip(self.catalog["id"], places, strict=True)
        }
        failures, _ = newest([read.failures for _, read in contents], "when")
        banked = dict(zip(self.catalog["id"], self.catalog["banked"], strict=True))
        later = [row["when"] > banked.get(row["id"], "") for row in hdf5.records(failures)]
        self.failures = failures[np.array(later, dtype=bool)].reset_index(drop=True)

    def __repr__(self) -> str:
        return f"Bank({str(self.path)!r}, {len(self)} videos)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files that were opened."""
        while self._open_files:
            self._open_files.popitem()[1].close()

    def file_of(self, video_id: str) -> Any:
        """The HDF5 file that holds a video, open until many others were asked for. KeyError: there is no such video."""
        path = self._where[video_id]
        file = self._open_files.pop(path, None) or hdf5.open_file(path)
        self._open_files[path] = file
        if len(self._open_files) > _OPEN_FILES:
            self._open_files.pop(next(iter(self._open_files))).close()
        return file

    def in_reading_order(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of the catalog in the order of ids, or, where the bank is in more files than are kept open, file after
        file: going back and forth between them would open one for nearly every video."""
        rows = rows.sort_values("id")
        if len(self.files) <= _OPEN_FILES:
            return rows
        return rows.iloc[np.argsort([str(self._where[video_id]) for video_id in rows["id"]], kind="stable")]

    def path_of(self, video_id: str) -> Path:
        """The file that holds a video: the bank itself or a part."""
        return self._where[video_id]

    def _array(self, video_id: str, name: str, rows: slice | None = None) -> np.ndarray:
        """One array of a video, or some of its rows; several threads may read. When its part was packed away since the
        bank was opened, the bank is read again."""
        for last in (False, False, True):
            with self._lock:
                try:
                    dataset = self.file_of(video_id)[f"videos/{video_id}/{name}"]
                    return np.asarray(dataset if rows is None else dataset[hdf5.of_rows(dataset, rows)])
                except (OSError, KeyError):
                    if last or video_id not in self._where:
                        raise
                    self.close()
                    self._read_again()
        raise AssertionError  # the last turn returns or raises

    def __getitem__(self, video_id: str) -> np.ndarray:
        """Embeddings of one video, (T, D), (T, C, H, W) or with K views (K, T, D), float16 or float32."""
        return self._array(video_id, "features")

    def read(self, video_id: str, start: int, stop: int) -> np.ndarray:
        """Some rows of the embeddings of one video, of all views: (stop - start, D), (…, C, H, W) or (K, …, D)."""
        return self._array(video_id, "features", slice(start, stop))

    def __iter__(self) -> Iterator[str]:
        return iter(self.catalog["id"])

    def __len__(self) -> int:
        return len(self.catalog)

    def timestamps(self, video_id: str) -> np.ndarray:
        """(T,) float64 seconds at which the rows of one video are presented; NaN where the source has no clock."""
        return self._array(video_id, "timestamps")

    def frame_index(self, video_id: str) -> np.ndarray:
        """(T,) int64 numbers in the source of the frame of each row, of several the one in the middle."""
        return self._array(video_id, "frame_index")

    def frames(self, video_id: str) -> np.ndarray:
        """(T, F) int64 numbers in the source of all frames that each row is made of, the same one again where it is
        repeated."""
        if self._frames_per_row == 1:
            return self.frame_index(video_id)[:, None]
        return self._array(video_id, hdf5.WINDOW_FRAMES)

    @property
    def _frames_per_row(self) -> int:
        return window_in(self.config["recipe"]).frames

    def verify(self, on_video: Callable[[int], None] | None = None) -> list[tuple[str, str]]:
        """Read everything; `on_video` is called with the number of videos that were read before each.

        Returns:
            (id, what is wrong) pairs; an empty list means that the bank is sound.
        """
        problems = []
        frames, views = self._frames_per_row, self.config["recipe"].get("views", {}).get("count")
        for number, row in enumerate(hdf5.records(self.catalog)):
            if on_video is not None:
                on_video(number)
            try:
                file = self.file_of(row["id"])
            except OSError as error:
                problems.append((row["id"], f"its file cannot be opened: {error}"))
                continue
            found = check_video(file, row, frames=frames, views=views)
            problems += [(row["id"], problem) for problem in found]
        for file_path in self.files:
            with hdf5.open_file(file_path) as file:
                strangers = hdf5.stored_ids(file) - set(self._where)
            problems += [(video_id, "stored, but not in the catalog") for video_id in sorted(strangers)]
        return problems

    @property
    def only_failures(self) -> bool:
        """Whether all came to nothing so far, by a mistaken setting, say. A bank just begun has no failures either."""
        return not len(self) and len(self.failures) > 0

    @property
    def nbytes(self) -> int:
        """Bytes on disk: the bank file and everything in its parts folder."""
        return total_size([self.path, *sealed_parts(self.path)])


def total_size(files: Iterable[Path]) -> int:
    """Bytes of files together; those that are gone by now count nothing."""
    total = 0
    for file in files:
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _read_file(file: Path) -> hdf5.Contents:
    """What one file of a bank says of itself. FileNotFoundError, or UserError when it is not a readable bank file."""
    if not file.is_file() and file.exists():
        raise UserError(f"{file} is no file; give the path of a bank.")
    try:
        return hdf5.read_contents(file)
    except FileNotFoundError:
        raise
    except ValueError as error:
        raise UserError(f"{error}; give another path.") from error
    except (OSError, KeyError, TypeError) as error:
        if not file.exists():  # packed away while it was opened
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file)) from error
        detail = str(error).split("(")[-1].rstrip(")")
        raise UserError(
            f"{file} cannot be read as a framebank bank ({detail}); move it away or restore it from a copy."
        ) from error
