"""The recurrent cell: an LSTM or GRU over packed rows, with dropout in the recurrence and a choice of first weights.

Recurrent dropout is DropConnect on the hidden-to-hidden weights (Merity et al. 2018): one draw a forward pass, the
same at every step, so the fused kernels still serve. Variational dropout masks what the weights read instead, each
sequence by masks of its own (`pipeline.variational`); they are drawn in every forward pass, so each chunk of a video
that is trained in chunks has its own. In evaluation mode nothing is dropped either way.

On a CPU, torch's kernel for packed LSTMs goes step by step where sequences end at different steps. Between two such
steps the packed rows are a rectangle, and a rectangle goes through the fast kernel: so the LSTM runs over rectangles
there, carrying the state from one to the next. The numbers are the same to rounding, and no padded step exists here
either. (`framebank bench heads` shows what it saves.)
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from pipeline.layout import with_data
from pipeline.variational import draw_masks, over_steps

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}
INITS = ("orthogonal-recurrent", "orthogonal-input", "bias-one", "forget-bias")

State = tuple[Tensor, ...]  # each (layers x directions, B, H): hidden state, and the LSTM's cell state; unsorted order


class Recurrence(nn.Module):
    """Packed rows (n, D) -> states of the last layer at every step (n, H), (n, 2 H) if bidirectional, and the last
    states of every layer. Without a state to begin with, it is zero."""

    def __init__(
        self,
        cell: str,
        features: int,
        hidden: int,
        layers: int,
        *,
        bidirectional: bool,
        dropout: float,
        recurrent_dropout: float,
        variational_dropout: float,
        init: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.cell = CELLS[cell](features, hidden, layers, dropout=dropout, bidirectional=bidirectional)
        self.recurrent_dropout, self.variational_dropout = recurrent_dropout, variational_dropout
        self.width = 2 * hidden if bidirectional else hidden
        initialise(self.cell, init)

    def forward(self, packed: PackedSequence, state: State | None = None) -> tuple[PackedSequence, State]:
        if self.training and self.variational_dropout:
            masks = draw_masks(self.cell, self.variational_dropout, int(packed.batch_sizes[0]))
            return over_steps(self.cell, packed, state, masks)
        dropped = self._dropped() if self.training and self.recurrent_dropout else {}
        if isinstance(self.cell, nn.LSTM) and packed.data.device.type == "cpu":
            return over_rectangles(self.cell, packed, state, dropped)
        begin = state if state is None or len(state) > 1 else state[0]
        states, end = torch.func.functional_call(self.cell, dropped, (packed, begin))
        return states, end if isinstance(end, tuple) else (end,)

    def _dropped(self) -> dict[str, Tensor]:
        return {
            name: F.dropout(weight, self.recurrent_dropout)
            for name, weight in self.cell.named_parameters()
            if name.startswith("weight_hh")
        }


def over_rectangles(
    lstm: nn.LSTM, packed: PackedSequence, state: State | None, replaced: Mapping[str, Tensor]
) -> tuple[PackedSequence, State]:
    """What `lstm(packed, state)` gives, by the kernel for sequences of one length.

    Args:
        lstm: of any number of layers and directions.
        packed: (n, D).
        state: as `Recurrence` takes it, in the order in which the videos were packed; None: zeros.
        replaced: by name, weights to use instead of the module's own.
    """
    weights = {**dict(lstm.named_parameters()), **replaced}
    sizes = packed.batch_sizes.tolist()
    ends = [step for step in range(1, len(sizes) + 1) if step == len(sizes) or sizes[step] != sizes[step - 1]]
    steps = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    shapes = [(count, sizes[end - 1]) for count, end in zip(steps, ends, strict=True)]  # steps, sequences
    order = packed.sorted_indices
    begin = None if state is None else tuple(part if order is None else part[:, order] for part in state)
    rows = packed.data
    last: list[tuple[Tensor, Tensor]] = []
    for layer in range(lstm.num_layers):
        directions = []
        for number, suffix in enumerate(("", "_reverse") if lstm.bidirectional else ("",)):
            place = len(last)
            own = [weights[f"{name}_l{layer}{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            first = None if begin is None else (begin[0][place : place + 1], begin[1][place : place + 1])
            states, end = _one_direction(own, rows, shapes, first, backwards=number == 1)
            directions.append(states)
            last.append(end)
        rows = torch.cat(directions, 1) if lstm.bidirectional else directions[0]
        if layer + 1 < lstm.num_layers:
            rows = F.dropout(rows, lstm.dropout, lstm.training)
    back = packed.unsorted_indices
    ended = tuple(torch.cat(parts) for parts in zip(*last, strict=True))
    return with_data(packed, rows), tuple(part if back is None else part[:, back] for part in ended)


def _one_direction(
    weights: list[Tensor],
    rows: Tensor,
    shapes: list[tuple[int, int]],
    begin: tuple[Tensor, Tensor] | None,
    *,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """States (n, H) of one layer, and the last hidden and cell state (1, B, H) of every sequence, longest first."""
    pieces = list(zip(rows.split([steps * sequences for steps, sequences in shapes]), shapes, strict=True))
    blank = rows.new_zeros(1, shapes[0][1], weights[1].shape[1])
    now, made = begin or (blank, blank), []
    ended: list[tuple[Tensor, Tensor]] = []  # forwards: the states of sequences that are over, the shortest first
    if backwards:
        pieces.reverse()
        now = now[0][:, :0], now[1][:, :0]
    for piece, (steps, sequences) in pieces:
        going = now[0].shape[1]
        if backwards:  # sequences that end here begin, from what they were given
            first = begin or (blank, blank)
            hidden, cell = (torch.cat([old, new[:, going:sequences]], 1) for old, new in zip(now, first, strict=True))
            now = hidden, cell
        elif going > sequences:
            ended.append((now[0][:, sequences:], now[1][:, sequences:]))
            now = now[0][:, :sequences], now[1][:, :sequences]
        block = piece.view(steps, sequences, -1)
        states, hidden, cell = torch.lstm(
            block.flip(0) if backwards else block,
            (now[0].contiguous(), now[1].contiguous()),
            weights,
            True,
            1,
            0.0,
            torch.is_grad_enabled(),
            False,
            False,
        )
        now = hidden, cell
        made.append((states.flip(0) if backwards else states).flatten(0, 1))
    ended.append(now)
    if backwards:
        made.reverse()
    ended.reverse()
    return torch.cat(made), (torch.cat([part[0] for part in ended], 1), torch.cat([part[1] for part in ended], 1))


def initialise(cell: nn.RNNBase, init: tuple[str, ...]) -> None:
    """Replaces torch's uniform first weights, in place, by what `init` names:

    - orthogonal-recurrent, orthogonal-input: the hidden-to-hidden and input-to-hidden matrices of each layer and
      direction are orthogonal, all gates as one matrix, as in Keras (Saxe et al. 2014).
    - bias-one: every bias is 1. Torch adds two biases: one is 1, the other 0.
    - forget-bias: the same for the biases of the LSTM's forget gate alone (Jozefowicz et al. 2015); others stay.
    """
    forget = slice(cell.hidden_size, 2 * cell.hidden_size)  # torch's order of gates: input, forget, cell, output
    with torch.no_grad():
        for name, weight in cell.named_parameters():
            if name.startswith("weight_hh") and "orthogonal-recurrent" in init:
                nn.init.orthogonal_(weight)
            if name.startswith("weight_ih") and "orthogonal-input" in init:
                nn.init.orthogonal_(weight)
            if name.startswith("bias"):
                total = float(name.startswith("bias_ih"))
                if "bias-one" in init:
                    weight.fill_(total)
                elif "forget-bias" in init:
                    weight[forget].fill_(total)
