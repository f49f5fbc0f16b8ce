"""predict --timeline: the numbers are those of the prediction and of its frames, as JSON, on a page and in a figure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pipeline import figures
from pipeline.errors import UserError
from stages.timelines import check
from tests.browser import findings, opened
from tests.clips import make_clip
from tests.commands import extract, framebank

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TRAIN = ("--epochs", 2, "--hidden", 4, "--pca", 4, "--quiet", "--device", "cpu")
RUNS = ("classes", "every", "tags", "age", "frames")
RED, BLUE = (200, 40, 40), (40, 60, 200)


def clip(path: Path, red: int, seed: int) -> Path:
    """Nine frames, the first `red` of them red and the rest blue."""
    grain = np.random.default_rng(seed).normal(scale=30, size=(9, 48, 64, 3))
    colours = np.array([RED] * red + [BLUE] * (9 - red))[:, None, None]
    return make_clip(path, images=[*(colours + grain).clip(0, 255).astype(np.uint8)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every task on one bank, and two new videos."""
    folder = tmp_path_factory.mktemp("timelines")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {"labels": ["id,label"], "tags": ["id,tags"], "age": ["id,age"]}
    rows["frames"] = ["id,start,end,label"]
    for number in range(8):
        red = 3 + number % 4
        clip(folder / "videos" / f"clip{number}.mp4", red, number)
        rows["labels"].append(f"clip{number},{('<early>', 'late')[number % 2]}")
        rows["tags"].append(f"clip{number},{'|'.join(('indoor', 'night', 'rain')[: number % 4])}")
        rows["age"].append(f"clip{number},{red + number / 10}")
        rows["frames"] += [f"clip{number},0,{red / 10},red", f"clip{number},{red / 10},0.9,blue"]
    for name, lines in rows.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    assert extract(folder / "videos", folder / "bank.h5").exit_code == 0
    for name, *options in (
        ("classes", "--targets", folder / "labels.csv"),
        ("every", "--targets", folder / "labels.csv", "--supervise", "every-step"),
        ("tags", "--targets", folder / "tags.csv", "--multi-label"),
        ("age", "--targets", folder / "age.csv", "--regression"),
        ("frames", "--segments", folder / "frames.csv"),
    ):
        result = framebank("train-head", folder / "bank.h5", "--out", folder / name, *options, *TRAIN)
        assert result.exit_code == 0, result.output
    for name, seed in (("new", 100), ("other", 101)):
        clip(folder / "later" / f"{name}.mp4", 5, seed)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures as they are saved."""
    kept: list[Figure] = []
    monkeypatch.setattr(FigureCanvasAgg, "__init__", _keeping(kept, FigureCanvasAgg.__init__))
    return kept


def _keeping(kept: list[Figure], begin: Any) -> Any:
    def init(self: FigureCanvasAgg, figure: Figure) -> None:
        kept.append(figure)
        begin(self, figure)

    return init


def predicted(folder: Path, run: str, *options: object) -> Any:
    result = framebank("predict", folder / run, folder / "later", "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("run", RUNS)
def test_the_numbers_are_those_of_the_predictions(run: str, folder: Path, tmp_path: Path) -> None:
    outputs = ["--timeline", tmp_path / "t.json", "--csv", tmp_path / "p.csv"]
    steps = run in ("every", "frames")
    result = predicted(folder, run, *outputs, *(["--frames", tmp_path / "f.csv"] if steps else []))
    made = json.loads((tmp_path / "t.json").read_text())
    videos = pd.read_csv(tmp_path / "p.csv").set_index("id")
    written = ", ".join(str(tmp_path / name) for name in ["p.csv", *(["f.csv"] if steps else []), "t.json"])
    assert f"Written     {written}" in result.stdout
    assert [each["id"] for each in made["videos"]] == ["new", "other"]
    for each in made["videos"]:
        assert f"{each['id']:<5}  {each['predicted']}" in result.stdout
        assert each["each"] == ("frame" if steps else "beginning")
        assert each["frame"] == list(range(9))
        assert each["seconds"] == pytest.approx([place / 10 for place in range(9)])
        row = videos.loc[each["id"]]
        if run == "age":
            assert len(each["value"]) == 9
            assert each["value"][-1] == pytest.approx(row["predicted"], abs=1e-4)
            continue
        assert list(each["probability"]) == made["labels"]
        for label, line in each["probability"].items():
            assert len(line) == 9
            if steps:
                frames = pd.read_csv(tmp_path / "f.csv").query("id == @each['id']")
                np.testing.assert_allclose(line, frames[f"p_{label}"], atol=1e-6)
            else:
                assert line[-1] == pytest.approx(row[f"p_{label}"], abs=1e-4)
                assert np.ptp(line) > 1e-5, "it changes over the video"


@pytest.mark.parametrize("run", ["classes", "age", "frames"])
def test_the_page(run: str, folder: Path, tmp_path: Path, browser: Any) -> None:
    predicted(
        folder, run, "--timeline", tmp_path / "t.html", "--segments" if run == "frames" else "--csv", tmp_path / "s"
    )
    for width, scheme in ((1280, "light"), (400, "dark")):
        with opened(browser, tmp_path / "t.html", width=width, scheme=scheme) as page:
            assert page.locator(".card h3").all_text_contents() == ["new", "other"]
            assert page.locator(".strip img").count() == 16
            assert page.locator(".strip img").evaluate_all("images => images.every(image => image.naturalWidth === 64)")
            charts = page.locator("[data-chart]")
            assert charts.count() == 2
            assert charts.evaluate_all("all => all.every(each => each.querySelector('svg path'))")
            lines = page.evaluate("PAGE.charts['video-0'].series.map((each) => each.name)")
            wanted = {"classes": ["<early>", "late"], "age": ["predicted"], "frames": ["blue", "red"]}
            assert lines == wanted[run]
            bars = page.locator(".card").first.locator(".lane i")
            if run == "frames":
                segments = pd.read_csv(tmp_path / "s").query("id == 'new'")
                assert bars.evaluate_all("all => all.map(bar => bar.title)") == segments["label"].tolist()
                shares = bars.evaluate_all("all => all.map(bar => parseFloat(bar.style.width))")
                assert shares == pytest.approx(100 * (segments["end"] - segments["start"]) / 0.9, abs=0.1)
            else:
                assert bars.count() == 0
            assert findings(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("run", ["tags", "age", "frames"])
def test_the_figure(run: str, folder: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    predicted(folder, run, "--timeline", tmp_path / "t.png", "--quiet")
    with Image.open(tmp_path / "t.png") as image:
        assert image.size[0] > 800
    (figure,) = drawn
    strips = [axes for axes in figure.axes if axes.images]
    assert len(strips) == 16
    shown = [np.median(np.asarray(axes.images[0].get_array())[..., 0]) for axes in strips[:8]]
    assert shown[0] > 150 > shown[-1], "red first, then blue"
    charts = [axes for axes in figure.axes if axes.lines]
    assert len(charts) == 2
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in charts[0].lines}
    predicted(folder, run, "--timeline", tmp_path / "t.json", "--quiet")
    said = json.loads((tmp_path / "t.json").read_text())["videos"][0]
    for name, values in said.get("probability", {"predicted": said.get("value")}).items():
        np.testing.assert_allclose(lines[name], values, atol=1e-6)
    bars = [axes for axes in figure.axes if axes.patches and not axes.images and not axes.lines]
    assert len(bars) == (2 if run == "frames" else 0)


def test_what_lacks_pictures_says_why(tmp_path: Path, drawn: list[Figure]) -> None:
    many = {f"label {place}": np.array([0.5]) for place in range(6)}
    bars = [[0, 0, 0.5], [5, 0.5, 1]]
    made = figures.Timeline(
        "a $ b", [], "the file is gone", np.zeros(1), many, "Frame", 1.0, "Value", None, bars, [*many]
    )
    figures.timelines(tmp_path / "t.png", [made])
    texts = [text.get_text() for axes in drawn[0].axes for text in axes.texts]
    assert "No pictures: the file is gone" in texts
    assert {"label 0", "label 5"} < set(texts)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    video = folder / "later" / "new.mp4"
    for options, message in (
        (("--timeline", tmp_path / "t.pdf"), "its name must end in .png, .html or .json"),
        (("--timeline", tmp_path / "no" / "t.png"), "its folder is not a folder"),
        (("--timeline", tmp_path / "t.json", "--json", tmp_path / "t.json"), "are one file"),
    ):
        result = framebank("predict", folder / "classes", video, *options)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    alone = framebank("predict", "--backbone", "squeezenet1_1", video, "--timeline", tmp_path / "t.png")
    assert alone.exit_code == 2
    assert "--timeline is of the head of RUN" in alone.stderr
    with pytest.raises(UserError, match=r"would hold 21 videos, and 20 fit"):
        check(tmp_path / "t.png", 21)
    check(tmp_path / "t.json", 100_000)


def test_a_video_that_cannot_be_read_is_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    paths = (folder / "later" / "new.mp4", tmp_path / "broken.mp4")
    result = framebank("predict", folder / "classes", *paths, "--timeline", tmp_path / "t.json", "--device", "cpu")
    assert result.exit_code == 3
    assert [each["id"] for each in json.loads((tmp_path / "t.json").read_text())["videos"]] == ["new"]
    alone = framebank("predict", folder / "classes", paths[1], "--timeline", tmp_path / "none.png", "--device", "cpu")
    assert alone.exit_code == 3
    assert not (tmp_path / "none.png").exists()
