"""What is written, what it lets train, and what stays as it was after real steps of an optimiser."""

import pytest
import torch
from torch import nn

from pipeline.backbone import Backbone, load_backbone
from pipeline.blocks import blocks_of
from pipeline.errors import UserError
from pipeline.unfreezing import Unfreezing, freeze, groups_of, read_unfreezing

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return load_backbone("resnet18", weights="random", image_size=64)


@pytest.fixture(scope="module")
def squeezenet() -> Backbone:
    return load_backbone("squeezenet1_1", weights="random", image_size=64)


def read(text: str, backbone: Backbone, batch_norm: bool = False) -> Unfreezing:
    return read_unfreezing(text, backbone, batch_norm=batch_norm)


def test_a_count_names_the_last_blocks(resnet: Backbone) -> None:
    assert read("1", resnet).stages == ((0, ("layer4.1",)),)
    assert read(" 3 ", resnet).stages == ((0, ("layer3.1", "layer4.0", "layer4.1")),)
    assert read("9", resnet).names == read("all", resnet).names == tuple(blocks_of(resnet))


def test_a_count_takes_lone_norms_along() -> None:
    backbone = load_backbone("densenet121", weights="random", image_size=64)
    assert read("1", backbone).names == ("features.denseblock4", "features.norm5")


def test_names_may_be_modules_parameters_and_nodes(resnet: Backbone, squeezenet: Backbone) -> None:
    assert read("layer3, layer4", resnet).names == ("layer3", "layer4")
    assert read("layer4.1.conv2,layer4.0.conv1.weight", resnet).names == ("layer4.1.conv2", "layer4.0.conv1.weight")
    assert read("layer4.1.add", resnet).names == ("layer4.1",)
    assert read("features.12.cat,features.12", squeezenet).names == ("features.12",)


def test_a_schedule_adds_up(resnet: Backbone) -> None:
    unfreezing = read("0:head,2:layer4,5:layer3+layer2,6:5,7:all", resnet)
    assert unfreezing.stages[:3] == ((0, ()), (2, ("layer4",)), (5, ("layer3", "layer2")))
    assert [unfreezing.names_at(epoch) for epoch in range(6)] == [
        *([()] * 2),
        *([("layer4",)] * 3),
        ("layer4", "layer3", "layer2"),
    ]
    assert unfreezing.names_at(6)[3:] == ("layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1")
    assert set(blocks_of(resnet)) <= set(unfreezing.names)
    assert len(set(unfreezing.names)) == len(unfreezing.names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layr4", r"nothing named 'layr4' with .* up to the layer flatten \(did you mean layer4.*layer4.0, layer4.1$"),
        ("fc", r"nothing named 'fc' with parameters up to the layer flatten"),
        ("layer4.1.relu", r"nothing named 'layer4.1.relu' with parameters"),
        ("flatten", r"nothing named 'flatten' with parameters"),
        ("layer4,", r"nothing named '' with parameters"),
        ("0", r"0 blocks of resnet18 cannot train: up to the layer flatten there are 9, so give 1 to 9, or all"),
        ("10", r"10 blocks of resnet18 cannot train"),
        ("0:head,2:layer4,2:layer3", r"are 0, 2, 2; they count the epochs that have passed, so they begin with 0 and"),
        ("0:head,3:layer4,2:layer3", r"are 0, 3, 2;"),
        ("2:layer4", r"the epochs of the unfreezing '2:layer4' are 2;"),
        (
            "0:layer4,layer3",
            r"'layer3' of the unfreezing '0:layer4,layer3' is not EPOCH:NAMES; a schedule is written like",
        ),
        ("x:layer4", r"'x:layer4' of the unfreezing .* is not EPOCH:NAMES"),
        ("head", r"with the unfreezing 'head' nothing of the backbone ever trains; .* use train-head"),
        ("0:head", r"nothing of the backbone ever trains"),
        ("layer4.1.bn2", r"ever trains: it names BatchNorm alone, which stays frozen without --train-batch-norm"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(resnet: Backbone, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(text, resnet)
    assert "\n" not in str(error.value)


def test_batch_norm_alone_trains_when_asked_for(resnet: Backbone) -> None:
    assert read("layer4.1.bn2", resnet, batch_norm=True).names == ("layer4.1.bn2",)


def net_of(name: str) -> nn.Module:
    return load_backbone(name, weights="random", image_size=64).module.net


@pytest.mark.parametrize("batch_norm", [False, True])
def test_only_what_is_named_changes_in_training(batch_norm: bool) -> None:
    """Real steps of an optimiser with decay over all parameters: the rest keeps every bit, statistics included."""
    net = net_of("resnet18")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    freeze(net, ["layer4.1", "layer3.0.conv2.weight"], batch_norm=batch_norm, training=True)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(2):
        images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        net(images)["features"].square().mean().backward()
        optimiser.step()
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    expected = {"layer4.1.conv1.weight", "layer4.1.conv2.weight", "layer3.0.conv2.weight"}
    if batch_norm:
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        expected |= {f"layer4.1.bn{number}.{kind}" for number in (1, 2) for kind in kinds}
    assert changed == expected


def test_everything_else_is_in_evaluation_mode_dropout_included() -> None:
    net = load_backbone("alexnet", weights="random").module.net  # classifier: Dropout, Linear, ReLU, Dropout, Linear
    freeze(net, ["classifier.4"], batch_norm=False, training=True)
    assert [name for name, module in net.named_modules() if module.training] == ["classifier.4"]
    freeze(net, ["classifier"], batch_norm=False, training=True)
    assert net.get_submodule("classifier.3").training  # Dropout
    freeze(net, ["classifier"], batch_norm=False, training=False)
    assert not any(module.training for module in net.modules())
    assert net.get_parameter("classifier.1.weight").requires_grad
    freeze(net, [], batch_norm=False, training=True)
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_groups_have_the_rates_of_their_depths(resnet: Backbone) -> None:
    net = resnet.module.net
    groups = groups_of(net, blocks_of(resnet), read("3", resnet), rate=0.01, decay=0.5)
    assert [(group.name, group.rate, group.epoch) for group in groups] == [
        ("layer4.1", 0.01, 0),
        ("layer4.0", 0.005, 0),
        ("layer3.1", 0.0025, 0),
    ]
    assert groups[0].parameters == ("layer4.1.conv1.weight", "layer4.1.conv2.weight")
    counts = [2 * 512 * 512 * 9, 512 * (256 + 512) * 9 + 256 * 512, 2 * 256 * 256 * 9]
    assert [group.count for group in groups] == counts


def test_the_deepest_block_that_trains_has_the_whole_rate_however_deep_it_lies(resnet: Backbone) -> None:
    unfreezing = read("0:layer3.0.conv1+layer1,4:layer3", resnet)
    groups = groups_of(resnet.module.net, blocks_of(resnet), unfreezing, rate=1.0, decay=0.5)
    assert [(group.name, group.rate, group.epoch) for group in groups] == [
        ("layer3.1", 1.0, 4),
        ("layer3.0", 0.5, 0),
        ("layer3.0", 0.5, 4),
        ("layer1.1", 2.0**-4, 0),
        ("layer1.0", 2.0**-5, 0),
    ]
    assert groups[1].parameters == ("layer3.0.conv1.weight",)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_groups_hold_all_that_trains_once(resnet: Backbone, batch_norm: bool) -> None:
    unfreezing = read("0:head,1:2,3:all", resnet, batch_norm=batch_norm)
    groups = groups_of(resnet.module.net, blocks_of(resnet), unfreezing, rate=1e-3, decay=0.9)
    listed = [name for group in groups for name in group.parameters]
    net = net_of("resnet18")
    freeze(net, unfreezing.names, batch_norm=batch_norm, training=True)
    assert sorted(listed) == sorted(name for name, parameter in net.named_parameters() if parameter.requires_grad)
    assert ("bn1.weight" in listed) == batch_norm
    assert {group.name: group.rate for group in groups}["conv1"] == pytest.approx(1e-3 * 0.9**8)
    for epoch in range(4):
        freeze(net, unfreezing.names_at(epoch), batch_norm=batch_norm, training=True)
        now = {name for group in groups if group.epoch <= epoch for name in group.parameters}
        assert now == {name for name, parameter in net.named_parameters() if parameter.requires_grad}
