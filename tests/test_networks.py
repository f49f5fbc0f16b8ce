"""Names of networks, weights, presets and windows: which go together, and words for all that do not."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.networks import (
    build,
    categories,
    choose_preset,
    image_networks,
    named_weights,
    presets,
    video_networks,
    window_of,
)
from pipeline.video_nets import NETS
from pipeline.windows import FRAME, Window


def test_which_preset_goes_with_which_weights() -> None:
    assert choose_preset("resnet50").preset == "IMAGENET1K_V2"
    assert choose_preset("resnet50", "ResNet50_Weights.IMAGENET1K_V1").resize == 256
    assert choose_preset("resnet50", "IMAGENET1K_V1", preset="IMAGENET1K_V1").resize == 256
    assert choose_preset("resnet50", "random").resize == 232
    assert choose_preset("resnet50", "random", preset="IMAGENET1K_V1").resize == 256
    assert choose_preset("resnet50", "mine.pth", preset="DEFAULT").resize == 232
    assert choose_preset("squeezenet1_1", "mine.pth").resize == 256  # only one: none need be named
    with pytest.raises(UserError, match="bring their own preprocessing"):
        choose_preset("resnet50", "IMAGENET1K_V2", preset="IMAGENET1K_V1")
    with pytest.raises(UserError, match=r"no preset 'imagenet1k_v3' \(did you mean IMAGENET1K_V[12], or"):
        choose_preset("resnet50", "mine.pth", preset="imagenet1k_v3")


def test_a_file_takes_the_classic_preset_or_needs_one_named() -> None:
    assert choose_preset("mobilenet_v2", "mine.pth").preset == "IMAGENET1K_V1"
    assert choose_preset("mobilenet_v2", "mine.pth", preset="IMAGENET1K_V2").resize == 232
    with pytest.raises(UserError) as error:
        choose_preset("vit_h_14", "mine.pth")
    assert "IMAGENET1K_SWAG_E2E_V1 (resize 518" in str(error.value)
    assert "IMAGENET1K_SWAG_LINEAR_V1 (resize 224" in str(error.value)
    assert "--preset NAME" in str(error.value)


def test_names_weights_and_files_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEFAULT", "IMAGENET1K_V2", "ResNet50_Weights.DEFAULT"):
        entry = named_weights("resnet50", name)
        assert entry is not None
        assert entry.name == "IMAGENET1K_V2"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").touch()
    for other in ("random", "new.safetensors", "./DEFAULT", "folder/weights", "plain"):
        assert named_weights("resnet50", other) is None
    with pytest.raises(UserError, match=r"no weights 'default' \(did you mean DEFAULT\?\).*IMAGENET1K_V1.*random"):
        named_weights("resnet50", "default")
    with pytest.raises(UserError, match=r"unknown backbone 'resnet5' \(did you mean resnet50"):
        named_weights("resnet5", "DEFAULT")
    with pytest.raises(UserError, match="unknown backbone 'fcn_resnet50'"):  # segments, does not classify
        presets("fcn_resnet50")


def test_our_own_networks_have_a_preset_and_no_weights() -> None:
    for name, net in NETS.items():
        assert presets(name) == {name: net.preprocessing}
        for weights in ("random", "mine.pth"):
            assert choose_preset(name, weights) == net.preprocessing
        assert choose_preset(name, "mine.pth", preset=name, image_size=net.preprocessing.crop) == net.preprocessing
    with pytest.raises(UserError, match="nobody publishes weights for r2d_18; --weights takes random"):
        named_weights("r2d_18", "DEFAULT")
    with pytest.raises(UserError, match="r2d_18 has no preset 'DEFAULT'; --preset takes r2d_18"):
        choose_preset("r2d_18", "random", preset="DEFAULT")
    with pytest.raises(UserError, match=r"unknown backbone 'r2d18' \(did you mean r2d_18"):
        presets("r2d18")


def test_every_network_says_what_it_sees() -> None:
    assert all(window_of(name) == FRAME for name in image_networks())
    own = {name: window_of(name) for name in [*video_networks(), *NETS]}
    assert own["r2plus1d_18"] == own["mvit_v2_s"] == Window("clip", 16, 8)
    assert own["swin3d_b"] == Window("clip", 32, 16)
    assert own["s3d"] == Window("clip", 64, 32)
    assert own["vgg_m"] == Window("stack", 5, grey=True)
    for asked in (Window("stack", 3), Window("flow", 10)):
        assert window_of("resnet18", asked) == window_of("vgg_m", asked) == asked
    clip = Window("clip", 20, 3)
    assert window_of("resnet18", clip, inflate=True) == window_of("r3d_18", clip) == clip


@pytest.mark.parametrize(
    ("name", "window", "inflate", "message"),
    [
        (
            "resnet18",
            Window("clip", 16, 8),
            False,
            "resnet18 sees single images.*--inflate, or a video network such",
        ),
        ("resnet18", None, True, "an inflated network sees clips; give their length"),
        ("resnet18", Window("stack", 5), True, "an inflated network sees clips"),
        ("r3d_18", Window("clip", 16), True, "r3d_18 is not an image network of torchvision's"),
        (
            "r3d_18",
            FRAME,
            False,
            "r3d_18 sees a clip, not a frame; leave --frame out, or give --clip-length 16 instead",
        ),
        (
            "swin3d_t",
            Window("flow", 10),
            False,
            "swin3d_t sees a clip, not a flow; leave --flow out, or give --clip-length 32",
        ),
        (
            "vgg_m",
            Window("clip", 5),
            False,
            "vgg_m sees a frame or stack or flow, not a clip; leave --clip-length out, or give --stack 5",
        ),
        ("s3d", Window("clip", 13), False, "s3d takes clips of at least 14 frames, not of 13"),
        ("mvit_v1_b", Window("clip", 17), False, "mvit_v1_b takes clips of 16 frames only, not of 17"),
        ("resnet5000", None, False, "unknown backbone 'resnet5000'"),
    ],
)
def test_windows_that_do_not_go_with_a_network(name: str, window: Window | None, inflate: bool, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        window_of(name, window, inflate=inflate)
    assert "\n" not in str(error.value)


def test_inputs_that_a_network_transforms_itself_are_so_of_single_frames_alone() -> None:
    frame, stack = (choose_preset("googlenet", "random", window=window) for window in (FRAME, Window("stack", 5)))
    assert (frame.mean, frame.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (stack.mean, stack.std) == ((0.5,) * 3, (0.5,) * 3)
    assert build("googlenet", FRAME, frame, seed=0).transform_input
    assert not build("googlenet", Window("stack", 5), stack, seed=0).transform_input


def test_classes_of_a_networks_own_classifier() -> None:
    kinetics = categories("r2plus1d_18", "KINETICS400_V1", 400)
    assert kinetics is not None
    assert (len(kinetics), kinetics[0]) == (400, "abseiling")
    assert categories("r2plus1d_18", "mine.pth", 400) == kinetics
    assert categories("r2plus1d_18", "mine.pth", 12) is None
    assert categories("r2plus1d_18", "random", 400) is None
    assert categories("r2d_18", "mine.pth", 400) is None
    assert categories("resnet50", "IMAGENET1K_V2", 1000) == categories("resnet18", "folder/resnet18", 1000)
