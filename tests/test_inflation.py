"""Inflated networks against their image networks: of a video in which nothing moves they must say the same."""

import copy
import operator

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models import get_model, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pipeline.backbone import load_backbone
from pipeline.errors import UserError
from pipeline.inflation import Inflated, avg_pool, inflate_state, inflated, lengthened, max_pool
from pipeline.preprocessing import normalise
from pipeline.windows import Window

pytestmark = pytest.mark.usefixtures("one_torch_thread")

REFUSED = [  # one of each family that cannot be inflated, and some of what is said of it
    ("convnext_tiny", ["permute", "layer_norm", "the tensor features.1.0.layer_scale"]),
    pytest.param("maxvit_t", ["einsum", "reshape"], marks=pytest.mark.slow),
    ("shufflenet_v2_x0_5", ["chunk", "view", "transpose"]),
    ("swin_t", ["Permute", "shifted_window_attention"]),
    ("vit_b_16", ["reshape", "MultiheadAttention"]),
]
FAMILIES = ("convnext", "maxvit", "shufflenet", "swin", "vit")


def traced(name: str, layer: str | None = None) -> fx.GraphModule:
    """torchvision's model as a graph up to a layer (None: to its end), its norms with statistics of their own."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    model = get_model(name, weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    model.eval().requires_grad_(False)
    last = layer or get_graph_node_names(model, suppress_diff_warning=True)[1][-1]
    return create_feature_extractor(model, [last], suppress_diff_warning=True).eval()


def outputs(net: fx.GraphModule, batch: Tensor) -> Tensor:
    (value,) = net(batch).values()
    return value


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def check_still(name: str, size: int, frames: int, layer: str | None = None) -> Tensor:
    """That a clip of one repeated frame gives the frame's features, at every step where there are steps."""
    net = traced(name, layer)
    batch = images(size)
    expected, features = outputs(net, batch), outputs(inflated(net), batch.unsqueeze(2).repeat(1, 1, frames, 1, 1))
    if features.ndim == 5:
        expected = expected.unsqueeze(2).expand_as(features)
    assert features.shape == expected.shape
    assert expected.std() > 0
    assert (features - expected).abs().max() < 1e-4 * expected.abs().max()
    return features


@pytest.mark.parametrize("name", ["googlenet", "resnet18", "squeezenet1_1", "mobilenet_v2", "vgg11"])
def test_a_still_video_gives_what_its_frame_gives(name: str) -> None:
    check_still(name, 64, 4)


@pytest.mark.parametrize("name", ["googlenet", "squeezenet1_1"])
def test_an_inflated_backbone_gives_at_its_default_layer_what_the_image_backbone_gives(name: str) -> None:
    """Each with its own normalisation: GoogLeNet does part of it itself where it sees single frames."""
    window = Window("clip", 5, 2)
    still = load_backbone(name, weights="random", image_size=64)
    moving = load_backbone(name, weights="random", image_size=64, window=window, inflate=True)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    expected = still.module(normalise(still.preprocessing, pixels))
    features = moving.module(normalise(moving.preprocessing, pixels.unsqueeze(2).repeat(1, 1, 5, 1, 1), window))
    assert moving.layer == still.layer
    assert (features - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer3"), ("googlenet", "inception4a"), ("mobilenet_v3_small", "features.3")]
)
def test_of_maps_it_gives_them_at_every_step(name: str, layer: str) -> None:
    assert check_still(name, 64, 9, layer).shape[2] > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in list_models(module=torchvision.models)
        if not name.startswith(FAMILIES) and "_32gf" not in name and "_128gf" not in name
    ],
)
def test_every_network_of_convolutions_can_be_inflated(name: str) -> None:
    check_still(name, 75 if name == "inception_v3" else 64, 3)


@pytest.mark.parametrize(("name", "operations"), REFUSED)
def test_other_networks_are_refused_with_what_stands_against_it(name: str, operations: list[str]) -> None:
    with pytest.raises(UserError, match="only networks of convolutions, norms and pools") as refusal:
        inflated(traced(name))
    said = str(refusal.value).partition("this one has ")[2].partition(";")[0].split(", ")
    assert set(operations) <= set(said)
    assert len(said) == len(set(said))
    assert not {"Conv2d", "add", "cat", "Linear"} & set(said)


def test_a_clip_is_halved_in_time_where_i3d_halves_it() -> None:
    """Of 64 frames I3D has 32 after its first convolution and the next two pools, then 16, then 8."""
    net = inflated(traced("googlenet", "inception5b"))
    steps = {}

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            steps[str(n.target)] = value.shape[2] if isinstance(value, Tensor) else None
            return value

    Noting(net).run(torch.zeros(1, 3, 64, 32, 32))
    names = ("conv1.conv", "maxpool1", "maxpool2", "maxpool3", "maxpool4", "inception5b.branch4.0")
    assert [steps[name] for name in names] == [32, 32, 32, 16, 8, 8]


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
@pytest.mark.parametrize(("extent", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (7, 2, 1)])
def test_what_moves_is_convolved_in_time(steps: int, extent: int, stride: int, dilation: int) -> None:
    """Against sums over frames by index arithmetic, the first and the last frame going on."""
    torch.manual_seed(0)
    flat = nn.Conv2d(2, 3, extent, stride=stride, padding=extent // 2, dilation=dilation)
    clip = torch.randn(2, 2, steps, 9, 9)
    graph = fx.Graph()
    graph.output(graph.call_module("flat", (graph.placeholder("x"),)))
    convolved = inflated(fx.GraphModule({"flat": flat}, graph))(clip)
    frames = torch.stack([flat(frame) for frame in clip.unbind(2)], dim=2)
    assert convolved.shape[2] == -(-steps // stride)
    for step in range(convolved.shape[2]):
        seen = [min(max(step * stride + offset, 0), steps - 1) for offset in range(-(extent // 2), extent // 2 + 1)]
        torch.testing.assert_close(convolved[:, :, step], frames[:, :, seen].mean(2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 5])
@pytest.mark.parametrize(("extent", "stride", "padding"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pools_take_in_time_what_they_take_in_space(
    steps: int, extent: int, stride: int, padding: int, ceil_mode: bool
) -> None:
    torch.manual_seed(0)
    clip = torch.randn(2, 3, steps, 10, 10)
    before = (extent - 1) // 2
    seen = [
        [min(max(step * stride + offset, 0), steps - 1) for offset in range(-before, extent - before)]
        for step in range(-(-steps // stride))
    ]
    for flat, pool in ((nn.functional.max_pool2d, max_pool), (nn.functional.avg_pool2d, avg_pool)):
        frames = torch.stack(
            [flat(frame, extent, stride, padding, ceil_mode=ceil_mode) for frame in clip.unbind(2)], dim=2
        )
        each = [frames[:, :, indices] for indices in seen]
        expected = [part.amax(2) if pool is max_pool else part.mean(2) for part in each]
        pooled = pool(clip, extent, stride, padding, ceil_mode=ceil_mode)
        torch.testing.assert_close(pooled, torch.stack(expected, dim=2))
    kept = max_pool(clip, extent, stride, padding, ceil_mode=ceil_mode, in_time=False)
    frames = [nn.functional.max_pool2d(frame, extent, stride, padding, ceil_mode=ceil_mode) for frame in clip.unbind(2)]
    assert torch.equal(kept, torch.stack(frames, dim=2))


def test_averages_leave_the_margins_out_where_the_image_network_does() -> None:
    clip = torch.randn(1, 2, 1, 7, 7).repeat(1, 1, 4, 1, 1)
    for options in ({"count_include_pad": False}, {"divisor_override": 5}):
        expected = nn.functional.avg_pool2d(clip[:, :, 0], 3, 2, 1, **options)
        pooled = avg_pool(clip, 3, 2, 1, **options)
        torch.testing.assert_close(pooled, expected.unsqueeze(2).expand_as(pooled))


def test_half_precision_is_near() -> None:
    """Of a network with pools of both kinds."""
    net = inflated(traced("densenet121", "features.transition1"))
    clip = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    exact, near = outputs(net, clip), outputs(copy.deepcopy(net).bfloat16(), clip.bfloat16()).float()
    assert (near - exact).norm() < 0.03 * exact.norm()


def test_names_stay_and_the_image_network_is_left_as_it_was() -> None:
    net = traced("mobilenet_v3_small")  # it has modules within modules that tracing takes as one
    batch = images(64)
    before = outputs(net, batch)
    for node in net.graph.nodes:
        node.meta["note"] = node.name
    video = inflated(net)
    state, own = net.state_dict(), video.state_dict()
    assert own.keys() == state.keys()
    assert [(node.name, node.meta["note"]) for node in video.graph.nodes] == [
        (node.name, node.name) for node in net.graph.nodes
    ]
    for name, tensor in state.items():
        if tensor.ndim == 4:
            torch.testing.assert_close(own[name].sum(2), tensor)
        else:
            assert own[name].data_ptr() == tensor.data_ptr()
    assert not any(module.training for module in video.modules())
    assert not any(parameter.requires_grad for parameter in video.parameters())
    assert torch.equal(outputs(net, batch), before)
    kernels = {module.kernel_size for module in video.modules() if isinstance(module, Inflated)}
    assert kernels == {(1, 1, 1), (3, 3, 3), (5, 5, 5)}


def test_filters_that_look_along_one_direction_see_one_step() -> None:
    video = inflated(traced("inception_v3", "Mixed_6b"))
    along = video.get_submodule("Mixed_6b.branch7x7_2.conv")
    assert isinstance(along, Inflated)
    assert along.kernel_size == (1, 1, 7)


def test_the_tensors_of_both_networks_can_be_loaded() -> None:
    net = traced("resnet18")
    video = inflated(net)
    own = video.state_dict()
    other = {name: tensor + 1 if tensor.ndim == 4 else tensor for name, tensor in net.state_dict().items()}
    loaded = inflate_state(other | {"unknown": torch.zeros(1, 1, 3, 3)}, own)
    assert loaded["unknown"].shape == (1, 1, 3, 3)
    assert loaded["conv1.weight"].shape == own["conv1.weight"].shape == (64, 3, 7, 7, 7)
    torch.testing.assert_close(loaded["conv1.weight"].sum(2), other["conv1.weight"])
    assert loaded["fc.weight"] is other["fc.weight"]
    again = inflate_state(loaded, own)
    assert all(operator.is_(again[name], tensor) for name, tensor in loaded.items())


def test_the_order_of_memory_is_kept() -> None:
    clip = torch.randn(2, 4, 5, 6, 6).to(memory_format=torch.channels_last_3d)
    longer = lengthened(clip, 3, 1)
    assert longer.shape[2] == 7
    for value in (longer, max_pool(clip, 3, 2, in_time=False)):
        assert value.is_contiguous(memory_format=torch.channels_last_3d)
    assert lengthened(clip, 1, 2) is clip
