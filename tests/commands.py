"""The command as people type it, run in this process."""

from pathlib import Path

import pandas as pd
from click.testing import CliRunner, Result

from stages.cli import main

SETTINGS = ["--backbone", "squeezenet1_1", "--weights", "random", "--image-size", "48", "--precision", "fp32"]


def framebank(*arguments: object) -> Result:
    """Run the command in this process. An exception that is not an exit is a traceback for the user: it fails here."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def extract(data: Path, out: Path, *arguments: object) -> Result:
    return framebank("extract", data, "--out", out, *SETTINGS, *arguments)


def said(result: Result, field: str) -> str:
    """The line of a summary that begins with a field's name."""
    return next(line[12:] for line in result.stdout.splitlines() if line.startswith(field))


def bank_of_fights(shared: Path, out: Path) -> None:
    """Bank 60 clips of the fights, on ImageNet weights."""
    data = shared / "data" / "fights"
    manifest = pd.read_csv(data / "manifest.csv", dtype=str).iloc[::5]
    some = out.with_suffix(".csv")
    manifest.assign(path=[str(data / path) for path in manifest["path"]]).to_csv(some, index=False)
    weights = shared / "weights" / "squeezenet1_1-imagenet.pth"
    options = ("--backbone", "squeezenet1_1", "--weights", weights, "--quiet")
    assert framebank("extract", some, "--out", out, *options).exit_code == 0
