"""A head on one whole sequence, as a module of plain tensors: what leaves Python knows no PackedSequence.

The weights and every part that does not care for the layout are the head's own; inputs, cell and pool, which do, are
written once more for a sequence that is there as a whole. The numbers are those of `pipeline.heads.Head` on the same
rows, up to rounding. Nothing here depends on the length but by slices, so that a graph made of it takes any.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.heads import Head
from pipeline.inputs import Inputs
from pipeline.objectives import Objective
from pipeline.pooling import SMALLEST_VARIANCE, Attention, Last, Max, Mean, Pool, SideBySide, Stats

# An LSTM or GRU -> a module from rows (T, D) to the states of its last layer at every step, (T, H) or (T, 2 H).
CellOf = Callable[[nn.RNNBase], nn.Module]


class WholeCell(nn.Module):
    """An LSTM or GRU of torch on one sequence: (T, D) -> (T, H), (T, 2 H) if bidirectional."""

    def __init__(self, cell: nn.RNNBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, rows: Tensor) -> Tensor:
        states: Tensor = self.cell(rows[:, None])[0][:, 0]
        return states


class PlainHead(nn.Module):
    """Rows (T, *feature_shape) float32 of one video, T from 1 -> what the head gives: (K,), with `steps` (T, K).

    The head is in evaluation mode, and its tensors are shared. `cell_of` says how its LSTM or GRU is written.
    """

    def __init__(self, head: Head, cell_of: CellOf = WholeCell) -> None:
        super().__init__()
        self.head = head
        self.cell = None if head.recurrence is None else cell_of(head.recurrence.cell)

    def forward(self, rows: Tensor) -> Tensor:
        head = self.head
        states = head.prepared(expanded(head.vectors(rows), head.config.inputs))
        if self.cell is not None:
            states = self.cell(states)
        if head.step_mlp is not None:
            states = head.step_mlp(states)
        if head.pool is None:
            return head.classify(states)
        return head.classify(pooled(head.pool, states)[None])[0]


def expanded(rows: Tensor, inputs: Inputs) -> Tensor:
    """What `pipeline.inputs` makes of the rows (T, D) of one video: (T, E)."""
    if inputs.centre:  # about the first row, as there: a feature that never changes leaves exactly 0
        about = rows - rows[:1]
        columns = [rows - (rows[:1] + about.mean(0, keepdim=True))]
    else:
        columns = [rows]
    difference = {lag: rows - _earlier(rows, lag) for lag in dict.fromkeys((*inputs.deltas, *inputs.changes))}
    columns += [difference[lag] for lag in inputs.deltas]
    columns += [difference[lag].abs() for lag in inputs.changes]
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1)


def _earlier(rows: Tensor, lag: int) -> Tensor:
    """(T, D): for each row the one `lag` earlier; before the first everything was like the first."""
    return torch.cat([rows[:1].expand(lag, -1), rows])[:-lag]


def pooled(pool: Pool, states: Tensor) -> Tensor:
    """What a pool makes of the states (T, H) float32 of one video: (`width`,)."""
    if isinstance(pool, SideBySide):
        return torch.cat([pooled(each, states) for each in pool.pools])  # type: ignore[arg-type]
    if isinstance(pool, Last):
        half = states.shape[1] // 2
        return torch.cat([states[-1, :half], states[0, half:]]) if pool.bidirectional else states[-1]
    if isinstance(pool, Max):
        return states.amax(0)
    if isinstance(pool, Stats):
        mean = states.mean(0)
        variance = (states - mean).square().mean(0)
        return torch.cat([mean, variance.clamp(min=SMALLEST_VARIANCE).sqrt()])
    if isinstance(pool, Mean):
        return states.mean(0)
    if isinstance(pool, Attention):
        return (pool.score(states).softmax(0) * states).sum(0)
    raise TypeError(f"no plain form of the pool {type(pool).__name__}")


def read_steps(objective: Objective, probability: Tensor) -> Tensor:
    """How the steps of one video give its prediction (`Objective.read`): (T, K) -> (K,)."""
    if objective.read == "last":
        return probability[-1]
    if objective.read == "max":
        highest = probability.amax(0)
        return highest / highest.sum() if objective.kind == "class" else highest
    if objective.read == "weighted":
        weights = torch.arange(1, probability.shape[0] + 1, device=probability.device, dtype=torch.float32)
        return (probability * (weights / weights.sum())[:, None]).sum(0)
    return probability.mean(0)
