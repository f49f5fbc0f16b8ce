"""Sequences for tests of training: rows drawn at random, or of two classes that differ in their order alone."""

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from pipeline.objectives import TargetRows
from pipeline.sequences import Sequences

FEATURES = 6


def sequences_of(lengths: list[int], features: int = FEATURES, seed: int = 0) -> Sequences:
    """Videos v0, v1, ... of normal rows, 10 a second."""
    rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(sum(lengths), features)).astype(np.float32))
    ids = [f"v{number}" for number in range(len(lengths))]
    return Sequences(ids, [np.arange(length) / 10 for length in lengths], rows)


def rows_of(sequences: Sequences) -> list[torch.Tensor]:
    """The rows (T, D) of every video."""
    return [sequences.read(video) for video in range(len(sequences))]


def two_orders(count: int) -> tuple[Sequences, TargetRows]:
    """Class 0 has a burst in feature 0 and later one in feature 1, class 1 the other way round."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(8, 16, count)
    classes = np.arange(count) % 2
    rows = [generator.normal(scale=0.3, size=(length, FEATURES)).astype(np.float32) for length in lengths]
    for video, which in zip(rows, classes, strict=True):
        early, late = generator.integers(0, 3), generator.integers(4, 7)
        video[early, which] += 2
        video[late, 1 - which] += 2
    ids = [f"v{number}" for number in range(count)]
    sequences = Sequences(ids, [np.arange(len(video)) / 10 for video in rows], torch.from_numpy(np.concatenate(rows)))
    return sequences, class_rows(classes.tolist())


def class_rows(classes: list[int], labels: tuple[str, ...] = ("a", "b"), *, per_frame: bool = False) -> TargetRows:
    """Class targets, masked where negative."""
    values = np.array(classes, np.int64)
    return TargetRows("class", per_frame, labels, torch.from_numpy(np.where(values < 0, -100, values)), values >= 0)


def packed_of(parts: list[torch.Tensor]) -> PackedSequence:
    """Sequences of any lengths, packed in torch's own way."""
    return pack_sequence(parts, enforce_sorted=False)
