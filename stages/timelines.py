"""predict --timeline: what the head says over the time of each video, as a picture, a page or JSON."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import figures
from pipeline import prediction_timelines as timelines
from pipeline.bundles import Bundle
from pipeline.errors import UserError
from pipeline.pages import render, write_page
from pipeline.prediction_timelines import OverTime
from pipeline.writing import write_json
from stages.console import counted
from stages.report_words import FILTERS, course_words

MOST = {".png": 20, ".html": 60, ".json": None}  # videos in one file, for its size's sake


def check(path: Path, videos: int | None = None) -> None:
    """UserError: the file is of no kind that can be written, or would hold too many videos.

    Args:
        path: of the file.
        videos: how many there are, where that is known by now.
    """
    suffix = path.suffix.lower()
    if suffix not in MOST:
        raise UserError(f"--timeline {path}: its name must end in .png, .html or .json.")
    most = MOST[suffix]
    if most is not None and videos is not None and videos > most:
        raise UserError(
            f"--timeline {path} would hold {videos:,} videos, and {most} fit in a {suffix} file; give fewer, or a file "
            "that ends in .json, which has the numbers alone."
        )


def has_pictures(path: Path) -> bool:
    """Whether a file of this name shows pictures of the videos."""
    return path.suffix.lower() != ".json"


def write(path: Path, bundle: Bundle, run: str, said: Sequence[OverTime], words: Mapping[str, str]) -> None:
    """Write the file.

    Args:
        path: .png, .html or .json.
        bundle: whose predictions they are.
        run: the folder of its run.
        said: of each video.
        words: id -> what is predicted, in words.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        videos = [{"id": each.id, "predicted": words[each.id], **timelines.plain_data(bundle, each)} for each in said]
        write_json(path, {"run": run, "kind": bundle.kind, "labels": list(bundle.labels), "videos": videos})
    elif suffix == ".png":
        drawn = [timelines.figure(bundle, each, f"{each.id}: {words[each.id]}") for each in said]
        figures.timelines(path, drawn)
    else:
        write_page(path, _page(bundle, run, said, words))


def _page(bundle: Bundle, run: str, said: Sequence[OverTime], words: Mapping[str, str]) -> str:
    cards: list[dict[str, Any]] = [timelines.card(bundle, each) | {"said": words[each.id]} for each in said]
    every = [each.every for each in said]
    content = {
        "title": f"{counted(len(said), 'video')} predicted – framebank predict",
        "name": said[0].id if len(said) == 1 else counted(len(said), "video"),
        "lead": f"predicted by the head of {run}",
        "words": course_words(every_step=all(every)),
        "more": _more(bundle, said),
        "labels": list(bundle.labels),
        "bar_words": lambda card: _bar_words(bundle, card),
        "cards": cards,
        "version": version("framebank"),
    }
    charts = {f"video-{place}": each["chart"] for place, each in enumerate(cards)}
    return render("timeline.html.j2", content, {"charts": charts}, FILTERS)


def _more(bundle: Bundle, said: Sequence[OverTime]) -> str:
    left = len(bundle.labels) - timelines.LINES
    return f"Of {len(bundle.labels)} labels the {timelines.LINES} that get highest are drawn." if left > 0 else ""


def _bar_words(bundle: Bundle, card: Mapping[str, Any]) -> str:
    """The bar of decisions in words: "predicted: walk 0.0 to 1.2, run 1.2 to 3.4"."""
    end = card["chart"]["x"]["max"]
    parts = [
        f"{bundle.labels[label]} {start * end:.1f} to {stop * end:.1f}" for label, start, stop in card["bars"][:40]
    ]
    more = f", and {len(card['bars']) - 40} more" if len(card["bars"]) > 40 else ""
    return f"predicted, over {card['chart']['x']['name'].lower()}: {', '.join(parts)}{more}"
