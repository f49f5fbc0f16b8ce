"""Compiled networks: the same rows in every lane, near those of the network as it is, and only where that pays."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone import load_backbone
from pipeline.compiling import Compiling, Forward, compiled, pays
from pipeline.encoder import PRECISIONS, in_channels_last, placed
from pipeline.preprocessing import normalise
from pipeline.windows import Window
from tests.conftest import REPOSITORY

CPU = torch.device("cpu")
BATCH = 8
pytestmark = pytest.mark.usefixtures("one_torch_thread")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


def small(dtype: torch.dtype) -> Forward:
    """A network small enough to be compiled in a test, from (B, 3, 16, 16) uint8 to (B, 8) float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Hardswish(), nn.AdaptiveAvgPool2d(1))
    net = net.eval().to(dtype)

    def forward(rows: Tensor) -> Tensor:
        embeddings: Tensor = net(in_channels_last(rows.to(dtype).div_(255)))
        return embeddings.flatten(1).float()

    return forward


def some(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def in_lanes(forward: Forward, rows: Tensor) -> list[Tensor]:
    """What four threads side by side make of rows that lie elsewhere in each of their batches, put back in order."""
    found: list[Tensor] = []

    def lane(threads: int) -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            for turn in range(len(rows)):
                found.append(forward(rows.roll(turn, 0)).roll(-turn, 0))

    lanes = [threading.Thread(target=lane, args=(1 + number % 2,)) for number in range(4)]
    for each in lanes:
        each.start()
    for each in lanes:
        each.join()
    return found


def assert_same_rows_everywhere(forward: Forward, rows: Tensor) -> Tensor:
    with torch.inference_mode():
        alone = forward(rows)
        company = forward(torch.cat([rows[:1], rows[1:].flip(0)]))
    found = in_lanes(forward, rows)
    assert len(found) == 4 * len(rows)
    assert all(torch.equal(each, alone) for each in found)
    assert torch.equal(company[0], alone[0])
    return alone


@needs_compiler
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-5), pytest.param("bf16", 1e-2, marks=pytest.mark.slow)]
)
def test_a_bank_begun_compiled_is_gone_on_with_compiled(precision: str, tolerance: float) -> None:
    forward, notes = small(PRECISIONS[precision]), []
    rows = some(BATCH, 3, 16, 16)
    compiling = Compiling(rows=1, lanes=1, banked=True, on_note=notes.append)
    faster = compiling(forward, forward, tuple(rows.shape), CPU, PRECISIONS[precision])
    assert compiling.done, notes
    assert faster is not forward
    assert not notes
    found = assert_same_rows_everywhere(faster, rows)
    with torch.inference_mode():
        expected = forward(rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [("resnet18", "bf16", 1e-2), ("squeezenet1_1", "fp32", 1e-5), ("r2plus1d_18", "fp32", 1e-5)],
)
def test_real_networks_compiled(name: str, precision: str, tolerance: float) -> None:
    window = Window("clip", 4, 2) if name == "r2plus1d_18" else None
    backbone = load_backbone(name, weights="random", image_size=64, window=window)
    dtype = PRECISIONS[precision]
    module = placed(backbone.module, CPU, dtype)

    def forward(rows: Tensor) -> Tensor:
        batch = normalise(backbone.preprocessing, rows, backbone.window)
        embeddings: Tensor = module(in_channels_last(batch.to(dtype))).float()
        return embeddings

    rows = some(4, *backbone.input_shape)
    found = assert_same_rows_everywhere(compiled(forward, rows), rows)
    with torch.inference_mode():
        expected = forward(rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_it_pays_from_so_many_rows_on() -> None:
    """Of 40 s spent at once, an eleventh of 10 ms a row and two lanes: 88,000 rows."""
    assert not pays(87_000, 0.01, 2)
    assert pays(89_000, 0.01, 2)
    assert pays(45_000, 0.01, 1)


@pytest.mark.parametrize(("rows", "banked"), [(0, None), (10, None), (2000, None), (10**9, False)])
def test_what_does_not_pay_or_was_begun_otherwise_is_not_compiled(rows: int, banked: bool | None) -> None:
    forward, notes = small(torch.float32), []
    compiling = Compiling(rows, 1, banked, notes.append)
    assert compiling(forward, forward, (BATCH, 3, 16, 16), CPU, torch.float32) is forward
    assert not compiling.done
    assert not notes


def test_what_torch_cannot_compile_runs_as_it_is_and_says_so() -> None:
    def forward(rows: Tensor) -> Tensor:
        return rows.float() if rows.sum() > 0 else rows.float() + 1

    notes: list[str] = []
    compiling = Compiling(1, 1, True, notes.append)
    assert compiling(forward, forward, (2, 3), CPU, torch.float32) is forward
    assert not compiling.done
    (note,) = notes
    assert note.startswith("The network runs uncompiled (torch cannot compile it here: ")
    assert note.endswith("differ by rounding.")
    assert "\n" not in note


WITHOUT_COMPILER = """
import torch
from pipeline.compiling import Compiling
net = torch.nn.Conv2d(3, 8, 3).eval()
forward = lambda rows: net(rows.float()).relu()
same = Compiling(1, 1, True, print)(forward, forward, (2, 3, 8, 8), torch.device("cpu"), torch.float32) is forward
print(same)
"""


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    note, same = done.stdout.splitlines()
    assert "there is no C++ compiler here; install g++" in note
    assert same == "True"
    assert not done.stderr


@pytest.mark.slow
@needs_compiler
def test_embeddings_that_differ_are_not_taken() -> None:
    """A network whose numbers come out otherwise once compiled: torch's compiler draws its random ones differently."""
    notes: list[str] = []
    compiling = Compiling(1, 1, True, notes.append)

    def forward(rows: Tensor) -> Tensor:
        return rows.float() * torch.rand(rows.shape)

    assert compiling(forward, forward, (2, 3), CPU, torch.float32) is forward
    assert not compiling.done
    assert "compiled, its embeddings differ by" in notes[0]
