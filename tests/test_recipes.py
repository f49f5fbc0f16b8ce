"""Recipes: what a file may be, what it fills, what goes before it, and that the shipped ones are what commands take."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest

from pipeline.errors import UserError
from pipeline.recipes import TABLES, find, names, read_recipe
from stages.cli import main
from stages.predict_options import OF_NETWORK, OF_RUN
from stages.recipe_options import SHIPPED, Filled, fill, options_of
from tests.commands import framebank

ROOT = Path(__file__).resolve().parent.parent
NAMES = names(SHIPPED)
PUBLISHED = {
    *("cnn-lstm", "video-rnn", "lrcn", "lip-vggm", "r2d", "f-r2d", "mc3", "rmc3", "r3d", "r2plus1d", "i3d"),
    *("beyond-short-snippets", "beyond-short-snippets-pooling", "two-stream-rgb", "two-stream-flow", "two-stream"),
    "slow-fusion",
}
HEAD = 'summary = "s"\nsource = "x"\n'
ARGUMENTS = {"extract": ["d", "-o", "o.h5"], "train-head": ["b.h5", "-o", "r"], "predict": ["v.mp4"]}
ARGUMENTS["finetune"] = ["d", "-o", "r"]


def params(command: str, *arguments: str) -> dict[str, Any]:
    """What a command is called with; the command itself does not run."""
    with main.commands[command].make_context(command, [*ARGUMENTS[command], *arguments]) as context:
        return dict(context.params)


def own(folder: Path, text: str) -> str:
    """A recipe of somebody's own."""
    (folder / "mine.toml").write_text(HEAD + text, "utf-8")
    return str(folder / "mine.toml")


def test_every_published_system_has_a_recipe() -> None:
    assert set(NAMES) == PUBLISHED


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_what_its_commands_take(name: str) -> None:
    recipe = read_recipe(find(name, SHIPPED), SHIPPED)
    assert recipe.name == name
    assert len(recipe.summary) <= 90
    assert len(recipe.source) <= 120
    text = (SHIPPED / f"{name}.toml").read_text("utf-8")
    assert max(map(len, text.splitlines())) <= 125
    for table, values in recipe.tables.items():
        options = options_of(main.commands[table])
        assert values.keys() <= options.keys()
        with main.commands[table].make_context(table, [*ARGUMENTS[table]], resilient_parsing=True) as context:
            only = type(recipe)(name, "", "", "", {table: values})
            filled = fill(main.commands[table], context, only, ())
        assert filled.keys() == {options[key].name for key in values}
        named = params(table, "--recipe", name)
        bare = params(table)
        for key, value in values.items():
            got = named[str(options[key].name)]
            if isinstance(value, list):
                assert got == tuple(value)
            elif key in ("mlp", "step-mlp", "deltas", "changes", "augment"):
                assert ",".join(map(str, got)) == value
            else:
                assert got == value or got == (value,)
        untouched = bare.keys() - set(filled) - ({"weights"} if table == "predict" else set())
        others = {str(options_of(main.commands[table])[key].name) for key in _elsewhere(recipe.tables, table)}
        assert {each: named[each] for each in untouched - others} == {each: bare[each] for each in untouched - others}


def _elsewhere(tables: Any, table: str) -> set[str]:
    """Keys of other tables that a command takes as well."""
    taken = {"finetune": ("extract", "train-head"), "predict": ("extract",)}.get(table, ())
    return {key for other in taken for key in tables.get(other, {})} & options_of(main.commands[table]).keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_table_of_fine_tuning_goes_with_a_head_and_without(name: str) -> None:
    """With --head, whatever that run decides may not be said."""
    from dataclasses import fields

    from pipeline.optimisation import FitConfig
    from stages.finetune import FinetuneConfig
    from stages.finetune_options import _CHOSEN

    table = read_recipe(find(name, SHIPPED), SHIPPED).tables.get("finetune")
    if table is None:
        with pytest.raises(UserError, match=r"says nothing about finetune"):
            params("finetune", "--recipe", name, "--head", "run")
        return
    free = {each.name for config in (FinetuneConfig, FitConfig) for each in fields(config)} | {*_CHOSEN, "seeds"}
    assert {key.replace("-", "_") for key in table} <= free
    with_head, without = (params("finetune", "--recipe", name, *more) for more in (["--head", "run"], []))
    assert with_head["unfreeze"] == without["unfreeze"] == table["unfreeze"]
    assert with_head["backbone"] is None
    assert without["backbone"] == read_recipe(find(name, SHIPPED), SHIPPED).tables["extract"]["backbone"]
    assert without["centre"] is False
    assert with_head["centre"] is True


def test_a_recipe_fills_what_is_not_typed() -> None:
    filled = params("train-head", "--recipe", "lrcn", "--hidden", "7", "--centre")
    assert filled["hidden"] == 7
    assert filled["centre"] is True
    assert filled["cell"] == "gru"
    assert filled["init"] == ("orthogonal-input", "orthogonal-recurrent", "bias-one")
    assert filled["changes"] == ()
    assert filled["label_smoothing"] == 0
    assert filled["folds"] is None
    assert params("train-head")["cell"] == "lstm"


def test_typed_options_make_those_that_they_exclude_give_way(tmp_path: Path) -> None:
    assert params("train-head", "--recipe", "lrcn")["lrcn"] == 10
    typed = params("train-head", "--recipe", "lrcn", "--fps", "5")
    assert (typed["lrcn"], typed["fps"]) == (None, 5)
    typed = params("train-head", "--recipe", "r3d", "--tail", "4")
    assert (typed["tail"], typed["random_window"], typed["test_crops"]) == (4, None, 1)
    typed = params("train-head", "--recipe", "r3d", "--tsn", "4")
    assert (typed["tsn"], typed["random_window"], typed["test_crops"]) == (4, None, 10)
    typed = params("train-head", "--recipe", "lrcn", "--recurrent-dropout", "0.1")
    assert (typed["recurrent_dropout"], typed["variational_dropout"]) == (0.1, 0)
    typed = params("extract", "--recipe", "lip-vggm", "--clip-length", "4")
    assert (typed["clip_length"], typed["stack"], typed["grey"]) == (4, None, False)
    typed = params("extract", "--recipe", "lip-vggm", "--stack", "3")
    assert (typed["stack"], typed["grey"]) == (3, True)
    typed = params("extract", "--recipe", "two-stream-flow", "--stack", "3")
    assert (typed["stack"], typed["flow"], typed["flow_method"]) == (3, None, None)
    typed = params("extract", "--recipe", "r3d", "--clip-length", "4")
    assert (typed["clip_length"], typed["clip_stride"]) == (4, None), "8 frames apart would leave some out"
    for typed in (params("extract", "--recipe", "i3d", *more) for more in (["--stack", "3"], ["--flow", "3"])):
        assert (typed["clip_length"], typed["clip_stride"], typed["inflate"]) == (None, None, False)
    typed = params("extract", "--recipe", "i3d", "--clip-stride", "3")
    assert (typed["clip_length"], typed["clip_stride"], typed["inflate"]) == (64, 3, True)
    assert params("extract", "--recipe", "i3d", "--clip-length", "8")["inflate"] is True
    assert params("extract", "--recipe", "lip-vggm", "--clip-stride", "4")["stack"] is None
    typed = params("extract", "--recipe", own(tmp_path, "[extract]\nfps = 5\n"), "--stride", "2")
    assert (typed["fps"], typed["stride"]) == (None, 2)


def test_fine_tuning_from_scratch_takes_the_tables_of_what_it_does_itself(tmp_path: Path) -> None:
    text = """
    [extract]
    backbone = "resnet18"
    weights = "random"
    batch-size = 3
    store = "float32"
    [train-head]
    hidden = 9
    batch-size = 5
    epochs = 3
    tsn = 4
    out = "elsewhere"
    [finetune]
    epochs = 2
    frames = 6
    """
    recipe = own(tmp_path, text)
    scratch = params("finetune", "--recipe", recipe)
    assert (scratch["backbone"], scratch["weights"], scratch["hidden"]) == ("resnet18", "random", 9)
    assert (scratch["batch_size"], scratch["epochs"], scratch["out"]) == (5, 2, Path("r"))
    assert (scratch["frames"], scratch["tsn"]) == (6, None), "its own table goes before that of train-head"
    headed = params("finetune", "--recipe", recipe, "--head", "run")
    assert (headed["backbone"], headed["hidden"], headed["batch_size"], headed["epochs"]) == (None, 64, 16, 2)
    recipe = own(tmp_path, '[extract]\nfps = 5\nviews = "10"\n')
    with pytest.raises(UserError, match=r"finetune alone cannot do \[extract\] fps = 5; make the bank"):
        params("finetune", "--recipe", recipe)
    with pytest.raises(UserError, match=r"\[extract\] views = '10'"):
        params("finetune", "--recipe", recipe, "--tail", "3")


def test_a_network_by_itself_is_told_by_the_table_of_extract(tmp_path: Path) -> None:
    filled = params("predict", "--recipe", "r2plus1d")
    assert (filled["backbone"], filled["weights"]) == ("r2plus1d_18", ("KINETICS400_V1",))
    assert (filled["clip_length"], filled["clip_stride"]) == (16, 8)
    assert params("predict", "--recipe", "r2plus1d", "--weights", "w.pth")["weights"] == ("w.pth",)
    assert params("predict", "--recipe", own(tmp_path, "[predict]\ntop-k = 3\n"))["top_k"] == 3
    with pytest.raises(UserError, match=r"predict alone cannot do \[extract\] frames = 8; make a bank"):
        params("predict", "--recipe", own(tmp_path, "[extract]\nframes = 8\n"))
    known = {param.name for param in main.commands["predict"].params}
    assert known >= {*OF_RUN, *OF_NETWORK}
    both = {"weights", "csv", "json", "all_files", "image_fps", "allow_partial", "device", "precision", "batch_size"}
    assert known - {*OF_RUN, *OF_NETWORK} == both | {"quiet", "paths", "recipe", "log_json"}


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("extract", "[extract]\nclip-lenght = 3\n", "a key 'clip-lenght', which is no option of `framebank extract`"),
        ("extract", "[extract]\nclip-lenght = 3\n", "clip-length"),
        ("extract", "[extrct]\nstride = 3\n", "a table 'extrct'"),
        ("extract", "[extrct]\nstride = 3\n", "extract"),
        ("extract", "stride = 3\n", "a key 'stride' that no recipe has"),
        ("extract", "[extract]\nstride = 0\n", "[extract] stride: 0 is not in the range"),
        ("extract", "[extract]\nstride = 2.5\n", "[extract] stride: '2.5' is not a valid integer"),
        ("extract", "[extract]\nstride = true\n", "[extract] stride: it takes a value, not true"),
        ("extract", "[extract]\ngrey = 1\n", "[extract] grey: it is on or off, so give true or false; got 1"),
        ("extract", "[extract]\nstride = [2]\n", "[extract] stride: it is given once"),
        ("extract", "[extract]\nstride = nan\n", "[extract] stride"),
        ("extract", "[extract]\nfps = nan\n", "[extract] fps: 'nan' is not a finite number"),
        ("extract", "[extract]\nstride = 2024-01-01\n", "[extract] stride: a value is a string"),
        ("extract", "[extract]\nstride = { a = 1 }\n", "[extract] stride: a value is a string"),
        ("extract", '[extract]\ncrop = "1,2"\n', "[extract] crop: '1,2' is not x,y,width,height"),
        ("extract", '[extract]\nrecipe = "lrcn"\n', "a key 'recipe'"),
        ("extract", "[extract]\nhelp = true\n", "a key 'help'"),
        ("extract", "[extract]\nno-pack = true\n", "write pack = false"),
        ("extract", "[extract]\nstride = 2\nfps = 3\n", "--stride, --fps and --frames exclude one another"),
        ("train-head", "[train-head]\nno-centre = true\n", "write centre = false"),
        ("train-head", '[train-head]\nmlp = "a"\n', "[train-head] mlp: 'a' is not a list of widths"),
        (
            "train-head",
            '[train-head]\ninit = ["bias-one", "bias-two"]\n',
            "[train-head] init: 'bias-two' is not one of",
        ),
        ("train-head", "[extract]\nstride = 2\n", "says nothing about train-head; it has [extract]"),
        ("train-head", "", "has no table"),
        ("train-head", "train-head = 3\n", "'train-head' must be a table"),
        ("train-head", "[train-head\n", "is not valid TOML"),
        (
            "finetune",
            '[train-head]\nfoo = 1\n[finetune]\nunfreeze = "1"\n',
            "[train-head] has a key 'foo', which is no option of `framebank train-head`",
        ),
        ("finetune", "[train-head]\nhiden = 1\n", "did you mean hidden?"),
        ("predict", '[extract]\nbakbone = "r3d_18"\n', "did you mean backbone?"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line_that_names_it(command: str, text: str, said: str, tmp_path: Path) -> None:
    result = framebank(command, *ARGUMENTS[command], "--recipe", own(tmp_path, text))
    assert result.exit_code == 2
    assert said in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == 1


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    for which, said in (
        ("lcrn", "lrcn"),
        ("", "there is no recipe ''"),
        ("nowhere.toml", "there is no recipe file nowhere.toml"),
        (str(tmp_path), "there is no recipe file"),
    ):
        result = framebank("extract", "d", "-o", "o.h5", "--recipe", which)
        assert result.exit_code == 2
        assert said in result.stderr
    (tmp_path / "a.toml").write_text('summary = "s"\n[extract]\n')
    assert "needs a text 'source'" in framebank("extract", "d", "-o", "o", "--recipe", tmp_path / "a.toml").stderr
    (tmp_path / "a.toml").write_text('summary = "s\\nt"\nsource = "x"\n[extract]\n')
    assert "more than one line" in framebank("extract", "d", "-o", "o", "--recipe", tmp_path / "a.toml").stderr
    (tmp_path / "a.toml").write_bytes(b"summary = '\xff'\n")
    assert "is not UTF-8" in framebank("extract", "d", "-o", "o", "--recipe", tmp_path / "a.toml").stderr


def test_switches_can_be_turned_off_and_on(tmp_path: Path) -> None:
    recipe = own(tmp_path, "[extract]\npack = false\n[finetune]\nno-prefix-bank = true\nrecompute = false\n")
    assert params("extract", "--recipe", recipe)["pack"] is False
    assert params("extract", "--recipe", recipe, "--pack")["pack"] is True
    filled = params("finetune", "--recipe", recipe, "--head", "x")
    assert (filled["prefix"], filled["recompute"]) == (False, False)
    recipe = own(tmp_path, "[finetune]\nno-prefix-bank = false\n")
    assert params("finetune", "--recipe", recipe, "--head", "x")["prefix"] is True
    assert params("extract", "--recipe", "i3d")["inflate"] is True
    assert params("extract", "--recipe", "i3d", "--no-inflate")["inflate"] is False


def test_a_mark_of_utf8_at_the_beginning_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    """Some editors write it."""
    (tmp_path / "mine.toml").write_text(HEAD + "[train-head]\nhidden = 9\n", "utf-8-sig")
    assert params("train-head", "--recipe", str(tmp_path / "mine.toml"))["hidden"] == 9


def test_recipes_are_listed_and_shown() -> None:
    lines = framebank("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines[::2]] == NAMES
    for name in NAMES:
        text = (SHIPPED / f"{name}.toml").read_text("utf-8")
        assert framebank("recipes", "show", name).stdout == text
        tables = tomllib.loads(text)
        assert any(tables["summary"] in line for line in lines)
        assert any(tables["source"] in line for line in lines)
    result = framebank("recipes", "show", "lrnc")
    assert result.exit_code == 2
    assert "lrcn" in result.stderr


def test_what_is_for_a_run_and_what_is_for_a_network_by_itself(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "other").mkdir()
    for arguments, said in (
        (["predict", "run"], "Missing VIDEO"),
        (["predict", "run", "v.mp4", "--clip-length", "3"], "--clip-length is for a network by itself"),
        (["predict", "v.mp4", "--recipe", "r3d", "--segments", "s.csv"], "--segments is of the head of RUN"),
        (["predict", str(tmp_path), "v.mp4", "--recipe", "r3d"], "is a run, whose head decides"),
        (["predict", "v.mp4", str(tmp_path), "--recipe", "r3d"], "is a run, whose head decides"),
        (["predict", "v.mp4", "--recipe", "r3d", "--weights", "a", "--weights", "b"], "give --weights once"),
        (["predict", "v.mp4", "--recipe", own(tmp_path, '[predict]\nframes = "f.csv"\n')], "--frames is of the head"),
        (
            ["predict", "v.mp4", "--recipe", own(tmp_path / "other", '[predict]\nsegments = "s.csv"\n')],
            "--segments is of the head of RUN",
        ),
    ):
        result = framebank(*arguments)
        assert result.exit_code == 2
        assert said in result.stderr


def test_every_command_with_a_table_takes_recipes() -> None:
    filled = {name for name, command in main.commands.items() if isinstance(command, Filled)}
    assert filled == set(TABLES)
    for name in TABLES:
        assert "--recipe" in {option for param in main.commands[name].params for option in param.opts}
    assert isinstance(main.commands["recipes"], click.Group)


def test_names_that_extract_and_fine_tuning_share_mean_the_same() -> None:
    """But for those that stages/recipe_options.py knows to differ."""
    from stages.recipe_options import TAKES

    passed_over, elsewise = TAKES["finetune", "extract"]
    extract, finetune = (options_of(main.commands[name]) for name in ("extract", "finetune"))
    shared = extract.keys() & finetune.keys() - passed_over - elsewise - {"weights", "label-from"}
    for key in shared:
        assert extract[key].help == finetune[key].help, key
    assert elsewise <= finetune.keys()


PAGES = sorted((ROOT / "docs" / "recipes").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages_name_what_there_is(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text("utf-8")
    known = {name for command in main.commands.values() for param in command.params for name in param.opts}
    known |= {name for command in main.commands.values() for param in command.params for name in param.secondary_opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    lines = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()
    calls = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("framebank ")]
    assert calls
    for name, *words in calls:
        if name != "recipes":
            with main.commands[name].make_context(name, words) as context:
                assert context.params
    for own_file in re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        (tmp_path / "mine.toml").write_text(own_file, "utf-8")
        for name in ("extract", "train-head"):
            assert params(name, "--recipe", "mine.toml")


def test_every_recipe_has_its_row_and_its_page() -> None:
    table = (ROOT / "docs" / "recipes" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| ((?:`[a-z0-9-]+` ?)+)\|.*\]\((\S+)\) \|$", table, re.MULTILINE)
    pages = {name: page for names_of_row, page in rows for name in re.findall(r"`([a-z0-9-]+)`", names_of_row)}
    assert pages.keys() == set(NAMES)
    for name, page in pages.items():
        title = (ROOT / "docs" / "recipes" / page).read_text("utf-8").splitlines()[0]
        assert name in re.findall(r"[a-z0-9-]+", title)
    assert {path.name for path in PAGES} == {*pages.values(), "README.md"}


@pytest.mark.slow
def test_the_wheel_has_the_recipes(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    for each in ("pipeline", "stages"):
        shutil.copytree(ROOT / each, copy / each)
    for each in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / each, copy)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(copy)]
    made = subprocess.run(build, capture_output=True, text=True, check=False)
    if made.returncode and "setuptools" in made.stderr:
        pytest.skip("needs setuptools from the package index")
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        assert {name for name in file.namelist() if name.endswith(".toml")} == {
            f"stages/recipes/{name}.toml" for name in NAMES
        }
