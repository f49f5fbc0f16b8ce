"""What the commands do, as functions: extract, train_head, finetune, evaluate, report, explore."""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import pandas as pd

from framebank.asking import StrPath, asked, several, unchanged, with_keywords
from framebank.banks import Bank
from framebank.evaluate_options import EvaluateOptions
from framebank.extract_options import ExtractOptions
from framebank.finetune_options import FinetuneOptions
from framebank.runs import Evaluation, Run
from framebank.train_head_options import TrainHeadOptions

_INTERRUPTED = 130


@with_keywords(ExtractOptions)
def extract(data: StrPath, out: StrPath, *, progress: bool = False, **options: Unpack[ExtractOptions]) -> Bank:
    """Bank the embeddings of all frames of all videos, as `framebank extract` does; what is banked is not done again.

    Args:
        data: a folder of videos, a CSV manifest, or one file.
        out: the bank, an HDF5 file.
        progress: whether to print what is done, and how far it is.
        **options: those of the command, see `framebank.extract_options.ExtractOptions`.

    Returns:
        the bank, opened: `len(bank)` videos, `bank.catalog` says what they are, and `bank.failures` (a DataFrame: id,
        path, reason, …) which could not be banked and why. Those stop nothing.

    Raises:
        UserError: it could not run as asked; what the bank held before is untouched.
        KeyboardInterrupt: the work was interrupted. Finished videos are banked; the same call goes on.

    With `workers=` a script needs `if __name__ == "__main__":` around its calls, as everything that starts processes.
    """
    from stages.extract import ExtractConfig, run
    from stages.options import read_workers
    from stages.predict_options import extraction_of

    with (
        unchanged(),
        asked("extract", [data], options, [f"--out={Path(out)}"], progress=progress) as given,
        read_workers(given) as cluster,
    ):
        if run(extraction_of(ExtractConfig, given), cluster) == _INTERRUPTED:
            raise KeyboardInterrupt
    return Bank(out)


@with_keywords(TrainHeadOptions)
def train_head(
    banks: StrPath | Iterable[StrPath], out: StrPath, *, progress: bool = False, **options: Unpack[TrainHeadOptions]
) -> Run:
    """Train a recurrent head on the sequences of a bank, beside baselines, as `framebank train-head` does.

    Args:
        banks: one bank (a path, or a `Bank`) or several, whose features are read side by side.
        out: the run folder. A run that was stopped goes on, a finished one is returned.
        progress: whether to print what is done, and how far it is.
        **options: those of the command, see `framebank.train_head_options.TrainHeadOptions`.

    Returns:
        the finished run: its score on held-out videos, with interval, baselines and predictions.

    Raises:
        UserError: it could not be done as asked; what the run folder held is kept.
    """
    from stages.head_options import learning_of, refuse_idle
    from stages.train_head import TrainHeadConfig, run

    with unchanged(), asked("train-head", several(banks), options, [f"--out={Path(out)}"], progress=progress) as given:
        refuse_idle(given)
        run(learning_of(TrainHeadConfig, given))
    return Run(out)


@with_keywords(FinetuneOptions)
def finetune(data: StrPath, out: StrPath, *, progress: bool = False, **options: Unpack[FinetuneOptions]) -> Run:
    """Train the last blocks of a backbone together with its head, as `framebank finetune` does, in this process.

    Args:
        data: the videos that the head's bank was made of.
        out: the run folder. A run that was stopped goes on, a finished one is returned.
        progress: whether to print what is done, and how far it is.
        **options: those of the command, see `framebank.finetune_options.FinetuneOptions`: `head`, the run to start
            from, or without it `weights`.

    Returns:
        the finished run, of which `load_bundle` predicts with the backbone that was trained.

    Raises:
        UserError: it could not be done as asked; what the run folder held is kept.
        KeyboardInterrupt: the work was interrupted; the same call goes on.

    Several GPUs are for the command, under torchrun.
    """
    from stages import extract as extraction
    from stages import finetune as finetuning
    from stages.finetune_options import read

    with unchanged(), asked("finetune", [data], options, [f"--out={Path(out)}"], progress=progress) as given:
        first, config = read(extraction.ExtractConfig, finetuning.FinetuneConfig, given)
        if first is not None and extraction.run(first) == _INTERRUPTED:
            raise KeyboardInterrupt
        if finetuning.run(config) == _INTERRUPTED:
            raise KeyboardInterrupt
    return Run(out)


@with_keywords(EvaluateOptions)
def evaluate(
    run: StrPath,
    banks: StrPath | Iterable[StrPath] = (),
    *,
    progress: bool = False,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Score a finished run once more, or on other banks, as `framebank evaluate` does.

    Args:
        run: the run, a path or a `Run`.
        banks: none for the run's own held-out videos, each by the head that was trained without it; else banks that
            were made alike, of which the final head scores what it did not train on.
        progress: whether to print what is done.
        **options: those of the command, see `framebank.evaluate_options.EvaluateOptions`.

    Returns:
        the scores. Of the run's own videos `Evaluation.as_before` says whether they are those that it wrote down.

    Raises:
        UserError: no finished run, banks that were made otherwise, no video that is new to the head.
    """
    from stages.evaluate import EvaluateConfig
    from stages.evaluate import run as stage

    with unchanged(), tempfile.TemporaryDirectory(prefix="framebank-") as folder:
        file = Path(folder) / "scores.json"
        with asked("evaluate", [run, *several(banks)], options, [f"--json={file}"], progress=progress) as given:
            status = stage(EvaluateConfig(**given))
        said = json.loads(file.read_text("utf-8"))
    interval = said["interval"]
    return Evaluation(
        metric=said["headline"],
        score=said["score"],
        interval=None if interval is None else (interval[0], interval[1]),
        metrics=said["metrics"],
        per_class=pd.DataFrame(said["per_class"]),
        videos=said["videos"],
        as_before=status == 0 if "largest_difference" in said else None,
    )


def report(runs: StrPath | Iterable[StrPath], out: StrPath | None = None, *, progress: bool = False) -> Path:
    """Write an HTML page of a run, or of several side by side, as `framebank report` does.

    Args:
        runs: finished runs, paths or `Run`s.
        out: the page; None for RUN/report.html, of several runs comparison.html beside the first.
        progress: whether to print what is done.

    Returns:
        where the page lies.

    Raises:
        UserError: a folder holds no finished run, or the page cannot lie where it should.
    """
    from stages.report import ReportConfig, run

    more = [] if out is None else [f"--out={Path(out)}"]
    with unchanged(), asked("report", several(runs), {}, more) as given:
        config = replace(ReportConfig(**given), quiet=not progress)
        run(config)
    return config.page


def explore(bank: StrPath, out: StrPath | None = None, *, progress: bool = False) -> Path:
    """Write an HTML page of a bank, as `framebank explore` does: a map of its videos, copies, failures.

    Args:
        bank: the bank, a path or a `Bank`.
        out: the page; None for one beside the bank, named as it is.
        progress: whether to print what is done.

    Returns:
        where the page lies.

    Raises:
        UserError: there is no such bank, its features cannot be read, or the page cannot lie where it should.
    """
    from stages.explore import ExploreConfig, run

    more = [] if out is None else [f"--out={Path(out)}"]
    with unchanged(), asked("explore", [bank], {}, more) as given:
        config = replace(ExploreConfig(**given), quiet=not progress)
        run(config)
    return config.page
