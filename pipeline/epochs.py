"""One epoch of training, laid out: which rows of which videos each step of the optimiser sees, in what order.

A portion is what goes through the head at once; a step of the optimiser is made of one, or of several that accumulate.

Videos of like length share a batch. A video with a target per frame that is longer than a chunk is trained in chunks,
by truncated back-propagation: in one direction chunk after chunk, the state carried on without its gradient; in both
directions in chunks that overlap, whose targets count once. A video with one target is always seen whole.

Everything random comes from one generator, so the seed and the number of the epoch say what the epoch is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import ranks
from pipeline.heads import Carry, SequenceModel
from pipeline.inputs import apart_of, joined
from pipeline.layout import layout
from pipeline.long_sequences import context_of, pieces, vectors_of, video_centre
from pipeline.objectives import TargetRows
from pipeline.optimisation import FitConfig
from pipeline.scoring import OVERLAPS, chosen_rows, lengths_of, reading
from pipeline.segments import IGNORED
from pipeline.selection import Selection
from pipeline.sequences import Batch, Sequences, buckets
from pipeline.transfers import moved


class Portion(NamedTuple):
    """What goes through the head at once.

    Attributes:
        videos: (b,) positions in the sequences.
        steps: for each the rows to take; None takes all.
        chunk: None for rows that stand by themselves; else the number of a chunk, from 0. Each later one goes on where
            the portion before stopped, with its first b videos.
        whole: for each all the rows of the video that the epoch takes, where this portion sees a part of them.
        first: (b,) int64 where in `whole` the part begins; by its rows it could not be told, as they may repeat.
        counted: (b, 2) the taken rows, from and to, whose targets count; None counts all.
        learns: whether any target counts; without one the portion only carries the state on.
    """

    videos: np.ndarray
    steps: list[np.ndarray] | None
    chunk: int | None = None
    whole: list[np.ndarray] | None = None
    first: np.ndarray | None = None
    counted: np.ndarray | None = None
    learns: bool = True

    def share(self) -> "Portion":
        """What of it is this rank's, perhaps no video; whether it learns is said of the whole."""
        videos, steps, chunk, whole, first, counted, learns = self
        return Portion(
            ranks.share(videos),
            None if steps is None else ranks.share(steps),
            chunk,
            None if whole is None else ranks.share(whole),
            None if first is None else ranks.share(first),
            None if counted is None else ranks.share(counted),
            learns,
        )

    def rows(self, sequences: Sequences) -> int:
        """How many rows it has."""
        return int(lengths_of(sequences, self.videos, self.steps).sum())

    def targets(self, targets: TargetRows, batch: Batch) -> Tensor:
        """The targets of this portion's batch, those that do not count masked."""
        values = targets.of(batch)
        if self.counted is None:
            return values
        place = layout(batch.packed)
        first, stop = moved(torch.from_numpy(self.counted), values.device)[place.video].unbind(dim=1)
        counts = (place.step >= first) & (place.step < stop)
        masked = IGNORED if targets.kind == "class" else float("nan")
        return torch.where(counts if values.ndim == 1 else counts[:, None], values, masked)


def portions_of(
    sequences: Sequences,
    videos: np.ndarray,
    targets: TargetRows,
    selection: Selection,
    config: FitConfig,
    generator: np.random.Generator,
    *,
    bidirectional: bool,
) -> list[Portion]:
    """The portions of one epoch, in order. Those that hold no target are left out.

    Args:
        sequences: what the head reads.
        videos: (B,) the training videos; with balanced sampling the epoch draws B of them, with replacement.
        targets: of all videos of the sequences.
        selection: which rows of a video are taken.
        config: sizes of batches and chunks, and the balance.
        generator: of everything random.
        bidirectional: whether the head reads both ways.
    """
    if config.balance == "sampling":
        videos = _balanced(videos, targets, generator)
    chosen = chosen_rows(sequences, videos, selection, generator=generator)
    lengths = lengths_of(sequences, videos, chosen)
    at_once, chunk = sizes_of(sequences, config)
    is_long = lengths > chunk if targets.per_frame else np.full(len(videos), False)
    short = np.flatnonzero(~is_long)
    batches = buckets(lengths[short], config.batch_size, max_steps=at_once, generator=generator)
    groups = [[_whole(videos, chosen, short[batch])] for batch in batches]
    if is_long.any():
        steps = chosen or [np.arange(length) for length in lengths]
        stretches = [(int(videos[place]), steps[place]) for place in np.flatnonzero(is_long)]
        cut = _overlapping if bidirectional else _carried
        groups += cut(stretches, chunk, config.batch_size, at_once, generator)
        groups = [groups[place] for place in generator.permutation(len(groups))]
    if targets.per_frame and not targets.known.all():
        groups = [_learning(group, sequences, targets) for group in groups]
    return [portion for group in groups for portion in group]


def steps_of(
    sequences: Sequences,
    videos: np.ndarray,
    targets: TargetRows,
    selection: Selection,
    config: FitConfig,
    *,
    bidirectional: bool,
) -> int:
    """How many steps of the optimiser an epoch makes, as far as that does not hang on what is drawn at random."""
    drawn = np.random.default_rng(0)
    portions = portions_of(sequences, videos, targets, selection, config, drawn, bidirectional=bidirectional)
    return len(in_steps(portions, config.accumulate))


def in_steps(portions: list[Portion], accumulate: int) -> list[list[Portion]]:
    """The portions of each step of the optimiser, in order: each has `accumulate` that learn, the last what is left."""
    steps: list[list[Portion]] = []
    full = True
    for portion in portions:
        if full:
            steps.append([])
        steps[-1].append(portion)
        full = sum(each.learns for each in steps[-1]) == accumulate
    return steps


def sizes_of(sequences: Sequences, config: FitConfig) -> tuple[int, int]:
    """Most rows of a batch, and of a chunk."""
    at_once = min(config.max_steps, sequences.most_rows)
    return at_once, min(config.chunk_steps, at_once)


def _whole(videos: np.ndarray, chosen: list[np.ndarray] | None, places: np.ndarray) -> Portion:
    return Portion(videos[places], None if chosen is None else [chosen[place] for place in places])


_Stretch = tuple[int, np.ndarray]  # a video, and its rows that are taken


def _carried(
    stretches: list[_Stretch], chunk: int, batch_size: int, at_once: int, generator: np.random.Generator
) -> list[list[Portion]]:
    """Several long videos side by side, chunk after chunk; those that end first drop out. One list for each batch."""
    lengths = np.array([len(steps) for _, steps in stretches])
    side_by_side = max(1, min(batch_size, at_once // chunk))
    groups = []
    for batch in buckets(lengths, side_by_side, max_steps=int(lengths.sum()), generator=generator):
        members = [stretches[place] for place in batch[np.argsort(-lengths[batch], kind="stable")]]
        group = []
        for number, start in enumerate(range(0, len(members[0][1]), chunk)):
            left = [(video, steps) for video, steps in members if len(steps) > start]
            videos, whole = np.array([video for video, _ in left], np.int64), [steps for _, steps in left]
            parts, first = [steps[start : start + chunk] for steps in whole], np.full(len(left), start)
            group.append(Portion(videos, parts, number, whole, first))
        groups.append(group)
    return groups


def _overlapping(
    stretches: list[_Stretch], chunk: int, batch_size: int, at_once: int, generator: np.random.Generator
) -> list[list[Portion]]:
    """Chunks of long videos that see more on either side than counts, each by itself."""
    cut = [
        (video, steps[piece.low : piece.high], steps, piece.low, (piece.start - piece.low, piece.stop - piece.low))
        for video, steps in stretches
        for piece in pieces(len(steps), chunk, max(1, chunk // OVERLAPS))
    ]
    lengths = np.array([len(steps) for _, steps, *_ in cut])
    groups = []
    for batch in buckets(lengths, batch_size, max_steps=at_once, generator=generator):
        videos, steps, whole, first, counted = zip(*(cut[place] for place in batch), strict=True)
        places, parts = np.array(videos, np.int64), list(steps)
        begins, targets = np.array(first, np.int64), np.array(counted, np.int64)
        groups.append([Portion(places, parts, None, list(whole), begins, targets)])
    return groups


def _learning(group: list[Portion], sequences: Sequences, targets: TargetRows) -> list[Portion]:
    """The portions of a batch, marked with whether they hold a target, up to the last that does."""
    marked = [portion._replace(learns=_holds_target(portion, sequences, targets)) for portion in group]
    while marked and not marked[-1].learns:
        marked.pop()
    return marked


def _holds_target(portion: Portion, sequences: Sequences, targets: TargetRows) -> bool:
    for place, video in enumerate(portion.videos.tolist()):
        known = targets.known[sequences.offsets[video] : sequences.offsets[video + 1]]
        if portion.steps is not None:
            known = known[portion.steps[place]]
        if portion.counted is not None:
            known = known[slice(*portion.counted[place].tolist())]
        if known.any():
            return True
    return False


def _balanced(videos: np.ndarray, targets: TargetRows, generator: np.random.Generator) -> np.ndarray:
    """As many videos as given, drawn with replacement so that every class comes up equally often."""
    classes = targets.values.cpu().numpy()[videos]
    chances = 1 / np.bincount(classes)[classes]
    return generator.choice(videos, len(videos), p=chances / chances.sum())


@torch.no_grad()
def beginning(
    model: SequenceModel, sequences: Sequences, portion: Portion, chunk: int, centres: dict[int, Tensor | None]
) -> Carry:
    """What the inputs of a portion's first rows need of the rest of their videos.

    Args:
        model: what is trained.
        sequences: what it reads.
        portion: a part of videos.
        chunk: rows that are read at once.
        centres: means of videos, kept for other parts of them; of vectors that are learnt there is none (see `apart`).
    """
    assert portion.whole is not None
    assert portion.first is not None
    contexts = []
    with _settled(model):
        for video, whole, first in zip(portion.videos.tolist(), portion.whole, portion.first.tolist(), strict=True):
            read = reading(sequences, video, whole)
            if video not in centres:
                centres[video] = None if model.learns_vectors else video_centre(model, read, len(whole), chunk)
            contexts.append(context_of(model, read, first, centres[video]))
    return Carry(joined(contexts), ())


@torch.no_grad()
def apart(
    model: SequenceModel, sequences: Sequences, portion: Portion, chunk: int, vectors: dict[int, Tensor]
) -> Tensor:
    """(b, D) how far the mean of each video is apart from that of its rows in a portion, for vectors that are learnt.

    They change with every step, their difference much less: so `vectors` keeps those (T, D) of a whole video as they
    were when it was first seen. The other arguments are those of `beginning`.
    """
    assert portion.steps is not None
    assert portion.whole is not None
    assert portion.first is not None
    begins = zip(portion.first.tolist(), map(len, portion.steps), strict=True)
    found = []
    with _settled(model):
        for video, whole, (first, length) in zip(portion.videos.tolist(), portion.whole, begins, strict=True):
            if video not in vectors:
                vectors[video] = vectors_of(model, reading(sequences, video, whole), len(whole), chunk)
            found.append(apart_of(vectors[video], vectors[video][first : first + length]))
    return torch.cat(found)


@contextmanager
def _settled(model: SequenceModel) -> Iterator[None]:
    """In evaluation mode: nothing is drawn, and no statistics are updated."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
