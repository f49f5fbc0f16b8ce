"""The published train/test splits of UCF101 and HMDB51, read from their own list files.

UCF101: `trainlist01.txt` and `testlist01.txt` hold a line `Class/video.avi` per video, in the training list followed
by the class number; `classInd.txt` only repeats the class names and is passed over. HMDB51: `<class>_test_split1.txt`
holds a line `video.avi N`, N being 1 for training, 2 for testing and 0 for neither.

An entry is matched by file name. Where the data has a folder of the entry's class, only videos in such a folder count;
where it has none, the file name alone decides, if it is unique. A suffix may differ (re-encoded files, folders of
frames), but a name with the same suffix goes first. Case does not matter.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import pandas as pd

from pipeline.errors import UserError
from pipeline.ids import readable, split_suffix

_UCF101 = re.compile(r"(train|test)list0*([0-9]+)\.txt", re.IGNORECASE)
_HMDB51 = re.compile(r"(.+)_test_split0*([0-9]+)\.txt", re.IGNORECASE)
_CLASS_NUMBERS = "classind.txt"
_HMDB51_USES = {"0": "", "1": "train", "2": "test"}


class Entry(NamedTuple):
    """One line of a list: video file `name` of class folder `folder` ("" not given), used as "train", "test" or ""."""

    folder: str
    name: str
    use: str


def split_list_files(paths: Iterable[Path]) -> list[Path]:
    """The list files among paths that are list files or folders of them.

    Raises:
        UserError: a path is neither.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if _is_list(file))
        else:
            found = [path] if path.is_file() and _is_list(path) else []
        if not found:
            raise UserError(
                f"{readable(str(path))} is no split list and no folder of them. Known are trainlist01.txt and "
                "testlist01.txt (UCF101), and NAME_test_split1.txt (HMDB51)."
            )
        files += found
    return files


def _is_list(path: Path) -> bool:
    name = path.name
    return bool(_UCF101.fullmatch(name) or _HMDB51.fullmatch(name)) or name.lower() == _CLASS_NUMBERS


def read_split_lists(files: Iterable[Path]) -> dict[int, list[Entry]]:
    """Split number -> the entries of its lists.

    Raises:
        UserError: a file is not text, or a line is not as its kind of list has it.
    """
    splits: dict[int, list[Entry]] = defaultdict(list)
    for file in files:
        try:
            lines = file.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{readable(str(file))} could not be read as a split list: {error}.") from error
        ucf101, hmdb51 = _UCF101.fullmatch(file.name), _HMDB51.fullmatch(file.name)
        for number, line in enumerate(map(str.strip, lines), start=1):
            if line and ucf101:
                splits[int(ucf101.group(2))].append(_ucf101_entry(line, ucf101.group(1).lower()))
            elif line and hmdb51:
                name, _, use = line.replace("\t", " ").rpartition(" ")
                if not name or use not in _HMDB51_USES:
                    raise UserError(f"{readable(str(file))}, line {number}: {line!r} is not a file name and 0, 1 or 2.")
                splits[int(hmdb51.group(2))].append(Entry(hmdb51.group(1), name.strip(), _HMDB51_USES[use]))
    return splits


def _ucf101_entry(line: str, use: str) -> Entry:
    numbered = re.fullmatch(r"(.+?)\s+[0-9]+", line)
    folder, _, name = (numbered.group(1) if numbered else line).replace("\\", "/").rpartition("/")
    return Entry(PurePath(folder).name, name, use)


def add_splits(table: pd.DataFrame, files: Sequence[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Add a column split_N ("train", "test" or "") per split of the lists; `split` becomes the first of them.

    Args:
        table: the table of `pipeline.videos.find_videos`.
        files: what `split_list_files` gave.

    Returns:
        the new table, and lines worth telling the user: entries that match no video, videos that are in no list.

    Raises:
        UserError: a faulty list, splits from elsewhere in the table, no entry that matches, or a video in both halves.
    """
    splits = dict(sorted(read_split_lists(files).items()))
    if not splits:
        raise UserError("The split lists hold no entry. Give the lists of training and test videos.")
    columns = [f"split_{number}" for number in splits]
    if table["split"].any() or not table.columns.intersection(columns).empty:
        raise UserError("The manifest has splits and split lists were given too. Leave out one of them.")
    index, folders = _index(table["path"])
    added: dict[str, dict[str, str]] = {column: {} for column in columns}
    unmatched = []
    for column, entries in zip(columns, splits.values(), strict=True):
        uses = added[column]
        for entry in entries:
            path = _match(entry, index, folders)
            if path is None:
                unmatched.append(f"{entry.folder}/{entry.name}".lstrip("/"))
            elif uses.setdefault(path, entry.use) != entry.use:
                raise UserError(f"{column}: {readable(path)} is listed for two different uses. Mend the lists.")
    matched = set().union(*added.values())
    total = sum(map(len, splits.values()))
    if not matched:
        raise UserError(f"None of the {total} split-list entries matches a video, e.g. {unmatched[0]}. Other lists?")
    notes = []
    if unmatched:
        notes.append(f"split-list entries that match no video: {len(unmatched)} of {total}, e.g. {unmatched[0]}")
    unlisted = [path for path in table["path"] if path not in matched]
    if unlisted:
        notes.append(f"videos in no split list: {len(unlisted)}, e.g. {readable(unlisted[0])}")
    values = {
        column: pd.Series([uses.get(path, "") for path in table["path"]], index=table.index, dtype="object")
        for column, uses in added.items()
    }
    return table.assign(split=values[columns[0]], **values), notes


_Index = dict[tuple[bool, str, str], set[str]]  # (with suffix, class folder or "", file name) -> the paths that have it


def _index(paths: Iterable[str]) -> tuple[_Index, set[str]]:
    """The paths by what an entry can call them, and the names of the folders that they lie in."""
    index: _Index = defaultdict(set)
    folders = set()
    for path in paths:
        name, folder = _folded(PurePath(path).name), _folded(PurePath(path).parent.name)
        folders.add(folder)
        for where in (folder, ""):
            index[True, where, name].add(path)
            index[False, where, split_suffix(name)[0]].add(path)
    return index, folders


def _match(entry: Entry, index: _Index, folders: set[str]) -> str | None:
    """The path of the one video that an entry means, None if there is none or more than one."""
    name, folder = _folded(entry.name), _folded(entry.folder)
    folder = folder if folder in folders else ""
    for key in ((True, folder, name), (False, folder, split_suffix(name)[0])):
        found = index.get(key, ())
        if len(found) == 1:
            return next(iter(found))
    return None


def _folded(name: str) -> str:
    return readable(name).casefold()
