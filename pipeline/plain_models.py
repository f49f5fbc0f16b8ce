"""Backbone and bundle as modules of plain tensors, with all that turns numbers into numbers inside them.

The backbone takes prepared rows as they are decoded, uint8, and normalises them itself. The bundle takes the features
of one video from each bank that its heads read, and gives calibrated, fused probabilities: reducing maps, joining
banks, centring, changes, standardisation, projection, reading of steps, fusion and temperature are all within.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone import Backbone, FeatureExtractor
from pipeline.bundles import Bundle, Member
from pipeline.calibration import TINY
from pipeline.folding import folded
from pipeline.heads import Head
from pipeline.plain_head import CellOf, PlainHead, WholeCell, read_steps
from pipeline.preprocessing import by_channel


class PlainBackbone(nn.Module):
    """Prepared rows (N, *input_shape) uint8 -> features (N, *feature_shape) float32, N from 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        """The backbone, in float32 on the CPU, stays as it is."""
        super().__init__()
        whole = backbone.module
        self.module = FeatureExtractor(folded(whole.net), layout=whole.layout, average=whole.average).eval()
        shape = (-1, *[1] * (len(backbone.input_shape) - 1))
        for name, values in zip(("mean", "std"), by_channel(backbone.preprocessing, backbone.window), strict=True):
            self.register_buffer(name, torch.tensor(values).view(shape))

    def forward(self, rows: Tensor) -> Tensor:
        features: Tensor = self.module((rows.to(torch.float32) / 255 - self.mean) / self.std)
        return features


class PlainBundle(nn.Module):
    """Features of one video, for each bank (T, *shape) float32 in the bundle's order -> its prediction.

    (K,) calibrated probabilities, or the value (1,); per frame (T, K) or (T, 1). Banks of one head have the same T.
    """

    svm: Tensor | None

    def __init__(self, bundle: Bundle, cell_of: CellOf = WholeCell) -> None:
        """The bundle stays as it is."""
        super().__init__()
        self.kind, self.objective, self.fusion = bundle.kind, bundle.objective, bundle.fusion
        self.temperature = bundle.temperature
        self.members = nn.ModuleList(_PlainMember(member, cell_of) for member in bundle.members)
        self.register_buffer("svm", None if bundle.svm is None else torch.from_numpy(bundle.svm).float())
        self.requires_grad_(False)

    def forward(self, *features: Tensor) -> Tensor:
        rest = iter(features)
        scores = []
        for member in self.members:
            output = self.objective.probability(member(*[next(rest) for _ in range(member.banks)]))  # type: ignore[arg-type]
            steps = self.objective.steps and not self.objective.per_frame
            scores.append(read_steps(self.objective, output) if steps else output)
        if self.svm is not None:
            fused = (self.svm[:, :-1] @ torch.cat(scores) + self.svm[:, -1]).softmax(0)
        else:
            fused = scores[0] if len(scores) == 1 else torch.stack(scores).mean(0)
        return tempered(self.kind, fused, self.temperature)


class _PlainMember(nn.Module):
    """One head: of each of its banks (T, *shape) -> what the head gives."""

    def __init__(self, member: Member, cell_of: CellOf) -> None:
        super().__init__()
        if not isinstance(member.head, Head):
            raise TypeError("a head that is part of another model has no plain form; take it out")
        self.banks = len(member.banks)
        self.spatial = [_reading(made, member.spatial) for made in member.banks]
        self.head = PlainHead(copy.deepcopy(member.head).cpu().eval(), cell_of)

    def forward(self, *features: Tensor) -> Tensor:
        rows = [_reduced(each, how) for each, how in zip(features, self.spatial, strict=True)]
        output: Tensor = self.head(rows[0] if len(rows) == 1 else torch.cat(rows, 1))
        return output


def _reading(made: dict[str, Any], spatial: str | None) -> str | None:
    """What becomes of the rows of one bank before they are joined (`pipeline.joined_banks.Columns`)."""
    return spatial if len(made["config"]["recipe"]["feature_shape"]) == 3 else None


def _reduced(rows: Tensor, how: str | None) -> Tensor:
    if how == "mean":
        return rows.mean((2, 3))
    return rows.flatten(1) if how == "flatten" else rows


def tempered(kind: str, probability: Tensor, temperature: float) -> Tensor:
    """`pipeline.calibration.tempered` in float32, which has no number between 1 - 1e-12 and 1: the logarithm of the
    rest is taken of the rest itself."""
    if kind == "value" or temperature == 1.0:
        return probability
    log = probability.clamp(min=TINY).log()
    if kind == "class":
        return (log / temperature).softmax(-1)
    return ((log - (1 - probability).clamp(min=TINY).log()) / temperature).sigmoid()


def shapes_of(bundle: Bundle) -> Sequence[tuple[int, ...]]:
    """Of each bank that the bundle reads, in its order, the shape of a stored row."""
    return [tuple(made["config"]["recipe"]["feature_shape"]) for member in bundle.members for made in member.banks]
