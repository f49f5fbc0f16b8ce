"""The two halves of preprocessing against torchvision's own transforms and Pillow, and the ways to fit a frame."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.models import get_model_weights, list_models

from pipeline.errors import UserError, VideoError
from pipeline.networks import choose_preset, presets
from pipeline.preprocessing import FITS, Preprocessing, normalise, prepare
from pipeline.windows import Window
from tests.clips import plain
from tests.transforms import WHOLE_NUMBERS, in_whole_numbers, of_image


def distinct(module: object) -> dict[Preprocessing, tuple[str, str]]:
    """One entry of each kind of preprocessing that torchvision's classification weights come with."""
    return {
        preprocessing: (name, preprocessing.preset)
        for name in list_models(module=module)
        for preprocessing in presets(name).values()
    }


DISTINCT = distinct(torchvision.models)
DISTINCT_VIDEO = distinct(torchvision.models.video)
REAL = [("resnet50", "IMAGENET1K_V2"), ("resnet18", "IMAGENET1K_V1"), ("swin_t", "IMAGENET1K_V1")]


def random_frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def frame_sizes(preprocessing: Preprocessing) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) that are enlarged and shrunk, and one that needs no resizing at all."""
    return ((97, 231), (43, 31), (600, 800), (preprocessing.resize, preprocessing.resize + 33))


def levels_apart(row: torch.Tensor, expected: torch.Tensor, std: tuple[float, ...]) -> torch.Tensor:
    """By how many of the 256 levels of a byte the pixels of two normalised frames differ."""
    return ((row - expected).abs() * torch.tensor(std).view(3, 1, 1) * 255).round()


@pytest.mark.parametrize("preprocessing", DISTINCT, ids=[f"{n}-{e}" for n, e in DISTINCT.values()])
@pytest.mark.skipif(not WHOLE_NUMBERS, reason="torchvision resizes uint8 tensors in float32 on this CPU")
def test_rows_equal_torchvisions_resizing_in_whole_numbers_bit_for_bit(preprocessing: Preprocessing) -> None:
    model_name, entry = DISTINCT[preprocessing]
    transforms = get_model_weights(model_name)[entry].transforms()
    for height, width in frame_sizes(preprocessing):
        rgb = random_frame(height, width)
        prepared = prepare(preprocessing, rgb)
        assert prepared.dtype == torch.uint8
        assert tuple(prepared.shape) == preprocessing.output_shape
        row = normalise(preprocessing, prepared.unsqueeze(0))[0]
        assert row.dtype == torch.float32
        assert torch.equal(row, in_whole_numbers(transforms, rgb)), (height, width)


@pytest.mark.parametrize("preprocessing", DISTINCT, ids=[f"{n}-{e}" for n, e in DISTINCT.values()])
def test_rows_are_what_the_weights_own_transforms_make_of_images(preprocessing: Preprocessing) -> None:
    """Of noise less than one value in a hundred differs from Pillow's, by one level; bicubic, here and there by two.

    Where the ratio of the sizes is as simple as 5:4, many values lie halfway between two levels, and Pillow's weights
    and torch's, both rounded, put them on either side: up to one in twelve, but no further.
    """
    model_name, entry = DISTINCT[preprocessing]
    transforms = get_model_weights(model_name)[entry].transforms()
    for height, width in frame_sizes(preprocessing):
        rgb = random_frame(height, width)
        row = normalise(preprocessing, prepare(preprocessing, rgb).unsqueeze(0))[0]
        levels = levels_apart(row, of_image(transforms, rgb), preprocessing.std)
        halfway = preprocessing.interpolation == "bilinear" and 4 * height == 5 * preprocessing.resize
        assert levels.count_nonzero() / levels.numel() < (0.09 if halfway else 0.01), (height, width)
        assert levels.max() <= 2, (height, width)
        if not halfway:
            beyond = (levels > 1).count_nonzero() / levels.numel()
            assert beyond <= (3e-5 if preprocessing.interpolation == "bicubic" else 0), (height, width)
        if height == preprocessing.resize:
            assert levels.max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "entry"), REAL)
def test_frames_of_real_videos_are_nearly_those_of_pillow(name: str, entry: str, shared: Path) -> None:
    videos = sorted((shared / "data" / "fights").rglob("*.mp4"))[::15]
    preprocessing = choose_preset(name, entry)
    transforms = get_model_weights(name)[entry].transforms()
    differ, values = 0, 0
    for video in videos:
        rgb = plain(video)[0]
        row = normalise(preprocessing, prepare(preprocessing, rgb).unsqueeze(0))[0]
        levels = levels_apart(row, of_image(transforms, rgb), preprocessing.std)
        assert levels.max() <= (2 if preprocessing.interpolation == "bicubic" else 1)
        differ, values = differ + int(levels.count_nonzero()), values + levels.numel()
    assert values > 0
    assert differ / values < 0.003


@pytest.mark.parametrize("preprocessing", DISTINCT_VIDEO, ids=[f"{n}-{e}" for n, e in DISTINCT_VIDEO.values()])
def test_clips_equal_the_video_weights_own_transforms_bit_for_bit(preprocessing: Preprocessing) -> None:
    model_name, entry = DISTINCT_VIDEO[preprocessing]
    transforms = get_model_weights(model_name)[entry].transforms()
    resize = preprocessing.resize
    as_is = resize if isinstance(resize, tuple) else (resize, resize + 33)  # needs no resizing at all
    window = Window("clip", 3)
    for height, width in ((97, 231), (231, 97), (43, 31), as_is):
        frames = [random_frame(height, width, seed) for seed in range(3)]
        clip = torch.stack([prepare(preprocessing, frame) for frame in frames], dim=1)  # (3, L, S, S)
        row = normalise(preprocessing, clip.unsqueeze(0), window)[0]
        expected = transforms(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2))
        assert torch.equal(row, expected), (height, width)


def test_there_are_as_many_kinds_of_preprocessing_as_thought() -> None:
    assert len(DISTINCT) >= 28
    assert len(DISTINCT_VIDEO) == 4


def test_a_frame_resized_to_a_pair_can_be_of_any_shape_and_in_any_fit() -> None:
    preprocessing = choose_preset("r3d_18", "random", image_size=32)
    assert (preprocessing.resize, preprocessing.crop) == ((37, 49), 32)
    assert json.loads(json.dumps(preprocessing.describe()))["resize"] == [37, 49]
    assert prepare(preprocessing, random_frame(2, 500)).shape == (3, 32, 32)
    assert choose_preset("r3d_18", "random", fit="squash").resize == 112
    with pytest.raises(UserError, match="cannot crop 112 pixels out of a side resized to 100"):
        replace(choose_preset("r3d_18", "random"), resize=(100, 171))


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


def test_stacks_and_motion_are_normalised_channel_by_channel() -> None:
    preprocessing = choose_preset("resnet18", image_size=16)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (2, 6, 3, 16, 16), dtype=torch.uint8, generator=generator)
    single = torch.stack([normalise(preprocessing, frames[:, time]) for time in range(6)], dim=1)
    stack = normalise(preprocessing, frames.flatten(1, 2), Window("stack", 6))
    assert torch.equal(stack, single.flatten(1, 2))
    clip = normalise(preprocessing, frames.transpose(1, 2).contiguous(), Window("clip", 6))
    assert torch.equal(clip, single.transpose(1, 2))
    mean, std = sum(preprocessing.mean) / 3, sum(preprocessing.std) / 3
    grey = normalise(preprocessing, frames[:, :, 0], Window("stack", 6, grey=True))
    torch.testing.assert_close(grey, (frames[:, :, 0] / 255 - mean) / std)
    motion = normalise(preprocessing, frames[:, :, 1], Window("flow", 3))
    torch.testing.assert_close(motion, (frames[:, :, 1] / 255 - 128 / 255) / std)
    still = torch.full((1, 6, 16, 16), 128, dtype=torch.uint8)
    assert normalise(preprocessing, still, Window("flow", 3)).count_nonzero() == 0


def test_crop_with_an_image_size_keeps_the_proportion() -> None:
    preprocessing = choose_preset("resnet50", image_size=112)
    assert (preprocessing.resize, preprocessing.crop) == (116, 112)
    transforms = get_model_weights("resnet50")["DEFAULT"].transforms(crop_size=112, resize_size=116)
    rgb = random_frame(90, 160)
    row = normalise(preprocessing, prepare(preprocessing, rgb).unsqueeze(0))[0]
    levels = levels_apart(row, of_image(transforms, rgb), preprocessing.std)
    assert levels.max() <= 1
    assert levels.count_nonzero() / levels.numel() < 0.01


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
        "arithmetic": "uint8",
    }
    assert choose_preset("r3d_18").describe()["arithmetic"] == "float32"  # without antialiasing
    assert preprocessing == choose_preset("resnet18")  # the same numbers under another model's name
    assert preprocessing != choose_preset("resnet50", "IMAGENET1K_V2")


def test_impossible_values_are_refused_at_birth() -> None:
    with pytest.raises(UserError, match="unknown fit 'stretch'; choose one of crop, squash, pad"):
        choose_preset("resnet18", fit="stretch")
    with pytest.raises(UserError, match="image size of 0 is impossible"):
        choose_preset("resnet18", image_size=0)
    with pytest.raises(UserError, match="cannot crop 224 pixels out of a side resized to 100"):
        replace(choose_preset("resnet18"), resize=100)
