"""Long videos in chunks while what makes their rows is trained: the mean that is subtracted moves with the weights."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pipeline.epochs import Portion, apart, beginning
from pipeline.heads import Carry, Head, HeadConfig
from pipeline.layout import with_data
from tests.heads import sequences_of

LENGTHS, CHUNK = [20, 9], 6


class Embedded(nn.Module):
    """A head behind a layer that is trained, as `pipeline.video_model` has it."""

    learns_vectors = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 6)
        self.head = Head(HeadConfig(cell="none", centre=True, steps=True), (6,), 2)
        self.config = self.head.config

    def vectors(self, rows: Tensor) -> Tensor:
        return self.layer(rows)

    def run(self, packed: PackedSequence, carry: Carry) -> PackedSequence:
        return self.head.run(with_data(packed, self.vectors(packed.data)), carry)[0]


def portion(number: int) -> Portion:
    start = number * CHUNK
    whole = [np.arange(length) for length in LENGTHS]
    return Portion(np.arange(2), [rows[start : start + CHUNK] for rows in whole], number, whole, np.full(2, start))


def states(model: Embedded, vectors: dict[int, Tensor], number: int) -> Tensor:
    """(n, 6) the rows that the head reads of one chunk of both videos."""
    sequences, part = sequences_of(LENGTHS), portion(number)
    carry = beginning(model, sequences, part, CHUNK, {})
    context = carry.context._replace(apart=apart(model, sequences, part, CHUNK, vectors))
    return model.run(sequences.batch(part.videos, part.steps).packed, carry._replace(context=context)).data


def exactly(model: Embedded, number: int) -> Tensor:
    """The same by hand: the whole video through the layer, less its mean, then the chunk."""
    sequences, part = sequences_of(LENGTHS), portion(number)
    rows = [model.vectors(sequences.read(video)) for video in range(2)]
    chunks = [(each - each.mean(0))[steps] for each, steps in zip(rows, part.steps, strict=True)]
    return nn.utils.rnn.pack_sequence(chunks, enforce_sorted=False).data


def test_with_the_weights_that_an_epoch_began_with_it_is_exact() -> None:
    model, vectors = Embedded(), {}
    for number in range(2):
        torch.testing.assert_close(states(model, vectors, number), exactly(model, number), rtol=1e-5, atol=1e-6)


def test_after_a_step_the_mean_has_moved_with_the_weights() -> None:
    model, vectors = Embedded(), {}
    states(model, vectors, 0)
    with torch.no_grad():
        model.layer.bias += 3.0
        model.layer.weight += 0.02 * torch.randn(6, 6)
    now, right = states(model, vectors, 1), exactly(model, 1)
    assert (now - right).abs().max() < 0.1, "a bias moves all rows alike, and so the mean"
    with torch.no_grad():
        stale = model.vectors(sequences_of(LENGTHS).read(0)[CHUNK : 2 * CHUNK]) - vectors[0].mean(0)
    assert stale.mean() > 2.5


def test_what_moves_all_rows_alike_gets_no_gradient() -> None:
    model = Embedded()
    (states(model, {}, 1) * torch.randn(6)).sum().backward()
    assert model.layer.bias.grad is not None
    assert model.layer.bias.grad.abs().max() < 1e-5


def test_nothing_is_drawn_and_no_statistics_move(monkeypatch: pytest.MonkeyPatch) -> None:
    model, modes = Embedded().train(), []
    whole = model.vectors
    monkeypatch.setattr(model, "vectors", lambda rows: (modes.append(model.training), whole(rows))[1])
    sequences, part = sequences_of(LENGTHS), portion(0)
    beginning(model, sequences, part, CHUNK, {})
    apart(model, sequences, part, CHUNK, {})
    assert modes
    assert not any(modes)
    assert model.training
