"""timm's networks against timm itself: its transforms, `forward_features` and `forward_head` in plain torch.

The networks are timm's own with random weights, so nothing is downloaded; where weights are published, a cache of the
Hugging Face hub is laid out here as the hub's own library does it.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.backbone import load_backbone
from pipeline.bank import Bank
from pipeline.blocks import blocks_of
from pipeline.encoder import placed
from pipeline.errors import UserError
from pipeline.halves import named_state, split
from pipeline.networks import categories, choose_preset, presets, window_of
from pipeline.preprocessing import normalise, prepare
from pipeline.windows import Window
from tests.clips import make_clip, plain
from tests.commands import framebank, said
from tests.test_folding import random_statistics

timm = pytest.importorskip("timm", reason="needs timm, an extra: pip install 'framebank[timm]'")

VIT, MOBILE, BLUR = "timm/vit_tiny_patch16_224", "timm/mobilenetv3_small_050", "timm/resnetblur18"
SIZES = {VIT: 64, "timm/test_vit": 96, MOBILE: 64, BLUR: 64}
TINY = "timm/test_vit.r160_in1k"  # of 0.4 million parameters

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def seeded(name: str, size: int | None = None, seed: int = 0, **options: Any) -> Any:
    """timm's own model, initialised after a seed."""
    torch.manual_seed(seed)
    model = timm.create_model(name.removeprefix("timm/"), pretrained=False, **options).eval()
    if size is not None and hasattr(model, "set_input_size"):
        model.set_input_size(img_size=size)
    return model


@torch.no_grad()
def pre_logits(model: Any, images: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(images), pre_logits=True)


def noise(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [MOBILE, BLUR, "timm/test_vit", "timm/test_convnext", "timm/test_byobnet"])
def test_the_default_layer_is_what_timm_calls_pre_logits(name: str) -> None:
    size = SIZES.get(name, 96)
    backbone = load_backbone(name, weights="random", seed=3, image_size=size)
    model = seeded(name, size, seed=3)
    assert backbone.name == name
    assert backbone.feature_shape == (getattr(model, "head_hidden_size", None) or model.num_features,)
    assert not backbone.whole
    expected = pre_logits(model, noise(size))
    torch.testing.assert_close(backbone.module(noise(size)), expected, rtol=1e-5, atol=1e-6)
    logits = load_backbone(name, weights="random", seed=3, image_size=size, layer="output")
    with torch.no_grad():
        torch.testing.assert_close(logits.module(noise(size)), model(noise(size)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [pytest.param(VIT, marks=pytest.mark.slow), "timm/test_vit", MOBILE, BLUR])
def test_a_bank_holds_what_timms_own_transforms_and_model_give(name: str, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "data" / "clip.mp4", frames=9, size=(112, 80))
    options = ["--backbone", name, "--weights", "random", "--image-size", SIZES[name]]
    options += ["--precision", "fp32", "--store", "float32", "--device", "cpu"]
    result = framebank("extract", tmp_path / "data", "--out", tmp_path / "bank.h5", *options)
    assert result.exit_code == 0, result.output
    model = seeded(name, SIZES[name])
    shown = timm.data.resolve_model_data_config(model) | {"input_size": (3, SIZES[name], SIZES[name])}
    transform = timm.data.create_transform(**shown, is_training=False)
    images = torch.stack([transform(Image.fromarray(frame)) for frame in plain(clip)])
    expected = pre_logits(model, images).numpy()
    with Bank(tmp_path / "bank.h5") as bank:
        rows = bank["clip.mp4"] if "clip.mp4" in bank else bank["clip"]
        assert bank.config["recipe"]["backbone"] == name
    # One to three pixels in a thousand differ by one level of 256, and BatchNorm is folded.
    error = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 2e-3
    assert error.max() < 0.2 * np.linalg.norm(expected[0] - expected[-1]) / np.linalg.norm(expected[0])


@pytest.mark.parametrize(
    "name",
    [
        "timm/vit_small_patch14_dinov2.lvd142m",
        "timm/vit_base_patch16_clip_224.openai",
        "timm/vit_base_patch16_siglip_224.webli",
        "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k",  # squashed
        "timm/resnet50.a1_in1k",
    ],
)
@pytest.mark.parametrize("size", [(320, 240), (150, 260)])
def test_frames_are_prepared_as_the_weights_own_configuration_says(name: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    frame = np.asarray(small.resize(size, Image.Resampling.BICUBIC))
    (preprocessing,) = presets(name).values()
    config = timm.models.get_pretrained_cfg(name.removeprefix("timm/")).to_dict()
    shown = timm.data.resolve_data_config({}, pretrained_cfg=config)
    wanted = timm.data.create_transform(**shown, is_training=False)(Image.fromarray(frame))
    got = normalise(preprocessing, prepare(preprocessing, frame)[None])[0]
    assert got.shape == wanted.shape
    level = 1.01 / 255 / torch.tensor(shown["std"])[:, None, None]
    differing = (got - wanted).abs()
    assert (differing <= 2 * level).all()
    assert (differing > 1e-5).float().mean() < 0.01
    assert preprocessing.preset == name.partition(".")[2]


def test_images_that_cannot_be_prepared_alike_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import timm_networks

    config = timm.models.get_pretrained_cfg("test_vit.r160_in1k")
    for field, value, words in (
        ("crop_mode", "border", "the crop mode border"),
        ("interpolation", "lanczos", "the interpolation lanczos"),
        ("input_size", (3, 160, 96), "images of 96×160"),
        ("input_size", (1, 160, 160), "1 channels"),
    ):
        odd = timm.models.PretrainedCfg(**{**config.to_dict(), field: value})
        monkeypatch.setattr(timm_networks, "_configs", lambda _, odd=odd: {"odd": odd})
        with pytest.raises(UserError, match=f"timm/test_vit.odd wants {words}, which framebank does not prepare"):
            load_backbone("timm/test_vit", weights="random")


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch, repository: str, state: dict[str, Tensor]) -> Path:
    """A cache of the Hugging Face hub that holds one file. Returns the file by which the hub stores it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = folder / f"models--{repository.replace('/', '--')}"
    blob = place / "blobs" / "file"
    blob.parent.mkdir(parents=True)
    save_file(state, blob)
    blob = blob.rename(blob.with_name(hashlib.sha256(blob.read_bytes()).hexdigest()))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    return blob


def test_published_weights_come_from_timms_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(TINY, seed=7)
    blob = cached(tmp_path / "hub", monkeypatch, "timm/test_vit.r160_in1k", model.state_dict())
    by_tag = load_backbone(TINY)
    by_weights = load_backbone("timm/test_vit", weights="r160_in1k")
    by_default = load_backbone("timm/test_vit")
    for backbone in (by_tag, by_weights, by_default):
        assert (backbone.name, backbone.weights) == ("timm/test_vit", "r160_in1k")
        assert backbone.preprocessing.preset == "r160_in1k"
        torch.testing.assert_close(backbone.module(noise(160)), pre_logits(model, noise(160)), rtol=1e-5, atol=1e-6)
    assert by_tag.sha256 == by_weights.sha256 == by_default.sha256
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"model.safetensors is damaged \(its SHA-256 is"):
        load_backbone(TINY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(
        UserError, match=r"cannot download model.safetensors.*hf download timm/test_vit.r160_in1k"
    ) as no:
        load_backbone(TINY)
    assert str(tmp_path / "empty") in str(no.value)
    assert "--weights FILE --preset r160_in1k" in str(no.value)
    assert "\n" not in str(no.value)


def test_position_embeddings_are_resampled_to_another_image_size_as_timm_does_it(tmp_path: Path) -> None:
    state = seeded(TINY, seed=5).state_dict()
    save_file(state, tmp_path / "tiny.safetensors")
    backbone = load_backbone(TINY, weights=str(tmp_path / "tiny.safetensors"), image_size=96)
    overlay = {"state_dict": dict(state)}
    model = timm.create_model("test_vit.r160_in1k", pretrained=True, pretrained_cfg_overlay=overlay, img_size=96).eval()
    torch.testing.assert_close(backbone.module(noise(96)), pre_logits(model, noise(96)), rtol=1e-4, atol=1e-5)
    own = tmp_path / "own.safetensors"  # as fine-tuning at that size writes it
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, own)
    assert load_backbone(TINY, weights=str(own), image_size=96).weights == "file:own.safetensors"
    with pytest.raises(UserError, match="timm/test_vit does not take 90×90 images"):
        load_backbone(TINY, weights="random", image_size=90)


def test_files_that_name_tensors_as_others_do_are_translated_by_timm(tmp_path: Path) -> None:
    model = seeded(TINY, seed=2)
    foreign = {f"visual.trunk.{key}": tensor for key, tensor in model.state_dict().items()}  # as open_clip has it
    save_file(foreign | {"logit_scale": torch.ones(1)}, tmp_path / "foreign.safetensors")
    backbone = load_backbone(TINY, weights=str(tmp_path / "foreign.safetensors"))
    torch.testing.assert_close(backbone.module(noise(160)), pre_logits(model, noise(160)), rtol=1e-5, atol=1e-5)
    save_file({"strange.weight": torch.zeros(2)}, tmp_path / "strange.safetensors")
    with pytest.raises(UserError, match=r"strange.safetensors does not fit timm/test_vit \(1 tensors in the file"):
        load_backbone(TINY, weights=str(tmp_path / "strange.safetensors"))


@pytest.mark.parametrize("name", [MOBILE, BLUR, "timm/test_nfnet"])
def test_folding_keeps_the_function_of_timms_norms_and_convolutions(name: str) -> None:
    backbone = load_backbone(name, weights="random", image_size=64)
    random_statistics(backbone.module)
    before = backbone.module(noise(64))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in backbone.module.modules())
    module = placed(backbone.module, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(module(noise(64)), before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    assert sum(isinstance(each, nn.BatchNorm2d) for each in module.modules()) < max(norms, 1)


@pytest.mark.parametrize("name", ["timm/test_vit", MOBILE])
def test_a_network_is_divided_for_fine_tuning(name: str) -> None:
    backbone = load_backbone(name, weights="random", image_size=64)
    blocks = blocks_of(backbone)
    assert any(block.startswith("blocks.") for block in blocks)
    whole = backbone.module(noise(64))
    halves = split(backbone, [next(block for block in reversed(blocks) if block.startswith("blocks."))])
    assert halves.prefix is not None
    assert 0 < halves.share < 1
    with torch.no_grad():
        torch.testing.assert_close(halves.suffix(halves.prefix.module(noise(64))), whole, rtol=1e-5, atol=1e-6)
    needed = {key.removeprefix("net.") for key in backbone.module.state_dict()}
    assert named_state(halves).keys() == needed


def test_layers_tokens_and_stacks() -> None:
    tokens = load_backbone(TINY, weights="random", image_size=64, layer="blocks.3")
    assert tokens.feature_shape == (64, 17, 1)  # a class token and 4×4 patches
    mean = load_backbone(TINY, weights="random", image_size=64, layer="blocks.3:mean")
    torch.testing.assert_close(mean.module(noise(64)), tokens.module(noise(64)).mean((2, 3)))
    stack = load_backbone(MOBILE, weights="random", image_size=64, window=Window("stack", 2))
    assert stack.module(torch.zeros(2, 6, 64, 64)).shape == (2, 1024)
    with pytest.raises(
        UserError, match="timm/mobilenetv3_small_050 sees single images, not clips; give a video network"
    ):
        window_of(MOBILE, Window("clip", 16, 8))
    with pytest.raises(UserError, match="is not an image network of torchvision's, which --inflate is for"):
        window_of(MOBILE, Window("clip", 16, 8), inflate=True)


def test_classes_of_timms_own_classifiers() -> None:
    names = categories(TINY, "DEFAULT", 1000)
    assert names is not None
    assert (len(names), names[0]) == (1000, "tench, Tinca tinca")
    assert categories("timm/vit_small_patch14_dinov2", "DEFAULT", 384) is None


def test_names_that_timm_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"timm \S+ has no network 'vit_tiny_patch16_225' \(did you mean vit_tiny_patch16"
    ):
        presets("timm/vit_tiny_patch16_225")
    with pytest.raises(UserError, match=r"timm/test_vit has no weights 'r160_in2k' \(did you mean r160_in1k"):
        presets("timm/test_vit.r160_in2k")
    with pytest.raises(UserError, match="timm/test_vit has no weights 'lvd142m'; --weights takes"):
        choose_preset(TINY, "lvd142m")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"backbones of timm need an extra: pip install 'framebank\[timm\]'"):
        presets(TINY)


def test_from_videos_to_a_fine_tuned_run(data: Path, tmp_path: Path) -> None:
    options = [
        "--backbone",
        "timm/test_vit",
        "--weights",
        "random",
        "--image-size",
        "64",
        "--precision",
        "fp32",
        "--store",
        "float32",
    ]
    first = framebank("extract", data, "--out", tmp_path / "bank.h5", *options)
    assert first.exit_code == 0, first.output
    assert said(first, "Backbone").startswith("timm/test_vit, layer ")
    again = framebank("extract", data, "--out", tmp_path / "bank.h5", *options)
    assert "nothing" in said(again, "To do")
    by_tag = ["--backbone", TINY, *options[2:]]
    assert "nothing" in said(framebank("extract", data, "--out", tmp_path / "bank.h5", *by_tag), "To do")
    other = framebank("extract", data, "--out", tmp_path / "bank.h5", *options, "--seed", "1")
    assert other.exit_code == 2
    assert "was made differently: weights_sha256" in other.output
    head = ["--epochs", "2", "--hidden", "4", "--group-column", "none"]
    trained = framebank("train-head", tmp_path / "bank.h5", "--out", tmp_path / "head", *head)
    assert trained.exit_code == 0, trained.output
    clip = next((data / "class0").iterdir())
    assert framebank("predict", tmp_path / "head", clip).exit_code == 0
    arguments = ["--head", tmp_path / "head", "--out", tmp_path / "tuned", "--epochs", "1", "--unfreeze", "1"]
    tuned = framebank("finetune", data, *arguments)
    assert tuned.exit_code == 0, tuned.output
    assert framebank("predict", tmp_path / "tuned", clip).exit_code == 0
    banked = framebank("extract", data, "--out", tmp_path / "tuned.h5", "--weights", tmp_path / "tuned")
    assert banked.exit_code == 0, banked.output
