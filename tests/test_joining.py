"""The joined model beside the head on its bank: what is rounding, and what is a mistake that would train nonsense."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import joining
from pipeline.backbone import Backbone, load_backbone
from pipeline.errors import UserError
from pipeline.halves import split
from pipeline.heads import Head, HeadConfig
from pipeline.joining import check_joined
from pipeline.objectives import Objective
from pipeline.preprocessing import normalise
from pipeline.selection import Selection
from pipeline.sequences import Sequences
from pipeline.unfreezing import Unfreezing
from pipeline.video_model import VideoModel, front_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LENGTHS = [4, 1, 9, 6, 2, 7, 5]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("squeezenet1_1", weights="random", image_size=40)


def sequences_of(rows: torch.Tensor, lengths: list[int] = LENGTHS) -> Sequences:
    return Sequences([f"v{n}" for n in range(len(lengths))], [np.arange(n) / 10 for n in lengths], rows)


def frames() -> torch.Tensor:
    return torch.randint(256, (sum(LENGTHS), 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def checked(
    backbone: Backbone,
    *,
    seen: torch.Tensor | None = None,
    lengths: list[int] = LENGTHS,
    spoil: Callable[[VideoModel], object] | None = None,
    other_head: bool = False,
) -> joining.Joined:
    with torch.no_grad():
        banked = backbone.module(normalise(backbone.preprocessing, frames())).half()
    torch.manual_seed(0)
    head = Head(HeadConfig(hidden=5, pool="mean"), backbone.feature_shape, 3).eval()
    halves = split(backbone, ("features.12",))
    model = VideoModel(
        copy.deepcopy(halves.suffix),
        Head(head.config, head.feature_shape, 3) if other_head else copy.deepcopy(head),
        front=front_of(backbone, copy.deepcopy(halves.prefix), "fp32", CPU),
        feature_shape=(3, 40, 40),
        unfreezing=Unfreezing(((0, ("features.12",)),)),
    )
    if spoil is not None:
        spoil(model)
    return check_joined(
        model,
        sequences_of(frames() if seen is None else seen, lengths),
        head,
        sequences_of(banked),
        Objective("class", False),
        Selection(),
        exact=True,
        device=CPU,
    )


def test_rounding_is_no_difference(backbone: Backbone) -> None:
    found = checked(backbone)
    assert found.videos == joining.VIDEOS
    assert 0 < found.embeddings < 1e-3  # float16 in the bank
    assert found.scores < 1e-3


@pytest.mark.parametrize("mistake", ["channels", "order", "weights"])
def test_mistakes_in_what_the_backbone_sees_or_is_stop_it(backbone: Backbone, mistake: str) -> None:
    seen, spoil = frames(), None
    if mistake == "channels":
        seen = seen.flip(1)
    elif mistake == "order":
        seen = seen.flip(0)
    else:

        def spoil(model: VideoModel) -> object:
            return torch.nn.init.normal_(model.suffix.net.get_parameter("features.12.squeeze.weight"))

    with pytest.raises(UserError, match=r"embeddings are .* of their norm apart.*extract the bank again"):
        checked(backbone, seen=seen, spoil=spoil)


def test_a_head_that_is_not_the_banks_stops_it(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"scores .* the head is not the one that was trained on it"):
        checked(backbone, other_head=True)


def test_the_model_is_left_in_the_mode_that_it_was_in(backbone: Backbone, tmp_path: Path) -> None:
    modes = []

    def keep(model: VideoModel) -> None:
        model.train()
        modes.append(model)

    checked(backbone, spoil=keep)
    assert modes[0].training
    assert modes[0].suffix.net.get_submodule("features.12.squeeze").training
