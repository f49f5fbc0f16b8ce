"""The shape of the project: who may import whom, how long a file may be, and maps that match what is there."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import framebank
import pipeline
import stages

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path for folder in ("framebank", "pipeline", "stages", "tests") for path in (ROOT / folder).rglob("*.py")
)
PACKAGE_FILES = [path for path in FILES if path.parts[len(ROOT.parts)] != "tests"]
COMMANDS = ("bench_commands", "exchange_commands", "export_model_options")
OPTIONS = ("options", "head_options", "finetune_options", "predict_options", "recipe_options", *COMMANDS)
ONLY_IN = {  # an outside world -> the files that may know it
    "h5py": {"pipeline/features.py"},
    "av": {"pipeline/frames.py", "pipeline/samples.py", "stages/naive_loop.py"},
    "click": {"framebank/asking.py", *(f"stages/{name}.py" for name in ("cli", "calls", *OPTIONS))},
    "sklearn": {
        "pipeline/bank_map.py",
        "pipeline/baselines.py",
        "pipeline/calibration.py",
        "pipeline/metrics.py",
        "pipeline/report_curves.py",
        "pipeline/splits.py",
        "pipeline/standardisation.py",
        "pipeline/training.py",
    },
    "matplotlib": {"pipeline/figures.py"},
    "cv2": {"pipeline/flow.py"},
    "onnxruntime": {"pipeline/exported_models.py"},
    "jinja2": {"pipeline/pages.py"},
    "markupsafe": {"pipeline/pages.py"},
    "pyarrow": {"pipeline/exporting_tables.py"},
}
PUT_STAGES_IN_A_ROW = {"stages/cli.py", *(f"stages/{name}.py" for name in COMMANDS), "stages/demo.py"}
SHARED = (
    *("console", "progress", "events", "calls", "banking", "described"),
    *("options", "recipe_options", "predict_options", "head_options"),
    *("summary", "workers", "training_run", "training_words", "finetune_words"),
    *("comparison", "report_words", "explore_words", "timelines", "export_model_words"),
    *("machine", "bench_parts", "bench_processes", "bench_naive", "bench_words", "naive_loop"),
)
SHARED_BY_STAGES = {f"stages.{name}" for name in SHARED}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, wherever in it: `from a import b` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(path: Path) -> set[str]:
    return {dotted.split(".")[0] for dotted in imported(path)}


@pytest.mark.parametrize("path", [path for path in PACKAGE_FILES if path.parent.name == "pipeline"], ids=name)
def test_pipeline_never_imports_stages(path: Path) -> None:
    assert not {"stages", "framebank"} & packages(path)


@pytest.mark.parametrize("path", [path for path in PACKAGE_FILES if path.parent.name == "stages"], ids=name)
def test_stages_never_import_each_other(path: Path) -> None:
    modules = {f"stages.{other.stem}" for other in (ROOT / "stages").glob("*.py")}
    if name(path) not in PUT_STAGES_IN_A_ROW:
        assert imported(path) & modules <= SHARED_BY_STAGES
    assert "stages.cli" not in imported(path), "nothing needs the command line"
    assert "framebank" not in packages(path), "Python's functions are over the stages, not below"


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=name)
def test_one_file_knows_each_outside_world(path: Path) -> None:
    for package, allowed in ONLY_IN.items():
        assert package not in packages(path) or name(path) in allowed, f"{package} belongs to {allowed}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_opens_with_its_idea_and_is_short(path: Path) -> None:
    text = path.read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "no module docstring"
    assert len(text.splitlines()) <= 500


def mapped(package: object) -> list[str]:
    """The modules that a package's map names, from top to bottom."""
    return re.findall(r"^ {,4}([a-z_]+)(?: {2,}\S|$)", package.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize("package", [framebank, pipeline, stages], ids=lambda package: package.__name__)
def test_map_names_every_module(package: object) -> None:
    names = mapped(package)
    modules = {path.stem for path in (ROOT / package.__name__).glob("*.py")} - {"__init__"}
    assert sorted(names) == sorted(modules | ({"stage"} if package is stages else set()))


def test_imports_go_up_the_map() -> None:
    above: set[str] = set()
    for module in mapped(pipeline):
        used = {dotted.split(".")[1] for dotted in imported(ROOT / f"pipeline/{module}.py") if "pipeline." in dotted}
        assert used <= above, f"{module} imports from below: {used - above}"
        above.add(module)


@pytest.mark.parametrize("module", ["pipeline.videos", "pipeline.features"])
def test_light_modules_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_the_dependencies_are_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][name] for name in ("flow", "onnx", "parquet", "timm", "xarray"))
    wanted = sum(extras, project["dependencies"])
    declared = {canonicalize_name(Requirement(text).name) for text in wanted} - {"bokeh", "onnx", "onnxscript"}
    # (Dask imports the first, torch's exporter the others.)
    used = (
        set().union(*map(packages, PACKAGE_FILES)) - set(sys.stdlib_module_names) - {"framebank", "pipeline", "stages"}
    )
    called = {"PIL": "pillow", "sklearn": "scikit-learn", "cv2": "opencv-contrib-python-headless"}
    assert {called.get(package) or canonicalize_name(package) for package in used} == declared
