"""A template and plain data -> one HTML file that needs nothing else: no network, no folder beside it.

Style, scripts, the charts' library and the data stand in the file itself; images are data URIs. The page forbids itself
everything from outside (Content-Security-Policy), so that it opens the same from any disk in any year. Text from
elsewhere (ids, labels, paths) is escaped wherever it stands, and cannot end the script that holds the data.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.ids import readable
from pipeline.writing import plain, replace_file

ASSETS = Path(__file__).parent / "page_assets"
_ENDINGS = ("</script", "</style", "<!--")  # what would end an element that a file is put into


def render(
    template: str, content: Mapping[str, Any], data: Any = None, words: Mapping[str, Callable[..., str]] | None = None
) -> str:
    """The text of a page.

    Args:
        template: a file of `page_assets` that extends `base.html.j2`.
        content: what the template's names stand for. A name that it lacks is an error.
        data: what the scripts read, as JSON in `#page-data`; numbers that are not finite become null.
        words: filters of the template, by name: how numbers and the like are written.
    """
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_readable,
    )
    environment.filters.update(words or {})
    environment.globals["asset"] = asset
    return environment.get_template(template).render({**content, "page_data": in_script(data)})


def write_page(path: Path, text: str) -> None:
    """Write a page in one step."""
    replace_file(path, text.encode("utf-8"))


def asset(name: str) -> Markup:
    """A file of `page_assets`, to be put as it is into a script or a style. ValueError: it would end that element."""
    text = (ASSETS / name).read_text("utf-8")
    if ending := next((each for each in _ENDINGS if each in text.lower()), None):
        raise ValueError(f"{name} holds {ending!r} and cannot be put into a page")
    return Markup(text)


def in_script(data: Any) -> Markup:
    """JSON that may stand in a `<script>`: nothing in it can end the element, whatever the data."""
    text = json.dumps(_readable_throughout(plain(data)), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _readable(value: Any) -> Any:
    """Text of any origin without control characters and what no UTF-8 file can hold; markup is ours, and stays."""
    return readable(value) if type(value) is str else value


def _readable_throughout(value: Any) -> Any:
    if isinstance(value, dict):
        return {_readable(key): _readable_throughout(each) for key, each in value.items()}
    return [_readable_throughout(each) for each in value] if isinstance(value, list) else _readable(value)
