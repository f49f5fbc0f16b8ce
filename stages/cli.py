"""The command `framebank`: options, help, exit statuses; the work is in the stages. The only file that imports click.

Exit statuses: 0 done; 1 verification found problems; 2 could not run as asked (one line says why); 3 finished, with
videos in the ledger of failures; 130 interrupted, and resumable.
"""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.errors import UserError


class _Path(click.Path):
    """A path that is not empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


_BANK = _Path(path_type=Path, dir_okay=False)
_DATA = _Path(path_type=Path)


class _Refusal(click.ClickException):
    """One line and exit status 2."""

    exit_code = 2


class _Group(click.Group):
    """A group whose commands answer a user's mistake with one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a terminal without our characters shows them escaped
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise _Refusal(str(error)) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of our output (head, less) has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - so that closing it at exit succeeds
            raise SystemExit(0) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise _Refusal(f"{where}{error.strerror or error}") from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="framebank", message="framebank %(version)s")
def main() -> None:
    """Bank the CNN embeddings of every video frame, once, in one HDF5 file.

    \b
    framebank extract my_videos --out bank.h5    run the CNN over all frames, once
    framebank describe bank.h5                   look at what is in the bank

    Exit status: 0 all done, 1 verification failed, 2 could not run as asked, 3 finished with videos
    that could not be banked (the bank lists them as failures), 130 interrupted (run it again to go on).
    """


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


_WHAT = _options(
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
        type=_DATA,
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
_BACKBONE = _options(
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
_FRAMES = _options(
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
_RUN = _options(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        show_default=True,
        help="Compute precision; auto is bf16 where the machine has it, else fp32.",
    ),
    click.option(
        "--store",
        type=click.Choice(["float16", "float32"]),
        default="float16",
        show_default=True,
        help="Type of the stored embeddings.",
    ),
    click.option(
        "--batch-size",
        callback=_batch_size,
        default="auto",
        show_default=True,
        metavar="N|auto",
        help="Frames per forward.",
    ),
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
    click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
)


@main.command(short_help="Bank the embeddings of all frames of all videos.")
@click.argument("data", type=_DATA)
@click.option(
    "-o", "--out", type=_BANK, required=True, help="The bank, an HDF5 file. What it holds already is not done again."
)
@_WHAT
@_BACKBONE
@_FRAMES
@_RUN
def extract(stride: int | None, fps: float | None, frames: int | None, **options: Any) -> None:
    """Bank the embeddings of all frames of all videos in DATA.

    DATA is a folder (class subfolders, flat, folders of images), a CSV manifest (path, and any of id, label, split,
    group, start, end, fps, crop_x, crop_y, crop_w, crop_h and columns of your own), or one file.

    Run it again after an interruption, or after adding videos: it does what is missing. A video that cannot be read
    becomes a failure in the bank with its reason, the others go on, and the exit status is 3.
    """
    from pipeline.sampling import Sampling
    from stages.extract import ExtractConfig, run

    if sum(value is not None for value in (stride, fps, frames)) > 1:
        raise click.UsageError("--stride, --fps and --frames exclude one another; give one of them")
    sampling = Sampling(stride=stride or 1, fps=fps, frames=frames)
    raise SystemExit(run(ExtractConfig(sampling=sampling, **options)))


@main.command(short_help="Look into a bank; --verify reads all of it.")
@click.argument("bank", type=_BANK)
@click.argument("video", metavar="[ID]", required=False)
@click.option("--csv", "as_csv", is_flag=True, help="Write the catalog as CSV, one row per video.")
@click.option("--failures", is_flag=True, help="Write the failures as CSV: what could not be banked, and why.")
@click.option(
    "--verify",
    is_flag=True,
    help=("Read everything and hold it against the catalog; exit status 1 and the list if something is wrong."),
)
def describe(bank: Path, video: str | None, as_csv: bool, failures: bool, verify: bool) -> None:
    """Show what BANK holds, or the video ID in it."""
    from stages import describe as stage

    if (video is not None) + as_csv + failures + verify > 1:
        raise click.UsageError("ID, --csv, --failures and --verify exclude one another; give one of them")
    if verify:
        raise SystemExit(stage.verify(bank))
    if as_csv:
        stage.catalog_csv(bank)
    elif failures:
        stage.failures_csv(bank)
    elif video is not None:
        stage.one_video(bank, video)
    else:
        stage.overview(bank)


@main.command(short_help="Fold the parts of a bank into one file.")
@click.argument("bank", type=_BANK)
def pack(bank: Path) -> None:
    """Rewrite BANK and the parts in BANK.parts as one self-contained file. Needs free disk of its size meanwhile."""
    from stages import keep

    keep.pack(bank)


@main.command(short_help="Merge banks that were made alike.")
@click.argument("banks", type=_BANK, nargs=-1, required=True, metavar="BANK...")
@click.option("-o", "--out", type=_BANK, required=True, help="The merged bank; if it exists, it is merged too.")
def merge(banks: tuple[Path, ...], out: Path) -> None:
    """Merge every BANK into one. They must have been made alike: backbone, weights, preprocessing, frames, types."""
    from stages import keep

    keep.merge(out, banks)


@main.command(short_help="Remove videos from a bank.")
@click.argument("bank", type=_BANK)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def remove(bank: Path, ids: tuple[str, ...]) -> None:
    """Remove every video ID from BANK and from its failures. The bank is rewritten, so its space is free at once."""
    from stages import keep

    keep.remove(bank, ids)


@main.command(short_help="Write the sample clips that the demo uses.")
@click.argument("folder", type=_DATA)
def samples(folder: Path) -> None:
    """Write a small set of real, encoded clips with their manifest into FOLDER, unless they are there."""
    from pipeline.samples import make_samples

    click.echo(f"{len(make_samples(folder))} clips in {folder}")


@main.command(short_help="The whole walk on clips made here, in a minute.")
@click.argument("folder", type=_DATA, default=Path("data"))
def demo(folder: Path) -> None:
    """Make sample clips in FOLDER (default: data), bank them and show the bank. Needs no network and no data."""
    from stages.demo import run

    raise SystemExit(run(folder))


if __name__ == "__main__":
    main()
