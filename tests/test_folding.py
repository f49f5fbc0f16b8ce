"""Folding BatchNorm into convolutions: the same function, and nothing else touched."""

import pytest
import torch
from torch import nn

from pipeline.backbone import load_backbone
from pipeline.folding import folded
from pipeline.windows import Window


def random_statistics(module: nn.Module) -> None:
    """Statistics and affine parameters as training leaves them; at birth BatchNorm does nothing."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)):
            for tensor, low, high in (
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2.0),
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.5, 0.5),
            ):
                tensor.data.uniform_(low, high, generator=generator)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 0),
        ("mobilenet_v2", 0),
        ("googlenet", 0),
        ("densenet121", 62),  # most of its norms come before the convolution
        ("r2plus1d_18", 0),
        ("squeezenet1_1", 0),
    ],
)
def test_a_folded_network_is_the_same_function(name: str, left: int) -> None:
    window = Window("clip", 4, 2) if name == "r2plus1d_18" else None
    backbone = load_backbone(name, weights="random", image_size=64, window=window)
    net = backbone.module.net
    random_statistics(net)
    images = torch.randn(2, *backbone.input_shape, generator=torch.Generator().manual_seed(1))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.inference_mode():
        expected = net(images)["features"]
        whole = folded(net)
        found = whole(images)["features"]
        again = net(images)["features"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(again, expected)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    used = {str(node.target) for node in whole.graph.nodes if node.op == "call_module"}
    parts = [part for name in used for part in whole.get_submodule(name).modules()]
    assert sum(isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d)) for part in parts) == left


def test_what_something_else_reads_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.bare = nn.BatchNorm2d(4, track_running_stats=False)

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.convolution(images)
            return {"features": self.bare(self.norm(found) + found)}

    net = torch.fx.symbolic_trace(Twice().eval())
    assert [str(node) for node in folded(net).graph.nodes] == [str(node) for node in net.graph.nodes]
