"""How sure a score is: percentile intervals of the cluster bootstrap.

300 clips of 46 recordings are not 300 independent ones: whole groups are drawn with replacement, as many as there are,
each with all its rows (Field and Welsh 2007, "Bootstrapping clustered data"; without groups each row is drawn alone).
The interval of a difference scores both sides on the same draws, so that what both find hard cancels out.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Ratio(NamedTuple):
    """A score that is the sum of `values` over the sum of `weights`, both (n,): means of all kinds, in no time.

    Accuracy: right or not, and ones. Frame accuracy: per video the number of right frames, and of frames.
    """

    values: np.ndarray
    weights: np.ndarray


class Interval(NamedTuple):
    """A 95 % interval, NaN where it is not defined, and how many replicates had no defined score and were dropped."""

    low: float
    high: float
    dropped: int

    @property
    def ends(self) -> list[float] | None:
        """[low, high], or None where it is not defined."""
        return None if np.isnan(self.low) else [self.low, self.high]


# A score of rows: a Ratio; (n,) values to be averaged; or a function of row numbers (m,) int64, some repeated -> score.
Score = Ratio | np.ndarray | Callable[[np.ndarray], float]


def bootstrap(
    score: Score, groups: Sequence[str] | None, n_rows: int, *, repeats: int = 2000, seed: int = 0
) -> Interval:
    """The 95 % percentile interval of a score.

    Args:
        score: of chosen rows (see `Score`).
        groups: the group of each row; None: each row is its own.
        n_rows: number of rows.

    Returns:
        the interval; NaN with fewer than two groups, or where no replicate has a defined score.
    """
    members, draws = _draws(groups, n_rows, repeats, seed)
    return _interval(_scores(score, members, draws, n_rows))


def paired(
    first: Score, second: Score, groups: Sequence[str] | None, n_rows: int, *, repeats: int = 2000, seed: int = 0
) -> Interval:
    """The same of the difference first - second, both scored on the same draws."""
    members, draws = _draws(groups, n_rows, repeats, seed)
    return _interval(_scores(first, members, draws, n_rows) - _scores(second, members, draws, n_rows))


def score_of(score: Score, n_rows: int) -> float:
    """The score of all rows, as they are."""
    members, _ = _draws(None, n_rows, 0, 0)
    return float(_scores(score, members, np.ones((1, n_rows), np.int64), n_rows)[0])


def _draws(groups: Sequence[str] | None, n_rows: int, repeats: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The group number of each row (n,), and how often each replicate has each group (repeats, G)."""
    members = np.arange(n_rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(members) != n_rows:
        raise ValueError(f"{len(members)} groups were given for {n_rows} rows")
    count = int(members.max()) + 1 if n_rows else 0
    if count < 2:
        return members, np.zeros((0, count), np.int64)
    return members, np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=repeats)


def _scores(score: Score, members: np.ndarray, draws: np.ndarray, n_rows: int) -> np.ndarray:
    """The score of each replicate, (repeats,) float64."""
    if callable(score):
        rows = np.arange(n_rows)
        return np.array([score(np.repeat(rows, draw[members])) for draw in draws], np.float64)
    if isinstance(score, np.ndarray):
        score = Ratio(score, np.ones(n_rows))
    count = draws.shape[1]
    # einsum, not @: where the rows' sums do not depend on BLAS, replicates are the same on every machine
    values = np.einsum("rg,g->r", draws, np.bincount(members, score.values, count))
    weights = np.einsum("rg,g->r", draws, np.bincount(members, score.weights, count))
    with np.errstate(invalid="ignore", divide="ignore"):  # a replicate without weight has no score
        return np.where(weights > 0, values / weights, np.nan)


def _interval(scores: np.ndarray) -> Interval:
    defined = scores[np.isfinite(scores)]
    dropped = len(scores) - len(defined)
    if not len(defined):
        return Interval(float("nan"), float("nan"), dropped)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), dropped)
