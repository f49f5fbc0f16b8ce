"""`framebank bench extract`: every part is measured, figures follow from what was measured, wrong embeddings are found,
and what cannot be measured is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from pipeline import compiling, rows
from pipeline.backbone import load_backbone
from pipeline.bank import Bank
from pipeline.encoder import make_encoder
from pipeline.errors import VideoError
from pipeline.extraction import Encoding, make_encoding
from pipeline.features import records
from pipeline.flow import Flow, measuring
from pipeline.rows import ReadOptions
from pipeline.sampling import Sampling
from pipeline.videos import find_videos
from pipeline.windows import Window
from stages import bench_extract, bench_parts
from stages.bench_extract import BenchExtractConfig, _arguments, _bound, _medians
from stages.bench_processes import Fresh, _watched
from stages.machine import clock_mhz, machine, versions
from tests.banks import bank_of, config, embeddings
from tests.clips import make_clip
from tests.commands import SETTINGS, framebank, said

pytestmark = pytest.mark.usefixtures("one_torch_thread")
ROOT = Path(__file__).resolve().parent.parent
PARTS = ["decoding", "preparing", "forward", "writing"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of several sizes, one of which is turned, and a file that is no video."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(8):
        size = [(64, 48), (96, 64), (48, 80)][number % 3]
        make_clip(folder / f"clip{number}.mp4", frames=5 + 3 * number, size=size, rotation=90 * (number == 3))
    (folder / "broken.mp4").write_bytes(b"not a film")
    return folder


def bench(data: Path, *arguments: object) -> Result:
    return framebank("bench", "extract", data, *SETTINGS, "--device", "cpu", *arguments)


@pytest.fixture(scope="module")
def measured(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Result]:
    """What a bench with everything in it has written, and what it printed."""
    out = tmp_path_factory.mktemp("out") / "b.json"
    done = bench(clips, "--rounds", 1, "--naive", 30, "--json", out)
    assert done.exit_code == 0, done.output
    return json.loads(out.read_text()), done


def test_every_part_is_measured(measured: tuple[dict[str, Any], Result]) -> None:
    found, done = measured
    rates = found["median"]["rates"]
    assert list(rates) == [*PARTS, "the whole"]
    assert all(rate > 0 for rate in rates.values())
    assert (found["videos"], found["videos_measured"], found["rows"]) == (9, 8, sum(5 + 3 * n for n in range(8)))
    assert found["median"]["bound"] == pytest.approx(1 / sum(1 / rates[name] for name in PARTS))
    assert found["median"]["reached"] == pytest.approx(rates["the whole"] / found["median"]["bound"])
    assert found["median"]["limit"] == min(PARTS, key=rates.__getitem__)
    for name, rate in rates.items():
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{name} "))
        assert float(line.split()[-1].replace(",", "")) == pytest.approx(rate, abs=0.051)
    assert said(done, "Agreement").startswith("bit for bit")


def test_the_command_and_the_naive_loop_are_timed_from_their_start(measured: tuple[dict[str, Any], Result]) -> None:
    found, _ = measured
    command, naive = found["median"]["command"], found["median"]["naive"]
    assert 0 < command["first_seconds"] < command["seconds"]
    assert list(naive) == ["1", "32"]
    for each in naive.values():
        assert 0 < each["first_seconds"] < each["seconds"]
        assert each["frames"] == 30
        assert 0.999 <= each["cosine"] <= 1
        assert each["times_as_fast"] == pytest.approx(found["median"]["rates"]["the whole"] / each["rate"])
        seconds = each["seconds"] + (found["rows"] - 30) / each["rate"]
        assert each["times_as_fast_with_start"] == pytest.approx(seconds / command["seconds"])
    if Path("/proc/self/smaps_rollup").exists():
        assert all(100e6 < each["peak_bytes"] < 4e9 for each in (command, *naive.values()))


def test_machine_and_versions_are_recorded(measured: tuple[dict[str, Any], Result]) -> None:
    found, _ = measured
    assert found["machine"] == machine()
    assert found["versions"] == versions()
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["machine"]["memory_bytes"] > 1 << 28
    assert len(found["rounds"]) == 1
    clock = clock_mhz()
    assert (found["rounds"][0]["clock_mhz"] is None) == (clock is None)


def test_embeddings_that_change_with_the_batch_are_found(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = make_encoding

    def wrong(*arguments: Any) -> Encoding:
        made, turns = right(*arguments), count()

        def encode(rows: torch.Tensor) -> Any:
            found = made.encode(rows)() + next(turns)
            return lambda: found

        return replace(made, encode=encode)

    monkeypatch.setattr(bench_extract, "make_encoding", wrong)
    monkeypatch.setattr(bench_extract, "_command", lambda *_: Fresh(1.0, 2.0, None))
    done = bench(clips, "--rounds", 1, "--json", tmp_path / "b.json")
    assert done.exit_code == 1
    assert "In another order" in done.stdout
    assert "The forward by itself" in done.stdout
    assert "Agreement" not in done.stdout
    assert len(json.loads((tmp_path / "b.json").read_text())["wrong"]) == 2
    assert "memory: not measured" in said(done, "Command")


def test_a_bank_that_differs_in_one_bit_or_one_video_is_found(tmp_path: Path) -> None:
    videos = {name: embeddings(name, 4) for name in "abc"}
    changed = {name: rows.copy() for name, rows in videos.items()}
    changed["b"][2, 3] = np.nextafter(np.float16(changed["b"][2, 3]), np.float16(9), dtype=np.float16)
    del changed["c"]
    with Bank(bank_of(tmp_path / "a.h5", videos)) as one, Bank(bank_of(tmp_path / "b.h5", changed)) as other:
        assert bench_parts.differing(one, one) == []
        assert bench_parts.differing(one, other) == ["c", "b"]


def test_cosines() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    assert bench_parts.cosines(rows, 2 * rows) == pytest.approx(1)
    assert bench_parts.cosines(rows, -rows) == pytest.approx(-1)
    assert bench_parts.cosines(np.array([[1.0, 0]]), np.array([[1.0, 1]])) == pytest.approx(0.5**0.5)
    assert bench_parts.cosines(np.zeros((1, 2)), np.zeros((1, 2))).tolist() == [1]
    assert bench_parts.cosines(np.zeros((1, 2)), np.ones((1, 2))).tolist() == [0]


def test_as_many_videos_are_drawn_as_hold_the_frames(clips: Path) -> None:
    table = find_videos(clips).table
    frames = {f"clip{number}": 5 + 3 * number for number in range(8)} | {"broken": 0}
    some = bench_parts.chosen(table, 40)
    assert some["id"].tolist() == bench_parts.chosen(table, 40)["id"].tolist()
    whole = [frames[video] for video in some["id"] if frames[video]]
    assert whole == sorted(whole, reverse=True)  # the longest first, as an extraction takes them
    assert 40 <= sum(frames[video] for video in some["id"]) + 16 < 40 + 3 * 26
    assert len(some) < len(table) == len(bench_parts.chosen(table, 10_000))


def test_parts_are_measured_on_a_device_as_well(clips: Path, tmp_path: Path) -> None:
    """The path of a GPU, which sends planes and prepares several frames together, here on the CPU."""
    backbone = load_backbone("squeezenet1_1", weights="random", image_size=48)
    cpu = torch.device("cpu")
    encode, size = make_encoder(backbone, cpu, "fp32", 8)
    options = ReadOptions(Sampling(), backbone.preprocessing, device=cpu)
    made = config(store="float32", feature_shape=list(backbone.feature_shape))
    encoding = Encoding(encode, size, options, made, cpu)
    table = bench_parts.chosen(find_videos(clips).table, 10_000)
    progress, seconds, stopped = bench_parts.whole(tmp_path / "bank.h5", table, encoding)
    assert (progress.videos_sealed, stopped) == (8, False)
    assert seconds > 0
    with Bank(tmp_path / "bank.h5") as bank:
        sample = bench_parts.sample_of(bank, table, encoding, 2, 1)
        assert bench_parts.preparing(sample) > 0
        for turn in range(3):
            _, found = bench_parts.forward(sample, turn)
            assert bench_parts.against_bank(sample, found, bank) == (True, 1.0)
        same, cosine = bench_parts.against_bank(sample, found + np.float32(1e-3), bank)
        assert not same
        assert cosine < 1


def test_a_lane_s_error_is_raised_and_ends_the_others(clips: Path) -> None:
    preprocessing = load_backbone("squeezenet1_1", weights="random", image_size=48).preprocessing
    options = ReadOptions(Sampling(), preprocessing)
    encoding = Encoding(lambda _: lambda: np.zeros(1), 8, options, config(), torch.device("cpu"))
    rows = [row for row in records(bench_parts.chosen(find_videos(clips).table, 10_000)) if row["id"] == "broken"]
    sample = bench_parts.Sample(rows, {"broken": 1}, {"broken": 1}, encoding, 2, 1, torch.zeros(1), {"broken": 1})
    with pytest.raises(VideoError):
        bench_parts.decoding(sample)


def sample_of_one(video: Any, encoding: Encoding, times: int) -> bench_parts.Sample:
    """One video so many times."""
    key = video["id"]
    return bench_parts.Sample([video] * times, {key: 40}, {key: 40}, encoding, 2, 1, torch.zeros(1), {key: 1})


def test_lanes_have_ended_when_an_interruption_goes_on(tmp_path: Path) -> None:
    make_clip(tmp_path / "long.mp4", frames=1500, size=(160, 120))
    preprocessing = load_backbone("squeezenet1_1", weights="random", image_size=48).preprocessing
    encoding = Encoding(
        lambda _: lambda: np.zeros(1), 8, ReadOptions(Sampling(), preprocessing), config(), torch.device("cpu")
    )
    (video,) = records(bench_parts.chosen(find_videos(tmp_path).table, 1))
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            bench_parts.decoding(sample_of_one(video, encoding, 50))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_motion_is_measured_as_often_as_in_a_video(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = count(1)

    def counting(flow: Flow) -> Any:
        measure = measuring(flow)
        return lambda first, second: next(measured) and measure(first, second)

    monkeypatch.setattr(rows, "measuring", counting)
    preprocessing = load_backbone("squeezenet1_1", weights="random", image_size=48).preprocessing
    options = ReadOptions(Sampling(), preprocessing, Window("flow", 3), flow=Flow())
    encoding = Encoding(lambda _: lambda: np.zeros(1), 8, options, config(), torch.device("cpu"))
    video = records(find_videos(clips).table)[-1]
    bench_parts.preparing(sample_of_one(video, encoding, 1))
    assert next(measured) - 1 == 39  # pairs of 40 frames


def test_what_limits_follows_from_the_medians_that_are_shown(clips: Path) -> None:
    """Not from one of the rounds."""
    rates = [(9.0, 8.0), (1.0, 8.0), (9.0, 8.0)]
    rounds = [
        {"rates": dict(zip(PARTS, (decoding, 7.0, forward, 6.0), strict=True)), "limit": "decoding"}
        for decoding, forward in rates
    ]
    preprocessing = load_backbone("squeezenet1_1", weights="random", image_size=48).preprocessing
    options = ReadOptions(Sampling(), preprocessing)
    encoding = Encoding(lambda _: lambda: np.zeros(1), 8, options, {}, torch.device("cpu"))
    assert bench_extract._summed_up(rounds, encoding)["limit"] == "writing"


def test_the_naive_loop_needs_more_than_its_first_batch(clips: Path, tmp_path: Path) -> None:
    for data, frames in ((clips, 5), (clips / "clip0.mp4", 100)):
        done = bench(data, "--rounds", 1, "--naive", frames)
        assert done.exit_code == 2
        assert "its first batch, which holds all of its 5 frames" in done.stderr


def test_a_command_that_still_talks_when_it_is_ended_does_not_wait_for_a_reader() -> None:
    """More than a terminal holds; after Ctrl-C nobody looks at it any more."""
    talk = "import signal, sys; signal.signal(15, lambda *_: sys.exit(print('x' * 200_000))); print(1, flush=True)"
    command = [sys.executable, "-c", f"{talk}; signal.pause()"]

    def read(text: str, seconds: float) -> None:
        raise KeyboardInterrupt

    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        late = threading.Timer(20, process.kill)
        late.start()
        with pytest.raises(KeyboardInterrupt):
            _watched(process, process.stdout.fileno(), read)
        late.cancel()
        assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_where_compiling_pays_the_command_computes_compiled_as_well(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own process would decide for itself, and give other embeddings."""
    for name in ("COMPILE_SECONDS", "_FORWARDS", "KEPT_GAIN"):
        monkeypatch.setattr(compiling, name, 0)
    done = bench(clips, "--rounds", 1, "--precision", "bf16")
    assert done.exit_code == 0, done.output
    assert said(done, "Computing").startswith("bf16 on cpu, compiled, batches")


def test_bounds_of_a_gpu_are_those_of_its_slowest_stage() -> None:
    rates = {"decoding": 100.0, "preparing": 300.0, "forward": 90.0, "writing": 1000.0}
    preprocessing = load_backbone("squeezenet1_1", weights="random", image_size=48).preprocessing

    def bound(device: str, prepares: str | None) -> tuple[float, str]:
        options = ReadOptions(Sampling(), preprocessing, device=torch.device(prepares) if prepares else None)
        return _bound(rates, Encoding(lambda _: lambda: np.zeros(1), 8, options, {}, torch.device(device)))

    found = [bound("cpu", None), bound("cuda", None), bound("cuda", "cuda")]
    expected = [1 / (1 / 100 + 1 / 300 + 1 / 90 + 1 / 1000), 75, 1 / (1 / 90 + 1 / 300)]
    assert [rate for rate, _ in found] == pytest.approx(expected)
    assert [name for _, name in found] == ["forward", "decoding and preparing", "forward and preparing"]


def test_medians() -> None:
    rounds = [{"a": {"b": value}, "c": None, "d": "x"} for value in (3, 1, 2)]
    assert _medians(rounds) == {"a": {"b": 2.0}, "c": None, "d": "x"}


def test_the_command_is_asked_for_the_same() -> None:
    made = {"recipe": {"precision": "fp32"}}
    preprocessing = load_backbone("squeezenet1_1", weights="random", image_size=48).preprocessing
    encoding = Encoding(
        lambda _: lambda: np.zeros(1), 4, ReadOptions(Sampling(), preprocessing), made, torch.device("cpu")
    )
    asked = BenchExtractConfig(Path("x"), backbone="r3d_18", weights="random", window=Window("clip", 8, 4), seed=3)
    words = "--backbone r3d_18 --weights random --seed 3 --device auto --precision fp32 --batch-size 4"
    assert _arguments(asked, encoding) == [*words.split(), "--clip-length", "8", "--clip-stride", "4"]
    stack = BenchExtractConfig(Path("x"), window=Window("stack", 3, grey=True), crop="1,2,3,4")
    assert {"--grey", "--stack", "3", "--crop", "1,2,3,4"} <= set(_arguments(stack, encoding))


def test_what_cannot_be_measured_is_refused(clips: Path, tmp_path: Path) -> None:
    refusals = {
        "leave --naive": ["--naive", 5, "--fit", "pad"],
        "single frames": ["--naive", 5, "--stack", 2],
        "its folder is not a folder": ["--json", tmp_path / "none" / "b.json"],
    }
    for words, arguments in refusals.items():
        done = bench(clips, *arguments)
        assert (done.exit_code, words in done.stderr) == (2, True), done.output
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").touch()
    done = bench(clips, "--weights", tmp_path / "run")
    assert done.exit_code == 2
    assert "is a run" in done.stderr
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.mp4").write_bytes(b"not a film")
    done = bench(tmp_path / "none")
    assert done.exit_code == 2
    assert "None of 1 video could be read, e.g. a:" in done.stderr


def test_make_bench_measures_the_data(tmp_path: Path) -> None:
    command = [
        "make",
        "-n",
        "--no-print-directory",
        "-o",
        ".venv/.installed",
        "bench",
        "DATA=my videos",
        "ARGS=--naive 9",
    ]
    apart = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # from a make around us
    done = subprocess.run(command, cwd=ROOT, env=apart, capture_output=True, text=True, check=True)
    words = ".venv/bin/framebank bench extract 'my videos' --backbone 'resnet50' --weights 'DEFAULT' --naive 9"
    assert " ".join(done.stdout.replace("\\\n", "").split()) == words
