"""Where each video's rows lie in a PackedSequence: index arithmetic, without padding and without a loop over videos.

A PackedSequence holds step 0 of every video, then step 1 of every video that has one, and so on, the longest video
first. `batch_sizes` says how many rows each step has and lives on the CPU; everything else is computed on the data's
own device from sizes that the CPU knows, so a GPU is never waited for.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pipeline.transfers import moved


class Layout(NamedTuple):
    """For B videos with n rows in all. Videos are numbered in the order in which the sequence was packed (unsorted)."""

    lengths: Tensor  # (B,) int64: rows of each video
    video: Tensor  # (n,) int64: the video of each packed row
    step: Tensor  # (n,) int64: the step of each packed row, from 0
    first: Tensor  # (B,) int64: packed row of each video's first step
    last: Tensor  # (B,) int64: packed row of each video's last step
    begin: Tensor  # (T,) int64: first packed row of each step

    def row(self, video: Tensor, step: Tensor) -> Tensor:
        """The packed rows of some steps of some videos, which must have so many."""
        return self.begin[step] + self.first[video]


def layout(packed: PackedSequence) -> Layout:
    """The place of every row of `packed`, whose data is (n, ...). Tensors are on the data's device."""
    rows, device, sizes = len(packed.data), packed.data.device, packed.batch_sizes
    videos = int(sizes[0])
    starts = sizes.cumsum(0) - sizes
    ranks = torch.arange(videos)  # a video's place when sorted by length
    # Sizes never rise, so the video of rank r has as many steps as there are sizes above r.
    lengths = len(sizes) - torch.searchsorted(sizes.flip(0), ranks, right=True)
    last = starts[lengths - 1] + ranks
    step = torch.repeat_interleave(torch.arange(len(sizes), device=device), moved(sizes, device), output_size=rows)
    begin = moved(starts, device)
    rank = torch.arange(rows, device=device) - begin[step]
    ranks, lengths, last = moved(ranks, device), moved(lengths, device), moved(last, device)
    if packed.sorted_indices is None or packed.unsorted_indices is None:  # packed in falling order of length
        return Layout(lengths, rank, step, ranks, last, begin)
    unsorted = packed.unsorted_indices
    return Layout(lengths[unsorted], packed.sorted_indices[rank], step, unsorted, last[unsorted], begin)


def with_data(packed: PackedSequence, data: Tensor) -> PackedSequence:
    """The same layout around other rows: (n, ...) -> a PackedSequence with the order of `packed`, indices included."""
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def alone(rows: Tensor) -> PackedSequence:
    """One video (T, ...), packed."""
    only = torch.zeros(1, dtype=torch.int64, device=rows.device)
    return PackedSequence(rows, torch.ones(len(rows), dtype=torch.int64), only, only)


def sums(data: Tensor, place: Layout) -> Tensor:
    """Packed rows (n, H) added up by video: (B, H)."""
    return data.new_zeros(len(place.lengths), data.shape[1]).index_add(0, place.video, data)
