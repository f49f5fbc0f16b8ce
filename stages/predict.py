"""New videos -> what a trained head makes of them: the backbone of the run's bank runs on them once, then the head.

The videos go through a temporary bank, by the engine, the sampling and the preprocessing of the bank that the head was
trained on. A loaded backbone whose recipe is another is refused: the head would read numbers that mean something else.
Videos that are banked already are read from their banks instead, which must have been made like those of training: that
is how a head on imported features, which no backbone computes, labels new videos.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.alike import bank_alike, load_alike
from pipeline.bank import Bank
from pipeline.bundles import Bundle, check_banks, load_bundle, seen_in_training
from pipeline.encoder import choose_device
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.gathering import find_all
from pipeline.joined_banks import common_ids
from pipeline.prediction_timelines import OverTime, over_time
from pipeline.predictions import Predictions, predict
from pipeline.sources import source_text
from pipeline.targets import SEPARATOR
from pipeline.writing import STDOUT, check_outputs, write_csv, write_json
from stages import events, timelines
from stages.console import Display, counted, plain_frames, sampling_words, window_words
from stages.progress import say

OK, FAILURES, INTERRUPTED = 0, 3, 130
_SHOWN_LABELS = 4


@dataclass(frozen=True)
class PredictConfig:
    """Everything that `framebank predict` can be told; the defaults are those of the command.

    Of `videos` and `banks` one is given; `banks` are in the order of training.
    """

    run: Path
    videos: tuple[Path, ...]
    banks: tuple[Path, ...] = ()
    csv: Path | None = None
    json: Path | None = None
    frames: Path | None = None
    segments: Path | None = None
    timeline: Path | None = None
    min_seconds: float | None = None
    weights: tuple[str, ...] = ()
    backbone: str | None = None
    all_files: bool = False
    image_fps: float | None = None
    allow_partial: bool = False
    device: str = "auto"
    precision: str = "auto"
    batch_size: str = "auto"
    quiet: bool = False


def run(config: PredictConfig) -> int:
    """Predict videos.

    Returns:
        the exit status: 0 all predicted, 3 some could not be read, 130 interrupted (then nothing is predicted).

    Raises:
        UserError: it could not run as asked.
    """
    display = Display.beside(config.json, quiet=config.quiet)
    bundle = load_bundle(config.run)
    if config.min_seconds is not None:
        bundle = replace(bundle, min_seconds=config.min_seconds)
    _check_outputs(config, bundle)
    if config.timeline is not None:
        timelines.check(config.timeline)
    outputs = {"--csv": config.csv, "--json": config.json, "--frames": config.frames, "--segments": config.segments}
    outputs |= {"--timeline": config.timeline}
    device = choose_device(config.device)
    with ExitStack() as stack:
        if config.banks:
            found, notes, banks = _banked(config, bundle, outputs, stack)
        else:
            found, notes = find_all(config.videos, all_files=config.all_files)
            check_outputs(outputs, [*config.videos, *map(Path, found["path"]), *map(Path, config.weights)])
        if config.timeline is not None:
            timelines.check(config.timeline, len(found))
        display.field("Found", counted(len(found), "video"))
        if not config.banks:
            made = _bank(config, bundle, found, device, stack, display)
            if made is None:
                display.line("Interrupted; nothing was predicted.")
                return INTERRUPTED
            banks = [made[each["fingerprint"]] for member in bundle.members for each in member.banks]
        failures = pd.concat([bank.failures[["id", "reason"]] for bank in banks]).drop_duplicates("id")
        if config.banks:  # whoever made them was told what could not be banked
            failures = failures.iloc[:0]
        ids = [video_id for video_id in found["id"] if video_id not in set(failures["id"])]
        with display.busy("scoring"):
            predictions = predict(bundle, banks, ids, device=device) if ids else None
            said = _over_time(config, predictions, banks, device)
        same, spans = seen_in_training(bundle, banks[0])
        if again := [video for video in (*same, *spans) if video in set(found["id"])]:
            notes.append(
                f"the head was trained on {len(again)} of these, e.g. {again[0]}: that it is right there proves nothing"
            )
    for note in [*notes, *(predictions.notes if predictions else [])]:
        display.field("Note", note)
    if predictions is not None:
        _show(display, predictions)
    for row in records(failures):
        display.line(f"{row['id']}: not predicted, {row['reason']}")
        events.tell("video_failed", "warning", id=row["id"], reason=row["reason"])
    if len(failures) and config.quiet:
        say(f"{counted(len(failures), 'video')} could not be read")
    written = {option: str(path) for option, path in outputs.items() if path is not None} if ids else {}
    events.tell("result", predicted=len(ids), failed=len(failures), files=written)
    if predictions is not None:
        _write(config, predictions, found, failures)
        if config.timeline is not None:
            timelines.write(config.timeline, bundle, source_text(str(config.run)), said, _all_words(predictions))
        if files := [path for path in outputs.values() if path not in (None, STDOUT)]:
            display.field("Written", ", ".join(map(str, files)))
    elif config.json == STDOUT:
        write_json(STDOUT, {"run": source_text(str(config.run)), "videos": [], "failed": records(failures)})
    elif any(outputs.values()):
        display.line("None of the videos could be read, so no file was written.")
    return FAILURES if len(failures) else OK


def _check_outputs(config: PredictConfig, bundle: Bundle) -> None:
    """UserError now rather than after the backbone has run: for what the head cannot give."""
    every_step = bundle.objective.steps
    if config.frames is not None and not every_step:
        raise UserError(
            f"The head in {config.run} predicts whole videos, not frames: --frames needs one trained with labels per "
            "frame or supervised at every step. Leave --frames out."
        )
    if config.segments is not None and (not bundle.per_frame or bundle.kind == "value"):
        what = "values" if bundle.kind == "value" else "one label per video"
        raise UserError(
            f"The head in {config.run} was trained with {what}, so it predicts no segments; leave --segments out."
        )
    if config.min_seconds is not None and (not bundle.per_frame or bundle.kind == "value"):
        raise UserError(f"The head in {config.run} predicts no segments that --min-seconds could smooth; leave it out.")


def _banked(
    config: PredictConfig, bundle: Bundle, outputs: Mapping[str, Path | None], stack: ExitStack
) -> tuple[pd.DataFrame, list[str], list[Bank]]:
    """The videos that all given banks have (id, path), lines worth telling, and the banks, open.

    Raises:
        UserError: they are not like those of training, have no video in common, or are what would be written over.
    """
    check_outputs(outputs, config.banks)
    banks = [stack.enter_context(Bank(path)) for path in config.banks]
    notes = check_banks(bundle, banks)
    ids, more = common_ids(banks, None)
    if not ids:
        raise UserError(f"No video is in all of {', '.join(map(str, config.banks))}; give banks of the same videos.")
    catalog = banks[0].catalog.set_index("id")
    return pd.DataFrame({"id": ids, "path": [catalog.at[video, "source"] for video in ids]}), [*notes, *more], banks


def _bank(
    config: PredictConfig, bundle: Bundle, found: pd.DataFrame, device: torch.device, stack: ExitStack, display: Display
) -> dict[str, Bank] | None:
    """Run each backbone that the bundle needs over the videos, into banks that are gone when the stack is unwound.

    Returns:
        fingerprint of the bank trained on -> the temporary bank like it; None when interrupted.
    """
    loaded = load_alike(bundle, config.weights, device=device, precision=config.precision, typed=config.backbone)
    for alike in loaded:
        shape = "×".join(map(str, alike.backbone.feature_shape))
        backbone = f"{alike.backbone.name}, layer {alike.backbone.layer} ({shape}), {alike.backbone.weights}"
        rows = f"; {window_words(alike.recipe)}" if not plain_frames(alike.recipe) else ""
        display.field("Backbone", f"{backbone}; {sampling_words(alike.recipe['sampling'])}{rows}")
        for note in alike.notes:
            display.field("Note", note)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="framebank-")))
    made: dict[str, Bank] = {}
    for alike in loaded:
        path = folder / f"bank{len(made) + 1}.h5"
        with display.progress(len(found), 0) as show:
            interrupted = bank_alike(
                path,
                found,
                alike,
                device=device,
                batch_size=config.batch_size,
                image_fps=config.image_fps,
                allow_partial=config.allow_partial,
                on_progress=show,
            )
        if interrupted:
            return None
        made[alike.fingerprint] = stack.enter_context(Bank(path))
    return made


def _over_time(
    config: PredictConfig, predictions: Predictions | None, banks: Sequence[Bank], device: torch.device
) -> list[OverTime]:
    """What the head says over the time of each video, where that was asked for."""
    if config.timeline is None or predictions is None:
        return []
    shown = timelines.has_pictures(config.timeline)
    places = range(len(predictions.videos))
    return [over_time(predictions, banks, place, shown=shown, device=device) for place in places]


def _show(display: Display, predictions: Predictions) -> None:
    """A line per video: its id, the prediction, and the probability of it."""
    width = max(map(len, predictions.videos["id"]))
    for video, words in _all_words(predictions).items():
        display.line(f"{video:<{width}}  {words}")
    for row in records(predictions.videos):
        chances = {label: row[f"p_{label}"] for label in predictions.bundle.labels}
        events.tell("video_predicted", id=row["id"], predicted=row["predicted"], probability=chances)


def _all_words(predictions: Predictions) -> dict[str, str]:
    """Of each video, by its id, what is predicted."""
    bundle = predictions.bundle
    return {
        row["id"]: _words(bundle, row, predictions.decided[place] if bundle.per_frame else None)
        for place, row in enumerate(records(predictions.videos))
    }


def _words(bundle: Bundle, row: Mapping[str, Any], decided: np.ndarray | None) -> str:
    """ "walk 0.931", "car 0.973, horn 0.614", "12.4"; of frames "walk 62%, run 38% of 240 frames"."""
    if bundle.kind == "value":
        mean = "" if decided is None else f", mean of {counted(len(decided), 'frame')}"
        return f"{row['predicted']:.4g}{mean}"
    if decided is not None:
        one_hot = decided if decided.ndim == 2 else np.eye(len(bundle.labels))[decided]
        shares = one_hot.mean(axis=0)
        order = [place for place in np.argsort(-shares, kind="stable").tolist() if shares[place] > 0]
        parts = [f"{bundle.labels[place]} {shares[place]:.0%}" for place in order[:_SHOWN_LABELS]]
        more = f", and {len(order) - _SHOWN_LABELS} more" if len(order) > _SHOWN_LABELS else ""
        return f"{', '.join(parts) or 'no label'}{more} of {counted(len(decided), 'frame')}"
    chosen = row["predicted"].split(SEPARATOR) if bundle.kind == "multilabel" else [row["predicted"]]
    return ", ".join(f"{label} {row[f'p_{label}']:.3f}" for label in chosen if label) or "no label"


def _write(config: PredictConfig, predictions: Predictions, found: pd.DataFrame, failures: pd.DataFrame) -> None:
    """The files that were asked for."""
    if config.csv is not None:
        write_csv(config.csv, predictions.videos)
    if config.json is not None:
        paths = dict(zip(found["id"], found["path"], strict=True))
        videos = [
            {
                "id": row["id"],
                "path": source_text(paths[row["id"]]),
                "predicted": row["predicted"],
                "probability": {label: row[f"p_{label}"] for label in predictions.bundle.labels},
            }
            for row in records(predictions.videos)
        ]
        run = source_text(str(config.run))
        write_json(config.json, {"run": run, "videos": videos, "failed": records(failures)})
    if config.frames is not None:
        write_csv(config.frames, predictions.frame_table())
    if config.segments is not None:
        write_csv(config.segments, predictions.segment_table())
