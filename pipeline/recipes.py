"""Recipes: a system that somebody published, written down as options of the commands, in a TOML file.

    summary = "one line"
    source = "who, where, when, and an address"
    notes = "what else a reader should know"     # may be left out

    [extract]
    backbone = "vgg16"                           # as --backbone vgg16

A table stands for a command, its keys are the command's long options without dashes. Values are strings, numbers, true
and false for switches, and lists of these for options that may be repeated. What a key means, and whether its value is
one that the option takes, the commands know; here a file is read and everything else about it is checked.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, did_you_mean

TABLES = ("extract", "train-head", "finetune", "predict")
_TEXTS = {"summary": True, "source": True, "notes": False}  # which must be there
_SUFFIX = ".toml"

Value = str | int | float | bool | list[str | int | float]


@dataclass(frozen=True)
class Recipe:
    """One file, read.

    Attributes:
        name: of a shipped recipe; the path of somebody's own.
        summary, source: one line each.
        notes: any number of lines, or none.
        tables: command -> long option without dashes -> value, as the file has them.
    """

    name: str
    summary: str
    source: str
    notes: str
    tables: Mapping[str, Mapping[str, Value]]


def names(folder: Path) -> list[str]:
    """The recipes that lie in a folder, sorted."""
    return sorted(path.stem for path in folder.glob(f"*{_SUFFIX}"))


def find(which: str, folder: Path) -> Path:
    """The file of a recipe.

    Args:
        which: a name, or the path of a file: what ends in .toml or holds a slash is one.
        folder: where the named ones lie.

    Raises:
        UserError: there is no such recipe, or no such file.
    """
    path = Path(which)
    if path.suffix == _SUFFIX or len(path.parts) > 1:
        if not path.is_file():
            raise UserError(f"there is no recipe file {which}")
        return path
    if which not in (known := names(folder)):
        raise UserError(
            f"there is no recipe {which!r}{did_you_mean(which, known)}; `framebank recipes` lists them, and a file of "
            f"your own ends in {_SUFFIX}"
        )
    return folder / f"{which}{_SUFFIX}"


def read_recipe(path: Path, folder: Path) -> Recipe:
    """Read the recipe in a file; one that lies in `folder` goes by its name.

    Raises:
        UserError: it cannot be read, is not TOML, lacks its summary or source, or holds something that is no recipe's.
    """
    name = path.stem if path.parent == folder else str(path)
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {name} is not UTF-8 text ({error.reason}, byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {name} is not valid TOML: {error}") from error
    texts = {}
    for key, required in _TEXTS.items():
        text = content.pop(key, "")
        if not isinstance(text, str) or (required and not text.strip()):
            raise UserError(f"recipe {name} needs a text {key!r} before its tables")
        texts[key] = text.strip()
    for key in ("summary", "source"):
        if "\n" in texts[key]:
            raise UserError(f"recipe {name}: {key!r} is more than one line; the rest belongs into 'notes'")
    for key, table in content.items():
        if key not in TABLES:
            what = "a table" if isinstance(table, dict) else "a key"
            raise UserError(
                f"recipe {name} has {what} {key!r} that no recipe has{did_you_mean(key, (*TABLES, *_TEXTS))}; its "
                f"tables are {', '.join(TABLES)}"
            )
        if not isinstance(table, dict):
            raise UserError(f"recipe {name}: {key!r} must be a table, [{key}]")
        for option, value in table.items():
            if not _is_value(value):
                raise UserError(
                    f"recipe {name}, [{key}] {option}: a value is a string, a number, true or false, or a list of "
                    f"strings and numbers; got {value!r}"
                )
    if not content:
        raise UserError(f"recipe {name} has no table; it needs one of {', '.join(TABLES)}")
    return Recipe(name, texts["summary"], texts["source"], texts["notes"], content)


def unknown_key(recipe: Recipe, table: str, key: str, known: Iterable[str]) -> UserError:
    """What to say of a key that the command of its table does not have."""
    return UserError(
        f"recipe {recipe.name}: [{table}] has a key {key!r}, which is no option of `framebank {table}`"
        f"{did_you_mean(key, known)}; `framebank {table} --help` lists them"
    )


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in value)
    return isinstance(value, str | int | float)  # bool is an int
