"""What the values of a bank are like: their mean, deviation, range and zeros, feature by feature, over all rows.

The bank may be larger than memory: it is read once, in blocks. A map's places count as rows, and so do all views.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.bank import Bank
from pipeline.blockwise import Span, computed, in_blocks, lazy, of_each, rows_at_once
from pipeline.errors import UserError


class FeatureStatistics(NamedTuple):
    """Of each of D features (channels, where the bank holds maps), over so many `values`; all (D,) float64.

    Values that are not finite make those of their feature so.
    """

    values: int
    mean: np.ndarray
    deviation: np.ndarray
    least: np.ndarray
    greatest: np.ndarray
    zeros: np.ndarray  # share of values that are exactly 0


def feature_statistics(bank: Bank) -> FeatureStatistics:
    """The statistics of all that a bank holds, in a few blocks' memory.

    Raises:
        UserError: the bank has no rows, or some that cannot be read or have another shape than it says.
    """
    ids = list(bank)
    lengths = bank.catalog["rows"].tolist()
    if not sum(lengths):
        raise UserError(f"{bank.path} holds no rows, so there are no statistics of them.")
    recipe = bank.config["recipe"]
    features, *places = recipe["feature_shape"]
    each = int(np.prod(places)) * recipe.get("views", {"count": 1})["count"]  # values of a feature in one banked row

    def read(spans: Sequence[Span]) -> np.ndarray:
        return np.concatenate([_values(bank, ids[video], start, stop, features, each) for video, start, stop in spans])

    blocks = in_blocks(range(len(ids)), lengths, rows_at_once(each * features))
    counts = [each * sum(stop - start for _, start, stop in spans) for spans in blocks]
    pivot = read([(*blocks[0][0][:2], blocks[0][0][1] + 1)])[0].astype(np.float64)

    def summed(rows: np.ndarray) -> np.ndarray:
        """(3, D): sums of first and second powers about a row of the bank, and how many are 0. About a row and not
        about 0, so that a feature that never changes has a deviation of exactly 0."""
        with np.errstate(invalid="ignore"):  # what is not finite makes its feature so
            about = rows - pivot
            return np.stack([about.sum(axis=0), np.einsum("ij,ij->j", about, about), (rows == 0).sum(axis=0)])

    def bounds(rows: np.ndarray) -> np.ndarray:
        return np.stack([rows.min(axis=0), rows.max(axis=0)]).astype(np.float64)

    rows = lazy(read, blocks, counts, features)
    low_high = of_each(rows, bounds, 2)
    sums, least, greatest = computed(
        of_each(rows, summed, 3).sum(axis=0), low_high[:, 0].min(axis=0), low_high[:, 1].max(axis=0)
    )
    count = sum(counts)
    first, second, zeros = sums / count
    with np.errstate(invalid="ignore"):
        mean, deviation = pivot + first, np.sqrt(np.maximum(second - first**2, 0))
    return FeatureStatistics(count, mean, deviation, least, greatest, zeros)


def _values(bank: Bank, video_id: str, start: int, stop: int, features: int, each: int) -> np.ndarray:
    """Rows of one video, of every view and place: (n, D) float32."""
    try:
        stored = bank.read(video_id, start, stop)
    except (OSError, KeyError) as error:
        raise _unfit(bank, video_id, f"cannot be read ({error})") from error
    channels = stored.ndim - 1 if stored.ndim < 4 else 1
    if stored.shape[channels] != features or stored.size != (stop - start) * features * each:
        raise _unfit(bank, video_id, f"has features of shape {stored.shape}, which is not what the bank says")
    return np.moveaxis(stored, channels, -1).reshape(-1, features).astype(np.float32)


def _unfit(bank: Bank, video_id: str, what: str) -> UserError:
    return UserError(f"{bank.path}: {video_id} {what}. `framebank describe {bank.path} --verify` lists what is broken.")
