"""The recurrent cell: an LSTM or GRU over packed rows, with dropped recurrent weights and a choice of first weights.

Recurrent dropout is DropConnect on the hidden-to-hidden weights (Merity et al. 2018): one draw a forward pass, the
same at every step, so the fused kernels still serve. (Masks on the state, one a sequence, are something else.)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

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
        init: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.cell = CELLS[cell](features, hidden, layers, dropout=dropout, bidirectional=bidirectional)
        self.recurrent_dropout = recurrent_dropout
        self.width = 2 * hidden if bidirectional else hidden
        initialise(self.cell, init)

    def forward(self, packed: PackedSequence, state: State | None = None) -> tuple[PackedSequence, State]:
        begin = state if state is None or len(state) > 1 else state[0]
        if self.training and self.recurrent_dropout:
            states, end = torch.func.functional_call(self.cell, self._dropped(), (packed, begin))
        else:
            states, end = self.cell(packed, begin)
        return states, end if isinstance(end, tuple) else (end,)

    def _dropped(self) -> dict[str, Tensor]:
        return {
            name: F.dropout(weight, self.recurrent_dropout)
            for name, weight in self.cell.named_parameters()
            if name.startswith("weight_hh")
        }


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
