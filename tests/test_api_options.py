"""The types of the keyword arguments are those of the options of the commands."""

import ast
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import click
import pytest

import framebank
from framebank import asking
from framebank.extract_options import ExtractOptions
from framebank.train_head_options import TrainHeadOptions
from stages.cli import main
from tests.python_options import COMMANDS, file_of, text_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", COMMANDS)
def test_the_files_of_types_are_what_the_options_give(name: str) -> None:
    """Up to how they are laid out. If this fails: `python -m tests.python_options`, then ruff format."""
    assert ast.dump(ast.parse(file_of(name).read_text("utf-8"))) == ast.dump(ast.parse(text_of(name)))


def test_no_option_of_the_commands_is_lost() -> None:
    """What has no keyword is said by an argument of the function or by what it returns, or only shows something."""
    for name, shown in (("extract", {"out", "quiet", "dry_run"}), ("train-head", {"out", "quiet"})):
        long = {key[2:] for param in main.commands[name].params for key in param.opts if key.startswith("--")}
        options = {key.replace("-", "_") for key in long}
        assert shown <= options
        assert options - set(asking.keywords(name)) <= shown | {"log_json"}


def test_types_are_those_of_the_values() -> None:
    hints = typing.get_type_hints(TrainHeadOptions)
    assert hints["folds"] == int | None
    assert hints["centre"] == bool | None
    assert set(typing.get_args(typing.get_args(hints["cell"])[0])) == {"lstm", "gru", "none"}
    assert "random_window" not in hints, "as it is typed: --window"
    assert typing.get_type_hints(ExtractOptions)["image_fps"] == float | None
    assert not TrainHeadOptions.__required_keys__


def parsed(name: str, *arguments: object, **given: object) -> dict[str, object]:
    with asking.asked(name, [str(each) for each in arguments], given, ["--out=there"]) as options:
        return options


def test_values_come_out_as_if_they_were_typed() -> None:
    given = {"changes": (1, 4), "centre": False, "init": ["bias-one"], "hidden": 8, "warmup": 0.25, "folds": None}
    options = parsed("train-head", "a b.h5", "-c.h5", **given)
    typed = ["a b.h5", "--out=there", "--changes=1,4", "--no-centre", "--init=bias-one", "--hidden=8", "--warmup=0.25"]
    command = main.commands["train-head"]
    with command.make_context("train-head", [*typed, "--quiet", "--", "-c.h5"]) as context:
        assert options == context.params
    assert (
        parsed("extract", "-", label_from=-1, crop=(0, 0, 8, 8), split_list=Path("x"), flow=None)["label_from"] == "-1"
    )
    assert parsed("extract", "-")["data"] == (Path.cwd() / "-",), "a file of that name, not standard input"
    assert parsed("train-head", "b.h5", background="-")["background"] == "-", "no path"
    assert parsed("finetune", "x", no_prefix_bank=True)["prefix"] is False
    assert parsed("finetune", "x", no_prefix_bank=False)["prefix"] is True


def test_notebooks_see_the_keywords() -> None:
    shown = inspect.signature(framebank.train_head).parameters
    assert {"banks", "out", "progress", *asking.keywords("train-head")} == set(shown)
    assert str(shown["hidden"]) == "hidden: int | None = None"


def test_a_recipe_yields_to_a_keyword() -> None:
    recipe = parsed("extract", "x", recipe="lrcn")
    changed = parsed("extract", "x", recipe="lrcn", backbone="resnet18")
    assert recipe["backbone"] not in (None, "resnet18")
    assert changed == recipe | {"backbone": "resnet18"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hidden": 0}, "'--hidden': 0 is not in the range"),
        ({"cell": "rnn"}, "'rnn' is not one of 'lstm', 'gru', 'none'"),
        ({"folds": 2.5}, "'2.5' is not a valid integer"),
        ({"recipe": "nothing"}, "nothing"),
    ],
)
def test_what_the_command_refuses_is_an_error_of_its_words(given: dict[str, object], words: str) -> None:
    with pytest.raises(framebank.UserError, match=words):
        parsed("train-head", "x", **given)


def test_mistakes_of_programming_are_type_errors() -> None:
    with pytest.raises(
        TypeError, match=r"train_head\(\) got an unexpected keyword argument 'hiden'; did you mean 'hidden'"
    ):
        parsed("train-head", "x", hiden=3)
    with pytest.raises(TypeError, match="centre is on or off"):
        parsed("train-head", "x", centre="no")
    with pytest.raises(TypeError, match="hidden takes a value, not True"):
        parsed("train-head", "x", hidden=True)
    assert click.get_current_context(silent=True) is None, "no context is left behind"


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, time; begun = time.perf_counter(); import framebank; took = time.perf_counter() - begun\n"
    code += "print(took, *sorted({'torch', 'numpy', 'click', 'h5py', 'pipeline', 'stages'} & set(sys.modules)))\n"
    code += "print(set(framebank.__all__) <= set(dir(framebank)))"
    words = [sys.executable, "-c", code]
    first, listed = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    took, *loaded = first.split()
    assert loaded == []
    assert float(took) < 0.2
    assert listed == "True"
