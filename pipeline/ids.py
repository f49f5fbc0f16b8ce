"""What a video is called: its path below the data root without the suffix, made unique and safe by stated rules.

An id is text of one or more segments joined by `/` (`fight/fi001`); in the bank it is a path of nested HDF5 groups.

Safe. Text is put in Unicode form NFC. These are percent-encoded, as the upper-case hex of their UTF-8 bytes:

* control characters (NUL to US, DEL, C1) and bytes of a file name that are not UTF-8;
* the segments `.` and `..`, as `%2E` and `%2E%2E`;
* a `%` that two hex digits follow, as `%25`, so that a file really named `%2E` is told apart;
* the first letter of a segment that is named like something the bank keeps inside a video (`RESERVED_SEGMENTS`):
  `a/features` becomes `a/%66eatures`.

So no id is empty, starts with `/`, holds an empty segment or leads out of its folder.

Unique. Where names meet, in this order:

* file names that differ in Unicode normalisation alone: the one in NFC has the plain id, every other one has its
  non-ASCII characters percent-encoded;
* files that differ by suffix alone keep their suffixes (`a.mp4`, `a.avi`), and so does any file whose id would be
  one that another file has;
* a span of a file, as a manifest may take it, has `@start-end` in seconds appended (`a@0-2.5`, `a@10-end`). Each
  span has it, not only the second of one file, so that a span added later renames nothing;
* what still meets gets `~2`, `~3`, … in the order of paths.

Stable. A file that the bank knows keeps the id it has there, and new files avoid the ids that the bank has given.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any, NamedTuple

import numpy as np

# What schema 1 keeps in the group of a video: its datasets and the names of its axes.
_DATASETS = ("features", "timestamps", "frame_index", "window_frames")
RESERVED_SEGMENTS = frozenset((*_DATASETS, "feature", "channel", "height", "width", "view", "window_frame"))

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NON_ASCII = re.compile("[^\x00-\x7f]")
_LOOKS_ENCODED = re.compile("%(?=[0-9A-Fa-f]{2})")
_SPAN = re.compile(r"@[0-9.]+-([0-9.]+|end)$")
_COUNT = re.compile(r"~[0-9]+$")


class Named(NamedTuple):
    """What a derived id is made from.

    Attributes:
        stem: path below the data root, `/` between its parts, without the suffix.
        suffix: the suffix with its dot; "" for a folder of images.
        path: the absolute path, by which the bank knows it.
        start, end: the span in seconds; NaN where the video is not cut.
    """

    stem: str
    suffix: str
    path: str
    start: float = np.nan
    end: float = np.nan


def natural_key(text: str) -> tuple[tuple[Any, ...], str]:
    """Sort key: runs of digits count as numbers (`a2` before `a10`), case decides last, folders stay together."""
    parts = re.split("([0-9]+)", text.casefold().replace("/", "\0"))  # every second one is a run of digits
    return tuple(_as_number(part) if index % 2 else part for index, part in enumerate(parts)), text


def _as_number(digits: str) -> tuple[int, str]:
    """Orders as int() does, without its limit of 4300 digits."""
    digits = digits.lstrip("0")
    return len(digits), digits


def readable(text: str) -> str:
    """Text from a file name for people and for UTF-8 files: NFC, control characters and undecodable bytes as `%XX`."""
    return _UNSAFE.sub(_percent, unicodedata.normalize("NFC", text))


def split_suffix(path: str) -> tuple[str, str]:
    """`a/b.c.mp4` -> (`a/b.c`, `.mp4`). A name's leading dots start no suffix."""
    stem, dot, suffix = path.rpartition(".")
    if "/" in suffix or not stem.rpartition("/")[2].strip("."):
        return path, ""
    return stem, dot + suffix


def escape(path: str, *, as_is: bool = False, given: bool = False) -> str:
    """Make a relative path a safe id.

    Args:
        path: segments joined by `/`, none empty.
        as_is: keep its Unicode form, with everything beyond ASCII percent-encoded.
        given: it is an id that somebody chose or copied from a bank, so a `%` in it is left alone.
    """
    return "/".join(_escape_segment(segment, as_is, given) for segment in path.split("/"))


def _escape_segment(segment: str, as_is: bool, given: bool) -> str:
    if segment in (".", ".."):
        return "%2E" * len(segment)
    if not given:
        segment = _LOOKS_ENCODED.sub("%25", segment)
    segment = _NON_ASCII.sub(_percent, segment) if as_is else segment
    segment = readable(segment)
    if segment in RESERVED_SEGMENTS:
        return _percent_bytes(segment[0].encode()) + segment[1:]
    return segment


def _percent(found: re.Match[str]) -> str:
    character = found.group()
    undecodable = "\udc80" <= character <= "\udcff"  # how os.fsdecode writes a byte that is not UTF-8
    return _percent_bytes(character.encode("utf-8", "surrogateescape" if undecodable else "surrogatepass"))


def _percent_bytes(raw: bytes) -> str:
    return "".join(f"%{byte:02X}" for byte in raw)


def span_text(start: float, end: float) -> str:
    """`@start-end` in the shortest decimals that mean the same seconds; "" for a whole video."""
    if isnan(end) and not start > 0:
        return ""
    first = "0" if isnan(start) else np.format_float_positional(start, trim="-")
    last = "end" if isnan(end) else np.format_float_positional(end, trim="-")
    return f"@{first}-{last}"


def derive_ids(videos: Sequence[Named], known: Mapping[str, str]) -> list[str]:
    """One id per video, all different, whatever the order in which the videos are listed.

    Args:
        videos: no two with the same path and span.
        known: ids that the bank has given -> the absolute path of each. A video keeps such an id where it is the
            one that its name gives, or the only one that the bank has for that path and span.
    """
    spans = [span_text(video.start, video.end) for video in videos]
    spellings = _spellings(videos)
    ids = _kept_ids(videos, spans, spellings, known)
    names = _tell_apart(videos, spans, ids, spellings, known)
    taken = set(known) | set(ids)
    for index in sorted(range(len(videos)), key=lambda index: (videos[index].path, spans[index])):
        if not ids[index]:
            name = names[_file(videos[index])] + spans[index]
            ids[index], count = name, 2
            while ids[index] in taken:
                ids[index], count = f"{name}~{count}", count + 1
            taken.add(ids[index])
    return ids


_File = tuple[str, str]  # stem and suffix
_Spellings = dict[_File, tuple[str, str]]  # the safe names of a file, without and with its suffix


def _file(video: Named) -> _File:
    return video.stem, video.suffix


def _spellings(videos: Sequence[Named]) -> _Spellings:
    twins: dict[str, set[str]] = defaultdict(set)
    for video in videos:
        whole = video.stem + video.suffix
        twins[unicodedata.normalize("NFC", whole)].add(whole)
    spellings = {}
    for video in videos:
        whole = video.stem + video.suffix
        normal = unicodedata.normalize("NFC", whole)
        as_is = whole != normal and len(twins[normal]) > 1
        spellings[_file(video)] = escape(video.stem, as_is=as_is), escape(whole, as_is=as_is)
    return spellings


def _kept_ids(
    videos: Sequence[Named], spans: Sequence[str], spellings: _Spellings, known: Mapping[str, str]
) -> list[str]:
    """The ids that known videos keep; "" for the others."""
    by_name = {(path, _COUNT.sub("", video_id)): video_id for video_id, path in known.items()}
    by_name |= {(path, video_id): video_id for video_id, path in known.items()}
    by_span: dict[tuple[str, str], list[str]] = defaultdict(list)
    for video_id, path in known.items():
        found = _SPAN.search(_COUNT.sub("", video_id))
        by_span[path, found.group() if found else ""].append(video_id)
    kept = []
    for video, span in zip(videos, spans, strict=True):
        names = [(video.path, name + span) for name in spellings[_file(video)]]
        kept.append(next((by_name[name] for name in names if name in by_name), ""))
    used = set(kept)
    for index, (video, span) in enumerate(zip(videos, spans, strict=True)):
        held = by_span.get((video.path, span), [])
        if not kept[index] and len(held) == 1 and held[0] not in used:
            kept[index] = held[0]
    return kept


def _tell_apart(
    videos: Sequence[Named],
    spans: Sequence[str],
    kept: Sequence[str],
    spellings: _Spellings,
    known: Mapping[str, str],
) -> dict[_File, str]:
    """For each file the name of its new ids: plain, or with the suffix where the plain one would meet another's."""
    names = {file: plain for file, (plain, _) in spellings.items()}
    while True:
        claims: dict[str, set[_File]] = defaultdict(set)
        met = set()
        for video, span, video_id in zip(videos, spans, kept, strict=True):
            file = _file(video)
            claims[names[file]].add(file)
            claims[names[file] + span].add(file)
            if known.get(names[file], video.path) != video.path or (not video_id and names[file] + span in known):
                met.add(file)
        for files in claims.values():
            if len(files) > 1:
                met |= files
        met = {file for file in met if names[file] != spellings[file][1]}
        if not met:
            return names
        names |= {file: spellings[file][1] for file in met}
