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


def test_headers_are_read_without_loading_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a film")
    code = "import sys; from pathlib import Path; from pipeline.headers import probe_videos\n"
    code += "from pipeline.videos import find_videos\n"
    code += (
        "print(*probe_videos(find_videos(Path(sys.argv[1])).table)['problem'], 'distributed' in sys.modules, sep='|')"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    problem, loaded = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("|")
    assert problem, "or no header was read"
    assert loaded.strip() == "False"
