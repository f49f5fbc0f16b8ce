"""`framebank bench finetune`: both ways train alike, figures follow from what was measured, and what cannot be measured
is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from pipeline.backbone import Backbone, load_backbone
from pipeline.bank import Bank
from pipeline.halves import split
from stages import bench_finetune
from tests.commands import framebank, said
from tests.finetuning import Start, finetuned, make_clips, start_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")
WAYS = ["1  from videos", "2  from the prefix bank"]
HEAD = "3  the head alone, on its bank"
DECODING, FROZEN, FORWARD = "decoding, preprocessing", "frozen part, forward", "trained part, forward"
TRAINED, READING = "trained part, both passes", "reading the prefix bank"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    folder = tmp_path_factory.mktemp("bench")
    return start_of(folder, make_clips(folder / "data", 8))


def bench(start: Start, *arguments: object) -> Result:
    tiny = ("--videos", 4, "--epochs", 2, "--threads", 1, "--device", "cpu")
    return framebank("bench", "finetune", start.data, "--head", start.run, *tiny, *arguments)


def figures(start: Start, out: Path, *arguments: object) -> tuple[dict[str, Any], Result]:
    """What a bench that must succeed has written, and what it printed."""
    done = bench(start, *arguments, "--json", out)
    assert done.exit_code == 0, done.output
    return json.loads(out.read_text()), done


def test_both_ways_and_their_parts_are_measured(start: Start, tmp_path: Path) -> None:
    found, done = figures(start, tmp_path / "b.json")
    assert list(found["median"]) == list(found["least"]) == [*WAYS, HEAD, DECODING, FROZEN, FORWARD, TRAINED, READING]
    assert all(0 < found["least"][name] <= seconds for name, seconds in found["median"].items())
    with Bank(start.bank) as bank:
        assert found["rows"] == bank.catalog["rows"][::2].sum()  # every second of eight videos, all their frames
    assert found["videos"] == 4
    ours, banked = (np.array(found["losses"][way]) for way in WAYS)
    assert len(ours) == len(banked) == 3  # with the one that warms up
    assert len(set(ours)) == 3, "nothing has been learnt"
    assert found["loss_difference"] == np.abs(ours - banked).max() <= found["loss_tolerance"] == 1e-3
    assert done.stdout.count(f"{WAYS[0]} ") == 1
    assert "features.11, features.12; frozen up to features.10" in said(done, "Trained")


@pytest.mark.parametrize("recompute", [False, True])
def test_bounds_are_those_of_what_was_measured(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    monkeypatch.setattr(bench_finetune, "needs_recomputing", lambda *_: (recompute, 0.0))
    found, done = figures(start, tmp_path / "b.json")
    seconds = found["median"]
    backbone = load_backbone("squeezenet1_1", weights="random", image_size=48)
    q = split(backbone, ["features.11", "features.12"]).share
    d = seconds[DECODING] / (seconds[FROZEN] + seconds[FORWARD])
    bound = (1 + 3 * q + d) / (4 * q) if recompute else (1 + 2 * q + d) / (3 * q)
    assert found["q"] == q
    assert found["bound_by_operations"] == pytest.approx(bound)
    both = seconds[TRAINED] + seconds[HEAD]
    slow, fast = seconds[DECODING] + seconds[FROZEN] + both, seconds[READING] + both
    assert found["bound_by_parts"] == pytest.approx(slow / fast)
    assert found["speedup"] == pytest.approx(seconds[WAYS[0]] / seconds[WAYS[1]])
    said_of_it = [line.split() for line in done.stdout.splitlines() if line.startswith("Bound")]
    printed = [(float(words[1]), float(words[-4].strip("%;"))) for words in said_of_it]
    for (times, reached), name in zip(printed, ("bound_by_operations", "bound_by_parts"), strict=True):
        assert times == pytest.approx(found[name], abs=0.006)
        assert reached == pytest.approx(100 * found["speedup"] / found[name], abs=0.6)
    assert ("computed again" in said(done, "Trained")) == recompute


def test_a_bank_that_fine_tuning_would_stream_is_streamed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _ = figures(start, tmp_path / "held.json")
    monkeypatch.setattr(bench_finetune, "available_bytes", lambda: 1000)
    streamed, done = figures(start, tmp_path / "streamed.json")
    assert (held["prefix_bank"], streamed["prefix_bank"]) == ("in memory", "streamed")
    assert "reading the prefix bank (streamed)" in done.stdout
    assert streamed["losses"] == held["losses"]


def test_other_activations_give_other_losses_and_are_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., bool] = bench_finetune.bank_boundary

    def wrong(out: Path, prefix: Backbone, *arguments: Any, **named: Any) -> bool:
        other = load_backbone("squeezenet1_1", weights="random", seed=1, image_size=48)
        halves = split(other, ["features.11", "features.12"])
        assert halves.prefix is not None
        assert not torch.equal(*(next(each.module.parameters()) for each in (prefix, halves.prefix)))
        return right(out, replace(prefix, module=halves.prefix.module), *arguments, **named)

    monkeypatch.setattr(bench_finetune, "bank_boundary", wrong)
    done = bench(start)
    assert done.exit_code == 1
    assert "do not give the same losses" in done.stdout


def test_both_ways_give_the_same_losses(start: Start, tmp_path: Path) -> None:
    measured, _ = figures(start, tmp_path / "figures.json")
    assert measured["loss_difference"] < 1e-5  # float32: the prefix ran in batches of another size


def test_what_cannot_be_measured_is_refused(start: Start, tmp_path: Path) -> None:
    before = start.bank.read_bytes()
    done = bench(start, "--unfreeze", "all")
    assert done.exit_code == 2
    assert "nothing to bank" in done.stderr
    done = bench(start, f"--json={start.bank}")
    assert done.exit_code == 2
    assert start.bank.read_bytes() == before
    out = finetuned(start, tmp_path / "tuned", "--epochs", 1)
    done = framebank("bench", "finetune", start.data, "--head", out)
    assert done.exit_code == 2
    assert "fine-tuned already" in done.stderr
    (tmp_path / "empty").mkdir()
    done = framebank("bench", "finetune", tmp_path / "empty", "--head", start.run)
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1
