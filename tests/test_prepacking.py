"""Prepacked convolutions: the same function, what can be fused is fused, and nothing else is touched."""

import pytest
import torch
from torch import Tensor, fx, nn

from pipeline.backbone import load_backbone
from pipeline.encoder import PRECISIONS, in_channels_last, placed
from pipeline.prepacking import can_prepack, prepacked
from pipeline.windows import Window
from tests.test_folding import random_statistics

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.skipif(not can_prepack(torch.float32), reason="torch is without oneDNN here"),
]
needs_bf16 = pytest.mark.skipif(not can_prepack(torch.bfloat16), reason="this CPU lacks bfloat16")
LARGEST = {"fp32": 1e-5, "bf16": 2e-2}  # difference, of the largest value


def some(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return in_channels_last(torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype))


def modules_called(net: fx.GraphModule) -> list[nn.Module]:
    return [net.get_submodule(str(node.target)) for node in net.graph.nodes if node.op == "call_module"]


def sums(net: fx.GraphModule) -> int:
    return sum(node.op == "call_function" and "add" in str(node.target) for node in net.graph.nodes)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize(
    ("name", "activations", "left"),
    [
        ("resnet18", nn.ReLU, 0),
        ("squeezenet1_1", nn.ReLU, 0),
        ("mobilenet_v2", nn.ReLU6, 0),
        ("mobilenet_v3_small", nn.Hardswish, 1),  # after a Linear
        ("efficientnet_b0", nn.SiLU, 0),  # with squeeze-and-excitation, which tracing takes as one
        pytest.param("densenet121", nn.ReLU, 62, marks=pytest.mark.slow),  # before the convolution
        ("r2plus1d_18", nn.ReLU, 0),
        ("timm/resnet18", nn.ReLU, 0),
        pytest.param("timm/efficientnet_b0", nn.SiLU, 0, marks=pytest.mark.slow),
        pytest.param("vit_b_16", nn.ReLU, 0, marks=pytest.mark.slow),
    ],
)
def test_a_prepacked_network_is_the_same_function(
    name: str, activations: type[nn.Module], left: int, precision: str
) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    window = Window("clip", 4, 2) if name == "r2plus1d_18" else None
    size = None if name == "vit_b_16" else 64
    backbone = load_backbone(name, weights="random", image_size=size, window=window)
    random_statistics(backbone.module.net)
    dtype = PRECISIONS[precision]
    net = placed(backbone.module, CPU, dtype).net
    images = some(8 if size else 2, *backbone.input_shape, dtype=dtype)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.inference_mode():
        expected = net(images)["features"]
        whole = prepacked(net, torch.zeros_like(images))
        found = whole(images)["features"]
        assert torch.equal(net(images)["features"], expected)
        assert torch.equal(whole(images.flip(0))["features"].flip(0), found)  # wherever an image lies in its batch
        few = whole(images[:1])["features"]  # what is laid out for other batches serves for these
    assert found.dtype == dtype
    largest = LARGEST[precision] * float(expected.float().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=largest)
    torch.testing.assert_close(few, expected[:1], rtol=0, atol=largest)
    if precision == "bf16" and name in ("squeezenet1_1", "densenet121"):  # ReLUs alone
        assert torch.equal(found, expected)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    parts = modules_called(whole)
    assert not any(isinstance(part, nn.Conv2d | nn.Conv3d) for part in parts)
    assert sum(type(part) is activations for module in parts for part in module.modules()) <= left


@pytest.mark.parametrize(("name", "shortcuts"), [("resnet18", 8), ("efficientnet_b0", 9)])
def test_shortcuts_are_added_within_the_convolution(name: str, shortcuts: int) -> None:
    backbone = load_backbone(name, weights="random", image_size=64)
    net = placed(backbone.module, CPU, torch.float32).net
    assert sums(net) == shortcuts
    assert sums(prepacked(net, in_channels_last(torch.zeros(2, *backbone.input_shape)))) == 0


class Odd(nn.Module):
    """What must not be fused, in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.reflecting = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.twice = nn.Conv2d(4, 4, 1)
        self.relu, self.in_place = nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.first(images)
        both = self.relu(found) + found  # read twice
        second = self.second(both)
        both = self.in_place(both)  # between a convolution and its sum
        found = second + both
        third = self.third(found)
        found = third + third.mean(dim=(2, 3), keepdim=True)  # of another shape
        found = self.same(self.reflecting(found))
        found = found + found
        return {"features": self.twice(self.relu(self.twice(found)))}


def test_what_something_else_reads_or_changes_is_not_fused() -> None:
    torch.manual_seed(0)
    net = fx.symbolic_trace(Odd().eval())
    images = some(2, 4, 8, 8)
    with torch.inference_mode():
        expected = net(images)["features"]
        whole = prepacked(net, torch.zeros_like(images))
        found = whole(images)["features"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert [node.name for node in whole.graph.nodes] == [node.name for node in net.graph.nodes]
    kinds = [type(module).__name__ for module in modules_called(whole)]
    assert kinds.count("_Packed") == 3
    assert kinds.count("Conv2d") == 4


def test_a_sum_that_is_no_convolutions_shape_stays() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.shift = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(1, 4, 1, 1))

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"features": self.convolution(images) + self.shift}

    net = fx.symbolic_trace(Broadcast().eval())
    images = some(2, 3, 8, 8)
    with torch.inference_mode():
        whole = prepacked(net, torch.zeros_like(images))
        torch.testing.assert_close(whole(images), net(images))
    assert sums(whole) == 1
