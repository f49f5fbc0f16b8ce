"""The two halves together are the whole, the first is the backbone that `load_backbone` cuts there, and no more trains
than is named."""

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import list_models

from pipeline.backbone import Backbone, load_backbone
from pipeline.blocks import blocks_of, depths_of
from pipeline.checkpoints import tensors_sha256
from pipeline.halves import Halves, named_state, split
from pipeline.unfreezing import freeze, read_unfreezing
from tests.test_blocks import small

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def images(backbone: Backbone, count: int = 3) -> Tensor:
    return torch.randn(count, *backbone.preprocessing.output_shape, generator=torch.Generator().manual_seed(1))


def flops(module: nn.Module, batch: Tensor) -> int:
    """With gradients and plain attention: the counter does not know the fast paths."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(batch.clone().requires_grad_())
    return counter.get_total_flops()


def check(backbone: Backbone, names: tuple[str, ...]) -> Halves:
    """All that must be so of any backbone, cut anywhere."""
    batch = images(backbone)
    halves = split(backbone, names)
    with torch.no_grad():
        whole = backbone.module(batch)
        between = batch if halves.prefix is None else halves.prefix.module(batch)
        before = between.clone()
        together = halves.suffix(between)
    assert torch.equal(between, before), "the suffix changes its input, which may be used again"
    torch.testing.assert_close(together, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))
    state = named_state(halves)
    assert tensors_sha256(state) == backbone.sha256
    if halves.prefix is None:
        assert halves.share == 1
        return halves
    assert between.shape[1:] == halves.prefix.feature_shape
    alone = load_backbone(
        backbone.name,
        weights="random",
        layer=halves.prefix.layer,
        image_size=backbone.preprocessing.crop,
        preset=backbone.preprocessing.preset,
    )
    for key in ("name", "layer", "weights", "sha256", "preprocessing", "feature_shape", "containers"):
        assert getattr(halves.prefix, key) == getattr(alone, key), key
    assert torch.equal(alone.module(batch), between)
    pair = batch[:2]  # as `split` tries it: Swin V2's position bias is computed once, however many images there are
    second, both = flops(halves.suffix, between[:2]), flops(backbone.module, pair)
    assert flops(halves.prefix.module, pair) + second == both
    assert halves.share == pytest.approx(second / both)
    return halves


def check_gradients(halves: Halves, names: tuple[str, ...], batch: Tensor) -> None:
    """Gradients reach exactly the parameters named, each of them."""
    suffix = copy.deepcopy(halves.suffix)
    freeze(suffix.net, names, batch_norm=True, training=False)
    between = batch if halves.prefix is None else halves.prefix.module(batch)
    features = suffix(between)
    # Not a plain sum, which a norm at the end would keep constant.
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    reached = {name for name, parameter in suffix.net.named_parameters() if parameter.grad is not None}
    named = {key for key in dict(suffix.net.named_parameters()) if any(f"{key}.".startswith(f"{n}.") for n in names)}
    assert reached == named
    assert named


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "mobilenet_v2", "googlenet", "shufflenet_v2_x0_5"])
def test_halves_make_the_whole_from_the_first_block_to_the_last(name: str) -> None:
    backbone = small(name)
    blocks = blocks_of(backbone)
    for block in blocks[:: len(blocks) // 2]:
        check(backbone, (block,))
    last = read_unfreezing("2", backbone, batch_norm=True).names
    check_gradients(check(backbone, last), last, images(backbone))


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models(module=torchvision.models))
def test_halves_of_every_torchvision_model(name: str) -> None:
    backbone = small(name)
    depths = depths_of(backbone.module.net, blocks_of(backbone))
    for count in sorted({1, 2, depths[-1] // 2, depths[-1]}):
        names = read_unfreezing(str(count), backbone, batch_norm=True).names
        halves = check(backbone, names)
        if count == 2:
            check_gradients(halves, names, images(backbone, 2))
        assert (halves.prefix is None) == (count == depths[-1])


@pytest.mark.parametrize(
    ("name", "names", "boundary", "shape"),
    [
        ("squeezenet1_1", ("features.12",), "features.11.cat", (512, 3, 3)),
        ("squeezenet1_1", ("features.12.expand3x3",), "features.12.squeeze_activation", (64, 3, 3)),
        ("resnet18", ("layer4.1",), "layer4.0.relu_1", (512, 2, 2)),
        # Within a residual block its input is needed as well, so it is the input that is cut at.
        ("resnet18", ("layer4.1.conv2",), "layer4.0.relu_1", (512, 2, 2)),
        ("resnet18", ("layer4.0.downsample",), "layer3.1.relu_1", (256, 4, 4)),
        ("resnet18", ("layer4.1.bn2.bias", "layer3.1.conv1"), "layer3.0.relu_1", (256, 4, 4)),
        ("resnet18", ("bn1",), "conv1", (64, 32, 32)),
        ("mobilenet_v2", ("features.18",), "features.17.conv.3", (320, 2, 2)),
        ("alexnet", ("classifier.4",), "classifier.3", (4096,)),
        ("alexnet", ("classifier",), "flatten", (9216,)),  # before the Dropout with which the classifier begins
    ],
)
def test_the_boundary_is_as_late_as_can_be(
    name: str, names: tuple[str, ...], boundary: str, shape: tuple[int, ...]
) -> None:
    halves = check(small(name), names)
    assert halves.prefix is not None
    assert (halves.prefix.layer, halves.prefix.feature_shape) == (boundary, shape)


@pytest.mark.parametrize(("name", "names"), [("resnet18", ("conv1",)), ("googlenet", ("conv1", "inception5b"))])
def test_there_is_no_prefix_without_weights(name: str, names: tuple[str, ...]) -> None:
    halves = check(small(name), names)  # GoogLeNet's input is transformed before its first convolution
    assert halves.prefix is None
    assert halves.frozen == {}


@pytest.mark.parametrize("layer", ["features.5", pytest.param("features.5:mean", marks=pytest.mark.slow), "flatten"])
def test_maps_with_channels_last_are_turned_back(layer: str) -> None:
    backbone = small("swin_t", layer)
    halves = check(backbone, ("features.5.5",))
    assert halves.prefix is not None
    assert halves.prefix.feature_shape == (384, 4, 4)
    check_gradients(halves, ("features.5.5",), images(backbone))


def test_tokens_are_turned_back() -> None:
    backbone = small("vit_b_32")
    halves = check(backbone, ("encoder.layers.encoder_layer_11", "encoder.ln"))
    assert halves.prefix is not None
    assert (halves.prefix.layer, halves.prefix.feature_shape) == ("encoder.layers.encoder_layer_10.add_1", (768, 50, 1))
    check_gradients(halves, ("encoder.layers.encoder_layer_11",), images(backbone))
    patches = split(backbone, ("class_token",)).prefix
    assert patches is not None
    assert (patches.layer, patches.feature_shape) == ("permute", (768, 49, 1))


@pytest.mark.slow
def test_patches_make_the_whole() -> None:
    check(small("vit_b_32"), ("class_token",))


def test_what_is_kept_is_a_checkpoint_of_the_layer_with_the_prefix_as_loaded(tmp_path: Path) -> None:
    backbone = small("resnet18")
    halves = split(backbone, ("layer4",))
    original = {name: tensor.clone() for name, tensor in named_state(halves).items()}
    assert halves.prefix is not None
    halves.prefix.module.to(torch.bfloat16)  # as an encoder of half precision does
    suffix = copy.deepcopy(halves.suffix).to(memory_format=torch.channels_last)
    with torch.no_grad():
        suffix.net.get_parameter("layer4.1.conv2.weight").mul_(2)
    state = named_state(halves._replace(suffix=suffix))
    assert list(state) == list(original)
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, original[name])}
    assert changed == {"layer4.1.conv2.weight"}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "backbone.safetensors")
    again = load_backbone("resnet18", weights=str(tmp_path / "backbone.safetensors"), image_size=64)
    assert again.sha256 == tensors_sha256(state) != backbone.sha256
    fresh = small("resnet18")
    fresh.module.net.get_parameter("layer4.1.conv2.weight").mul_(2)
    assert torch.equal(again.module(images(again)), fresh.module(images(fresh)))


def test_training_mode_leaves_the_graph_alone() -> None:
    halves = split(small("googlenet"), ("inception5b",))
    suffix = copy.deepcopy(halves.suffix)
    suffix.train()
    freeze(suffix.net, ("inception5b",), batch_norm=False, training=True)
    between = torch.randn(2, 832, 2, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(suffix(between), halves.suffix(between))
