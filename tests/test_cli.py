"""The other commands, and how the whole command behaves: help, mistakes, pipes and terminals."""

import os
import pty
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import h5py
import pandas as pd
import pytest

from pipeline.bank import Bank
from pipeline.samples import make_samples
from pipeline.windows import Window
from stages import demo
from stages.cli import main
from stages.console import counted, interval_words, megabytes, number, plain_time
from stages.options import read_window
from tests.banks import fill
from tests.commands import SETTINGS, extract, framebank


@pytest.fixture
def bank(out: Path) -> Path:
    fill(out, {"a/x": 5, "a/y": 3, "b/z": 4}, failures={"b/bad": "empty file (0 bytes)"})
    return out


def test_help_lists_every_command_with_a_line() -> None:
    result = framebank("--help")
    assert result.exit_code == 0
    for command in (
        "bench",
        "compare",
        "demo",
        "describe",
        "evaluate",
        "extract",
        "finetune",
        "merge",
        "pack",
        "predict",
        "remove",
        "samples",
        "train-head",
    ):
        assert re.search(rf"^  {command} +\S", result.stdout, re.MULTILINE)
        assert framebank(command, "--help").exit_code == 0
    assert framebank("--version").stdout == f"framebank {version('framebank')}\n"


def test_long_helps_are_in_sections_and_list_every_option_once() -> None:
    for command, headings in (
        ("train-head", ["Options", "Targets", "Held-out videos", "The head", "Training", "Optimiser"]),
        ("extract", ["Options", "Data", "Network", "Frames"]),
    ):
        text = framebank(command, "--help").stdout
        places = [text.index(f"\n{heading}:\n") for heading in headings]
        assert places == sorted(places)
        names = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE)
        known = [param.opts[-1] for param in main.commands[command].params if isinstance(param, click.Option)]
        assert sorted(names) == sorted([*known, "--help"])
        columns = {len(line) - len(line.lstrip()) for line in text.splitlines() if line.startswith(" " * 8)}
        assert len(columns) == 1, "the texts of all sections begin in one column"


def test_the_module_is_the_command_too_and_starts_without_torch() -> None:
    script = "import sys, stages.cli; print('torch' in sys.modules or 'h5py' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )
    run = subprocess.run([sys.executable, "-m", "stages.cli", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("framebank ")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["extrct"], "(Did you mean one of: 'export', 'extract'?)"),
        (["extract", "--wieghts", "x"], "'--weights'?"),
        (["describe"], "Missing argument 'BANK'"),
        (["extract", "somewhere"], "Missing option"),
        (["describe", "nowhere.h5"], "`framebank extract` makes one"),
        (["pack", "nowhere.h5"], "`framebank extract` makes one"),
        (["merge", "nowhere.h5", "-o", "x.h5"], "`framebank extract` makes one"),
        (["remove", "nowhere.h5", "a"], "`framebank extract` makes one"),
    ],
)
def test_a_mistake_gets_a_hint_and_status_2(
    arguments: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = framebank(*arguments)
    assert result.exit_code == 2
    assert hint in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clip-stride", "2"], "say with --clip-length how long they are"),
        (["--clip-stride", "2", "--backbone", "vgg_m"], "say with --clip-length how long they are"),
        (["--clip-stride", "2", "--stack", "3"], "--clip-stride and --stack exclude one another"),
        (["--clip-length", "4", "--stack", "3"], "--clip-length and --stack exclude one another"),
        (["--clip-length", "4", "--clip-stride", "2", "--flow", "3"], "--clip-length and --flow exclude one another"),
    ],
)
def test_what_a_row_is_made_of_is_said_in_full_and_once(arguments: list[str], said: str, data: Path, out: Path) -> None:
    done = framebank("extract", data, "--out", out, "--weights", "random", *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert not out.exists()


def test_the_clips_of_a_video_network_have_a_length_of_its_own() -> None:
    words = ["d", "-o", "o", "--backbone", "r3d_18", "--clip-stride", "2"]
    with main.commands["extract"].make_context("extract", words) as context:
        asked = dict(context.params)
        read_window(asked)
    assert asked["window"] == Window("clip", 16, 2)


def test_describe_gives_the_overview(bank: Path) -> None:
    text = framebank("describe", bank).stdout
    assert "3 · 12 rows · 3 to 5 rows a video, median 4" in text
    assert "squeezenet1_1, layer features.12.cat:mean" in text
    assert re.search(r"^a +2$", text, re.MULTILINE)
    assert "b/bad: empty file (0 bytes)" in text


def test_describe_shows_one_video(bank: Path) -> None:
    text = framebank("describe", bank, "a/x").stdout
    assert re.search(r"^  frames_decoded +5$", text, re.MULTILINE)
    assert "Features    (5, 8), from" in text
    assert "0.000 s to 0.400 s" in text
    assert "has no video 'nope'" in framebank("describe", bank, "nope").stderr
    assert "could not be banked: empty file" in framebank("describe", bank, "b/bad").stderr


def test_describe_writes_csv(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "catalog.csv").write_text(framebank("describe", bank, "--csv").stdout)
    table = pd.read_csv(tmp_path / "catalog.csv")
    assert table["id"].tolist() == ["a/x", "a/y", "b/z"]
    assert table["rows"].tolist() == [5, 3, 4]
    (tmp_path / "failures.csv").write_text(framebank("describe", bank, "--failures").stdout)
    assert pd.read_csv(tmp_path / "failures.csv")["reason"].tolist() == ["empty file (0 bytes)"]
    assert framebank("describe", bank, "--csv", "--verify").exit_code == 2


def test_describe_counts_splits_and_long_lists(out: Path) -> None:
    fill(out, {f"c{n:02}/x": 1 for n in range(40)}, failures={f"d{n}": "broken" for n in range(14)})
    text = framebank("describe", out).stdout
    assert "… and 10 more classes" in text
    assert "… and 4 more" in text
    fill(out.with_name("empty.h5"), {})
    assert "empty" in framebank("describe", out.with_name("empty.h5")).stdout


def test_verify_is_status_1_with_the_list(bank: Path) -> None:
    assert framebank("describe", bank, "--verify").stdout.startswith("3 videos read: all complete")
    framebank("pack", bank)
    with h5py.File(bank, "a") as file:
        file["videos/a/x/features"][0] = float("inf")
    result = framebank("describe", bank, "--verify")
    assert result.exit_code == 1
    assert "a/x: features are not finite, first in row 0" in result.stdout


def test_pack_merge_and_remove(bank: Path, tmp_path: Path) -> None:
    assert "packed 1 part; 3 videos, 12 rows" in framebank("pack", bank).stdout
    fill(tmp_path / "other.h5", {"c/w": 2})
    merged = tmp_path / "merged.h5"
    assert "merged 2 banks; 4 videos" in framebank("merge", bank, tmp_path / "other.h5", "--out", merged).stdout
    assert "removed 2 videos; 2 videos" in framebank("remove", merged, "a/x", "a/y").stdout
    assert framebank("remove", merged, "a/x").exit_code == 2
    assert sorted(Bank(merged)) == ["b/z", "c/w"]


def test_the_demo_walks_from_clips_to_bank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "make_samples", lambda folder: make_samples(folder, clips_per_class=5))
    assert demo.run(tmp_path) == 0
    text = capsys.readouterr().out
    assert "20 videos" in text
    assert "framebank describe" in text
    assert "Accuracy on held-out videos" in text
    assert "logistic regression on mean + std" in text
    assert "0 predictions changed" in text, "evaluated again"
    assert re.search(r"^forwards-swelling_004 +(forwards|backwards)-\w+ 0\.\d+$", text, re.MULTILINE), "predicted"
    assert len(Bank(tmp_path / "samples.h5")) == 20
    assert (tmp_path / "samples-head" / "confusion.png").exists()
    assert re.search(r"^ +1  features\.12 +197,184 +3e-05$", text, re.MULTILINE), "what is fine-tuned"
    assert re.search(r"^  frozen backbone +\d\.\d{3}\b", text, re.MULTILINE), "what it is held against"
    *_, last = text.splitlines()
    assert last.startswith("Open in a browser: ")
    pages = [Path(page) for page in last.partition(": ")[2].split(", ")]
    assert [page.relative_to(tmp_path).as_posix() for page in pages] == [
        "samples.html",
        "samples-head/report.html",
        "samples-comparison.html",
    ]
    assert all(page.read_text("utf-8").startswith("<!doctype html>") for page in pages)
    weights = (tmp_path / "samples-finetuned" / "backbone.safetensors").stat()
    assert demo.run(tmp_path) == 0  # again: nothing to do
    text = capsys.readouterr().out
    assert "20 videos done before" in text
    assert "samples-head is finished" in text
    assert "samples-finetuned is finished" in text
    assert (tmp_path / "samples-finetuned" / "backbone.safetensors").stat().st_mtime_ns == weights.st_mtime_ns


def test_a_reader_that_leaves_is_no_error(bank: Path) -> None:
    command = f"{sys.executable} -m stages.cli describe '{bank}' --csv | head -n 1"
    run = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout.startswith("id,label")


def test_a_terminal_sees_a_live_bar_and_a_log_sees_lines(data: Path, out: Path) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "stages.cli", "extract", str(data), "--out", str(out), *SETTINGS]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal, env={**os.environ, "TERM": "xterm"})
    os.close(terminal)
    seen = b""
    while True:
        try:
            piece = os.read(controller, 65536)
        except OSError:  # the terminal is gone with the child
            break
        if not piece:
            break
        seen += piece
    os.close(controller)
    assert child.wait() == 0
    assert b"0/6" in seen


def test_progress_lines_for_logs(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.progress._PLAIN_SECONDS", 0.0)
    result = extract(data, out)
    assert re.search(r"^\d/6 videos · \d+ frames · \d+ frames/s · .* · 0 failed$", result.stderr, re.MULTILINE)


def test_numbers_for_people() -> None:
    assert [counted(1, "class", "classes"), counted(2000, "frame")] == ["1 class", "2,000 frames"]
    assert [megabytes(size) for size in (12, 4200, 1.5e6, 2e9, 3e12)] == ["12 B", "4 kB", "1.5 MB", "2.0 GB", "3.0 TB"]
    assert [plain_time(seconds) for seconds in (0.42, 12.3, 185, 25800)] == [
        "0.4 s",
        "12 s",
        "3 min 05 s",
        "7 h 10 min",
    ]
    assert [number(value) for value in (0.71249, -0.5, 12.44, 1234.0, 2.5e9)] == [
        "0.712",
        "-0.500",
        "12.4",
        "1,234",
        "2.5e+09",
    ]
    assert [number(None), number(float("nan")), interval_words(None)] == ["n/a", "n/a", ""]
    assert interval_words((0.6104, 0.79)) == "[0.610, 0.790]"
