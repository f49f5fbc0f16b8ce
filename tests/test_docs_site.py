"""The site of the documentation: it builds without a warning, is whole without a network, and its references are those
of the code. Links of pages that are read on a code forge lead somewhere there."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import pytest

from stages.cli import main
from tests.browser import findings, opened

pytest.importorskip("mkdocs", reason="needs the extra docs")
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
_LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)")
_FENCED = re.compile(r"^ *(```+).*?^ *\1$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; mkdocs is strict, so that a warning fails here."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert built.stdout + built.stderr == ""
    return out


def html_of(page: Path) -> str:
    """The name of a page of docs/ in the site."""
    name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
    return re.sub(r"(^|/)README\.html$", r"\1index.html", name)


def anchors(text: str) -> set[str]:
    """Where links into a page may lead: its headings, as code forges name them."""
    slug = slugify(case="lower")
    seen: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", _FENCED.sub("", text), re.MULTILINE):
        name = slug(re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", heading), "-")
        found.add(f"{name}-{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere_on_a_code_forge(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text("utf-8"))):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        assert target.is_relative_to(ROOT), f"{page}: {link}"
        generated = target == ROOT / "docs/reference/cli.md"  # its headings are in the site alone
        if anchor and target.suffix == ".md" and not generated:
            assert anchor in anchors(target.read_text("utf-8")), f"{page}: {link}"


def test_every_page_is_in_the_site_and_in_its_menu(site: Path) -> None:
    menu = (site / "404.html").read_text("utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        assert (site / html_of(page)).is_file()
        assert re.search(rf'href="[^"]*{re.escape(html_of(page).removesuffix("index.html"))}', menu), page
    assert not (site / "machinery").exists()


def test_the_site_fetches_nothing(site: Path) -> None:
    """Links that a reader may follow lead out; what a browser loads by itself does not."""
    loads = re.compile(r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*href=["']?(?:https?:)?//""")
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text("utf-8")), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text("utf-8")), style


def test_what_pages_show_and_link_to_is_there(site: Path) -> None:
    """Raw HTML too, as of pictures for light and dark, which mkdocs passes over."""
    for page in site.rglob("*.html"):
        for link in re.findall(r"""\s(?:src|href|srcset)=["']?([^"'\s>]+)""", page.read_text("utf-8")):
            path = unquote(link.partition("#")[0])
            if path and not re.match(r"\w+:|//|/", path):  # 404.html has absolute ones, for servers
                assert (page.parent / path).exists(), f"{page.relative_to(site)}: {link}"


def commands(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    below = command.commands.items() if isinstance(command, click.Group) else ()
    return [(path, command)] + [each for name, one in below for each in commands(one, f"{path} {name}")]


def test_the_reference_has_every_command_and_every_option(site: Path) -> None:
    text = (site / "reference" / "cli.html").read_text("utf-8")
    for path, command in commands(main, "framebank"):
        name = path.replace(" ", "-")
        assert f'id="{name}"' in text
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                long = next(each for each in param.opts if each.startswith("--"))
                assert f'id="{name}{long.replace("--", "-", 1)}"' in text, (path, long)
    assert "\\&lt;" not in text  # Markdown knows no such escape: the backslash would be seen


def test_the_files_of_the_package_stand_in_lines(site: Path) -> None:
    assert re.search(r"<code>asking .*\n.*extract_options ", (site / "reference" / "api.html").read_text("utf-8"))


def test_the_schema_and_the_changes_are_the_files_themselves(site: Path) -> None:
    schema = (site / "reference" / "schema.html").read_text("utf-8")
    for heading in re.findall(r"^## (.+)$", (ROOT / "data" / "README.md").read_text("utf-8"), re.MULTILINE):
        assert heading.split(",")[0] in schema
    assert "Unreleased" in (site / "changelog.html").read_text("utf-8")
    assert 'href="reference/schema.html"' in (site / "changelog.html").read_text("utf-8")


def test_files_that_pages_link_to_are_in_the_site(site: Path) -> None:
    listing = (site / "source" / "stages" / "naive_loop.py.html").read_text("utf-8")
    assert "../stages/naive_loop.py" in (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert 'href="source/stages/naive_loop.py.html"' in (site / "benchmarks.html").read_text("utf-8")
    assert "Pillow" in listing


# The theme's own dialog for the search has no name; that is not ours to mend.
@pytest.mark.parametrize(
    ("page", "scheme", "width"), [("flow.html", "light", 1280), ("cluster.html", "dark", 400)], ids=["light", "dark"]
)
def test_pages_open_from_disk(browser: Any, site: Path, page: str, scheme: str, width: int) -> None:
    with opened(browser, site / page, width=width, scheme=scheme, site=site) as shown:
        shown.wait_for_selector("article h1")
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
        assert [each for each in findings(shown) if not each.startswith("aria-dialog-name: ")] == []


def test_the_search_works_from_disk(browser: Any, site: Path) -> None:
    with opened(browser, site / "cluster.html", site=site) as shown:
        shown.click("input.md-search__input")
        shown.keyboard.type("scheduler")
        # Not what was found for the first letters alone.
        shown.wait_for_selector('.md-search-result__link[href*="h=scheduler"]')
        found = shown.locator(".md-search-result__link").first
        assert "cluster.html" in found.get_attribute("href")


def test_dev_has_what_the_site_needs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(extras["docs"]) <= set(extras["dev"])
