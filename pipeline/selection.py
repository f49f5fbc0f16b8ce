"""Which rows of a banked video a head sees, in training and in testing. The bank holds more; nothing is extracted anew.

The rules, for a video of n rows:

- `all`: every row.
- `stride`, `fps`, `frames`: as `framebank extract` samples frames (`pipeline.sampling`), on the rows of the bank.
- `tsn`: one row of each of N equal segments, at random in training and the centre in testing (Wang et al. 2016,
  "Temporal Segment Networks", https://arxiv.org/abs/1608.00859). A video that is shorter than N is taken whole.
- `tail`: N rows from the end backwards in steps of round(n / N), half to even, at least 1; it stops at the first row,
  and can miss the beginning.
- `lrcn`: the same as published LRCN-style code does it: always exactly N rows. The step may be 0, and the walk never
  goes below the first row, so rows repeat: the last one N times in a video of at most N / 2 rows, or the first one.
- `crop`: N rows in a row, at a random place in training; in testing the whole video, or several crops evenly placed
  from the first row to the last. A video that is shorter than N is taken whole.
"""

from dataclasses import dataclass
from math import isfinite

import numpy as np

from pipeline.errors import UserError
from pipeline.sampling import Sampling, choose

RULES = ("all", "stride", "fps", "frames", "tsn", "tail", "lrcn", "crop")
RANDOM_RULES = ("tsn", "crop")
_MOST = 1024  # rows that are taken of a video that has fewer; more is a slip of the finger


@dataclass(frozen=True)
class Selection:
    """A rule and its number.

    Attributes:
        rule: one of `RULES`.
        amount: the stride, the rows per second, or the number N of rows; 0 for `all`.
        test_crops: how many different draws of `tsn` or `crop` are averaged in testing.

    Raises:
        UserError: an unknown rule, a number out of range, or several draws of a rule that knows only one.
    """

    rule: str = "all"
    amount: float = 0
    test_crops: int = 1

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError(f"there is no frame selection {self.rule!r}; choose one of {', '.join(RULES)}")
        if self.rule == "all" and self.amount != 0:
            raise UserError(f"the selection of all frames takes no number, and got {self.amount:g}; leave it out")
        if self.rule == "fps" and not (isfinite(self.amount) and self.amount > 0):
            raise UserError(f"the selection fps got {self.amount:g}; give frames per second above 0, such as 5")
        if self.rule not in ("all", "fps") and not (self.amount >= 1 and float(self.amount).is_integer()):
            raise UserError(f"the selection {self.rule} got {self.amount:g}; give a whole number from 1, such as 16")
        if self.rule == "lrcn" and self.amount > _MOST:
            raise UserError(f"the selection lrcn got {self.amount:g}; it always takes as many, so give at most {_MOST}")
        if self.test_crops < 1:
            raise UserError(f"{self.test_crops} crops are to be averaged in testing; give a whole number from 1")
        if self.test_crops > 1 and self.rule not in ("tsn", "crop"):
            raise UserError(
                f"the selection {self.rule} takes the same frames in every test, so averaging {self.test_crops} crops "
                "adds nothing; choose frames by --tsn or --window, or leave --test-crops out"
            )


def select(
    selection: Selection,
    seconds: np.ndarray,
    *,
    draw: int | None = None,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """The rows to take of one video.

    Args:
        selection: the rule.
        seconds: (T,) float64 presentation times; only `fps` needs them to be known.
        draw: in testing, which of the `test_crops` draws; needed only where there are several.
        generator: given in training; `tsn` and `crop` then draw at random.

    Returns:
        (K,) int64 row numbers, rising, of `lrcn` never falling; at least one where T is.

    Raises:
        UserError: `fps` for a video without timestamps.
    """
    n, rule = len(seconds), selection.rule
    if rule == "all":
        return np.arange(n)
    if rule in RANDOM_RULES:
        if generator is not None:
            return _drawn(rule, int(selection.amount), n, generator)
        if draw is None and selection.test_crops > 1:
            raise ValueError(f"which of the {selection.test_crops} draws?")
        return _placed(rule, int(selection.amount), n, draw or 0, selection.test_crops)
    if rule == "tail":
        step = max(1, _tail_step(n, int(selection.amount)))
        return np.arange(n)[::-1][::step][: int(selection.amount)][::-1].copy()
    if rule == "lrcn":
        steps_back = np.arange(int(selection.amount))[::-1] * _tail_step(n, int(selection.amount))
        return np.maximum(n - 1 - steps_back, 0)
    if rule == "fps":
        if not np.isfinite(seconds).all():
            raise UserError(
                "frames cannot be selected by fps, as a video has no timestamps (a folder of images, say); "
                "select by stride or frames"
            )
        return choose(Sampling(fps=float(selection.amount)), seconds)
    if rule == "stride":
        return choose(Sampling(stride=int(selection.amount)), seconds)
    return choose(Sampling(frames=int(selection.amount)), seconds)


def caution(selection: Selection, lengths: np.ndarray) -> str:
    """What the selection does to videos of `lengths` (B,) int64 rows that nobody would expect, as a line for the user.

    Only `lrcn` has something to say: in how many videos it repeats rows, and in how many it never comes near the
    beginning. Else it is "".
    """
    if selection.rule != "lrcn":
        return ""
    amount, repeated, missed = int(selection.amount), 0, 0
    for n, videos in zip(*(part.tolist() for part in np.unique(lengths, return_counts=True)), strict=True):
        taken = select(selection, np.empty(n))
        repeated += videos * bool((np.diff(taken) == 0).any())
        missed += videos * bool(taken[0] >= max(1, _tail_step(n, amount)))  # another step would have stayed inside
    said = [f"repeats frames of {repeated:,}"] if repeated else []
    said += [f"misses the beginning of {missed:,}"] if missed else []
    if not said:
        return ""
    return f"--lrcn {amount} {' and '.join(said)} of {len(lengths):,} videos; --frames {amount} spreads evenly"


def _tail_step(n: int, amount: int) -> int:
    """Rows between one row and the next; half to even, and 0 for a video that is short enough."""
    return round(n / amount)


def _drawn(rule: str, amount: int, n: int, generator: np.random.Generator) -> np.ndarray:
    """Random rows: one of each of `amount` segments, or `amount` in a row."""
    if n <= amount:
        return np.arange(n)
    if rule == "crop":
        return int(generator.integers(n - amount + 1)) + np.arange(amount)
    edges = np.arange(amount + 1) * n // amount
    return generator.integers(edges[:-1], edges[1:])


def _placed(rule: str, amount: int, n: int, draw: int, draws: int) -> np.ndarray:
    """The rows of draw number `draw` of `draws`, always the same."""
    if not 0 <= draw < draws:
        raise ValueError(f"there is no draw {draw} of {draws}")
    if n <= amount or (rule == "crop" and draws == 1):
        return np.arange(n)
    if rule == "crop":
        return draw * (n - amount) // (draws - 1) + np.arange(amount)
    # Draw j of J takes the centre of the j-th of J equal parts of each segment, in whole numbers.
    return (2 * (np.arange(amount) * draws + draw) + 1) * n // (2 * amount * draws)
