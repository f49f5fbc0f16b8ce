"""What finetune can be told: where it starts, what trains, memory, training; without --head also all of train-head."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from stages.head_options import HEAD, SPLITS, STEPS, TARGETS, learning_of, refuse_idle, training
from stages.options import (
    BANK,
    BY_HAND,
    DATA,
    DEVICE,
    JSON,
    NETWORK,
    OWN_BACKBONE,
    PRECISION,
    WHAT,
    Real,
    grouped,
    read_window,
)

START = grouped(
    click.option(
        "--head", type=DATA, metavar="RUN", help="The run of train-head to start from: its head, split, targets."
    ),
    click.option(
        "--bank",
        type=BANK,
        metavar="BANK",
        help="Where the bank of RUN lies now, if it was moved; without --head, where first embeddings are kept.",
    ),
    click.option(
        "--weights",
        metavar="FILE",
        help=(
            "The checkpoint of the backbone, or the fine-tuned run that it was; checked. Without --head: a name, a "
            "file, or"
            " 'random'."
        ),
    ),
)


def _parts(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


_UNFREEZE = click.option(
    "--unfreeze",
    default="2",
    show_default=True,
    metavar="WHAT",
    help=(
        "What of the backbone trains: a number of last blocks, names (layer4 or features.11,features.12), all, or "
        "by "
        "epochs passed: 0:head,2:layer4,5:layer3."
    ),
)
TRAINS = grouped(
    _UNFREEZE,
    click.option("--train-batch-norm", is_flag=True, help="BatchNorm in it trains too, statistics included."),
    click.option(
        "--backbone-rate",
        type=Real(min=0, min_open=True),
        metavar="X",
        help=(
            "Peak learning rate of the last block.  [default: 0.00003; without --head 0.0001, and 0.001 for random "
            "weights]"
        ),
    ),
    click.option(
        "--layer-decay",
        type=Real(0, 1, min_open=True),
        metavar="X",
        help="Each block before it has X times the rate of the next.  [default: 0.7; 1 for random weights]",
    ),
    click.option(
        "--augment",
        callback=_parts,
        default="",
        metavar="WHAT,…",
        help="Change clips at random in training, all frames alike: any of crop, flip, jitter.  [default: none]",
    ),
    click.option(
        "--views",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Bank N augmented views beside the plain one and take them in turn, instead of drawing every epoch.",
    ),
    heading="What trains",
)
MEMORY = grouped(
    click.option(
        "--prefix-bank",
        type=BANK,
        metavar="FILE",
        help="Where what the frozen part gives is banked; it is kept.  [default: in RUN2, until that is done]",
    ),
    click.option(
        "--no-prefix-bank",
        "prefix",
        is_flag=True,
        flag_value=False,
        default=True,
        help="Compute it in every epoch instead.",
    ),
    click.option("--micro-batch", type=click.IntRange(min=1), metavar="N", help="Frames through the network at once."),
    click.option(
        "--recompute/--keep",
        default=None,
        help="Compute activations again in the backward pass, or keep them.  [default: keep if memory suffices]",
    ),
    click.option(
        "--accumulate", type=click.IntRange(min=1), default=1, metavar="N", help="Batches per optimiser step."
    ),
    heading="Speed and memory",
)
FIT = training(
    None,
    1024,
    None,
    "Passes over the training videos.  [default: 8; 30 without --head]",
    "Peak learning rate of the head.  [default: 0.0002; 0.001 without --head]",
)
FINETUNE = grouped(START, TRAINS, MEMORY, STEPS, FIT, PRECISION, WHAT, NETWORK, TARGETS, SPLITS, HEAD)
BENCH = grouped(
    click.option("--head", type=DATA, required=True, metavar="RUN", help="The run of train-head to start from."),
    click.option("--bank", type=BANK, metavar="BANK", help="Where the bank of RUN lies now, if it was moved."),
    click.option("--weights", metavar="FILE", help="The checkpoint of the backbone, if it was a file; checked."),
    OWN_BACKBONE,
    _UNFREEZE,
    click.option("--videos", type=click.IntRange(min=1), default=24, show_default=True, help="So many of RUN's."),
    click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="Of each way, in turn."),
    click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of the backbone.  [default: all]"),
    JSON,
    DEVICE,
    PRECISION,
)

_EXTRACT = (
    *("backbone", "layer", "preset", "image_size", "fit", "crop", "window", "inflate", "flow"),
    *("label_from", "group_from", "split_lists"),
)
_CHOSEN = ("stride", "fps", "frames", "tsn", "tail", "lrcn", "random_window", "test_crops")


def read(extraction: Any, finetuning: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """The flat options of the command line as configs of these kinds: of the extraction that comes first (None: none),
    and of the fine-tuning."""
    from pipeline.finetuning import FROM_HEAD, FROM_SCRATCH, NEW_HEAD
    from pipeline.learning import Learning
    from pipeline.optimisation import FitConfig

    context = click.get_current_context()
    typed = {name for name in options if context.get_parameter_source(name) in BY_HAND}
    names = {each.name for each in fields(finetuning)} - {"learning", "selection", "fit", "seeds"}
    if options["head"] is not None:
        free = {*names, *_CHOSEN, *(each.name for each in fields(FitConfig)), "seeds"}
        if ":" not in (options["backbone"] or ""):  # a function of the user's own has to be typed again
            free.remove("backbone")
        for param in context.command.params:
            if param.name in typed - free:
                raise click.UsageError(f"{param.opts[0]} is decided by the run of --head; leave it out")
    elif options["weights"] is None:
        raise click.UsageError(
            "give --head RUN to start from its head, or --weights (random, a name, a file) to start anew"
        )
    refuse_idle(options)
    read_window(options)
    pace = FROM_HEAD if options["head"] is not None else FROM_SCRATCH if options["weights"] == "random" else NEW_HEAD
    options |= {name: value for name, value in pace._asdict().items() if options[name] is None}
    network = {name: options.pop(name) for name in _EXTRACT}
    own = {name: options.pop(name) for name in names - {"backbone"}} | {"backbone": network["backbone"]}
    learning = learning_of(Learning, options)
    trained = {"fit": replace(learning.fit, epochs=learning.epochs), "seeds": learning.seeds}
    if own["head"] is not None:
        return None, finetuning(**own, **trained, selection=learning.selection if typed & {*_CHOSEN} else None)
    own["bank"] = own["bank"] or Path(f"{own['out']}.h5")
    shared = {name: own[name] for name in ("data", "weights", "all_files", "image_fps", "device", "precision", "quiet")}
    first = extraction(out=own["bank"], seed=learning.fit.seed, **shared, **network)
    return first, finetuning(**own, **trained, learning=learning)
