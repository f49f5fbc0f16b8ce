"""A bank -> one HTML page to look at: what it holds, a map of its videos, what stands still, copies, failures.

All features are read once. Pictures come from the videos themselves; where these are gone the page says so, and has all
the rest.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pipeline import bank_survey, explore_data
from pipeline.bank import Bank
from pipeline.engine import Progress
from pipeline.pages import render, write_page
from pipeline.sources import source_path
from pipeline.writing import check_outputs
from stages import events
from stages import explore_words as words
from stages.console import Display, megabytes
from stages.report_words import FILTERS

OK = 0


@dataclass(frozen=True)
class ExploreConfig:
    """Everything that `framebank explore` can be told; the defaults are those of the command."""

    bank: Path
    out: Path | None = None
    quiet: bool = False

    @property
    def page(self) -> Path:
        """Where the page goes."""
        return self.out or self.bank.with_suffix(".html")


def run(config: ExploreConfig) -> int:
    """Write the page, and say where it lies.

    Returns:
        the exit status, 0.

    Raises:
        UserError: there is no such bank, its features cannot be read, or the page cannot lie where it should.
    """
    display = Display(quiet=config.quiet)
    out = config.page
    with Bank(config.bank) as bank:
        sources = [Path(source_path(source)) for source in bank.catalog["source"]]
        check_outputs({"--out": out}, [config.bank, *bank.files, *sources])
        page = _page(display, bank)
    write_page(out, page)
    events.tell("result", page=str(out), bytes=len(page.encode()))
    display.field("Page", f"{out} ({megabytes(len(page.encode()))}); open it in a browser")
    return OK


def _page(display: Display, bank: Bank) -> str:
    with_rows = bank.catalog.loc[bank.catalog["rows"] > 0, "id"].tolist()
    sample = explore_data.sample(with_rows)
    with display.progress(len(bank), int(bank.catalog["rows"].sum()), "row", "reading features") as show:
        survey = bank_survey.survey(
            bank, sample, on_video=lambda videos, rows: show(Progress(videos_sealed=videos, frames=rows))
        )
    with display.busy("drawing the map"):
        shown, maps, near = explore_data.mapped(survey, sample)
    with display.steps("taking pictures", len(shown), "videos") as show_picture:
        pictures, gaps = explore_data.pictures(bank, shown, on_video=show_picture)
    content, data = words.of_map(bank, survey, shown, maps, near, pictures, gaps)
    content |= words.page(bank, survey)
    content["version"] = version("framebank")
    drawn = {name: chart for name, chart in content["charts"].items() if not isinstance(chart, str)}
    return render("explore.html.j2", content, {"charts": drawn, "explore": data}, FILTERS)
