"""Exported models beside what they were made of: run on the rows and features of real videos, in batches and lengths
that the example did not have.

Two things must be the same up to rounding, since both sides compute in float32: what the backbones make of rows, and
what the heads make of features. From rows to predictions the exported models are held against the features of a bank,
which was perhaps computed in bfloat16 and is stored in float16: how far that takes them apart is measured, and may not
be more than such rounding explains (`pipeline.joining`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from pipeline.backbone import Backbone
from pipeline.bank import Bank
from pipeline.bundles import Bundle, score_bundle
from pipeline.errors import UserError
from pipeline.exported_models import Run
from pipeline.features import records
from pipeline.flow import Flow
from pipeline.ids import readable
from pipeline.joined_banks import Columns
from pipeline.joining import TOLERANCES
from pipeline.preprocessing import normalise
from pipeline.selection import Selection, select
from pipeline.sequences import Sequences
from pipeline.sources import source_path
from pipeline.video_frames import FrameReader

BATCHES = (1, 5, 32)  # rows that go through a backbone at once, in turn
LENGTHS = (1, 2, 7)  # rows of a sequence, beside all there are
BACKBONE_TOLERANCE = 1e-3  # of the largest feature
HEAD_TOLERANCE = 1e-4  # of a probability; of a value, in standard deviations of the training targets
_MOST_ROWS = 256  # of a video that are looked at
_VIDEOS = 3


@dataclass
class Found:
    """How far exported models are from the originals, the largest over all that was looked at.

    Attributes:
        videos, rows: how many went through all of them.
        backbone: difference of a feature, as a share of the largest one; None until one was looked at.
        head: difference of a probability, or of a value in standard deviations of the training targets.
        joint: the same from rows to predictions, beside the features in the bank.
        cosine: the smallest between the features of a row and those in the bank.
    """

    videos: int = 0
    rows: int = 0
    backbone: float | None = None
    head: float | None = None
    joint: float | None = None
    cosine: float | None = None


def some_videos(banks: Sequence[Bank], *, with_files: bool) -> list[str]:
    """Up to three videos that all of some banks have, of different lengths, none longer than need be; `with_files`
    those alone whose files are where they were. None of no banks."""
    if not banks:
        return []
    tables = [{row["id"]: row for row in records(bank.catalog) if row["rows"] > 0} for bank in banks]
    ids = [video for video in tables[0] if all(video in table for table in tables)]
    if with_files:
        ids = [video for video in ids if all(Path(source_path(table[video]["source"])).exists() for table in tables)]
    ids.sort(key=lambda video: tables[0][video]["rows"])
    short = ids[: max(_VIDEOS, sum(tables[0][video]["rows"] <= _MOST_ROWS for video in ids))]
    places = np.linspace(0, len(short) - 1, min(_VIDEOS, len(short))).round().astype(int)
    return [short[place] for place in places]


def rows_of(bank: Bank, video: str, backbone: Backbone, flow: Flow | None) -> np.ndarray:
    """(n, *input_shape) uint8: what the backbone saw of the first rows of a banked video, read from its file again.

    Raises:
        UserError: the file does not give them any more.
    """
    catalog = bank.catalog.set_index("id").loc[video]
    row = {"id": video, "path": source_path(str(catalog["source"])), "kind": catalog["kind"], "crop": catalog["crop"]}
    seconds = bank.timestamps(video)
    reader = FrameReader(
        [row], [bank.frames(video)], [seconds], backbone.preprocessing, window=backbone.window, flow=flow
    )
    return reader.read(0, np.arange(min(len(seconds), _MOST_ROWS))).numpy()


def features_of(bank: Bank, video: str) -> np.ndarray:
    """(n, *shape) float32: the first rows of a banked video."""
    return bank.read(video, 0, _MOST_ROWS).astype(np.float32)


def noise(shape: Sequence[int], count: int = sum(BATCHES)) -> np.ndarray:
    """(count, *shape) uint8 drawn at random, always the same: rows where there are no videos."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def check_backbone(run: Run, backbone: Backbone, rows: np.ndarray, found: Found, name: str) -> np.ndarray:
    """Run an exported backbone on rows (n, *input_shape) uint8 beside the original in float32.

    Returns:
        (n, *feature_shape) float32: what the exported one makes of them.

    Raises:
        UserError: they differ by more than rounding.
    """
    made, start = [], 0
    for size in cycle(BATCHES):
        if start >= len(rows):
            break
        batch = rows[start : start + size]
        with torch.no_grad():
            wanted = backbone.module(normalise(backbone.preprocessing, torch.from_numpy(batch), backbone.window))
        made.append(_run(run, [batch], name, f"a batch of {len(batch)}", tuple(wanted.shape)))
        apart = np.abs(made[-1] - wanted.numpy()).max() / max(float(wanted.abs().max()), np.finfo(np.float32).tiny)
        found.backbone = _largest(found.backbone, float(apart))
        if not apart <= BACKBONE_TOLERANCE:
            raise UserError(
                f"The exported {name} gives other features than the network: {apart:.2g} of the largest one apart (at "
                f"most {BACKBONE_TOLERANCE:g} is rounding) in a batch of {len(batch)}. Nothing was kept."
            )
        start += size
    return np.concatenate(made)


def check_head(run: Run, bundle: Bundle, features: Sequence[np.ndarray], found: Found, name: str) -> None:
    """Run exported heads on the features of one video, of each bank (T, *shape) float32, beside the original; and on
    beginnings of it.

    Raises:
        UserError: they differ by more than rounding.
    """
    for length in dict.fromkeys((*LENGTHS, max(map(len, features)))):
        part = [rows[:length] for rows in features]
        wanted = original(bundle, part)
        apart = difference(bundle, _run(run, part, name, f"{length} rows", wanted.shape), wanted)
        found.head = _largest(found.head, apart)
        if not apart <= HEAD_TOLERANCE:
            raise UserError(
                f"The exported {name} predicts otherwise than the head: {apart:.2g} apart (at most {HEAD_TOLERANCE:g} "
                f"is rounding) on {length} rows. Nothing was kept."
            )


def check_joint(
    run: Run,
    bundle: Bundle,
    made: Sequence[np.ndarray],
    banked: Sequence[np.ndarray],
    found: Found,
    *,
    exact: bool,
    video: str,
) -> None:
    """Hold predictions from the exported backbones' features of one video, of each bank (T, *shape), against those of
    the original head from the banked ones; `exact` where these were computed in float32.

    Raises:
        UserError: they differ by more than the precisions explain.
    """
    for one, other in zip(made, banked, strict=True):
        cosines = torch.cosine_similarity(torch.from_numpy(one).flatten(1), torch.from_numpy(other).flatten(1))
        smallest = float(cosines.min())
        found.cosine = smallest if found.cosine is None else min(found.cosine, smallest)
    wanted = original(bundle, banked)
    apart = difference(bundle, run(made), wanted)
    found.joint = _largest(found.joint, apart)
    found.videos += 1
    found.rows += max(map(len, made))
    if not apart <= TOLERANCES[exact][1]:
        raise UserError(
            f"From frames to prediction the exported models are {apart:.2g} away from the head on its bank, of "
            f"{readable(video)} (at most {TOLERANCES[exact][1]:g} is rounding), though each by itself is as the "
            "original: the video was changed after it was banked, or is decoded otherwise by this version of FFmpeg. "
            "Give others by --check. Nothing was kept."
        )


def chosen(bundle: Bundle, rows: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Of rows (n, ...) of a video, banked at `seconds` (at least n), those that the head is shown."""
    return rows[select(bundle.selection, seconds[: len(rows)], draw=0)]


def original(bundle: Bundle, features: Sequence[np.ndarray]) -> np.ndarray:
    """What the bundle itself makes of one video: of each bank (T, *shape) float32, the rows that its heads are shown,
    -> (K,), or per frame (T, K)."""
    rest = iter(features)
    sequences = []
    for member in bundle.members:
        parts = [_reduced(next(rest), member.spatial) for _ in member.banks]
        rows = torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
        sequences.append(Sequences(["video"], [np.arange(len(rows), dtype=np.float64)], rows))
    given = replace(bundle, selection=Selection())
    return np.asarray(score_bundle(given, sequences, np.array([0]))[0])


def difference(bundle: Bundle, scores: np.ndarray, wanted: np.ndarray) -> float:
    """The largest between predictions: of a probability, or of a value in standard deviations of the training
    targets."""
    apart = float(np.abs(scores - wanted).max())
    if bundle.kind != "value":
        return apart
    return apart / max(float(member.head.value_scale.max()) for member in bundle.members)


def _run(run: Run, inputs: list[np.ndarray], name: str, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """UserError instead of whatever a runtime raises, and for another shape than the original's."""
    try:
        output = run(inputs)
    except Exception as error:
        raise UserError(
            f"The exported {name} fails on {what}: {str(error).splitlines()[0]}. Nothing was kept."
        ) from error
    if output.shape != shape:
        raise UserError(f"The exported {name} gives {output.shape} for {what}, and not {shape}. Nothing was kept.")
    return output


def _reduced(rows: np.ndarray, spatial: str | None) -> np.ndarray:
    """Maps as they are read from a bank."""
    return Columns(Path(), rows.shape[1:], rows.dtype, spatial if rows.ndim == 4 else None).reduce(rows)


def _largest(known: float | None, now: float) -> float:
    return now if known is None else max(known, now)
