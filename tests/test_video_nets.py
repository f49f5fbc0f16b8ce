"""Our own networks against their papers: parameters, shapes, and what each of them can and cannot see."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18

from pipeline.errors import UserError
from pipeline.video_nets import NETS
from pipeline.windows import Window

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def built(name: str, window: Window | None = None) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name].build(window or NETS[name].window).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def slow_fusion() -> nn.Module:
    """It is large: 132 million parameters, of which 103 lie between the maps and the first fully connected layer."""
    with torch.random.fork_rng(devices=[]):
        return built("slow_fusion")


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def embedding(model: nn.Module, batch: Tensor) -> Tensor:
    """The input of the last module, the classifier."""
    seen: list[Tensor] = []
    handle = list(model.modules())[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(batch)
    handle.remove()
    return seen[0]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "length", "millions", "published"),
    [
        ("r2d_18", 8, 11.45, 11.4),
        ("r2d_18", 16, 11.52, 11.4),  # the paper counts one number for both lengths
        ("fr2d_18", 16, 11.38, 11.4),
        ("rmc3_18", 16, 33.06, 33.0),
    ],
)
def test_parameters_beside_those_of_tran_et_al(name: str, length: int, millions: float, published: float) -> None:
    count = parameters_of(built(name, Window("clip", length, length)))
    assert round(count / 1e6, 2) == millions
    assert abs(count / 1e6 - published) < 0.13


@pytest.mark.parametrize(
    ("build", "millions", "published"), [(r3d_18, 33.37, 33.4), (mc3_18, 11.70, 11.7), (r2plus1d_18, 31.51, 33.3)]
)
def test_parameters_of_torchvisions_siblings(build: type, millions: float, published: float) -> None:
    """R(2+1)D has fewer than in the paper: the one that torchvision lays out otherwise, see the next test."""
    count = parameters_of(build(weights=None))
    assert round(count / 1e6, 2) == millions
    assert (abs(count / 1e6 - published) < 0.1) == (build is not r2plus1d_18)


def test_torchvisions_middle_planes_are_computed_once_for_each_block() -> None:
    model = r2plus1d_18(weights=None)

    def formula(inputs: int, outputs: int) -> int:
        return (27 * inputs * outputs) // (9 * inputs + 3 * outputs)

    assert model.stem[0].out_channels == 45
    first, second = model.layer2[0].conv1[0], model.layer2[0].conv2[0]
    assert first[0].out_channels == second[0].out_channels == formula(64, 128) == 230
    assert formula(128, 128) == 288  # what the second would have by itself
    assert model.layer2[1].conv1[0][0].out_channels == 288
    # With what the formula gives them, the second convolutions of the later groups make up the difference to the paper.
    missing = 0
    for planes in (128, 256, 512):
        more = formula(planes, planes) - formula(planes // 2, planes)
        missing += more * (9 * planes + 3 * planes + 2)  # both filters, and the norm between them
    assert abs((parameters_of(model) + missing) / 1e6 - 33.3) < 0.1


@pytest.mark.parametrize(("name", "size"), [("r2d_18", 32), ("fr2d_18", 32), ("rmc3_18", 32), ("vgg_m", 112)])
def test_a_net_classifies_its_window_and_ends_in_a_linear(name: str, size: int) -> None:
    model, window = built(name), NETS[name].window
    batch = noise(2, *window.input_shape(size))
    assert model(batch).shape == (2, 400)
    assert embedding(model, batch).shape == (2, 512)
    assert isinstance(list(model.modules())[-1], nn.Linear)


@pytest.mark.parametrize("name", NETS)
def test_a_net_can_be_traced_and_says_the_same(name: str, slow_fusion: nn.Module) -> None:
    net = NETS[name]
    model = slow_fusion if name == "slow_fusion" else built(name)
    names = get_graph_node_names(model)[1]
    classifier = dict(model.named_modules())[names[-1]]
    assert isinstance(classifier, nn.Linear)
    traced = create_feature_extractor(model, {names[-1]: "classes"}).eval()
    batch = noise(1, *net.window.input_shape(net.preprocessing.crop if name in ("vgg_m", "slow_fusion") else 32))
    assert torch.equal(traced(batch)["classes"], model(batch))


@pytest.mark.parametrize("name", NETS)
def test_first_weights_neither_explode_nor_vanish(name: str, slow_fusion: nn.Module) -> None:
    net = NETS[name]
    model = slow_fusion if name == "slow_fusion" else built(name)
    size = net.preprocessing.crop if name in ("vgg_m", "slow_fusion") else 64
    classes = model(noise(2, *net.window.input_shape(size)))
    assert 0.01 < classes.std() < 3


def test_r2d_reads_a_clip_as_channels_so_that_order_counts() -> None:
    model = built("r2d_18", Window("clip", 4, 4))
    stem = model.get_submodule("stem.1")
    assert isinstance(stem, nn.Conv3d)
    assert (stem.in_channels, stem.kernel_size, stem.stride) == (12, (1, 7, 7), (1, 2, 2))
    clip = noise(1, 3, 4, 32, 32)
    assert not torch.allclose(model(clip), model(clip.flip(2)), atol=1e-3)
    # The first layer against a plain 2-D convolution over colour by colour, frame by frame.
    expected = functional.conv2d(clip.reshape(1, 12, 32, 32), stem.weight.squeeze(2), stride=2, padding=3)
    torch.testing.assert_close(stem(model.get_submodule("stem.0")(clip)).squeeze(2), expected)
    maps = create_feature_extractor(model, {"layer1": "first", "layer4": "last"}).eval()(clip)
    assert maps["first"].shape == (1, 64, 1, 16, 16)  # nothing is pooled after the stem
    assert maps["last"].shape == (1, 512, 1, 2, 2)


def test_fr2d_is_the_mean_over_frames_each_alone() -> None:
    model = built("fr2d_18")
    clip = noise(2, 3, 5, 32, 32)
    alone = torch.stack([embedding(model, frame.unsqueeze(2)) for frame in clip.unbind(2)])
    torch.testing.assert_close(embedding(model, clip), alone.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(embedding(model, clip.flip(2)), embedding(model, clip), atol=1e-5, rtol=1e-4)


def test_rmc3_sees_time_from_its_second_group_on() -> None:
    model = built("rmc3_18")
    clip = noise(1, 3, 8, 32, 32)
    maps = create_feature_extractor(model, {"layer1": "first", "layer2": "second", "layer4": "last"}).eval()
    seen = maps(clip)
    assert [seen[key].shape[2] for key in ("first", "second", "last")] == [8, 4, 1]
    changed = clip.clone()
    changed[:, :, 5] += 1
    other = maps(changed)
    unlike = (seen["first"] != other["first"]).flatten(3).any(3).any(1)[0]
    assert unlike.tolist() == [frame == 5 for frame in range(8)]
    assert (seen["second"] != other["second"]).flatten(3).any(3).any(1)[0].all()
    assert not torch.allclose(embedding(model, clip), embedding(model, clip.flip(2)), atol=1e-4)


def test_vgg_m_is_chatfields_on_a_stack_of_grey_frames() -> None:
    model = built("vgg_m")
    stack = noise(1, 5, 112, 112)
    sizes = {}
    value = stack
    for number, layer in enumerate(model.get_submodule("features").children()):
        value = layer(value)
        sizes[number] = tuple(value.shape[1:])
    assert [sizes[number] for number in (0, 3, 4, 7, 8, 10, 12, 14)] == [
        (96, 53, 53),
        (96, 26, 26),
        (256, 12, 12),
        (256, 6, 6),
        (512, 6, 6),
        (512, 6, 6),
        (512, 6, 6),
        (512, 3, 3),
    ]
    assert torch.equal(model.get_submodule("avgpool")(value), value)
    convolutions = 96 * (5 * 49 + 1) + 256 * (96 * 25 + 1) + 512 * (256 * 9 + 1) + 2 * 512 * (512 * 9 + 1)
    assert parameters_of(model) == convolutions + 512 * (4608 + 1) + 400 * (512 + 1)
    assert embedding(model, stack).min() >= 0  # after the ReLU


def test_responses_are_normalised_as_by_krizhevsky(slow_fusion: nn.Module) -> None:
    """torch's own divides α by the five channels, as Caffe does."""
    norm, value = built("vgg_m").get_submodule("features.2"), 50 * noise(2, 7, 3, 3)
    torch.testing.assert_close(norm(value), functional.local_response_norm(value, 5, alpha=5e-4, beta=0.75, k=2))
    norm, value = slow_fusion.get_submodule("fovea.2"), 50 * noise(2, 7, 2, 3, 3)
    torch.testing.assert_close(norm(value), functional.local_response_norm(value, 5, alpha=5e-4, beta=0.5, k=2))
    squares = value[:, 1:6].square().sum(1)
    torch.testing.assert_close(norm(value)[:, 3], value[:, 3] / (2 + 1e-4 * squares) ** 0.5)


@pytest.mark.parametrize("name", NETS)
def test_half_precision_is_near(name: str, slow_fusion: nn.Module) -> None:
    net = NETS[name]
    model = slow_fusion if name == "slow_fusion" else built(name)
    batch = noise(1, *net.window.input_shape(net.preprocessing.crop if name in ("vgg_m", "slow_fusion") else 32))
    exact, near = model(batch), copy.deepcopy(model).bfloat16()(batch.bfloat16()).float()
    assert (near - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(
    ("window", "channels"), [(Window(), 3), (Window("stack", 3), 9), (Window("flow", 10), 20), (Window("stack", 5), 15)]
)
def test_vgg_m_takes_the_channels_of_its_window(window: Window, channels: int) -> None:
    model = built("vgg_m", window)
    assert model(noise(1, channels, 64, 64)).shape == (1, 400)  # other sizes are pooled to the same


def test_slow_fusion_turns_ten_frames_into_four_two_and_one_step(slow_fusion: nn.Module) -> None:
    value = noise(1, 3, 10, 89, 89)
    shapes = []
    for layer in slow_fusion.get_submodule("fovea").children():
        value = layer(value)
        if isinstance(layer, nn.Conv3d):
            shapes.append(tuple(value.shape[1:]))
            last = value
    assert shapes == [(96, 4, 27, 27), (256, 2, 14, 14), (384, 1, 7, 7), (384, 1, 7, 7), (256, 1, 7, 7)]
    assert torch.equal(functional.relu(last), value)
    stream = 96 * (3 * 4 * 121 + 1) + 256 * (96 * 2 * 25 + 1) + 384 * (256 * 2 * 9 + 1)
    stream += 384 * (384 * 9 + 1) + 256 * (384 * 9 + 1)
    assert parameters_of(slow_fusion) == 2 * stream + 4096 * (2 * 256 * 49 + 1) + 4096 * 4097 + 400 * 4097


def test_slow_fusion_sees_the_whole_at_half_resolution_and_its_centre_at_full(slow_fusion: nn.Module) -> None:
    clip = noise(1, 3, 10, 178, 178)
    halved = clip.unflatten(3, (89, 2)).unflatten(5, (89, 2)).mean((4, 6))
    centre = clip[..., 44:133, 44:133]
    streams = [slow_fusion.get_submodule("context")(halved), slow_fusion.get_submodule("fovea")(centre)]
    expected = torch.cat([stream.flatten(1) for stream in streams], dim=1)
    fc6, fc7 = (slow_fusion.get_submodule(name) for name in ("fc6", "fc7"))
    torch.testing.assert_close(
        embedding(slow_fusion, clip), functional.relu(fc7(functional.relu(fc6(expected)))), atol=1e-5, rtol=1e-4
    )


def test_slow_fusion_takes_ten_frames_and_no_others() -> None:
    with pytest.raises(UserError, match="fuses 10 frames, not 16; give --clip-length 10"):
        NETS["slow_fusion"].build(Window("clip", 16, 8))


@pytest.mark.parametrize("name", NETS)
def test_a_nets_own_window_is_one_that_it_can_see(name: str) -> None:
    net = NETS[name]
    assert net.window.kind in net.kinds
    assert net.preprocessing.preset == name
    assert "http" in net.source
