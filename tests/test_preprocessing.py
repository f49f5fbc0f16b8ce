"""The two halves of preprocessing against torchvision's own transforms, bit for bit, and the ways to fit a frame."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models import get_model_weights, list_models

from pipeline.errors import UserError, VideoError
from pipeline.preprocessing import FITS, Preprocessing, choose_preset, named_weights, normalise, prepare, presets

# One entry of each kind of preprocessing that torchvision's classification weights come with.
DISTINCT = {
    preprocessing: (name, preprocessing.preset)
    for name in list_models(module=torchvision.models)
    for preprocessing in presets(name).values()
}


def random_frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def reference(model_name: str, entry: str, rgb: np.ndarray) -> torch.Tensor:
    transforms = get_model_weights(model_name)[entry].transforms()
    return transforms(torch.from_numpy(rgb.copy()).permute(2, 0, 1))


@pytest.mark.parametrize("preprocessing", DISTINCT, ids=[f"{n}-{e}" for n, e in DISTINCT.values()])
def test_rows_equal_the_weights_own_transforms_bit_for_bit(preprocessing: Preprocessing) -> None:
    model_name, entry = DISTINCT[preprocessing]
    as_is = (preprocessing.resize, preprocessing.resize + 33)  # needs no resizing at all
    for height, width in ((97, 231), (43, 31), as_is):
        rgb = random_frame(height, width)
        prepared = prepare(preprocessing, rgb)
        assert prepared.dtype == torch.uint8
        assert tuple(prepared.shape) == preprocessing.output_shape
        row = normalise(preprocessing, prepared.unsqueeze(0))[0]
        assert row.dtype == torch.float32
        assert torch.equal(row, reference(model_name, entry, rgb)), (height, width)


def test_there_are_as_many_kinds_of_preprocessing_as_thought() -> None:
    assert len(DISTINCT) >= 28


def test_views_of_any_layout_give_the_same_frame() -> None:
    preprocessing = choose_preset("resnet18")
    rgb = random_frame(120, 160)
    expected = prepare(preprocessing, rgb)
    read_only = rgb.copy()
    read_only.flags.writeable = False
    padded = np.zeros((120, 192, 3), dtype=np.uint8)
    padded[:, :160] = rgb
    for same in (
        read_only,
        padded[:, :160],
        np.ascontiguousarray(rgb[::-1])[::-1],
        np.rot90(np.ascontiguousarray(np.rot90(rgb)), 3),
        torch.from_numpy(rgb),
    ):
        assert torch.equal(prepare(preprocessing, same), expected)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(224, 224), (120, 160)])
def test_prepared_frames_share_no_memory_with_the_frame(fit: str, size: tuple[int, int]) -> None:
    preprocessing = replace(choose_preset("resnet18", fit=fit), resize=224)
    rgb = random_frame(*size)
    prepared = prepare(preprocessing, rgb)
    assert prepared.is_contiguous()
    before = prepared.clone()
    rgb[:] = 0
    assert torch.equal(prepared, before)


def test_normalise_takes_a_batch_and_leaves_it_alone() -> None:
    preprocessing = choose_preset("resnet18", image_size=32)
    frames = [prepare(preprocessing, random_frame(40, 50, seed)) for seed in range(3)]
    batch = torch.stack(frames)
    rows = normalise(preprocessing, batch)
    assert torch.equal(batch, torch.stack(frames))
    for row, frame in zip(rows, frames, strict=True):
        assert torch.equal(row, normalise(preprocessing, frame.unsqueeze(0))[0])


def test_crop_with_an_image_size_keeps_the_proportion() -> None:
    preprocessing = choose_preset("resnet50", image_size=112)
    assert (preprocessing.resize, preprocessing.crop) == (116, 112)
    transforms = get_model_weights("resnet50")["DEFAULT"].transforms(crop_size=112, resize_size=116)
    rgb = random_frame(90, 160)
    row = normalise(preprocessing, prepare(preprocessing, rgb).unsqueeze(0))[0]
    assert torch.equal(row, transforms(torch.from_numpy(rgb).permute(2, 0, 1)))


def test_squash_keeps_every_edge_of_the_frame() -> None:
    preprocessing = choose_preset("resnet18", image_size=64, fit="squash")
    rgb = np.zeros((90, 160, 3), dtype=np.uint8)
    rgb[:, :10], rgb[:, -10:] = (255, 0, 0), (0, 0, 255)
    prepared = prepare(preprocessing, rgb)
    assert tuple(prepared.shape) == (3, 64, 64)
    assert prepared[:, 32, 0].tolist() == [255, 0, 0]
    assert prepared[:, 32, -1].tolist() == [0, 0, 255]
    # The same frame under the default has lost both.
    assert prepare(choose_preset("resnet18", image_size=64), rgb).count_nonzero() == 0


@pytest.mark.parametrize(("size", "inside"), [((90, 160), (14, 50, 0, 64)), ((160, 90), (0, 64, 14, 50))])
def test_pad_fills_with_the_mean_colour(size: tuple[int, int], inside: tuple[int, int, int, int]) -> None:
    preprocessing = choose_preset("resnet18", image_size=64, fit="pad")
    prepared = prepare(preprocessing, np.full((*size, 3), 255, dtype=np.uint8))
    top, bottom, left, right = inside
    assert (prepared[:, top:bottom, left:right] == 255).all()
    frame = torch.zeros(64, 64, dtype=torch.bool)
    frame[top:bottom, left:right] = True
    assert prepared[:, ~frame].unique(dim=1).T.tolist() == [[124, 116, 104]]
    rest = normalise(preprocessing, prepared.unsqueeze(0))[0][:, ~frame]
    assert rest.abs().max() < 0.01


def test_extreme_shapes() -> None:
    line = random_frame(2, 500)
    for fit in ("squash", "pad"):
        assert prepare(choose_preset("resnet18", fit=fit), line).shape == (3, 224, 224)
    with pytest.raises(VideoError, match=r"500×2 pixels is too elongated.*--fit squash or pad"):
        prepare(choose_preset("resnet18"), line)
    assert prepare(choose_preset("resnet18"), random_frame(1, 1)).shape == (3, 224, 224)


@pytest.mark.parametrize("fit", FITS)
def test_region_is_cut_out_first(fit: str) -> None:
    preprocessing = choose_preset("resnet18", image_size=48, fit=fit)
    rgb = random_frame(100, 140)
    expected = prepare(preprocessing, rgb[20:80, 30:130].copy())
    assert torch.equal(prepare(preprocessing, rgb, (30, 20, 100, 60)), expected)
    assert torch.equal(prepare(preprocessing, rgb, (0, 0, 140, 100)), prepare(preprocessing, rgb))


@pytest.mark.parametrize("region", [(-1, 0, 10, 10), (0, -1, 10, 10), (131, 0, 10, 10), (0, 91, 10, 10), (0, 0, 0, 9)])
def test_region_outside_the_frame_fails_the_video(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(VideoError, match=r"does not lie within the frame of 140×100 pixels"):
        prepare(choose_preset("resnet18"), random_frame(100, 140), region)


def test_describe_is_json_and_decides_equality() -> None:
    preprocessing = choose_preset("resnet50", "IMAGENET1K_V1")
    described = json.loads(json.dumps(preprocessing.describe()))
    assert described == {
        "resize": 256,
        "crop": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "antialias": True,
        "fit": "crop",
    }
    assert preprocessing == choose_preset("resnet18")  # the same numbers under another model's name
    assert preprocessing != choose_preset("resnet50", "IMAGENET1K_V2")


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
    entry = get_model_weights("resnet50")["IMAGENET1K_V2"]
    assert named_weights("resnet50", "DEFAULT") is entry
    assert named_weights("resnet50", "IMAGENET1K_V2") is entry
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


def test_impossible_values_are_refused_at_birth() -> None:
    with pytest.raises(UserError, match="unknown fit 'stretch'; choose one of crop, squash, pad"):
        choose_preset("resnet18", fit="stretch")
    with pytest.raises(UserError, match="image size of 0 is impossible"):
        choose_preset("resnet18", image_size=0)
    with pytest.raises(UserError, match="cannot crop 224 pixels out of a side resized to 100"):
        replace(choose_preset("resnet18"), resize=100)
