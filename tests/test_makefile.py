"""The Makefile: every command documented by its own comment, and the right command lines behind it."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ["help", "demo", "extract", "train-head", "finetune", "describe"]
TARGETS += ["bench", "test", "test-all", "check", "docs", "clean"]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile and an installed environment whose commands only write down how they were called."""
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for command in ("framebank", "python", "pip", "ruff", "mypy"):
        file = commands / command
        file.write_text(f'#!/bin/sh\nprintf "%s|" {command} "$@" >> calls; echo >> calls\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    (commands.parent / ".installed").touch()
    (commands.parent / ".installed-dev").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A make above this one (make test) would hand down its own variables and flags.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def calls(folder: Path, *arguments: str) -> list[list[str]]:
    """The command lines, each as its arguments, that `make` really runs."""
    (folder / "calls").unlink(missing_ok=True)
    result = make(folder, *arguments)
    assert result.returncode == 0, result.stderr
    return [line.split("|")[:-1] for line in (folder / "calls").read_text().splitlines()]


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    assert phony[1].split() == TARGETS
    result = make(ROOT)
    assert result.returncode == 0
    assert re.findall(r"^make ([a-z-]+) +\S.+$", result.stdout, re.MULTILINE) == TARGETS
    assert result.stdout == make(ROOT, "help").stdout
    for variable in ("DATA", "RECIPE", "BACKBONE", "WEIGHTS", "OUT", "RUN", "FINETUNED", "ARGS", "PYTHON", "JOBS"):
        assert f"\n  {variable}=" in result.stdout


def test_extract_without_data_banks_the_sample_set(project: Path) -> None:
    extract = ["framebank", "extract", "data/samples", "--out", "data/samples.h5"]
    extract += ["--backbone", "squeezenet1_1", "--weights", "random", "--image-size", "64"]
    assert calls(project, "extract") == [["framebank", "samples", "data/samples"], extract]


@pytest.mark.parametrize(
    ("data", "bank"),
    [
        ("my videos", "data/my videos.h5"),
        ("/else where/it's/", "data/it's.h5"),
        ("clips/manifest.csv", "data/manifest.h5"),
        ("-odd", "data/-odd.h5"),
    ],
)
def test_extract_names_the_bank_after_the_data(project: Path, data: str, bank: str) -> None:
    expected = ["framebank", "extract", data, "--out", bank, "--backbone", "resnet50", "--weights", "DEFAULT"]
    assert calls(project, "extract", f"DATA={data}") == [expected]


def test_extract_takes_every_variable(project: Path) -> None:
    variables = [
        "DATA=a b",
        "BACKBONE=vgg16",
        "WEIGHTS=my weights.pth",
        "OUT=out/x y.h5",
        "ARGS=--fps 5 --crop 1,2,3,4",
    ]
    expected = ["framebank", "extract", "a b", "--out", "out/x y.h5", "--backbone", "vgg16"]
    expected += ["--weights", "my weights.pth", "--fps", "5", "--crop", "1,2,3,4"]
    assert calls(project, "extract", *variables) == [expected]


def test_a_recipe_goes_through_all_stages_and_leaves_the_network_to_itself(project: Path) -> None:
    recipe = ["--recipe", "r2plus1d"]
    extract = ["framebank", "extract", "my videos", "--out", "data/my videos-r2plus1d.h5", *recipe]
    assert calls(project, "extract", "DATA=my videos", "RECIPE=r2plus1d") == [extract]
    weights = ["--weights", "mine.pth"]
    assert calls(project, "extract", "DATA=my videos", "RECIPE=r2plus1d", "WEIGHTS=mine.pth") == [[*extract, *weights]]
    head = ["framebank", "train-head", "data/my videos-r2plus1d.h5", "--out", "data/my videos-r2plus1d-head", *recipe]
    assert calls(project, "train-head", "DATA=my videos", "RECIPE=r2plus1d") == [head]
    finetune = ["framebank", "finetune", "my videos", "--head", "data/my videos-r2plus1d-head"]
    finetune += ["--out", "data/my videos-r2plus1d-finetuned", *recipe]
    assert calls(project, "finetune", "DATA=my videos", "RECIPE=r2plus1d") == [finetune]
    own = calls(project, "extract", "RECIPE=its own/mine.toml")[1]
    expected = ["framebank", "extract", "data/samples", "--out", "data/samples-mine.h5"]
    assert own == [*expected, "--recipe", "its own/mine.toml", "--weights", "random"]


def test_bench_takes_no_recipe(project: Path) -> None:
    done = make(project, "bench", "DATA=films", "RECIPE=lrcn")
    assert done.returncode == 2
    assert "bench takes no RECIPE" in done.stderr
    assert not (project / "calls").exists()


def test_variables_come_from_the_command_line_only(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "by accident")
    monkeypatch.setenv("OUT", "by accident")
    assert calls(project, "extract")[0] == ["framebank", "samples", "data/samples"]


def test_train_head_without_data_banks_the_sample_set_first(project: Path) -> None:
    ran = calls(project, "train-head", "ARGS=--cell gru")
    assert ran[:-1] == calls(project, "extract")
    assert ran[-1] == ["framebank", "train-head", "data/samples.h5", "--out", "data/samples-head", "--cell", "gru"]


def test_train_head_takes_the_bank_of_the_data(project: Path) -> None:
    assert calls(project, "train-head", "DATA=my videos") == [
        ["framebank", "train-head", "data/my videos.h5", "--out", "data/my videos-head"]
    ]
    assert calls(project, "train-head", "OUT=x.h5", "RUN=runs/it's", "DATA=y") == [
        ["framebank", "train-head", "x.h5", "--out", "runs/it's"]
    ]


def test_finetune_without_data_trains_the_sample_set_s_head_first(project: Path) -> None:
    ran = calls(project, "finetune", "ARGS=--epochs 2")
    assert ran[:-1] == calls(project, "train-head")
    finetune = ["framebank", "finetune", "data/samples", "--head", "data/samples-head"]
    assert ran[-1] == [*finetune, "--out", "data/samples-finetuned", "--epochs", "2"]


def test_finetune_takes_the_head_of_the_data(project: Path) -> None:
    finetune = ["framebank", "finetune", "my videos", "--head", "data/my videos-head"]
    finetune += ["--out", "data/my videos-finetuned"]
    assert calls(project, "finetune", "DATA=my videos") == [finetune]
    assert calls(project, "finetune", "DATA=x", "RUN=runs/it's", "FINETUNED=runs/a b") == [
        ["framebank", "finetune", "x", "--head", "runs/it's", "--out", "runs/a b"]
    ]


def test_finetune_names_weights_that_are_a_file_and_no_others(project: Path) -> None:
    (project / "it's mine.pth").touch()
    named = calls(project, "finetune", "DATA=x", "WEIGHTS=it's mine.pth")[0]
    assert named[-2:] == ["--weights", "it's mine.pth"]
    for weights in ("DEFAULT", "IMAGENET1K_V1", "random"):
        assert calls(project, "finetune", "DATA=x", f"WEIGHTS={weights}")[0] == named[:-2]


def test_other_commands(project: Path) -> None:
    assert calls(project, "demo") == [["framebank", "demo"]]
    assert calls(project, "describe") == [["framebank", "describe", "data/samples.h5"]]
    assert calls(project, "describe", "OUT=a b.h5", "ARGS=--verify") == [
        ["framebank", "describe", "a b.h5", "--verify"]
    ]
    assert calls(project, "describe", "DATA=my videos") == [["framebank", "describe", "data/my videos.h5"]]
    assert calls(project, "test") == [["python", "-m", "pytest", "-n", "2"]]
    every = ["python", "-m", "pytest", "-n", "8", "-m", "", "--cov", "--cov-report=term"]
    assert calls(project, "test-all", "JOBS=8") == [every]
    assert calls(project, "check") == [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]]
    assert calls(project, "docs") == [["python", "-m", "mkdocs", "build", "--quiet"]]


def test_installs_when_needed_and_then_no_more(project: Path) -> None:
    install = ["python", "-m", "pip", "install", "--quiet", "-c", "constraints.txt", "-e"]
    stamps = [project / ".venv" / ".installed", project / ".venv" / ".installed-dev"]
    for stamp in stamps:
        stamp.unlink()
    assert calls(project, "demo") == [[*install, "."], ["framebank", "demo"]]
    assert calls(project, "check")[0] == [*install, ".[dev]"]
    assert calls(project, "check")[0] == ["ruff", "check", "."]
    later = stamps[1].stat().st_mtime + 5
    os.utime(project / "constraints.txt", (later, later))
    assert calls(project, "demo")[0] == [*install, "."]


def test_a_failed_installation_is_repeated(project: Path) -> None:
    (project / ".venv" / ".installed").unlink()
    (project / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert make(project, "demo").returncode != 0
    assert not (project / ".venv" / ".installed").exists()


@pytest.mark.parametrize("python", ["./python3.10", "no-such-python"])
def test_an_old_or_missing_python_is_one_clear_line(project: Path, python: str) -> None:
    shutil.rmtree(project / ".venv")
    (project / "python3.10").write_text("#!/bin/sh\nexit 1\n")  # what `sys.exit(sys.version_info < (3, 11))` gives
    (project / "python3.10").chmod(0o755)
    result = make(project, "demo", f"PYTHON={python}")
    assert result.returncode != 0
    line, *made_by_make = result.stderr.splitlines()
    assert line == f"framebank needs Python 3.11 or newer, and {python} is not: name one, as in make PYTHON=python3.12"
    assert all(line.startswith("make: ***") for line in made_by_make)
    assert not (project / ".venv").exists()


def test_clean_keeps_the_environment_and_the_data(project: Path) -> None:
    kept = [project / "data" / "my.h5", project / ".venv" / "bin" / "pip", project / "pyproject.toml"]
    gone = [project / ".mypy_cache" / "x", project / "pipeline" / "__pycache__" / "x.pyc", project / "build" / "x"]
    gone += [project / ".venv" / ".installed", project / ".venv" / ".installed-dev"]
    for path in [kept[0], *gone]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (project / "stages").mkdir()
    (project / "tests").mkdir()
    assert make(project, "clean").returncode == 0
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
