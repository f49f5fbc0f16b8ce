"""Splits: whole groups, classes in proportion, the same parts from the same seed, and refusals that say why."""

import re
from collections import Counter

import numpy as np
import pytest

from pipeline import splits
from pipeline.errors import UserError
from pipeline.splits import Fold


def videos(per_class: int = 30, groups: int = 12, classes: int = 2) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Ids, their classes, and groups of unequal size that hold several classes."""
    generator = np.random.default_rng(0)
    ids = [f"class{k}/clip{number:03}" for k in range(classes) for number in range(per_class)]
    chance = generator.dirichlet(np.full(groups, 2.0))
    drawn = generator.choice(groups, size=len(ids), p=chance)
    return ids, {video: video.split("/")[0] for video in ids}, {v: f"g{g:02}" for v, g in zip(ids, drawn, strict=True)}


def parts(fold: Fold) -> list[set[str]]:
    return [set(fold.train), set(fold.validation), set(fold.test)]


def check(fold: Fold, ids: list[str], groups: dict[str, str] | None) -> None:
    """Every video in exactly one part, in the bank's order, and no group in two."""
    train, validation, test = parts(fold)
    assert train | validation | test == set(ids)
    assert len(train) + len(validation) + len(test) == len(ids)
    for part in (fold.train, fold.validation, fold.test):
        assert list(part) == [video for video in ids if video in set(part)]
    if groups:
        names = [{groups[video] for video in part} for part in (train, validation, test)]
        assert len(set.union(*names)) == sum(map(len, names))


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("stratified", [True, False])
def test_cross_validation_tests_every_video_once(grouped, stratified):
    ids, classes, of = videos()
    strata, groups = (classes if stratified else None), (of if grouped else None)
    folds = splits.cross_validation(ids, strata, groups, 4, 7)
    assert [fold.name for fold in folds] == ["1", "2", "3", "4"]
    assert Counter(video for fold in folds for video in fold.test) == Counter(ids)
    for fold in folds:
        check(fold, ids, groups)
    assert folds == splits.cross_validation(ids, strata, groups, 4, 7)
    assert folds != splits.cross_validation(ids, strata, groups, 4, 8)
    if stratified and not grouped:
        assert {Counter(classes[video] for video in fold.test)["class0"] for fold in folds} <= {7, 8}


def test_as_many_folds_as_groups_leave_one_out():
    ids, strata, groups = videos(groups=5)
    folds = splits.cross_validation(ids, strata, groups, 5, 0)
    assert [{groups[video] for video in fold.test} for fold in folds] == [{f"g{k:02}"} for k in range(5)]
    alone = splits.cross_validation(ids[:4], None, None, 4, 0)
    assert [fold.test for fold in alone] == [(video,) for video in ids[:4]]


@pytest.mark.parametrize("grouped", [True, False])
def test_holdout_and_inner_validation_keep_shares(grouped):
    ids, strata, of = videos(per_class=60, groups=30, classes=3)
    groups = of if grouped else None
    fold = splits.holdout(ids, strata, groups, 0.25, 3)
    assert fold == splits.holdout(ids, strata, groups, 0.25, 3) != splits.holdout(ids, strata, groups, 0.25, 4)
    inner, note = splits.with_validation(fold, strata, groups, 0.2, 3)
    assert note is None
    assert inner.test == fold.test
    check(inner, ids, groups)
    for whole, part, share in ((ids, inner.test, 0.25), (fold.train, inner.validation, 0.2)):
        counts = Counter(strata[video] for video in part)
        for label, total in Counter(strata[video] for video in whole).items():
            assert counts[label] == pytest.approx(share * total, abs=4 if grouped else 1)


def test_a_huge_group_stays_in_training():
    ids = [f"v{number}" for number in range(100)]
    groups = {video: "huge" if number < 80 else video for number, video in enumerate(ids)}
    fold = splits.holdout(ids, None, groups, 0.1, 0)
    assert len(fold.test) == 10
    assert "huge" not in {groups[video] for video in fold.test}


def test_validation_leaves_each_class_something_to_train_on():
    ids = [f"a{n}" for n in range(20)] + ["b0", "b1"]
    strata = {video: video[0] for video in ids}
    for seed in range(10):
        for groups in (None, {video: video for video in ids}):
            fold, note = splits.with_validation(Fold("1", tuple(ids), (), ("t",)), strata, groups, 0.1, seed)
            assert note is None
            assert {strata[video] for video in fold.train} == {"a", "b"}
            assert {strata[video] for video in fold.validation} == {"a", "b"}


def test_no_validation_where_a_class_could_not_be_in_both():
    fold = Fold("2", ("a1", "a2", "b1", "b2"), (), ("t",))
    strata = {video: video[0] for video in (*fold.train, *fold.test)}
    assert splits.with_validation(fold, strata, {"a1": "x", "a2": "y", "b1": "z", "b2": "z"}, 0.3, 0) == (
        fold,
        "fold 2 has no validation part: in its training part, class 'b' has videos in only 1 group",
    )
    assert splits.with_validation(Fold("1", ("a1", "a2", "b1"), (), ("t",)), strata, None, 0.3, 0)[1] == (
        "fold 1 has no validation part: in its training part, class 'b' has only 1 video"
    )
    assert splits.with_validation(Fold("1", ("a1",), (), ("t",)), None, None, 0.3, 0)[1] == (
        "fold 1 has no validation part: in its training part, there is only 1 video"
    )


def test_column():
    ids = ["a", "b", "c", "d", "e"]
    fold, notes = splits.from_column(ids, ["Train", "training", "dev", " TEST", ""])
    assert fold == Fold("test", ("a", "b"), ("c",), ("d",))
    assert notes == ["videos in no part of the split, left out: 1, e.g. e"]
    fold, notes = splits.from_column(ids[:3], ["train", "valid", "validation"])
    assert fold == Fold("test", ("a",), (), ("b", "c"))
    assert notes == ["the split has no test part: its validation part of 2 is the test"]
    with pytest.raises(UserError, match=r"The split of b is 'trian'; expected one of train, training, val"):
        splits.from_column(ids[:2], ["train", "trian"])
    with pytest.raises(UserError, match=r"no video to test on \(5 train, 0 validation, 0 test\)"):
        splits.from_column(ids, ["train"] * 5)
    with pytest.raises(UserError, match="no video to train on"):
        splits.from_column(ids, ["val"] * 4 + ["test"])


def test_missing_groups():
    assert splits.groups_from(["a", "b"], ["", ""]) == (None, [])
    assert splits.groups_from(["a", "b", "c"], ["x", "", "x"]) == (
        {"a": "x", "b": "b", "c": "x"},
        ["videos without a group, each taken as a group of its own: 1, e.g. b"],
    )


def test_leakage():
    groups = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"}
    clean = Fold("1", ("a", "b"), (), ("c", "d", "e"))
    leaking = Fold("2", ("a",), ("c",), ("b", "d", "e"))
    assert splits.leakage([clean], groups) == splits.leakage([leaking], None) == []
    assert splits.leakage([clean, leaking], groups) == [
        "LEAKAGE in fold 2: 2 of 3 groups of the test part are in training too (2 of 3 test videos, e.g. b of group x),"
        " so its score flatters"
    ]


def test_files_in_training_and_test():
    folds = [Fold("1", ("a",), ("b",), ("c", "d")), Fold("2", ("c",), (), ("a",))]
    digests = {"a": "1", "b": "2", "c": "2", "d": ""}
    (line,) = splits.shared_files(folds, digests)
    assert line.startswith("LEAKAGE: 1 of 3 test videos are of files that are in training too")
    assert "e.g. c and b" in line
    assert splits.shared_files(folds, {"a": "1", "b": "", "c": "2", "d": ""}) == []


def test_preflight_table():
    ids = ["a1", "a2", "a3", "b1", "b2", "b3"]
    strata = {video: "walk" if video < "b" else "10_run" for video in ids}
    groups = {"a1": "x", "a2": "x", "a3": "y", "b1": "x", "b2": "y", "b3": "z"}
    folds = [
        Fold("1", ("a1", "a2", "b1"), (), ("a3", "b2", "b3")),
        Fold("2", ("a3", "b2", "b3"), (), ("a1", "a2", "b1")),
    ]
    assert splits.preflight(strata, groups, folds) == [
        "class   videos  groups  train  validation  test",
        "10_run       3       3    1-2           0   1-2",
        "walk         3       2    1-2           0   1-2",
        "all          6       3      3           0     3",
    ]
    assert "groups" not in splits.preflight(strata, None, folds)[0]


def test_preflight_refuses():
    strata = {"a1": "a", "a2": "a", "b1": "b", "b2": "b"}
    groups = {"a1": "x", "a2": "y", "b1": "x", "b2": "x"}
    folds = splits.cross_validation(list(strata), strata, groups, 2, 0)  # as many as groups: leaves one out
    with pytest.raises(UserError, match=r"Class 'b' \(2 videos in 1 group\) has none in the training part of fold 1"):
        splits.preflight(strata, groups, folds)
    with pytest.raises(UserError, match=r"Class 'b' \(2 videos\) has no test video"):
        splits.preflight(strata, None, [Fold("test", ("a1", "b1", "b2"), (), ("a2",))])


def test_too_few():
    ids, strata, groups = videos(per_class=4, groups=3)
    with pytest.raises(UserError, match="Class 'class0' has only 4 videos; 5 folds need 5"):
        splits.cross_validation(ids, strata, None, 5, 0)
    with pytest.raises(UserError, match="4 folds of 3 groups cannot be made; ask for 2 to 3"):
        splits.cross_validation(ids, strata, groups, 4, 0)
    with pytest.raises(UserError, match="1 folds of 8 videos cannot be made; ask for 2 to 8"):
        splits.cross_validation(ids, strata, None, 1, 0)
    with pytest.raises(UserError, match="Folds need at least 2 groups, and there is 1"):
        splits.cross_validation(ids, strata, dict.fromkeys(ids, "g"), 2, 0)
    own = {video: "one" if video.startswith("class1") else video for video in ids}
    with pytest.raises(UserError, match="Class 'class1' has videos in only 1 group; 3 folds need 2"):
        splits.cross_validation(ids, strata, own, 3, 0)
    with pytest.raises(UserError, match="Class 'class1' has videos in only 1 group; a split"):
        splits.holdout(ids, strata, own, 0.2, 0)
    with pytest.raises(UserError, match="Class 'class1' has only 1 video; a split"):
        splits.holdout(ids[:5], strata, None, 0.2, 0)
    with pytest.raises(UserError, match="share of videos to test on is 1; it must lie between 0 and 1"):
        splits.holdout(ids, strata, None, 1, 0)


@pytest.mark.parametrize(
    "ids",
    [
        ["Run/v_Run_g01_c01", "Run/v_Run_g01_c02", "Run/v_Run_g02_c01", "Run/v_Run_g02_c02"],
        ["red_1", "red_2", "blue_1", "blue_2"],
        ["x/talk-part1", "x/talk-part2", "x/walk part 1", "x/walk part 2"],
        ["a@0-2.5", "a@2.5-end", "b"],
    ],
)
def test_siblings_are_warned_of(ids):
    warning = splits.sibling_warning(ids)
    assert warning is not None
    assert f"look like clips of one recording, e.g. {ids[0]} and {ids[1]}, and there are no groups" in warning


@pytest.mark.parametrize(
    "ids",
    [
        [f"fight/fi{n:03}" for n in range(9)] + [f"noFight/nofi{n:03}" for n in range(9)],
        [f"clip{n:04}" for n in range(9)],
        [f"clip_{n:04}" for n in range(9)],
        [f"{name}/{name}_{n}" for name in ("walk", "run") for n in range(9)],
        [f"a/{n}" for n in range(9)],
        ["2020_light_none", "2021_light_none", "a@0-1", "b@0-1"],
        [],
    ],
)
def test_plain_numbering_is_no_sign_of_siblings(ids):
    assert splits.sibling_warning(ids) is None


def test_files_there_and_back(tmp_path):
    ids, strata, groups = videos()
    folds = [
        splits.with_validation(fold, strata, groups, 0.2, 1)[0]
        for fold in splits.cross_validation(ids, strata, groups, 3, 1)
    ]
    path = tmp_path / "splits.csv"
    splits.write_splits(path, folds)
    assert path.read_text().splitlines()[:2] == ["id,fold,part", f"{folds[0].train[0]},1,train"]
    assert splits.read_splits(path, ids) == (folds, [])
    listed, _ = splits.read_splits(path)
    assert [[*map(set, parts(fold))] for fold in listed] == [[*map(set, parts(fold))] for fold in folds]
    path.write_text(path.read_text().replace(",", ";"))  # as a spreadsheet may save it
    assert splits.read_splits(path, ids) == (folds, [])
    read, notes = splits.read_splits(path, [*ids[1:], "new"])
    assert notes == [
        f"ids of {path} that the bank does not have: 1, e.g. {ids[0]}",
        f"videos that {path} does not list, left out: 1, e.g. new",
    ]
    assert {video for fold in read for part in parts(fold) for video in part} == set(ids[1:])


def test_files_that_are_refused(tmp_path):
    def refused(text: str, message: str) -> None:
        (tmp_path / "splits.csv").write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            splits.read_splits(tmp_path / "splits.csv", ["a", "b", "nan"])
        assert "\n" not in str(caught.value)

    refused("id,part\na,train\n", "has no column 'fold' but id, part; expected id, fold, part")
    refused("id,fold,part\na,1,train\nb,1,later\n", "the part of b is 'later'")
    refused("id,fold,part\nx,1,train\ny,1,test\n", "None of the 2 ids .* is in the bank, e.g. x")
    refused("id,fold,part\na,1,train\na,1,test\n", "has a twice in fold '1'")
    refused("id,fold,part\na,1,train\nb,1,test\na,2,train\nb,2,test\n", "tests b in more than one fold")
    refused("id,fold,part\na,1,train\n", "leaves fold '1' no video to test on")
    refused("id,fold,part\na,1,train,5\n,\n,,,,,,\n", "could not be read as a CSV of splits")
    refused("", "could not be read as a CSV of splits")
    for name in ("all", "1-seed1", "../1", "a/b", "", ".", "1."):  # each would be the folder of something else
        refused(f"id,fold,part\na,{name},train\nb,{name},test\n", f"a fold cannot be called {re.escape(repr(name))}")
    with pytest.raises(UserError, match="could not be read"):
        splits.read_splits(tmp_path / "none.csv", ["a"])
    (tmp_path / "splits.csv").write_text("id,fold,part\nnan,x,Train\na,x,VAL\nb,x,test\n")
    assert splits.read_splits(tmp_path / "splits.csv", ["a", "b", "nan"]) == ([Fold("x", ("nan",), ("a",), ("b",))], [])
