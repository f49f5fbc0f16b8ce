"""The first convolution for stacks of frames and of motion: what it gives beside the network on single frames."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights, get_model, list_models

from pipeline.backbone import Backbone, load_backbone
from pipeline.errors import UserError
from pipeline.first_convolution import adapted, first_weight, taking
from pipeline.preprocessing import normalise
from pipeline.torchvision_networks import OPTIONS
from pipeline.windows import Window

pytestmark = pytest.mark.usefixtures("one_torch_thread")

RGB, GREY, MOTION = Window("stack", 5), Window("stack", 5, grey=True), Window("flow", 4)


def pixels(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def trained(tmp_path: Path, name: str) -> str:
    """A checkpoint of a network for single frames."""
    torch.manual_seed(5)
    torch.save(get_model(name, weights=None, **OPTIONS.get(name, {})).state_dict(), tmp_path / f"{name}.pth")
    return str(tmp_path / f"{name}.pth")


def features(backbone: Backbone, rows: Tensor) -> Tensor:
    return backbone.module(normalise(backbone.preprocessing, rows, backbone.window))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "googlenet"])
def test_a_stack_that_stands_still_gives_what_its_frame_gives(tmp_path: Path, name: str) -> None:
    """GoogLeNet transforms the inputs of single frames itself."""
    weights = trained(tmp_path, name)
    frames = pixels(2, 3, 64, 64)
    expected = features(load_backbone(name, weights=weights, image_size=64), frames)
    stacked = load_backbone(name, weights=weights, image_size=64, window=RGB)
    assert (stacked.window, stacked.input_shape) == (RGB, (15, 64, 64))
    got = features(stacked, frames.repeat(1, 5, 1, 1))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    grey = frames[:, :1]
    expected = features(load_backbone(name, weights=weights, image_size=64), grey.repeat(1, 3, 1, 1))
    got = features(load_backbone(name, weights=weights, image_size=64, window=GREY), grey.repeat(1, 5, 1, 1))
    # Not the same: the frame's three channels are normalised each by its own mean. But nearly.
    assert torch.nn.functional.cosine_similarity(got, expected).min() > 0.98


def test_cross_modality_weights_are_the_mean_over_colours_rescaled() -> None:
    weight = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    for window in (GREY, MOTION):
        got = adapted(weight.half(), window)
        assert got.dtype == torch.float32
        expected = weight.half().float().mean(dim=1, keepdim=True) * 3 / window.channels
        torch.testing.assert_close(got, expected.expand(8, window.channels, 7, 7))
    rgb = adapted(weight, RGB)
    torch.testing.assert_close(rgb.view(8, 5, 3, 7, 7).sum(1), weight)
    assert torch.equal(rgb[:, :3], rgb[:, 12:])


def test_files_of_either_shape_are_taken(tmp_path: Path) -> None:
    weights = trained(tmp_path, "resnet18")
    first = load_backbone("resnet18", weights=weights, image_size=64, window=MOTION)
    state = torch.load(weights, weights_only=True)
    assert torch.equal(first.module.net.get_parameter("conv1.weight"), adapted(state["conv1.weight"], MOTION))
    state["conv1.weight"] = torch.randn(64, 8, 7, 7)
    torch.save(state, tmp_path / "tuned.pth")
    again = load_backbone("resnet18", weights=str(tmp_path / "tuned.pth"), image_size=64, window=MOTION)
    assert torch.equal(again.module.net.get_parameter("conv1.weight"), state["conv1.weight"])
    assert again.sha256 != first.sha256
    # Three channels for three grey frames are those frames in a file, and colours in published weights.
    three = Window("stack", 3, grey=True)
    kept = load_backbone("resnet18", weights=weights, image_size=64, window=three)
    state = torch.load(weights, weights_only=True)
    assert torch.equal(kept.module.net.get_parameter("conv1.weight"), state["conv1.weight"])


def test_published_weights_are_for_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's entry is pointed to a file of ours, under its real digest, where torchvision keeps it."""
    weights = Path(trained(tmp_path, "squeezenet1_1"))
    colours = torch.load(weights, weights_only=True)["features.0.weight"]
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    name = f"squeezenet1_1-{hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}.pth"
    weights.rename(folder / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(SqueezeNet1_1_Weights.IMAGENET1K_V1.value, "url", f"https://nowhere.invalid/{name}")
    three = Window("stack", 3, grey=True)
    backbone = load_backbone("squeezenet1_1", weights="IMAGENET1K_V1", image_size=64, window=three)
    assert torch.equal(backbone.module.net.get_parameter("features.0.weight"), adapted(colours, three))


def test_random_weights_are_the_models_own_initialisation() -> None:
    """ResNet's is Kaiming's by the fan out; the fan out of a first convolution does not hang on its inputs."""
    original = nn.Conv2d.__init__
    backbone = load_backbone("resnet18", weights="random", image_size=64, window=Window("stack", 50))
    assert nn.Conv2d.__init__ is original
    weight = backbone.module.net.get_parameter("conv1.weight")
    assert weight.shape == (64, 150, 7, 7)
    assert float(weight.std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.01)
    assert float(weight[:, :75].sub(weight[:, 75:]).abs().mean()) > 0  # drawn one by one, not repeated
    # AlexNet's is uniform, by the fan in.
    weight = load_backbone("alexnet", weights="random", window=Window("flow", 10)).module.net.get_parameter(
        "features.0.weight"
    )
    assert float(weight.abs().max()) == pytest.approx((20 * 121) ** -0.5, rel=0.01)
    with taking(7):
        assert [nn.Conv2d(channels, 8, 3).in_channels for channels in (4, 3, 3)] == [4, 7, 3]
    with pytest.raises(UserError, match="stopped"), taking(7):
        raise UserError("stopped")
    assert nn.Conv2d.__init__ is original


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models(module=torchvision.models))
def test_every_image_network_takes_stacks(name: str) -> None:
    large = name.startswith(("vit_", "maxvit_", "alexnet"))
    preset = "IMAGENET1K_SWAG_LINEAR_V1" if name == "vit_h_14" else None
    size = None if large else 75 if name == "inception_v3" else 64
    backbone = load_backbone(name, weights="random", image_size=size, preset=preset, window=GREY)
    key = first_weight(backbone.module.net)
    assert backbone.module.net.get_parameter(key).shape[1] == 5
    got = features(backbone, pixels(2, *backbone.input_shape))
    assert got.shape == (2, *backbone.feature_shape)
