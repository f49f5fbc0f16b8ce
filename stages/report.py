"""Finished runs -> one HTML file to look at: a report of one run, or several runs side by side.

The numbers are those of the run folder. What is computed here is only what a run does not write down: pictures of the
worst mistakes, from the videos, and what the head says over their time, from the bank. Where these are gone the page
says so, and has all the rest.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from pipeline import report_courses, report_data, report_errors, rescoring, runs
from pipeline.bank import Bank
from pipeline.bundles import check_banks, load_bundle, load_for
from pipeline.encoder import choose_device
from pipeline.errors import UserError
from pipeline.pages import render, write_page
from pipeline.report_cards import PICTURES, card
from pipeline.report_courses import Course
from pipeline.report_data import Finished
from pipeline.report_errors import Shown
from pipeline.sources import source_path
from pipeline.starting_point import find_sources
from pipeline.thumbnails import Strip, evenly, strip
from pipeline.writing import check_outputs
from stages import events
from stages import report_words as words
from stages.comparison import side_by_side
from stages.console import Display, megabytes

OK = 0
CARDS = 12  # videos that are shown with pictures
TIMELINES = 30  # videos whose targets per frame are shown


@dataclass(frozen=True)
class ReportConfig:
    """Everything that `framebank report` can be told; the defaults are those of the command."""

    runs: tuple[Path, ...]
    out: Path | None = None
    backbone: str | None = None
    quiet: bool = False

    @property
    def page(self) -> Path:
        """Where the page goes."""
        several = len(self.runs) > 1
        return self.out or (self.runs[0].parent / "comparison.html" if several else self.runs[0] / "report.html")


def run(config: ReportConfig) -> int:
    """Write the page, and say where it lies.

    Returns:
        the exit status, 0.

    Raises:
        UserError: a folder holds no finished run, or the page cannot lie where it should.
    """
    display = Display(quiet=config.quiet)
    several, out = len(config.runs) > 1, config.page
    finished = [report_data.read(folder) for folder in config.runs]
    banks = [Path(source_path(bank["path"])) for each in finished for bank in each.config["data"]["banks"]]
    made = [file for folder in config.runs for file in folder.rglob("*") if file.suffix != ".html"]
    check_outputs({"--out": out}, [*banks, *made])
    page = _comparison(finished) if several else _report(display, finished[0], config.backbone)
    write_page(out, page)
    events.tell("result", page=str(out), bytes=len(page.encode()))
    display.field(
        "Comparison" if several else "Report", f"{out} ({megabytes(len(page.encode()))}); open it in a browser"
    )
    return OK


def _report(display: Display, finished: Finished, typed: str | None) -> str:
    """The page of one run."""
    task, held = finished.task, finished.held
    shown = report_errors.worst(task, held, TIMELINES if task.per_frame else CARDS)
    with ExitStack() as stack:
        banks, gaps = _open(stack, finished)
        courses: dict[int, Course] = {}
        if banks and not task.per_frame:
            courses, gap = _courses(display, stack, finished, banks, shown, typed)
            gaps += [gap] if gap else []
        cards = []
        show = stack.enter_context(display.steps("reading videos", len(shown), "videos"))
        for number, each in enumerate(shown):
            show(number)
            video = held.ids[each.place]
            known = bool(banks) and video in banks[0]
            seconds = banks[0].timestamps(video) if known else None
            pictures = _strip(banks[0], video, seconds) if seconds is not None and number < CARDS else None
            cards.append(card(task, held, each, seconds=seconds, course=courses.get(each.place), strip=pictures))
        content = words.report(finished, cards, gaps, banks, most=CARDS)
    listed = report_data.listed(finished)
    content |= {
        "cells": listed["cells"],
        "absent": words.absent(finished, listed["cells"]),
        "version": version("framebank"),
    }
    drawn = {name: chart for name, chart in content["charts"].items() if not isinstance(chart, str)}
    drawn |= {f"video-{each['place']}": each["chart"] for each in cards if each["chart"]}
    return render("report.html.j2", content, {"charts": drawn, **listed}, words.FILTERS)


def _open(stack: ExitStack, finished: Finished) -> tuple[list[Bank], list[str]]:
    """The run's banks where they are what it was trained on; else none, and why."""
    try:
        paths = rescoring.banks_of(finished.config, finished.folder, remedy="put it back")
        banks = [stack.enter_context(Bank(path)) for path in paths]
    except UserError as error:
        return [], [f"No pictures and no course over time: {error}"]
    if not rescoring.is_own(finished.config, banks, finished.held.ids):
        return [], [
            "No pictures and no course over time: the bank is not the one that the run was trained on any more."
        ]
    return banks, []


def _strip(bank: Bank, video: str, seconds: np.ndarray) -> Strip:
    return strip(bank, video, evenly(seconds, PICTURES))


def _courses(
    display: Display,
    stack: ExitStack,
    finished: Finished,
    banks: list[Bank],
    shown: Sequence[Shown],
    typed: str | None,
) -> tuple[dict[int, Course], str]:
    """What the fold that held a video out says over its time, by the place of the video; or why that is not known."""
    device = choose_device("auto")
    by_fold: dict[str, list[int]] = defaultdict(list)
    for each in shown:
        by_fold[finished.held.folds[each.place]].append(each.place)
    courses: dict[int, Course] = {}
    threads = torch.get_num_threads()
    try:
        for fold, places in by_fold.items():
            bundle = load_bundle(runs.fold_folder(finished.folder, 0, fold))
            ids = [finished.held.ids[place] for place in places]
            read = banks
            if bundle.weights is not None:  # no bank has what this backbone makes of the videos
                asked = finished.asked["finetune"]
                options = {name: asked[name] for name in ("all_files", "image_fps") if name in asked}
                found = find_sources(Path(source_path(asked["data"])), banks[0], ids, **options)
                with display.progress(len(found), 0, doing="embedding anew") as show:
                    anew = rescoring.embedded_anew(
                        bundle, found, banks[0], device=device, on_progress=show, typed=typed
                    )
                    read = [stack.enter_context(anew)]
            else:
                check_banks(bundle, banks)
            with threadpool_limits(limits=1, user_api="blas"):
                torch.set_num_threads(1)
                sequences, _ = load_for(bundle, read, ids)
                for place, video in zip(places, ids, strict=True):
                    position = sequences[0].ids.index(video)
                    courses[place] = report_courses.course(bundle, sequences, position, device=device)
                torch.set_num_threads(threads)
    except UserError as error:
        return {}, f"No course over time: {error}"
    finally:
        torch.set_num_threads(threads)
    return courses, ""


def _comparison(finished: Sequence[Finished]) -> str:
    """The page of several runs."""
    rows, warnings = side_by_side([each.folder for each in finished])
    by_folder = {str(each.folder): each for each in finished}
    content = words.comparison([by_folder[row["run"]] for row in rows], rows, warnings)
    charts: dict[str, Any] = content["charts"]
    return render("comparison.html.j2", content | {"version": version("framebank")}, {"charts": charts}, words.FILTERS)
