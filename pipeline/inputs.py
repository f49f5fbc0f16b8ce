"""What is made of a head's rows before anything is learnt: centred on the video's mean, with differences beside them.

A video's own mean over time is its scenery; what is left when it is subtracted is change (in speech: cepstral mean
normalisation, Atal 1974). Differences to earlier rows say what changes now, signed or absolute. The same function
prepares the rows that statistics are computed of and the rows that a head reads.

All of it is index arithmetic in the packed layout. A video that comes in pieces needs some things from outside the
piece: its mean, and the rows just before.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pipeline.layout import Layout, layout, sums, with_data

# Rows `start` to `stop` (exclusive) of one video, (n, D) float32.
Read = Callable[[int, int], Tensor]


class Inputs(NamedTuple):
    """How a row x_t of D features becomes E = D (1 + number of deltas + number of changes):

    - x_t, minus the mean of the video's rows if `centre`;
    - for each lag of `deltas` x_t - x_(t - lag), for each lag of `changes` |x_t - x_(t - lag)|, counted in rows that
      the head is given. Before the first row everything was like the first row.
    """

    centre: bool = False
    deltas: tuple[int, ...] = ()
    changes: tuple[int, ...] = ()

    @property
    def reach(self) -> int:
        """L, the longest lag."""
        return max((*self.deltas, *self.changes), default=0)

    def width(self, features: int) -> int:
        """E for D features."""
        return features * (1 + len(self.deltas) + len(self.changes))


class Context(NamedTuple):
    """What a piece of B videos needs of the rest of them, in the order in which they are packed.

    before: (B, L, D) the rows before the piece, the latest last, where a video begins filled up with its first row;
        None: the piece begins with the first row.
    centre: (B, D) the mean of all rows; None: the piece is all there is.
    apart: (B, D) by how much that mean is apart from the mean of the piece's own rows; it goes before `centre`. For
        rows that are learnt: the mean moves with them, and so do its gradients, as far as the piece shows it.
    """

    before: Tensor | None = None
    centre: Tensor | None = None
    apart: Tensor | None = None

    def detach(self) -> "Context":
        """The same numbers, through which no gradient flows back."""
        return Context(*(None if part is None else part.detach() for part in self))

    def select(self, videos: Tensor) -> "Context":
        """Of some of the videos, or in another order: their numbers (b,) int64."""
        return Context(*(None if part is None else part[videos] for part in self))


def expand(packed: PackedSequence, inputs: Inputs, context: Context | None = None) -> tuple[PackedSequence, Context]:
    """Packed rows (n, D) -> packed alike (n, E), and the context of the piece that comes next."""
    before, centre, apart = context or Context()
    if not inputs.centre and not inputs.reach:
        return packed, Context()
    rows, place = packed.data, layout(packed)
    if inputs.centre and apart is not None:
        centre = _means(rows, place) + apart
    elif inputs.centre and centre is None:
        centre = _means(rows, place)
    columns = [rows if centre is None else rows - centre.index_select(0, place.video)]
    if not inputs.reach:
        return with_data(packed, columns[0]), Context(None, centre)
    known = rows if before is None else torch.cat([before.flatten(0, 1), rows])

    def number(video: Tensor, step: Tensor) -> Tensor:
        """Where in `known` a row of the piece is, or of those before it: steps from -L."""
        here = place.row(video, step.clamp(min=0))
        if before is None:
            return here
        return torch.where(step < 0, (video + 1) * inputs.reach + step, len(known) - len(rows) + here)

    lags = dict.fromkeys((*inputs.deltas, *inputs.changes))
    difference = {lag: rows - known.index_select(0, number(place.video, place.step - lag)) for lag in lags}
    columns += [difference[lag] for lag in inputs.deltas]
    columns += [difference[lag].abs() for lag in inputs.changes]
    videos = torch.arange(len(place.lengths), device=rows.device)[:, None]
    steps = place.lengths[:, None] + torch.arange(-inputs.reach, 0, device=rows.device)
    return with_data(packed, torch.cat(columns, 1)), Context(known[number(videos, steps)], centre)


def centre_of(read: Read, length: int, chunk: int) -> Tensor:
    """(1, D) the mean of one video of `length` rows, of which at most `chunk` are read at a time."""
    first = read(0, 1)
    total = torch.zeros_like(first, dtype=torch.float64)
    for start in range(0, length, chunk):
        total += (read(start, min(start + chunk, length)) - first).sum(0, dtype=torch.float64)
    return first + (total / length).to(first.dtype)


def apart_of(rows: Tensor, piece: Tensor) -> Tensor:
    """(1, D) by how much the mean of all rows (T, D) of a video is apart from that of a piece of them (t, D)."""
    return ((rows - rows[0]).mean(0) - (piece - rows[0]).mean(0))[None]


def context_at(read: Read, start: int, inputs: Inputs, centre: Tensor | None) -> Context:
    """The context of a piece of one video that begins with row `start`; `centre` is (1, D)."""
    if not inputs.reach:
        return Context(None, centre)
    rows = read(max(start - inputs.reach, 0), max(start, 1))
    filled = torch.cat([rows[:1].expand(inputs.reach - len(rows), -1), rows])
    return Context(filled[None], centre)


def joined(contexts: list[Context]) -> Context:
    """The contexts of single videos as that of all of them."""
    parts = zip(*contexts, strict=True)
    return Context(*(None if part[0] is None else torch.cat(part) for part in parts))


def _means(rows: Tensor, place: Layout) -> Tensor:
    """(B, D) mean of each video's rows. Summed about the first row, so a feature that never changes leaves exactly 0
    when its mean is subtracted, and no noise that a later scaling would blow up."""
    first = rows.index_select(0, place.first)
    return first + sums(rows - first.index_select(0, place.video), place) / place.lengths[:, None]
