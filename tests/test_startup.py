"""How a command starts: what it need not load, it does not load."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_NEEDED = {"sklearn", "scipy", "matplotlib"}  # most of a second, before the first frame is read


def test_extraction_starts_without_the_libraries_of_training() -> None:
    code = "import stages.cli, stages.extract, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    packages = {module.split(".")[0] for module in loaded.split()}
    assert {"torch", "torchvision", "stages"} <= packages, "or nothing was looked at"
    assert not packages & NOT_NEEDED
