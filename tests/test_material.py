"""What heads are trained from: the videos that every bank has and that have a target, with classes and groups."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.material import Material, load_material
from pipeline.targets import Targets, from_catalog
from tests.banks import bank_of, in_order

VIDEOS = in_order(6)


def load(
    *paths: Path, targets: Targets | None = None, side_by_side: bool = True, group_column: str | None = "group"
) -> tuple[Material, list[str]]:
    banks = [Bank(path) for path in paths]
    try:
        wanted = targets or from_catalog(banks[0].catalog)
        return load_material(banks, wanted, spatial=None, side_by_side=side_by_side, group_column=group_column)
    finally:
        for bank in banks:
            bank.close()


def test_videos_without_a_target_or_missing_in_a_bank_are_left_out(tmp_path: Path) -> None:
    ids = list(VIDEOS)
    columns = {ids[0]: {"label": ""}, **{video: {"group": f"day {n // 2}"} for n, video in enumerate(ids) if n}}
    first = bank_of(tmp_path / "one.h5", VIDEOS, columns)
    second = bank_of(tmp_path / "two.h5", {video: rows[:, :2] for video, rows in VIDEOS.items() if video != ids[5]})
    material, notes = load(first, second)
    kept = set(ids[1:5])
    assert set(material.sequences[0].ids) == kept
    assert material.strata == {video: video.split("/")[0] for video in kept}
    assert material.groups == {video: columns[video]["group"] for video in kept}
    assert material.digests == {video: video for video in kept}
    assert material.sequences[0].feature_shape == (8,)
    assert [note for note in notes if ids[5] in note]
    (position,) = material.positions((ids[3],))
    np.testing.assert_array_equal(material.sequences[0].read(position)[:, :6], VIDEOS[ids[3]])


def test_a_head_for_each_bank_reads_it_alone(tmp_path: Path) -> None:
    first = bank_of(tmp_path / "one.h5", VIDEOS)
    turned = {video: rows[::-1, :2] for video, rows in reversed(VIDEOS.items())}
    second = bank_of(tmp_path / "two.h5", turned, layer="x")
    material, _ = load(first, second, side_by_side=False)
    assert [each.feature_shape for each in material.sequences] == [(6,), (2,)]
    assert material.sequences[0].ids == material.sequences[1].ids
    assert [[made["config"]["recipe"]["layer"] for made in each] for each in material.banks][1] == ["x"]
    together, _ = load(first, second)
    assert len(together.sequences) == 1
    assert len(together.banks[0]) == 2


def test_heads_that_predict_every_frame_need_the_same_frames(tmp_path: Path) -> None:
    first = bank_of(tmp_path / "one.h5", VIDEOS)
    second = bank_of(tmp_path / "two.h5", {video: rows[:5] for video, rows in VIDEOS.items()})
    per_frame = Targets("value", True, (), {video: rows[:, 0] for video, rows in VIDEOS.items()}, ())
    with pytest.raises(UserError, match="different frames of 6 of 6 videos"):
        load(first, second, targets=per_frame, side_by_side=False)
    material, _ = load(first, first, targets=per_frame, side_by_side=False)
    assert material.strata is None, "nothing to spread evenly"


def test_groups(tmp_path: Path) -> None:
    clips = {f"{label}/film{number // 2}_c{number % 2}": np.ones((3, 2)) for label in "ab" for number in range(4)}
    bank = bank_of(tmp_path / "bank.h5", clips)
    material, notes = load(bank)
    assert material.groups is None
    assert "look like clips of one recording" in notes[-1]
    material, _ = load(bank, group_column=None)
    assert material.groups is None
    with pytest.raises(UserError, match="no column 'person' for --group-column"):
        load(bank, group_column="person")
