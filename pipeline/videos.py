"""What there is to bank: a folder, a manifest, one file or a list of them -> a table with one row per video.

Folders. Every file with a suffix of `VIDEO_SUFFIXES` is a video, in any case of letters. A folder is one sequence of
frame images when it directly holds images, no video, and no subfolder that holds either. Everything else is passed
over and counted by suffix, images beside videos among it; `all_files` takes every file that is not an image. Names
that start with a dot are hidden and never taken (macOS leaves `._x.mp4` beside `x.mp4`). Links to folders are followed,
each folder is read once, at its own place rather than where a link leads to it.

Labels. A video's label is the name of the first folder below the root that holds it, "" where there is none. A rule
for labels or groups is a level (1 the first folder below the root, -1 the folder right above the video), `none`, or a
regular expression that is searched for in the path below the root, suffix included: its first group, or the whole
match without groups. UCF101's recordings are `_(g\\d+)_`. A rule wins over a manifest's column. Classes are ordered
naturally: `2_walk` before `10_run`.

Manifests. A CSV file (`,`, `;` or tab; UTF-8) with a header and a column `path`, relative to the manifest; any of
`id`, `label`, `split`, `group`, `start` and `end` (seconds from the video's first frame), `fps` (the frame rate of a
folder of images), `crop_x`, `crop_y`, `crop_w`, `crop_h` (pixels); further columns are kept as text. A folder that
holds a `manifest.csv` is read by it alone. A file that is missing stays in the table: its failure belongs in the
ledger.
"""

import csv
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError
from pipeline.ids import Named, derive_ids, escape, natural_key, readable, split_suffix
from pipeline.split_lists import add_splits, split_list_files

_VIDEO_SUFFIXES = """
.264 .265 .3g2 .3gp .amv .asf .avi .dav .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m1v .m2ts .m2v .m4v .mjpeg
.mjpg .mkv .mov .mp4 .mpe .mpeg .mpg .mts .mxf .nut .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .wtv .y4m
"""
VIDEO_SUFFIXES = frozenset(_VIDEO_SUFFIXES.split())
Row = dict[str, Any]  # a video on its way into the table; `below`: its path below the root, `line`: of the manifest
COLUMNS = ("id", "path", "kind", "label", "split", "group", "start", "end", "crop", "fps")
_BANK_COLUMNS = """
kind crop source size mtime digest width height rotation codec duration start_time frames_declared frames_decoded
frames_corrupt times_mended rows partial banked failed reason when complete part problem
"""
RESERVED_COLUMNS = frozenset(_BANK_COLUMNS.split())  # of the catalog and the ledger; a manifest cannot have them
_CROP_COLUMNS = ("crop_x", "crop_y", "crop_w", "crop_h")
_MANIFEST_COLUMNS = ("path", "id", "label", "split", "group", "start", "end", "fps", *_CROP_COLUMNS)
_MANIFEST_NAME = "manifest.csv"
_MANIFEST_SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class Listed:
    """Videos, folders of images and other folders that were named one by one.

    Attributes:
        paths: one that is named twice, or lies in a folder that is named too, is there once.
        root: the folder that ids and labels are below.
        matched: by a pattern, in the same way; files of other suffixes are passed over.
    """

    paths: tuple[Path, ...]
    root: Path
    matched: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Found:
    """The videos of a data set.

    Attributes:
        table: one row per video in natural order of ids. Columns of `COLUMNS`, then a manifest's further columns,
            then split_1, split_2, … where split lists were given. id, path (absolute, as `os.fsdecode` writes it),
            kind ("video" or "images"), label, split, group ("" unknown), crop ("x,y,w,h" or "") and further columns
            are str in object columns, which can hold file names that are not UTF-8; start, end (seconds) and fps
            are float64, NaN where not given.
        origin: "folder", "manifest", "file", "frame folder" or "list".
        ignored: suffix of files passed over -> how many; "(none)" without suffix, "hidden", "(special)" not a file.
        notes: lines worth telling the user.
    """

    table: pd.DataFrame
    origin: str
    ignored: dict[str, int]
    notes: list[str]


def find_videos(
    data: Path | Listed,
    *,
    suffixes: frozenset[str] = VIDEO_SUFFIXES,
    all_files: bool = False,
    label_from: str | None = None,
    group_from: str | None = None,
    split_lists: Sequence[Path] = (),
    known: Mapping[str, str] | None = None,
    exclude: Sequence[Path] = (),
) -> Found:
    """Find the videos of a folder, a manifest, one file, or a list.

    Args:
        data: the folder, the manifest (.csv, .tsv), the video, or several folders and videos.
        suffixes: of the files that count as videos, in lower case.
        all_files: take files of any suffix.
        label_from, group_from: rules as the module's docstring states them.
        split_lists: UCF101 or HMDB51 split lists, or folders of them.
        known: ids that the bank has given -> absolute paths; such a file keeps its id and new ones avoid it.
        exclude: paths to leave out.

    Raises:
        UserError: nothing there, nothing found, a faulty manifest, rule or split list.
    """
    lists = split_list_files(split_lists)
    ignored: Counter[str] = Counter()
    notes: list[str] = []
    extra: list[str] = []
    left_out, taken = [*exclude, *lists], frozenset() if all_files else suffixes  # none: of any suffix
    if isinstance(data, Listed):
        origin, root = "list", data.root
        rows = _listed_rows(data, left_out, taken, ignored, notes)
    elif is_manifest(data):
        origin, where = "manifest", absolute_path(data)
        manifest = where / _MANIFEST_NAME if where.is_dir() else where
        root, (rows, extra) = manifest.parent, _manifest_rows(manifest)
        if where.is_dir():
            notes.append(f"{_MANIFEST_NAME} was read (rows: {len(rows)}); videos it does not list are left out")
    elif data.is_dir():
        origin, root = "folder", absolute_path(data)
        rows = _folder_rows(root, left_out, taken, ignored, notes)
    else:
        origin, root = "file", absolute_path(data).parent
        rows = [new_row(absolute_path(data), "video")]
    if [row["path"] for row in rows] == [str(root)]:
        origin, root = "frame folder", root.parent
    if not rows:
        raise UserError(_nothing_found(root, suffixes, all_files, ignored, notes))
    for row in rows:
        row["below"] = os.path.relpath(row["path"], root).replace(os.sep, "/")
    by_folder = "1" if origin in ("folder", "list") and label_from is None else label_from
    label_rows(rows, "label", by_folder, required=label_from is not None, notes=notes)
    label_rows(rows, "group", group_from, required=True, notes=notes)
    if not rows[0]["id"]:
        _give_ids(rows, known or {})
    table = as_table(sorted(rows, key=lambda row: natural_key(row["id"])), extra)
    if lists:
        table, lines = add_splits(table, lists)
        notes += lines
    return Found(table, origin, dict(sorted(ignored.items())), notes)


def is_manifest(data: Path) -> bool:
    """Whether a path is a manifest, or a folder that has one. UserError: there is nothing."""
    try:
        is_folder = stat.S_ISDIR(data.stat().st_mode)
    except OSError as error:
        advice = "Give a folder of videos, a CSV manifest or one video."
        raise UserError(f"{readable(str(data))}: {error.strerror}. {advice}") from error
    manifest = data / _MANIFEST_NAME if is_folder else data
    return manifest.suffix.lower() in _MANIFEST_SUFFIXES and manifest.is_file()


def label_order(labels: Collection[str]) -> list[str]:
    """The classes in their order: each label once, "" left out, numbers counting as numbers (`2_walk`, `10_run`)."""
    return sorted({label for label in labels if label}, key=natural_key)


def absolute_path(path: Path) -> Path:
    """The absolute path, links kept, `..` taken out unless a link before it makes that another file."""
    path = path.absolute()
    if ".." not in path.parts:
        return path
    shorter = Path(os.path.normpath(path))
    try:
        target = path.stat()
    except OSError:
        return shorter
    try:
        return shorter if os.path.samestat(target, shorter.stat()) else path
    except OSError:
        return path


def new_row(path: Path, kind: str) -> Row:
    """A video of which nothing else is known."""
    unknown = dict.fromkeys(("id", "label", "split", "group", "crop"), "")
    return {"path": str(path), "kind": kind, **unknown, "start": nan, "end": nan, "fps": nan}


def as_table(rows: Sequence[Row], extra: Sequence[str]) -> pd.DataFrame:
    """Rows as the table of `Found`."""
    numbers = ("start", "end", "fps")
    columns = {
        name: pd.Series([row[name] for row in rows], dtype="float64" if name in numbers else "object")
        for name in (*COLUMNS, *extra)
    }
    return pd.DataFrame(columns)


def _nothing_found(
    data: Path, suffixes: frozenset[str], all_files: bool, ignored: Mapping[str, int], notes: Sequence[str]
) -> str:
    passed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
    message = f"{readable(str(data))} holds no {'video' if suffixes is VIDEO_SUFFIXES else 'file of features'}"
    message += f" (passed over: {passed})" if passed else ""
    message += "".join(f"; {note}" for note in notes)
    known = f"Known suffixes: {' '.join(sorted(suffixes))}"
    known += "; --all-files tries every file." if suffixes is VIDEO_SUFFIXES else "."
    return f"{message}. {'Give another folder.' if all_files else known}"


# Folders


def _folder_rows(
    root: Path, exclude: Sequence[Path], taken: frozenset[str], ignored: Counter[str], notes: list[str]
) -> list[Row]:
    """The videos, of the suffixes that are taken (none: of any), and the frame-image folders below a folder."""
    from pipeline.image_folders import IMAGE_SUFFIXES

    rows: list[Row] = []
    image_folders: list[tuple[Path, list[str]]] = []
    with_media: set[Path] = set()  # folders with images or videos somewhere below them
    for folder, names in _walk(root, exclude, ignored, notes).items():
        suffixes = [split_suffix(name)[1].lower() for name in names]
        holds_video = not (taken or VIDEO_SUFFIXES).isdisjoint(suffixes)
        images = [suffix for suffix in suffixes if suffix in IMAGE_SUFFIXES]
        if images and not holds_video:
            image_folders.append((folder, images))
        else:
            ignored.update(images)
        if images or holds_video:
            with_media.update(folder.parents)
        for name, suffix in zip(names, suffixes, strict=True):
            if suffix in taken or (not taken and suffix not in IMAGE_SUFFIXES):
                rows.append(new_row(folder / name, "video"))
            elif suffix not in IMAGE_SUFFIXES:
                ignored[suffix or "(none)"] += 1
    for folder, images in image_folders:
        if folder in with_media:
            ignored.update(images)
        else:
            rows.append(new_row(folder, "images"))
    return rows


def _listed_rows(
    listed: Listed, exclude: Sequence[Path], suffixes: frozenset[str], ignored: Counter[str], notes: list[str]
) -> list[Row]:
    """The videos of a list, each once; UserError where there is a manifest in it."""
    rows: dict[str, Row] = {}
    left_out = {path.resolve() for path in exclude}
    for place, path in enumerate(map(absolute_path, (*listed.paths, *listed.matched))):
        suffix, is_folder, by_name = path.suffix.lower(), path.is_dir(), place < len(listed.paths)
        if (by_name or is_folder) and is_manifest(path):
            raise UserError(f"{readable(str(path))}: a manifest says by itself what there is; give it alone.")
        if is_folder:
            found = _folder_rows(path, exclude, suffixes, ignored, notes)
        elif not by_name and suffixes and suffix not in suffixes:
            ignored[suffix or "(none)"] += 1
            continue
        else:
            found = [] if path.resolve() in left_out else [new_row(path, "video")]
        rows |= {row["path"]: row for row in found}
    return list(rows.values())


def _walk(root: Path, exclude: Sequence[Path], ignored: Counter[str], notes: list[str]) -> dict[Path, list[str]]:
    """Each folder at and below a root -> the names of the files in it that may be taken."""
    excluded: dict[str, list[Path]] = {}  # by name, so that only namesakes cost a look at the disk
    for path in exclude:
        excluded.setdefault(path.name, []).append(path.resolve())
    files: dict[Path, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # links last: a folder is read at its own place
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError as error:
            notes.append(f"{readable(str(folder))} could not be read: {error.strerror}")
            continue
        files[folder] = []
        for entry in entries:
            path = folder / entry.name
            if entry.name in excluded and path.resolve() in excluded[entry.name]:
                continue
            if entry.name.startswith("."):
                ignored["hidden"] += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_file(follow_symlinks=False) or _leads_to(path, stat.S_ISREG):
                files[folder].append(entry.name)
            elif _leads_to(path, stat.S_ISDIR):
                links.append(path)
            else:
                ignored["(special)"] += 1
    return files


def _leads_to(path: Path, is_sort: Callable[[int], bool]) -> bool:
    """Whether there is something of that sort; what is not there counts as a file, which will fail."""
    try:
        return is_sort(path.stat().st_mode)
    except OSError:
        return is_sort(stat.S_IFREG)


# Labels and groups


def label_rows(rows: Sequence[Row], column: str, rule: str | None, *, required: bool, notes: list[str]) -> None:
    """Fill a column by a rule; without a rule it stays as the manifest has it.

    Raises:
        UserError: the rule is none, or it is `required` and gives nothing for any video.
    """
    if rule is None:
        return
    if any(row[column] for row in rows):
        notes.append(f"the manifest's column {column} gives way to --{column}-from {rule}")
    for row in rows:
        row[column] = _by_rule(rule, readable(row["below"]), f"--{column}-from")
    if required and rule != "none" and not any(row[column] for row in rows):
        raise UserError(
            f"--{column}-from {rule} gives nothing for any of {len(rows)} videos, e.g. {readable(rows[0]['below'])}. "
            "Give a level (1 is the first folder below the root, -1 the last), none, or a regular expression."
        )


def _by_rule(rule: str, below: str, option: str) -> str:
    if rule == "none":
        return ""
    if re.fullmatch("[+-]?[0-9]+", rule):
        level, folders = int(rule), below.split("/")[:-1]
        if level == 0:
            raise UserError(
                f"{option} 0 is no level: 1 is the first folder below the root, -1 the one above the video."
            )
        if abs(level) > len(folders):
            return ""
        return folders[level - 1 if level > 0 else level]
    try:
        found = re.search(rule, below)
    except re.error as error:
        raise UserError(f"{option} {rule} is not a regular expression: {error}.") from error
    if found is None:
        return ""
    return (found.group(1) or "") if found.re.groups else found.group()


# Manifests


def _manifest_rows(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a manifest, each with its `line`, and the names of its further columns."""
    cells = _manifest_cells(path)
    columns = _manifest_columns(path, next(cells)[1])
    extra = [name for name in columns if name and name not in _MANIFEST_COLUMNS]
    rows = []
    for line, values in cells:
        at = f"{readable(path.name)}, line {line}"
        if len(values) < len(columns) or any(values[len(columns) :]):
            raise UserError(
                f"{at}: {len(values)} cells under a header of {len(columns)}. Quote cells that hold a comma."
            )
        rows.append(_manifest_row(path.parent, dict(zip(columns, values, strict=False)), extra, at) | {"line": line})
    if not rows:
        raise UserError(f"{readable(str(path))} lists no video. Give it a row per video below the header.")
    first: dict[str, int] = {}
    for row in rows if "id" in columns else ():
        if first.setdefault(row["id"], row["line"]) != row["line"]:
            lines = f"lines {first[row['id']]} and {row['line']}"
            raise UserError(f"{readable(path.name)}, {lines}: the id {row['id']!r} is there twice. Make ids unique.")
    return rows, extra


def _manifest_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of the rows that are not blank, the header first."""
    name = readable(str(path))
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"{name} could not be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text (byte {error.start}). Save it as CSV in UTF-8.") from error
    header = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    empty = True
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                empty = False
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}: {error}. Is every quote closed?") from error
    if empty:
        raise UserError(f"{name} is empty. Give it a header with a column path, and a row per video.")


def _manifest_columns(path: Path, header: Sequence[str]) -> list[str]:
    """The columns of a header, framebank's own ones in lower case; cells without a name at the end are dropped."""
    name = readable(str(path))
    columns = [cell.strip() for cell in header]
    while columns and not columns[-1]:
        columns.pop()
    columns = [column.lower() if column.lower() in _MANIFEST_COLUMNS else column for column in columns]
    if "path" not in columns:
        raise UserError(
            f"{name} has no column path (its columns: {', '.join(columns)}). Name the column of files path."
        )
    for column, count in Counter(columns).items():
        if not column or count > 1:
            raise UserError(f"{name} has {'a column without a name' if not column else f'two columns {column}'}.")
        if "/" in column or column in (".", "..") or readable(column) != column:
            raise UserError(f"{name}: {readable(column)!r} cannot name a column of the bank. Leave out / and the like.")
    taken = sorted(RESERVED_COLUMNS.intersection(columns))
    if taken:
        raise UserError(f"{name}: framebank fills these columns itself: {', '.join(taken)}. Rename or delete them.")
    return columns


def _manifest_row(folder: Path, cells: Mapping[str, str], extra: Sequence[str], at: str) -> Row:
    if not cells["path"].strip() or "\0" in cells["path"]:
        raise UserError(f"{at}: {cells['path']!r} is no path. Fill it in, or delete the row.")
    path = absolute_path(folder / cells["path"])
    row = new_row(path, "images" if _leads_to(path, stat.S_ISDIR) else "video")
    for column in ("label", "split", "group"):
        row[column] = readable(cells.get(column, "").strip())
    if "id" in cells:
        if "" in cells["id"].strip().split("/"):
            raise UserError(
                f"{at}: the id {cells['id']!r} is empty or has an empty part between slashes. Give another."
            )
        row["id"] = escape(cells["id"].strip(), given=True)
    for column in ("start", "end", "fps"):
        row[column] = _number(cells.get(column, ""), column, at)
    if row["start"] < 0 or row["end"] <= (0 if isnan(row["start"]) else row["start"]):
        raise UserError(
            f"{at}: start {cells.get('start', '')!r}, end {cells.get('end', '')!r}; it takes 0 ≤ start < end."
        )
    if row["fps"] <= 0:
        raise UserError(f"{at}: fps is {cells['fps']}, and must be above 0.")
    row["crop"] = _crop(cells, at)
    return row | {column: cells[column] for column in extra}


def _number(text: str, column: str, at: str) -> float:
    """A number, NaN for an empty cell."""
    if not text.strip():
        return nan
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not isfinite(number):
        raise UserError(f"{at}: {column} is {text!r}, not a number. Write it like 2.5, or leave it empty.")
    return number


def _crop(cells: Mapping[str, str], at: str) -> str:
    """The four crop columns as "x,y,w,h", "" where all are empty."""
    values = [_number(cells.get(column, ""), column, at) for column in _CROP_COLUMNS]
    if all(isnan(value) for value in values):
        return ""
    x, y, width, height = values
    if not (all(value.is_integer() for value in values) and min(x, y) >= 0 and min(width, height) > 0):
        raise UserError(f"{at}: crop_x, crop_y, crop_w, crop_h must be whole pixels, x and y from 0, w and h from 1.")
    return ",".join(str(int(value)) for value in values)


def _give_ids(rows: Sequence[Row], known: Mapping[str, str]) -> None:
    """Derive the ids of rows that come without.

    Raises:
        UserError: two rows of a manifest take the same span of the same file, so nothing tells them apart.
    """
    first: dict[tuple[str, float, float], Row] = {}
    videos = []
    for row in rows:
        span = (row["path"], 0.0 if isnan(row["start"]) else row["start"], inf if isnan(row["end"]) else row["end"])
        if first.setdefault(span, row) is not row:
            lines = f"lines {first[span]['line']} and {row['line']}"
            raise UserError(f"{lines} take the same span of {readable(row['below'])}. Add a column id, or delete one.")
        stem, suffix = split_suffix(row["below"]) if row["kind"] == "video" else (row["below"], "")
        videos.append(Named(stem, suffix, row["path"], row["start"], row["end"]))
    for row, video_id in zip(rows, derive_ids(videos, known), strict=True):
        row["id"] = video_id
