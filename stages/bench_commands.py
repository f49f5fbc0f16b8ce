"""`framebank bench`: what its commands can be told; the measuring is in the stages."""

from typing import Any

import click

from stages.finetune_options import BENCH
from stages.options import BANK, BATCH_SIZE, DATA, DEVICE, JSON, NETWORK, OWN_BACKBONE, PRECISION, read_window


@click.group()
def bench() -> None:
    """Measure how fast things are here: ratios to bare loops, taken in one run."""


@bench.command("extract", short_help="Extraction: its parts, what bounds it, and a naive loop.")
@click.argument("data", type=DATA)
@NETWORK
@click.option("--weights", default="DEFAULT", show_default=True, help="A torchvision weight name, random, or a file.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of random weights.")
@click.option(
    "--frames", type=click.IntRange(min=1), default=1000, show_default=True, help="Videos of so many together."
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Of everything, in turn.")
@click.option(
    "--naive", type=click.IntRange(min=1), metavar="FRAMES", help="A naive loop too, on so many frames at most."
)
@JSON
@DEVICE
@PRECISION
@BATCH_SIZE
def bench_extract(**options: Any) -> None:
    """Time extraction on some of the videos in DATA: decoding, preparing, forward and writing by themselves, the whole
    beside what they allow, and the command from its start.

    With --naive also the loop that people write by hand. Embeddings are held against each other while this goes on:
    exit status 1 if they are not the same.
    """
    from stages.bench_extract import BenchExtractConfig, run

    read_window(options)
    raise SystemExit(run(BenchExtractConfig(**options)))


@bench.command("heads", short_help="Training heads, beside bare loops and the CNN.")
@click.argument("bank", type=BANK)
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="Of each loop, in turn.")
@click.option("--hidden", type=click.IntRange(min=1), default=256, show_default=True, help="Units of the LSTM.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Videos per step.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads.")
@click.option("--cnn-videos", type=click.IntRange(min=0), default=0, show_default=True, help="Run the CNN on so many.")
@click.option("--weights", multiple=True, metavar="FILE", help="The CNN's checkpoint, if the bank's was a file.")
@OWN_BACKBONE
@JSON
@DEVICE
def bench_heads(**options: Any) -> None:
    """Time an epoch of training on BANK: ours, a bare loop over packed batches, and one that packs every time.

    With --cnn-videos also what an epoch costs that runs the network over the videos again.
    """
    from stages.bench_heads import BenchHeadsConfig, run

    raise SystemExit(run(BenchHeadsConfig(**options)))


@bench.command("finetune", short_help="Fine-tuning from videos and from the prefix bank, and their parts.")
@click.argument("data", type=DATA)
@BENCH
def bench_finetune(**options: Any) -> None:
    """Time an epoch of fine-tuning RUN on some of the videos in DATA: from the videos, from the prefix bank (made in a
    temporary folder), and of the head alone; and each part by itself.

    It says what speed-up the bank gives beside what bounds it, and exits with 1 if both ways do not give the same
    losses.
    """
    from stages.bench_finetune import BenchFinetuneConfig, run

    raise SystemExit(run(BenchFinetuneConfig(**options)))


@bench.command("bank", short_help="Banks of many videos: opening, resuming, packing.")
@click.option(
    "--videos",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1000, 10_000),
    show_default=True,
    help="Videos of a bank; may be repeated.",
)
@click.option("--rows", type=click.IntRange(min=1), default=8, show_default=True, help="Rows of each video.")
@click.option("--features", type=click.IntRange(min=1), default=16, show_default=True, help="Numbers of each row.")
@click.option("--parts", type=click.IntRange(min=1), default=10, show_default=True, help="Parts that each bank is in.")
@JSON
def bench_bank(**options: Any) -> None:
    """Time what is done with a bank beside reading its features, on banks of many videos made up for it: finding and
    probing the videos, sealing, opening, describing, deciding what is left to do, packing. Needs a folder for temporary
    files with room for a link and about 3 kB per video.
    """
    from stages.bench_bank import BenchBankConfig, run

    raise SystemExit(run(BenchBankConfig(**options)))
