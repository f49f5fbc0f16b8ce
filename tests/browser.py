"""A headless Chromium that opens a page from disk, and holds against it what it must not do: errors, requests."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (1280, 400)
# The browser is what people open pages with, not a part of framebank: where there is none, nothing is wrong.
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; the test skips itself where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install '.[dev]')")
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a Chromium, called one of {', '.join(_NAMES)}")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Any, path: Path, *, width: int = 1280, scheme: str = "light", site: Path | None = None
) -> Iterator[Any]:
    """A page from disk. At the end: nothing was written to the console, and nothing but the file was asked for, or
    nothing but files of the `site` that it belongs to."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.resolve().as_uri())
    try:
        yield page
        assert said == []
        asked = [url for url in asked if not url.startswith(("data:", "blob:"))]
        if site is None:
            assert asked == [path.resolve().as_uri()]
        else:
            assert [url for url in asked if not url.startswith(f"{site.resolve().as_uri()}/")] == []
    finally:
        context.close()


def findings(page: Any) -> list[str]:
    """What axe-core calls serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    violations = axe.Axe().run(page, options={"preload": False}).response["violations"]  # it would fetch the styles
    return [
        f"{each['id']}: {node['html']}"
        for each in violations
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
