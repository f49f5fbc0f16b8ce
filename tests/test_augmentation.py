"""Random changes of a clip: the same for all of its frames, as published, and drawn from nothing but their own seed."""

import colorsys
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from pipeline.augmentation import PARTS, Augmentation, Draw, apply, draw
from pipeline.errors import UserError
from pipeline.networks import choose_preset
from pipeline.preprocessing import prepare

pytestmark = pytest.mark.usefixtures("one_torch_thread")
NOTHING = Draw(None, False, None)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("parts", [PARTS, ("crop",), ("flip", "jitter")], ids=",".join)
def test_frames_change_alike_whether_they_come_together_or_one_by_one(parts, number):
    drawn, frames = draw(Augmentation(parts, 3), number, "fights/a"), noise(5, 3, 73, 73)
    together = apply(drawn, frames, 64)
    assert together.shape == (5, 3, 64, 64)
    assert together.dtype == torch.uint8
    assert torch.equal(together, torch.cat([apply(drawn, frame[None], 64) for frame in frames]))
    # The same picture twice in a clip stays the same picture: nothing is drawn per frame.
    assert torch.equal(*apply(drawn, frames[:1].repeat(2, 1, 1, 1), 64))


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_without_parts_nothing_changes(fit):
    preprocessing, nothing = choose_preset("resnet18", image_size=64, fit=fit), Augmentation((), 3)
    assert nothing.wider(preprocessing) == preprocessing
    frames = noise(2, 3, 64, 64)
    assert torch.equal(apply(draw(nothing, 4, "a"), frames, 64), frames)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_a_crop_is_cut_from_all_that_a_square_can_hold(fit):
    preprocessing, crop = choose_preset("resnet18", image_size=64, fit=fit), Augmentation(("crop",))
    wider = crop.wider(preprocessing)
    assert wider.output_shape == (3, preprocessing.resize, preprocessing.resize)
    assert (wider.resize, wider.fit) == (preprocessing.resize, fit)
    assert Augmentation(("flip", "jitter")).wider(preprocessing) == preprocessing
    # Of the wider square the middle is what would be prepared without augmentation.
    rgb = noise(90, 120, 3).numpy()
    assert torch.equal(apply(NOTHING, prepare(wider, rgb)[None], 64)[0], prepare(preprocessing, rgb))


def test_a_crop_is_that_part_of_the_picture_resized():
    frames = noise(1, 3, 80, 80)
    cut = apply(NOTHING._replace(box=(0.125, 0.25, 0.75, 0.6)), frames, 64)
    expected = F.interpolate(frames[:, :, 10:70, 20:68].double(), (64, 64), mode="bilinear", antialias=True)
    assert (cut - expected).abs().max() <= 1  # rounding
    assert torch.equal(apply(NOTHING._replace(box=(0.0, 0.0, 1.0, 1.0)), frames, 80), frames)


def test_a_flip_swaps_left_and_right():
    frames = noise(2, 3, 16, 16)
    flipped = apply(NOTHING._replace(flip=True), frames, 16)
    np.testing.assert_array_equal(flipped.numpy(), frames.numpy()[:, :, :, ::-1])


@pytest.mark.parametrize("colours", [(0.8, 1, 1, 0), (1.2, 1, 1, 0), (1, 0.8, 1, 0), (1, 1, 1.2, 0), (1, 1, 0.8, 0.05)])
def test_colours_change_as_defined(colours):
    """Brightness scales a pixel, contrast its distance from the picture's mean grey, saturation that from its own grey,
    and hue turns the colour circle. Each in turn, clipped to what a pixel can hold."""
    frames = noise(1, 3, 12, 12)
    pixels = frames[0].permute(1, 2, 0).numpy() / 255.0
    brightness, contrast, saturation, hue = colours

    def grey(image: np.ndarray) -> np.ndarray:
        return image @ [0.299, 0.587, 0.114]

    pixels = np.clip(pixels * brightness, 0, 1)
    pixels = np.clip(grey(pixels).mean() + contrast * (pixels - grey(pixels).mean()), 0, 1)
    pixels = np.clip(grey(pixels)[..., None] + saturation * (pixels - grey(pixels)[..., None]), 0, 1)
    for place in np.ndindex(pixels.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*pixels[place])
        pixels[place] = colorsys.hsv_to_rgb((h + hue) % 1, s, v)
    changed = apply(NOTHING._replace(colours=colours), frames, 12)[0].permute(1, 2, 0).numpy()
    assert np.abs(changed - 255 * pixels).max() <= 4  # each of four steps rounds down to a whole level
    assert np.abs(changed - frames[0].permute(1, 2, 0).numpy()).max() > 8


def test_what_is_drawn_is_spread_as_published():
    drawn = [draw(Augmentation(PARTS), number, "a") for number in range(2000)]
    boxes = np.array([each.box for each in drawn])
    area, aspect = boxes[:, 2] * boxes[:, 3], boxes[:, 3] / boxes[:, 2]
    assert 0.5 <= area.min() < 0.52
    assert 0.9 < area.max() <= 1
    assert 3 / 4 <= aspect.min() < 0.77
    assert 1.3 < aspect.max() <= 4 / 3
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-9).all()
    assert abs(sum(each.flip for each in drawn) - 1000) < 100  # 4.5 standard deviations
    colours = np.array([each.colours for each in drawn])
    for column, (low, high) in zip(colours.T, [(0.8, 1.2)] * 3 + [(-0.05, 0.05)], strict=True):
        assert stats.kstest(column, stats.uniform(low, high - low).cdf).pvalue > 0.001
    assert abs(np.log(aspect).mean()) < 0.02  # as often wide as tall; 5 standard errors


def test_a_draw_depends_on_seed_number_and_video_alone():
    augmentation = Augmentation(PARTS, 5)
    first = draw(augmentation, 2, "fights/ä")
    torch.manual_seed(9)
    np.random.seed(9)
    random.seed(9)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert draw(augmentation, 2, "fights/ä") == first
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    others = [
        draw(augmentation, 3, "fights/ä"),
        draw(augmentation, 2, "fights/b"),
        draw(Augmentation(PARTS, 6), 2, "fights/ä"),
    ]
    assert len({each.colours for each in (first, *others)}) == 4


def test_leaving_a_part_out_leaves_the_others_as_they_were():
    every = draw(Augmentation(PARTS), 1, "a")
    assert draw(Augmentation(("jitter",)), 1, "a") == every._replace(box=None, flip=False)
    assert draw(Augmentation(("crop", "flip")), 1, "a") == every._replace(colours=None)
    # The order in which they are named means nothing.
    swapped = Augmentation(PARTS[::-1])
    assert draw(swapped, 1, "a") == every
    assert swapped.describe() == Augmentation(PARTS).describe() == {"parts": sorted(PARTS), "seed": 0}


@pytest.mark.parametrize(
    ("parts", "message"),
    [(("crop", "zoom"), "unknown augmentation 'zoom'; choose from crop, flip, jitter"), (("flip", "flip"), "twice")],
)
def test_parts_that_make_no_sense(parts, message):
    with pytest.raises(UserError, match=message):
        Augmentation(parts)
