"""The options of the commands, in groups that commands share. Only this file and cli.py import click."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class _Path(click.Path):
    """A path that is not empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


BANK = _Path(path_type=Path, dir_okay=False)
DATA = _Path(path_type=Path)


def _region(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not value:
        return ""
    try:
        x, y, width, height = (int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not x,y,width,height in whole pixels, such as 40,0,320,240") from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise click.BadParameter(f"{value!r} needs x, y of at least 0 and width, height of at least 1")
    return f"{x},{y},{width},{height}"


def _batch_size(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if value != "auto" and not (value.isdecimal() and int(value) > 0):
        raise click.BadParameter(f"{value!r} is neither auto nor a positive whole number")
    return value


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


WHAT = _options(
    click.option(
        "--label-from",
        metavar="LEVEL|REGEX|none",
        help=(
            "Class label from a folder level (1 is the first below DATA, -1 the one above the file) "
            "or a regular expression on the path below DATA, suffix included.  [default: 1]"
        ),
    ),
    click.option(
        "--group-from",
        metavar="LEVEL|REGEX",
        help="Group (recording, person, …) in the same ways; UCF101: '_(g\\d+)_'.",
    ),
    click.option(
        "--split-list",
        "split_lists",
        type=DATA,
        multiple=True,
        help="UCF101 or HMDB51 split lists: a file or a folder of them. May be repeated.",
    ),
    click.option("--all-files", is_flag=True, help="Try every file, whatever its suffix."),
    click.option(
        "--image-fps",
        type=click.FloatRange(min=0, min_open=True),
        metavar="N",
        help="Frame rate of folders of images, which have no clock of their own.",
    ),
)
BACKBONE = _options(
    click.option("--backbone", default="resnet50", show_default=True, help="Any torchvision classification model."),
    click.option(
        "--weights",
        default="DEFAULT",
        show_default=True,
        help=("A torchvision weight name (IMAGENET1K_V2), 'random', or a checkpoint file (.pth, .safetensors)."),
    ),
    click.option(
        "--layer",
        help=(
            "Node of the model to bank; NODE:mean averages a conv map over space.  [default: what its"
            " last linear layer reads]"
        ),
    ),
    click.option("--preset", help="Whose preprocessing goes with a checkpoint file or random weights, by weight name."),
    click.option(
        "--image-size",
        type=click.IntRange(min=1),
        metavar="N",
        help="Side of the square image the model sees.  [default: the preset's]",
    ),
    click.option(
        "--fit",
        type=click.Choice(["crop", "squash", "pad"]),
        default="crop",
        show_default=True,
        help="How a frame becomes square: cut its middle out, change its aspect, or pad it.",
    ),
    click.option(
        "--crop",
        callback=_region,
        default="",
        metavar="X,Y,W,H",
        help=("Use only this region of every frame, in pixels; a manifest's crop_x, crop_y, crop_w, crop_h go first."),
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of random weights."
    ),
)
FRAMES = _options(
    click.option(
        "--stride", type=click.IntRange(min=1), metavar="N", help="Take every N-th frame.  [default: every frame]"
    ),
    click.option(
        "--fps",
        type=click.FloatRange(min=0, min_open=True),
        help="Take so many frames per second, by their real times.",
    ),
    click.option(
        "--frames", type=click.IntRange(min=1), metavar="N", help="Take so many frames per video, evenly spread."
    ),
    click.option("--allow-partial", is_flag=True, help="Bank what decodes of broken videos, marked as partial."),
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Compute precision; auto is bf16 where the machine has it, else fp32.",
)
BATCH_SIZE = click.option(
    "--batch-size",
    callback=_batch_size,
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Frames per forward.",
)
RUN = _options(
    DEVICE,
    PRECISION,
    click.option(
        "--store",
        type=click.Choice(["float16", "float32"]),
        default="float16",
        show_default=True,
        help="Type of the stored embeddings.",
    ),
    BATCH_SIZE,
    click.option("--retry-failed", is_flag=True, help="Try the videos that failed before again."),
    click.option(
        "--pack/--no-pack",
        default=True,
        help=(
            "Fold the parts into one file at the end, when they are a quarter of it or more; or leave"
            " them and link.  [default: pack]"
        ),
    ),
    click.option(
        "--dry-run", is_flag=True, help="Say what would be done, and how long and large, from two or three videos."
    ),
    QUIET,
)


def _numbers(what: str, examples: str) -> Callable[[click.Context, click.Parameter, str], tuple[int, ...]]:
    def read(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
        if not all(part.strip().isdecimal() and int(part) for part in value.split(",") if value):
            raise click.BadParameter(f"{value!r} is not a list of {what}, such as {examples}")
        return tuple(int(part) for part in value.split(",") if value)

    return read


_lags = _numbers("whole numbers of frames from 1", "4 or 1,4")


def _share(name: str, default: float, text: str) -> Callable[[Any], Any]:
    return click.option(name, type=click.FloatRange(0, 1, max_open=True), default=default, show_default=True, help=text)


def _count(name: str, default: int | None, text: str) -> Callable[[Any], Any]:
    kind = click.IntRange(min=1)
    return click.option(name, type=kind, default=default, show_default=default is not None, metavar="N", help=text)


def _above_zero(name: str, default: float | None, text: str) -> Callable[[Any], Any]:
    kind = click.FloatRange(min=0, min_open=True)
    return click.option(name, type=kind, default=default, show_default=default is not None, metavar="X", help=text)


def _choice(name: str, choices: list[str], default: str | None, text: str) -> Callable[[Any], Any]:
    return click.option(name, type=click.Choice(choices), default=default, show_default=default is not None, help=text)


TARGET_FILES = _options(
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
TARGETS = _options(
    TARGET_FILES,
    click.option("--multi-label", is_flag=True, help="Any number of labels at once ('a|b' in a column)."),
    click.option("--regression", is_flag=True, help="The target is a number."),
    click.option("--background", metavar="LABEL", help="Label of frames in no segment.  [default: they do not count]"),
    click.option("--allow-overlap", is_flag=True, help="Where segments overlap, the one that starts later counts."),
    click.option("--allow-unknown", is_flag=True, help="Pass over segments of videos that are not in the bank."),
    click.option("--allow-beyond", is_flag=True, help="Cut off segments that go on past the end of their video."),
    click.option(
        "--min-seconds",
        type=click.FloatRange(min=0),
        default=0,
        show_default=True,
        help="Predicted segments shorter than this join their neighbours.",
    ),
)
SPLITS = _options(
    click.option("--split-column", default="split", show_default=True, help="Column that says train, val or test."),
    click.option("--splits", type=DATA, metavar="CSV", help="Splits as an earlier run wrote them: id, fold, part."),
    click.option("--folds", type=click.IntRange(min=2), metavar="K", help="Cross-validate, whatever the column says."),
    click.option(
        "--test-share",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.2,
        show_default=True,
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
        help="Column of recordings or persons that are never divided between parts; none: divide them.",
    ),
    click.option("--split-seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True),
)
STEPS = _options(
    click.option("--stride", type=click.IntRange(min=1), metavar="N", help="Every N-th frame of the bank."),
    click.option("--fps", type=click.FloatRange(min=0, min_open=True), help="So many frames per second."),
    click.option("--frames", type=click.IntRange(min=1), metavar="N", help="N frames, evenly spread."),
    click.option("--tsn", type=click.IntRange(min=1), metavar="N", help="One of each N-th, at random in training."),
    click.option("--tail", type=click.IntRange(min=1), metavar="N", help="N frames, from the last one backwards."),
    click.option("--window", type=click.IntRange(min=1), metavar="N", help="N frames in a row, anywhere in training."),
    click.option(
        "--part",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="SHARE",
        help="In training a random stretch of at least this share of the video; 1: all of it.  [default: 0.5]",
    ),
    click.option(
        "--test-crops",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Average so many draws of --tsn or --window in testing.",
    ),
)
HEAD = _options(
    _choice("--cell", ["lstm", "gru", "none"], "lstm", "Recurrent cell; none looks at every step by itself."),
    _count("--hidden", 64, "Units per direction."),
    _count("--layers", 1, "Recurrent layers."),
    click.option("--bidirectional/--one-direction", default=None, help="Read from both ends.  [default: both]"),
    click.option(
        "--pool",
        default="max+stats",
        show_default=True,
        metavar="NAME[+NAME…]",
        help="How the steps become one vector: last, mean, max, stats (mean and deviation), attention; or max+stats.",
    ),
    _choice("--norm", ["none", "batch"], "batch", "Batch normalisation of what the classifier reads."),
    click.option("--centre/--no-centre", default=True, help="Subtract each video's mean over time.  [default: centre]"),
    click.option(
        "--deltas", callback=_lags, default="", metavar="N,…", help="Differences to N frames earlier beside features."
    ),
    click.option(
        "--changes",
        callback=_lags,
        default="4",
        show_default=True,
        metavar="N,…",
        help="The same without sign: how much changes. '' for none.",
    ),
    click.option(
        "--pca",
        type=click.IntRange(min=0),
        metavar="N",
        help="Project all these onto N principal components of the training videos; 0: don't.  [default: at most 128]",
    ),
    _count("--projection", None, "Width of a linear layer before the cell."),
    click.option(
        "--mlp",
        callback=_numbers("widths", "128 or 256,64"),
        default="",
        metavar="N,…",
        help="Hidden layers of the classifier.",
    ),
    _share("--input-dropout", 0.0, "Of the features."),
    _share("--dropout", 0.0, "Between recurrent layers."),
    _share("--recurrent-dropout", 0.0, "Of the hidden-to-hidden weights."),
    _share("--output-dropout", 0.5, "Before the classifier."),
    click.option(
        "--init",
        multiple=True,
        type=click.Choice(["orthogonal-recurrent", "orthogonal-input", "bias-one", "forget-bias"]),
        help="Initial weights of the cell; may be repeated.  [default: torch's]",
    ),
    _choice("--spatial", ["mean", "flatten", "attention"], None, "How banked maps become vectors."),
    _choice(
        "--supervise",
        ["pooled", "every-step", "growing"],
        "pooled",
        "What learns the video's label: the pooled sequence, every step, or steps with growing weight.",
    ),
    _choice("--read", ["last", "mean", "max", "weighted"], "last", "How supervised steps give the prediction."),
    _choice("--loss", ["cross-entropy", "bce", "mse", "huber"], None, "[default: what fits the target]"),
    _choice(
        "--fuse",
        ["concat", "mean", "svm"],
        "concat",
        "Several banks: features side by side, or a head each and scores fused.",
    ),
)
TRAINING = _options(
    _count("--epochs", 30, "At most so many passes over the training videos."),
    _count("--batch-size", 16, "Videos per step."),
    _count("--max-steps", 32768, "Frames per step, at most (one video may have more)."),
    _count("--chunk-steps", 4096, "Longer videos with a label per frame are trained in chunks of so many frames."),
    _choice("--optimizer", ["adamw", "sgd"], "adamw", "How weights are changed."),
    _above_zero("--learning-rate", 2e-3, "At its peak."),
    _share("--momentum", 0.9, "Of sgd."),
    click.option("--weight-decay", type=click.FloatRange(min=0), default=1e-2, show_default=True, metavar="X"),
    _choice("--schedule", ["constant", "cosine", "step", "plateau"], "cosine", "Learning rate over the epochs."),
    click.option(
        "--warmup-epochs", type=click.FloatRange(min=0), help="Of rising learning rate.  [default: a tenth of all]"
    ),
    _count("--step-epochs", 10, "Epochs before step and plateau lower the rate."),
    click.option(
        "--step-factor",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.5,
        show_default=True,
        help="By which they lower it.",
    ),
    _above_zero("--clip-norm", 1.0, "Gradients are clipped to this norm."),
    _above_zero("--clip-value", None, "And then to this value each."),
    _choice("--balance", ["none", "weights", "sampling"], "none", "Make rare classes count as much as others."),
    click.option(
        "--label-smoothing",
        type=click.FloatRange(0, 1, max_open=True),
        help="Share of a class target that is spread over all classes.  [default: 0.1]",
    ),
    _count("--patience", None, "Stop after so many epochs without improvement."),
    click.option("--monitor", default="loss", show_default=True, help="Metric of the validation part that chooses."),
    click.option("--amp", is_flag=True, help="Mixed precision (bfloat16), on a GPU."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True),
    _count("--seeds", 1, "Train with so many seeds and give mean and spread."),
    DEVICE,
    QUIET,
)
