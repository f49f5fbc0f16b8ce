"""A finished run's heads once more: on the videos that it held out, or on those of other banks."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.alike import bank_alike, load_alike
from pipeline.bank import Bank
from pipeline.bundles import Bundle
from pipeline.engine import Progress
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.ids import readable
from pipeline.predictions import in_words
from pipeline.results import HeldOut, Task
from pipeline.segments import IGNORED
from pipeline.sources import source_path
from pipeline.targets import Targets


def banks_of(config: Mapping[str, Any], run: Path, *, remedy: str) -> list[Path]:
    """Where the banks of a run lay when it was trained.

    Args:
        config: its config.json.
        run: its folder.
        remedy: what to do where they lie elsewhere now.

    Raises:
        UserError: one of them is not there any more.
    """
    paths = [Path(source_path(bank["path"])) for bank in config["data"]["banks"]]
    for path in paths:
        if not path.exists():
            raise UserError(f"{run} was trained on {path}, which is not there any more; {remedy}.")
    return paths


def is_own(config: Mapping[str, Any], banks: Sequence[Bank], held_out: Sequence[str]) -> bool:
    """Whether banks are those that a run was trained on, wherever they lie now.

    They are if they were made alike and hold every video that the run held out.
    """
    trained = [bank["fingerprint"] for bank in config["data"]["banks"]]
    return trained == [bank.fingerprint for bank in banks] and set(held_out) <= set(banks[0])


@contextmanager
def embedded_anew(
    bundle: Bundle,
    found: pd.DataFrame,
    banked: Bank,
    *,
    device: torch.device,
    on_progress: Callable[[Progress], None],
    typed: str | None = None,
) -> Iterator[Bank]:
    """A bank of videos by the backbone that was trained with a bundle's head, gone when the context ends.

    Args:
        bundle: the bundle, with weights of its own.
        found: the videos, as `find_videos` gives them.
        banked: the bank that training began with, which has the same frames of them.
        device: where the backbone runs.
        on_progress: called a few times a second.
        typed: the name of the backbone, as in `pipeline.alike.load_alike`.

    Raises:
        UserError: a video cannot be read any more, or has other frames than those that were banked.
        KeyboardInterrupt: it was interrupted.
    """
    (alike,) = load_alike(bundle, (), device=device, typed=typed)
    rows = banked.catalog.set_index("id").loc[found["id"]]
    partial = bool((rows["partial"] != "").any())
    with tempfile.TemporaryDirectory(prefix="framebank-") as folder:
        path = Path(folder) / "anew.h5"
        if bank_alike(path, found, alike, device=device, allow_partial=partial, on_progress=on_progress):
            raise KeyboardInterrupt
        with Bank(path) as anew:
            reasons = {row["id"]: row["reason"] for row in records(anew.failures)}
            for video in set(anew) - set(reasons):
                now, before = anew.frames(video), banked.frames(video)
                if not np.array_equal(now, before):
                    reasons[video] = f"{len(now)} frames are taken from it now, others than the {len(before)} banked"
            if reasons:
                video = min(reasons)
                raise UserError(
                    f"{len(reasons)} of {len(found)} videos are not what was banked, e.g. {readable(video)}: "
                    f"{reasons[video]}. Restore the files, or fine-tune again."
                )
            yield anew


def in_terms_of(bundle: Bundle, targets: Targets) -> Targets:
    """Targets with the classes of a bundle, in its order.

    A video (or a frame) of a class that the bundle does not know is left out, and the notes say so: no prediction
    could be right. Of several labels only the unknown ones are.

    Raises:
        UserError: the targets are of another kind, or no class is known.
    """
    if (targets.kind, targets.per_frame) != (bundle.kind, bundle.per_frame):
        raise UserError(
            f"The head was trained on {_kind(bundle.kind, bundle.per_frame)}, and these targets are "
            f"{_kind(targets.kind, targets.per_frame)}; give targets of the same kind."
        )
    if targets.labels == bundle.labels:
        return targets
    known = [label for label in targets.labels if label in bundle.labels]
    if not known:
        raise UserError(
            f"None of the labels ({_some(targets.labels)}) is one that the head knows ({_some(bundle.labels)})."
        )
    if targets.kind == "multilabel":
        places = [targets.labels.index(label) if label in known else -1 for label in bundle.labels]
        values = {video: _columns(value, places) for video, value in targets.values.items()}
        lost = ""
    else:
        codes = np.array([bundle.labels.index(label) if label in known else IGNORED for label in targets.labels])
        values = {
            video: np.where(value == IGNORED, IGNORED, codes[np.maximum(value, 0)])
            for video, value in targets.values.items()
        }
        values = {video: value for video, value in values.items() if (value != IGNORED).any()}
        lost = f", videos of them alone left out: {len(targets.values) - len(values)}"
    unknown = [label for label in targets.labels if label not in known]
    notes = [f"labels that the head does not know: {len(unknown)}, e.g. {unknown[0]!r}{lost}"] if unknown else []
    return replace(targets, labels=bundle.labels, values=values, notes=(*targets.notes, *notes))


def _columns(value: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """(…, L) -> (…, K): the columns at places, one without any label for -1; masked rows stay masked."""
    wider = np.concatenate([value, value[..., :1] * 0], axis=-1)
    return wider[..., places]


def _kind(kind: str, per_frame: bool) -> str:
    return {"class": "one class", "multilabel": "several labels", "value": "a value"}[kind] + (
        " per frame" if per_frame else " per video"
    )


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (", …" if len(labels) > 4 else "")


def largest_difference(
    task: Task, held: HeldOut, recorded: pd.DataFrame, frames: pd.DataFrame | None
) -> tuple[float, int]:
    """How far scores are from those that a run wrote down.

    Args:
        task: what is predicted.
        held: the scores now.
        recorded: the run's predictions.csv.
        frames: its frames.csv, for targets per frame.

    Returns:
        the largest difference of a probability, or of a value in units of the largest one (infinite where rows are
        missing); and the number of rows whose prediction is another.
    """
    table = recorded if frames is None else frames
    columns = [f"p_{label}" for label in task.labels] if task.kind != "value" else ["predicted"]
    largest, changed = 0.0, 0
    rows = dict(list(table.groupby("id", sort=False)))
    for video, scores, decided in zip(held.ids, held.scores, held.decided, strict=True):
        now = scores.reshape(-1, len(columns))
        if video not in rows or len(rows[video]) != len(now):
            return float("inf"), len(held.ids)
        before = rows[video][columns].to_numpy(np.float64)
        scale = float(np.abs(table[columns].to_numpy(np.float64)).max()) or 1.0 if task.kind == "value" else 1.0
        largest = max(largest, float(np.abs(before - now).max()) / scale)
        if task.kind != "value":
            rows_now = np.asarray(decided).reshape((len(now), -1) if task.kind == "multilabel" else -1)
            spoken = np.array(in_words(task, rows_now), object)
            changed += int((rows[video]["predicted"].astype(str).to_numpy() != spoken).sum())
    return largest, changed
