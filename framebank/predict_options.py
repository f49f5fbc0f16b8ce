"""The options of `framebank predict` as keyword arguments. Written by tests/python_options.py."""

from collections.abc import Sequence
from os import PathLike
from typing import Literal, TypedDict


class PredictOptions(TypedDict, total=False):
    """As of the command; None is as if it were not given."""

    weights: str | PathLike[str] | Sequence[str | PathLike[str]] | None
    """The checkpoint of the backbone, if it was a file, or the fine-tuned run that it was; checked. One for each bank
    that the head reads. Without RUN: a name or a file. [default: DEFAULT]"""

    all_files: bool | None
    """Try every file, whatever its suffix."""

    image_fps: float | None
    """Rate of image folders."""

    allow_partial: bool | None
    """Predict from what decodes of broken videos."""

    device: str | None
    """auto, cpu, cuda, cuda:1, mps. [default: auto]"""

    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    """Compute precision; auto is bf16 where the machine has it, else fp32. [default: auto]"""

    batch_size: int | str | None
    """Rows per forward: frames, clips, or views of them. [default: auto]"""

    min_seconds: float | None
    """Shorter segments join their neighbours. [default: as in training]"""

    backbone: str | None
    """Any torchvision classification or video model, one of ours, timm/NAME, or a function of yours that makes one:
    FILE.py:FUNCTION, MODULE:FUNCTION. [default: resnet50]"""
