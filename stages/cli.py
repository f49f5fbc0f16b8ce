"""The command `framebank`: its commands, help and exit statuses; the work is in the stages, the options in options.py
and head_options.py. What becomes of a call, its exit status among it, is in calls.py.
"""

from pathlib import Path
from typing import Any

import click

from pipeline.loading import loading
from stages import events
from stages.bench_commands import bench
from stages.calls import Calls, everywhere
from stages.exchange_commands import export, import_features
from stages.export_model_options import export_model
from stages.finetune_options import FINETUNE
from stages.head_options import (
    HEAD,
    RESAMPLING,
    SPLITS,
    STEPS,
    TARGET_FILES,
    TARGETS,
    TRAINING,
    learning_of,
    refuse_idle,
)
from stages.options import (
    BACKBONE,
    BANK,
    DATA,
    DEVICE,
    FRAMES,
    JSON,
    OWN_BACKBONE,
    QUIET,
    RUN,
    VIEWS,
    WHAT,
    WINDOW,
    WORKERS,
    read_workers,
)
from stages.predict_options import PREDICT, by_itself, extraction_of, of_network, of_run
from stages.recipe_options import RECIPE, SHIPPED, Filled


@click.group(
    cls=Calls,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="framebank", message="framebank %(version)s")
def main() -> None:
    """Bank the CNN embeddings of every video frame, once, in one HDF5 file.

    \b
    framebank extract my_videos --out bank.h5          run the CNN over all frames, once
    framebank describe bank.h5                         look at what is in the bank
    framebank explore bank.h5                          the same in a browser, video by video
    framebank train-head bank.h5 --out run             train a head, beside baselines
    framebank finetune my_videos --head run --out r2   train the CNN with it
    framebank report run                               look at what came of it, in a browser
    framebank predict run new.mp4                      label new videos

    Exit status: 0 all done, 1 verification found problems, 2 could not run as asked, 3 finished with
    videos that could not be read, 130 interrupted (run it again to go on).
    """


main.add_command(bench)
main.add_command(import_features)
main.add_command(export)
main.add_command(export_model)


@main.command(cls=Filled, short_help="Bank the embeddings of all frames of all videos.")
@click.argument("data", type=DATA, nargs=-1, required=True, metavar="DATA...")
@click.option(
    "-o", "--out", type=BANK, required=True, help="The bank, an HDF5 file. What it holds already is not done again."
)
@RECIPE
@WHAT
@BACKBONE
@WINDOW
@FRAMES
@VIEWS
@RUN
@WORKERS
def extract(**options: Any) -> None:
    """Bank the embeddings of all frames of all videos in DATA.

    DATA is a folder (class subfolders, flat, folders of images), a CSV manifest (path, and any of id, label, split,
    group, start, end, fps, crop_x, crop_y, crop_w, crop_h and columns of your own), or one file. Or several files and
    folders, a pattern in quotes ('videos/**/*.mp4'), or - for a list on standard input, a path per line.

    Run it again after an interruption, or after adding videos: it does what is missing. A video that cannot be read
    becomes a failure in the bank with its reason, the others go on, and the exit status is 3.
    """
    with read_workers(options) as cluster:  # first, so that workers load torch while this process does
        with loading():
            from stages.extract import ExtractConfig, run

        status = run(extraction_of(ExtractConfig, options), cluster)
    raise SystemExit(status)


@main.command("train-head", cls=Filled, short_help="Train an LSTM or GRU head on a bank, beside baselines.")
@click.argument("banks", type=BANK, nargs=-1, required=True, metavar="BANK...")
@click.option("-o", "--out", type=DATA, required=True, help="The run folder. A run that was stopped goes on.")
@RECIPE
@TARGETS
@SPLITS
@STEPS
@HEAD
@RESAMPLING
@TRAINING
def train_head(**options: Any) -> None:
    """Train a recurrent head on the sequences of BANK and score it on held-out videos, beside simple baselines.

    The target is the bank's label unless you say otherwise. What is held out is the bank's split column, else folds or
    a random part: never a clip of a recording (group) that was trained on. Of several banks the first one's catalog and
    times count.
    """
    with loading():
        from stages.train_head import TrainHeadConfig, run

    refuse_idle(options)
    raise SystemExit(run(learning_of(TrainHeadConfig, options)))


@main.command(cls=Filled, short_help="Train backbone and head end to end.")
@click.argument("data", type=DATA)
@click.option(
    "-o", "--out", type=DATA, required=True, metavar="RUN2", help="The run folder. A run that was stopped goes on."
)
@RECIPE
@FINETUNE
def finetune(**options: Any) -> None:
    """Unfreeze the backbone of a head and train both on the videos in DATA.

    With --head RUN it starts from the head of a finished run, on the same split; DATA is what the head's bank was made
    of. What stays frozen is computed once, if it can be. Without --head it starts from scratch: the videos are banked
    with the --weights, which also sees what can be read, and new heads are trained with the backbone.

    Several GPUs: torchrun --nproc-per-node N -m stages.cli finetune ...
    """
    from pipeline import ranks

    with loading():
        from stages import extract, finetune, finetune_options

    first, config = finetune_options.read(extract.ExtractConfig, finetune.FinetuneConfig, options)
    with ranks.joined():
        status = 0 if first is None else ranks.same(extract.run(first) if ranks.first() else 0)
        if status != extract.INTERRUPTED:
            status = finetune.run(config) or status
    events.end(status, resumable=True)  # of several ranks none comes back
    ranks.leave(status)


@main.command(short_help="Score a finished run again, or on other banks.")
@click.argument("run", type=DATA)
@click.argument("banks", type=BANK, nargs=-1, metavar="[BANK...]")
@click.option(
    "--split",
    type=click.Choice(["test", "all"]),
    help="The test part alone, or all videos.  [default: test of the run's own bank, all of others]",
)
@TARGET_FILES
@JSON
@OWN_BACKBONE
@DEVICE
@QUIET
def evaluate(**options: Any) -> None:
    """Score the heads of RUN again on what they did not train on.

    Without BANK these are the run's own held-out videos, each with the head that was trained without it (and with its
    backbone, in a fine-tuned run), held against what the run wrote down: exit status 1 if they differ. With BANK it is
    the final head on the videos of another bank that was made alike; what it trained on is left out. Targets come from
    where the run's came, unless you say so.
    """
    with loading():
        from stages.evaluate import EvaluateConfig
        from stages.evaluate import run as stage

    raise SystemExit(stage(EvaluateConfig(**options)))


@main.command(cls=Filled, short_help="Run backbone and head, or a network by itself, on new videos.")
@click.argument("paths", type=DATA, nargs=-1, required=True, metavar="[RUN] VIDEO...")
@PREDICT
def predict(paths: tuple[Path, ...], **options: Any) -> None:
    """Predict VIDEO (files, folders, manifests, patterns in quotes, or - for a list on standard input) with the head of
    RUN, or, without RUN, with the classifier that the network of --recipe or --backbone has itself.

    With RUN the backbone runs over the videos as it did for the bank that the head was trained on: the same weights,
    layer, preprocessing and frames, or the command refuses. Without, the network's classes are those that its weights
    were trained on, and what it makes of all windows of a video is averaged. A video that cannot be read is named, and
    the exit status is 3.

    With --bank the videos are read from banks made like those of training, in their order: so a head can label new
    videos whose features were imported.
    """
    if by_itself(paths, options):
        from stages import classify

        raise SystemExit(classify.run(of_network(classify.ClassifyConfig, paths, options)))
    with loading():
        from stages import predict

    raise SystemExit(predict.run(of_run(predict.PredictConfig, paths, options)))


@main.command(short_help="Set runs side by side.")
@click.argument("runs", type=DATA, nargs=-1, required=True, metavar="RUN...")
@click.option("--csv", type=DATA, metavar="FILE", help="Write the table as CSV.")
@JSON
def compare(**options: Any) -> None:
    """Set finished RUNs side by side: score, interval, difference to the best baseline, time.

    It says so where runs held out different videos: their scores cannot be compared.
    """
    from stages.compare import CompareConfig, run

    raise SystemExit(run(CompareConfig(**options)))


@main.command(short_help="Write an HTML page of a run, or of several side by side.")
@click.argument("runs", type=DATA, nargs=-1, required=True, metavar="RUN...")
@click.option(
    "-o",
    "--out",
    type=DATA,
    metavar="FILE",
    help="The page.  [default: RUN/report.html; of several runs comparison.html beside the first]",
)
@OWN_BACKBONE
def report(**options: Any) -> None:
    """Write one self-contained HTML page about RUN, to be opened in a browser: scores beside the baselines, where it
    fails and when in a video, curves, classes, split, settings and cost.

    The videos of the surest mistakes are shown where they still lie where they were banked from. Several finished RUNs
    are set side by side.
    """
    from stages.report import ReportConfig, run

    raise SystemExit(run(ReportConfig(**options)))


@main.command(short_help="Write an HTML page of a bank: a map of its videos, copies, failures.")
@click.argument("bank", type=BANK)
@click.option("-o", "--out", type=DATA, metavar="FILE", help="The page.  [default: beside the bank, named as it is]")
def explore(**options: Any) -> None:
    """Write one self-contained HTML page about BANK, to be opened in a browser: counts and lengths, a map of its videos
    and what is nearest to each, where their features stand still, duplicates, and what could not be banked.

    The videos are shown where they still lie where they were banked from.
    """
    from stages.explore import ExploreConfig, run

    raise SystemExit(run(ExploreConfig(**options)))


@main.command(short_help="Look into a bank; --verify reads all of it.")
@click.argument("bank", type=BANK)
@click.argument("video", metavar="[ID]", required=False)
@click.option("--csv", "as_csv", is_flag=True, help="Write the catalog as CSV, one row per video.")
@click.option("--failures", is_flag=True, help="Write the failures as CSV: what could not be banked, and why.")
@click.option(
    "--verify",
    is_flag=True,
    help=("Read everything and hold it against the catalog; exit status 1 and the list if something is wrong."),
)
@click.option("--stats", is_flag=True, help="Read everything and say what the values are like: range, mean, zeros.")
@JSON
def describe(
    bank: Path, video: str | None, as_csv: bool, failures: bool, verify: bool, stats: bool, json: Path | None
) -> None:
    """Show what BANK holds, or the video ID in it."""
    from stages import describe as stage

    if (video is not None) + as_csv + failures + verify + stats > 1:
        raise click.UsageError("ID, --csv, --failures, --verify and --stats exclude one another; give one of them")
    if json is not None and as_csv:
        raise click.UsageError("--csv and --json exclude one another; give one of them")
    if json is not None:
        raise SystemExit(stage.as_json(bank, json, video, failures=failures, checked=verify, stats=stats))
    if verify:
        raise SystemExit(stage.verify(bank))
    if as_csv:
        stage.catalog_csv(bank)
    elif failures:
        stage.failures_csv(bank)
    elif stats:
        stage.statistics(bank)
    elif video is not None:
        stage.one_video(bank, video)
    else:
        stage.overview(bank)


@main.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the recipes: published systems, each with a line and its source.

    \b
    framebank recipes show lrcn > mine.toml             a recipe as a file, to be changed
    framebank extract my_videos --recipe lrcn -o b.h5   what is not typed is taken from it
    """
    from stages.show_recipes import overview

    if ctx.invoked_subcommand is None:
        click.echo("\n".join(overview(SHIPPED)))


@recipes.command("show", short_help="Print a recipe as the file that it is.")
@click.argument("recipe", metavar="NAME")
def show_recipe(recipe: str) -> None:
    """Print the recipe NAME: the TOML file itself, which `--recipe FILE` takes too."""
    from stages.show_recipes import text

    click.echo(text(recipe, SHIPPED), nl=False)


@main.command(short_help="Fold the parts of a bank into one file.")
@click.argument("bank", type=BANK)
def pack(bank: Path) -> None:
    """Rewrite BANK and the parts in BANK.parts as one self-contained file. Needs free disk of its size meanwhile."""
    from stages import keep

    keep.pack(bank)


@main.command(short_help="Merge banks that were made alike.")
@click.argument("banks", type=BANK, nargs=-1, required=True, metavar="BANK...")
@click.option("-o", "--out", type=BANK, required=True, help="The merged bank; if it exists, it is merged too.")
def merge(banks: tuple[Path, ...], out: Path) -> None:
    """Merge every BANK into one. They must have been made alike: backbone, weights, preprocessing, frames, types."""
    from stages import keep

    keep.merge(out, banks)


@main.command(short_help="Remove videos from a bank.")
@click.argument("bank", type=BANK)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def remove(bank: Path, ids: tuple[str, ...]) -> None:
    """Remove every video ID from BANK and from its failures. The bank is rewritten, so its space is free at once."""
    from stages import keep

    keep.remove(bank, ids)


@main.command(short_help="Write the sample clips that the demo uses.")
@click.argument("folder", type=DATA)
def samples(folder: Path) -> None:
    """Write a small set of real, encoded clips with their manifest into FOLDER, unless they are there."""
    from pipeline.samples import make_samples
    from stages.progress import watch

    with watch("writing clips"):
        clips = make_samples(folder)
    click.echo(f"{len(clips)} clips in {folder}")


@main.command(short_help="The whole walk on clips made here, in minutes.")
@click.argument("folder", type=DATA, default=Path("data"))
def demo(folder: Path) -> None:
    """Make sample clips in FOLDER (default: data), bank them, train a head and fine-tune. Needs no
    network and no data."""
    from stages.demo import run

    raise SystemExit(run(folder))


everywhere(main)

if __name__ == "__main__":
    main()
