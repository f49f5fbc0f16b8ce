"""The blocks that are found, against what a person would call them; and that nothing is forgotten or counted twice."""

from itertools import pairwise

import pytest
import torchvision
from torchvision.models import get_model, list_models

from pipeline.backbone import Backbone, load_backbone
from pipeline.blocks import blocks_of, depths_of, within
from pipeline.torchvision_networks import OPTIONS

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LAST = {  # of some models the last blocks, with the depth of each counted from the end
    "resnet18": [("layer3.1", 2), ("layer4.0", 1), ("layer4.1", 0)],
    "squeezenet1_1": [("features.10", 2), ("features.11", 1), ("features.12", 0)],
    "mobilenet_v2": [("features.16", 2), ("features.17", 1), ("features.18", 0)],
    "mobilenet_v3_small": [("features.11", 2), ("features.12", 1), ("classifier.0", 0)],
    "googlenet": [("inception4e", 2), ("inception5a", 1), ("inception5b", 0)],
    "densenet121": [("features.transition3", 1), ("features.denseblock4", 0), ("features.norm5", 0)],
    "regnet_y_400mf": [("trunk_output.block4.block4-4", 1), ("trunk_output.block4.block4-5", 0)],
    "shufflenet_v2_x0_5": [("stage4.3", 1), ("conv5.0", 0), ("conv5.1", 0)],
}
LAST_OF_LARGE = {
    "resnet50": [("layer4.1", 1), ("layer4.2", 0)],
    "alexnet": [("features.10", 2), ("classifier.1", 1), ("classifier.4", 0)],
    "vgg16": [("features.28", 2), ("classifier.0", 1), ("classifier.3", 0)],
    "efficientnet_b0": [("features.7.0", 1), ("features.8", 0)],
    "convnext_tiny": [("features.7.1", 1), ("features.7.2", 0), ("classifier.0", 0)],
    "swin_t": [("features.7.0", 1), ("features.7.1", 0), ("norm", 0)],
    "inception_v3": [("Mixed_7b", 1), ("Mixed_7c", 0)],
    "vit_b_16": [("encoder.layers.encoder_layer_10", 1), ("encoder.layers.encoder_layer_11", 0), ("encoder.ln", 0)],
}


def small(name: str, layer: str | None = None) -> Backbone:
    """A backbone for small images where it takes them."""
    large = name.startswith(("vit_", "maxvit_", "alexnet"))
    preset = "IMAGENET1K_SWAG_LINEAR_V1" if name == "vit_h_14" else None
    size = None if large else 75 if name == "inception_v3" else 64
    return load_backbone(name, weights="random", layer=layer, image_size=size, preset=preset)


def check(backbone: Backbone, last: list[tuple[str, int]]) -> None:
    net = backbone.module.net
    blocks = blocks_of(backbone)
    depths = depths_of(net, blocks)
    for name, _ in net.named_parameters():
        assert sum(within(name, [block]) for block in blocks) == 1, name
    assert depths[0] == 1
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(depths))
    from_the_end = [(block, depths[-1] - depth) for block, depth in zip(blocks, depths, strict=True)]
    assert from_the_end[len(blocks) - len(last) :] == last
    # In order of execution: torchvision's models own their parts in that order, but for parameters held directly.
    model = get_model(backbone.name, weights=None, **OPTIONS.get(backbone.name, {}))
    modules = [name for name, _ in model.named_modules()]
    held = [block for block in blocks if block in modules]
    assert held == sorted(held, key=modules.index)


@pytest.mark.parametrize("name", LAST)
def test_blocks_are_what_a_person_would_name(name: str) -> None:
    check(small(name), LAST[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models(module=torchvision.models))
def test_blocks_of_every_torchvision_model(name: str) -> None:
    check(small(name), LAST.get(name) or LAST_OF_LARGE.get(name) or [])


def test_parameters_that_no_block_holds_are_blocks_and_go_with_the_one_before() -> None:
    backbone = small("vit_b_32")
    blocks = blocks_of(backbone)
    assert blocks[:4] == ["conv_proj", "class_token", "encoder.pos_embedding", "encoder.layers.encoder_layer_0"]
    assert depths_of(backbone.module.net, blocks)[:4] == [1, 1, 1, 2]


def test_blocks_end_with_the_layer() -> None:
    assert blocks_of(small("resnet18", layer="layer3"))[-1] == "layer3.1"
    assert blocks_of(small("squeezenet1_1", layer="features.7.squeeze"))[-1] == "features.7"


def test_within_takes_whole_names() -> None:
    assert within("layer4.1.conv1", ["layer4.1"])
    assert within("layer4.1", ["conv1", "layer4.1"])
    assert not within("layer4.10.conv1", ["layer4.1"])
    assert not within("layer4", ["layer4.1"])
