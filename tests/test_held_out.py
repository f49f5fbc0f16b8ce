"""What baselines and heads say of the test part: features of all banks, and no target that they may not have."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import baselines
from pipeline.bank import Bank
from pipeline.held_out import hold_out_baselines
from pipeline.material import Material, load_material
from pipeline.results import Task
from pipeline.segments import IGNORED
from pipeline.splits import Fold
from pipeline.targets import Targets, from_catalog
from tests.banks import bank_of

IDS = tuple(f"{'ab'[number % 2]}/{number:02}" for number in range(24))
FOLDS = [Fold("1", IDS[:10], IDS[10:12], IDS[12:]), Fold("2", IDS[12:], (), IDS[:12])]


def material_of(folder: Path, *shifts: float, places: tuple[int, ...] = (), targets: Targets | None = None) -> Material:
    """A bank per shift: noise, and the shift on every row of class b."""
    generator = np.random.default_rng(0)
    opened = []
    for number, shift in enumerate(shifts):
        videos = {
            video: generator.normal(scale=0.3, size=(4 + place % 3, 5, *places)) + shift * (video[0] == "b")
            for place, video in enumerate(IDS)
        }
        opened.append(Bank(bank_of(folder / f"{number}.h5", videos)))
    wanted = targets or from_catalog(opened[0].catalog)
    spatial = "attention" if places else None
    material, _ = load_material(opened, wanted, spatial=spatial, side_by_side=False, group_column=None)
    for bank in opened:
        bank.close()
    return material


@pytest.mark.parametrize("places", [(), (2, 3)])
def test_baselines_read_all_banks_and_average_places(places: tuple[int, ...], tmp_path: Path) -> None:
    material = material_of(tmp_path, 0.0, 2.0, places=places)
    fits: list[int] = []
    said, notes = hold_out_baselines(
        material, FOLDS[:1], Task("class", False, ("a", "b")), 0, 0.0, lambda: fits.append(1)
    )
    assert list(said) == list(baselines.NAMES["class", False])
    assert len(fits) == len(said)
    assert notes == []
    strong = said["logistic regression on mean"]
    assert strong.ids == [*IDS[12:]]
    assert [int(each) for each in strong.decided] == [int(each) for each in strong.targets]
    assert [int(each) for each in strong.targets] == [int(video[0] == "b") for video in strong.ids]


def test_a_baseline_learns_from_training_and_validation_and_from_no_test_video(tmp_path: Path) -> None:
    labels = ["b" if number in (0, 11, *range(12, 23)) else "a" for number in range(24)]
    values = {video: np.int64(label == "b") for video, label in zip(IDS, labels, strict=True)}
    material = material_of(tmp_path, 1.0, targets=Targets("class", False, ("a", "b"), values, ()))
    said, _ = hold_out_baselines(material, FOLDS[:1], Task("class", False, ("a", "b")), 0, 0.0, lambda: None)
    np.testing.assert_allclose(said["majority"].scores[0], [10 / 12, 2 / 12], atol=1e-6)


def test_frames_come_back_video_by_video(tmp_path: Path) -> None:
    lengths = {video: 4 + place % 3 for place, video in enumerate(IDS)}
    values = {video: np.full(length, int(video[0] == "b")) for video, length in lengths.items()}
    values[IDS[12]][:2] = IGNORED
    material = material_of(tmp_path, 3.0, targets=Targets("class", True, ("a", "b"), values, ()))
    said, _ = hold_out_baselines(material, FOLDS, Task("class", True, ("a", "b")), 0, 0.0, lambda: None)
    held = said["logistic regression per frame"]
    assert (held.ids, held.folds) == ([*IDS[12:], *IDS[:12]], ["1"] * 12 + ["2"] * 12)
    for video, target, scores, decided, seconds in zip(
        held.ids, held.targets, held.scores, held.decided, held.seconds, strict=True
    ):
        assert scores.shape == (lengths[video], 2)
        assert decided.tolist() == [int(video[0] == "b")] * lengths[video], "masked frames are predicted as well"
        np.testing.assert_array_equal(target, values[video])
        np.testing.assert_allclose(seconds, np.arange(lengths[video]) / 10)


def test_segments_of_a_baseline_are_smoothed_as_those_of_the_head(tmp_path: Path) -> None:
    values = {video: np.tile([0, 1], 3)[: 4 + place % 3] for place, video in enumerate(IDS)}
    generator = np.random.default_rng(0)
    videos = {video: generator.normal(scale=0.1, size=(len(each), 2)) + each[:, None] for video, each in values.items()}
    with Bank(bank_of(tmp_path / "bank.h5", videos)) as bank:
        targets = Targets("class", True, ("a", "b"), values, ())
        material, _ = load_material([bank], targets, spatial=None, side_by_side=False, group_column=None)
    for min_seconds, runs in ((0.0, 4), (10.0, 1)):
        said, _ = hold_out_baselines(material, FOLDS[:1], Task("class", True, ("a", "b")), 0, min_seconds, lambda: None)
        decided = said["logistic regression per frame"].decided[0]
        assert np.count_nonzero(np.diff(decided)) + 1 == runs
