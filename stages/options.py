"""The kinds of options, the options that commands share, and those of extract, in groups."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.cluster import Cluster


class _Path(click.Path):
    """A path that is not empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class Real(click.FloatRange):
    """A finite number in a range; `nan` is neither below nor above anything, and so would be in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


# Where a value comes from that somebody has chosen: they typed it, or their recipe has it.
BY_HAND = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.DEFAULT_MAP)
BANK = _Path(path_type=Path, dir_okay=False)
DATA = _Path(path_type=Path)
_OPTION_COLUMN = 30  # letters; the text of an option with a longer name begins below it


def _region(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if not value:
        return value
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


_HEADINGS: dict[click.Parameter, str] = {}


def grouped(*options: Callable[[Any], Any], heading: str = "") -> Callable[[Any], Any]:
    """Several options as one decorator; `heading` is what `Headed` shows them under."""

    def add(command: Any) -> Any:
        before = len(getattr(command, "__click_params__", []))
        for option in reversed(options):
            command = option(command)
        if heading:
            _HEADINGS.update(dict.fromkeys(command.__click_params__[before:], heading))
        return command

    return add


def option_sections(command: click.Command, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
    """The options of a command by their heading, each as its names and its text; those without a heading come first."""
    sections: dict[str, list[tuple[str, str]]] = {"Options": []}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
        if record is not None:
            sections.setdefault(_HEADINGS.get(param, "Options"), []).append(record)
    return sections


class Headed(click.Command):
    """A command whose help lists its options under headings, all in the same two columns."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options without a heading come first."""
        sections = option_sections(self, ctx)
        width = max(len(names) for rows in sections.values() for names, _ in rows if len(names) <= _OPTION_COLUMN)
        for heading, ((names, text), *others) in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{names:<{width}}", text), *others], col_max=width)


LABELS = grouped(
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
)
WHAT = grouped(
    LABELS,
    click.option("--all-files", is_flag=True, help="Try every file, whatever its suffix."),
    click.option(
        "--image-fps",
        type=Real(min=0, min_open=True),
        metavar="N",
        help="Frame rate of folders of images, which have no clock of their own.",
    ),
    heading="Data",
)
_NAME = click.option(
    "--backbone",
    metavar="NAME",
    help=(
        "Any torchvision classification or video model, one of ours, timm/NAME, or a function of yours that makes one: "
        "FILE.py:FUNCTION, MODULE:FUNCTION.  [default: resnet50]"
    ),
)
OWN_BACKBONE = click.option(
    "--backbone",
    metavar="FUNCTION",
    help="The backbone again, where it is a function of yours: no code runs because a bank or a run names it.",
)
_CUT = grouped(
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
        help="How a frame becomes square: cut its middle out, change its aspect, or pad it.  [default: crop]",
    ),
    click.option(
        "--crop",
        callback=_region,
        metavar="X,Y,W,H",
        help=("Use only this region of every frame, in pixels; a manifest's crop_x, crop_y, crop_w, crop_h go first."),
    ),
)
BACKBONE = grouped(
    _NAME,
    click.option(
        "--weights",
        default="DEFAULT",
        show_default=True,
        help=(
            "A published weight name (IMAGENET1K_V2), 'random', a checkpoint file (.pth, .safetensors), or a"
            " fine-tuned run, which also brings what else of network and frames is not given here."
        ),
    ),
    _CUT,
    click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of random weights."
    ),
    heading="Network",
)
FRAMES = grouped(
    click.option(
        "--stride", type=click.IntRange(min=1), metavar="N", help="Take every N-th frame.  [default: every frame]"
    ),
    click.option(
        "--fps",
        type=Real(min=0, min_open=True),
        metavar="X",
        help="Take so many frames per second, by their real times.",
    ),
    click.option(
        "--frames", type=click.IntRange(min=1), metavar="N", help="Take so many frames per video, evenly spread."
    ),
    click.option("--allow-partial", is_flag=True, help="Bank what decodes of broken videos, marked as partial."),
    heading="Frames",
)
WINDOW = grouped(
    click.option(
        "--clip-length",
        type=click.IntRange(min=1),
        metavar="L",
        help="Clips of L frames for video networks.  [default: the network's]",
    ),
    click.option(
        "--clip-stride",
        type=click.IntRange(min=1),
        metavar="N",
        help="Frames from one clip to the next; no frame is left out.  [default: half a clip]",
    ),
    click.option(
        "--stack", type=click.IntRange(min=1), metavar="K", help="The K frames around each frame as channels of one."
    ),
    click.option("--grey", is_flag=True, help="Grey frames in the stack, one channel each."),
    click.option(
        "--flow",
        type=click.IntRange(min=1),
        metavar="L",
        help="Optical flow instead: the motion between the L + 1 frames around each frame, as 2 L channels.",
    ),
    click.option(
        "--flow-method",
        type=click.Choice(["dis", "tvl1", "raft"]),
        help="How it is measured: DIS or TV-L1 of OpenCV, or RAFT with --flow-weights.  [default: dis]",
    ),
    click.option("--flow-weights", metavar="NAME|FILE", help="Weights of RAFT: C_T_SKHT_V2, or a checkpoint file."),
    click.option(
        "--inflate/--no-inflate",
        default=False,
        help="Make a 3D network of clips out of an image network (I3D), with its weights.",
    ),
    heading="Rows that are more than one frame",
)
NETWORK = grouped(_NAME, _CUT, WINDOW, heading="Network, without --head")
VIEWS = click.option(
    "--views",
    metavar="5|10|random:K",
    help="Several views of each video: centre and corners, these and mirrored, or K random ones.",
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
JSON = click.option(
    "--json",
    type=DATA,
    is_flag=False,
    flag_value="-",
    metavar="[FILE.json]",
    help="Write it as one JSON document: into a file, else to standard output, and all words to standard error.",
)
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
    help="Rows per forward: frames, clips, or views of them.",
)
STORE = click.option(
    "--store",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Type of the stored embeddings.",
)
RETRY_FAILED = click.option("--retry-failed", is_flag=True, help="Try the videos that failed before again.")
RUN = grouped(
    DEVICE,
    PRECISION,
    STORE,
    BATCH_SIZE,
    RETRY_FAILED,
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


WORKERS = grouped(
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Start N worker processes on this machine: one per GPU, say.  [default: this process alone]",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        envvar="DASK_SCHEDULER_ADDRESS",
        show_envvar=True,
        help="Join the workers of a Dask cluster: tcp://host:8786.",
    ),
    click.option(
        "--scheduler-file",
        type=DATA,
        metavar="FILE",
        help="The same, by the file that `dask scheduler --scheduler-file FILE` writes.",
    ),
    click.option(
        "--stall-limit",
        type=Real(min=0, min_open=True),
        metavar="SECONDS",
        help="Give a video up of which no frame comes for so long; its worker is ended.  [default: 600]",
    ),
    heading="Several processes or machines",
)


def read_workers(options: dict[str, Any]) -> AbstractContextManager["Cluster | None"]:
    """Take the options of a cluster out, but the limit that its workers keep to, and start or join it.

    Returns:
        a context in which it is up; None where this process is to do all by itself.
    """
    source = click.get_current_context().get_parameter_source
    workers, scheduler, file = (options.pop(name) for name in ("workers", "scheduler", "scheduler_file"))
    if source("scheduler") not in BY_HAND and (workers or file or options["dry_run"]):
        scheduler = None  # it stands in the environment, and other words were said here
    asked = {"--workers": workers, "--scheduler": scheduler, "--scheduler-file": file}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude one another; start workers here, or join a cluster")
    if given and options["dry_run"]:
        raise click.UsageError(f"--dry-run measures in this process alone; leave {given[0]} out")
    if options["stall_limit"] is None:
        del options["stall_limit"]  # the usual
    if not given:
        if "stall_limit" in options:
            raise click.UsageError(
                "--stall-limit needs workers, since a stuck decoder ends only with its process; give --workers 1, say"
            )
        return nullcontext()
    from pipeline import cluster

    if workers:
        return cluster.started(workers, options["device"])
    return cluster.joined(scheduler, file, options["device"])


def read_window(options: dict[str, Any]) -> None:
    """Replace the options of what makes a row by `window` (None: the network's own) and `flow` (None: none)."""
    from pipeline.flow import Flow
    from pipeline.networks import window_of
    from pipeline.windows import Window

    names = ("clip_length", "clip_stride", "stack", "grey", "flow", "flow_method", "flow_weights")
    length, stride, stack, grey, pairs, method, weights = (options.pop(name) for name in names)
    given = {"--clip-length" if length else "--clip-stride": length or stride, "--stack": stack, "--flow": pairs}
    if len(several := [name for name, value in given.items() if value]) > 1:
        raise click.UsageError(f"{' and '.join(several)} exclude one another: clips, stacks or flow; give one")
    if grey and not stack:
        raise click.UsageError("--grey is for the frames of a stack; give --stack 1 --grey for single grey frames")
    if (method or weights) and not pairs:
        raise click.UsageError("--flow-method and --flow-weights say how --flow L is measured; give --flow 10, say")
    options["window"] = options["flow"] = None
    if length or stride:
        own = window_of(options["backbone"] or "resnet50", None)
        if length is None and own.kind != "clip":
            raise click.UsageError(
                "--clip-stride is from one clip to the next; say with --clip-length how long they are"
            )
        length = length or own.length
        options["window"] = Window("clip", length, stride or max(1, length // 2))
    elif stack:
        options["window"] = Window("stack", stack, grey=grey)
    elif pairs:
        options["window"] = Window("flow", pairs)
        options["flow"] = Flow(method or ("raft" if weights else "dis"), weights=weights)
