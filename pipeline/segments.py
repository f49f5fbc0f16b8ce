"""Labelled segments on the clock of a bank: which banked frame lies in which segment, and back.

A bank keeps the real presentation times of its frames, which may begin anywhere. Segments count from the video's first
frame at 0 s, so a clock is made by taking the video's `start_time` away. That goes for a span of a video too: its
segments count from the first frame of the whole file. A frame lies in a segment where start ≤ time < end, by real
time, or start ≤ number < end where the segments count frames. Frames of images without a clock have a number only.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.frame_labels import Extent, Spans
from pipeline.ids import readable, split_suffix
from pipeline.videos import VIDEO_SUFFIXES
from pipeline.windows import window_in

IGNORED = -100  # the class of a frame that nobody labelled: no loss, no metric (the default of torch's cross-entropy)

# Sums and differences of times are not exact in binary, and predictions are written with six decimals.
TOLERANCE_SECONDS = 1e-6


class Clock(NamedTuple):
    """When the banked frames of one video are shown.

    Attributes:
        seconds: (T,) float64, from the video's first frame; NaN without a clock.
        frame_index: (T,) int64, numbers of the frames in the video, from 0.
        fps: frames per second of the video (not of the bank); NaN or 0 unknown.
        duration: seconds of the whole video; NaN unknown.
        frames: how many frames the video has; -1 unknown.
        clip: of rows that are clips, and so have the times of their middles: the numbers of the first clip's first and
            last frame; None for rows that begin at their times.
    """

    seconds: np.ndarray
    frame_index: np.ndarray
    fps: float
    duration: float
    frames: int = -1
    clip: tuple[int, int] | None = None

    @property
    def step(self) -> float:
        """Seconds from one banked frame to the next, usually; NaN unknown."""
        if len(self.seconds) > 1:
            return float(np.median(np.diff(self.seconds)))
        return 1 / self.fps if self.fps > 0 else np.nan


def clocks(bank: Bank, ids: Iterable[str] | None = None) -> dict[str, Clock]:
    """The clock of every video of a bank, or of some.

    Args:
        bank: an open bank.
        ids: the videos; None for all.
    """
    wanted = None if ids is None else set(ids)
    of_clips = window_in(bank.config["recipe"]).kind == "clip"
    made = {}
    for row in records(bank.catalog):
        video_id = row["id"]
        if wanted is None or video_id in wanted:
            first = row["start_time"] if np.isfinite(row["start_time"]) else 0.0
            seconds = bank.timestamps(video_id).astype(np.float64) - first
            frames = bank.frame_index(video_id).astype(np.int64)
            clip = (int(bank.frames(video_id)[0, 0]), int(bank.frames(video_id)[0, -1])) if of_clips else None
            made[video_id] = Clock(seconds, frames, row["fps"], row["duration"], row["frames_decoded"], clip)
    return made


def ids_meant(known_as: Mapping[str, Sequence[str]], ids: Iterable[str]) -> dict[str, str | None]:
    """Which video is meant: by its id, with or without suffix, with more or fewer folders in front.

    Args:
        known_as: key -> names of one video, the first that fits any counts.
        ids: all there are.

    Returns:
        key -> id; None where no name fits.

    Raises:
        UserError: a name fits several videos.
    """
    ids = set(ids)
    whole, by_end = defaultdict(set), defaultdict(set)
    for video_id in ids:
        for parts in {_parts(video_id, cut=False), _parts(video_id, cut=True)}:
            whole[parts].add(video_id)
            for place in range(len(parts)):
                by_end[parts[place:]].add(video_id)

    def find(name: str) -> str | None:
        if name in ids:
            return name
        for cut in (False, True):
            parts = _parts(name, cut=cut)
            # `fi001` is the end of the id `fight/fi001`; that id is the end of `/data/fight/fi001.mp4`.
            ends = (whole[parts[place:]] for place in range(1, len(parts)) if parts[place:] in whole)
            found = by_end.get(parts) or next(ends, set())
            if len(found) > 1:
                one, other = sorted(found)[:2]
                raise UserError(f"{name!r} may be {one!r} or {other!r}. Give the id as the bank has it.")
            if found:
                return next(iter(found))
        return None

    return {key: next(filter(None, map(find, names)), None) for key, names in known_as.items()}


def _parts(name: str, *, cut: bool) -> tuple[str, ...]:
    name = readable(name).casefold().replace("\\", "/")
    stem, suffix = split_suffix(name)
    return PurePosixPath(stem if cut and suffix in VIDEO_SUFFIXES else name).parts


class Placed(NamedTuple):
    """Spans whose videos are known.

    Attributes:
        table: id, start, end, label, where; sorted by id, start and the order of the file.
        covered: id -> the extent of its table of frames; of a video that isn't there all is covered.
        notes: lines worth telling the user.
    """

    table: pd.DataFrame
    covered: dict[str, Extent]
    notes: list[str]


def place(spans: Spans, clocks: Mapping[str, Clock], *, exclusive: bool, allow: frozenset[str]) -> Placed:
    """Find the video of every span, and check that spans fit their videos.

    Args:
        spans: what the files hold.
        clocks: id -> clock.
        exclusive: only one label at a time.
        allow: which of these are counted only: "overlap" of spans (where `exclusive`; the one that starts later then
            counts), "unknown" videos, spans "beyond" the end (they are cut there; one frame interval beyond is fine).

    Raises:
        UserError: one of these is there and not allowed, with count and example; a name fits several videos; two names
            for one video; seconds for a video without a clock.
    """
    ids = ids_meant(spans.names, clocks)
    videos: dict[str, str] = {}
    for video, video_id in ids.items():
        if video_id is not None and videos.setdefault(video_id, video) != video:
            raise UserError(
                f"{videos[video_id]!r} and {video!r} are both the video {video_id!r}. Leave out one, or give it one "
                "name."
            )
    covered = {video_id: spans.covered[video] for video_id, video in videos.items() if video in spans.covered}
    notes = [f"{what}: {len(lost)}, e.g. {lost[0]}" for what, lost in spans.left_out.items() if lost]
    strangers = [video for video, video_id in ids.items() if video_id is None]
    if strangers and len(strangers) == len(ids):
        here = f"the bank has {min(clocks)!r}" if clocks else "the bank is empty"
        raise UserError(
            f"None of the {len(ids)} labelled videos is in the bank, e.g. {strangers[:1]}; {here}. Other ids?"
        )
    if strangers:
        lost = int(spans.table["video"].isin(strangers).sum())
        count = f"labelled videos that are not in the bank: {len(strangers)} ({lost} segments), e.g. {strangers[0]!r}"
        _complain(count, "unknown", allow, notes)
    table = spans.table.assign(id=spans.table["video"].map(ids)).dropna(subset="id")
    table = table.sort_values(["id", "start"], kind="stable").reset_index(drop=True)
    if spans.unit == "seconds":
        for video_id in {*table["id"], *covered}:
            if len(clocks[video_id].seconds) and np.isnan(clocks[video_id].seconds).any():
                raise UserError(
                    f"{video_id!r} has no clock, so seconds mean nothing there. Give frame columns (start_frame, "
                    "end_frame), or bank it with its frame rate."
                )
    if exclusive:
        _check_overlap(table, spans.unit, allow, notes)
    _check_end(table, covered, spans.unit, clocks, allow, notes)
    return Placed(table[["id", "start", "end", "label", "where"]], covered, notes)


def _complain(count: str, kind: str, allow: frozenset[str], notes: list[str], more: str = "") -> None:
    if kind not in allow:
        raise UserError(f"{count}. Mend the labels, or pass --allow-{kind}{more}.")
    notes.append(f"{count} (allowed)")


def _check_overlap(table: pd.DataFrame, unit: str, allow: frozenset[str], notes: list[str]) -> None:
    reached = table.groupby("id")["end"].cummax().shift(fill_value=-np.inf)
    same_video = table["id"].eq(table["id"].shift())
    overlapping = np.flatnonzero((same_video & (table["start"] < reached)).to_numpy())
    if len(overlapping):
        late = table.iloc[overlapping[0]]
        before = table.iloc[: overlapping[0]]
        early = before[(before["id"] == late["id"]) & (before["end"] > late["start"])].iloc[-1]
        example = (
            f"{early['label']!r} until {early['end']:g} and {late['label']!r} from {late['start']:g} {unit} in "
            f"{late['id']!r} ({late['where']})"
        )
        count = f"segments that begin before another one ends: {len(overlapping)}, e.g. {example}"
        _complain(count, "overlap", allow, notes, " (the later one counts), or --multi-label")


def _check_end(
    table: pd.DataFrame,
    covered: Mapping[str, Extent],
    unit: str,
    clocks: Mapping[str, Clock],
    allow: frozenset[str],
    notes: list[str],
) -> None:
    """A table of frames is too long where its last row is past the end, however long that may hold."""
    limits = {}
    for video_id in {*table["id"], *covered}:
        clock = clocks[video_id]
        # The end of a video is known to one frame: containers round, and annotators mean the last frame.
        interval = 1 / clock.fps if clock.fps > 0 else 0.0
        frames = float(clock.frames) if clock.frames >= 0 else np.nan
        limits[video_id] = frames if unit == "frames" else clock.duration + interval + TOLERANCE_SECONDS
    listed = table[~table["id"].isin(covered.keys())]
    ends = [*zip(listed["id"], listed["end"], listed["label"].map(repr), listed["where"], strict=True)]
    one = 1.0 if unit == "frames" else 0.0
    ends += [(video_id, extent.last + one, "a table", "its last row") for video_id, extent in covered.items()]
    beyond = [(video_id, end, what, where) for video_id, end, what, where in ends if end > limits[video_id]]
    if beyond:
        video_id, end, what, where = beyond[0]
        has = f"{clocks[video_id].frames} frames" if unit == "frames" else f"{clocks[video_id].duration:g} s"
        example = f"{what} until {end:g} in {video_id!r}, which has {has} ({where})"
        _complain(f"labels past the end of their video: {len(beyond)}, e.g. {example}", "beyond", allow, notes)


def rows_of(starts: np.ndarray, ends: np.ndarray, clock: Clock, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """The banked frames that lie in spans.

    Args:
        starts, ends: (S,) float64, in the unit.
        clock: of the video.
        unit: "seconds" or "frames".

    Returns:
        (S,) int64 first rows, and (S,) int64 rows after the last; equal where a span holds no banked frame.
    """
    if unit == "frames":
        return np.searchsorted(clock.frame_index, starts), np.searchsorted(clock.frame_index, ends)
    times = clock.seconds
    return np.searchsorted(times, starts - TOLERANCE_SECONDS), np.searchsorted(times, ends - TOLERANCE_SECONDS)


def smooth(labels: np.ndarray, seconds: np.ndarray, min_seconds: float) -> np.ndarray:
    """Give every run of equal labels that is too short to the longer of its neighbours, the shortest run first.

    A run lasts until the next one begins, the last one as long as steps usually do. Of equally short runs the first
    goes first, to the earlier of equally long neighbours. IGNORED steps stay as they are, and take nothing.

    Args:
        labels: (T,) int64.
        seconds: (T,) float64, rising.
        min_seconds: what a run must last; one single run may be shorter.

    Returns:
        (T,) int64.
    """
    labels = np.asarray(labels, np.int64).copy()
    if not min_seconds > 0 or len(labels) < 2:
        return labels
    first = np.flatnonzero(np.concatenate(([True], labels[1:] != labels[:-1])))
    edges = np.append(seconds[first], seconds[-1] + np.median(np.diff(seconds)))
    label, length = labels[first].tolist(), np.diff(edges).tolist()
    count = len(first)
    before, after = list(range(-1, count - 1)), [*range(1, count), -1]
    stop = np.append(first[1:], len(labels)).tolist()
    start = first.tolist()
    alive = [True] * count
    shortest = [(length[run], run) for run in range(count)]
    heapq.heapify(shortest)

    def absorb(run: int, other: int) -> None:
        """`run` takes in `other`, its neighbour."""
        alive[other] = False
        length[run] += length[other]
        start[run], stop[run] = min(start[run], start[other]), max(stop[run], stop[other])
        before[run], after[run] = (before[other], after[run]) if other < run else (before[run], after[other])
        if before[run] >= 0:
            after[before[run]] = run
        if after[run] >= 0:
            before[after[run]] = run

    while shortest:
        lasted, run = heapq.heappop(shortest)
        if not alive[run] or lasted != length[run] or label[run] == IGNORED:
            continue
        if lasted >= min_seconds - TOLERANCE_SECONDS:
            break
        sides = [side for side in (before[run], after[run]) if side >= 0 and label[side] != IGNORED]
        if not sides:
            continue
        taker = max(sides, key=lambda side: (length[side], -side))
        absorb(taker, run)
        for side in (before[taker], after[taker]):
            if side >= 0 and label[side] == label[taker]:
                absorb(taker, side)
        heapq.heappush(shortest, (length[taker], taker))
    for run in range(count):
        if alive[run]:
            labels[start[run] : stop[run]] = label[run]
    return labels


def segments_of(video_id: str, labels: np.ndarray, clock: Clock, names: Sequence[str]) -> pd.DataFrame:
    """Predicted labels of the steps of a video -> segments, as a segments file has them.

    A segment begins with its first step and ends where the next step begins, the last one with the video.

    Args:
        video_id: what the column id says.
        labels: (T,) int64 classes, IGNORED for none, or (T, K) 0 and 1, any of K classes at a time.
        clock: of the same T steps.
        names: of the K classes.

    Returns:
        id, start, end (seconds with six decimals), label, sorted by start; where the video has no clock start_frame
        and end_frame (exclusive) instead.
    """
    timeless = bool(np.isnan(clock.seconds).any())
    edges = _edges(clock, timeless)
    labels = np.asarray(labels, np.int64)
    tracks = [labels] if labels.ndim == 1 else [labels[:, k] for k in range(labels.shape[1])]
    found = []
    for k, track in enumerate(tracks):
        if labels.ndim == 2:
            track = np.where(track == 1, k, IGNORED)
        cuts = np.flatnonzero(np.diff(track)) + 1
        first, last = np.append(0, cuts), np.append(cuts, len(track))
        found += [
            (video_id, edges[a], edges[b], names[track[a]])
            for a, b in zip(first, last, strict=True)
            if a < b and track[a] != IGNORED
        ]
    start, end = ("start_frame", "end_frame") if timeless else ("start", "end")
    table = pd.DataFrame(found, columns=["id", start, end, "label"])
    return table.sort_values([start, end], kind="stable").reset_index(drop=True)


def _edges(clock: Clock, timeless: bool) -> np.ndarray:
    """(T + 1,) where each step begins, and where the last one ends; seconds, or frame numbers without a clock. One clip
    ends and the next begins halfway between their middles."""
    if not len(clock.seconds):
        return np.empty(0)
    if timeless:
        after = clock.frame_index[-1] + np.median(np.diff(clock.frame_index, append=clock.frame_index[-1] + 1))
        over = clock.frames if clock.frames >= 0 else int(after)
        if clock.clip is None:
            return np.append(clock.frame_index, over)
        return np.concatenate([clock.clip[:1], (clock.frame_index[1:] + clock.frame_index[:-1] + 1) // 2, [over]])
    last = clock.seconds[-1]
    end = clock.duration if clock.duration > last else last + (clock.step if clock.step > 0 else 1.0)
    starts = clock.seconds
    if clock.clip is not None:
        first, end_of_first = clock.clip
        begin = starts[0] - ((end_of_first - first) / 2 / clock.fps if clock.fps > 0 else 0)
        starts = np.append(max(0.0, begin), (starts[1:] + starts[:-1]) / 2)
    return np.round(np.append(starts, end), 6)
