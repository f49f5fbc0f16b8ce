"""When the rows of banks that are read together are shown: all at the same times, or at those of one of them.

Read as they are, banks must agree on the rows of a video and on their times. Read at the times of another
(`pipeline.resampling`), their times only need to mean the same: seconds from the video's first frame, which is the
catalog's `start_time`, or 0 where that is unknown, as it is of most features that were imported.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.joined_banks import TIME_TOLERANCE_SECONDS, unreadable
from pipeline.resampling import Places, Resampling, places


def common_seconds(banks: Sequence[Bank], rows: Sequence[int], video_id: str) -> np.ndarray:
    """(T,) float64 times of the rows of a video, on which all banks agree."""
    times = []
    for bank, count in zip(banks, rows, strict=True):
        try:
            times.append(bank.timestamps(video_id) if count > 0 else np.empty(0))
        except (OSError, KeyError) as error:
            raise unreadable(bank.path, video_id, error) from error
    first = times[0]
    for bank, other in zip(banks[1:], times[1:], strict=True):
        names = f"{banks[0].path} and {bank.path} do not agree on {video_id}"
        if len(other) != len(first):
            raise UserError(
                f"{names}: {len(first)} and {len(other)} rows. Extract both with the same sampling, read the second at "
                "the times of the first (--resample linear), or let each have a head of its own (--fuse mean)."
            )
        apart = np.abs(first - other) > TIME_TOLERANCE_SECONDS
        apart |= np.isnan(first) != np.isnan(other)
        if apart.any():
            row = int(apart.argmax())
            raise UserError(
                f"{names}: row {row} is at {first[row]:.3f} s and at {other[row]:.3f} s. Extract both from the same "
                "videos with the same sampling, read the second at the times of the first (--resample linear), or let "
                "each have a head of its own (--fuse mean)."
            )
    return first


def at_times_of(
    base: Bank, banks: Sequence[Bank], ids: Sequence[str], resampling: Resampling
) -> tuple[list[np.ndarray], list[list[Places] | None], list[str]]:
    """Find the times of one bank's rows among those of others.

    Args:
        base: the bank whose times count.
        banks: what is read; the base itself may be among them.
        ids: of the videos, which all have; each has rows in the base.
        resampling: how.

    Returns:
        of each video the (T,) float64 times of the base's rows, as it has them; for each bank the places of each video,
        None for the base; and a line for each of the others that says how far its rows are away.

    Raises:
        UserError: a bank has no times, or no rows near enough, in some of the videos.
    """
    seconds = [_seconds(base, video) for video in ids]
    first = _first_times(base)
    wanted = [times - first[video] for times, video in zip(seconds, ids, strict=True)]
    found: list[list[Places] | None] = []
    notes = []
    for bank in banks:
        if bank is base:
            found.append(None)
            continue
        began = _first_times(bank)
        each: list[Places] = []
        problems: dict[str, str] = {}
        for video, times in zip(ids, wanted, strict=True):
            there = _seconds(bank, video) - began[video]
            if problem := _without_times(base, bank, times, there):
                problems[video] = problem
                continue
            each.append(places(resampling, times, there))
            limit, how = resampling.limit(times, there)
            if each[-1].gap > limit + TIME_TOLERANCE_SECONDS:
                problems[video] = _too_far(each[-1], times, there, f"{limit:.3g} s are allowed ({how})")
        if problems:
            video = next(iter(problems))
            raise UserError(
                f"{bank.path} cannot be read at the times of {base.path} in {len(problems)} of {len(ids)} videos, e.g. "
                f"{video}: {problems[video]}. What `framebank remove {bank.path} ID` takes out is left out."
            )
        found.append(each)
        method = "the nearest row" if resampling.method == "nearest" else "on the line between two rows"
        furthest = max(place.gap for place in each)
        notes.append(
            f"{bank.path.name} is read at the times of {base.path.name}, {method}; the nearest is at most "
            f"{furthest:.3g} s away"
        )
    return seconds, found, notes


def _seconds(bank: Bank, video_id: str) -> np.ndarray:
    try:
        return bank.timestamps(video_id).astype(np.float64)
    except (OSError, KeyError) as error:
        raise unreadable(bank.path, video_id, error) from error


def _first_times(bank: Bank) -> dict[str, float]:
    """id -> presentation time of the video's first frame, 0 where nobody knows it."""
    return dict(zip(bank.catalog["id"], bank.catalog["start_time"].fillna(0.0).tolist(), strict=True))


def _without_times(base: Bank, bank: Bank, wanted: np.ndarray, there: np.ndarray) -> str:
    if not len(there):
        return "it has no row of it"
    for path, times in ((base.path, wanted), (bank.path, there)):
        if np.isnan(times).any():
            return f"{path} has no times there (images get them by --image-fps)"
    return ""


def _too_far(place: Places, wanted: np.ndarray, there: np.ndarray, allowed: str) -> str:
    return (
        f"at {wanted[place.worst]:.3f} s the nearest row is that at {place.nearest:.3f} s, {place.gap:.3g} s away, and "
        f"{allowed}; its rows are from {there[0]:.3f} s to {there[-1]:.3f} s"
    )
