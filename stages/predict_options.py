"""What predict can be told: with RUN, whose head decides all of how videos are read, and of a network by itself."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from stages.options import (
    BACKBONE,
    BANK,
    BATCH_SIZE,
    BY_HAND,
    DATA,
    DEVICE,
    FRAMES,
    JSON,
    PRECISION,
    QUIET,
    VIEWS,
    WINDOW,
    Real,
    grouped,
    read_window,
)
from stages.recipe_options import RECIPE


def _picked(*groups: Callable[[Any], Any], leave: Collection[str]) -> Callable[[Any], Any]:
    """The options of some groups but for those parameters, as one decorator."""

    def add(command: Any) -> Any:
        def bare() -> None: ...

        grouped(*groups)(bare)
        params = [param for param in bare.__click_params__ if param.name not in leave]  # type: ignore[attr-defined]
        command.__click_params__ = [*getattr(command, "__click_params__", []), *params]
        return command

    return add


OF_RUN = ("banks", "frames", "segments", "timeline", "min_seconds")
OF_VIDEOS = ("weights", "all_files", "image_fps", "allow_partial", "precision", "batch_size")
OF_NETWORK = (
    *("backbone", "preset", "image_size", "fit", "crop", "stride", "fps", "views", "top_k", "inflate"),
    *("clip_length", "clip_stride", "stack", "grey", "flow", "flow_method", "flow_weights"),
)
PREDICT = grouped(
    click.option(
        "--weights",
        multiple=True,
        metavar="FILE",
        help=(
            "The checkpoint of the backbone, if it was a file, or the fine-tuned run that it was; checked. One for "
            "each bank that the head reads. Without RUN: a name or a file.  [default: DEFAULT]"
        ),
    ),
    RECIPE,
    click.option(
        "--csv",
        type=DATA,
        metavar="FILE",
        help="Write a row per video: id, predicted, p_LABEL…; of labels per frame the most frequent one, and mean p.",
    ),
    JSON,
    click.option("--all-files", is_flag=True, help="Try every file, whatever its suffix."),
    click.option("--image-fps", type=Real(min=0, min_open=True), metavar="N", help="Rate of image folders."),
    click.option("--allow-partial", is_flag=True, help="Predict from what decodes of broken videos."),
    DEVICE,
    PRECISION,
    BATCH_SIZE,
    QUIET,
    grouped(
        click.option(
            "--bank",
            "banks",
            type=BANK,
            multiple=True,
            metavar="BANK",
            help="Predict the videos of a bank like the head's, instead of VIDEO; one for each bank that it reads.",
        ),
        click.option("--frames", type=DATA, metavar="FILE", help="Write a row per frame, with its time."),
        click.option(
            "--segments", type=DATA, metavar="FILE", help="Write id, start, end, label of predicted segments."
        ),
        click.option(
            "--timeline",
            type=DATA,
            metavar="FILE",
            help="Show what the head says over the time of each video, below pictures of it: .png, .html, or .json.",
        ),
        click.option(
            "--min-seconds",
            type=Real(min=0),
            metavar="X",
            help="Shorter segments join their neighbours.  [default: as in training]",
        ),
        heading="With RUN",
    ),
    grouped(
        _picked(BACKBONE, WINDOW, FRAMES, VIEWS, leave=("weights", "layer", "seed", "frames", "allow_partial")),
        click.option(
            "--top-k",
            type=click.IntRange(min=1),
            default=5,
            show_default=True,
            metavar="K",
            help="So many labels each.",
        ),
        heading="Without RUN: the classifier of the network itself",
    ),
)


def by_itself(paths: tuple[Path, ...], options: dict[str, Any]) -> bool:
    """Whether a network is asked by itself: its name, or a recipe, is given instead of RUN.

    Raises:
        click.UsageError: options of the one for the other, or too few paths.
    """
    context = click.get_current_context()
    typed = context.get_parameter_source
    again = ":" in (options["backbone"] or "") and (paths[0] / "model.json").exists()  # a function that made RUN's
    by_name = options["backbone"] is not None and not again
    alone = by_name or typed("recipe") is click.core.ParameterSource.COMMANDLINE
    if alone and (run := next((path for path in paths if (path / "model.json").exists()), None)):
        raise click.UsageError(
            f"{run} is a run, whose head decides the network; leave it out, or --recipe and --backbone"
        )
    for param in context.command.params:
        if param.name and typed(param.name) in BY_HAND:
            if alone and param.name in OF_RUN:
                raise click.UsageError(f"{param.opts[0]} is of the head of RUN, and there is none; leave it out")
            if not alone and param.name in OF_NETWORK and not (again and param.name == "backbone"):
                raise click.UsageError(
                    f"{param.opts[0]} is for a network by itself, and RUN decides it; leave it out, or give --backbone "
                    "or --recipe instead of RUN"
                )
            if options["banks"] and param.name in OF_VIDEOS:
                raise click.UsageError(f"{param.opts[0]} is for VIDEO, and --bank has been banked; leave it out")
    if options["banks"] and len(paths) > 1:
        raise click.UsageError(f"{paths[1]} is a VIDEO, and --bank gives videos that are banked; give one of both")
    if not alone and len(paths) < 2 and not options["banks"]:
        raise click.UsageError(
            "Missing VIDEO: give RUN and at least one, or --bank BANK; or, without RUN, --recipe or --backbone for a "
            "network by itself"
        )
    return alone


def of_run(kind: Any, paths: tuple[Path, ...], options: dict[str, Any]) -> Any:
    """The options as a config of this kind: of predicting with the head of a run."""
    own = options.keys() - {*OF_NETWORK} | {"backbone"}
    return kind(run=paths[0], videos=paths[1:], **{name: options[name] for name in own})


def of_network(kind: Any, paths: tuple[Path, ...], options: dict[str, Any]) -> Any:
    """The options as a config of this kind: of asking a network by itself.

    Raises:
        click.UsageError: options that exclude one another.
    """
    options = {name: value for name, value in options.items() if name not in OF_RUN}
    weights = options.pop("weights")
    if len(weights) > 1:
        raise click.UsageError("a network by itself has one set of weights; give --weights once")
    read_sampling(options)
    read_window(options)
    read_given_views(options)
    return kind(videos=paths, weights=weights[0] if weights else "DEFAULT", **options)


def extraction_of(kind: Any, options: dict[str, Any]) -> Any:
    """The options of extract as a config of this kind, without those of a cluster (`stages.options.read_workers`).

    Raises:
        click.UsageError: options that exclude one another.
    """
    read_sampling(options)
    read_window(options)
    read_given_views(options)
    return kind(**options)


def read_sampling(options: dict[str, Any]) -> None:
    """Replace the options of which frames are taken by `sampling` (None: not said)."""
    from pipeline.sampling import Sampling

    stride, fps, frames = (options.pop(name, None) for name in ("stride", "fps", "frames"))
    if sum(value is not None for value in (stride, fps, frames)) > 1:
        raise click.UsageError("--stride, --fps and --frames exclude one another; give one of them")
    asked = stride or fps or frames
    options["sampling"] = Sampling(stride=stride or 1, fps=fps, frames=frames) if asked else None


def read_given_views(options: dict[str, Any]) -> None:
    """Replace the text of `views` by what it means (None: not said)."""
    from pipeline.views import read_views

    options["views"] = None if options["views"] is None else read_views(options["views"])
