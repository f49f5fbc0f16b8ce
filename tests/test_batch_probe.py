"""The probe for a batch size: on a real network, and on encoders whose rates are known."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.backbone import FeatureExtractor, load_backbone
from pipeline.batch_probe import SIZES, probed_batch_size, rate_of, sizes_for, smallest_as_fast
from pipeline.errors import UserError
from pipeline.windows import FRAME, Window

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_the_smallest_of_those_that_are_as_fast_is_taken() -> None:
    assert smallest_as_fast({32: 500, 64: 900, 128: 975, 256: 1000, 512: 999}) == 128
    assert smallest_as_fast({32: 970, 64: 980, 128: 1000}) == 32
    assert smallest_as_fast({32: 969, 64: 960, 128: 1000}) == 128
    assert smallest_as_fast({32: 500}) == 32


def test_rates_are_of_rows_and_every_batch_is_waited_for() -> None:
    started, waited = [], []

    def encode(rows: torch.Tensor) -> Callable[[], np.ndarray]:
        started.append(len(rows))

        def wait() -> np.ndarray:
            waited.append(len(rows))
            time.sleep(0.02)
            return np.zeros((len(rows), 2), np.float32)

        return wait

    begun = time.perf_counter()
    rate = rate_of(encode, torch.zeros(6, 1, dtype=torch.uint8))
    seconds = time.perf_counter() - begun
    assert started == waited
    assert len(started) > 3
    assert 6 * (len(started) - 1) / seconds <= rate <= 6 / 0.02


class Crowded(FeatureExtractor):
    """A network on what stands for a GPU with room for few frames."""

    room = 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError
        return super().forward(images)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where networks stay as they are: here they would be prepacked for a CPU."""
    monkeypatch.setattr("pipeline.encoder.can_prepack", lambda _: False)


def crowded(backbone: Any, room: int) -> Any:
    module = backbone.module
    squeezed = Crowded(module.net, layout=module.layout, average=module.average)
    squeezed.room = room
    return replace(backbone, module=squeezed)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_real_network_is_probed_halved_and_refused() -> None:
    small = load_backbone("squeezenet1_1", weights="random", image_size=32)
    assert probed_batch_size(small, CPU, "fp32", [1, 2]) in (1, 2)
    assert probed_batch_size(crowded(small, 2), CPU, "fp32", [8, 16]) == 2
    assert probed_batch_size(crowded(small, 3), CPU, "fp32", [2, 4, 8]) == 2
    with pytest.raises(UserError, match="no room for one frame"):
        probed_batch_size(crowded(small, 0), CPU, "fp32", [2, 4])


class Filling(FeatureExtractor):
    """A network on what stands for a GPU that has room for the first batch, and none for another one beside it."""

    calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > 1:
            raise torch.OutOfMemoryError
        return super().forward(images)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_device_with_room_for_a_single_batch_gets_half_of_it() -> None:
    small = load_backbone("squeezenet1_1", weights="random", image_size=32)
    module = Filling(small.module.net, layout=small.module.layout, average=small.module.average)
    assert probed_batch_size(replace(small, module=module), CPU, "fp32", [8, 16]) == 4


def test_sizes_are_of_frames_and_of_as_many_in_clips() -> None:
    assert sizes_for(FRAME) == list(SIZES)
    assert sizes_for(Window("stack", 5)) == list(SIZES)
    assert sizes_for(Window("clip", 16)) == [2, 4, 8, 16, 32]
    assert sizes_for(Window("clip", 128)) == [1, 2, 4]
