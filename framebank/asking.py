"""Keyword arguments -> the options of a command, read by the command's own parser: one set of names, ranges, defaults.

What is given as a keyword counts as typed, so a recipe yields to it, and options that exclude one another are refused
in the same words.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import click

from pipeline.errors import UserError
from stages.cli import main
from stages.recipe_options import options_of

StrPath = str | os.PathLike[str]
_Function = TypeVar("_Function", bound=Callable[..., Any])

# What a function says by what it returns or by an argument of its own, and what only a terminal needs.
_ELSEWHERE = {"out", "quiet", "dry-run", "csv", "json", "log-json"}
_ONLY = {  # of `predict`, whose other options are of outputs, or of a network without a run
    "predict": {
        *("backbone", "weights", "all-files", "image-fps", "allow-partial", "min-seconds"),
        *("device", "precision", "batch-size"),
    }
}


def keywords(name: str) -> dict[str, click.Option]:
    """The keyword arguments of a command: name -> the option that it stands for."""
    command = main.commands[name]
    recipes = [param for param in command.params if param.name == "recipe" and isinstance(param, click.Option)]
    options = {**options_of(command), **dict(zip(["recipe"], recipes, strict=False))}
    taken = _ONLY.get(name, options.keys() - _ELSEWHERE)
    return {key.replace("-", "_"): option for key, option in options.items() if key in taken}


def with_keywords(options: type) -> Callable[[_Function], _Function]:
    """Let `help` and the completion of notebooks show a function's options one by one, as editors do by their types."""
    types = get_type_hints(options)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=types[name]) for name in types
    ]

    def add(function: _Function) -> _Function:
        shown = inspect.signature(function)
        own = [each for each in shown.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        function.__dict__["__signature__"] = shown.replace(parameters=[*own, *more])
        return function

    return add


@contextmanager
def asked(
    name: str,
    arguments: Sequence[StrPath],
    given: Mapping[str, Any],
    more: Sequence[str] = (),
    *,
    progress: bool = False,
) -> Iterator[dict[str, Any]]:
    """The options of a command as its parser gives them, in a context of that command.

    Args:
        name: of the command.
        arguments: what stands on the command line without an option's name.
        given: keyword -> value; None is as if it were not given.
        more: options as they are typed.
        progress: whether the command is to say what it does.

    Raises:
        TypeError: a keyword that there is not, or a value that is of another kind.
        UserError: what the parser refuses, or the block that uses the options.
    """
    command, known = main.commands[name], keywords(name)
    words = list(more)
    for keyword, value in given.items():
        if keyword not in known:
            near = get_close_matches(keyword, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{name.replace('-', '_')}() got an unexpected keyword argument {keyword!r}{hint}")
        words += _typed(keyword, value, known[keyword])
    if not progress and any(param.name == "quiet" for param in command.params):
        words.append("--quiet")
    words += ["--", *(file_named(argument) for argument in arguments)]
    try:
        with (
            click.Context(main, info_name="framebank") as parent,
            command.make_context(name, words, parent=parent) as context,
        ):
            yield context.params
    except click.ClickException as error:
        raise UserError(error.format_message()) from None


def _typed(keyword: str, value: Any, option: click.Option) -> list[str]:
    """A keyword and its value as they would be typed."""
    name = f"--{keyword.replace('_', '-')}"
    if value is None:
        return []
    if option.is_flag:
        if not isinstance(value, bool):
            raise TypeError(f"{keyword} is on or off: give True or False, not {value!r}")
        return [name] if value else list(option.secondary_opts[:1])
    if isinstance(value, bool):
        raise TypeError(f"{keyword} takes a value, not {value}")
    alone = isinstance(value, str | os.PathLike) or not isinstance(value, Iterable)
    texts = [_text(each) for each in ([value] if alone else value)]
    return [f"{name}={text}" for text in (texts if option.multiple else [",".join(texts)])]


def _text(value: Any) -> str:
    return str(os.fspath(value) if isinstance(value, os.PathLike) else value)


def file_named(path: StrPath) -> str:
    """A path as it is typed, but for `-`: there is no standard input here, so that is a file of that name."""
    text = _text(path)
    return str(Path.cwd() / text) if text == "-" else text


def several(paths: StrPath | Iterable[StrPath]) -> tuple[StrPath, ...]:
    """One path or several, as a tuple."""
    return (paths,) if isinstance(paths, str | os.PathLike) else tuple(paths)


@contextmanager
def unchanged() -> Iterator[None]:
    """A block after which torch has the threads and the random generators that it had before."""
    import torch

    threads = torch.get_num_threads()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
