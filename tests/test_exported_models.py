"""Exported heads and backbones, run by onnxruntime and torch beside the originals, of any length and batch size."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.backbone import load_backbone
from pipeline.bundles import Bundle
from pipeline.errors import UserError
from pipeline.export_check import Found, check_backbone, difference, noise, original
from pipeline.exported_models import CELLS, SUFFIXES, Run, check_packages, open_model, write_model
from pipeline.objectives import Objective
from pipeline.plain_models import PlainBackbone, PlainBundle, shapes_of
from tests.test_plain_head import BUNDLES, HEADS, SVM, bundle_of, rows_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LENGTHS = (1, 2, 7, 300)
FORMATS = tuple(SUFFIXES)


def exported(bundle: Bundle, to: str, folder: Path) -> Run:
    shapes = shapes_of(bundle)
    inputs = {f"x{n}": (torch.zeros(5, *shape), "time") for n, shape in enumerate(shapes)}
    path = folder / f"head{SUFFIXES[to]}"
    write_model(PlainBundle(bundle, CELLS[to]), path, to, inputs=inputs, output="y", what="The head")
    return open_model(path, to)


def holds(bundle: Bundle, to: str, folder: Path) -> None:
    run = exported(bundle, to, folder)
    for length in LENGTHS:
        features = [rows_of(length, tuple(shape)).numpy() + n for n, shape in enumerate(shapes_of(bundle))]
        wanted = original(bundle, features)
        found = run(features)
        assert found.shape == wanted.shape
        assert difference(bundle, found, wanted) < 2e-5


FAST = {
    "gru, both ways, two layers": "onnx",
    "all inputs": "onnx",
    "attention": "torch-export",
}


@pytest.mark.parametrize(("name", "to"), FAST.items(), ids=FAST)
def test_heads(name: str, to: str, tmp_path: Path) -> None:
    steps = HEADS[name].get("steps", False)
    holds(bundle_of(HEADS[name], objective=Objective("class", per_frame=steps), temperature=1.4), to, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", HEADS)
def test_every_head(name: str, to: str, tmp_path: Path) -> None:
    test_heads(name, to, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("changes", BUNDLES.values(), ids=BUNDLES)
def test_every_bundle(changes: dict[str, Any], to: str, tmp_path: Path) -> None:
    head = (
        {"spatial": "attention"} if changes.get("spatial") == "attention" else {"bidirectional": True, "centre": True}
    )
    holds(bundle_of(head, **changes), to, tmp_path)


@pytest.mark.parametrize("to", FORMATS)
def test_fused_heads_read_sequences_of_different_lengths(to: str, tmp_path: Path) -> None:
    bundle = bundle_of({"cell": "gru"}, {"pool": "max"}, fusion="svm", svm=SVM)
    inputs = {name: (torch.zeros(size, 6), name) for name, size in (("one", 5), ("other", 6))}
    path = tmp_path / f"head{SUFFIXES[to]}"
    write_model(PlainBundle(bundle, CELLS[to]), path, to, inputs=inputs, output="y", what="The head")
    for lengths in ((1, 4), (9, 1), (3, 3)):
        features = [rows_of(length).numpy() for length in lengths]
        found = open_model(path, to)(features)
        np.testing.assert_allclose(found, original(bundle, features), atol=1e-5)


@pytest.mark.parametrize("to", FORMATS)
def test_a_backbone_takes_batches_of_any_size(to: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backbone = load_backbone("squeezenet1_1", weights="random", image_size=40)
    path = tmp_path / f"backbone{SUFFIXES[to]}"
    _write(backbone, path, to)
    out, err = capfd.readouterr()
    assert not out
    assert not err, "nothing of what the exporter says to itself"
    found = Found()
    made = check_backbone(open_model(path, to), backbone, noise(backbone.input_shape), found, path.name)
    assert made.shape == (38, 512)
    assert found.backbone is not None
    assert found.backbone < 1e-4


NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"image_size": 64},
    "resnet18, maps": {"image_size": 64, "layer": "layer3"},
    "resnet18, flow": {"image_size": 64},
    "mobilenet_v3_small": {"image_size": 64},
    "efficientnet_b0": {"image_size": 64},
    "densenet121": {"image_size": 64},
    "googlenet": {"image_size": 64},
    "inception_v3": {"image_size": 96},
    "shufflenet_v2_x0_5": {"image_size": 64},
    "regnet_y_400mf": {"image_size": 64},
    "convnext_tiny": {"image_size": 64},
    "vit_b_32": {},
    "swin_t": {"image_size": 64},
    "swin_v2_t": {"image_size": 64},
    "maxvit_t": {},
    "r3d_18": {"image_size": 48},
    "s3d": {"image_size": 64},
    "mvit_v2_s": {},
    "swin3d_t": {"image_size": 64},
    "r2d_18": {"image_size": 48},
}


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_family(name: str, to: str, tmp_path: Path) -> None:
    from pipeline.windows import Window

    window = Window("flow", 10) if name.endswith("flow") else None
    backbone = load_backbone(name.partition(",")[0], weights="random", window=window, **NETWORKS[name])
    path = tmp_path / f"backbone{SUFFIXES[to]}"
    _write(backbone, path, to)
    found = Found()
    check_backbone(open_model(path, to), backbone, noise(backbone.input_shape, 6), found, path.name)
    assert found.backbone is not None
    assert found.backbone < 1e-3


def _write(backbone: Any, path: Path, to: str) -> None:
    rows = torch.from_numpy(noise(backbone.input_shape, 2))
    inputs = {"rows": (rows, "rows")}
    write_model(PlainBackbone(backbone), path, to, inputs=inputs, output="features", what=backbone.name)


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    class Peculiar(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows * float(rows.sum().item() > 0) if rows.sum() > 0 else rows

    with pytest.raises(UserError, match="The head cannot be exported to onnx by torch"):
        write_model(
            Peculiar(), tmp_path / "h.onnx", "onnx", inputs={"x": (torch.ones(3, 2), "t")}, output="y", what="The head"
        )
    assert not list(tmp_path.iterdir())


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(UserError, match=r"ONNX needs onnxruntime.*pip install 'framebank\[onnx\]'"):
        check_packages("onnx")
    check_packages("torch-export")


def test_warnings_are_what_they_were_afterwards(tmp_path: Path) -> None:
    before = list(warnings.filters)
    exported(bundle_of({"cell": "none"}), "torch-export", tmp_path)
    assert list(warnings.filters) == before
