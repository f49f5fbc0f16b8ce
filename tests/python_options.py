"""The options of the commands as types for Python: what `framebank/*_options.py` has to say.

`python -m tests.python_options` writes them. They are made from the options themselves, so that names, kinds of values
and help are said in one place; a test holds the files against this.
"""

import textwrap
from pathlib import Path

import click

from framebank.asking import keywords

FOLDER = Path(__file__).resolve().parent.parent / "framebank"
COMMANDS = {  # command -> name of the type
    "extract": "ExtractOptions",
    "train-head": "TrainHeadOptions",
    "finetune": "FinetuneOptions",
    "evaluate": "EvaluateOptions",
    "predict": "PredictOptions",
}
NUMBERS = {"label_from", "group_from", "unfreeze"}  # text that may be a number
WIDTH = 116  # of a docstring's text


def text_of(name: str) -> str:
    """The whole module of a command."""
    kind = COMMANDS[name]
    fields = []
    for keyword, option in keywords(name).items():
        fields.append(f"    {keyword}: {type_of(keyword, option)} | None\n{docstring(option)}")
    body = "\n".join(fields)
    imports = ["from collections.abc import Sequence"] if "Sequence[" in body else []
    imports += ["from os import PathLike"] if "PathLike[" in body else []
    imports += [f"from typing import {'Literal, ' if 'Literal[' in body else ''}TypedDict"]
    opening = f'"""The options of `framebank {name}` as keyword arguments. Written by tests/python_options.py."""'
    about = '"""As of the command; None is as if it were not given."""'
    lines = [opening, "", *imports, "", "", f"class {kind}(TypedDict, total=False):", f"    {about}", "", body]
    return "\n".join(lines).rstrip() + "\n"


def type_of(keyword: str, option: click.Option) -> str:
    """What a value may be, as an annotation."""
    if option.is_flag:
        return "bool"
    kind = option.type
    if isinstance(kind, click.Choice):
        one = f"Literal[{', '.join(repr(choice).replace(chr(39), chr(34)) for choice in kind.choices)}]"
    elif isinstance(kind, click.FloatRange):
        one = "float"
    elif isinstance(kind, click.IntRange):
        one = "int"
    elif isinstance(kind, click.Path) or "FILE" in (option.metavar or "") or "checkpoint" in (option.help or ""):
        one = "str | PathLike[str]"
    else:
        one = "str"
    read = getattr(option.callback, "__qualname__", "")
    if option.multiple:
        return f"{one} | Sequence[{one}]"
    if "_numbers" in read:
        return "int | str | Sequence[int]"
    if read == "_region":
        return "str | Sequence[int]"
    if read == "_parts":
        return "str | Sequence[str]"
    return "int | str" if keyword in NUMBERS or read == "_batch_size" or (keyword == "views" and one == "str") else one


def docstring(option: click.Option) -> str:
    """Its help, with the default where the help of the command shows that."""
    text = " ".join((option.help or "").split())
    default = option.default
    if option.show_default and isinstance(default, str | int | float) and not isinstance(default, bool):
        text += f" [default: {default}]"
    raw = "r" if "\\" in text else ""
    return textwrap.indent("\n".join(textwrap.wrap(f'{raw}"""{text}"""', WIDTH)), " " * 4) + "\n"


def file_of(name: str) -> Path:
    """Where it is kept."""
    return FOLDER / f"{name.replace('-', '_')}_options.py"


if __name__ == "__main__":
    for name in COMMANDS:
        file_of(name).write_text(text_of(name), "utf-8")
