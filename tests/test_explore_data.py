"""What the page of a bank says, as data: counts and lengths as the catalog has them, samples, copies, pictures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import explore_data
from pipeline.bank import Bank
from pipeline.bank_survey import survey
from pipeline.explore_data import classes, copies, course, failures, lengths, mapped, pictures, sample, still
from tests.banks import bank_of, embeddings, fill
from tests.test_bank_survey import spoil


def catalog(**columns: list[object]) -> pd.DataFrame:
    count = len(next(iter(columns.values())))
    known = {"label": [""] * count, "split": [""] * count, "rows": [1] * count, "duration": [np.nan] * count}
    return pd.DataFrame({"id": [f"v{place}" for place in range(count)], **known, **columns})


def test_a_sample_is_spread_and_the_same_twice() -> None:
    ids = [f"v{place:05}" for place in range(7000)]
    drawn = sample(ids)
    assert len(set(drawn)) == explore_data.MAPPED == 3000
    assert drawn == sorted(drawn) == sample(ids)
    assert 1400 < sum(each < "v03500" for each in drawn) < 1600
    assert sample(ids[:3000]) == ids[:3000]


def test_classes_and_splits_are_counted() -> None:
    table = catalog(label=["b", "", "a10", "a9", "a9"], split=["x", "y", "x", "y", "y"], rows=[1, 2, 3, 4, 5])
    found = classes(table)
    assert [(each["name"], each["videos"], each["rows"]) for each in found] == [
        ("a9", 2, 9),
        ("a10", 1, 3),
        ("b", 1, 1),
        ("", 1, 2),
    ]
    assert found[0]["splits"] == {"x": 0, "y": 2}


@pytest.mark.parametrize("values", [[1.0], [5.0, 5.0], [0.1, 0.3, 7.9], [2.0, 3600.0, 90.0], list(range(1, 200))])
def test_bins_of_lengths_hold_every_video(values: list[float]) -> None:
    for column in ("duration", "rows"):
        whole = [max(1, round(each)) for each in values]
        found = lengths(catalog(**{column: values if column == "duration" else whole}))
        assert found["unit"] == ("seconds" if column == "duration" else "rows")
        assert len(found["bins"]) <= 14
        assert sum(count for *_, count in found["bins"]) == len(values)
        for start, stop, count in found["bins"]:
            inside = [each for each in (values if column == "duration" else whole) if start <= each < stop]
            assert abs(len(inside) - count) <= (stop == found["bins"][-1][1])


def test_copies_that_matter_come_first() -> None:
    table = catalog(label=["a", "a", "a", "a", "a", "b"], split=["x", "x", "x", "y", "x", "x"])
    found = copies(table, [["v0", "v1"], ["v2", "v3"], ["v4", "v5"]])
    assert [[video["id"] for video in each["videos"]] for each in found] == [["v4", "v5"], ["v2", "v3"], ["v0", "v1"]]
    assert [(each["labels_differ"], each["splits_differ"]) for each in found] == [
        (True, False),
        (False, True),
        (False, False),
    ]


def test_stillness_on_the_clock_of_the_video(tmp_path: Path) -> None:
    rows = {"short": embeddings("short", 30), "long": embeddings("long", 30), "none": embeddings("none", 30)}
    rows["short"][10:16] = rows["short"][10]
    rows["long"][10:25] = rows["long"][10]
    rows["long"][28:] = 0
    with Bank(bank_of(tmp_path / "b.h5", rows)) as bank:
        found = survey(bank, list(bank), on_video=lambda *_: None)
    first, second = still(found)
    assert (first["id"], first["most"], first["still"], first["kinds"]) == ("long", 15, 17, ["frozen", "zero"])
    assert first["longest"] == pytest.approx([1.0, 2.4])
    assert first["bars"] == [["frozen", 10 / 30, 25 / 30], ["zero", 28 / 30, 1]]
    assert (second["id"], second["unit"]) == ("short", "Seconds")
    drawn = course(found.videos["short"])
    assert drawn["end"] == 2.9
    assert drawn["still"] == [["frozen", 1.0, 1.5]]
    assert [x for x, y in drawn["line"] if y == 0] == [1.1, 1.2, 1.3, 1.4, 1.5]


def test_what_is_mapped_has_a_finite_mean(tmp_path: Path) -> None:
    rows = {name: embeddings(name, 5) for name in "abcde"} | {"lost": embeddings("lost", 4)}
    path = bank_of(tmp_path / "b.h5", rows)
    spoil(path, "lost", slice(None))
    with Bank(path) as bank:
        found = survey(bank, list(bank), on_video=lambda *_: None)
        shown, maps, near = mapped(found, list(bank))
    assert shown == list("abcde")
    assert maps is not None
    assert all(len(each) == 4 and place not in [other for other, _ in each] for place, each in enumerate(near))


def test_failures_by_reason(tmp_path: Path) -> None:
    fill(tmp_path / "b.h5", {}, failures={"x/1": "cut off", "x/2": "no video", "x/3": "cut off"})
    with Bank(tmp_path / "b.h5") as bank:
        found = failures(bank)
    assert found["count"] == 3
    assert found["reasons"] == [("cut off", 2), ("no video", 1)]
    assert found["listed"] == [("x/1", "cut off"), ("x/2", "no video"), ("x/3", "cut off")]


def test_pictures_that_cannot_be_are_told(tmp_path: Path) -> None:
    done: list[int] = []
    with Bank(bank_of(tmp_path / "b.h5", {"a": embeddings("a", 4), "b": embeddings("b", 4)})) as bank:
        found, gaps = pictures(bank, list(bank), on_video=done.append)
    assert found == {}
    assert set(gaps) == {"a", "b"}
    assert done == [1, 2]


@pytest.mark.parametrize("count", [0, 1, 2, 5, 64, 1000])
def test_any_beginning_is_spread(count: int) -> None:
    order = explore_data._spread(count)
    assert sorted(order) == list(range(count))
    if count == 1000:
        assert np.histogram(order[:64], 8, (0, 1000))[0].min() >= 7
