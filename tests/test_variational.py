"""Masks that stay the same at all steps of a sequence, against torch's own cells with each sequence's masks in them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from pipeline.recurrence import Recurrence
from pipeline.variational import Masks, draw_masks, over_steps

LENGTHS = (3, 1, 7, 12, 7)
FEATURES, HIDDEN, SHARE = 5, 4, 0.4
CELLS = {"lstm": (nn.LSTM, nn.LSTMCell), "gru": (nn.GRU, nn.GRUCell)}

pytestmark = pytest.mark.usefixtures("one_torch_thread")
every_cell = pytest.mark.parametrize("kind", CELLS)
every_shape = pytest.mark.parametrize("settings", [{}, {"num_layers": 3}, {"num_layers": 2, "bidirectional": True}])


def cell_of(kind: str, **settings: object) -> nn.RNNBase:
    torch.manual_seed(0)
    return CELLS[kind][0](FEATURES, HIDDEN, **settings)


@pytest.fixture
def videos() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, FEATURES, generator=generator, requires_grad=True) for length in LENGTHS]


def begin_of(cell: nn.RNNBase) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    shape = (cell.num_layers * (1 + cell.bidirectional), len(LENGTHS), HIDDEN)
    return tuple(torch.randn(shape, generator=generator) for _ in range(2 if isinstance(cell, nn.LSTM) else 1))


def step_by_step(
    kind: str, cell: nn.RNNBase, rows: Tensor, masks: list[Masks], video: int, begin: tuple[Tensor, ...] | None
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """One video (T, D) through LSTMCell or GRUCell: states (T, H), and all last states.

    A mask on what a matrix reads is the same as one on the matrix's columns, which leaves the rest of the cell alone.
    """
    ends: list[tuple[Tensor, ...]] = []
    for layer in range(cell.num_layers):
        directions = []
        for suffix in ("", "_reverse")[: 1 + cell.bidirectional]:
            number = len(ends)
            own = {
                name: getattr(cell, f"{name}_l{layer}{suffix}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            own["weight_ih"] = own["weight_ih"] * masks[number].rows[video]
            own["weight_hh"] = own["weight_hh"] * masks[number].state[video]
            one = CELLS[kind][1](rows.shape[1], HIDDEN)
            parts = 2 if kind == "lstm" else 1
            blank = (torch.zeros(1, HIDDEN),) * parts
            state = blank if begin is None else tuple(part[number, video][None] for part in begin)
            made = []
            for row in rows.flip(0) if suffix else rows:
                given = state if kind == "lstm" else state[0]
                after = torch.func.functional_call(one, own, (row[None], given))
                state = after if isinstance(after, tuple) else (after,)
                made.append(state[0])
            ends.append(state)
            states = torch.cat(made)
            directions.append(states.flip(0) if suffix else states)
        rows = torch.cat(directions, 1)
    return rows, ends


@pytest.mark.parametrize("begins", [False, True])
@every_shape
@every_cell
def test_each_sequence_keeps_its_masks_at_all_steps(kind, settings, begins, videos):
    cell = cell_of(kind, **settings)
    masks = draw_masks(cell, SHARE, len(videos))
    begin = begin_of(cell) if begins else None
    states, end = over_steps(cell, pack_sequence(videos, enforce_sorted=False), begin, masks)
    loss = states.data.cos().sum() + sum(part.square().sum() for part in end)
    found = torch.autograd.grad(loss, [*cell.parameters(), *videos])
    loss = torch.zeros(())
    for video, (rows, own) in enumerate(zip(videos, unpack_sequence(states), strict=True)):
        expected, ends = step_by_step(kind, cell, rows, masks, video, begin)
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
        for part, last in zip(end, zip(*ends, strict=True), strict=True):
            torch.testing.assert_close(part[:, video], torch.cat(last), rtol=1e-5, atol=1e-6)
        loss = loss + expected.cos().sum() + sum(part.square().sum() for last in ends for part in last)
    for one, other in zip(found, torch.autograd.grad(loss, [*cell.parameters(), *videos]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@every_shape
@every_cell
def test_with_nothing_dropped_it_is_the_cell(kind, settings, videos):
    cell = cell_of(kind, **settings)
    masks = draw_masks(cell, 0.0, len(videos))
    begin = begin_of(cell)
    for packed in (pack_sequence(videos, enforce_sorted=False), pack_sequence(sorted(videos, key=len, reverse=True))):
        found, end = over_steps(cell, packed, begin, masks)
        expected, last = cell(packed, begin if kind == "lstm" else begin[0])
        torch.testing.assert_close(found.data, expected.data, rtol=1e-5, atol=1e-6)
        for one, other in zip(end, last if kind == "lstm" else (last,), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@every_cell
def test_masks_keep_the_mean_and_differ_from_sequence_to_sequence(kind):
    cell = cell_of(kind, num_layers=2, bidirectional=True)
    torch.manual_seed(3)
    masks = draw_masks(cell, SHARE, 4000)
    assert [tuple(mask.rows.shape) for mask in masks] == [(4000, width) for width in (5, 5, 8, 8)]
    assert {tuple(mask.state.shape) for mask in masks} == {(4000, HIDDEN)}
    for part in (part for mask in masks for part in mask):
        assert set(part.unique().tolist()) == {0.0, part.max().item()}
        assert part.max().item() == pytest.approx(1 / (1 - SHARE))
        torch.testing.assert_close(part.mean(0), torch.ones(part.shape[1]), rtol=0, atol=0.06)
    assert not torch.equal(masks[0].rows, masks[1].rows)
    assert len({tuple(row) for row in masks[0].state.tolist()}) == 2**HIDDEN


@every_cell
def test_dropout_between_layers_comes_on_top(kind, videos):
    cell = cell_of(kind, num_layers=2, dropout=0.999)
    packed = pack_sequence(videos, enforce_sorted=False)
    masks = draw_masks(cell, 0.0, len(videos))
    torch.manual_seed(1)
    found, _ = over_steps(cell, packed, None, masks)
    blind = draw_masks(cell, 0.0, len(videos))  # the second layer reads nothing but zeros
    blind[1] = Masks(torch.zeros_like(blind[1].rows), blind[1].state)
    expected, _ = over_steps(cell.eval(), packed, None, blind)
    same = (found.data == expected.data).all(1).float().mean()
    assert same > 0.7  # the few numbers that were kept change what comes after them
    assert not torch.allclose(found.data, over_steps(cell, packed, None, masks)[0].data)


@pytest.mark.parametrize("bidirectional", [False, True])
@every_cell
def test_a_cell_in_training_draws_anew_each_time_and_in_evaluation_not_at_all(kind, bidirectional, videos):
    torch.manual_seed(0)
    settings = {"bidirectional": bidirectional, "dropout": 0.0, "recurrent_dropout": 0.0, "init": ()}
    made = Recurrence(kind, FEATURES, HIDDEN, 2, variational_dropout=SHARE, **settings)
    packed = pack_sequence(videos, enforce_sorted=False)
    first, second = (made(packed)[0].data for _ in range(2))
    assert not torch.allclose(first, second)
    torch.manual_seed(7)
    again, _ = made(packed)
    torch.manual_seed(7)
    masks = draw_masks(made.cell, SHARE, len(videos))
    assert torch.equal(again.data, over_steps(made.cell, packed, None, masks)[0].data)
    made.eval()
    torch.testing.assert_close(made(packed)[0].data, made.cell(packed)[0].data, rtol=1e-5, atol=1e-6)
