"""`--recipe`: what is not typed is taken from a recipe, as if it had been; what neither says keeps its usual default.

Where options exclude one another, as --stride and --fps do, a typed one makes the recipe's give way. Fine-tuning with
new heads also does what extract and train-head do, so it takes their tables as well, and its own goes before them; the
network's own classifier, in predict, is told by the table of extract which network that is.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.errors import UserError
from pipeline.recipes import Recipe, Value, find, read_recipe, unknown_key
from stages.options import Headed

SHIPPED = Path(__file__).parent / "recipes"
RECIPE = click.option(
    "--recipe",
    metavar="NAME|FILE",
    expose_value=False,
    help="Take what is not typed from a recipe: one that `framebank recipes` lists, or a .toml file of yours.",
)

# Options of which one excludes the others, each with those that say more about it.
_EXCLUDING: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        **dict.fromkeys(("stride", "fps", "frames", "tail", "lrcn"), ()),
        **dict.fromkeys(("tsn", "window"), ("test-crops",)),
    },
    {
        "clip-length": ("clip-stride", "inflate"),
        "clip-stride": ("clip-length", "inflate"),
        "stack": ("grey",),
        "flow": ("flow-method", "flow-weights"),
    },
    {"folds": (), "splits": ()},
    {"recurrent-dropout": (), "variational-dropout": ()},
)
_OF_THE_CALL = ("recipe", "log_json")
_WITH = {"clip-length": ("clip-stride",)}  # what a recipe says to go with its own value, and not with a typed one

# (command, other table that it takes) -> what it passes over, since that changes nothing that the command makes; and
# what it has under the same name for something else.
_BANKING = {"dry-run", "out", "pack", "retry-failed", "seed", "store"}
TAKES: dict[tuple[str, str], tuple[set[str], set[str]]] = {
    ("finetune", "train-head"): ({"amp", "out"}, set()),
    ("finetune", "extract"): ({"batch-size", *_BANKING}, {"fps", "frames", "stride", "views"}),
    ("predict", "extract"): ({"group-from", "label-from", "layer", "split-list", *_BANKING}, {"frames"}),
}
_INSTEAD = {
    "finetune": "make the bank and its head first, and fine-tune with --head",
    "predict": "make a bank and a head, and predict with that",
}


class Filled(Headed):
    """A command whose options can be filled from a recipe; it has the option `RECIPE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What was typed decides what the recipe fills, so that is parsed first, and then everything."""
        typed, *_ = self.make_parser(ctx).parse_args(args=list(args))
        if "recipe" in typed and not ctx.resilient_parsing:
            recipe = read_recipe(find(str(typed["recipe"]), SHIPPED), SHIPPED)
            ctx.meta[__name__] = recipe
            ctx.default_map = fill(self, ctx, recipe, set(typed))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Say which recipe it is, then run."""
        if __name__ in ctx.meta and not ctx.params.get("quiet"):
            recipe: Recipe = ctx.meta[__name__]
            aside = str(ctx.params.get("json")) == "-"  # standard output has a JSON document
            click.echo(f"Recipe      {recipe.name}: {recipe.summary}", err=aside)
        return super().invoke(ctx)


def fill(command: click.Command, ctx: click.Context, recipe: Recipe, typed: Collection[str]) -> dict[str, Any]:
    """What a recipe says to a command: parameter -> value, in the form in which it would be typed.

    Args:
        typed: the parameters that are given on the command line.

    Raises:
        UserError: the recipe says nothing to this command, names an option that it does not have, or gives it a value
            that it does not take.
    """
    table = str(command.name)
    options = options_of(command)
    given = {key for key, param in options.items() if param.name in typed}
    own = recipe.tables.get(table, {})
    for key in own:
        if key not in options:
            raise _unknown(recipe, table, key, options)
    others = _others(table, {*own, *given})
    if not recipe.tables.keys() & {table, *others}:
        has = ", ".join(f"[{name}]" for name in recipe.tables)
        raise UserError(f"recipe {recipe.name} says nothing about {table}; it has {has}")
    values, home = dict(own), dict.fromkeys(own, table)
    for other in others:
        home_command = getattr(ctx.find_root().command, "commands", {}).get(other)
        known = options if home_command is None else options_of(home_command)
        if unknown := [key for key in recipe.tables.get(other, {}) if home_command is not None and key not in known]:
            raise _unknown(recipe, other, unknown[0], known)
        taken = _taken(recipe, other, table, options, {*values, *given})
        values |= taken
        home |= dict.fromkeys(taken, other)
    return {
        str(options[key].name): _typed(recipe, home[key], key, value, options[key], ctx)
        for key, value in _yielding(values, given).items()
    }


def _others(table: str, given: Collection[str]) -> tuple[str, ...]:
    """The tables that a command takes beside its own, the one that goes before the others first."""
    if table == "finetune" and "head" not in given:
        return "train-head", "extract"
    return ("extract",) if table == "predict" else ()


def _taken(
    recipe: Recipe, other: str, table: str, options: Mapping[str, click.Option], stronger: Collection[str]
) -> dict[str, Value]:
    """What a command takes of another one's table.

    Raises:
        UserError: it says what the command cannot do.
    """
    passed_over, elsewise = TAKES[table, other]
    values = _yielding(recipe.tables.get(other, {}), stronger)
    for key, value in values.items():
        if key not in passed_over and (key not in options or key in elsewise):
            raise UserError(
                f"recipe {recipe.name}: {table} alone cannot do [{other}] {key} = {value!r}; {_INSTEAD[table]}"
            )
    return {key: value for key, value in values.items() if key not in passed_over}


def _yielding(values: Mapping[str, Value], stronger: Collection[str]) -> dict[str, Value]:
    """The values without those that something stronger replaces or excludes."""
    out = set(stronger) | {more for key in stronger for more in _WITH.get(key, ())}
    for group in _EXCLUDING:
        if said := group.keys() & set(stronger):
            kept = {more for key in said for more in group[key]}
            out |= {name for key in group.keys() - said for name in (key, *group[key]) if name not in kept}
    return {key: value for key, value in values.items() if key not in out}


def options_of(command: click.Command) -> dict[str, click.Option]:
    """What a recipe may say to a command: long option without dashes -> option."""
    options = [param for param in command.params if isinstance(param, click.Option) and param.name not in _OF_THE_CALL]
    return {name[2:]: option for option in options for name in option.opts if name.startswith("--")}


def _unknown(recipe: Recipe, table: str, key: str, options: Mapping[str, click.Option]) -> UserError:
    """Something more helpful for the other name of a switch, as no-centre."""
    for name, option in options.items():
        if f"--{key}" in option.secondary_opts:
            return UserError(f"recipe {recipe.name}: [{table}] says {key!r}; write {name} = false")
    return unknown_key(recipe, table, key, options)


def _typed(recipe: Recipe, table: str, key: str, value: Value, param: click.Option, ctx: click.Context) -> Any:
    """A value as it would be typed, after the option has said that it takes it."""
    where = f"recipe {recipe.name}, [{table}] {key}"
    if param.is_flag:
        if not isinstance(value, bool):
            raise UserError(f"{where}: it is on or off, so give true or false; got {value!r}")
        return value if param.flag_value else not value
    if isinstance(value, bool):
        raise UserError(f"{where}: it takes a value, not {str(value).lower()}")
    if isinstance(value, list) and not param.multiple:
        raise UserError(f"{where}: it is given once, so it takes no list; write one value, as on the command line")
    text = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    as_typed = tuple(text) if param.multiple else text[0]
    try:
        param.process_value(ctx, as_typed)
    except click.BadParameter as error:
        raise UserError(f"{where}: {error.message}") from error
    return as_typed
