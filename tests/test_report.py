"""The report of real runs in a real browser: what is there, what a click lists, and that it needs nothing else."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.errors import UserError
from stages.report import ReportConfig, run
from tests.browser import WIDTHS, findings, opened
from tests.clips import make_clip
from tests.commands import bank_of_fights, extract, framebank

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TRAIN = ("--folds", 2, "--epochs", 2, "--hidden", 4, "--pca", 4, "--quiet", "--device", "cpu")
LABELS = ("</script><b>&", 'say "hi"')
RED, BLUE = (200, 40, 40), (40, 60, 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, their bank, and runs: `classes`, `gru` of the same, `tags`, `age` and `frames`, with a report of each."""
    folder = tmp_path_factory.mktemp("reports")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {"labels": ["id,label"], "tags": ["id,tags"], "age": ["id,age"]}
    random = np.random.default_rng(0)
    rows["frames"] = ["id,start,end,label"]
    for number in range(10):
        red = 3 + number % 4
        grain = random.normal(scale=30, size=(9, 48, 64, 3))
        colours = np.array([RED] * red + [BLUE] * (9 - red))[:, None, None]
        make_clip(folder / "videos" / f"clip{number}.mp4", images=[*(colours + grain).clip(0, 255).astype(np.uint8)])
        label = LABELS[number % 2].replace('"', '""')
        rows["labels"].append(f'clip{number},"{label}"')
        rows["tags"].append(f"clip{number},{'|'.join(('indoor', 'night', 'rain')[: number % 4])}")
        rows["age"].append(f"clip{number},{red + number / 10}")
        rows["frames"] += [f"clip{number},0,{red / 10},red", f"clip{number},{red / 10},0.9,blue"]
    for name, lines in rows.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    bank = folder / "bank.h5"
    assert extract(folder / "videos", bank).exit_code == 0
    for name, *options in (
        ("classes", "--targets", folder / "labels.csv"),
        ("tags", "--targets", folder / "tags.csv", "--multi-label"),
        ("age", "--targets", folder / "age.csv", "--regression"),
        ("frames", "--segments", folder / "frames.csv"),
    ):
        result = framebank("train-head", bank, "--out", folder / name, *options, *TRAIN)
        assert result.exit_code == 0, result.output
        assert framebank("report", folder / name).exit_code == 0
    torch.set_num_threads(threads)
    return folder


def cell_of(page: Any, row: int, column: int) -> Any:
    return page.locator(f'.matrix button[data-cell="{row}-{column}"]')


def listed(page: Any) -> list[str]:
    return page.locator("#cell-list tbody tr").evaluate_all("rows => rows.map(row => row.dataset.video)")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_click_lists_the_videos_of_the_cell(width: int, folder: Path, browser: Any) -> None:
    said = pd.read_csv(folder / "classes" / "predictions.csv")
    labels = json.loads((folder / "classes" / "results.json").read_text())["task"]["labels"]
    with opened(browser, folder / "classes" / "report.html", width=width) as page:
        assert page.locator("#cell-list tbody tr").count() == 0
        for row, target in enumerate(labels):
            for column, predicted in enumerate(labels):
                rows = said[(said["target"] == target) & (said["predicted"] == predicted)]
                rows = rows.sort_values(f"p_{predicted}", ascending=False)
                button = cell_of(page, row, column)
                assert button.count() == (len(rows) > 0)
                if len(rows):
                    button.focus()
                    page.keyboard.press("Enter")
                    assert listed(page) == rows["id"].tolist()
                    shown = page.locator("#cell-list tbody tr").first.locator("td.n").all_text_contents()
                    assert [float(each) for each in shown] == [
                        pytest.approx(rows.iloc[0][f"p_{label}"], abs=6e-4) for label in (predicted, target)
                    ]
                    assert button.get_attribute("aria-pressed") == "true"
                    wrong = target != predicted
                    assert page.locator("#cell-list img").count() == (len(rows) if wrong else 0)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_the_page_of_classes_shows(folder: Path, browser: Any) -> None:
    results = json.loads((folder / "classes" / "results.json").read_text())
    mistakes = pd.read_csv(folder / "classes" / "predictions.csv").query("target != predicted")
    with opened(browser, folder / "classes" / "report.html") as page:
        assert page.locator(".big").inner_text() == f"{results['score']:.3f}"
        names = page.locator("#score .bars tbody th").all_text_contents()
        assert names == ["this head", *results["baselines"]]
        filled = page.locator("#score .fill").first
        share = filled.evaluate("bar => bar.offsetWidth / bar.parentElement.offsetWidth")
        assert share == pytest.approx(results["score"], abs=0.02)
        assert page.locator(".card").count() == len(mistakes) > 0
        assert page.locator(".card .strip img").count() == 8 * len(mistakes)
        assert page.locator(".strip img").evaluate_all("images => images.every(image => image.naturalWidth === 64)")
        charts = page.locator("[data-chart]")
        assert charts.count() == len(mistakes) + 4  # loss, reliability, ROC, precision over recall
        assert charts.evaluate_all("all => all.every(each => each.querySelector('svg path'))")
        assert all(charts.evaluate_all("all => all.map(each => each.getAttribute('aria-label').length > 20)"))
        assert page.locator("#classes tbody th").all_text_contents() == results["task"]["labels"]
        assert page.locator("#split tbody tr").count() == 2
        assert "Extraction of bank.h5" in page.locator("#cost").inner_text()
        assert "squeezenet1_1" in page.locator("#made").inner_text()
    assert (folder / "classes" / "report.html").stat().st_size < 10e6


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("classes", 1280, "light"),
        ("classes", 400, "dark"),
        ("tags", 400, "dark"),
        ("age", 1280, "light"),
        ("frames", 400, "dark"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("tags", 1280, "light"), ("age", 400, "dark"), ("frames", 1280, "light"))
        ),
    ],
)
def test_every_task_is_drawn_and_accessible(name: str, width: int, scheme: str, folder: Path, browser: Any) -> None:
    with opened(browser, folder / name / "report.html", width=width, scheme=scheme) as page:
        buttons = page.locator(".matrix button")
        assert (buttons.count() > 0) == (name != "age")
        if name != "age":
            buttons.first.click()
            assert len(listed(page)) > 0
        assert page.locator('[data-chart="scatter"] svg').count() == (name == "age")
        assert ("do not apply" in page.locator("#curves").inner_text()) == (name == "age")
        assert page.locator(".card").count() > 0
        assert findings(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_follows_a_window_that_gets_narrower(folder: Path, browser: Any) -> None:
    with opened(browser, folder / "classes" / "report.html", width=1000) as page:
        wide = page.locator(".card svg").first.bounding_box()["width"]
        page.set_viewport_size({"width": 400, "height": 900})
        page.wait_for_function(
            "wide => document.querySelector('.card svg').getBoundingClientRect().width < wide / 2", arg=wide
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("width", [1280, 400])
def test_no_legend_lies_on_its_plot(width: int, folder: Path, browser: Any) -> None:
    """Four classes with long names: two rows of them in a wide chart, four in a narrow one."""
    with opened(browser, folder / "classes" / "report.html", width=width) as page:
        gaps = page.evaluate(
            """() => {
                const names = ["backwards-shrinking", "backwards-swelling", "forwards-shrinking", "forwards-swelling"];
                const series = names.map((name) => ({ name, data: [[0, 0], [1, 1]] }));
                const axis = { name: "Share", min: 0, max: 1 };
                return [270, 330, 700].map((wide) => {
                    const element = document.createElement("div");
                    element.style.cssText = `width: ${wide}px; height: 300px`;
                    document.body.append(element);
                    const { chart } = Charts.add(element, () => Charts.option({ x: axis, y: axis, series }, element));
                    const texts = [...element.querySelectorAll("text")];
                    const there = texts.filter((text) => names.includes(text.textContent));
                    const low = Math.max(...there.map((text) => text.getBoundingClientRect().bottom));
                    const one = chart.convertToPixel({ gridIndex: 0 }, [0, 1])[1];
                    const top = one + element.getBoundingClientRect().top;
                    element.remove();
                    return there.length === 4 ? top - low : -1000;
                });
            }"""
        )
    assert min(gaps) > 0, gaps


def test_bars_over_time_are_those_of_the_frames(folder: Path, browser: Any) -> None:
    frames = pd.read_csv(folder / "frames" / "frames.csv")
    with opened(browser, folder / "frames" / "report.html") as page:
        for card in page.locator(".card").all():
            rows = frames[frames["id"] == card.locator("h3").inner_text()]
            for lane, column in enumerate(("target", "predicted")):
                bars = card.locator(".lane").nth(lane).locator("i")
                drawn = bars.evaluate_all("all => all.map(bar => [bar.title, parseFloat(bar.style.width)])")
                runs = rows[column].ne(rows[column].shift()).cumsum()
                wanted = [(each.iloc[0], 100 * len(each) / len(rows)) for _, each in rows[column].groupby(runs)]
                assert [label for label, _ in drawn] == [label for label, _ in wanted]
                assert [share for _, share in drawn] == [pytest.approx(share, abs=0.1) for _, share in wanted]


def test_several_runs_are_compared(folder: Path, browser: Any) -> None:
    other = folder / "gru"
    options = ("--targets", folder / "labels.csv", "--splits", folder / "classes" / "splits.csv", "--cell", "gru")
    trained = framebank("train-head", folder / "bank.h5", "--out", other, *options, *TRAIN[2:])
    assert trained.exit_code == 0, trained.output
    said = framebank("report", folder / "classes", other, folder / "tags")
    assert said.exit_code == 0
    assert str(folder / "comparison.html") in said.stdout
    assert framebank("report", folder / "classes", other, "--out", folder / "two.html").exit_code == 0
    with opened(browser, folder / "two.html", width=400, scheme="dark") as page:
        results = {name: json.loads((folder / name / "results.json").read_text()) for name in ("classes", "gru")}
        shown = dict(
            zip(
                page.locator(".bars tbody th").all_text_contents(),
                page.locator(".bars tbody strong").all_text_contents(),
                strict=True,
            )
        )
        assert shown == {name: f"{each['score']:.3f}" for name, each in results.items()}
        assert f"{results['gru']['difference']:+.3f}" in page.locator("main").inner_text()
        assert page.locator("[data-chart] svg").count() == 2
        assert page.locator(".note").count() == 0
        assert findings(page) == []
    with opened(browser, folder / "comparison.html") as page:
        assert "their figures are not comparable" in page.locator(".note").first.inner_text()
        assert page.locator(".bars").count() == 2


def test_without_videos_and_without_bank_the_page_says_so(folder: Path, tmp_path: Path) -> None:
    made = shutil.copytree(folder / "classes", tmp_path / "run")
    videos, bank = folder / "videos", folder / "bank.h5"
    videos.rename(folder / "away")
    try:
        assert run(ReportConfig((made,))) == 0
        text = (made / "report.html").read_text()
        assert re.search(r"No pictures: the file is not at \S+clip\d.mp4 any more\.", text)
        assert 'data-chart="video-' in text, "the bank still says when the decision fell"
        bank.rename(folder / "away.h5")
        assert run(ReportConfig((made,), tmp_path / "other.html")) == 0
        text = (tmp_path / "other.html").read_text()
        assert "bank.h5, which is not there any more" in text
        assert 'data-chart="video-' not in text
    finally:
        (folder / "away").rename(videos)
        if (folder / "away.h5").exists():
            (folder / "away.h5").rename(bank)


def test_a_page_never_replaces_what_a_run_is_made_of(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"predictions\.csv"):
        run(ReportConfig((folder / "classes",), folder / "classes" / "predictions.csv"))
    with pytest.raises(UserError, match="is no run"):
        run(ReportConfig((tmp_path,)))


@pytest.mark.slow
def test_the_report_of_real_videos(shared: Path, tmp_path: Path, browser: Any) -> None:
    """60 clips of the fights, on ImageNet weights."""
    bank_of_fights(shared, tmp_path / "b.h5")
    trained = framebank("train-head", tmp_path / "b.h5", "--out", tmp_path / "run", "--folds", 3, "--quiet")
    assert trained.exit_code == 0
    assert framebank("report", tmp_path / "run").exit_code == 0
    said = pd.read_csv(tmp_path / "run" / "predictions.csv")
    for width in WIDTHS:
        with opened(browser, tmp_path / "run" / "report.html", width=width) as page:
            cell_of(page, 0, 1).click()
            wanted = said[(said["target"] == "fight") & (said["predicted"] == "noFight")]
            assert sorted(listed(page)) == sorted(wanted["id"])
            assert findings(page) == []
