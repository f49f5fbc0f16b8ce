"""The head: packed feature rows -> one prediction per video, or one per step.

The rows' way: spatial attention (of maps) -> centring and differences (`pipeline.inputs`) -> standardisation -> PCA ->
input dropout -> projection, and its dropout -> recurrent cell -> MLP of every step -> pool -> output dropout ->
classifier. All of it on a PackedSequence, so there is no padded step that any of them could read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pipeline import ranks
from pipeline.errors import UserError
from pipeline.inputs import Context, Inputs, expand
from pipeline.joined_banks import SPATIAL
from pipeline.layout import with_data
from pipeline.pooling import BESIDE, POOLS, Pool, SpatialAttention, pool_of
from pipeline.recurrence import CELLS, INITS, Recurrence, State
from pipeline.standardisation import Standardisation

NORMS = ("none", "batch")
_LARGEST = 2**20  # a size beyond it is a slip of the finger, and more than memory and torch take


@dataclass(frozen=True)
class HeadConfig:
    """What a head is made of. Written as JSON and read back (lists for tuples), it is the same.

    cell            lstm, gru, or none: every step by itself
    hidden, layers, bidirectional   of the cell; `hidden` units in each direction
    dropout         between the layers of the cell
    input_dropout   of the feature rows; output_dropout: of what the classifier reads
    recurrent_dropout   of the hidden-to-hidden weights (`pipeline.recurrence`)
    variational_dropout of what the cell reads and of its state, for each sequence the same at every step
                    (`pipeline.variational`); not beside recurrent_dropout
    projection      width of a linear layer before the cell; projection_dropout: of what it gives
    step_mlp        widths of layers with ReLU that every step goes through before the pool (late pooling, Ng et al.
                    2015, "Beyond short snippets"; `mlp` comes after the pool)
    pool            last, mean, max, stats, attention, or several as in max+stats (`pipeline.pooling`); not with `steps`
    norm            what the classifier reads is normalised by "batch" (Ioffe & Szegedy 2015), or it is not: "none"
    centre          each video's mean over time is subtracted from its rows
    deltas, changes   lags, in rows: differences to the rows so much earlier, and absolute ones, beside each row
    spatial         how maps (C, H, W) become vectors: mean, flatten or attention, which is learnt
    mlp             widths of the classifier's hidden layers, with ReLU
    init            any of orthogonal-recurrent, orthogonal-input, bias-one, forget-bias (`pipeline.recurrence`)
    steps           a prediction at every step instead of one per video

    Raises UserError for a value out of range, and for settings that contradict each other.
    """

    cell: str = "lstm"
    hidden: int = 128
    layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    output_dropout: float = 0.0
    projection: int | None = None
    pool: str = "last"
    norm: str = "none"
    centre: bool = False
    deltas: tuple[int, ...] = ()
    changes: tuple[int, ...] = ()
    spatial: str | None = None
    mlp: tuple[int, ...] = ()
    init: tuple[str, ...] = ()
    steps: bool = False
    variational_dropout: float = 0.0  # from here on what heads of earlier versions do not name in their files
    projection_dropout: float = 0.0
    step_mlp: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("deltas", "changes", "mlp", "init", "step_mlp"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _one_of("cell", self.cell, (*CELLS, "none"))
        for pool in self.pool.split(BESIDE):
            _one_of("pool", pool, tuple(POOLS))
        if len(set(self.pool.split(BESIDE))) != len(self.pool.split(BESIDE)):
            raise UserError(f"the pool {self.pool} takes one of its parts twice; name each once")
        _one_of("normalisation", self.norm, NORMS)
        if self.spatial is not None:
            _one_of("spatial reading", self.spatial, tuple(SPATIAL))
        for init in self.init:
            _one_of("initialisation", init, INITS)
        sizes = {"number of hidden units": self.hidden, "number of layers": self.layers}
        sizes |= {} if self.projection is None else {"width of the projection": self.projection}
        sizes |= {
            f"lag {n} of the {what}": lag
            for what in ("deltas", "changes")
            for n, lag in enumerate(getattr(self, what), 1)
        }
        sizes |= {f"width of the classifier's hidden layer {n}": width for n, width in enumerate(self.mlp, 1)}
        sizes |= {f"width of layer {n} of the MLP of every step": width for n, width in enumerate(self.step_mlp, 1)}
        for what, size in sizes.items():
            if not 1 <= size <= _LARGEST:
                raise UserError(f"the {what} is {size}; it must be from 1 to {_LARGEST}")
        for what in (field.name for field in fields(self) if field.name.endswith("dropout")):
            share = getattr(self, what)
            if not 0 <= share < 1:
                raise UserError(f"the {what.replace('_', ' ')} is {share:g}; it is a share, from 0 to below 1")
        for what in ("deltas", "changes"):
            lags = getattr(self, what)
            for lag in {lag for lag in lags if lags.count(lag) > 1}:
                raise UserError(f"the lag {lag} is given twice for the {what}; give every lag once")
        self._check_cell()

    @property
    def inputs(self) -> Inputs:
        """What is made of the rows before they are standardised."""
        return Inputs(self.centre, self.deltas, self.changes)

    def _check_cell(self) -> None:
        if self.cell == "none":
            asked = {
                "layers": self.layers != 1,
                "both directions": self.bidirectional,
                "dropout between layers": self.dropout,
                "recurrent dropout": self.recurrent_dropout,
                "variational dropout": self.variational_dropout,
                "an initialisation": self.init,
            }
            for what, is_asked in asked.items():
                if is_asked:
                    raise UserError(f"{what} asked for without a recurrent cell; choose the cell lstm or gru as well")
        elif self.dropout and self.layers == 1:
            raise UserError(
                f"dropout {self.dropout:g} between layers asked for, but there is one layer; "
                "give more layers, or use input, recurrent or output dropout"
            )
        if self.recurrent_dropout and self.variational_dropout:
            raise UserError(
                "recurrent dropout drops recurrent weights, and variational dropout what they read; give one of them"
            )
        if self.projection_dropout and self.projection is None:
            raise UserError(
                "dropout of the projection asked for without one; give the width of the projection, or use input "
                "dropout"
            )
        if self.step_mlp and self.bidirectional and not self.steps and "last" in self.pool.split(BESIDE):
            raise UserError(
                "the pool last takes each direction's own final state, and the MLP of every step mixes the directions; "
                "choose another pool, one direction, or an MLP after the pool"
            )
        if "forget-bias" in self.init and (self.cell != "lstm" or "bias-one" in self.init):
            other = "bias-one sets every bias" if "bias-one" in self.init else "a GRU has no forget gate"
            raise UserError(f"the initialisation forget-bias makes no sense here: {other}; leave it out")


class Carry(NamedTuple):
    """What the next piece of B sequences needs of this one. Videos are in the order in which they were packed."""

    context: Context  # of the rows
    state: State  # of the cell, each (layers, B, H); () without a cell, and where it begins

    def detach(self) -> "Carry":
        """The same numbers, through which no gradient flows back."""
        return Carry(self.context.detach(), tuple(part.detach() for part in self.state))

    def select(self, videos: Tensor) -> "Carry":
        """Of some of the videos, or in another order: their numbers (b,) int64."""
        return Carry(self.context.select(videos), tuple(part[:, videos] for part in self.state))


class SequenceModel(Protocol):
    """What is trained and scored on packed rows: a `Head`, or a module that has one behind it.

    See `Head` for what they mean. Beyond it a model may have `use_less_memory` (see `pipeline.fitting`).
    """

    training: bool

    @property
    def config(self) -> HeadConfig: ...
    @property
    def feature_shape(self) -> tuple[int, ...]: ...
    @property
    def outputs(self) -> int: ...
    @property
    def pool(self) -> Pool | None: ...
    @property
    def learns_vectors(self) -> bool: ...
    @property
    def value_mean(self) -> Tensor: ...
    @property
    def value_scale(self) -> Tensor: ...
    def __call__(self, packed: PackedSequence) -> Tensor | PackedSequence: ...
    def run(self, packed: PackedSequence, carry: Carry | None = None) -> tuple[PackedSequence, Carry]: ...
    def vectors(self, rows: Tensor) -> Tensor: ...
    def classify(self, states: Tensor) -> Tensor: ...
    def to(self, device: torch.device | str) -> Self: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class Head(nn.Module):
    """Packed rows (n, D) or (n, C, H, W) float32 of B videos -> outputs of `outputs` = K numbers.

    `feature_shape` is (D,) or (C, H, W). Standardisation (none: the inputs as they are) is kept in buffers, and so in
    the state dict. Outputs are logits; in regression they are values in natural units, once `value_mean` and
    `value_scale` (K,) have been set to the mean and standard deviation of the training targets.

    Raises UserError if the configured `spatial` doesn't suit the features' shape.
    """

    mean: Tensor
    scale: Tensor
    components: Tensor | None
    channel_mean: Tensor | None
    channel_scale: Tensor | None
    value_mean: Tensor
    value_scale: Tensor

    def __init__(
        self,
        config: HeadConfig,
        feature_shape: Sequence[int],
        outputs: int,
        standardisation: Standardisation | None = None,
    ) -> None:
        super().__init__()
        self.config, self.feature_shape, self.outputs = config, tuple(feature_shape), outputs
        self.features = vector_width(config, self.feature_shape)  # D of the vectors
        features = self._register(standardisation)
        self.attend = SpatialAttention(self.feature_shape[0]) if config.spatial == "attention" else None
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.projection = None if config.projection is None else nn.Linear(features, config.projection)
        self.projection_dropout = nn.Dropout(config.projection_dropout)
        features = config.projection or features
        self.recurrence = None
        if config.cell != "none":
            self.recurrence = Recurrence(
                config.cell,
                features,
                config.hidden,
                config.layers,
                bidirectional=config.bidirectional,
                dropout=config.dropout,
                recurrent_dropout=config.recurrent_dropout,
                variational_dropout=config.variational_dropout,
                init=config.init,
            )
            features = self.recurrence.width
        hidden, features = _layers(features, config.step_mlp)
        self.step_mlp = nn.Sequential(*hidden) if hidden else None
        self.pool = None if config.steps else pool_of(config.pool, features, bidirectional=config.bidirectional)
        features = features if self.pool is None else self.pool.width
        classifier: list[nn.Module] = [_BatchNorm(features)] if config.norm == "batch" else []
        hidden, features = _layers(features, config.mlp)
        classifier += [nn.Dropout(config.output_dropout), *hidden]
        self.classifier = nn.Sequential(*classifier, nn.Linear(features, outputs))
        self.register_buffer("value_mean", torch.zeros(outputs))
        self.register_buffer("value_scale", torch.ones(outputs))

    @property
    def learns_vectors(self) -> bool:
        """Whether what `vectors` gives changes while it is trained."""
        return self.attend is not None

    def forward(self, packed: PackedSequence) -> Tensor | PackedSequence:
        """(B, K) in the order in which the videos were packed; with `steps` packed like the input, (n, K)."""
        states, _ = self.run(packed)
        if self.pool is None:
            return with_data(states, self.classify(states.data))
        return self.classify(self.pool(states))

    def run(self, packed: PackedSequence, carry: Carry | None = None) -> tuple[PackedSequence, Carry]:
        """What the pool, or the classifier of every step, reads: (n, H) packed like the input; and what the next piece
        of the same videos needs.

        `carry` is that of the piece before, for the same videos (see `Carry.select`), or the context alone of pieces
        that overlap. ValueError for the state of a bidirectional cell: before the first step it depends on steps to
        come.
        """
        context, begin = (None, ()) if carry is None else carry
        if begin and self.config.bidirectional:
            raise ValueError("a bidirectional cell has no state to carry on from; use overlapping pieces")
        vectors = with_data(packed, self.vectors(packed.data))
        expanded, context = expand(vectors, self.config.inputs, context)
        states, state = with_data(packed, self.prepared(expanded.data)), ()
        if self.recurrence is not None:
            states, state = self.recurrence(states, begin or None)
        if self.step_mlp is not None:
            states = with_data(states, self.step_mlp(states.data))
        return states, Carry(context, state)

    def vectors(self, rows: Tensor) -> Tensor:
        """Rows (n, D) or (n, C, H, W) -> vectors (n, D). Maps are standardised by channel before attention, so that the
        weights see features of one scale."""
        if self.attend is not None and self.channel_mean is not None and self.channel_scale is not None:
            return self.attend((rows - self.channel_mean[:, None, None]) / self.channel_scale[:, None, None])
        if rows.dim() == 4:
            rows = rows.mean((2, 3)) if self.config.spatial == "mean" else rows.flatten(1)
        if rows.shape[1:] != (self.features,):
            raise ValueError(f"rows of {rows.shape[1]} features; the head reads {self.features}")
        return rows

    def prepared(self, rows: Tensor) -> Tensor:
        """Rows (n, E) as `pipeline.inputs` makes them -> what the cell reads, (n, P): standardised and projected."""
        rows = (rows - self.mean) / self.scale
        if self.components is not None:
            rows = rows @ self.components
        rows = self.input_dropout(rows)
        return rows if self.projection is None else self.projection_dropout(self.projection(rows))

    def classify(self, states: Tensor) -> Tensor:
        """Pooled or single states (..., H) -> (..., K)."""
        return self.classifier(states) * self.value_scale + self.value_mean

    def _register(self, given: Standardisation | None) -> int:
        """Buffers of the standardisation, the identity if None. Returns the width of the rows after it."""
        width, attends = self.config.inputs.width(self.features), self.config.spatial == "attention"
        if given is None:
            channels = (torch.zeros(self.features), torch.ones(self.features)) if attends else (None, None)
            given = Standardisation(torch.zeros(width), torch.ones(width), None, *channels)
        if len(given.mean) != width or (given.channel_mean is not None) != attends:
            of = "vectors" if given.channel_mean is None else "maps"
            raise ValueError(
                f"the standardisation is of {len(given.mean)} inputs, made of {of}; the head has {width}, "
                f"with spatial={self.config.spatial!r}"
            )
        for name, values in given._asdict().items():
            self.register_buffer(name, None if values is None else values.clone())  # several heads share what is given
        return width if given.components is None else given.components.shape[1]


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the rows of all ranks, of which this one may have none. A batch of one row, which has no
    variance, is normalised by the running statistics."""

    def forward(self, rows: Tensor) -> Tensor:
        if not self.training:
            return super().forward(rows)
        if ranks.size() > 1:
            return self._over_ranks(rows)
        if len(rows) == 1:
            return F.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(rows)

    def _over_ranks(self, rows: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        values = rows.float()
        if torch.is_grad_enabled() and not values.requires_grad:  # or this rank would stay away from the backward sums
            values = values.detach().requires_grad_()
        count = ranks.sum_(values.new_tensor(len(values)))
        mean = ranks.summed(values.sum(0)) / count
        variance = ranks.summed((values - mean).square().sum(0)) / count
        several = count > 1
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(torch.where(several, now, running), self.momentum)
            self.num_batches_tracked.add_(several)
        mean = torch.where(several, mean, self.running_mean)
        variance = torch.where(several, variance, self.running_var)
        return ((values - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias).to(rows.dtype)


def _layers(features: int, widths: Sequence[int]) -> tuple[list[nn.Module], int]:
    """Linear layers with ReLU, one of each width, and how many numbers they give."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return layers, features


def without_rows(model: SequenceModel) -> Tensor:
    """Take part, without a row of its own, in what a model in training makes of the rows of all ranks: the sum of
    nothing, whose backward pass takes part in theirs."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    nothing = [norm(torch.zeros(0, norm.num_features, device=norm.weight.device)).sum() for norm in norms]
    return torch.stack(nothing).sum() if nothing else torch.zeros(())


def restored(config: HeadConfig, feature_shape: Sequence[int], outputs: int, state: Mapping[str, Tensor]) -> Head:
    """The head whose state dict `state` is, in eval mode. KeyError, ValueError or RuntimeError for that of another."""
    kept = Standardisation(
        state["mean"],
        state["scale"],
        state.get("components"),
        state.get("channel_mean"),
        state.get("channel_scale"),
    )
    head = Head(config, feature_shape, outputs, kept)
    head.load_state_dict(state)
    return head.eval()


def suited(config: HeadConfig, feature_shape: Sequence[int]) -> HeadConfig:
    """The config of one of several heads: without attention to places where it alone reads vectors, which have none."""
    return replace(config, spatial=None) if config.spatial == "attention" and len(feature_shape) == 1 else config


def vector_width(config: HeadConfig, feature_shape: tuple[int, ...]) -> int:
    """D of the vectors that rows become. UserError if maps have no way to become vectors, or none are there."""
    if len(feature_shape) == 1 and config.spatial != "attention":
        return feature_shape[0]
    if len(feature_shape) == 3 and config.spatial is not None:
        return prod(feature_shape) if config.spatial == "flatten" else feature_shape[0]
    shape = ", ".join(map(str, feature_shape))
    if len(feature_shape) == 3:
        raise UserError(f"the features are maps ({shape}); say how to read them: --spatial mean, flatten or attention")
    raise UserError(f"the features are vectors ({shape}), there are no places to attend to; leave out --spatial")


def _one_of(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise UserError(f"unknown {what} {given!r}; choose one of {', '.join(known)}")
