"""The options of train-head, in groups: targets, splits, frames, the head, its training."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import click

from stages.options import BY_HAND, DATA, DEVICE, QUIET, Real, grouped


def _numbers(what: str, examples: str) -> Callable[[click.Context, click.Parameter, str], tuple[int, ...]]:
    def read(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
        if not all(part.strip().isdecimal() and int(part) for part in value.split(",") if value):
            raise click.BadParameter(f"{value!r} is not a list of {what}, such as {examples}")
        return tuple(int(part) for part in value.split(",") if value)

    return read


_lags = _numbers("whole numbers of frames from 1", "4 or 1,4")
_widths = _numbers("widths", "128 or 256,64")


def _share(name: str, default: float, text: str) -> Callable[[Any], Any]:
    return click.option(
        name, type=Real(0, 1, max_open=True), default=default, show_default=True, metavar="SHARE", help=text
    )


def _count(name: str, default: int | None, text: str) -> Callable[[Any], Any]:
    kind = click.IntRange(min=1)
    return click.option(name, type=kind, default=default, show_default=default is not None, metavar="N", help=text)


def _seed(name: str, text: str) -> Callable[[Any], Any]:
    return click.option(name, type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, metavar="N", help=text)


def _above_zero(name: str, default: float | None, text: str) -> Callable[[Any], Any]:
    kind = Real(min=0, min_open=True)
    return click.option(name, type=kind, default=default, show_default=default is not None, metavar="X", help=text)


def _choice(name: str, choices: list[str], default: str | None, text: str) -> Callable[[Any], Any]:
    return click.option(name, type=click.Choice(choices), default=default, show_default=default is not None, help=text)


TARGET_FILES = grouped(
    click.option(
        "--target",
        metavar="COLUMN",
        help="Column of the bank's catalog, or of the file of --targets or --frame-values.  [default: label]",
    ),
    click.option("--targets", type=DATA, metavar="CSV", help="Targets of the videos, joined by a column id."),
    click.option(
        "--segments",
        type=DATA,
        metavar="PATH",
        help=(
            "A label per frame: CSV of id, start, end, label (seconds, or start_frame, end_frame), one-hot CSV, BORIS"
            " CSV, or a folder of MS-TCN or Cholec80 text files."
        ),
    ),
    click.option(
        "--frame-values", type=DATA, metavar="CSV", help="A number per frame: columns id, time or frame, and a value."
    ),
)
TARGETS = grouped(
    TARGET_FILES,
    click.option("--multi-label", is_flag=True, help="Any number of labels at once ('a|b' in a column)."),
    click.option("--regression", is_flag=True, help="The target is a number."),
    click.option("--background", metavar="LABEL", help="Label of frames in no segment.  [default: they do not count]"),
    click.option("--allow-overlap", is_flag=True, help="Where segments overlap, the one that starts later counts."),
    click.option("--allow-unknown", is_flag=True, help="Pass over segments of videos that are not in the bank."),
    click.option("--allow-beyond", is_flag=True, help="Cut off segments that go on past the end of their video."),
    click.option(
        "--min-seconds",
        type=Real(min=0),
        default=0,
        show_default=True,
        metavar="X",
        help="Predicted segments shorter than this join their neighbours (in predict too).",
    ),
    heading="Targets",
)
SPLITS = grouped(
    click.option(
        "--split-column",
        default="split",
        show_default=True,
        metavar="COLUMN",
        help="Column that says train, val or test.",
    ),
    click.option("--splits", type=DATA, metavar="CSV", help="Splits as an earlier run wrote them: id, fold, part."),
    click.option(
        "--folds",
        type=click.IntRange(min=2),
        metavar="K",
        help="Cross-validate with K folds, whatever the column says.",
    ),
    click.option(
        "--test-share",
        type=Real(0, 1, min_open=True, max_open=True),
        default=0.2,
        show_default=True,
        metavar="SHARE",
        help="Share held out at random where there is no split.",
    ),
    _share(
        "--validation-share",
        0.0,
        "Share of the training part set aside to choose the epoch and to calibrate, where the split has no such part.",
    ),
    click.option(
        "--group-column",
        default="group",
        show_default=True,
        metavar="COLUMN",
        help="Column of recordings or persons that are never divided between parts; none: divide them.",
    ),
    _seed("--split-seed", "Seed of random parts and folds."),
    heading="Held-out videos",
)
STEPS = grouped(
    click.option("--stride", type=click.IntRange(min=1), metavar="N", help="Every N-th frame of the bank."),
    click.option("--fps", type=Real(min=0, min_open=True), metavar="X", help="So many frames per second."),
    click.option("--frames", type=click.IntRange(min=1), metavar="N", help="N frames, evenly spread."),
    click.option(
        "--tsn", type=click.IntRange(min=1), metavar="N", help="One frame of each N-th part, random in training."
    ),
    click.option("--tail", type=click.IntRange(min=1), metavar="N", help="N frames, from the last one backwards."),
    click.option(
        "--lrcn",
        type=click.IntRange(min=1),
        metavar="N",
        help="The same as LRCN code does it: always N, so some may repeat.",
    ),
    click.option(
        "--window",
        "random_window",  # `window` is what makes a row of a bank
        type=click.IntRange(min=1),
        metavar="N",
        help="N frames in a row, anywhere in training.",
    ),
    click.option(
        "--test-crops",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Average so many draws of --tsn or --window in testing.",
    ),
    heading="Frames that the head sees",
)
HEAD = grouped(
    grouped(
        _choice("--spatial", ["mean", "flatten", "attention"], None, "How maps become vectors; they need it."),
        click.option(
            "--centre/--no-centre", default=True, help="Subtract each video's mean over time.  [default: centre]"
        ),
        click.option(
            "--deltas",
            callback=_lags,
            default="",
            metavar="N,…",
            help="Beside the features their differences to N frames earlier.",
        ),
        click.option(
            "--changes",
            callback=_lags,
            default="4",
            show_default=True,
            metavar="N,…",
            help="The same without sign: how much each feature changes; '' for none.",
        ),
        click.option(
            "--pca",
            type=click.IntRange(min=0),
            metavar="N",
            help=(
                "Project all these onto N principal components of the training videos; 0: don't."
                "  [default: at most 128]"
            ),
        ),
        _count("--projection", None, "Width of a linear layer before the cell."),
        _share("--projection-dropout", 0.0, "Dropout of what it gives."),
        heading="What the head reads of each frame",
    ),
    grouped(
        _choice("--cell", ["lstm", "gru", "none"], "lstm", "Recurrent cell; none looks at every step by itself."),
        _count("--hidden", 64, "Units per direction."),
        _count("--layers", 1, "Recurrent layers."),
        click.option("--bidirectional/--one-direction", default=None, help="Read from both ends.  [default: both]"),
        click.option(
            "--pool",
            default="max+stats",
            show_default=True,
            metavar="NAME[+NAME…]",
            help=(
                "How the steps become one vector: last, mean, max, stats (mean and deviation), attention,"
                " or several as in max+stats."
            ),
        ),
        click.option(
            "--step-mlp",
            callback=_widths,
            default="",
            metavar="N,…",
            help="Widths of layers with ReLU that every step goes through before the pool.",
        ),
        _choice("--norm", ["none", "batch"], "batch", "Batch normalisation of what the classifier reads."),
        click.option(
            "--mlp",
            callback=_widths,
            default="",
            metavar="N,…",
            help="Widths of hidden layers in the classifier.",
        ),
        _share("--input-dropout", 0.0, "Dropout of the features."),
        _share("--dropout", 0.0, "Dropout between recurrent layers."),
        _share("--recurrent-dropout", 0.0, "Dropout of the hidden-to-hidden weights."),
        _share(
            "--variational-dropout",
            0.0,
            "Dropout of the cell's input and state, the same at all steps of a video; slower.",
        ),
        _share("--output-dropout", 0.5, "Dropout before the classifier."),
        click.option(
            "--init",
            multiple=True,
            type=click.Choice(["orthogonal-recurrent", "orthogonal-input", "bias-one", "forget-bias"]),
            help="Initial weights of the cell; may be repeated.  [default: torch's]",
        ),
        _choice(
            "--fuse",
            ["concat", "mean", "svm"],
            "concat",
            "Several banks: features side by side, or a head each and scores fused.",
        ),
        heading="The head",
    ),
)
RESAMPLING = grouped(
    _choice(
        "--resample",
        ["nearest", "linear"],
        None,
        "Read the other banks at the times of the first: the nearest row, or between two.  [default: rows must agree]",
    ),
    click.option(
        "--max-gap",
        type=Real(min=0, min_open=True),
        metavar="SECONDS",
        help="So far away may the nearest row be.  [default: 1.5 times the longer usual step of both, at least 0.1]",
    ),
    heading="Several banks with times of their own",
)


def training(
    learning_rate: float | None = 2e-3,
    max_steps: int = 32768,
    epochs: int | None = None,
    epochs_help: str = "Passes over the training videos.  [default: 30, more where they make few steps]",
    rate_help: str = "Learning rate at its peak.",
    more: Sequence[Callable[[Any], Any]] = (),
) -> Callable[[Any], Any]:
    """How heads are trained, and models that end in one, with the defaults that differ."""
    return grouped(
        grouped(
            _choice(
                "--supervise",
                ["pooled", "every-step", "growing"],
                "pooled",
                "What learns the video's label: the pooled sequence, every step, or steps with growing weight.",
            ),
            _choice(
                "--read", ["last", "mean", "max", "weighted"], "last", "How the trained steps give the prediction."
            ),
            _choice(
                "--loss",
                ["cross-entropy", "bce", "mse", "huber"],
                None,
                "What training makes small.  [default: what fits the target]",
            ),
            click.option(
                "--label-smoothing",
                type=Real(0, 1, max_open=True),
                metavar="SHARE",
                help="Share of a class target that is spread over all classes.  [default: 0.1]",
            ),
            _choice("--balance", ["none", "weights", "sampling"], "none", "Make rare classes count as much as others."),
            _count("--epochs", epochs, epochs_help),
            _count("--patience", None, "Stop after so many epochs without improvement of the validation part."),
            click.option(
                "--monitor",
                default="loss",
                show_default=True,
                metavar="METRIC",
                help="What of the validation part chooses the epoch: loss, or a metric such as macro_f1.",
            ),
            _count("--batch-size", 16, "Videos per step of the optimiser."),
            _count("--max-steps", max_steps, "Frames per step, at most (one video may have more)."),
            _count(
                "--chunk-steps", 256, "Longer videos with a label per frame are trained in chunks of so many frames."
            ),
            _seed("--seed", "Seed of first weights, order and dropout."),
            _count("--seeds", 1, "Train with so many seeds and give mean and spread."),
            heading="Training",
        ),
        grouped(
            _choice("--optimizer", ["adamw", "sgd"], "adamw", "How weights are changed."),
            _above_zero("--learning-rate", learning_rate, rate_help),
            _share("--momentum", 0.9, "Momentum of sgd."),
            click.option(
                "--weight-decay", type=Real(min=0), default=1e-2, show_default=True, metavar="X", help="Pull towards 0."
            ),
            _choice(
                "--schedule", ["constant", "cosine", "step", "plateau"], "cosine", "Learning rate over the epochs."
            ),
            _share("--warmup", 0.1, "Share of the training in which the learning rate rises first."),
            _count("--step-epochs", 10, "Epochs before step and plateau lower the rate."),
            click.option(
                "--step-factor",
                type=Real(0, 1, min_open=True, max_open=True),
                default=0.5,
                show_default=True,
                metavar="X",
                help="By which they multiply it.",
            ),
            _above_zero("--clip-norm", 1.0, "Gradients are clipped to this norm."),
            _above_zero("--clip-value", None, "And then to this value each."),
            *more,
            heading="Optimiser",
        ),
        DEVICE,
        QUIET,
    )


TRAINING = training(more=(click.option("--amp", is_flag=True, help="Mixed precision (bfloat16), on a GPU."),))


def refuse_idle(options: dict[str, Any]) -> None:
    """Refuse options of train-head that somebody has chosen and that would change nothing beside the others.

    Those of a recipe are passed over where what was typed makes them idle.
    """
    per_frame = options["segments"] is not None or options["frame_values"] is not None
    steps = per_frame or options["supervise"] != "pooled"
    given = "--folds" if options["folds"] is not None else "--splits" if options["splits"] is not None else None
    falls = options["schedule"] in ("step", "plateau")
    learnt = ("segments", "frame_values", "supervise")
    idle = {
        "pool": ("what learns every step pools nothing" if steps else None, learnt),
        "read": (None if steps and not per_frame else "it is for --supervise every-step and growing", learnt),
        "momentum": (None if options["optimizer"] == "sgd" else "it is for --optimizer sgd", ("optimizer",)),
        "step_epochs": (None if falls else "it is for --schedule step and plateau", ("schedule",)),
        "step_factor": (None if falls else "it is for --schedule step and plateau", ("schedule",)),
        "chunk_steps": (
            None if per_frame or options.get("head") else "it is for --segments and --frame-values",
            learnt,
        ),
        "split_column": (given and f"{given} decides the parts", ("folds", "splits")),
        "test_share": (given and f"{given} decides the parts", ("folds", "splits")),
        "max_gap": (None if options.get("resample") else "it is for --resample", ()),
    }
    source = click.get_current_context().get_parameter_source
    for name, (why, causes) in idle.items():
        yields = any(source(cause) is click.core.ParameterSource.COMMANDLINE for cause in causes)
        typed = source(name) is click.core.ParameterSource.COMMANDLINE
        if why and (typed or (source(name) in BY_HAND and not yields)):
            raise click.UsageError(f"--{name.replace('_', '-')} would change nothing: {why}; leave it out")


def learning_of(kind: Any, options: dict[str, Any]) -> Any:
    """The flat options of the command line as a nested config of some `kind`: `Learning`, or one that has more."""
    from pipeline.heads import HeadConfig
    from pipeline.optimisation import FitConfig
    from pipeline.resampling import Resampling
    from pipeline.selection import Selection

    def take(config: Any) -> dict[str, Any]:
        return {field.name: options.pop(field.name) for field in fields(config) if field.name in options}

    rules = {name: name for name in ("stride", "fps", "frames", "tsn", "tail", "lrcn")} | {"random_window": "crop"}
    given = [(name, options.pop(name)) for name in rules]
    given = [(name, amount) for name, amount in given if amount is not None]
    if len(given) > 1:
        names = " and ".join(f"--{name.removeprefix('random_')}" for name, _ in given)
        raise click.UsageError(f"{names} exclude one another; give one")
    rule, amount = (rules[given[0][0]], given[0][1]) if given else ("all", 0)
    selection = Selection(rule, amount, options.pop("test_crops"))
    allow = frozenset(name for name in ("overlap", "unknown", "beyond") if options.pop(f"allow_{name}"))
    if options["bidirectional"] is None:
        options["bidirectional"] = options["cell"] != "none"
    epochs = options.pop("epochs")
    resample, max_gap = options.pop("resample", None), options.pop("max_gap", None)
    options["resampling"] = None if resample is None else Resampling(resample, max_gap)
    head, fit = HeadConfig(**take(HeadConfig)), FitConfig(**take(FitConfig))
    return kind(selection=selection, allow=allow, head=head, fit=fit, epochs=epochs, **options)
