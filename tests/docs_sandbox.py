"""What the examples of the documentation find when they are run, and how they are run.

The working folder holds this, all of it small and real. A page begins with a copy of it, less what the page itself
makes before it uses it; what one command of a page makes, the next ones find.

    my_videos/        fight/fi001.mp4 … fi005.mp4, normal/no001.mp4 … no005.mp4 (4 to 6 frames each) and manifest.csv:
                      path, label, age (a number) and group
    my_frames/        walking/ and running/, folders of images
    new.mp4           one more video, of 12 frames
    bank.h5           the bank of my_videos: ResNet-50, weights DEFAULT
    runs/lstm, gru    heads on bank.h5, of one epoch
    a.h5, b.h5        banks of the classes of my_videos, made alike
    rgb.h5, flow.h5   banks of my_videos: SqueezeNet on frames and on flow, random weights
    data/samples.h5   the bank that the examples in Python read: four of the demo's clips
    tags.csv          id, tags: "indoor|night"
    segments.csv      id, start, end, label
    annotations/      a one-hot table of frames per video, as Cholec80's tools
    angles.csv        id, frame, angle
    UCF-101/, ucfTrainTestlist/                   two classes under that data set's names, and its list files
    hmdb51/, testTrainMulti_7030_splits/          the same of HMDB51
    recordings/       session1/feeding/cam1.mp4, …: sessions, then labels
    mine.safetensors  weights of a ResNet-50, a state dict
    Makefile          with .venv/bin/framebank, so that `make` runs what is tested

Named weights of torchvision are random ones, made when they are asked for. Where an example leaves it open, networks
see 64×64 pixels, trainings take one epoch and benches a few frames; no training takes more than eight epochs, no
extraction more than two workers, and `demo` makes 40 clips, not 200. `make test` and the other targets for those who
work on framebank itself, and `pip`, are not called.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.clips import make_clip
from tests.commands import framebank
from tests.docs_examples import Block, Command, blocks_of, commands_of, is_plain, without_assignments
from tests.docs_shorter import shortened

ROOT = Path(__file__).resolve().parent.parent
CLIPS = {"fight": "fi", "normal": "no"}  # class -> how the names of its videos begin
OF_DEVELOPERS = {"test", "test-all", "check", "clean", "docs"}
_MADE_IN_PYTHON = re.compile(r'\.(?:extract|train_head|finetune)\([^()]*?,\s*"([^"]+)"')
_SMALL = ("--backbone", "squeezenet1_1", "--weights", "random", "--image-size", 48)


def make_sandbox(folder: Path) -> None:
    """Fill a folder with what the examples find. Named weights must be served: `serve_random_weights`."""
    with contextlib.chdir(folder):
        _make_videos()
        _make_annotations()
        for words in (
            "extract my_videos --out bank.h5",
            "train-head bank.h5 --out runs/lstm",
            "train-head bank.h5 --out runs/gru --cell gru",
        ):
            _succeed(*shortened(words.split()))
        for data, bank, more in (
            ("my_videos/fight", "a.h5", ()),
            ("my_videos/normal", "b.h5", ()),
            ("my_videos", "rgb.h5", ()),
            ("my_videos", "flow.h5", ("--flow", 2)),
        ):
            _succeed("extract", data, "--out", bank, *_SMALL, *more)
        _succeed("extract", "data/samples", "--out", "data/samples.h5", *_SMALL)
        _make_weights(Path("mine.safetensors"))
    _make_commands(folder)


def _make_videos() -> None:
    from pipeline.samples import make_samples

    generator = np.random.default_rng(0)
    rows = ["path,label,group,age"]
    for label, begins in CLIPS.items():
        for number in range(1, 6):
            name = f"{label}/{begins}{number:03}.mp4"
            _drift(Path("my_videos", name), 4 + number % 3, generator)
            rows.append(f"{name},{label},{begins}{number:03},{20 + 3 * number + len(label)}")
    Path("my_videos/manifest.csv").write_text("\n".join(rows) + "\n")
    _drift(Path("new.mp4"), 12, generator)
    for name in ("session1/feeding/cam1", "session1/resting/cam1", "session2/feeding/cam1", "session2/resting/cam1"):
        _drift(Path(f"recordings/{name}.mp4"), 4, generator)
    for label in ("walking", "running"):
        for number in (1, 2):
            _write_frames(Path(f"my_frames/{label}/clip{number:02}"), generator)
    _make_published(generator)
    make_samples(Path("data/samples"), clips_per_class=1)


def _drift(path: Path, frames: int, generator: np.random.Generator) -> None:
    """A clip of 64×48 at 10 frames a second: noise that drifts."""
    scene = generator.integers(0, 256, (12, 16, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    make_clip(path, images=[np.roll(scene, 4 * step, 1) for step in range(frames)])


def _write_frames(folder: Path, generator: np.random.Generator) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(1, 5):
        Image.fromarray(generator.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / f"frame{number}.jpg")


def _make_published(generator: np.random.Generator) -> None:
    """UCF101 and HMDB51 as they are unpacked: two classes, of each a training and a test video, and the lists."""
    lists: dict[str, list[str]] = {"trainlist01": [], "testlist01": []}
    Path("ucfTrainTestlist").mkdir()
    Path("testTrainMulti_7030_splits").mkdir()
    for number, (ucf, hmdb) in enumerate((("Archery", "clap"), ("Biking", "wave")), start=1):
        for group, use in (("g08", "trainlist01"), ("g01", "testlist01")):
            name = f"{ucf}/v_{ucf}_{group}_c01.avi"
            _drift(Path("UCF-101", name), 4, generator)
            lists[use].append(name + (f" {number}" if use == "trainlist01" else ""))
        for take in (1, 2):
            _drift(Path("hmdb51", hmdb, f"take{take}.avi"), 4, generator)
        split = "".join(f"take{take}.avi {take}\n" for take in (1, 2))
        Path("testTrainMulti_7030_splits", f"{hmdb}_test_split1.txt").write_text(split)
    for use, names in lists.items():
        Path("ucfTrainTestlist", f"{use}.txt").write_text("\n".join(names) + "\n")


def _make_annotations() -> None:
    """What is to be predicted, in the formats that the pages name."""
    ids = [
        path.relative_to("my_videos").with_suffix("").as_posix() for path in sorted(Path("my_videos").rglob("*.mp4"))
    ]
    tags = [f"{each},{'indoor|night' if number % 2 else 'outdoor'}" for number, each in enumerate(ids)]
    Path("tags.csv").write_text("\n".join(["id,tags", *tags]) + "\n")
    spans = [f"{each},{span}" for each in ids for span in ("0,0.2,approach", "0.2,0.4,contact")]
    Path("segments.csv").write_text("\n".join(["id,start,end,label", *spans]) + "\n")
    angles = [f"{each},{frame},{10 * frame + len(each)}" for each in ids for frame in range(4)]
    Path("angles.csv").write_text("\n".join(["id,frame,angle", *angles]) + "\n")
    Path("annotations").mkdir()
    for number, each in enumerate(ids):
        rows = [f"{frame}\t{frame % 2}\t{(frame + number) % 2}" for frame in range(4)]
        Path("annotations", f"{Path(each).name}-tool.txt").write_text("\n".join(["Frame\tGrasper\tHook", *rows]) + "\n")


def _make_weights(path: Path) -> None:
    from safetensors.torch import save_file
    from torchvision.models import resnet50

    save_file(resnet50(weights=None).state_dict(), path)


def _make_commands(folder: Path) -> None:
    """`framebank` and `python` for lines that need a shell, and what `make` expects of an installed environment."""
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, folder)
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, call in (("framebank", '-m tests.docs_shorter "$@"'), ("python", '"$@"')):
        (commands / name).write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {call}\n")
        (commands / name).chmod(0o755)
    hook = folder / ".venv" / "python"
    hook.mkdir()
    shutil.copy(ROOT / "tests" / "docs_sandbox_site.py", hook / "sitecustomize.py")
    for stamp in (".installed", ".installed-dev"):
        (folder / ".venv" / stamp).touch()


def environment_of(sandbox: Path) -> dict[str, str]:
    """What processes that are started in the sandbox, or from this one, need to know."""
    return {
        "TORCH_HOME": str(sandbox / ".venv" / "torch"),
        "PATH": os.pathsep.join([str(sandbox / ".venv" / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(sandbox / ".venv" / "python"), str(ROOT)]),
    }


def _succeed(*arguments: object) -> None:
    done = framebank(*arguments)
    assert done.exit_code == 0, f"{arguments}\n{done.output}"


def run_page(page: Path, sandbox: Path) -> None:
    """Run the examples of a page in order, in a folder that is theirs."""
    blocks = [block for block in blocks_of(page) if block.reason is None]
    for path in made_first(blocks, sandbox):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    names: dict[str, object] = {"__name__": "example"}
    with contextlib.chdir(sandbox):
        for block in blocks:
            if block.title:
                Path(block.title).write_text(block.text, "utf-8")
                continue
            if block.language == "python":
                exec(compile(block.text, f"{page.name}:{block.line}", "exec"), names)
                continue
            for command in commands_of(block):
                run_command(command)


def made_first(blocks: list[Block], sandbox: Path) -> Iterator[Path]:
    """What is in the sandbox and what the page itself makes before any of its lines uses it."""
    seen: set[str] = set()
    for block in blocks:
        if block.language == "python":
            made, used = set(_MADE_IN_PYTHON.findall(block.text)), set(re.findall(r'"([^"\n]+)"', block.text))
            yield from _there(made - seen, sandbox)
            seen |= used
            continue
        for command in commands_of(block):
            words = shlex.split(command.text, comments=True)
            made = {word for before, word in pairwise(words) if before in ("--out", "-o") and "--dry-run" not in words}
            made |= {"data"} if "demo" in words[:2] else set()  # its clips and banks have names of their own there
            yield from _there(made - seen, sandbox)
            seen |= set() if "--dry-run" in words else set(words)  # which would refuse a bank of other settings


def _there(names: set[str], sandbox: Path) -> list[Path]:
    return [sandbox / name for name in sorted(names) if (sandbox / name).exists()]


def run_command(command: Command) -> None:
    """Run one command here: in this process where it is framebank with its arguments, else in a shell."""
    words = shlex.split(command.text, comments=True)
    called = without_assignments(words)[:1]
    if called == ["pip"] or (called == ["make"] and OF_DEVELOPERS & set(words)):
        return
    if called == ["framebank"] and is_plain(command.text):
        done = framebank(*shortened(words[1:]))
        status, said = done.exit_code, done.output
    else:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        shell = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command.text],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        status, said = shell.returncode, shell.stdout
    assert status == command.status, f"{command.where}: {command.text}\nexit status {status}\n{said}"
