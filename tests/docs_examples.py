"""The examples of the documentation's pages: fenced blocks of commands and of Python, and what their pages say of them.

- `<!-- not run: why -->` on the line before a block: it is only parsed.
- `# exit status N` as the comment of a command: it ends with that status, not with 0.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
from packaging.requirements import Requirement

from pipeline.networks import choose_preset
from stages.calls import json_words
from stages.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
VARIABLES = set(re.findall(r"^#   ([A-Z]+)=", MAKEFILE, re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
# What a block that is run may call. Others are marked as not run, so that a reader of the tests sees what is not.
RUNNABLE = {"framebank", "make", "python", "pip"}
RUNNABLE |= {
    "cat",
    "cd",
    "command",
    "cp",
    "echo",
    "eval",
    "export",
    "find",
    "head",
    "ls",
    "mkdir",
    "mv",
    "printf",
    "rm",
}
_FENCE = re.compile(
    r"^(?: *<!-- not run: (?P<reason>.+?) -->\n\n?)?(?P<indent> *)"
    r'```(?P<language>sh|python)(?: title="(?P<title>[^"\n]+)")?\n(?P<text>.*?)^ *```$',
    re.MULTILINE | re.DOTALL,
)
_STATUS = re.compile(r"\s#\s+exit status (\d+)\b")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: the file.
        line: of the page where the block's text begins, from 1.
        language: "sh" or "python".
        text: without indentation.
        reason: why it is not run; None if it is.
        title: the file that it is to be written into; None of one that is run itself.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str | None
    title: str | None


class Command(NamedTuple):
    """One command of a block.

    Attributes:
        where: "docs/cluster.md:7".
        text: without its comment; may go over several lines.
        status: what it ends with.
    """

    where: str
    text: str
    status: int


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """The examples of a page, in order."""
    text = page.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines()]
        first = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(page, first, match["language"], "\n".join(lines) + "\n", match["reason"], match["title"]))
    return found


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a block of shell: lines that are continued are one, comments and empty lines are none."""
    gathered: list[str] = []
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        gathered.append(line)
        text = "\n".join(gathered)
        if line.endswith("\\") or not _whole(text):
            continue
        words = shlex.split(text, comments=True)
        status = _STATUS.search(line)
        if words:
            where = f"{name_of(block.page)}:{number - len(gathered) + 1}"
            yield Command(where, text, int(status[1]) if status else 0)
        gathered = []
    assert not gathered, f"{name_of(block.page)}:{block.line}: the block ends within a command"


def _whole(text: str) -> bool:
    """Whether all quotes are closed."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def simple_commands(text: str) -> list[list[str]]:
    """The words of each simple command of a line: what stands between |, && and ;, without redirections."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in ("<", ">", ">>", "2>", "<<"):
            next(words, None)  # the file
        elif word and set(word) <= set("|&;()"):
            found.append([])
        else:
            found[-1].append(word)
    return [command for command in found if command]


def is_plain(text: str) -> bool:
    """Whether a command is one program with its arguments, with nothing that only a shell understands."""
    lexer = shlex.shlex(text, posix=False, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    unquoted = [word for word in lexer if not word.startswith(("'", '"'))]
    return not any(re.search(r"[|&;<>()$`*?~\\]|^[A-Za-z_]\w*=", word) for word in unquoted)


def without_assignments(words: list[str]) -> list[str]:
    """A command without the variables that are set for it alone."""
    while words and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    return words


def program_of(words: list[str]) -> str:
    """The program that a simple command calls; `export` where it only sets variables."""
    return (without_assignments(words) or ["export"])[0]


def check(words: list[str]) -> None:
    """Hold one simple command against what there is: commands, options, choices, make's targets, extras.

    Raises:
        click.ClickException, pipeline.errors.UserError, AssertionError: it cannot be as it is written.
    """
    words = without_assignments(words)
    program, *arguments = words or [""]
    if program == "torchrun":
        arguments = arguments[arguments.index("stages.cli") + 1 :]
        program = "framebank"
    if program == "framebank":
        _check_framebank(main, click.Context(main, info_name="framebank"), json_words(arguments))
    elif program == "make":
        targets = {word for word in arguments if "=" not in word}
        assert targets <= TARGETS, f"make has no {targets - TARGETS}"
        variables = {word.partition("=")[0] for word in arguments if "=" in word}
        assert variables <= VARIABLES, f"the Makefile has no {variables - VARIABLES}"
    elif program == "pip":
        for word in arguments:
            if re.match(r"framebank\b|\.\[", word):
                asked = Requirement(word.replace(".[", "framebank[")).extras
                assert asked <= set(EXTRAS), f"there is no extra {asked - set(EXTRAS)}"


def _check_framebank(command: click.Command, parent: click.Context, arguments: list[str]) -> None:
    """Parse a command line with click, down to the command that would be called, without calling it."""
    if isinstance(command, click.Group):
        if arguments and not arguments[0].startswith("-"):
            name, below, rest = command.resolve_command(parent, list(arguments))
            assert below is not None
            if isinstance(below, click.Group):
                _check_framebank(below, click.Context(below, info_name=name, parent=parent), rest)
            else:
                _check_call(below, name, parent, rest)
        else:
            known = {option for param in command.get_params(parent) for option in param.opts}
            assert set(arguments) <= known, arguments
    else:
        _check_call(command, command.name, parent, arguments)


def _check_call(command: click.Command, name: str | None, parent: click.Context, arguments: list[str]) -> None:
    if {"--help", "-h"} & set(arguments):
        return
    with command.make_context(name, list(arguments), parent=parent) as context:
        asked = context.params
        if name == "extract":  # unknown networks, weights and presets raise
            choose_preset(asked["backbone"] or "resnet50", asked["weights"], asked["preset"])
