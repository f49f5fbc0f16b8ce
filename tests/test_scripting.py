"""The command in scripts: events as JSON Lines, results as JSON, exit statuses, signals, pipes, the environment."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import CliRunner, Result

from pipeline import bank as banks
from pipeline.bank import Bank
from stages import events, progress
from stages.cli import main
from stages.console import Display
from stages.training_words import Watch
from tests.banks import bank_of, fill, in_order
from tests.clips import make_clip
from tests.commands import SETTINGS, framebank
from tests.killing import Runs, alive

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTED = (ROOT / "docs" / "how-to" / "scripting.md").read_text("utf-8")
HEAD = ("--epochs", 2, "--hidden", 4, "--folds", 2, "--device", "cpu", "--quiet")


def told(text: str) -> list[dict[str, Any]]:
    """The events in what was written to standard error: every line is one, dated, and of a documented name."""
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    for line in lines:
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
        assert line["level"] in ("info", "warning", "error")
        assert f"| `{line['event']}` |" in DOCUMENTED
        for field in line.keys() - {"time", "level", "event"}:
            known = line["event"] in ("epoch", "result") or f"`{field}`" in row_of(line["event"])
            assert known, f"{line['event']} has a field {field} that docs/how-to/scripting.md does not name"
    return lines


def row_of(event: str) -> str:
    return next(line for line in DOCUMENTED.splitlines() if line.startswith(f"| `{event}` |"))


def of(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


def ended(lines: list[dict[str, Any]]) -> int:
    """The exit status that the last line tells."""
    assert lines[0]["event"] == "start"
    assert lines[-1]["event"] == "end"
    assert len(of(lines, "start")) == len(of(lines, "end")) == 1
    status: int = lines[-1]["exit_status"]
    return status


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips in two classes, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips") / "my_videos"
    for number in range(4):
        make_clip(folder / f"class{number % 2}" / f"clip{number}.mp4", frames=4 + number)
    (folder / "class0" / "broken.mp4").write_bytes(b"not a film")
    return folder


@pytest.fixture(scope="module")
def banked(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A bank of them, made with --log-json, and what was said meanwhile."""
    out = tmp_path_factory.mktemp("bank") / "bank.h5"
    return out, framebank("extract", clips, "--out", out, *SETTINGS, "--log-json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run on a bank of rows that were drawn, and what was said meanwhile."""
    folder = tmp_path_factory.mktemp("run")
    bank_of(folder / "bank.h5", in_order(24))
    return folder / "run", framebank("train-head", folder / "bank.h5", "--out", folder / "run", *HEAD, "--log-json")


def test_an_extraction_tells_of_every_video_and_of_its_end(banked: tuple[Path, Result], clips: Path) -> None:
    out, result = banked
    lines = told(result.stderr)
    assert ended(lines) == result.exit_code == 3
    (start,), (plan,), (failed,), (done,) = (of(lines, name) for name in ("start", "plan", "video_failed", "result"))
    assert (start["command"], start["arguments"][-1]) == ("extract", "--log-json")
    assert (plan["to_do"], plan["done_before"]) == (5, 0)
    assert failed["id"] == "class0/broken"
    assert failed["path"] == str(clips / "class0" / "broken.mp4")
    assert failed["level"] == "warning"
    said = {line["id"]: (line["rows"], line["label"]) for line in of(lines, "video_banked")}
    with Bank(out) as bank:
        assert said == {row.id: (row.rows, row.label) for row in bank.catalog.itertuples()}
        assert failed["reason"] == bank.failures["reason"].iloc[0]
        assert (done["bank_videos"], done["bank_rows"], done["bank_bytes"]) == (4, 22, bank.nbytes)
    assert (done["banked"], done["failed"], done["left"], done["bank"]) == (4, 1, 0, str(out))
    assert "Banked      4 videos" in result.stdout, "results stay on standard output"
    assert "video_banked" not in result.stdout


def test_a_training_tells_of_every_epoch(trained: tuple[Path, Result]) -> None:
    run, result = trained
    lines = told(result.stderr)
    assert ended(lines) == result.exit_code == 0
    epochs = [(line["fold"], line["epoch"]) for line in of(lines, "epoch")]
    folds = [line["fold"] for line in of(lines, "training")]
    assert len(folds) == 3, "two, and the one that predicts"
    assert epochs == [(fold, epoch) for fold in folds for epoch in (1, 2)]
    assert all(line["train_loss"] > 0 for line in of(lines, "epoch"))
    (done,) = of(lines, "result")
    wrote = json.loads((run / "results.json").read_text())
    assert (done["run"], done["score"]) == (str(run), wrote["score"])
    assert result.stdout == "", "quiet are the words, not the events"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["describe", "nowhere.h5"], "There is no bank at nowhere.h5"),
        (["extract", "nowhere", "-o", "x.h5"], "nowhere: No such file"),
        (["extract", "nowhere"], "Missing option '-o'"),
        (["pack", "nowhere.h5", "--nonsense"], "No such option"),
    ],
)
def test_a_mistake_is_an_event_with_its_exit_status(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = framebank(*words, "--log-json")
    lines = told(result.stderr)
    assert ended(lines) == result.exit_code == 2
    (error,) = of(lines, "error")
    assert error["exit_status"] == 2
    assert message in error["message"]
    assert result.stdout == ""


def test_after_two_dashes_nothing_is_an_option(tmp_path: Path) -> None:
    result = framebank("describe", tmp_path / "no.h5", "--", "--log-json")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")


def test_a_mistake_of_ours_is_an_event_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_folder: Path) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("pipeline.samples.make_samples", wrong)
    result = CliRunner().invoke(main, ["samples", "x", "--log-json"])
    lines = told(result.stderr)
    assert ended(lines) == result.exit_code == 1
    assert of(lines, "error")[0]["message"] == "ZeroDivisionError: by zero"
    assert "Traceback" in of(lines, "error")[0]["traceback"]


def test_what_others_write_to_standard_error_is_an_event() -> None:
    before, sys.stderr = sys.stderr, (stream := io.StringIO())
    try:
        with events.told(asked=True):
            print("a library\nsays", end=" something", file=sys.stderr)
            events.tell("note", message=float("nan"))
    finally:
        sys.stderr = before
    lines = told(stream.getvalue())
    assert [line["message"] for line in lines] == ["a library", None, "says something"]
    events.tell("note", message="to nobody")
    assert stream.getvalue().count("\n") == 3


def test_finetune_tells_of_its_parts(tmp_path: Path) -> None:
    words = ("--weights", "random", "--backbone", "squeezenet1_1", "--image-size", 48, "--precision", "fp32")
    for number in range(3, 8):
        make_clip(tmp_path / "clips" / f"class{number % 2}" / f"clip{number}.mp4", frames=4)
    bank = tmp_path / "bank.h5"
    more = ("--epochs", 1, "--hidden", 4, "--unfreeze", 1, "--bank", bank, "--quiet", "--folds", 2)
    result = framebank("finetune", tmp_path / "clips", "--out", tmp_path / "run", *words, *more, "--log-json")
    lines = told(result.stderr)
    assert ended(lines) == result.exit_code == 0
    assert len(of(lines, "video_banked")) == 5
    assert len(of(lines, "epoch")) == 3
    assert [line.get("bank", line.get("run")) for line in of(lines, "result")] == [str(bank), str(tmp_path / "run")]


@pytest.fixture(scope="module")
def driver() -> Iterator[Runs]:
    """Calls in processes of their own."""
    runs = Runs()
    yield runs
    runs.close()


def test_a_terminated_extraction_is_130_and_an_event(driver: Runs, tmp_path: Path) -> None:
    for clip in range(40):
        make_clip(tmp_path / "data" / f"clip{clip:02}.mp4", frames=40)
    out, says = tmp_path / "bank.h5", tmp_path / "says.jsonl"
    asked = ("extract", tmp_path / "data", "--out", out, *SETTINGS, "--quiet", "--log-json")
    process = driver.start(*asked, says=says)
    while not banks.sealed_parts(out):
        assert alive(process)
        time.sleep(0.01)
    os.kill(process, signal.SIGTERM)
    assert driver.status() == 130
    lines = told(says.read_text())
    assert ended(lines) == 130
    assert of(lines, "interrupted")[0]["resumable"] is True
    with Bank(out) as bank:
        assert sorted(line["id"] for line in of(lines, "video_banked")) == sorted(bank)
        assert 0 < len(bank) < 40


def test_an_interrupted_training_is_130_and_an_event(driver: Runs, tmp_path: Path) -> None:
    bank_of(tmp_path / "bank.h5", in_order(24))
    says = tmp_path / "says.jsonl"
    asked = ("train-head", tmp_path / "bank.h5", "--out", tmp_path / "run", "--epochs", 10_000, "--device", "cpu")
    process = driver.start(*asked, "--log-json", "--quiet", says=says)
    while not says.exists() or '"epoch"' not in says.read_text():
        assert alive(process)
        time.sleep(0.02)
    os.kill(process, signal.SIGINT)
    assert driver.status() == 130
    lines = told(says.read_text())
    assert ended(lines) == 130
    assert of(lines, "interrupted")[0]["resumable"] is True


def document(result: Result) -> dict[str, Any]:
    """The one JSON document on standard output, of finite numbers."""
    content: dict[str, Any] = json.loads(result.stdout, parse_constant=pytest.fail)
    return content


def test_describe_gives_one_document(banked: tuple[Path, Result], tmp_path: Path) -> None:
    out, _ = banked
    said = document(framebank("describe", "--json", out))
    assert (said["videos"], said["rows"], said["rows_a_video"]) == (4, 22, [4, 5.5, 7])
    assert [(each["label"], each["videos"]) for each in said["classes"]] == [("class0", 2), ("class1", 2)]
    assert said["failures"] == document(framebank("describe", out, "--failures", "--json"))["failures"]
    assert said["failures"][0]["id"] == "class0/broken"
    one = document(framebank("describe", out, "class0/clip0", "--json"))
    assert (one["shape"], one["catalog"]["rows"], one["catalog"]["start"]) == ([4, 512], 4, None)
    stats = document(framebank("describe", out, "--stats", "--json"))
    assert (stats["features"], stats["values_each"], len(stats["each"]["mean"])) == (512, 22, 512)
    sound = framebank("describe", out, "--verify", "--json")
    assert document(sound) == {"bank": str(out), "videos": 4, "problems": []}
    assert sound.exit_code == 0
    assert framebank("describe", out, "--json", tmp_path / "d.json").stdout == ""
    assert json.loads((tmp_path / "d.json").read_text()) == said
    assert framebank("describe", out, "--json", "--csv").exit_code == 2


def test_a_damaged_bank_is_a_document_and_status_1(tmp_path: Path) -> None:
    fill(tmp_path / "bank.h5", {"a/x": 5})
    framebank("pack", tmp_path / "bank.h5")
    with h5py.File(tmp_path / "bank.h5", "a") as file:
        file["videos/a/x/features"][0] = float("inf")
    damaged = framebank("describe", tmp_path / "bank.h5", "--verify", "--json")
    assert damaged.exit_code == 1
    assert "not finite" in document(damaged)["problems"][0]["problem"]
    assert document(framebank("describe", tmp_path / "bank.h5", "--stats", "--json"))["greatest"] is None


def test_evaluate_and_compare_give_one_document_and_words_beside(trained: tuple[Path, Result], tmp_path: Path) -> None:
    run, _ = trained
    again = framebank("evaluate", run, "--json", "--device", "cpu")
    assert (again.exit_code, document(again)["changed_predictions"]) == (0, 0)
    assert "held-out videos" in again.stderr
    assert framebank("evaluate", run, "--json", "--device", "cpu", "--quiet").stderr == ""
    table = framebank("compare", run, "--json")
    assert document(table)["runs"][0]["run"] == str(run)
    assert "score" in table.stderr
    wrote = framebank("compare", run, "--json", tmp_path / "c.json")
    assert "score" in wrote.stdout
    assert json.loads((tmp_path / "c.json").read_text()) == document(table)


def test_a_video_after_json_is_not_written_over(trained: tuple[Path, Result], clips: Path) -> None:
    clip = clips / "class0" / "clip0.mp4"
    before = clip.read_bytes()
    result = framebank("predict", trained[0], "--json", clip)
    assert result.exit_code == 2, "that run's bank is of no network"
    assert result.stdout == ""
    assert clip.read_bytes() == before


def test_predictions_are_one_document_also_where_nothing_can_be_read(
    banked: tuple[Path, Result], clips: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("--epochs", 1, "--hidden", 4, "--device", "cpu", "--quiet", "--target", "label", "--test-share", 0.4)
    made = framebank("train-head", banked[0], "--out", run, *words)
    if made.exit_code:
        pytest.fail(made.output)
    files = [clips / "class0" / name for name in ("clip0.mp4", "broken.mp4")]
    some = framebank("predict", run, *files, "--json", "--device", "cpu", "--log-json")
    assert some.exit_code == 3
    said = document(some)
    assert [each["id"] for each in said["videos"]] == ["clip0"]
    assert [each["id"] for each in said["failed"]] == ["broken"]
    lines = told(some.stderr)
    assert ended(lines) == 3
    assert of(lines, "video_predicted")[0]["probability"] == said["videos"][0]["probability"]
    assert of(lines, "video_failed")[0]["id"] == "broken"
    none = framebank("predict", run, files[1], "--json", "--device", "cpu", "--quiet")
    assert (none.exit_code, document(none)["videos"]) == (3, [])
    listed = CliRunner().invoke(main, ["predict", str(run), "-", "--json", "--quiet"], input=f"{files[0]}\n")
    assert [each["path"] for each in document(listed)["videos"]] == [str(files[0])]


@pytest.mark.parametrize("command", ["describe {} --csv", "describe {}", "describe {} --json", "--help"])
def test_a_reader_that_leaves_is_no_error(command: str, banked: tuple[Path, Result]) -> None:
    line = f"{sys.executable} -m stages.cli {command.format(banked[0])} | true"
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.stderr == ""


def test_an_extraction_goes_on_when_nobody_reads_its_progress(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    reading, writing = os.pipe()
    os.close(reading)
    with suppress(BrokenPipeError), os.fdopen(writing, "w") as pipe, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", pipe)
        patched.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as done:
            main(["extract", str(clips), "--out", str(tmp_path / "bank.h5"), *SETTINGS])
        for stream in (sys.stdout, sys.stderr):
            assert stream.name == os.devnull
            stream.close()
    assert done.value.code == 3
    assert len(Bank(tmp_path / "bank.h5")) == 4


def watched(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What a terminal gets while something counted goes on."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    controller, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        with Display().steps("verifying", 3, "videos") as show:
            for done in range(3):
                show(done)
        with Display().busy("reading"):
            pass
        stream.flush()
        seen = b""
        while select.select([controller], [], [], 0.2)[0]:
            seen += os.read(controller, 65536)
    os.close(controller)
    return seen.decode()


def test_a_terminal_gets_a_bar_in_colour_unless_it_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    seen = watched(monkeypatch)
    assert "0/3" in seen
    assert "verifying" in seen
    assert colour.search(seen)
    plain = watched(monkeypatch, NO_COLOR="1")
    assert "0/3" in plain
    assert not colour.search(plain)
    assert colour.search(watched(monkeypatch, FORCE_COLOR="1", TERM="vt100"))
    wide = watched(monkeypatch, NO_COLOR="1", COLUMNS="200")
    assert "━" * 20 in wide
    assert "━" * 20 not in plain, "a bar leaves room for the words"


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, TERM="dumb")
    assert "1/3 videos · verifying" in seen
    assert "\x1b" not in seen


def test_what_takes_long_and_counts_nothing_is_heard_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_STILL_SECONDS", 0.1)
    with Display().busy("packing"):
        time.sleep(0.5)
    assert "packing, 0 s" in capsys.readouterr().err
    with Display(quiet=True).busy("packing"):
        time.sleep(0.3)
    with Display().steps("training", 4) as show, Display().steps("within", 1):
        show(1, "fold 0, epoch 1")
        time.sleep(0.5)
    said = capsys.readouterr().err.splitlines()
    assert "25% · fold 0, epoch 1" in said
    assert not any("within" in line or "packing" in line for line in said)


def test_progress_of_training_is_in_words_of_the_split() -> None:
    shown: list[str] = []
    watch = Watch(lambda _done, what="", **_fields: shown.append(what), 3, 2)
    for fold, seed in (("test", 0), ("2", 1), ("all", 0)):
        watch.begin(fold, seed)
    watch.epoch({"epoch": 2, "train_loss": 0.25})
    kept = "head that is kept, on all videos"
    assert shown == ["training", "fold 2, seed 1", kept, f"{kept}, epoch 2, loss 0.250"]


def test_named_weights_are_looked_for_where_torch_home_says(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = tmp_path / "torch" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    name = "squeezenet1_1-b8a52dc0.pth"
    (place / name).write_bytes(b"no weights")
    words = ("extract", clips, "-o", tmp_path / "b.h5", "--backbone", "squeezenet1_1", "--weights", "IMAGENET1K_V1")
    result = framebank(*words)
    assert result.exit_code == 2
    assert str(place / name) in result.stderr


def test_every_command_has_log_json_and_every_status_is_documented() -> None:
    for name in ("extract", "describe", "merge", "demo", "recipes"):
        assert "--log-json" in framebank(name, "--help").stdout
    assert "--log-json" in framebank("bench", "heads", "--help").stdout
    help_text = " ".join(framebank("--help").stdout.split())
    for status in (0, 1, 2, 3, 130):
        assert re.search(rf"^\| {status} \| ", DOCUMENTED, re.MULTILINE)
        assert re.search(rf"\b{status} [a-z]", help_text)
