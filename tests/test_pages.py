"""Pages: whatever the data, it stays data; and a template that names what is not there is an error."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from pipeline.pages import ASSETS, asset, in_script, render, write_page
from stages.report_words import FILTERS

NASTY = ["</script><script>alert(1)</script>", "<!--", "&amp;", "\u2028", "a\udcffb", 'say "hi"', "'"]


class Scripts(HTMLParser):
    """The text of every script, as a browser would find it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag == "script"
        self.found += [""] * self.inside

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1] += data


def comparison(**changes: object) -> dict[str, object]:
    """The least that the template of a comparison names."""
    empty: dict[str, object] = {name: [] for name in ("rows", "warnings", "columns", "groups", "by_class")}
    return {**empty, "title": "t", "shared_words": "", "charts": {}, "version": "0", **changes}


def test_data_cannot_leave_its_script() -> None:
    text = render("comparison.html.j2", comparison(title=NASTY[0], warnings=NASTY), {"ids": NASTY}, FILTERS)
    scripts = Scripts()
    scripts.feed(text)
    assert len(scripts.found) == 3  # the data, the charts' library, ours
    assert json.loads(scripts.found[0])["ids"] == [*NASTY[:4], "a%FFb", *NASTY[5:]]
    assert "alert(1)" not in "".join(scripts.found[1:])
    assert "<script>alert" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text


def test_numbers_that_are_not_finite_are_null() -> None:
    assert in_script({"a": float("nan"), 2: (float("inf"), 1.5)}) == '{"a":null,"2":[null,1.5]}'


def test_a_page_is_utf8_and_asks_for_nothing(tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    write_page(page, render("comparison.html.j2", comparison(title="Größe \udcff"), None, FILTERS))
    text = page.read_text("utf-8")
    assert "<title>Größe %FF</title>" in text
    assert "default-src 'none'" in text
    assert ' src="http' not in text
    assert "sourceMappingURL" not in text


def test_what_a_template_lacks_is_an_error() -> None:
    content = comparison()
    del content["rows"]
    with pytest.raises(UndefinedError, match="rows"):
        render("comparison.html.j2", content, None, FILTERS)


def test_an_asset_that_ends_its_element_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.js").write_text("x = '</SCRIPT>'")
    monkeypatch.setattr("pipeline.pages.ASSETS", tmp_path)
    with pytest.raises(ValueError, match=r"bad\.js"):
        asset("bad.js")


def test_the_vendored_library_has_its_licence() -> None:
    vendor = ASSETS / "vendor"
    assert "Apache License" in (vendor / "LICENSE").read_text()
    assert "Apache ECharts" in (vendor / "NOTICE").read_text()
    assert "BSD" in (vendor / "LICENSE").read_text()
    assert (vendor / "LICENSE-d3").exists()
