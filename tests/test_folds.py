"""Where the folds come from, in which order of precedence, and what is said of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.folds import choose_folds
from pipeline.learning import Learning
from pipeline.material import Material, load_material
from pipeline.splits import Fold, write_splits
from pipeline.targets import from_catalog
from tests.banks import bank_of, in_order

VIDEOS = in_order(24)
IDS = tuple(VIDEOS)
PARTS = {video: ("train", "train", "val", "test")[number // 2 % 4] for number, video in enumerate(IDS)}


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    columns = {video: {"group": f"g{number // 4}", "half": PARTS[video]} for number, video in enumerate(IDS)}
    with Bank(bank_of(tmp_path / "bank.h5", VIDEOS, columns)) as opened:
        yield opened


def chosen(bank: Bank, *, group_column: str | None = "group", **settings: Any) -> tuple[list[Fold], str, list[str]]:
    return choose_folds(Learning(**settings), bank, material_of(bank, group_column))


def material_of(bank: Bank, group_column: str | None) -> Material:
    targets = from_catalog(bank.catalog)
    return load_material([bank], targets, spatial=None, side_by_side=True, group_column=group_column)[0]


def groups_of(ids: tuple[str, ...]) -> set[int]:
    return {IDS.index(video) // 4 for video in ids}


def test_a_random_part_is_of_whole_groups_and_of_all_classes(bank: Bank) -> None:
    (fold,), how, notes = chosen(bank, test_share=0.25, split_seed=3)
    assert how == "25% held out at random, grouped and stratified, seed 3"
    assert sorted(fold.train + fold.test) == sorted(IDS)
    assert not groups_of(fold.train) & groups_of(fold.test)
    assert {video.split("/")[0] for video in fold.test} == {"rising", "falling"}
    assert notes == []


def test_folds_test_every_video_once(bank: Bank) -> None:
    folds, how, _ = chosen(bank, folds=3, group_column=None)
    assert how == "3 folds, stratified, seed 0"
    assert sorted(video for fold in folds for video in fold.test) == sorted(IDS)


def test_a_column_says_the_parts(bank: Bank) -> None:
    (fold,), how, notes = chosen(bank, split_column="half")
    assert how == "the bank's column half"
    assert set(fold.test) == {video for video in IDS if PARTS[video] == "test"}
    assert set(fold.validation) == {video for video in IDS if PARTS[video] == "val"}
    assert any("group" in note for note in notes), "groups of four are divided between parts"


def test_a_file_says_the_parts(bank: Bank, tmp_path: Path) -> None:
    made = Fold("a", IDS[:12], (), IDS[12:])
    write_splits(tmp_path / "splits.csv", [made])
    (fold,), how, _ = chosen(bank, splits=tmp_path / "splits.csv", split_column="half")
    assert fold == made
    assert how == f"as in {tmp_path / 'splits.csv'}"


def test_validation_is_taken_from_training_where_there_is_none(bank: Bank) -> None:
    (plain,), _, _ = chosen(bank)
    (fold,), _, _ = chosen(bank, validation_share=0.25)
    assert fold.test == plain.test
    assert fold.validation
    assert sorted(fold.train + fold.validation) == sorted(plain.train)
    (fold,), _, _ = chosen(bank, validation_share=0.25, split_column="half")
    assert set(fold.validation) == {video for video in IDS if PARTS[video] == "val"}, "there was one already"


def test_no_such_column(bank: Bank) -> None:
    with pytest.raises(UserError, match=r"no column 'third' for --split-column; it has .*half"):
        chosen(bank, split_column="third")
