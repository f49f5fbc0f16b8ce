"""The page of real banks in a real browser: the map by pointer and by keyboard, neighbours, copies, and odd banks."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import explore_data
from pipeline.bank import Bank
from pipeline.errors import UserError
from stages.explore import ExploreConfig, run
from tests.banks import bank_of, embeddings, fill
from tests.browser import WIDTHS, findings, opened
from tests.clips import make_clip
from tests.commands import bank_of_fights, extract, framebank

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LABELS = ("</script><b>&", 'say "hi"')
STILL, COPY, BROKEN = "clip7", "clip8", "clip9"
KINDS = {
    "maps": ("--layer", "features"),
    "views": ("--views", 5),
    "clips": ("--inflate", "--clip-length", 4, "--clip-stride", 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten files, of which one stands still, one is a copy and one is broken; their banks, each with a page."""
    folder = tmp_path_factory.mktemp("explore")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    rows = ["path,label,split"]
    for number in range(8):
        images = random.integers(0, 255, (8, 1, 1, 3)) + random.normal(scale=25, size=(8, 48, 64, 3))
        if f"clip{number}" == STILL:
            images[:] = images[0]
        make_clip(folder / "videos" / f"clip{number}.mp4", images=[*images.clip(0, 255).astype(np.uint8)])
    shutil.copy(folder / "videos" / "clip2.mp4", folder / "videos" / f"{COPY}.mp4")
    (folder / "videos" / f"{BROKEN}.mp4").write_bytes(b"no video")
    for number in range(10):
        label = LABELS[number % 2 if number != 8 else 1].replace('"', '""')
        rows.append(f'clip{number}.mp4,"{label}",{"test" if number > 5 else "train"}')
    (folder / "videos" / "manifest.csv").write_text("\n".join(rows) + "\n")
    assert extract(folder / "videos", folder / "bank.h5").exit_code == 3
    for name, options in KINDS.items():
        assert extract(folder / "videos", folder / f"{name}.h5", *options).exit_code == 3
    assert framebank("explore", folder / "bank.h5").exit_code == 0
    torch.set_num_threads(threads)
    return folder


def chosen(page: Any) -> str:
    return page.locator("#chosen h3").inner_text()


def place_of(page: Any, video: str, which: str = "pca") -> tuple[float, float]:
    """Where in the window a video's point lies."""
    place: tuple[float, float] = tuple(
        page.evaluate(
            """async ([video, which]) => {
                const place = document.getElementById("map");
                place.scrollIntoView({ block: "center", behavior: "instant" });
                for (let frames = 0; frames < 2; frames += 1) await new Promise(requestAnimationFrame);
                const number = PAGE.explore.videos.findIndex((each) => each.id === video);
                const at = echarts.getInstanceByDom(place).convertToPixel(
                    { seriesIndex: 0 }, PAGE.explore.maps[which].points[number]);
                const box = place.getBoundingClientRect();
                return [box.x + at[0], box.y + at[1]];
            }""",
            [video, which],
        )
    )
    return place


def nearest(bank: Path, video: str) -> list[str]:
    """The ids of the other videos, the most alike first, by the definition."""
    with Bank(bank) as opened_bank:
        means = {name: opened_bank[name].astype(np.float64).mean(axis=0) for name in opened_bank}
    centre = np.mean(list(means.values()), axis=0)

    def cosine(other: str) -> float:
        one, two = means[video] - centre, means[other] - centre
        return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))

    return sorted((name for name in means if name != video), key=lambda name: -cosine(name))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_click_on_the_map_chooses_a_video(width: int, folder: Path, browser: Any) -> None:
    with opened(browser, folder / "bank.html", width=width) as page:
        assert chosen(page) == "clip0"
        for video in ("clip3", "clip6"):
            at = place_of(page, video)
            page.mouse.move(*at)
            tip = page.locator(".tip")
            assert tip.locator("strong").inner_text() == video
            assert tip.locator("img").evaluate("image => image.naturalWidth") == 64
            assert LABELS[int(video[-1]) % 2] in tip.inner_text()
            page.mouse.click(*at)
            assert chosen(page) == video
            assert page.locator("#change-of").inner_text() == video
            names = page.locator(".neighbours strong").all_text_contents()
            assert names == nearest(folder / "bank.h5", video)[:8]
        first = page.locator(".neighbours button").first
        name = first.locator("strong").inner_text()
        first.click()
        assert chosen(page) == name
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_every_video(folder: Path, browser: Any) -> None:
    with opened(browser, folder / "bank.html") as page:
        page.locator("#map").focus()
        seen = {chosen(page)}
        for key in ["ArrowLeft"] * 5 + ["ArrowRight"] * 9 + ["ArrowDown"] * 5 + ["ArrowUp"] * 9:
            before, at = chosen(page), place_of(page, chosen(page))
            page.keyboard.press(key)
            after = chosen(page)
            seen.add(after)
            if after != before:
                now = place_of(page, after)
                axis = 0 if key in ("ArrowLeft", "ArrowRight") else 1
                sign = -1 if key in ("ArrowLeft", "ArrowUp") else 1
                assert sign * (now[axis] - at[axis]) > 0
                assert page.locator(".tip strong").inner_text() == after
                assert page.locator(".tip img").count() == 1
        assert len(seen) >= 4
        page.locator("#find").fill("clip5")
        page.keyboard.press("Enter")
        assert chosen(page) == "clip5"
        page.locator("#find").fill("p4")  # a part of a name
        page.keyboard.press("Tab")
        assert chosen(page) == "clip4"
        page.locator("#find").fill("nothing like it")
        page.keyboard.press("Tab")
        assert page.locator("#find").input_value() == "clip4"


def test_both_maps_and_their_labels(folder: Path, browser: Any) -> None:
    with opened(browser, folder / "bank.html") as page:
        tsne = page.locator("[data-map=tsne]")
        tsne.focus()
        page.keyboard.press("Enter")
        assert tsne.get_attribute("aria-pressed") == "true"
        assert page.locator("#map").get_attribute("aria-label").startswith("t-SNE of 9 videos")
        page.mouse.click(*place_of(page, "clip5", "tsne"))
        assert chosen(page) == "clip5"
        keys = page.locator(".labels button")
        assert [text.rsplit(" ", 1) for text in keys.all_text_contents()] == [[LABELS[1], "5"], [LABELS[0], "4"]]
        faint = "#map svg path[fill-opacity='0.12']"
        assert page.locator(faint).count() == 0
        keys.first.click()
        assert page.locator(faint).count() == 4
        assert keys.first.get_attribute("aria-pressed") == "true"
        keys.first.click()
        assert page.locator(faint).count() == 0


def test_what_the_page_says(folder: Path, browser: Any) -> None:
    with opened(browser, folder / "bank.html") as page:
        said = page.locator("#holds").inner_text()
        assert "squeezenet1_1" in said
        counts = [
            row.locator("td.n").all_text_contents() for row in page.locator(".tally").first.locator("tbody tr").all()
        ]
        assert counts == [["4", "1", "3", "32"], ["5", "2", "3", "40"]]  # videos, test, train, rows
        assert page.locator("#failures tbody th").all_text_contents() == [BROKEN]
        (reason,) = Bank(folder / "bank.h5").failures["reason"]
        assert page.locator("#failures tbody td").inner_text() == reason
        copies = page.locator("#copies tbody tr")
        assert copies.count() == 1
        assert copies.locator("button").all_text_contents() == ["clip2", COPY]
        assert "labels differ" in copies.inner_text()
        assert "in several splits" in copies.inner_text()
        copies.locator("button").nth(1).click()
        assert chosen(page) == COPY
        assert page.locator(".neighbours .small").first.inner_text().endswith("1.000")
        still = page.locator("#over-time tbody tr").filter(has_text=STILL)
        assert still.count() == 1
        assert "frozen" in still.inner_text()
        still.locator("button").click()
        assert chosen(page) == STILL
        assert "frozen from" in page.locator("#change").get_attribute("aria-label")
        charts = page.locator(".chart")
        assert charts.count() == 3
        assert charts.evaluate_all("all => all.every(each => each.querySelector('svg path'))")
    assert (folder / "bank.html").stat().st_size < 10e6


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_it_is_accessible(width: int, scheme: str, folder: Path, browser: Any) -> None:
    with opened(browser, folder / "bank.html", width=width, scheme=scheme) as page:
        assert findings(page) == []
        page.locator("#map").focus()
        page.keyboard.press("ArrowLeft")
        assert findings(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind(kind: str, folder: Path, browser: Any) -> None:
    bank = folder / f"{kind}.h5"
    assert framebank("explore", bank, "--out", folder / "kind.html").exit_code == 0
    with Bank(bank) as opened_bank:
        found = opened_bank["clip3"].astype(np.float64)
    rows = {"maps": lambda: found.mean(axis=(2, 3)), "views": lambda: found[0], "clips": lambda: found}[kind]()
    change = np.linalg.norm(np.diff(rows, axis=0), axis=1)
    change /= (np.linalg.norm(rows[1:], axis=1) + np.linalg.norm(rows[:-1], axis=1)) / 2
    with opened(browser, folder / "kind.html") as page:
        assert page.locator(".explorer img").count() > 0
        drawn = page.evaluate("PAGE.explore.videos.find((each) => each.id === 'clip3').course.line")
        np.testing.assert_allclose([y for _, y in drawn], change, rtol=0.01)
        assert page.locator("#copies tbody button").all_text_contents() == ["clip2", COPY]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_videos_without_labels(count: int, tmp_path: Path, browser: Any) -> None:
    if count:
        videos = {f"v{place}": embeddings(f"v{place}", 1 if count == 1 else 6) for place in range(count)}
        bank_of(tmp_path / "b.h5", videos, {video: {"label": ""} for video in videos})
    else:
        fill(tmp_path / "b.h5", {}, failures={"x/1": "cut off"})
    said = framebank("explore", tmp_path / "b.h5")
    assert said.exit_code == 0
    assert str(tmp_path / "b.html") in said.stdout
    with opened(browser, tmp_path / "b.html", width=400) as page:
        text = page.locator("main").inner_text()
        assert ("The bank holds no videos" in text) == (count == 0)
        assert page.locator("#map").count() == (count >= 4)
        assert ("a map needs 4 or more" in text) == (0 < count < 4)
        assert ("One row: there is no change" in text) == (count == 1)
        assert page.locator(".neighbours li").count() == (count - 1 if count else 0)
        assert page.locator(".labels").count() == 0
        assert findings(page) == []


def test_many_labels_and_a_sample(tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_data, "MAPPED", 90)
    bank_of(tmp_path / "b.h5", {f"label{place % 45}/{place:03}": embeddings(f"{place}", 5) for place in range(100)})
    assert run(ExploreConfig(tmp_path / "b.h5", tmp_path / "out.html")) == 0
    with opened(browser, tmp_path / "out.html") as page:
        text = page.locator("main").inner_text()
        assert "A sample: 90 of 100 videos" in text
        assert "Pictures: 0 of 90 videos" in text
        assert page.locator(".labels button").count() == 41
        assert page.locator(".labels button").last.inner_text().startswith("other labels")
        looks = page.locator(".labels .mark").evaluate_all(
            "all => all.map((mark) => mark.className + mark.style.cssText)"
        )
        assert len(set(looks)) == 41
        assert page.locator("#videos option").count() == 90


def test_the_same_bank_has_the_same_page(folder: Path) -> None:
    assert framebank("explore", folder / "bank.h5", "--out", folder / "again.html").exit_code == 0
    assert (folder / "again.html").read_bytes() == (folder / "bank.html").read_bytes()


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no bank"):
        run(ExploreConfig(tmp_path / "no.h5"))
    for taken in (folder / "bank.h5", folder / "videos" / "clip1.mp4"):
        with pytest.raises(UserError, match="written over what is read"):
            run(ExploreConfig(folder / "bank.h5", taken))
    with pytest.raises(UserError, match="its folder is not a folder"):
        run(ExploreConfig(folder / "bank.h5", tmp_path / "no" / "page.html"))


@pytest.mark.slow
def test_the_page_of_real_videos_and_of_thousands(shared: Path, tmp_path: Path, browser: Any) -> None:
    """60 clips of the fights, on ImageNet weights; and 3,500 videos without files."""
    bank_of_fights(shared, tmp_path / "b.h5")
    bank_of(tmp_path / "many.h5", {f"{place % 9}/{place}": embeddings(f"{place}", 12) for place in range(3500)})
    for name in ("b", "many"):
        assert framebank("explore", tmp_path / f"{name}.h5").exit_code == 0
        assert (tmp_path / f"{name}.html").stat().st_size < 10e6
        for width in WIDTHS:
            with opened(browser, tmp_path / f"{name}.html", width=width) as page:
                video = page.evaluate("PAGE.explore.videos[40].id")
                page.locator("#find").fill(video)
                page.keyboard.press("Enter")
                assert chosen(page) == video
                assert findings(page) == []
    assert "A sample: 3,000 of 3,500 videos" in (tmp_path / "many.html").read_text("utf-8")
