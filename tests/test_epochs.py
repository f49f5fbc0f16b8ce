"""What an epoch shows a head: every row once, chunks in order, targets of overlapping chunks once."""

from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.epochs import Portion, in_steps, portions_of
from pipeline.objectives import TargetRows
from pipeline.optimisation import FitConfig
from pipeline.selection import Selection
from pipeline.sequences import Sequences
from tests.heads import class_rows, sequences_of

LENGTHS = [5, 40, 12, 1, 23, 8, 33]


def portions(
    sequences: Sequences,
    targets: TargetRows,
    *,
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    bidirectional: bool = False,
    seed: int = 0,
    videos: np.ndarray | None = None,
    **changes: object,
) -> list[Portion]:
    return portions_of(
        sequences,
        np.arange(len(sequences)) if videos is None else videos,
        targets,
        selection,
        FitConfig(**{"batch_size": 3, "chunk_steps": 10, **changes}),  # type: ignore[arg-type]
        np.random.default_rng(seed),
        bidirectional=bidirectional,
    )


def counted_rows(sequences: Sequences, targets: TargetRows, epoch: list[Portion]) -> Counter[int]:
    """How often each row's target counts; needs targets that are all known and per frame."""
    seen: Counter[int] = Counter()
    for portion in epoch:
        batch = sequences.batch(portion.videos, portion.steps)
        wanted = portion.targets(targets, batch)
        seen.update(batch.rows[wanted != -100].tolist())
    return seen


def framewise(count: int) -> TargetRows:
    return class_rows([row % 2 for row in range(count)], per_frame=True)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_target_counts_once(bidirectional: bool) -> None:
    sequences = sequences_of(LENGTHS)
    targets = framewise(sum(LENGTHS))
    epoch = portions(sequences, targets, bidirectional=bidirectional)
    assert counted_rows(sequences, targets, epoch) == Counter(range(sum(LENGTHS)))
    most = 15 if bidirectional else 10  # a quarter of a chunk more on either side
    assert max(len(steps) for portion in epoch if portion.steps for steps in portion.steps) <= most
    for portion in epoch:
        for video, rows in zip(portion.videos, portion.whole or [], strict=False):
            assert rows.tolist() == list(range(LENGTHS[video]))
    assert sum(len(portion.whole or []) > 0 for portion in epoch) > 3


def test_chunks_follow_each_other_and_the_longest_stay() -> None:
    sequences = sequences_of(LENGTHS)
    epoch = portions(sequences, framewise(sum(LENGTHS)), max_steps=10 * 3)
    chains: list[list[Portion]] = []
    for portion in epoch:
        if portion.chunk == 0:
            chains.append([])
        if portion.chunk is not None:
            assert portion.chunk == len(chains[-1])
            chains[-1].append(portion)
    assert sorted(video for chain in chains for video in chain[0].videos.tolist()) == [1, 2, 4, 6]
    for chain in chains:
        for portion, before in zip(chain[1:], chain, strict=False):
            assert portion.videos.tolist() == before.videos.tolist()[: len(portion.videos)]
            assert portion.steps is not None
            assert all(steps[0] == 10 * (portion.chunk or 0) for steps in portion.steps)


def test_a_video_with_one_target_is_seen_whole() -> None:
    sequences = sequences_of(LENGTHS)
    epoch = portions(sequences, class_rows([0, 1, 0, 1, 0, 1, 0]))
    assert all(portion.steps is None and portion.chunk is None for portion in epoch)
    assert sorted(np.concatenate([portion.videos for portion in epoch])) == list(range(7))


def test_nothing_is_done_for_rows_without_a_target() -> None:
    sequences = sequences_of(LENGTHS)
    known = np.full(sum(LENGTHS), -1)
    known[5 + 15] = 1  # in the second chunk of video 1, which has four
    targets = class_rows(known.tolist(), per_frame=True)
    one_way = portions(sequences, targets, max_steps=10)
    assert [(portion.videos.tolist(), portion.chunk, portion.learns) for portion in one_way] == [
        ([1], 0, False),
        ([1], 1, True),
    ]
    (both_ways,) = portions(sequences, targets, bidirectional=True, batch_size=1)
    assert both_ways.learns
    assert both_ways.counted is not None
    assert both_ways.counted.tolist() == [[2, 12]]


def test_the_seed_says_what_an_epoch_is() -> None:
    sequences, targets = sequences_of(LENGTHS * 5), class_rows([0, 1, 0, 1, 0, 1, 0] * 5)
    crop = Selection("crop", 4)
    first, again, other = (portions(sequences, targets, selection=crop, seed=seed) for seed in (0, 0, 1))
    described = [
        [(p.videos.tolist(), [s.tolist() for s in p.steps or []]) for p in each] for each in (first, again, other)
    ]
    assert described[0] == described[1]
    assert described[0] != described[2]
    assert all(
        len(steps) == min(4, LENGTHS[video % 7])
        for videos, rows in described[0]
        for video, steps in zip(videos, rows, strict=True)
    )


def test_balanced_sampling_draws_rare_classes_as_often() -> None:
    count = 400
    sequences = sequences_of([1] * count)
    targets = class_rows([int(number < 20) for number in range(count)])
    epoch = portions(sequences, targets, balance="sampling", videos=np.arange(300))
    drawn = np.concatenate([portion.videos for portion in epoch])
    assert len(drawn) == 300
    assert drawn.max() < 300
    rare = torch.tensor(drawn < 20).sum().item()
    assert 110 < rare < 190  # 150 on average, 5 standard deviations around it


@pytest.mark.parametrize("per_frame", [False, True])
def test_batches_are_no_larger_than_memory_allows(per_frame: bool) -> None:
    plain = sequences_of(LENGTHS)
    seconds = [plain.seconds(video) for video in range(len(plain))]
    rows = torch.cat([plain.read(video) for video in range(len(plain))])
    sequences = Sequences(plain.ids, seconds, rows, most_rows=9).to("cpu")
    targets = framewise(sum(LENGTHS)) if per_frame else class_rows([0, 1, 0, 1, 0, 1, 0])
    epoch = portions(sequences, targets)
    assert sum(portion.rows(sequences) for portion in epoch) == sum(LENGTHS)
    for portion in epoch:
        assert portion.rows(sequences) <= 9 or (len(portion.videos) == 1 and not per_frame)


def test_a_step_has_so_many_portions_that_learn() -> None:
    learns = [False, True, True, False, False, True, True, True]
    nobody = Portion(np.zeros(0, np.int64), None)
    steps = in_steps([nobody._replace(learns=each) for each in learns], 2)
    assert [[portion.learns for portion in step] for step in steps] == [
        [False, True, True],
        [False, False, True, True],
        [True],
    ]
