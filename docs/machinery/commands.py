"""The reference of the commands, in Markdown, from click's own account of them.

mkdocs-click, which does the like, knows neither the headings of our options nor commands that are loaded when they are
called, and repeats the defaults that the texts of our options end with.
"""

import re
from collections.abc import Iterator
from html import escape
from inspect import cleandoc

import click

from stages.cli import main
from stages.options import option_sections

_MARKDOWN = re.compile(r"([\\`*_\[\]|])")
_OPTION = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")


def reference() -> str:
    """Every command with its arguments, its text, and its options with their defaults."""
    return "\n".join(_lines(main, click.Context(main, info_name="framebank")))


def _lines(command: click.Command, ctx: click.Context) -> Iterator[str]:
    """A command, then those below it if it is a group."""
    path = ctx.command_path
    level = max(2, len(path.split()))  # commands stand beside the command `framebank`, not below it
    yield f"{'#' * level} {path} {{ #{path.replace(' ', '-')} }}\n"
    yield f"```text\n{' '.join([path, *command.collect_usage_pieces(ctx)])}\n```\n"
    yield _prose(command.help or "")
    for heading, options in option_sections(command, ctx).items():
        yield f"| {heading} | |\n| --- | --- |"
        for names, text in options:
            yield f"| {_names(names, path)} | {_escaped(text)} |"
        yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None, name
            yield from _lines(below, click.Context(below, info_name=name, parent=ctx))


def _names(names: str, path: str) -> str:
    """The names of an option as code, to which links may lead."""
    (anchor, *_) = [*_OPTION.findall(names), names.split(",")[0]]
    return f"`{names}`{{ #{path.replace(' ', '-')}{anchor.replace('--', '-', 1)} }}"


def _prose(text: str) -> str:
    """The paragraphs of a help text; those that click leaves as they are, as code."""
    paragraphs = []
    for paragraph in cleandoc(text).split("\n\n"):
        kept = paragraph.removeprefix("\b\n")
        paragraphs.append(_escaped(paragraph) if kept == paragraph else f"```text\n{kept}\n```")
    return "\n\n".join(paragraphs) + "\n"


def _escaped(text: str) -> str:
    """Text that means itself; what stands in backticks is code, as it is meant."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        piece if at % 2 else _MARKDOWN.sub(r"\\\1", escape(piece, quote=False)) for at, piece in enumerate(pieces)
    )
