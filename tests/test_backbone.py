"""Backbones against torchvision's own models: the right layer, the right tensors, and words for all that goes wrong."""

import hashlib
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights, get_model, get_model_weights, list_models

from pipeline.backbone import load_backbone
from pipeline.errors import UserError
from pipeline.preprocessing import normalise
from pipeline.torchvision_networks import OPTIONS

SQUEEZENET = "weights/squeezenet1_1-imagenet.pth"
MOBILENET = "weights/mobilenet_v2-imagenet.pth"


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def seeded(name: str, seed: int = 0, **options: object) -> nn.Module:
    """torchvision's own model, initialised after a seed."""
    torch.manual_seed(seed)
    return get_model(name, weights=None, **options).eval()


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def input_of(model: nn.Module, module: nn.Module, batch: Tensor) -> Tensor:
    """What a module within a model gets: the independent reference for "the input of the last Linear"."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(batch)
    handle.remove()
    return seen[0]


@torch.no_grad()
def check_default_layer(name: str, size: int, preset: str | None = None, **options: object) -> None:
    own = OPTIONS.get(name, {})
    backbone = load_backbone(name, weights="random", preset=preset, image_size=size)
    model = seeded(name, **own, **options)
    batch = images(size)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if linears:
        expected = input_of(model, linears[-1], batch)
        assert backbone.feature_shape == (linears[-1].in_features,)
    else:
        last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
        expected = input_of(model, last, batch).mean(dim=(2, 3))
        assert backbone.feature_shape == (last.in_channels,)
    features = backbone.module(batch)
    assert tuple(features.shape) == (2, *backbone.feature_shape)
    assert torch.equal(features, expected)
    assert not any(re.search(r"(^|\.)(aux\d|AuxLogits)\.", key) for key in backbone.module.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "googlenet", "mobilenet_v3_small"])
def test_default_layer_is_the_input_of_the_last_linear(name: str) -> None:
    check_default_layer(name, 64)


def smallest_size(name: str) -> int:
    if name.startswith(("vit_", "maxvit_")):
        return 224
    return 75 if name == "inception_v3" else 64


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models(module=torchvision.models))
def test_default_layer_of_every_torchvision_model(name: str) -> None:
    vit_h = {"preset": "IMAGENET1K_SWAG_LINEAR_V1"} if name == "vit_h_14" else {}
    check_default_layer(name, smallest_size(name), **vit_h)


def test_a_backbone_is_frozen_and_says_what_it_is() -> None:
    backbone = load_backbone("resnet18", weights="random", seed=3)
    assert (backbone.name, backbone.layer, backbone.weights) == ("resnet18", "flatten", "random (seed 3)")
    assert re.fullmatch("[0-9a-f]{64}", backbone.sha256)
    assert backbone.preprocessing.output_shape == (3, 224, 224)
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert not any(module.training for module in backbone.module.modules())
    assert "net.fc.weight" not in backbone.module.state_dict()
    batch = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    features = backbone.module(normalise(backbone.preprocessing, batch))
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_random_weights_follow_the_seed_and_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (load_backbone("squeezenet1_1", weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.sha256 == again.sha256 != other.sha256
    assert torch.equal(first.module(images(64)), again.module(images(64)))


def test_layers_by_node_by_module_and_averaged() -> None:
    model = seeded("resnet18")
    batch = images(64)
    with torch.no_grad():
        block = nn.Sequential(*list(model.children())[:8])(batch)
        logits = model(batch)
    for layer, expected in {
        "layer4": block,
        "layer4.1.relu_1": block,
        "layer4:mean": block.mean(dim=(2, 3)),
        "avgpool": block.mean(dim=(2, 3), keepdim=True),
        "fc": logits,
    }.items():
        backbone = load_backbone("resnet18", weights="random", layer=layer, image_size=64)
        assert backbone.layer == layer
        assert backbone.feature_shape == tuple(expected.shape[1:])
        torch.testing.assert_close(backbone.module(batch), expected)


def test_vgg_style_classifiers_stop_after_the_second_relu_and_can_give_the_map() -> None:
    batch = images(224, count=1)
    model = seeded("alexnet")
    backbone = load_backbone("alexnet", weights="random")
    assert (backbone.layer, backbone.feature_shape) == ("classifier.5", (4096,))
    assert torch.equal(backbone.module(batch), input_of(model, model.classifier[6], batch))
    assert backbone.module(batch).min() == 0
    assert load_backbone("alexnet", weights="random", layer="features").feature_shape == (256, 6, 6)


def test_maps_with_channels_last_are_turned() -> None:
    backbone = load_backbone("swin_t", weights="random", layer="features.3", image_size=64)
    model = seeded("swin_t")
    with torch.no_grad():
        expected = model.features[:4](images(64)).permute(0, 3, 1, 2)
    assert backbone.feature_shape == (192, 8, 8)
    assert torch.equal(backbone.module(images(64)), expected)
    averaged = load_backbone("swin_t", weights="random", layer="features.3:mean", image_size=64)
    assert averaged.feature_shape == (192,)
    assert torch.equal(averaged.module(images(64)), expected.mean(dim=(2, 3)))


def test_tokens_become_a_map_of_one_column() -> None:
    backbone = load_backbone("vit_b_32", weights="random", layer="encoder.layers.encoder_layer_1")
    model = seeded("vit_b_32")
    with torch.no_grad():
        tokens = input_of(model, model.encoder.layers.encoder_layer_2, images(224))
    assert tokens.shape == (2, 50, 768)
    assert backbone.feature_shape == (768, 50, 1)
    assert torch.equal(backbone.module(images(224)), tokens.transpose(1, 2)[..., None])
    assert not any("encoder_layer_2" in key for key in backbone.module.state_dict()), "later layers are not computed"
    averaged = load_backbone("vit_b_32", weights="random", layer="encoder.layers.encoder_layer_1:mean")
    assert averaged.feature_shape == (768,)
    torch.testing.assert_close(averaged.module(images(224)), tokens.mean(dim=1))


def test_training_mode_does_not_change_the_graph() -> None:
    """DenseNet's and ViT's functional dropout, and the branches of GoogLeNet, are in the graph for training alone."""
    backbone = load_backbone("googlenet", weights="random", image_size=64, layer="inception5b")
    before = backbone.module(images(64))
    code = backbone.module.net.code
    backbone.module.train()
    assert backbone.module.net.code == code
    backbone.module.eval()
    assert torch.equal(backbone.module(images(64)), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet500"}, r"unknown backbone 'resnet500' \(did you mean resnet50"),
        ({"layer": "layer4.1.rleu"}, r"no layer 'layer4.1.rleu' \(did you mean layer4.1.relu.*avgpool, flatten, fc"),
        ({"layer": "flatten:mean"}, r"flatten:mean of resnet18 is not a map but \(N, 512\); leave :mean out"),
        ({"name": "alexnet", "image_size": 32}, r"alexnet does not take 32×32 images \(.*\); its own are 224×224"),
        ({"name": "vit_b_16", "image_size": 192}, r"vit_b_16 takes 224×224 only \(IMAGENET1K_V1\), not 192×192"),
        (
            {"name": "vit_b_32", "layer": "encoder.encoder_pos_embedding"},
            r"encoder.encoder_pos_embedding of vit_b_32 gives \(1 of two images, 50, 768\), not \(N, D\)",
        ),
        ({"name": "maxvit_t", "image_size": 256}, r"maxvit_t takes 224×224 only"),
        ({"name": "shufflenet_v2_x0_5", "layer": "stage2.0.getattr"}, r"no layer 'stage2.0.getattr'"),
        ({"name": "shufflenet_v2_x0_5", "layer": "stage2.1.chunk"}, r"stage2.1.chunk .* gives a tuple, not \(N, D\)"),
        ({"weights": "IMAGENET22K"}, r"no weights 'IMAGENET22K' .*IMAGENET1K_V1, DEFAULT, random"),
        ({"weights": "absent.pth"}, r"absent.pth does not exist"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(map(str, value.values())),
)
def test_what_cannot_be_done_is_said_in_one_line(
    options: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_backbone(**{"name": "resnet18", "weights": "random"} | options)
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_vision_transformer_of_another_size_follows_its_preset(tmp_path: Path) -> None:
    """The position embeddings of a SWAG checkpoint are for 384×384: the preset builds the model for it."""
    torch.save({"encoder.pos_embedding": torch.zeros(1, 197, 768)}, tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"pos_embedding is \(1, 197, 768\) instead of \(1, 577, 768\)"):
        load_backbone("vit_b_16", weights=str(tmp_path / "small.pth"), preset="IMAGENET1K_SWAG_E2E_V1")


def test_real_checkpoint_of_a_convolutional_classifier(shared: Path) -> None:
    backbone = load_backbone("squeezenet1_1", weights=str(shared / SQUEEZENET))
    assert backbone.weights == "file:squeezenet1_1-imagenet.pth"
    assert (backbone.layer, backbone.feature_shape) == ("features.12.cat:mean", (512,))
    model = get_model("squeezenet1_1", weights=None).eval()
    model.load_state_dict(torch.load(shared / SQUEEZENET, weights_only=True))
    expected = input_of(model, model.classifier[1], images(224, count=1)).mean(dim=(2, 3))
    assert torch.equal(backbone.module(images(224, count=1)), expected)


def test_real_checkpoint_with_batch_norm(shared: Path) -> None:
    path = str(shared / MOBILENET)
    backbone = load_backbone("mobilenet_v2", weights=path, image_size=96)
    model = get_model("mobilenet_v2", weights=None).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    assert backbone.feature_shape == (1280,)
    assert torch.equal(backbone.module(images(96)), input_of(model, model.classifier[1], images(96)))


def test_the_classifier_is_nobodys_business_unless_the_layer_needs_it(shared: Path, tmp_path: Path) -> None:
    state = torch.load(shared / SQUEEZENET, weights_only=True)
    path = tmp_path / "weights.pth"
    original = load_backbone("squeezenet1_1", weights=str(shared / SQUEEZENET), image_size=64)
    body = {key: tensor for key, tensor in state.items() if not key.startswith("classifier")}
    for classifier in (
        {},
        {"classifier.1.weight": torch.ones(101, 512, 1, 1), "classifier.1.bias": torch.ones(101)},
        {"classifier.4.proj.weight": torch.ones(7, 512)},
    ):
        torch.save({"model": {f"module.{key}": tensor for key, tensor in (body | classifier).items()}}, path)
        assert load_backbone("squeezenet1_1", weights=str(path), image_size=64).sha256 == original.sha256
    torch.save(body | {"classifier.1.weight": torch.ones(101, 512, 1, 1)}, path)
    with pytest.raises(UserError) as error:
        load_backbone("squeezenet1_1", weights=str(path), layer="classifier.1")
    assert "1 missing: classifier.1.bias" in str(error.value)
    assert "classifier.1.weight is (101, 512, 1, 1) instead of (1000, 512, 1, 1)" in str(error.value)


def test_a_checkpoint_of_another_model_is_refused(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_backbone("resnet18", weights=str(shared / SQUEEZENET))
    for part in ("100 missing: conv1.weight", "unknown: features.0.weight", "is this really a resnet18 checkpoint?"):
        assert part in str(error.value)
    torch.save(seeded("resnet34").state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(UserError, match=r"unknown: layer1\.2\.conv1\.weight.*really a resnet18 checkpoint"):
        load_backbone("resnet18", weights=str(tmp_path / "resnet34.pth"))


def test_values_that_are_not_finite_are_refused_where_they_are_needed(shared: Path, tmp_path: Path) -> None:
    state = torch.load(shared / SQUEEZENET, weights_only=True)
    state["features.12.expand3x3.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"not finite in features\.12\.expand3x3\.weight.*earlier --layer"):
        load_backbone("squeezenet1_1", weights=str(tmp_path / "weights.pth"))
    assert load_backbone("squeezenet1_1", weights=str(tmp_path / "weights.pth"), layer="features.11").feature_shape


@pytest.mark.parametrize("with_aux", [True, False])
def test_googlenet_file_transforms_its_input_and_may_lack_the_auxiliary_classifiers(
    tmp_path: Path, with_aux: bool
) -> None:
    model = seeded("googlenet", seed=5, **OPTIONS["googlenet"])
    state = {key: tensor for key, tensor in model.state_dict().items() if with_aux or not key.startswith("aux")}
    torch.save(state, tmp_path / "googlenet.pth")
    backbone = load_backbone("googlenet", weights=str(tmp_path / "googlenet.pth"), image_size=64)
    expected = input_of(model, model.fc, images(64))
    assert torch.equal(backbone.module(images(64)), expected)
    plain = get_model("googlenet", weights=None, init_weights=False, transform_input=False).eval()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(input_of(plain, plain.fc, images(64)), expected)


def test_densenet_file_in_the_published_spelling(tmp_path: Path) -> None:
    model = seeded("densenet121", seed=5)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): v for k, v in model.state_dict().items()}
    old = {key: tensor for key, tensor in old.items() if "num_batches_tracked" not in key}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet121.pth")
    backbone = load_backbone("densenet121", weights=str(tmp_path / "densenet121.pth"), image_size=64)
    assert torch.equal(backbone.module(images(64)), input_of(model, model.classifier, images(64)))


@pytest.mark.slow
def test_maxvit_file_loads_into_the_traced_model(tmp_path: Path) -> None:
    """Tracing MaxViT turns position indices into constants; they belong to the architecture, not to the file."""
    model = seeded("maxvit_t", seed=5)
    torch.save(model.state_dict(), tmp_path / "maxvit_t.pth")
    backbone = load_backbone("maxvit_t", weights=str(tmp_path / "maxvit_t.pth"))
    assert torch.equal(backbone.module(images(224)), input_of(model, model.classifier[5], images(224)))


# Named weights: torchvision's entry is pointed to a copy of the real file under a real digest, fetched by file://.


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


def publish(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(SqueezeNet1_1_Weights.IMAGENET1K_V1.value, "url", url)


def published_copy(shared: Path, folder: Path) -> Path:
    digest = hashlib.sha256((shared / SQUEEZENET).read_bytes()).hexdigest()
    path = folder / f"squeezenet1_1-{digest[:8]}.pth"
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(shared / SQUEEZENET, path))


def test_named_weights_are_downloaded_once(
    shared: Path, tmp_path: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = published_copy(shared, tmp_path / "remote")
    publish(monkeypatch, remote.as_uri())
    backbone = load_backbone("squeezenet1_1")
    assert backbone.weights == "IMAGENET1K_V1"
    assert backbone.sha256 == load_backbone("squeezenet1_1", weights=str(shared / SQUEEZENET)).sha256
    assert (torch_home / remote.name).read_bytes() == remote.read_bytes()
    remote.unlink()
    assert load_backbone("squeezenet1_1", weights="IMAGENET1K_V1").sha256 == backbone.sha256
    assert capsys.readouterr().out == ""


def test_a_damaged_download_is_not_kept(tmp_path: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"half a file")
    publish(monkeypatch, (tmp_path / "squeezenet1_1-b8a52dc0.pth").as_uri())
    with pytest.raises(UserError, match=r"cannot download squeezenet1_1-b8a52dc0\.pth.*invalid hash value"):
        load_backbone("squeezenet1_1")
    assert list(torch_home.iterdir()) == []


def test_a_damaged_copy_where_torchvision_looks_is_named(
    shared: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = published_copy(shared, torch_home)
    publish(monkeypatch, f"https://download.pytorch.org/models/{kept.name}")
    assert load_backbone("squeezenet1_1").weights == "IMAGENET1K_V1"
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{kept.name} is damaged .*delete it"):
        load_backbone("squeezenet1_1")


def test_without_network_the_way_out_is_told(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound but not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        publish(monkeypatch, f"http://127.0.0.1:{closed.getsockname()[1]}/squeezenet1_1-b8a52dc0.pth")
        with pytest.raises(UserError) as error:
            load_backbone("squeezenet1_1")
    for part in ("squeezenet1_1-b8a52dc0.pth", str(torch_home), "TORCH_HOME", "--weights FILE", "refused"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_without_digest_in_their_name_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "https://download.pytorch.org/models/squeezenet.pth")
    with pytest.raises(UserError, match=r"squeezenet\.pth .*no SHA-256"):
        load_backbone("squeezenet1_1")


def test_all_of_torchvisions_weights_carry_a_digest() -> None:
    for name in list_models(module=torchvision.models):
        for entry in get_model_weights(name):
            assert re.search(r"-[0-9a-f]{8,}\.", entry.url), entry.url
