"""What is named on a command line -> one table of videos: folders, files, patterns, `-` for a list on standard input.

`-` reads a path per line (or, where there is a NUL, between NULs, as `find -print0` writes them). A word with `*`, `?`
or `[` that is no path itself is a pattern, in which `**` stands for any number of folders; shells that expand patterns
themselves come to the same. Several paths make one set of videos: ids and labels are those below their common folder,
and of a pattern its part before the first wildcard counts as the folder. Neither the order nor a path that is named
twice changes anything. To predict they need not be one set (`find_all`).
"""

import glob
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError
from pipeline.ids import natural_key, readable
from pipeline.videos import Listed, absolute_path, find_videos

STDIN = Path("-")


def named(words: Path | Sequence[Path]) -> Path | Listed:
    """What words name: the path itself where it is a single one, else all of them, looked up.

    Raises:
        UserError: a path that is not there, a pattern that fits nothing, an empty list.
    """
    words = [words] if isinstance(words, Path) else list(words)
    if len(words) == 1 and words[0] != STDIN and not _is_pattern(words[0]):
        return words[0]
    paths: list[Path] = []
    matched: list[Path] = []
    folders: list[Path] = []
    for word in words:
        if word == STDIN:
            listed = _from_stdin()
            paths += listed
            folders += [_folder(path) for path in listed]
        elif _is_pattern(word):
            matched += _matches(word)
            folders.append(_before_wildcards(word))
        else:
            _look(word, "")
            paths.append(word)
            folders.append(_folder(word))
    root = Path(os.path.commonpath([absolute_path(folder) for folder in folders]))
    return Listed(tuple(paths), root, tuple(matched))


def find_all(words: Iterable[Path], *, all_files: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """The videos of all that is named, manifests among it. A file that is named twice is in the table once.

    A file that is named by itself has its own name as id, wherever it lies.

    Args:
        words: folders, manifests, files, patterns, `-`.
        all_files: as in `find_videos`.

    Returns:
        the table of `find_videos`, its ids all different, and lines worth telling.

    Raises:
        UserError: as `find_videos` and `named`, and where two spans of files have one id.
    """
    words = list(words)
    several = [word for word in words if word == STDIN or _is_pattern(word)]
    parts: list[Path | Listed] = [word for word in words if word not in several]
    parts += [named(several)] if several else []
    tables: list[pd.DataFrame] = []
    notes: list[str] = []
    known: dict[str, str] = {}  # ids that are taken, and by which file
    spans: dict[str, tuple[str, str, str]] = {}
    for part in parts:
        found = find_videos(part, all_files=all_files, known=known)
        columns = (found.table[column] for column in ("id", "path", "start", "end"))
        for video_id, path, start, end in zip(*columns, strict=True):
            span = (path, str(start), str(end))
            if spans.setdefault(video_id, span) != span:
                raise UserError(f"{video_id!r} is the id of two videos, one of them {path}; predict them in turn.")
        notes += found.notes
        tables.append(found.table[~found.table["id"].isin(known)])
        known |= dict(zip(found.table["id"], found.table["path"], strict=True))
    return pd.concat(tables, ignore_index=True), notes


def _is_pattern(word: Path) -> bool:
    return glob.has_magic(str(word)) and not os.path.lexists(word)


def _matches(pattern: Path) -> list[Path]:
    found = sorted(glob.glob(str(pattern), recursive=True), key=natural_key)  # noqa: PTH207 - Path.glob wants a root
    if not found:
        raise UserError(f"Nothing fits the pattern {readable(str(pattern))}; ** stands for any number of folders.")
    return [Path(path) for path in found]


def _before_wildcards(pattern: Path) -> Path:
    """The folder that all matches of a pattern lie in, whichever there are."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _folder(path: Path) -> Path:
    """The folder that the videos of a path are in: itself, or the one around a file."""
    return path if path.is_dir() else path.parent


def _from_stdin() -> list[Path]:
    content = b"" if sys.stdin is None else sys.stdin.buffer.read()  # None where the caller closed it
    lines = content.split(b"\0" if b"\0" in content else b"\n")
    paths = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            path = Path(os.fsdecode(line.removesuffix(b"\r")))
            _look(path, f"standard input, line {number}: ")
            paths.append(path)
    if not paths:
        raise UserError("There is nothing on standard input; `-` reads a path from each line of it.")
    return paths


def _look(path: Path, where: str) -> None:
    try:
        path.stat()
    except OSError as error:
        raise UserError(f"{where}{readable(str(path))}: {error.strerror}.") from error
