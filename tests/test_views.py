"""Views are the stated pieces of every frame, the plain one first, and the same ones whenever a video is read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.augmentation import PLAIN, Augmentation, draw, preparing
from pipeline.errors import UserError
from pipeline.preprocessing import Preprocessing, prepare
from pipeline.views import Views, described, draws, read_views

PREPROCESSING = Preprocessing(37, 32, (0.5,) * 3, (0.25,) * 3, "bilinear", True, "crop", "test")
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def frame(height: int = 60, width: int = 83, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(60, 83), (83, 60), (37, 37), (40, 41)], ids=str)
def test_corners_are_pieces_of_the_middle_square(size):
    rgb = frame(*size)
    square = prepare(replace(PREPROCESSING, crop=37), rgb)
    corners = [square[:, top : top + 32, left : left + 32] for top in (0, 5) for left in (0, 5)]
    plain = [prepare(PREPROCESSING, rgb), *corners]
    for count, expected in ((5, plain), (10, [*plain, *(view.flip(-1) for view in plain)])):
        drawn = draws(Views("corners", count), PREPROCESSING, "a")
        assert len(drawn) == count
        assert torch.equal(preparing(PREPROCESSING, "", drawn)(rgb), torch.stack(expected))


def test_corners_where_both_sides_are_resized_to_fixed_lengths():
    """As video networks have it: 112 of 128×171 pixels, say."""
    preprocessing = replace(PREPROCESSING, resize=(37, 50))
    square = prepare(replace(preprocessing, crop=37), frame())
    seen = preparing(preprocessing, "", draws(Views("corners", 5), preprocessing, "a"))(frame())
    assert torch.equal(seen[0], prepare(preprocessing, frame()))
    assert torch.equal(seen[1], square[:, :32, :32])
    assert torch.equal(seen[4], square[:, 5:, 5:])


def test_corners_of_a_square_as_published():
    """224 of 256 pixels, the corners at 0 and 32."""
    preprocessing = replace(PREPROCESSING, resize=256, crop=224)
    boxes = [each.box for each in draws(Views("corners", 5), preprocessing, "a")[1:]]
    assert [[round(part * 256, 9) for part in box] for box in boxes] == [
        [top, left, 224, 224] for top in (0, 32) for left in (0, 32)
    ]


def test_random_views_are_the_plain_one_and_what_is_drawn_for_the_video():
    views = Views("random", 4, seed=3)
    drawn = draws(views, PREPROCESSING, "a")
    augmentation = Augmentation(("crop", "flip"), 3)
    assert drawn == [PLAIN, *(draw(augmentation, number, "a") for number in (1, 2, 3))]
    assert drawn != draws(views, PREPROCESSING, "b")
    assert drawn != draws(Views("random", 4, seed=4), PREPROCESSING, "a")
    assert draws(Views("random", 6, seed=3), PREPROCESSING, "a")[:4] == drawn
    seen = preparing(PREPROCESSING, "3,5,50,41", drawn)(frame())
    assert seen.shape == (4, 3, 32, 32)
    assert torch.equal(seen[0], prepare(PREPROCESSING, frame(), (3, 5, 50, 41)))
    assert len({view.numpy().tobytes() for view in seen}) == 4
    squashed = replace(PREPROCESSING, resize=32, fit="squash")  # a part of the squashed square
    assert torch.equal(preparing(squashed, "", drawn)(frame())[0], prepare(squashed, frame()))


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_corners_need_room(fit):
    tight = replace(PREPROCESSING, resize=32, fit=fit)
    with pytest.raises(UserError, match=r"nothing around the centre.*32×32.*random:K"):
        draws(Views("corners", 5), tight, "a")
    assert len(draws(Views("random", 5), tight, "a")) == 5


@pytest.mark.parametrize(
    ("text", "views", "said"),
    [
        ("5", Views("corners", 5), {"kind": "corners", "count": 5}),
        ("10", Views("corners", 10), {"kind": "corners", "count": 10}),
        ("random:7", Views("random", 7), {"kind": "random", "count": 7, "seed": 0}),
    ],
)
def test_what_is_said_is_what_is_meant(text, views, said):
    assert read_views(text) == views
    assert views.describe() == said
    assert Views(**json.loads(json.dumps(said))) == views


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("6", "centre and corners are 5 views, 10 with their mirror images, not 6"),
        ("random:1", "1 random views are impossible; give from 2"),
        ("random:101", "101 random views are impossible"),
        ("random", "unknown views 'random'; give 5"),
        ("random:", "unknown views 'random:'"),
        ("corners:5", "unknown views 'corners:5'"),
        ("random:-3", "unknown views 'random:-3'"),
        ("²", "unknown views '²'"),
        ("", "unknown views ''"),
    ],
)
def test_views_that_make_no_sense(text, message):
    with pytest.raises(UserError, match=message):
        read_views(text)


def test_a_bank_keeps_what_its_views_show():
    drawn = draws(Views("corners", 10), PREPROCESSING, "a")
    kept = json.loads(json.dumps(described(drawn)))
    assert kept[0] == {"box": None, "flip": False}
    assert kept[6] == {"box": list(drawn[6].box), "flip": True}
    assert len(kept) == 10
