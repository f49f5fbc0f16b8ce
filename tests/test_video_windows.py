"""Stacks, clips and motion decoded again for fine-tuning are what the network saw when the bank was made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import rows, video_frames
from pipeline.augmentation import Augmentation, draw
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.frames import read_frames
from pipeline.scoring import reading
from pipeline.sequences import Sequences
from pipeline.video_frames import frame_sequences
from pipeline.windows import FRAME, Window
from tests.clips import make_clip
from tests.test_rows import PREPROCESSING, WINDOWS, bank_rows, flow_for, job, options_of, reference

LONG = 14
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder, generator = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    made = []
    for name, count in (("long", LONG), ("one", 1), ("short", 3)):
        images = list(generator.integers(0, 256, (count, 12, 16, 3), np.uint8).repeat(4, axis=1).repeat(4, axis=2))
        made.append(job(make_clip(folder / f"{name}.mp4", images=images)))
    return made


@pytest.fixture(scope="module", params=WINDOWS, ids=repr)
def banked(
    request: pytest.FixtureRequest, jobs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Window, Bank]:
    return request.param, bank_rows(tmp_path_factory.mktemp("bank") / "bank.h5", jobs, options_of(request.param))[0]


def sequences_of(window: Window, bank: Bank, jobs: list[dict[str, Any]], **options: Any) -> Sequences:
    return frame_sequences(bank, pd.DataFrame(jobs), PREPROCESSING, window=window, flow=flow_for(window), **options)


def flat(inputs: torch.Tensor) -> np.ndarray:
    """Rows as the network of `bank_rows` embeds them: (N, …) uint8 -> (N, D) float32."""
    return inputs.flatten(1).float().numpy()


def test_rows_are_what_the_network_saw(banked, jobs):
    window, bank = banked
    sequences = sequences_of(window, bank, jobs)
    assert sequences.feature_shape == window.input_shape(16)
    for position, each in enumerate(jobs):
        inputs = sequences.read(position)
        assert inputs.dtype == torch.uint8
        assert np.array_equal(flat(inputs), bank[each["id"]])
    several = sequences.batch(np.array([2, 0, 1])).packed.data
    assert np.array_equal(
        np.sort(flat(several), axis=0), np.sort(np.concatenate([bank[each["id"]] for each in jobs]), axis=0)
    )


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """The files that are opened for decoding, and the frames that are prepared, in order."""
    done: dict[str, list[Any]] = {"opened": [], "prepared": []}
    show = rows.Assembler.show

    def noted(path: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        done["opened"].append(Path(path).stem)
        return read_frames(path, *arguments, **options)

    def shown(assembler: rows.Assembler, rgb: np.ndarray, seconds: float, number: int) -> rows.Shown:
        done["prepared"].append(number)
        return show(assembler, rgb, seconds, number)

    monkeypatch.setattr(video_frames, "read_frames", noted)
    monkeypatch.setattr(rows.Assembler, "show", shown)
    return done


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("back", [0, 1])
def test_a_long_video_in_pieces_is_decoded_once_and_each_frame_prepared_once(banked, jobs, work, at_once, back):
    window, bank = banked
    sequences = sequences_of(window, bank, jobs)
    whole = bank["long"]
    piece = reading(sequences, 0, np.arange(len(whole)))
    for start in range(0, len(whole), at_once):
        first, last = max(0, start - back), min(start + at_once, len(whole))
        assert np.array_equal(flat(piece(first, last)), whole[first:last])
    assert work == {"opened": ["long"], "prepared": list(range(LONG))}


def test_whatever_rows_are_read_after_whatever(banked, jobs):
    window, bank = banked
    sequences, whole = sequences_of(window, bank, jobs), bank["long"]
    generator = np.random.default_rng(0)
    for _ in range(30):
        chosen = np.sort(generator.integers(0, len(whole), generator.integers(1, 6)))  # the same one again, too
        packed = sequences.batch(np.array([0]), [chosen]).packed
        assert np.array_equal(flat(packed.data), whole[chosen])
        both = sequences.batch(np.array([0, 2]), [chosen, np.array([0, 0])]).packed.data  # decoded side by side
        assert len(both) == len(chosen) + 2


def test_only_the_frames_of_the_wanted_rows_are_prepared(jobs, work, tmp_path):
    window = Window("clip", 2, 2)
    bank, _ = bank_rows(tmp_path / "bank.h5", jobs, options_of(window))
    work["prepared"].clear()
    sequences_of(window, bank, jobs).batch(np.array([0]), [np.array([1, 4])])
    assert work["prepared"] == [2, 3, 8, 9]


def test_augmented_rows_are_drawn_alike(banked, jobs):
    window, bank = banked
    augmentation = Augmentation(("crop", "flip", "jitter"), 2)
    sequences = sequences_of(window, bank, jobs, augmentation=augmentation)
    assert np.array_equal(flat(sequences.read(0)), bank["long"])
    for epoch in (1, 2, 3):
        expected = reference(Path(jobs[0]["path"]), window, [draw(augmentation, epoch, "long")])[:, 0]
        assert torch.equal(sequences.in_epoch(epoch).read(0), expected)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (FRAME, r"frame 1 is at 0\.050 s, and was at 0\.100 s"),
        (Window("stack", 3), r"frames 0 to 2 are at 0\.050 s, and were at 0\.100 s"),
        (Window("clip", 4, 4), r"frames 0 to 3 are at 0\.075 s, and were at 0\.150 s"),
    ],
    ids=repr,
)
def test_a_file_that_changed_after_it_was_banked(window, message, tmp_path):
    clip = make_clip(tmp_path / "a.mp4", frames=9)
    bank, _ = bank_rows(tmp_path / "bank.h5", [job(clip)], options_of(window))
    sequences = sequences_of(window, bank, [job(clip)])
    make_clip(clip, frames=9, fps=20)
    with pytest.raises(UserError, match=message):
        sequences.read(0)
    make_clip(clip, frames=6)
    with pytest.raises(UserError, match="it gives 6 of 9 frames that the bank has rows of"):
        sequences.read(0)
