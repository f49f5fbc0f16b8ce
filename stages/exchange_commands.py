"""`framebank import` and `framebank export`: what they can be told; the work is in the stages."""

from typing import Any

import click

from stages.options import BANK, DATA, LABELS, QUIET, RETRY_FAILED, STORE, Headed, Real, grouped

_FORMATS = ("npy", "c3d", "ms-tcn", "parquet", "csv")
_FILES = grouped(
    click.option(
        "--feature",
        metavar="NAME",
        help=(
            "Which features, where files hold several: rgb of STEM_rgb.npy (video_features), the dataset of /ID/NAME"
            " (HDF5), the array of a .npz or .pt file."
        ),
    ),
    click.option(
        "--layout",
        type=click.Choice(["td", "dt"]),
        help="Whether rows come first (T×D) or features do.  [default: whichever the shapes make certain]",
    ),
    click.option("--name", metavar="NAME", help="What these features are called.  [default: as the data is]"),
    heading="Features",
)
_TIMES = grouped(
    click.option(
        "--fps",
        type=Real(min=0, min_open=True),
        metavar="N",
        help="Rows per second, or with --feat-stride frames per second of the video.  [default: no clock]",
    ),
    click.option(
        "--feat-stride",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Frames of the video from one row to the next.",
    ),
    click.option(
        "--offset",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Number of the first row's frame: half of N for rows that stand for the middle of N frames.",
    ),
    heading="Times, where the files have none of their own",
)
_LABELLED = grouped(
    click.option("--labels", type=DATA, metavar="CSV", help="Column id, and any of label, split, group and your own."),
    LABELS,
    heading="Labels",
)


@click.command("import", cls=Headed, short_help="Bank features that other programs made.")
@click.argument("data", type=DATA)
@click.option("-o", "--out", type=BANK, required=True, help="The bank. What it holds already is not imported again.")
@_FILES
@_TIMES
@_LABELLED
@STORE
@RETRY_FAILED
@QUIET
def import_features(**options: Any) -> None:
    """Bank the features in DATA: a folder (class subfolders or flat) or a CSV manifest of .npy, .npz and .pt files, one
    per video; what video_features has written; one file; or an HDF5 file of /ID or /ID/c3d_features.

    A video whose features are of the wrong shape, not finite or not readable becomes a failure in the bank with its
    reason, the others go on, and the exit status is 3. Run it again after an interruption, or after adding files.
    """
    from stages.import_features import ImportConfig, run

    raise SystemExit(run(ImportConfig(**options)))


@click.command(cls=Headed, short_help="Write a bank as other programs read it.")
@click.argument("bank", type=BANK)
@click.option("--to", "form", type=click.Choice(_FORMATS), required=True, help="The format.")
@click.option("-o", "--out", type=DATA, required=True, help="A folder for npy and ms-tcn, a file for the others.")
@click.option(
    "--segments",
    type=DATA,
    metavar="PATH",
    help="Labels over time, for npy and ms-tcn, in any form that train-head --segments reads.",
)
@click.option("--background", metavar="LABEL", help="Label of rows in no segment; ms-tcn has one for every row.")
@QUIET
def export(**options: Any) -> None:
    """Write BANK as other programs read it.

    \b
    npy      features/ID.npy (T×D), annotations.json and actionformer.yaml as ActionFormer reads them,
             and manifest.csv, from which `framebank import` makes the same bank
    c3d      one HDF5 file of /ID/c3d_features, as dense captioning and moment retrieval read it
    ms-tcn   features/*.npy (D×T), groundTruth/*.txt, mapping.txt and splits/*.bundle
    parquet  one row per video: catalog, mean, deviation and maximum of its features
    csv      the catalog alone

    What is there already is kept if it is the same, so that a stopped export goes on, and never overwritten.
    """
    from stages.export import ExportConfig, run

    raise SystemExit(run(ExportConfig(**options)))
