"""An LSTM or GRU in training whose every sequence drops the same numbers at all of its steps.

Gal & Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural networks": for each
sequence, layer and direction one mask on what the layer reads and one on its hidden state, drawn once and used at every
step (in Keras `dropout` and `recurrent_dropout` with the same share). Kept numbers are divided by the chance to be
kept. Masks lie on what the weight matrices read, one for all gates. What a cell carries on beside them is left whole:
the LSTM's cell state, and the share of its old state that a GRU keeps, which would otherwise grow with every step.

No fused kernel knows such masks, so the steps are a loop here, over the packed rows: step by step of all sequences that
have it, without a padded one. What the rows contribute to the gates is computed for all steps at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pipeline.layout import layout, with_data


class Masks(NamedTuple):
    """Of one layer and direction, for B sequences in the order in which they were packed: 0, or 1 / (1 - share).

    rows: (B, D) float32 for the D numbers that the layer reads at each step.
    state: (B, H) float32 for its hidden state.
    """

    rows: Tensor
    state: Tensor


def draw_masks(cell: nn.RNNBase, share: float, sequences: int) -> list[Masks]:
    """Masks for every layer and direction, in torch's order, on the device of the cell; each number is dropped with
    chance `share` (from 0 to below 1)."""
    return [
        Masks(*(F.dropout(weight.new_ones(sequences, weight.shape[1]), share) for weight in weights[:2]))
        for weights in _weights(cell)
    ]


def over_steps(
    cell: nn.RNNBase, packed: PackedSequence, state: Sequence[Tensor] | None, masks: Sequence[Masks]
) -> tuple[PackedSequence, tuple[Tensor, ...]]:
    """What `cell(packed, state)` gives where each sequence has its masks.

    Args:
        cell: an LSTM or GRU of any number of layers and directions. Its own dropout between layers comes on top.
        packed: (n, D) float32 of B sequences.
        state: hidden state, and the LSTM's cell state, each (layers x directions, B, H); None: zeros.
        masks: as `draw_masks` gives them.

    Returns:
        the last layer's states at every step, (n, H) or (n, 2 H) packed like the input, and the last states of every
        layer and direction as `state` has them.
    """
    sizes, place = packed.batch_sizes.tolist(), layout(packed)
    order, back = packed.sorted_indices, packed.unsorted_indices
    directions = 2 if cell.bidirectional else 1
    every = _weights(cell)
    if state is None:
        blank = packed.data.new_zeros(len(every), sizes[0], cell.hidden_size)
        state = (blank,) * (2 if isinstance(cell, nn.LSTM) else 1)
    begin = [part if order is None else part[:, order] for part in state]
    rows = packed.data
    last: list[tuple[Tensor, ...]] = []
    for layer in range(cell.num_layers):
        if layer and cell.dropout:
            rows = F.dropout(rows, cell.dropout, cell.training)
        made = []
        for direction in range(directions):
            number = len(last)
            mask = masks[number]
            inputs = F.linear(rows * mask.rows[place.video], every[number][0], every[number][2]).split(sizes)
            states, end = _one_direction(
                isinstance(cell, nn.LSTM),
                inputs,
                tuple(part[number] for part in begin),
                every[number],
                mask.state if order is None else mask.state[order],
                backwards=direction == 1,
            )
            made.append(states)
            last.append(end)
        rows = torch.cat(made, 1) if directions == 2 else made[0]
    ended = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    return with_data(packed, rows), tuple(part if back is None else part[:, back] for part in ended)


def _one_direction(
    is_lstm: bool,
    inputs: Sequence[Tensor],
    now: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    mask: Tensor,
    *,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """States (n, H) of one layer, and the last state of every sequence, each (B, H), longest sequence first.

    `inputs` are, step by step, what the rows contribute to the gates, and `now` the states that sequences begin with.
    A sequence that is over, or backwards has not begun, keeps its state.
    """
    after = _lstm if is_lstm else _gru
    steps = range(len(inputs))
    made: list[Tensor] = []
    for step in reversed(steps) if backwards else steps:
        size = len(inputs[step])
        here = tuple(part[:size] for part in now)
        recurrent = F.linear(here[0] * mask[:size], weights[1], weights[3])
        new = after(inputs[step], recurrent, here)
        made.append(new[0])
        if size < len(now[0]):
            now = tuple(torch.cat([part, old[size:]]) for part, old in zip(new, now, strict=True))
        else:
            now = new
    if backwards:
        made.reverse()
    return torch.cat(made), now


def _lstm(rows: Tensor, recurrent: Tensor, before: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The hidden and the cell state after a step, of what rows and state contribute to the gates, (b, 4 H) each."""
    into, forget, cell, out = (rows + recurrent).chunk(4, 1)
    kept = forget.sigmoid() * before[1] + into.sigmoid() * cell.tanh()
    return out.sigmoid() * kept.tanh(), kept


def _gru(rows: Tensor, recurrent: Tensor, before: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The hidden state after a step, likewise, (b, 3 H) each; the reset gate works on what the state contributes."""
    reset, update, new = rows.chunk(3, 1)
    of_reset, of_update, of_new = recurrent.chunk(3, 1)
    candidate = (new + (reset + of_reset).sigmoid() * of_new).tanh()
    return (candidate + (update + of_update).sigmoid() * (before[0] - candidate),)


def _weights(cell: nn.RNNBase) -> list[list[Tensor]]:
    """For every layer and direction: input and recurrent matrix, and their biases."""
    own = dict(cell.named_parameters())
    return [
        [own[f"{name}_l{layer}{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        for layer in range(cell.num_layers)
        for suffix in (("", "_reverse") if cell.bidirectional else ("",))
    ]
