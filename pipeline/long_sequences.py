"""One long video through a head in bounded memory, in pieces; an hour at 25 frames/s has 90,000 steps.

- One direction, or no cell: each piece begins with the state that the one before ended with. That is exact: the same
  numbers as of the whole at once, up to rounding.
- Both directions: the state before a piece depends on steps to come, so pieces overlap. Each runs over `overlap` more
  rows on either side, whose states are dropped. Exact where the overlap covers the whole video; otherwise as good as
  the cell forgets what is further away than that.

What a head reads beside a row (differences, the video's mean) comes from outside the piece where it must, so it is that
of the whole either way. For the mean the video is read once before.

Pools take the pieces' states one after the other and keep a summary, so they too are of the whole video.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pipeline.heads import Carry, SequenceModel
from pipeline.inputs import Context, Read, centre_of, context_at
from pipeline.layout import alone

# Rows `start` to `stop` (exclusive) of one video as they are banked, (n, D) or (n, C, H, W) float32.
RawRead = Callable[[int, int], Tensor]


class Piece(NamedTuple):
    """Rows `low` to `high` (exclusive) are run, the states of `start` to `stop` (exclusive) are kept."""

    low: int
    start: int
    stop: int
    high: int


def pieces(length: int, chunk: int, overlap: int) -> list[Piece]:
    """Cuts `length` rows: the kept parts have at most `chunk` rows, follow each other and cover everything once.

    ValueError for a length or chunk below 1 and an overlap below 0.
    """
    if length < 1 or chunk < 1 or overlap < 0:
        raise ValueError(f"no pieces of {chunk} rows with {overlap} more on either side in {length} rows")
    kept = [(start, min(start + chunk, length)) for start in range(0, length, chunk)]
    return [Piece(max(start - overlap, 0), start, stop, min(stop + overlap, length)) for start, stop in kept]


def score_in_chunks(head: SequenceModel, read: RawRead, length: int, *, chunk: int, overlap: int) -> Tensor:
    """The head's output on one video of `length` rows: (K,), or (T, K) if it predicts every step; without gradients.

    `read` gives rows on the head's device. At most `chunk` rows are held at a time, and 2 `overlap` more if the head is
    bidirectional (otherwise `overlap` is not used), and as many as its longest lag. ValueError if the head is in
    training mode, and as `pieces`.
    """
    if head.training:
        raise ValueError("a head in training mode draws dropout anew for every piece; call eval() first")
    with torch.no_grad():
        centre = video_centre(head, read, length, chunk)
        states = _states(head, read, pieces(length, chunk, overlap if head.config.bidirectional else 0), centre)
        if head.pool is None:
            return torch.cat([head.classify(piece.data) for piece in states])
        summary = head.pool.summarise(next(states))
        for piece in states:
            summary = head.pool.merge(summary, head.pool.summarise(piece))
        return head.classify(head.pool.finish(summary))[0]


def context_of(head: SequenceModel, read: RawRead, start: int, centre: Tensor | None) -> Context:
    """What the head's inputs from row `start` on need of the video before. `centre` is that of `video_centre`."""
    return context_at(_vectors(head, read), start, head.config.inputs, centre)


def video_centre(head: SequenceModel, read: RawRead, length: int, chunk: int) -> Tensor | None:
    """(1, D) the mean of one video's vectors, for a head that subtracts it, read in chunks."""
    return centre_of(_vectors(head, read), length, chunk) if head.config.centre else None


def vectors_of(head: SequenceModel, read: RawRead, length: int, chunk: int) -> Tensor:
    """(T, D) all vectors of one video, read in chunks."""
    return torch.cat([head.vectors(read(start, min(start + chunk, length))) for start in range(0, length, chunk)])


def _vectors(head: SequenceModel, read: RawRead) -> Read:
    return lambda start, stop: head.vectors(read(start, stop))


def _states(head: SequenceModel, read: RawRead, cut: list[Piece], centre: Tensor | None) -> Iterator[PackedSequence]:
    """The kept states of each piece in turn, as a packed sequence of one video."""
    carry = None
    for low, start, stop, high in cut:
        if carry is None or head.config.bidirectional:
            carry = Carry(context_of(head, read, low, centre), ())
        states, carry = head.run(alone(read(low, high)), carry)
        yield alone(states.data[start - low : stop - low])
