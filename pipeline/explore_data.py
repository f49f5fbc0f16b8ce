"""A bank and what a pass over it found -> what its page says, as plain data: counts, lengths, map, copies, pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline import bank_map
from pipeline.bank import Bank
from pipeline.bank_survey import Survey, Surveyed, thinned, usual_change
from pipeline.features import records
from pipeline.report_timelines import clock, points
from pipeline.thumbnails import strip
from pipeline.videos import label_order

MAPPED = 3000  # videos in the map at most
LISTED = 100  # rows of a table at most
_BINS = 12  # of lengths at most
_PICTURE_BYTES = 5_000_000  # of all pictures in the page
_MANY = 400  # of more videos the pictures are small
_SIZE, _SMALL = (160, 120), (96, 72)
_LATEST_FRAME = 250  # of which a picture is taken: videos are decoded from their beginning


def sample(ids: Sequence[str]) -> list[str]:
    """The videos of the map: all, or 3,000 drawn with a fixed seed, in the order of the bank."""
    if len(ids) <= MAPPED:
        return list(ids)
    drawn = np.random.default_rng(0).choice(len(ids), MAPPED, replace=False)
    return [ids[place] for place in np.sort(drawn)]


def classes(catalog: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each label, in their order, "" last: name, videos, rows, and `splits`, name of a split -> videos."""
    splits = sorted(set(catalog["split"]))
    found = []
    groups = {str(label): rows for label, rows in catalog.groupby("label")}
    for label in [*label_order([each for each in groups if each]), *([""] if "" in groups else [])]:
        mine = groups[label]
        counts = mine["split"].value_counts()
        by_split = {split: int(counts.get(split, 0)) for split in splits}
        found.append({"name": label, "videos": len(mine), "rows": int(mine["rows"].sum()), "splits": by_split})
    return found


def lengths(catalog: pd.DataFrame) -> dict[str, Any]:
    """How long videos are, in seconds where all are known, else in rows.

    Returns:
        unit ("seconds", "rows"), least, median and most of it, and bins: [from, to, videos], `to` not included.
    """
    timed = bool((catalog["duration"] > 0).all())
    values = catalog["duration" if timed else "rows"].to_numpy(np.float64)
    low, high = float(values.min()), float(values.max())
    step = _round_step((high - low) / _BINS, whole=not timed)
    first = np.floor(low / step) * step
    edges = first + step * np.arange(int((high - first) // step) + 2)
    counts, _ = np.histogram(values, edges)
    bins = [
        [start, stop, count]
        for start, stop, count in zip(edges.tolist(), edges[1:].tolist(), counts.tolist(), strict=False)
    ]
    return {
        "unit": "seconds" if timed else "rows",
        "least": low,
        "median": float(np.median(values)),
        "most": high,
        "bins": bins,
    }


def _round_step(least: float, *, whole: bool) -> float:
    """The smallest of 1, 2, 5, 10, 20, … (of 0.1, 0.2, 0.5 too where it may be broken) that is not below `least`."""
    steps = [factor * 10.0**power for power in range(0 if whole else -1, 12) for factor in (1, 2, 5)]
    return next(step for step in steps if step >= least)


def copies(catalog: pd.DataFrame, same: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Groups of videos with identical features: videos (id, label, split), and whether label and split are several."""
    known = catalog.set_index("id")[["label", "split"]].to_dict("index")
    found = []
    for ids in same:
        videos = [{"id": video, **known[video]} for video in ids]
        several = {name: len({video[name] for video in videos}) > 1 for name in ("label", "split")}
        found.append({"videos": videos, "labels_differ": several["label"], "splits_differ": several["split"]})
    return sorted(found, key=lambda each: (not each["labels_differ"], not each["splits_differ"]))


def still(survey: Survey) -> list[dict[str, Any]]:
    """Videos with stretches in which features say nothing, the longest stretch first.

    Returns:
        of each id, kinds, rows in such stretches and in all, longest ([from, to] on its clock), unit of the clock, and
        bars: [kind, start, end] in shares of the video.
    """
    found = []
    for video, each in survey.videos.items():
        if not each.stretches:
            continue
        longest = max(each.stretches, key=lambda stretch: stretch.stop - stretch.start)
        times, unit = clock(each.seconds)
        count = len(times)
        found.append(
            {
                "id": video,
                "kinds": sorted({stretch.kind for stretch in each.stretches}),
                "still": sum(stretch.stop - stretch.start for stretch in each.stretches),
                "rows": count,
                "most": longest.stop - longest.start,
                "longest": [float(times[longest.start]), float(times[longest.stop - 1])],
                "unit": unit,
                "bars": [[stretch.kind, stretch.start / count, stretch.stop / count] for stretch in each.stretches],
            }
        )
    return sorted(found, key=lambda each: (-each["most"], each["id"]))


def failures(bank: Bank) -> dict[str, Any]:
    """How many could not be banked; `reasons`: reason, videos, the most frequent first; `listed`: id, reason."""
    counts = bank.failures["reason"].value_counts(sort=True)
    return {
        "count": len(bank.failures),
        "reasons": [(str(reason), int(count)) for reason, count in counts.head(LISTED).items()],
        "listed": [(row["id"], row["reason"]) for row in records(bank.failures.head(LISTED))],
    }


def over_time(survey: Survey) -> dict[str, Any] | None:
    """The chart of how much videos usually change over their course; None if none has two rows."""
    usual = usual_change(list(survey.videos.values()))
    if usual is None:
        return None
    shares = 100 * (np.arange(len(usual)) + 0.5) / len(usual)
    series = [
        {"name": "50 %", "data": points(shares, usual[:, 1]), "colour": 0},
        {"name": "10 %", "data": points(shares, usual[:, 0]), "colour": 1, "dash": True},
        {"name": "90 %", "data": points(shares, usual[:, 2]), "colour": 2, "dash": True},
    ]
    x = {"name": "Per cent of the video", "min": 0, "max": 100}
    return {"x": x, "y": {"name": "Change", "min": 0}, "series": series}


def mapped(survey: Survey, ids: Sequence[str]) -> tuple[list[str], bank_map.Maps | None, list[list[list[Any]]]]:
    """The videos of the map (those of `ids` with a mean), both maps, and of each its neighbours: [place, cosine]."""
    shown = [video for video in ids if video in survey.videos and survey.videos[video].mean is not None]
    vectors = np.array([survey.videos[video].mean for video in shown], np.float32).reshape(len(shown), survey.features)
    places, cosines = bank_map.neighbours(vectors)
    near: list[list[list[Any]]] = [
        [[place, cosine] for place, cosine in zip(others.tolist(), alike.tolist(), strict=True)]
        for others, alike in zip(places, cosines.round(3), strict=True)
    ]
    return shown, bank_map.maps(vectors), near


def course(each: Surveyed) -> dict[str, Any]:
    """The change over the time of one video, for the page's script.

    Returns:
        unit and end of the clock; line, [time, change] of at most 60 points; still, [kind, from, to] on the clock.
    """
    times, unit = clock(each.seconds)
    x, y = thinned(times[1:], each.change)
    marks = [(stretch.kind, times[stretch.start], times[stretch.stop - 1]) for stretch in each.stretches]
    return {
        "unit": unit,
        "end": round(float(times[-1]), 3),
        "line": [[round(a, 2), _short(b)] for a, b in zip(x.tolist(), y.tolist(), strict=True)],
        "still": [[kind, round(float(start), 2), round(float(stop), 2)] for kind, start, stop in marks[:LISTED]],
    }


def _short(value: float) -> float | None:
    return float(f"{value:.3g}") if np.isfinite(value) else None


def pictures(
    bank: Bank, ids: Sequence[str], *, on_video: Callable[[int], None]
) -> tuple[dict[int, str], Mapping[str, str]]:
    """A picture of each video, from its middle or its first 250 frames, as many as fit in a page.

    Args:
        bank: an open bank.
        ids: of the videos that are wanted.
        on_video: called after each with the number of them so far.

    Returns:
        place in `ids` -> data URI, and id -> why there is none; those beyond what fits are in neither.
    """
    found: dict[int, str] = {}
    gaps: dict[str, str] = {}
    room = _PICTURE_BYTES
    size = _SMALL if len(ids) > _MANY else _SIZE
    for place in _spread(len(ids)):
        frames = bank.frame_index(ids[place])
        row = min(len(frames) // 2, max(0, int(np.searchsorted(frames, _LATEST_FRAME, side="right")) - 1))
        made = strip(bank, ids[place], [row], size=size)
        if made.gap:
            gaps[ids[place]] = made.gap
        else:
            room -= len(made.pictures[0])
            if room < 0:
                break
            found[place] = made.pictures[0]
        on_video(len(found) + len(gaps))
    return found, gaps


def _spread(count: int) -> list[int]:
    """All places in an order in which any beginning is spread over the whole."""
    bits = max(1, (count - 1).bit_length())
    turned = (int(f"{place:0{bits}b}"[::-1], 2) for place in range(1 << bits))
    return [place for place in turned if place < count]
