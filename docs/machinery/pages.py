"""What `make docs` does besides rendering: pages that are generated, links out of docs/, menus of whole folders.

Pages are written so that they also read well on a code forge, where nothing is generated: what a marker
`<!-- generated: KIND -->` stands before (a paragraph) is what a reader sees there, and is replaced here by

- `commands`: the reference of the commands, see `commands.py`;
- `api`: the reference of the Python package, by mkdocstrings;
- `file`: the text of the file that the paragraph links to.

Files outside of docs/ that a page links to become pages of the site, so that it is whole without a checkout: where a
page shows the file (`file`, above) the link leads there; other files get a page that holds their text.
"""

import os
import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from commands import reference  # beside this file: mkdocs puts its folder on the path
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
HOME = {"README.md": "index.md"}  # what the site says in another page's words
_GENERATED = re.compile(r"<!-- generated: (\w+) -->\n((?:.+\n?)+)")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(?=[#)])")
_FENCED = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> None:
    """Put the pages of a folder where the menu says `FOLDER/*.md`."""
    named = set(_named(config.nav))
    found = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    config.nav = _expanded(config.nav, [path for path in found if path not in named])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside of docs/ that is linked to and that no page shows."""
    for file in files.documentation_pages():
        path = DOCS / file.src_uri
        for source, text in ((path, path.read_text("utf-8")), *_shown(path)):
            for target in _links(text):
                outside = _outside(source, target)
                if outside is not None and files.get_file_from_path(_page_of(outside)) is None:
                    made = File.generated(
                        config, _page_of(outside), content=_listing(outside), inclusion=InclusionLevel.NOT_IN_NAV
                    )
                    files.append(made)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Generate what is generated, and let links out of docs/ lead to the pages of those files."""
    here, parts, at = DOCS / page.file.src_uri, [], 0
    for match in _GENERATED.finditer(markdown):
        parts += [_relinked(markdown[at : match.start()], here, page.file.src_uri), _generated(match, page)]
        at = match.end()
    return "\n".join([*parts, _relinked(markdown[at:], here, page.file.src_uri)])


def _generated(match: re.Match[str], page: Page) -> str:
    """What stands in the site in place of a marker and its paragraph."""
    kind, paragraph = match.groups()
    if kind == "commands":
        return reference()
    if kind == "api":
        return "::: framebank\n"
    if kind != "file":
        raise PluginError(f"{page.file.src_uri}: nothing is known to generate as {kind!r}")
    source = ((DOCS / page.file.src_uri).parent / _links(paragraph)[0]).resolve()
    return _relinked(source.read_text("utf-8"), source, page.file.src_uri)


def _named(nav: Any) -> list[str]:
    """The pages that a menu names."""
    if isinstance(nav, str):
        return [nav]
    return [path for entry in (nav.values() if isinstance(nav, dict) else nav) for path in _named(entry)]


def _expanded(nav: Any, rest: list[str]) -> Any:
    """A menu with the pages of `rest` in place of the patterns that they match."""
    if isinstance(nav, dict):
        return {title: _expanded(entry, rest) for title, entry in nav.items()}
    if not isinstance(nav, list):
        return nav
    entries = []
    for entry in nav:
        if isinstance(entry, str) and "*" in entry:
            folder = PurePosixPath(entry).parent
            entries += [path for path in rest if PurePosixPath(path).parent == folder and fnmatch(path, entry)]
        else:
            entries.append(_expanded(entry, rest))
    return entries


def _links(markdown: str) -> list[str]:
    """The relative links of a page, without their anchors; not those in blocks of code."""
    return _LINK.findall(_FENCED.sub("", markdown))


def _shown(page: Path) -> list[tuple[Path, str]]:
    """The files that a page shows, with their text."""
    paragraphs = [text for kind, text in _GENERATED.findall(page.read_text("utf-8")) if kind == "file"]
    files = [(page.parent / link).resolve() for text in paragraphs for link in _links(text)]
    return [(file, file.read_text("utf-8")) for file in files]


def _outside(source: Path, target: str) -> Path | None:
    """The file of the project, not of docs/, that a link of `source` leads to."""
    path = Path(os.path.normpath(source.parent / target))
    return path if path.is_file() and path.is_relative_to(ROOT) and not path.is_relative_to(DOCS) else None


def _page_of(outside: Path) -> str:
    """The page of the site that holds, or will hold, a file from outside of docs/."""
    name = outside.relative_to(ROOT).as_posix()
    for page in sorted(DOCS.rglob("*.md")):
        if any(file == outside for file, _ in _shown(page)):
            return page.relative_to(DOCS).as_posix()
    return HOME.get(name, f"source/{name}.md")


def _listing(outside: Path) -> str:
    """The page of a file: its text as it is, or rendered where it is a page itself."""
    name, text = outside.relative_to(ROOT).as_posix(), outside.read_text("utf-8")
    if outside.suffix == ".md":
        return _relinked(text, outside, _page_of(outside))
    language = {".py": "python", ".toml": "toml", ".yml": "yaml"}.get(outside.suffix, "text")
    return f"# {name}\n\n````{language}\n{text}````\n"


def _relinked(markdown: str, source: Path, page: str) -> str:
    """The text of `source` with links that are right where `page` shows it."""

    def moved(match: re.Match[str]) -> str:
        outside = _outside(source, match[1])
        if outside is None and source.is_relative_to(DOCS):
            return match[0]
        path = (
            os.path.relpath(os.path.normpath(source.parent / match[1]), DOCS) if outside is None else _page_of(outside)
        )
        return os.path.relpath(path, PurePosixPath(page).parent)

    code = [*_FENCED.finditer(markdown)]
    starts, ends = [0, *(match.end() for match in code)], [*(match.start() for match in code), len(markdown)]
    prose = [_LINK.sub(moved, markdown[start:end]) for start, end in zip(starts, ends, strict=True)]
    return "".join(part for pair in zip(prose, [*(match[0] for match in code), ""], strict=True) for part in pair)
