"""Where time goes: what is counted on which part, and that a run says it."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.timing import PARTS, Spent, shares
from tests.clips import make_clip
from tests.commands import extract, said


def test_time_is_counted_on_the_part_that_takes_it() -> None:
    spent = Spent()

    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    begun = time.perf_counter()
    taken = []
    for number in spent.taking("decoding", slow()):
        taken.append(number)
        with spent.on("forward"):
            time.sleep(0.05)
    wall = time.perf_counter() - begun
    assert taken == [0, 1, 2]
    assert 0.06 <= spent.seconds["decoding"] <= wall - 0.15
    assert 0.15 <= spent.seconds["forward"] <= wall - 0.06
    assert spent.seconds["preparing"] == spent.seconds["writing"] == 0


def test_an_error_is_counted_and_passed_on() -> None:
    spent = Spent()

    def broken() -> Iterator[int]:
        yield 1
        time.sleep(0.02)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(spent.taking("decoding", broken()))
    assert spent.seconds["decoding"] >= 0.02


def test_shares_are_of_all_lanes_and_add_up() -> None:
    one, other = Spent(), Spent()
    one.seconds |= {"decoding": 1.0, "forward": 3.0}
    other.seconds |= {"preparing": 2.0}
    found = shares([one, other], 5.0)
    assert found == pytest.approx({"decoding": 0.1, "preparing": 0.2, "forward": 0.3, "writing": 0.0, "waiting": 0.4})
    assert list(found) == [*PARTS, "waiting"]


def test_an_extraction_says_where_its_time_went(tmp_path: Path) -> None:
    for number in range(4):
        make_clip(tmp_path / "data" / f"clip{number}.mp4", frames=10)
    done = extract(tmp_path / "data", tmp_path / "bank.h5")
    line = said(done, "Time")
    parts = dict(re.findall(r"(\w+) (\d+)%", line))
    assert list(parts) == [*PARTS, "waiting"]
    assert 95 <= sum(map(int, parts.values())) <= 105
    assert int(parts["forward"]) > 0
    again = extract(tmp_path / "data", tmp_path / "bank.h5")
    assert "\nTime " not in again.stdout
