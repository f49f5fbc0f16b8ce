"""New videos -> what a network's own classifier makes of them: no bank, no head, no training.

The network runs over the windows of each video (single frames, or clips), by the same engine as an extraction, into a
temporary bank of what its last layer gives. Of each window that becomes probabilities (softmax), and a video's are
their mean over its windows, and over its views where there are several. The classes are those that the weights were
trained on, so weights whose classes nobody knows are refused.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from pipeline import bank as banks
from pipeline.backbone import Backbone, load_backbone
from pipeline.bank import Bank
from pipeline.encoder import choose_batch_size, choose_device, choose_precision
from pipeline.engine import Progress
from pipeline.errors import UserError
from pipeline.extraction import embed, make_encoding, recipe_of, with_region
from pipeline.features import records
from pipeline.flow import Flow
from pipeline.gathering import find_all
from pipeline.networks import categories
from pipeline.resuming import with_state
from pipeline.rows import ReadOptions
from pipeline.sampling import Sampling
from pipeline.sources import source_text
from pipeline.tracing import OUTPUT
from pipeline.views import Views, draws
from pipeline.windows import Window
from pipeline.writing import STDOUT, check_outputs, write_csv, write_json
from stages import events
from stages.console import Display, counted, input_words, plain_frames, row_unit, sampling_words, window_words
from stages.progress import say

OK, FAILURES, INTERRUPTED = 0, 3, 130


@dataclass(frozen=True)
class ClassifyConfig:
    """Everything that `framebank predict` can be told without a run.

    What of network and frames is None is the usual: ResNet-50, the preset of the weights and its image size, `fit`
    crop, all of every frame, the network's own window. `flow` is given with a window of flow alone.
    """

    videos: tuple[Path, ...]
    backbone: str | None = None
    weights: str = "DEFAULT"
    preset: str | None = None
    image_size: int | None = None
    fit: str | None = None
    crop: str | None = None
    sampling: Sampling | None = None
    window: Window | None = None
    inflate: bool = False
    flow: Flow | None = None
    views: Views | None = None
    top_k: int = 5
    csv: Path | None = None
    json: Path | None = None
    all_files: bool = False
    image_fps: float | None = None
    allow_partial: bool = False
    device: str = "auto"
    precision: str = "auto"
    batch_size: str = "auto"
    quiet: bool = False


def run(config: ClassifyConfig) -> int:
    """Classify videos.

    Returns:
        the exit status: 0 all classified, 3 some could not be read, 130 interrupted (then nothing is written).

    Raises:
        UserError: it could not run as asked.
    """
    display = Display.beside(config.json, quiet=config.quiet)
    if config.top_k < 1:
        raise UserError(f"--top-k {config.top_k} would show no class; give at least 1")
    found, notes = find_all(config.videos, all_files=config.all_files)
    outputs = {"--csv": config.csv, "--json": config.json}
    check_outputs(outputs, [*config.videos, *map(Path, found["path"]), Path(config.weights)])
    display.field("Found", counted(len(found), "video"))
    for note in notes:
        display.field("Note", note)
    device = choose_device(config.device)
    with display.busy("loading the network"):
        backbone, labels = _load(config)
    with tempfile.TemporaryDirectory(prefix="framebank-") as folder:
        path = Path(folder) / "outputs.h5"
        if _bank(config, path, found, backbone, device, display):
            display.line("Interrupted; nothing was predicted.")
            return INTERRUPTED
        with Bank(path) as bank:
            failures = bank.failures[["id", "reason"]]
            ids = [video_id for video_id in found["id"] if video_id in bank]
            rows = {video_id: len(bank.timestamps(video_id)) for video_id in ids}
            probabilities = {video_id: mean_probabilities(bank[video_id]) for video_id in ids}
    top = {video_id: _best(each, labels, config.top_k) for video_id, each in probabilities.items()}
    width = max(map(len, ids), default=0)
    for video_id in ids:
        display.line(f"{video_id:<{width}}  {', '.join(f'{label} {share:.3f}' for label, share in top[video_id])}")
        events.tell("video_predicted", id=video_id, predicted=top[video_id][0][0], probability=dict(top[video_id]))
    for row in records(failures):
        display.line(f"{row['id']}: not predicted, {row['reason']}")
        events.tell("video_failed", "warning", id=row["id"], reason=row["reason"])
    if len(failures) and config.quiet:
        say(f"{counted(len(failures), 'video')} could not be read")
    written = {option: str(path) for option, path in outputs.items() if path is not None} if ids else {}
    events.tell("result", predicted=len(ids), failed=len(failures), files=written)
    if ids or config.json == STDOUT:
        _write(config, backbone, found, rows, top, failures)
    elif config.csv or config.json:
        display.line("None of the videos could be read, so no file was written.")
    return FAILURES if len(failures) else OK


def mean_probabilities(outputs: np.ndarray) -> np.ndarray:
    """A classifier's outputs for one video, (T, C) or of K views (K, T, C) float -> (C,) float64, of sum 1."""
    probabilities: np.ndarray = softmax(outputs.astype(np.float64), axis=-1)
    return probabilities.reshape(-1, outputs.shape[-1]).mean(axis=0)


def _best(probabilities: np.ndarray, labels: list[str], count: int) -> list[tuple[str, float]]:
    """The most probable classes, falling; of equally probable ones the first comes first."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(labels[place], float(probabilities[place])) for place in order.tolist()]


def _load(config: ClassifyConfig) -> tuple[Backbone, list[str]]:
    """The whole network and the names of its classes.

    Raises:
        UserError: it cannot be loaded, or nobody knows what its classes are.
    """
    name, weights = config.backbone or "resnet50", config.weights
    if weights == "random":
        raise UserError("random weights know no classes; give --weights that were trained, such as DEFAULT")
    settings: dict[str, Any] = {
        "weights": weights,
        "preset": config.preset,
        "image_size": config.image_size,
        "fit": config.fit or "crop",
        "window": config.window,
        "inflate": config.inflate,
    }
    advice = "bank its embeddings and train a head instead (framebank extract, then train-head)"
    try:
        backbone = load_backbone(name, layer=OUTPUT, **settings)
    except UserError as error:
        try:
            load_backbone(name, **settings)
        except UserError:
            raise error from None
        raise UserError(
            f"the classifier in {weights} is not the one that {name} was published with; {advice}"
        ) from error
    labels = categories(name, weights, backbone.feature_shape[0])
    if labels is None or len(backbone.feature_shape) > 1:
        raise UserError(f"nobody knows what the classes of {name} with {weights} are called; {advice}")
    return backbone, labels


def _bank(
    config: ClassifyConfig, path: Path, found: pd.DataFrame, backbone: Backbone, device: torch.device, display: Display
) -> bool:
    """Run the network over the videos into a bank. Returns whether it was interrupted."""
    if backbone.window.kind == "flow" and not backbone.weights.startswith("file:"):
        raise UserError(
            f"{backbone.weights} of {backbone.name} were learnt on pictures, and know no classes of motion; bank the "
            "motion (framebank extract --flow) and train a head on it."
        )
    if config.views is not None:
        draws(config.views, backbone.preprocessing, "")  # a UserError now, rather than in a thread
    options = ReadOptions(
        config.sampling or Sampling(),
        backbone.preprocessing,
        backbone.window,
        config.allow_partial,
        views=config.views,
        flow=config.flow,
    )
    crop = config.crop or ""
    precision = choose_precision(config.precision, device)
    recipe = recipe_of(backbone, options, crop=crop, precision=precision, store="float32")
    inflated = " inflated to 3D" if backbone.inflated else ""
    classes = counted(backbone.feature_shape[0], "class", "classes")
    display.field("Network", f"{backbone.name}{inflated}, {backbone.weights}, {classes}")
    display.field("Input", f"{input_words(recipe['preprocessing'])}, normalised as {backbone.preprocessing.preset}")
    display.field("Frames", sampling_words(recipe["sampling"]))
    if not plain_frames(recipe):
        display.field("Rows", window_words(recipe))
    display.field("Computing", f"{precision} on {device.type}")
    batch_size = choose_batch_size(config.batch_size, device, None, backbone.window)
    encoding = make_encoding(backbone, recipe, options, device, batch_size, "")
    banks.create(path, encoding.recorded)
    videos = with_state(with_region(found, crop, config.image_fps))
    with display.progress(len(found), 0, row_unit(recipe)) as show:
        return embed(path, videos, encoding, Progress(), on_progress=show, on_note=lambda _: None)


def _write(
    config: ClassifyConfig,
    backbone: Backbone,
    found: pd.DataFrame,
    rows: dict[str, int],
    top: dict[str, list[tuple[str, float]]],
    failures: pd.DataFrame,
) -> None:
    """The files that were asked for: of each video its most probable classes."""
    if config.csv is not None and top:
        lines = [{"id": video_id} | _numbered(best) for video_id, best in top.items()]
        write_csv(config.csv, pd.DataFrame(lines))
    if config.json is not None:
        paths = dict(zip(found["id"], found["path"], strict=True))
        videos = [
            {
                "id": video_id,
                "path": source_text(paths[video_id]),
                "rows": rows[video_id],
                "predicted": best[0][0],
                "top": [{"label": label, "probability": share} for label, share in best],
            }
            for video_id, best in top.items()
        ]
        network = {"backbone": backbone.name, "weights": backbone.weights}
        write_json(config.json, {**network, "videos": videos, "failed": records(failures)})


def _numbered(best: list[tuple[str, float]]) -> dict[str, Any]:
    """The columns predicted, probability, predicted_2, probability_2, … of a video."""
    row: dict[str, Any] = {}
    for rank, (label, share) in enumerate(best, 1):
        end = f"_{rank}" if rank > 1 else ""
        row |= {f"predicted{end}": label, f"probability{end}": share}
    return row
