"""What users install: the wheel and the source distribution are built, and the wheel works where nothing else of this
repository is."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.clips import make_clip

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*words: object, cwd: Path, **more: str) -> str:
    """A command that must succeed, without this repository in its path."""
    known = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COVERAGE_PROCESS_CONFIG")}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=known | more, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    passed_over = shutil.ignore_patterns(
        ".git", ".*_cache", ".venv", "__pycache__", "build", "dist", "*.egg-info", "site"
    )
    shutil.copytree(ROOT, folder / "source", ignore=passed_over)
    for left in (folder / "source" / "data").iterdir():
        if left.name != "README.md":
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "source", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def python(built: Path) -> Path:
    """The Python of a virtual environment that has the wheel, and the dependencies of this one but for framebank."""
    environment = built / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=built)
    (wheel,) = built.glob("*.whl")
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    run(*pip, cwd=built)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=built).strip())
    # A .pth file adds a folder, but not what that folder's own .pth files add: the editable framebank stays out.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


def test_the_wheel_holds_what_is_not_python_too(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = {
        path
        for package in ("framebank", "pipeline", "stages")
        for path in (ROOT / package).rglob("*")
        if path.is_file()
    }
    wanted = {path.relative_to(ROOT).as_posix() for path in data if "__pycache__" not in path.parts}
    assert {name for name in wanted if name.endswith(("py.typed", ".toml", ".j2", ".js"))}, "or nothing was looked for"
    assert wanted <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"framebank", "pipeline", "stages"}
    licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert {"LICENSE", "NOTICE"} <= licences


def test_the_source_distribution_builds_and_has_its_tests(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "CHANGELOG.md",
        "LICENSE",
        ".ci/run",
        "data/README.md",
    } <= names
    tests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    docs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert tests | docs <= names


def test_the_wheel_works_where_nothing_else_is(built: Path, python: Path, tmp_path: Path) -> None:
    for number in range(12):
        make_clip(tmp_path / "videos" / f"class{number % 2}" / f"clip{number:02}.mp4", frames=4 + number % 5)
    make_clip(tmp_path / "new.mp4", frames=9)
    where = run(python, "-c", "import framebank, pipeline; print(framebank.__file__, pipeline.__file__)", cwd=tmp_path)
    assert all(path.startswith(str(built / "venv")) for path in where.split())
    command = python.parent / "framebank"
    network = ("--backbone", "squeezenet1_1", "--weights", "random", "--image-size", 48)
    run(command, "extract", "videos", "--out", "bank.h5", *network, cwd=tmp_path)
    run(command, "train-head", "bank.h5", "--out", "run", "--epochs", 2, "--test-share", 0.4, cwd=tmp_path)
    assert run(command, "predict", "run", "new.mp4", cwd=tmp_path).splitlines()[-1].startswith("new  class")
    assert "lrcn" in run(command, "recipes", cwd=tmp_path)
    run(command, "report", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000
    script = tmp_path / "script.py"
    shutil.copy(ROOT / "tests" / "sample_user_script.py", script)
    (tmp_path / "api").mkdir()
    printed = run(python, script, "videos", "new.mp4", "api", cwd=tmp_path)
    assert "12 videos, 0 failed" in printed
    version = run(python, "-c", "import framebank; print(framebank.__version__)", cwd=tmp_path).strip()
    assert run(command, "--version", cwd=tmp_path).split() == ["framebank", version]


def test_the_types_of_a_user_s_script_are_sound(built: Path, python: Path, tmp_path: Path) -> None:
    """As a user's mypy sees them: of the installed packages, which say that they have types."""
    shutil.copy(ROOT / "tests" / "sample_user_script.py", tmp_path / "script.py")
    (tmp_path / "wrong.py").write_text(
        "import framebank\n"
        'framebank.train_head("bank.h5", "run", hiden=3)\n'
        'framebank.train_head("bank.h5", "run", cell="rnn")\n'
        'framebank.load_bundle("run").predict("a.mp4").lable\n'
    )
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", built / "mypy")
    run(*mypy, "script.py", cwd=tmp_path)
    done = subprocess.run([*map(str, mypy), "wrong.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line] == ["2", "3", "4"], (
        done.stdout
    )
