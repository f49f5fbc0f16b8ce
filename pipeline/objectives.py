"""What a head is trained for: targets aligned with the rows of batches, the loss on them, and outputs -> predictions.

The loss comes as a sum and the number of targets in it, so that batches of any size, parts of one batch, and machines
that hold different numbers of frames add up to the same mean. Rows without a target count in neither.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pipeline.errors import UserError
from pipeline.ids import readable
from pipeline.layout import Layout, layout, sums
from pipeline.segments import IGNORED
from pipeline.targets import Targets
from pipeline.transfers import moved

LOSSES = {"class": ("cross-entropy",), "multilabel": ("bce",), "value": ("mse", "huber")}  # the first is the default
SUPERVISIONS = ("pooled", "every-step", "growing")
READINGS = ("last", "mean", "max", "weighted")


class _Batch(Protocol):
    """What of a batch says which targets are its own (see `pipeline.sequences.Batch`)."""

    @property
    def videos(self) -> np.ndarray: ...
    @property
    def rows(self) -> Tensor: ...


class _Videos(Protocol):
    """What of sequences says where their rows lie (see `pipeline.sequences.Sequences`)."""

    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def offsets(self) -> np.ndarray: ...


class TargetRows(NamedTuple):
    """The targets of the B videos of some sequences, or of their N rows, in their order.

    Attributes:
        kind: "class", "multilabel" or "value".
        per_frame: whether there is one per row.
        labels: the K classes; () for values.
        values: (B,) or (N,): int64 classes, IGNORED where there is none; float32 values, NaN where there is none; or
            (B, K) or (N, K) float32 0 and 1, NaN where there is none.
        known: (B,) or (N,) bool: where there is a target.
    """

    kind: str
    per_frame: bool
    labels: tuple[str, ...]
    values: Tensor
    known: np.ndarray

    @property
    def outputs(self) -> int:
        """K, the number of outputs that a head needs."""
        return len(self.labels) or 1

    def of(self, batch: _Batch) -> Tensor:
        """The targets of a batch: of its b videos in their order, or of its n packed rows."""
        rows = batch.rows if self.per_frame else moved(torch.from_numpy(batch.videos), self.values.device)
        return self.values.index_select(0, rows)

    def to(self, device: torch.device | str) -> Self:
        """The same with its values on a device."""
        return self._replace(values=self.values.to(device))


def target_rows(targets: Targets, sequences: _Videos) -> TargetRows:
    """Targets in the order of sequences; videos that have none are masked.

    Raises:
        UserError: a video has as many targets as frames, but not as many frames as the sequences have.
    """
    count = int(sequences.offsets[-1]) if targets.per_frame else len(sequences.ids)
    shape = (count, len(targets.labels)) if targets.kind == "multilabel" else (count,)
    is_class = targets.kind == "class"
    values = np.full(shape, IGNORED if is_class else np.nan, np.int64 if is_class else np.float32)
    for position, video_id in enumerate(sequences.ids):
        if video_id not in targets.values:
            continue
        start, stop = position, position + 1
        if targets.per_frame:
            start, stop = sequences.offsets[position : position + 2].tolist()
            if len(targets.values[video_id]) != stop - start:
                raise UserError(
                    f"{readable(video_id)} has {len(targets.values[video_id])} targets for {stop - start} banked "
                    "frames; make the targets from the bank that is trained on"
                )
        values[start:stop] = targets.values[video_id]
    missing = values == IGNORED if is_class else np.isnan(values).reshape(count, -1).all(axis=1)
    return TargetRows(targets.kind, targets.per_frame, targets.labels, torch.from_numpy(values), ~missing)


def step_weights(place: Layout, *, growing: bool) -> Tensor:
    """(n,) float32 weights of packed rows that sum to 1 in each video: equal, or growing linearly from its start."""
    lengths = place.lengths[place.video].float()
    return (place.step + 1) * 2 / (lengths * (lengths + 1)) if growing else 1 / lengths


@dataclass(frozen=True, eq=False)
class Objective:
    """What is minimised, and how outputs become predictions.

    Attributes:
        kind: "class" (one of K), "multilabel" (any of K) or "value" (a number).
        per_frame: one target per frame instead of one per video.
        supervise: with one target per video, what it is compared with: the "pooled" sequence; or the output of
            "every-step", each video's steps sharing its weight equally, or "growing" linearly towards its end.
        read: how the steps give the video's prediction where they are supervised (Ng et al. 2015): the "last"; the
            "mean"; the "max" of each output, as probabilities that sum to 1 again; the mean "weighted" by growing
            weights.
        loss: "cross-entropy", "bce", "mse" or "huber" (quadratic up to `scale`, then linear); "" is the kind's first.
        label_smoothing: share of a class target that is spread over all classes (Szegedy et al. 2016).
        class_weights: (K,) float32 or None. A class target's weight; of a label among several, the weight of its
            presence against that of its absence.
        scale: values are compared in units of it, so that one learning rate serves any unit.

    Raises UserError for a choice that is not known or that the kind of target does not have.
    """

    kind: str
    per_frame: bool = False
    supervise: str = "pooled"
    read: str = "last"
    loss: str = ""
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise UserError(f"kind of target {self.kind!r} is not known; choose from {', '.join(LOSSES)}")
        if not self.loss:
            object.__setattr__(self, "loss", LOSSES[self.kind][0])
        for what, choice, known in (
            (f"loss for {self.kind} targets", self.loss, LOSSES[self.kind]),
            ("supervision", self.supervise, SUPERVISIONS),
            ("reading of steps", self.read, READINGS),
        ):
            if choice not in known:
                raise UserError(f"{what} {choice!r} is not known; choose from {', '.join(known)}")
        if self.per_frame and self.supervise != "pooled":
            raise UserError(f"targets per frame have their own step each; {self.supervise} is for one target per video")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label smoothing is {self.label_smoothing:g}; it must be from 0 to below 1, such as 0.1")
        if self.label_smoothing and self.kind != "class":
            raise UserError(f"label smoothing is for one class per target; it cannot be used with {self.kind} targets")

    @property
    def steps(self) -> bool:
        """Whether the head must give outputs at every step (`HeadConfig.steps`)."""
        return self.per_frame or self.supervise != "pooled"

    def loss_sum(self, output: Tensor | PackedSequence, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of the losses, and the weight of the targets in it: the mean loss is their ratio.

        Args:
            output: what the head gave: (b, K), or packed (n, K).
            targets: what `TargetRows.of` gave for the batch.

        Returns:
            two float32 scalars on the device of the output; the second is 0 where nothing has a target.
        """
        shares: Tensor | None = None
        if isinstance(output, PackedSequence):
            if not self.per_frame:
                place = layout(output)
                shares = step_weights(place, growing=self.supervise == "growing")
                targets = targets[place.video]
            output = output.data
        losses, weights = self._losses(output.float(), targets)
        if shares is not None:
            losses, weights = losses * shares, weights * shares
        return losses.sum(), weights.sum()

    def _losses(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of n outputs (n, K): losses (n,) and the weights (n,) of their targets; both 0 without a target."""
        if self.kind == "class":
            weights = (targets != IGNORED).float()
            if self.class_weights is not None:
                weights = weights * self.class_weights[targets.clamp(min=0)]
            losses = F.cross_entropy(
                output,
                targets,
                weight=self.class_weights,
                ignore_index=IGNORED,
                label_smoothing=self.label_smoothing,
                reduction="none",
            )
            return losses, weights
        known = ~targets.isnan()
        wanted = targets.nan_to_num()
        if self.kind == "multilabel":
            losses = F.binary_cross_entropy_with_logits(output, wanted, pos_weight=self.class_weights, reduction="none")
            return (losses * known).sum(dim=1), known.float().sum(dim=1)
        off = (output.squeeze(1) - wanted) / self.scale
        losses = F.huber_loss(off, torch.zeros_like(off), reduction="none") if self.loss == "huber" else off.square()
        return losses * known, known.float()

    def scores(self, output: Tensor | PackedSequence) -> Tensor:
        """Predictions: probabilities, or values for "value".

        Args:
            output: what the head gave: (b, K), or packed (n, K).

        Returns:
            (b, K) float32, one row per video in the order in which the videos were packed; per frame (n, K), packed.
        """
        if not isinstance(output, PackedSequence):
            return self.probability(output)
        probability = self.probability(output.data)
        if self.per_frame:
            return probability
        place = layout(output)
        if self.read == "last":
            return probability[place.last]
        if self.read == "max":
            index = place.video[:, None].expand_as(probability)
            highest = probability.new_zeros(len(place.last), probability.shape[1])
            highest = highest.scatter_reduce(0, index, probability, "amax", include_self=False)
            return highest / highest.sum(dim=1, keepdim=True) if self.kind == "class" else highest
        return sums(probability * step_weights(place, growing=self.read == "weighted")[:, None], place)

    def probability(self, output: Tensor) -> Tensor:
        """Outputs (..., K) -> probabilities, values as they are: (..., K) float32."""
        output = output.float()
        if self.kind == "class":
            return output.softmax(dim=-1)
        return output.sigmoid() if self.kind == "multilabel" else output


def balanced_weights(targets: TargetRows, places: np.ndarray) -> tuple[Tensor, list[str]]:
    """Weights (K,) float32 by which classes of different size count the same.

    A class of n of the N targets, K of the classes being there, weighs N / (K n), so the mean weight is 1; a class that
    is not there weighs 0. Of labels among several, presence weighs as often as absence is more frequent.

    Args:
        targets: of classes or labels.
        places: (n,) positions of the training targets in `targets.values`, none of them masked.

    Returns:
        the weights, on the device of the targets, and lines worth telling the user.

    Raises:
        UserError: weights for values.
    """
    values = values_at(targets, places)
    if targets.kind == "value":
        raise UserError("balanced weights are for classes, and regression targets have none; leave the balance out")
    if targets.kind == "class":
        counts = torch.bincount(values, minlength=targets.outputs).double()
        present = counts > 0
        weights = torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)
    else:
        counts = values.nansum(dim=0).double()
        present = counts > 0
        weights = torch.where(present, (values == 0).sum(dim=0) / counts.clamp(min=1), 1.0)
    absent = [readable(targets.labels[place]) for place in torch.nonzero(~present).flatten().tolist()]
    consequence = "it weighs 0 in the loss" if targets.kind == "class" else "it is only ever learnt as absent"
    notes = [f"{label} does not occur in the training part: {consequence}" for label in absent]
    return weights.float().to(targets.values.device), notes


def values_at(targets: TargetRows, places: np.ndarray) -> Tensor:
    """The targets at some positions, on the CPU."""
    return targets.values.cpu()[torch.from_numpy(places)]
