"""Prepacked convolutions: the same function, what can be fused is fused, and nothing else is touched."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from pipeline.backbone import Backbone, FeatureExtractor, load_backbone
from pipeline.encoder import PRECISIONS, in_channels_last, made_fast, placed
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


class Grouped(nn.Module):
    """A sum after groups, which oneDNN does not add up in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 8, 3, padding=1, groups=2)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images + self.convolution(images))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.relu = nn.Conv2d(8, 8, 3), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(input=self.convolution(input=images))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv_transpose2d(self.convolution(images), self.convolution.weight)


class Replaced(nn.Module):
    """A module whose function is its own, not its class's."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.relu = nn.Conv2d(8, 8, 3), nn.ReLU()
        self.relu.forward = lambda images: nn.functional.leaky_relu(images, 0.3)  # type: ignore[method-assign]

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.convolution(images))


class Shared(nn.Module):
    """Rows that have one ReLU between them, and a convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        relu, twice = nn.ReLU(), nn.Conv2d(8, 8, 1)
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3), relu, nn.Conv2d(8, 8, 1), relu)
        self.second = nn.Sequential(twice, relu, twice)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images))


class OneChannel(nn.Module):
    """Of whose weights the strides say several things."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.thin = nn.Conv2d(8, 1, 8), nn.Conv2d(1, 16, (1, 3), stride=(1, 3), padding=(0, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.thin(images[:, :1]).mean(dim=(1, 2, 3), keepdim=True) + self.whole(images)


class Alpha(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        return torch.add(images, self.convolution(images), alpha=2)


class Rows(fx.Tracer):
    """Takes modules in a row as one, as torchvision's tracer takes those of its own."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Sequential) or super().is_leaf_module(module, name)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("kind", [Grouped, Keywords, Tied, Replaced, Shared, OneChannel, Alpha])
def test_odd_networks_are_the_same_function(kind: type[nn.Module], precision: str) -> None:
    torch.manual_seed(0)
    model, dtype = kind().eval().to(PRECISIONS[precision]), PRECISIONS[precision]
    net = fx.GraphModule(model, Rows().trace(model))
    images = some(8, 8, 8, 8, dtype=dtype)
    with torch.inference_mode():
        expected = net(images)
        found = prepacked(net, torch.zeros_like(images))(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=LARGEST[precision] * float(expected.float().abs().max()))


def network(*parts: nn.Module, code: str = "") -> Backbone:
    """Modules one after the other, as a network that gives maps."""
    graph = fx.Graph()
    result = graph.placeholder("images")
    for place in range(len(parts)):
        result = graph.call_module(str(place), (result,))
    graph.output({"features": result})
    net = fx.GraphModule(nn.ModuleList(parts), graph)
    module = FeatureExtractor(net.eval(), layout="channels first", average=False).eval()
    return replace(load_backbone("squeezenet1_1", weights="random", image_size=32), module=module, code=code)


def test_what_is_not_finite_for_noise_stays_so() -> None:
    """oneDNN's ReLU makes 0 of NaN, and a bank would hold that."""

    class Overflow(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.exp() * 1e38 * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)

    torch.manual_seed(0)
    sound = network(nn.Conv2d(3, 2, 1), nn.ReLU())
    assert made_fast(sound, 2, CPU, torch.float32) is not sound.module
    loud = network(nn.Conv2d(3, 2, 1), Overflow(), Overflow(), nn.Conv2d(2, 4, 1), nn.ReLU())
    with torch.inference_mode():
        assert not loud.module(some(2, 3, 32, 32)).isfinite().all()
    assert made_fast(loud, 2, CPU, torch.float32) is loud.module


def test_a_users_own_network_stays_as_it_is() -> None:
    """Who knows for which frames its numbers are finite?"""
    own = network(nn.Conv2d(3, 2, 1), nn.ReLU(), code="of somebody")
    assert made_fast(own, 2, CPU, torch.float32) is own.module


def test_a_network_that_cannot_be_run_so_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    known = network(nn.Conv2d(3, 2, 1), nn.ReLU())

    def refuse(*_: object) -> None:
        raise RuntimeError("Unsupported")

    monkeypatch.setattr("pipeline.encoder.prepacked", refuse)
    assert made_fast(known, 2, CPU, torch.float32) is known.module
    other = network(nn.Conv2d(3, 2, 1), nn.ReLU()).module.net  # of other weights: other numbers
    monkeypatch.setattr("pipeline.encoder.prepacked", lambda *_: other)
    assert made_fast(known, 2, CPU, torch.float32) is known.module
