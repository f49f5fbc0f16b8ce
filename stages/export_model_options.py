"""`framebank export-model`: what it can be told; the work is in the stage."""

from typing import Any

import click

from stages.options import DATA, OWN_BACKBONE, QUIET


@click.command("export-model", short_help="Write a run's network and head as ONNX or torch-export files.")
@click.argument("run", type=DATA)
@click.option(
    "-o", "--out", type=DATA, required=True, metavar="FOLDER", help="Where the files go; nothing may be there yet."
)
@click.option(
    "--to",
    type=click.Choice(["onnx", "torch-export"]),
    default="onnx",
    show_default=True,
    help="onnx needs pip install 'framebank[onnx]'; torch-export is loaded by torch.export.load.",
)
@click.option(
    "--check",
    type=DATA,
    multiple=True,
    metavar="VIDEO",
    help="Check on these videos; may be repeated.  [default: three of those that the run was trained on]",
)
@click.option(
    "--weights",
    multiple=True,
    metavar="FILE",
    help="The checkpoint of the backbone, if it was a file; checked. One for each bank that the head reads.",
)
@OWN_BACKBONE
@QUIET
def export_model(**options: Any) -> None:
    """Write the network and the head of RUN as files that predict without framebank: from frames to features, and from
    the features of a video to calibrated probabilities, for any number of frames.

    Before anything is kept, the files are run on frames of real videos and held against the originals: beyond a stated
    tolerance the command refuses. Beside them, model.json says in words and numbers which frames are taken, how they
    are prepared, and what comes out.
    """
    from stages.export_model import ExportModelConfig, run

    raise SystemExit(run(ExportModelConfig(**options)))
