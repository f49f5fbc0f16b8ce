"""Pieces of work: dearest first, no piece empty, no video lost, about as much work in each, split where one kills."""

import random

import pandas as pd
import pytest

from pipeline.pieces import LONGEST, SHORTEST, Video, Waiting, costs, split


def probed(*headers: tuple[int, int, int]) -> pd.DataFrame:
    return pd.DataFrame(headers, columns=["frames_declared", "width", "height"])


def videos(*names: str) -> list[Video]:
    return [Video({"id": name}, 1.0) for name in names]


def pieces(waiting: Waiting, workers: int, lanes: int, pace: float | None) -> list[list[Video]]:
    taken = []
    while len(waiting):
        taken.append(waiting.take(workers, lanes, pace))
    return taken


def test_more_frames_and_more_pixels_cost_more_and_the_unknown_costs_the_median() -> None:
    short, long, large, silent, small = costs(
        probed((10, 320, 240), (100, 320, 240), (100, 1920, 1080), (0, 320, 240), (50, 320, 240))
    )
    assert short < small < long < large
    assert long == pytest.approx(10 * short)
    assert long < silent + small < 3 * long  # between the small and the long one
    assert costs(probed((0, 320, 240), (7, 0, 0))) == [costs(probed((0, 0, 0)))[0]] * 2
    assert min(costs(probed((0, 0, 0), (1, 2, 2)))) > 0
    assert costs(probed()) == []


@pytest.mark.parametrize("pace", [None, 3.0, 1e9])
@pytest.mark.parametrize(("workers", "lanes"), [(1, 1), (1, 8), (3, 2), (64, 16)])
def test_every_video_is_in_one_piece_and_the_dearest_come_first(workers: int, lanes: int, pace: float | None) -> None:
    draw = random.Random(1)
    prices = [draw.expovariate(1 / 10) + 0.1 for _ in range(500)]
    waiting = Waiting([{"id": number} for number in range(500)], prices)
    taken = pieces(waiting, workers, lanes, pace)
    assert all(taken)
    given = [video for piece in taken for video in piece]
    assert sorted(video.row["id"] for video in given) == list(range(500))
    assert [video.cost for video in given] == sorted(prices, reverse=True)


def test_pieces_are_of_seconds_of_work_and_smaller_towards_the_end() -> None:
    pace = 10.0
    taken = pieces(Waiting([{"id": number} for number in range(4000)], [1.0] * 4000), 4, 2, pace)
    seconds = [sum(video.cost for video in piece) / pace for piece in taken]
    assert max(seconds) <= LONGEST
    assert seconds[0] > 0.9 * LONGEST
    assert min(seconds[:-1]) >= 0.9 * SHORTEST
    assert seconds == sorted(seconds, reverse=True)
    assert len(taken) >= 3 * 4


def test_a_worker_gets_everything_where_no_other_will_come_and_else_leaves_some_for_those() -> None:
    everything = [{"id": number} for number in range(4000)], [1.0] * 4000
    assert len(Waiting(*everything).take(1, 2, None, alone=True)) == 4000
    taken = pieces(Waiting(*everything), 1, 2, 10.0)
    assert len(taken[0]) == LONGEST * 10
    assert len(taken) > 12


def test_each_worker_gets_as_many_videos_as_it_has_lanes_while_there_are_enough() -> None:
    films = Waiting([{"id": number} for number in range(40)], [1e6] * 40)
    assert len(films.take(2, 8, 1.0)) == 8  # however long: no core is idle
    few = Waiting([{"id": number} for number in range(4)], [1e6] * 4)
    assert [len(piece) for piece in pieces(few, 4, 8, 1.0)] == [1] * 4


def test_a_piece_is_split_into_suspects_alone_and_halves_of_the_others() -> None:
    assert split(videos("a", "b", "c", "d", "e"), {"b", "gone"}) == [
        videos("b"), videos("a", "d"), videos("c", "e"),
    ]  # fmt: skip
    assert split(videos("a", "b"), {"a", "b"}) == [videos("a"), videos("b")]
    assert split(videos("a"), ()) == [videos("a")]
    assert split([], {"a"}) == []


def test_halving_finds_one_of_a_thousand_in_few_steps() -> None:
    piece = videos(*map(str, range(1000)))
    steps = 0
    while len(piece) > 1:
        piece = next(part for part in split(piece, ()) if any(video.row["id"] == "617" for video in part))
        steps += 1
    assert steps <= 10
