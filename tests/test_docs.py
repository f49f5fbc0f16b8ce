"""The documentation is true: its tables, names and errors are those of the code; readers in other languages run.

Commands are parsed and run by `test_docs_examples`.
"""

import ast
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import h5py
import pytest
from click.testing import CliRunner

from pipeline import features as hdf5
from pipeline.ids import RESERVED_SEGMENTS
from pipeline.samples import make_samples
from stages.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SCHEMA = (ROOT / "data" / "README.md").read_text("utf-8")
HOW_TO = ROOT / "docs" / "how-to"
NAMES = ("index", "tutorial", "limits", "faq", "design", *(f"how-to/{path.stem}" for path in HOW_TO.glob("*.md")))
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text("utf-8") for name in NAMES}
BANKS, INSTALL, FAQ = (PAGES[name] for name in ("how-to/banks", "how-to/install", "faq"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
KINDS = {"s": "text", "f": "float64", "i": "int64"}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell_lines(text: str, *programs: str) -> list[str]:
    """The lines of the shell blocks that call one of the programs, without their comments."""
    lines = "".join(blocks(text, "sh")).splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.split()[:1] and line.split()[0] in programs]


def table_after(text: str, heading: str) -> dict[str, list[str]]:
    """The first table below a heading: the name in its first column -> its other cells."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in rows}


def option_names(command: click.Command) -> set[str]:
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {name for option in options for name in (*option.opts, *option.secondary_opts)}


def bank_the_clips(folder: Path, *options: str) -> Path:
    """A working folder with the bank that the examples read: `data/samples.h5`, of four of the demo's clips."""
    clips, bank = folder / "data" / "samples", folder / "data" / "samples.h5"
    make_samples(clips, clips_per_class=1)
    settings = ["--backbone", "squeezenet1_1", "--weights", "random", "--image-size", "64", "--quiet", *options]
    result = CliRunner().invoke(main, ["extract", str(clips), "--out", str(bank), *settings])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a bank that is one file."""
    return bank_the_clips(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def linked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a bank that links to its parts."""
    return bank_the_clips(tmp_path_factory.mktemp("linked"), "--no-pack")


@pytest.fixture(params=["packed", "linked"])
def place(request: pytest.FixtureRequest) -> Path:
    """Both folders in turn."""
    return request.getfixturevalue("folder" if request.param == "packed" else "linked_folder")


def test_there_are_examples() -> None:
    assert len(blocks(BANKS, "python")) == 1
    assert len(blocks(SCHEMA, "python")) == 2
    assert len(blocks(SCHEMA, "r")) == 2
    assert len(shell_lines(SCHEMA, "h5ls", "h5dump")) >= 6
    assert len(shell_lines(README, "framebank")) >= 8
    assert sum(len(shell_lines(page, "framebank")) for page in PAGES.values()) >= 60
    assert {"make demo", "make test"} <= set(shell_lines(README, "make"))


@pytest.mark.parametrize("code", blocks(BANKS, "python") + blocks(SCHEMA, "python"))
def test_python_examples_run(
    code: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "xarray" in code and (place / "data" / "samples.h5.parts").exists():
        pytest.skip("xarray reads packed banks only, as data/README.md says")
    monkeypatch.chdir(place)
    exec(compile(code, "example", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    assert "backwards-shrinking" in printed or "forwards-swelling" in printed
    assert "b'" not in printed, "text, not bytes"


@pytest.mark.parametrize("line", shell_lines(SCHEMA, "h5ls", "h5dump"))
def test_hdf5_tools_read_the_bank(line: str, place: Path) -> None:
    words = shlex.split(line)
    if shutil.which(words[0]) is None:
        pytest.skip(f"needs {words[0]} (Debian: hdf5-tools)")
    result = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    assert len(result.stdout.splitlines()) >= 2


@pytest.mark.parametrize("code", blocks(SCHEMA, "r"))
def test_r_examples_run(code: str, place: Path) -> None:
    package = re.findall(r"library\((\w+)\)", code)[0]
    known = f"quit(status = !requireNamespace('{package}', quietly = TRUE))"
    if (
        not shutil.which("Rscript")
        or subprocess.run(["Rscript", "-e", known], check=False, capture_output=True).returncode
    ):
        pytest.skip(f"needs R with {package}")
    result = subprocess.run(["Rscript", "-e", code], cwd=place, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with h5py.File(place / "data" / "samples.h5") as file:
        rows, width = file["videos"][file["catalog/id"].asstr()[0]]["features"].shape
    assert f"{rows} {width}" in " ".join(result.stdout.split())


def test_the_schema_lists_the_catalog_and_the_failures_as_they_are() -> None:
    for heading, columns in (("The catalog", hdf5.CATALOG), ("The failures", hdf5.FAILURES)):
        table = table_after(SCHEMA, heading)
        assert {name: cells[0] for name, cells in table.items()} == {
            name: KINDS[kind] for name, kind in columns.items()
        }
        assert list(table) == list(columns), "in the order in which they are written"


def test_the_schema_lists_the_attributes_and_datasets_as_they_are(place: Path) -> None:
    described = set(table_after(SCHEMA, "Attributes of the file"))
    packed = not (place / "data" / "samples.h5.parts").exists()
    with h5py.File(place / "data" / "samples.h5") as file:
        assert set(file.attrs) == described
        assert set(file) == {"videos", "catalog", "failures", "parts"}
        assert set(file["parts"]) == ({"absorbed"} if packed else {"links"})
        assert "`/parts/links`" in SCHEMA
        assert "`/parts/absorbed`" in SCHEMA
        config = json.loads(file.attrs["config"])
        for name in (*config, *config["recipe"]):
            assert f"`{name}`" in SCHEMA
        for name in json.loads(file.attrs["versions"]):
            assert name in table_after(SCHEMA, "Attributes of the file")["versions"][1]
        assert set(table_after(SCHEMA, "A video")) == {"features", "timestamps", "frame_index", hdf5.WINDOW_FRAMES}
        for video_id in file["catalog/id"].asstr()[:]:
            video = file["videos"][video_id]
            assert set(video) == {"features", "timestamps", "frame_index", "feature"}
            assert set(video.attrs) == {"label", "source", "complete"}
            assert not video["feature"][:].any()


def test_the_schema_lists_the_names_that_ids_avoid() -> None:
    section = SCHEMA.partition("\n## Ids\n")[2].partition("\n## ")[0]
    for name in RESERVED_SEGMENTS:
        assert f"`{name}`" in section or f"/{name}`" in section


@pytest.mark.parametrize("text", [README, SCHEMA, *PAGES.values()], ids=["README", "data/README", *PAGES])
def test_every_option_and_command_that_is_named_exists(text: str) -> None:
    groups = [command for command in main.commands.values() if isinstance(command, click.Group)]
    commands = [*main.commands.values(), *(each for group in groups for each in group.commands.values())]
    known = {"--help", "--version", "--nproc-per-node", "--index-url"}.union(*map(option_names, commands))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known
    assert set(re.findall(r"`framebank ([a-z][a-z-]*)", text)) <= set(main.commands)


def test_every_command_and_make_target_is_documented_or_found_by_help() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert {line.split()[1] for line in shell_lines(README, "make")} <= targets
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= targets
    variables = set(re.findall(r"^#   ([A-Z]+)=", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\b([A-Z]+)=(?=`|\w)", README)) <= variables
    for name in ("extract", "describe", "train-head", "finetune", "pack", "merge", "remove"):
        assert f"framebank {name}" in README


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_as_documented(shell: str) -> None:
    assert f"_FRAMEBANK_COMPLETE={shell}_source framebank" in INSTALL
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("needs bash")
    result = CliRunner().invoke(main, prog_name="framebank", env={"_FRAMEBANK_COMPLETE": f"{shell}_source"})
    assert result.exit_code == 0
    assert f"_FRAMEBANK_COMPLETE={shell}_complete" in result.output


def test_the_tree_names_what_there_is() -> None:
    """Modules are named by the maps that it points to, which `test_layout` checks."""
    tree = blocks(README.partition("## What is where")[2], "")[0]
    named = {
        name
        for line in tree.splitlines()
        for name in re.findall(r"^\S+|(?<=  )[A-Z][A-Z.a-z]+$|(?<=  )[A-Z]+\S*(?=  )", line)
    }
    assert {name for name in named if not (ROOT / name).exists()} == set()
    ours = {"pipeline/", "stages/", "docs/", "tests/", "Makefile", "pyproject.toml", "constraints.txt", "CHANGELOG.md"}
    assert ours <= named


def test_the_exit_statuses_are_those_of_the_help() -> None:
    help_text = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    for status in ("0 all done", "1 verification", "2 could not run as asked", "3 finished", "130 interrupted"):
        assert status in help_text
        assert status in " ".join(README.split())


def literals(file: Path) -> list[str]:
    """The texts of a source file; what is filled in when it runs is "…"."""
    tree = ast.parse(file.read_text("utf-8"))
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


def test_the_errors_of_the_faq_are_those_of_the_code() -> None:
    said = [
        text for folder in ("pipeline", "stages") for file in (ROOT / folder).glob("*.py") for text in literals(file)
    ]
    errors = re.findall(r"^- `(.*)`$", FAQ.partition("\n## Errors\n")[2], re.MULTILINE)
    assert len(errors) >= 30
    for error in errors:  # its pieces stand in one text, in this order
        pieces = [re.escape(piece) for piece in error.split("…") if piece.strip()]
        assert any(re.search(".*".join(pieces), text, re.DOTALL) for text in said), error


def test_links_lead_somewhere() -> None:
    for base, text in ((ROOT, README), (ROOT / "data", SCHEMA)):
        for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text):
            assert (base / target).exists(), target


def test_the_python_that_is_asked_for_is_the_package_s_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in README
