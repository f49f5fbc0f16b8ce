"""LSTM and GRU as ONNX has them: one operator a layer, both directions in it, for sequences of any length.

torch's exporters take a recurrent layer apart into its steps, as many as the example has, or need torch's own rewriting
of it into a loop, whose shapes are frozen again in some versions. ONNX has the layer itself, and runtimes have fast
kernels for it; so the operator is named here, with the weights in ONNX's order of the gates. (torch: LSTM input,
forget, cell, output, GRU reset, update, new; ONNX: LSTM input, output, forget, cell, GRU update, reset, new.)
"""

from typing import Any

import torch
from torch import Tensor, nn

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


class OnnxCell(nn.Module):
    """An LSTM or GRU on one sequence, (T, D) -> (T, H) or (T, 2 H); it can be exported to ONNX, and nothing else."""

    def __init__(self, cell: nn.RNNBase) -> None:
        super().__init__()
        self.operator = cell.mode
        self.hidden, self.bidirectional, self.layers = cell.hidden_size, cell.bidirectional, cell.num_layers
        own = dict(cell.named_parameters())
        for layer in range(cell.num_layers):
            suffixes = (f"_l{layer}", f"_l{layer}_reverse") if cell.bidirectional else (f"_l{layer}",)
            for name in ("weight_ih", "weight_hh"):
                self._keep(f"{name}_{layer}", [self._in_order(own[name + suffix]) for suffix in suffixes])
            both = [[self._in_order(own[name + suffix]) for name in ("bias_ih", "bias_hh")] for suffix in suffixes]
            self._keep(f"bias_{layer}", [torch.cat(pair) for pair in both])

    def forward(self, rows: Tensor) -> Tensor:
        states = rows[:, None]
        for layer in range(self.layers):
            weights = (getattr(self, f"{name}_{layer}") for name in ("weight_ih", "weight_hh", "bias"))
            direction = "bidirectional" if self.bidirectional else "forward"
            attributes: dict[str, Any] = {"hidden_size": self.hidden, "direction": direction}
            if self.operator == "GRU":
                attributes["linear_before_reset"] = 1  # as torch has it: the reset gate after the matrix
            made = torch.onnx.ops.symbolic(
                self.operator,
                (states, *weights),
                attributes,
                dtype=rows.dtype,
                shape=(rows.shape[0], 2 if self.bidirectional else 1, 1, self.hidden),  # step, direction, video, unit
            )
            states = made.transpose(1, 2).flatten(2)
        return states[:, 0]

    def _in_order(self, weight: Tensor) -> Tensor:
        """The gates' blocks of rows in ONNX's order."""
        gates = weight.detach().chunk(len(_GATES[self.operator]))
        return torch.cat([gates[gate] for gate in _GATES[self.operator]])

    def _keep(self, name: str, directions: list[Tensor]) -> None:
        self.register_buffer(name, torch.stack(directions))
