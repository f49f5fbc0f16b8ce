"""Backbones of clips, from torchvision, of our own and inflated: against the models themselves, whole and in halves."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from pipeline.backbone import Backbone, as_maps, from_maps, layout_of, load_backbone
from pipeline.blocks import blocks_of, depths_of, within
from pipeline.encoder import channels_last, choose_batch_size, make_encoder
from pipeline.errors import UserError
from pipeline.halves import named_state, split
from pipeline.networks import video_networks, window_of
from pipeline.preprocessing import normalise
from pipeline.torchvision_networks import OPTIONS
from pipeline.tracing import OUTPUT
from pipeline.unfreezing import freeze, read_unfreezing
from pipeline.video_nets import NETS
from pipeline.windows import FRAME, Window

pytestmark = pytest.mark.usefixtures("one_torch_thread")

CPU = torch.device("cpu")
SMALL = {  # image size and clip length of a quick trial
    "r3d_18": (32, 4),
    "mc3_18": (32, 4),
    "r2plus1d_18": (32, 4),
    "s3d": (224, 16),  # its last pool takes no smaller map
    "swin3d_t": (64, 4),
    "swin3d_s": (64, 4),
    "swin3d_b": (64, 4),
    "mvit_v1_b": (224, 16),
    "mvit_v2_s": (224, 16),
}
QUICK = ["r3d_18", "r2plus1d_18"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in video_networks() if name not in QUICK]


def small(name: str, layer: str | None = None) -> Backbone:
    size, length = SMALL[name]
    return load_backbone(name, weights="random", layer=layer, image_size=size, window=Window("clip", length))


def rows(backbone: Backbone, count: int = 2) -> Tensor:
    return torch.randn(count, *backbone.input_shape, generator=torch.Generator().manual_seed(1))


def seeded(name: str, **options: object) -> nn.Module:
    """torchvision's own model, initialised after seed 0."""
    torch.manual_seed(0)
    return get_model(name, weights=None, **options).eval()


@torch.no_grad()
def output_of(model: nn.Module, module: nn.Module, batch: Tensor, *, before: bool = False) -> Tensor:
    """What a module within a model gives, or gets."""
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0] if before else output))
    model(batch)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_default_layer_and_own_classifier_of_torchvisions_video_networks(name: str) -> None:
    backbone = small(name)
    model, batch = seeded(name), rows(backbone)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    last = (linears or [module for module in model.modules() if isinstance(module, nn.Conv3d)])[-1]
    expected = output_of(model, last, batch, before=True)
    if not linears:  # S3D
        expected = expected.mean(dim=(2, 3, 4))
    assert backbone.feature_shape == tuple(expected.shape[1:])
    assert backbone.window == Window("clip", SMALL[name][1])
    torch.testing.assert_close(backbone.module(batch), expected, rtol=1e-5, atol=1e-6)
    classifier = small(name, OUTPUT)
    assert classifier.feature_shape == (400,)
    assert classifier.layer != OUTPUT
    with torch.no_grad():
        torch.testing.assert_close(classifier.module(batch), model(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "size"), [("r2d_18", 32), ("fr2d_18", 32), ("rmc3_18", 32), ("vgg_m", None)])
def test_default_layer_and_own_classifier_of_our_networks(name: str, size: int | None) -> None:
    check_own(name, size)


@pytest.mark.slow
def test_default_layer_and_own_classifier_of_slow_fusion() -> None:
    check_own("slow_fusion", None)
    with pytest.raises(UserError, match="slow_fusion fuses 10 frames, not 16"):
        load_backbone("slow_fusion", weights="random", window=Window("clip", 16))


def check_own(name: str, size: int | None) -> None:
    backbone = load_backbone(name, weights="random", image_size=size)
    torch.manual_seed(0)
    model = NETS[name].build(NETS[name].window).eval()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    batch = rows(backbone)
    assert torch.equal(backbone.module(batch), output_of(model, linear, batch, before=True))
    whole = load_backbone(name, weights="random", image_size=size, layer=OUTPUT)
    assert torch.equal(whole.module(batch), model(batch).detach())


def test_own_classifier_of_image_networks() -> None:
    for name in ("resnet18", "squeezenet1_1", "googlenet"):
        backbone = load_backbone(name, weights="random", layer=OUTPUT, image_size=64)
        model, batch = seeded(name, **OPTIONS.get(name, {})), rows(backbone)
        assert backbone.feature_shape == (1000,)
        assert torch.equal(backbone.module(batch), model(batch).detach())


def test_volumes_become_maps_of_steps_one_below_the_other() -> None:
    backbone, model = small("r3d_18", "layer2"), seeded("r3d_18")
    batch = rows(backbone)
    volumes = output_of(model, model.layer2, batch)
    assert volumes.shape == (2, 128, 2, 8, 8)
    assert backbone.feature_shape == (128, 16, 8)
    maps = backbone.module(batch)
    assert torch.equal(maps[:, :, 8:], volumes[:, :, 1])
    averaged = small("r3d_18", "layer2:mean")
    torch.testing.assert_close(averaged.module(batch), volumes.mean(dim=(2, 3, 4)))
    backbone, model = small("swin3d_t", "features.0"), seeded("swin3d_t")
    batch = rows(backbone)
    last = output_of(model, model.features[0], batch)
    assert last.shape == (2, 2, 16, 16, 96)
    assert backbone.feature_shape == (96, 32, 16)
    torch.testing.assert_close(backbone.module(batch)[:, :, 16:], last[:, 1].permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("shape", "layout", "maps"),
    [
        ((2, 8, 3, 5, 5), "volumes", (2, 8, 15, 5)),
        ((2, 8, 1, 1, 1), "volumes", (2, 8, 1, 1)),
        ((2, 5, 5, 5, 5), "volumes", (2, 5, 25, 5)),
        ((2, 3, 5, 5, 8), "volumes, channels last", (2, 8, 15, 5)),
        ((2, 5, 5, 8), "channels last", (2, 8, 5, 5)),
        ((2, 7, 3), "tokens", (2, 3, 7, 1)),
    ],
)
def test_maps_are_turned_back(shape: tuple[int, ...], layout: str, maps: tuple[int, ...]) -> None:
    features = torch.randn(shape)
    assert layout_of(shape) == layout
    turned = as_maps(features, layout)
    assert turned.shape == maps
    assert torch.equal(from_maps(turned, layout), features)
    assert torch.equal(from_maps(turned.contiguous(memory_format=torch.channels_last), layout), features)


def test_what_is_no_map_is_refused() -> None:
    assert layout_of((2, 8, 4, 5, 6)) is None
    assert layout_of((2, 3, 4, 5, 6, 7)) is None
    with pytest.raises(UserError, match=r"s3d does not take clips of 16 frames of 64×64 \(.*\); its own are 224×224"):
        load_backbone("s3d", weights="random", image_size=64, window=Window("clip", 16))
    with pytest.raises(UserError, match=r"mvit_v2_s takes 224×224 only \(KINETICS400_V1\), not 112×112"):
        load_backbone("mvit_v2_s", weights="random", image_size=112)


BOUNDARIES = [
    ("r3d_18", "layer4", "layer3.1.relu", (256, 4, 4)),
    ("r2plus1d_18", "layer3", "layer2.1.relu", (128, 16, 8)),
    pytest.param("mc3_18", "layer4.1", "layer4.0.relu", (512, 8, 2), marks=pytest.mark.slow),
    pytest.param("s3d", "features.14", "features.13", (832, 14, 7), marks=pytest.mark.slow),
    ("swin3d_t", "features.6", "features.5.reduction", (768, 4, 2)),
    pytest.param("mvit_v2_s", "blocks.15", "pos_encoding.cat", (96, 25089, 1), marks=pytest.mark.slow),
    pytest.param("mvit_v1_b", "blocks.15", "blocks.0.add_1", (192, 25089, 1), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "block", "boundary", "shape"), BOUNDARIES)
def test_halves_of_video_networks_make_the_whole(name: str, block: str, boundary: str, shape: tuple[int, ...]) -> None:
    check_halves(small(name), (block,), boundary, shape)


def check_halves(backbone: Backbone, names: tuple[str, ...], boundary: str, shape: tuple[int, ...]) -> None:
    halves = split(backbone, names)
    assert halves.prefix is not None
    assert (halves.prefix.layer, halves.prefix.feature_shape) == (boundary, shape)
    assert (halves.prefix.window, halves.prefix.inflated) == (backbone.window, backbone.inflated)
    batch = rows(backbone, 3)
    with torch.no_grad():
        whole = backbone.module(batch)
        between = halves.prefix.module(batch)
        together = halves.suffix(between.clone())
        last = channels_last(copy.deepcopy(halves.suffix))(between)
    assert between.shape[1:] == shape
    tolerance = 1e-5 * float(whole.abs().max())
    torch.testing.assert_close(together, whole, rtol=0, atol=tolerance)
    torch.testing.assert_close(last, whole, rtol=0, atol=tolerance)
    assert 0 < halves.share < 1
    suffix = copy.deepcopy(halves.suffix)
    freeze(suffix.net, names, batch_norm=True, training=False)
    features = suffix(between)
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    reached = {name for name, parameter in suffix.net.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in suffix.net.named_parameters() if within(name, names)}
    assert reached


def test_without_a_prefix_the_suffix_reads_clips() -> None:
    backbone = small("r3d_18")
    halves = split(backbone, ("stem",))
    assert halves.prefix is None
    assert torch.equal(halves.suffix(rows(backbone)), backbone.module(rows(backbone)))


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("r3d_18", ["layer4.0", "layer4.1"]),
        ("r2plus1d_18", ["layer4.0", "layer4.1"]),
        ("s3d", ["features.14", "features.15"]),
        ("swin3d_t", ["features.6.0", "features.6.1", "norm"]),
        pytest.param("mvit_v2_s", ["blocks.14", "blocks.15", "norm"], marks=pytest.mark.slow),
    ],
)
def test_blocks_of_video_networks(name: str, last: list[str]) -> None:
    backbone = small(name)
    blocks = blocks_of(backbone)
    assert blocks[-len(last) :] == last
    net = backbone.module.net
    assert all(sum(within(key, [block]) for block in blocks) == 1 for key, _ in net.named_parameters())
    depths = depths_of(net, blocks)
    assert depths[0] == 1
    named = read_unfreezing("1", backbone, batch_norm=False).names
    assert named == tuple(block for block, depth in zip(blocks, depths, strict=True) if depth == depths[-1])


def test_files_of_video_networks_and_of_their_halves(tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = get_model("r2plus1d_18", weights=None, num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    options = {"image_size": 32, "window": Window("clip", 4)}
    backbone = load_backbone("r2plus1d_18", weights=str(tmp_path / "mine.pth"), **options)
    assert backbone.preprocessing.preset == "KINETICS400_V1"
    batch = rows(backbone)
    torch.testing.assert_close(backbone.module(batch), output_of(model, model.fc, batch, before=True))
    with pytest.raises(UserError, match=r"fc.weight is \(5, 512\) instead of \(400, 512\)"):
        load_backbone("r2plus1d_18", weights=str(tmp_path / "mine.pth"), layer=OUTPUT, **options)
    state = {name: tensor.contiguous() for name, tensor in named_state(split(backbone, ("layer4",))).items()}
    save_file(state, tmp_path / "tuned.safetensors")
    again = load_backbone("r2plus1d_18", weights=str(tmp_path / "tuned.safetensors"), **options)
    assert again.sha256 == backbone.sha256


@pytest.mark.parametrize(("name", "layer"), [("googlenet", None), ("resnet18", "layer3:mean")])
def test_inflated_networks_see_in_a_still_clip_what_the_image_network_sees(
    tmp_path: Path, name: str, layer: str | None
) -> None:
    torch.manual_seed(3)
    torch.save(get_model(name, weights=None, **OPTIONS.get(name, {})).state_dict(), tmp_path / "images.pth")
    options = {"layer": layer, "image_size": 64}
    flat = load_backbone(name, weights=str(tmp_path / "images.pth"), **options)
    clip = Window("clip", 6, 3)
    solid = load_backbone(name, weights=str(tmp_path / "images.pth"), window=clip, inflate=True, **options)
    assert (solid.inflated, solid.layer, solid.feature_shape) == (True, flat.layer, flat.feature_shape)
    frames = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    still = frames.unsqueeze(2).expand(2, *solid.input_shape)
    expected = flat.module(normalise(flat.preprocessing, frames))
    got = solid.module(normalise(solid.preprocessing, still, clip))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert blocks_of(solid) == blocks_of(flat)
    # What was fine-tuned is in three dimensions already.
    block = blocks_of(solid)[-1]
    halves = split(solid, (block,))
    save_file({key: value.contiguous() for key, value in named_state(halves).items()}, tmp_path / "tuned.safetensors")
    again = load_backbone(name, weights=str(tmp_path / "tuned.safetensors"), window=clip, inflate=True, **options)
    assert again.sha256 == solid.sha256
    assert halves.prefix is not None
    check_halves(solid, (block,), halves.prefix.layer, halves.prefix.feature_shape)


def test_what_cannot_be_inflated_is_said() -> None:
    with pytest.raises(UserError, match="only networks of convolutions, norms and pools can be inflated"):
        load_backbone("vit_b_32", weights="random", window=Window("clip", 8), inflate=True)


@pytest.mark.parametrize("name", ["r3d_18", "vgg_m"])
def test_the_encoder_takes_rows_of_any_window(name: str) -> None:
    backbone = small(name) if name in SMALL else load_backbone(name, weights="random")
    batch = torch.randint(256, (3, *backbone.input_shape), dtype=torch.uint8)
    expected = backbone.module(normalise(backbone.preprocessing, batch, backbone.window))
    encode, size = make_encoder(copy.deepcopy(backbone), CPU, "fp32", 3)
    assert size == 3
    torch.testing.assert_close(
        torch.from_numpy(encode(batch)()), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    assert all(torch.equal(torch.from_numpy(encode(batch)()), torch.from_numpy(encode(batch)())) for _ in range(2))


def test_s3d_runs_in_bfloat16_on_the_cpu() -> None:
    """Though torch's avg_pool3d does not there. Rounding: 8 bits of each number."""
    backbone = load_backbone("s3d", weights="random", window=Window("clip", 14))  # 224×224: its last pool takes no less
    batch = torch.randint(256, (1, *backbone.input_shape), dtype=torch.uint8)
    expected = backbone.module(normalise(backbone.preprocessing, batch, backbone.window)).numpy()
    encode, _ = make_encoder(backbone, CPU, "bf16", 1)
    assert 0 < np.linalg.norm(encode(batch)() - expected) < 0.03 * np.linalg.norm(expected)


def test_batches_of_clips_hold_as_many_frames_as_batches_of_frames() -> None:
    assert choose_batch_size("auto", CPU) == choose_batch_size("auto", CPU, window=FRAME) == 8
    assert choose_batch_size("auto", CPU, window=Window("stack", 5)) == 8
    assert choose_batch_size("auto", CPU, window=Window("clip", 4, 2)) == 2
    assert choose_batch_size("auto", torch.device("mps"), window=window_of("s3d")) == 1
    assert choose_batch_size("auto", torch.device("cuda"), window=window_of("s3d")) is None
    assert choose_batch_size("auto", CPU, window=window_of("s3d")) == 1
    assert choose_batch_size("7", CPU, window=window_of("s3d")) == 7


def test_channels_last_changes_memory_alone() -> None:
    module = nn.ModuleDict({"flat": nn.Conv2d(4, 8, 3), "solid": nn.Conv3d(4, 8, 3), "vector": nn.Linear(4, 8)})
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    assert channels_last(module) is module
    flat, solid = module["flat"].weight, module["solid"].weight
    assert flat.is_contiguous(memory_format=torch.channels_last)
    assert solid.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
