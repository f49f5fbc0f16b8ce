"""Losses and readings against a loop over videos that pads nothing, packs nothing and masks by leaving out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.objectives import Objective, TargetRows, balanced_weights, target_rows
from pipeline.segments import IGNORED
from pipeline.targets import Targets
from tests.heads import class_rows, packed_of, sequences_of

LENGTHS = [3, 7, 1, 5]
NAN = float("nan")


def logits_of(outputs: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(length, outputs, generator=generator) for length in LENGTHS]


def packed_rows(parts: list[Tensor]) -> Tensor:
    """What is in the packed rows when each video's rows are `parts`."""
    return packed_of(parts).data


def mean(objective: Objective, output: object, targets: Tensor) -> float:
    total, weight = objective.loss_sum(output, targets)  # type: ignore[arg-type]
    return float(total / weight)


def test_targets_lie_where_the_rows_of_their_videos_lie() -> None:
    sequences = sequences_of([2, 3, 1])
    per_video = target_rows(Targets("class", False, ("a", "b"), {"v2": np.int64(1), "v0": np.int64(0)}, ()), sequences)
    assert per_video.values.tolist() == [0, IGNORED, 1]
    assert per_video.known.tolist() == [True, False, True]
    frames = {"v1": np.array([1.0, np.nan, 3.0], np.float32), "elsewhere": np.ones(9, np.float32)}
    per_frame = target_rows(Targets("value", True, (), frames, ()), sequences)
    assert np.array_equal(per_frame.values.numpy(), [NAN, NAN, 1, NAN, 3, NAN], equal_nan=True)
    assert per_frame.known.tolist() == [False, False, True, False, True, False]
    assert per_frame.outputs == 1
    labels = {"v0": np.array([1.0, 0.0], np.float32)}
    several = target_rows(Targets("multilabel", False, ("a", "b"), labels, ()), sequences)
    assert several.known.tolist() == [True, False, False]


def test_targets_of_another_bank_are_refused() -> None:
    targets = Targets("class", True, ("a", "b"), {"v1": np.zeros(4, np.int64)}, ())
    with pytest.raises(UserError, match="v1 has 4 targets for 3 banked frames"):
        target_rows(targets, sequences_of([2, 3]))


def test_a_batch_finds_its_own_targets() -> None:
    sequences = sequences_of([2, 3, 1])
    videos = np.array([2, 0, 1])
    batch = sequences.batch(videos)
    assert class_rows([0, 1, 1]).of(batch).tolist() == [1, 0, 1]
    numbered = class_rows(list(range(6)), tuple("abcdef"), per_frame=True).of(batch)
    # step 0 of v1, v0 and v2 (longest first), step 1 of v1 and v0, step 2 of v1
    assert numbered.tolist() == [2, 0, 5, 3, 1, 4]
    chosen = sequences.batch(np.array([1]), [np.array([0, 2])])
    assert class_rows(list(range(6)), tuple("abcdef"), per_frame=True).of(chosen).tolist() == [2, 4]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 3.0])])
def test_pooled_cross_entropy_is_torchs_mean(smoothing: float, weights: Tensor | None) -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, 2, IGNORED, 1, 2])
    objective = Objective("class", label_smoothing=smoothing, class_weights=weights)
    expected = F.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)
    assert mean(objective, logits, targets) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("supervise", ["every-step", "growing"])
def test_a_video_label_at_every_step_weighs_each_video_the_same(supervise: str) -> None:
    parts, targets = logits_of(3), torch.tensor([0, 2, 1, 2])
    losses = []
    for part, target in zip(parts, targets, strict=True):
        each = F.cross_entropy(part, target.repeat(len(part)), reduction="none")
        shares = np.arange(1, len(part) + 1) if supervise == "growing" else np.ones(len(part))
        losses.append(float((each.numpy() * shares).sum() / shares.sum()))
    objective = Objective("class", supervise=supervise)
    assert mean(objective, packed_of(parts), targets) == pytest.approx(np.mean(losses), rel=1e-6)
    masked = torch.tensor([0, IGNORED, 1, 2])
    assert mean(objective, packed_of(parts), masked) == pytest.approx(np.mean(np.delete(losses, 1)), rel=1e-6)


def test_masked_frames_never_reach_the_loss() -> None:
    parts = logits_of(3)
    labels = [
        torch.tensor([0, IGNORED, 2]),
        torch.full((7,), IGNORED),
        torch.tensor([1]),
        torch.tensor([0, 1, 2, 1, 0]),
    ]
    kept = [row for part, wanted in zip(parts, labels, strict=True) for row in part[wanted != IGNORED]]
    expected = F.cross_entropy(torch.stack(kept), torch.cat([wanted[wanted != IGNORED] for wanted in labels]))
    packed, wanted = packed_of(parts), packed_rows(labels)
    packed.data.requires_grad_()
    objective = Objective("class", per_frame=True, label_smoothing=0.0)
    total, weight = objective.loss_sum(packed, wanted)
    assert float(weight) == 8
    assert (total / weight).item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(total, packed.data)
    assert not gradient[wanted == IGNORED].any()
    assert gradient[wanted != IGNORED].abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("kind", ["multilabel", "value"])
def test_masked_frames_of_other_kinds_never_reach_the_loss(kind: str) -> None:
    outputs = 2 if kind == "multilabel" else 1
    packed = packed_of(logits_of(outputs))
    packed.data.requires_grad_()
    wanted = torch.bernoulli(torch.full(packed.data.shape, 0.5), generator=torch.Generator().manual_seed(0))
    masked = torch.arange(len(wanted)) % 3 == 0
    wanted[masked] = NAN
    if kind == "multilabel":
        expected = F.binary_cross_entropy_with_logits(packed.data[~masked], wanted[~masked])
    else:
        expected = F.mse_loss(packed.data[~masked], wanted[~masked])
        wanted = wanted[:, 0]
    total, weight = Objective(kind, per_frame=True).loss_sum(packed, wanted)
    assert (total / weight).item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(total, packed.data)
    assert not gradient[masked].any()


def test_nothing_but_masked_frames_weigh_nothing() -> None:
    total, weight = Objective("class", per_frame=True).loss_sum(packed_of(logits_of(3)), torch.full((16,), IGNORED))
    assert (float(total), float(weight)) == (0, 0)


def test_weights_of_labels_are_of_their_presence() -> None:
    logits, wanted = torch.randn(4, 2), torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    weights = torch.tensor([3.0, 1.0])
    expected = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights)
    assert mean(Objective("multilabel", class_weights=weights), logits, wanted) == pytest.approx(float(expected))


def test_values_are_compared_in_units_of_the_scale() -> None:
    output, wanted = torch.tensor([[1.0], [5.0], [0.0]]), torch.tensor([2.0, -5.0, NAN])
    assert mean(Objective("value", scale=2.0), output, wanted) == pytest.approx((0.5**2 + 5**2) / 2)
    assert mean(Objective("value", loss="huber", scale=2.0), output, wanted) == pytest.approx((0.125 + 4.5) / 2)


@pytest.mark.parametrize("supervise", ["pooled", "every-step", "growing"])
def test_parts_of_a_batch_add_up_to_the_whole(supervise: str) -> None:
    objective = Objective("class", supervise=supervise, class_weights=torch.tensor([0.5, 1.0, 2.0]))
    parts, targets = logits_of(3), torch.tensor([0, 2, 1, 2])
    if supervise == "pooled":
        whole = objective.loss_sum(torch.cat([part[:1] for part in parts]), targets)
        pieces = [objective.loss_sum(part[:1], targets[place : place + 1]) for place, part in enumerate(parts)]
    else:
        whole = objective.loss_sum(packed_of(parts), targets)
        pieces = [objective.loss_sum(packed_of([part]), targets[place : place + 1]) for place, part in enumerate(parts)]
    for number in (0, 1):
        assert float(whole[number]) == pytest.approx(sum(float(piece[number]) for piece in pieces), rel=1e-6)


@pytest.mark.parametrize("kind", ["class", "multilabel", "value"])
@pytest.mark.parametrize("read", ["last", "mean", "max", "weighted"])
def test_readings_of_steps_against_a_loop(kind: str, read: str) -> None:
    parts = logits_of(1 if kind == "value" else 3)
    expected = []
    for part in parts:
        scores = {"class": part.softmax(1), "multilabel": part.sigmoid(), "value": part}[kind].numpy()
        growing = np.arange(1, len(part) + 1)[:, None]
        each = {
            "last": scores[-1],
            "mean": scores.mean(0),
            "max": scores.max(0) / (scores.max(0).sum() if kind == "class" else 1),
            "weighted": (scores * growing).sum(0) / growing.sum(),
        }
        expected.append(each[read])
    found = Objective(kind, supervise="every-step", read=read).scores(packed_of(parts))
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-5, atol=1e-7)


def test_scores_per_frame_are_packed_rows() -> None:
    packed = packed_of(logits_of(3))
    assert torch.equal(Objective("class", per_frame=True).scores(packed), packed.data.softmax(1))


def test_balanced_weights_make_classes_count_the_same() -> None:
    targets = class_rows([0, 0, 0, 1, 0, 2], ("a", "b", "c", "d"))
    weights, notes = balanced_weights(targets, np.array([0, 1, 2, 3]))
    assert weights.tolist() == pytest.approx([4 / (2 * 3), 4 / 2, 0, 0])
    assert notes == [
        "c does not occur in the training part: it weighs 0 in the loss",
        "d does not occur in the training part: it weighs 0 in the loss",
    ]
    values = torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 0]])
    weights, notes = balanced_weights(
        TargetRows("multilabel", False, ("a", "b"), values, np.full(4, True)), np.arange(4)
    )
    assert weights.tolist() == [3, 1]
    assert "b does not occur" in notes[0]
    with pytest.raises(UserError, match="regression targets have none"):
        balanced_weights(TargetRows("value", False, (), torch.ones(2), np.full(2, True)), np.arange(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "classes"}, "kind of target 'classes' is not known; choose from class"),
        ({"kind": "class", "loss": "mse"}, "loss for class targets 'mse'"),
        ({"kind": "class", "supervise": "steps"}, "every-step"),
        ({"kind": "class", "supervise": "growing", "read": "first"}, "last, mean, max, weighted"),
        ({"kind": "class", "per_frame": True, "supervise": "growing"}, "one target per video"),
        ({"kind": "class", "label_smoothing": 1.0}, "label smoothing is 1"),
        ({"kind": "value", "label_smoothing": 0.1}, "one class per target"),
    ],
)
def test_refusals_say_what_there_is(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Objective(**arguments)  # type: ignore[arg-type]
