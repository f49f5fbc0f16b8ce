"""One vector for a whole sequence, of its true steps alone: last, mean, max, statistics, attention, or several of them.

Each pool is three functions, so that a sequence may come in pieces: `summarise` what a piece holds, `merge` the
summaries of two consecutive pieces, and `finish` what is left into a vector. A sequence in one piece takes the same
way, without a merge. All of it in float32, whatever the precision of the states.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pipeline.layout import Layout, layout, sums

SMALLEST_VARIANCE = 1e-10  # of the statistics: a root has no slope at 0 (one step, or a state that never changes)

Summary = tuple[Tensor, ...]  # of B sequences, each (B, H) or (B, 1); what they hold is each pool's own affair
BESIDE = "+"  # between the names of pools that are taken side by side


class Pool(nn.Module, ABC):
    """States (n, H) of B packed sequences -> (B, `width`), in the order in which the sequences were packed."""

    kept: int  # tensors in a summary

    def __init__(self, states: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.width = states
        self.bidirectional = bidirectional

    def forward(self, states: PackedSequence) -> Tensor:
        return self.finish(self.summarise(states))

    def summarise(self, states: PackedSequence) -> Summary:
        """What is kept of one piece of B sequences, each of at least one step."""
        return self._summarise(states.data.float(), layout(states))

    @abstractmethod
    def merge(self, earlier: Summary, later: Summary) -> Summary:
        """The summary of two consecutive pieces, as if they had been one."""

    @abstractmethod
    def finish(self, summary: Summary) -> Tensor:
        """The pooled vectors (B, `width`) float32."""

    @abstractmethod
    def _summarise(self, data: Tensor, place: Layout) -> Summary:
        """What `summarise` keeps of float32 states (n, H)."""


class Last(Pool):
    """The final state. Of a bidirectional cell each direction's own: the forward half of the last step and the
    backward half of the first."""

    kept = 2

    def _summarise(self, data: Tensor, place: Layout) -> Summary:
        return data[place.first], data[place.last]

    def merge(self, earlier: Summary, later: Summary) -> Summary:
        return earlier[0], later[1]

    def finish(self, summary: Summary) -> Tensor:
        first, last = summary
        half = last.shape[1] // 2
        return torch.cat([last[:, :half], first[:, half:]], 1) if self.bidirectional else last


class Max(Pool):
    """The largest of the steps, of each state by itself."""

    kept = 1

    def _summarise(self, data: Tensor, place: Layout) -> Summary:
        return (_largest(data, place),)

    def merge(self, earlier: Summary, later: Summary) -> Summary:
        return (torch.maximum(earlier[0], later[0]),)

    def finish(self, summary: Summary) -> Tensor:
        return summary[0]


class Mean(Pool):
    """The mean over the steps. Its summary: number of steps, mean."""

    kept = 2

    def _summarise(self, data: Tensor, place: Layout) -> Summary:
        steps = place.lengths[:, None].float()
        return steps, sums(data, place) / steps

    def merge(self, earlier: Summary, later: Summary) -> Summary:
        steps = earlier[0] + later[0]
        return steps, torch.lerp(earlier[1], later[1], later[0] / steps)

    def finish(self, summary: Summary) -> Tensor:
        return summary[1]


class Stats(Mean):
    """Mean and standard deviation (of the population) side by side (Snyder et al. 2018, x-vectors).

    Its summary: number of steps, mean, squared deviations from it, merged as by Chan et al. 1979.
    """

    kept = 3

    def __init__(self, states: int, *, bidirectional: bool = False) -> None:
        super().__init__(states, bidirectional=bidirectional)
        self.width = 2 * states

    def _summarise(self, data: Tensor, place: Layout) -> Summary:
        steps, mean = super()._summarise(data, place)
        deviations = data - mean.index_select(0, place.video)
        return steps, mean, sums(deviations.square(), place)

    def merge(self, earlier: Summary, later: Summary) -> Summary:
        steps, mean = super().merge(earlier, later)
        between = (later[1] - earlier[1]).square() * (earlier[0] * later[0] / steps)
        return steps, mean, earlier[2] + later[2] + between

    def finish(self, summary: Summary) -> Tensor:
        steps, mean, squares = summary
        return torch.cat([mean, (squares / steps).clamp(min=SMALLEST_VARIANCE).sqrt()], 1)


class Attention(Pool):
    """The mean weighted by softmax of v' tanh(W h + b) over the steps (Bahdanau et al. 2015).

    Its summary: largest score, sum of exp(score - largest), weighted mean.
    """

    kept = 3

    def __init__(self, states: int, *, bidirectional: bool = False) -> None:
        super().__init__(states, bidirectional=bidirectional)
        self.score = additive_score(states)

    def _summarise(self, data: Tensor, place: Layout) -> Summary:
        score = self.score(data).float()
        largest = _largest(score.detach(), place)
        weight = (score - largest.index_select(0, place.video)).exp()
        total = sums(weight, place)
        return largest, total, sums(weight * data, place) / total

    def merge(self, earlier: Summary, later: Summary) -> Summary:
        largest = torch.maximum(earlier[0], later[0])
        before, after = (total * (own - largest).exp() for own, total, _ in (earlier, later))
        return largest, before + after, torch.lerp(earlier[2], later[2], after / (before + after))

    def finish(self, summary: Summary) -> Tensor:
        return summary[2]


POOLS: dict[str, type[Pool]] = {"last": Last, "mean": Mean, "max": Max, "stats": Stats, "attention": Attention}


class SideBySide(Pool):
    """Several pools of the same states, their vectors side by side. Its summary: theirs, one after another."""

    def __init__(self, pools: Sequence[Pool], states: int) -> None:
        super().__init__(states)
        self.pools = nn.ModuleList(pools)
        self.width = sum(pool.width for pool in pools)

    def _summarise(self, data: Tensor, place: Layout) -> Summary:
        return tuple(part for pool in self._each() for part in pool._summarise(data, place))

    def merge(self, earlier: Summary, later: Summary) -> Summary:
        pairs = zip(self._each(), self._parts(earlier), self._parts(later), strict=True)
        return tuple(part for pool, *summaries in pairs for part in pool.merge(*summaries))

    def finish(self, summary: Summary) -> Tensor:
        return torch.cat([pool.finish(part) for pool, part in zip(self._each(), self._parts(summary), strict=True)], 1)

    def _each(self) -> Iterator[Pool]:
        yield from self.pools  # type: ignore[misc]  # a ModuleList forgets what it is made of

    def _parts(self, summary: Summary) -> list[Summary]:
        rest = iter(summary)
        return [tuple(islice(rest, pool.kept)) for pool in self._each()]


def pool_of(names: str, states: int, *, bidirectional: bool = False) -> Pool:
    """The pool of a name, or of several joined by "+", as "max+stats"."""
    pools = [POOLS[name](states, bidirectional=bidirectional) for name in names.split(BESIDE)]
    return pools[0] if len(pools) == 1 else SideBySide(pools, states)


class SpatialAttention(nn.Module):
    """Maps (n, C, H, W) -> (n, C): the mean over places, weighted by softmax of v' tanh(W x + b) (Xu et al. 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = additive_score(channels)

    def forward(self, maps: Tensor) -> Tensor:
        places = maps.flatten(2).transpose(1, 2)  # (n, H W, C)
        weight = self.score(places).float().softmax(1)
        return (places.float() * weight).sum(1)


def additive_score(features: int) -> nn.Sequential:
    """v' tanh(W x + b): (..., `features`) -> (..., 1), with at most 128 hidden units."""
    hidden = min(features, 128)
    return nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False))


def _largest(data: Tensor, place: Layout) -> Tensor:
    """The largest of rows (n, H) by video: (B, H)."""
    start = data.new_full((len(place.lengths), data.shape[1]), -torch.inf)
    return start.scatter_reduce(0, place.video[:, None].expand_as(data), data, "amax")
