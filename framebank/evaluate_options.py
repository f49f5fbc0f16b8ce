"""The options of `framebank evaluate` as keyword arguments. Written by tests/python_options.py."""

from os import PathLike
from typing import Literal, TypedDict


class EvaluateOptions(TypedDict, total=False):
    """As of the command; None is as if it were not given."""

    split: Literal["test", "all"] | None
    """The test part alone, or all videos. [default: test of the run's own bank, all of others]"""

    target: str | None
    """Column of the bank's catalog, or of the file of --targets or --frame-values. [default: label]"""

    targets: str | PathLike[str] | None
    """Targets of the videos, joined by a column id."""

    segments: str | PathLike[str] | None
    """A label per frame: CSV of id, start, end, label (seconds, or start_frame, end_frame), one-hot CSV, BORIS CSV, or
    a folder of MS-TCN or Cholec80 text files."""

    frame_values: str | PathLike[str] | None
    """A number per frame: columns id, time or frame, and a value."""

    backbone: str | None
    """The backbone again, where it is a function of yours: no code runs because a bank or a run names it."""

    device: str | None
    """auto, cpu, cuda, cuda:1, mps. [default: auto]"""
