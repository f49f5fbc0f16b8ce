"""Training: against a plain loop, through a kill, and with everything that must stop it."""

import copy
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import fitting
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.fitting import Fitted, fit
from pipeline.heads import Head, HeadConfig
from pipeline.inputs import expand
from pipeline.layout import alone
from pipeline.objectives import Objective, TargetRows
from pipeline.optimisation import FitConfig
from pipeline.scoring import score
from pipeline.selection import Selection
from pipeline.sequences import Sequences, load_sequences
from pipeline.standardisation import statistics
from tests.banks import fill
from tests.conftest import REPOSITORY
from tests.heads import FEATURES, class_rows, rows_of, sequences_of, two_orders

pytestmark = pytest.mark.usefixtures("one_torch_thread")
NOBODY = np.zeros(0, np.int64)
CLASS = Objective("class")
ALL = Selection()


def head_of(outputs: int = 2, features: int = FEATURES, **config: object) -> Head:
    torch.manual_seed(0)
    return Head(HeadConfig(**{"hidden": 8, **config}), (features,), outputs)  # type: ignore[arg-type]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_order_in_time_is_learnt_in_seconds() -> None:
    sequences, targets = two_orders(240)
    train, validation, test = np.arange(140), np.arange(140, 180), np.arange(180, 240)
    head = head_of(hidden=32, cell="gru")
    config = FitConfig(epochs=20, learning_rate=1e-2)
    fitted = fit(head, sequences, targets, train, validation, CLASS, ALL, config)
    scores = score(head, sequences, test, CLASS, ALL)
    assert isinstance(scores, np.ndarray)
    assert (scores.argmax(1) == test % 2).mean() >= 0.95
    last = fitted.history[-1]
    assert last["train_loss"] < fitted.history[0]["train_loss"] / 4
    assert {"epoch", "train_loss", "validation_loss", "validation_accuracy", "learning_rate", "seconds"} <= last.keys()
    assert [row["epoch"] for row in fitted.history] == list(range(1, 21))
    assert same(fitted.state_dict, head.state_dict())
    assert not head.training


def interrupted(checkpoint: Path | None, on_epoch: Any = None) -> Fitted:
    """A training in which everything random plays its part."""
    sequences, targets = two_orders(60)
    head = head_of(
        hidden=16,
        pool="attention",
        layers=2,
        dropout=0.3,
        recurrent_dropout=0.2,
        input_dropout=0.2,
        centre=True,
        changes=(2,),
    )
    config = FitConfig(epochs=12, batch_size=8, balance="sampling", schedule="plateau", step_epochs=2, seed=3)
    return fit(
        head,
        sequences,
        targets,
        np.arange(40),
        np.arange(40, 60),
        CLASS,
        Selection("crop", 7),
        config,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "checkpoint.pt"
    code = (
        "import sys, pathlib, torch; torch.set_num_threads(1)\n"
        "from pipeline import fitting; fitting.CHECKPOINT_SECONDS = 0.0\n"
        "from tests.test_fitting import interrupted\n"
        "interrupted(pathlib.Path(sys.argv[1]), lambda row: print(row['epoch'], flush=True))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(checkpoint)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            if line == "4\n":
                os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    rows: list[Any] = []
    resumed = interrupted(checkpoint, rows.append)
    assert 5 <= rows[0]["epoch"] <= 11  # some were done before the kill, some were left
    undisturbed = interrupted(None)
    assert same(resumed.state_dict, undisturbed.state_dict)
    assert resumed.best_epoch == undisturbed.best_epoch
    without_time = [[{**row, "seconds": 0} for row in each.history] for each in (resumed, undisturbed)]
    assert without_time[0] == without_time[1]
    finished = interrupted(checkpoint, lambda row: pytest.fail("it was finished"))
    assert same(finished.state_dict, undisturbed.state_dict)


def test_the_whole_course_depends_on_the_seed_alone() -> None:
    sequences, targets = two_orders(30)
    fitted = []
    for seed, draws in ((0, 0), (0, 5), (1, 0)):
        head = head_of(input_dropout=0.5)
        torch.rand(draws)
        before = torch.get_rng_state()
        config = FitConfig(epochs=2, seed=seed)
        fitted.append(fit(head, sequences, targets, np.arange(30), NOBODY, CLASS, ALL, config).state_dict)
        assert torch.equal(torch.get_rng_state(), before)
    assert same(fitted[0], fitted[1])
    assert not same(fitted[0], fitted[2])


def test_a_streamed_bank_trains_to_the_same_weights(tmp_path: Path) -> None:
    fill(tmp_path / "bank.h5", {f"{label}/{number}": 3 + number for label in "ab" for number in range(6)})
    states = []
    for memory in (None, 0):
        with Bank(tmp_path / "bank.h5") as bank:
            sequences = load_sequences([bank], memory_bytes=memory)
        assert sequences.streamed == (memory == 0)
        targets = class_rows([0] * 6 + [1] * 6)
        head = head_of(features=8)
        config = FitConfig(epochs=3, batch_size=4)
        states.append(fit(head, sequences, targets, np.arange(12), NOBODY, CLASS, ALL, config).state_dict)
    assert same(*states)


def inputs_of(rows: Tensor, head: Head) -> Tensor:
    """What a head without standardisation reads of a whole video."""
    return expand(alone(rows), head.config.inputs)[0].data


@pytest.mark.parametrize("inputs", [{}, {"centre": True, "deltas": (1,), "changes": (3, 9)}], ids=str)
def test_chunks_with_carried_state_against_a_plain_loop(inputs: dict[str, object]) -> None:
    lengths, chunk = [23, 17], 8
    sequences = sequences_of(lengths)
    labels = [row % 3 - (row % 5 == 0) for row in range(sum(lengths))]  # some are masked (-1)
    targets = class_rows(labels, ("a", "b", "c"), per_frame=True)
    head = head_of(3, steps=True, **inputs)
    plain = copy.deepcopy(head)
    config = FitConfig(
        epochs=2,
        chunk_steps=chunk,
        optimizer="sgd",
        schedule="constant",
        learning_rate=0.5,
        momentum=0,
        weight_decay=0,
        warmup=0,
    )
    objective = Objective("class", per_frame=True)
    fit(head, sequences, targets, np.arange(2), NOBODY, objective, ALL, dataclasses.replace(config, clip_norm=None))
    optimizer = torch.optim.SGD(plain.parameters(), 0.5)
    assert plain.recurrence is not None
    for _ in range(config.epochs):
        states: list[Any] = [None, None]
        for start in range(0, 23, chunk):
            losses = []
            for video, rows in enumerate(rows_of(sequences)):
                if start < len(rows):
                    hidden, (h, c) = plain.recurrence.cell(inputs_of(rows, head)[start : start + chunk], states[video])
                    states[video] = (h.detach(), c.detach())
                    offset = int(sequences.offsets[video])
                    wanted = torch.tensor(labels[offset : offset + len(rows)][start : start + chunk])
                    each = F.cross_entropy(plain.classifier(hidden), wanted.clamp(min=0), reduction="none")
                    losses.append(each[wanted >= 0])
            optimizer.zero_grad()
            torch.cat(losses).mean().backward()
            optimizer.step()
    for one, other in zip(head.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_overlapping_chunks_against_a_plain_loop() -> None:
    """All chunks in one step: what they read of the rest of their video is that of the whole."""
    lengths, chunk, overlap = [23, 17], 8, 2
    sequences = sequences_of(lengths)
    labels = [row % 3 for row in range(sum(lengths))]
    targets = class_rows(labels, ("a", "b", "c"), per_frame=True)
    head = head_of(3, steps=True, bidirectional=True, centre=True, deltas=(1,), changes=(3, 9))
    plain = copy.deepcopy(head)
    config = FitConfig(
        epochs=1, chunk_steps=chunk, optimizer="sgd", schedule="constant", learning_rate=0.5, momentum=0, weight_decay=0
    )
    config = dataclasses.replace(config, clip_norm=None)
    fit(head, sequences, targets, np.arange(2), NOBODY, Objective("class", per_frame=True), ALL, config)
    assert plain.recurrence is not None
    outputs = []
    for rows, length in zip(rows_of(sequences), lengths, strict=True):
        inputs = inputs_of(rows, plain)
        for start in range(0, length, chunk):
            low = max(start - overlap, 0)
            hidden, _ = plain.recurrence.cell(inputs[low : start + chunk + overlap])
            outputs.append(plain.classifier(hidden[start - low : start - low + chunk]))
    F.cross_entropy(torch.cat(outputs), torch.tensor(labels)).backward()
    torch.optim.SGD(plain.parameters(), 0.5).step()
    for one, other in zip(head.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_long_videos_are_learnt_in_chunks(bidirectional: bool) -> None:
    """In one direction from a pulse that is many chunks back, in both from what comes just before and just after."""
    sequences = sequences_of([300, 180, 20])
    labels = []
    for rows in rows_of(sequences):
        around = F.pad(rows[:, 0], (2, 2)).unfold(0, 5, 1).sum(1) > 0
        pulses = rows.new_zeros(len(rows))
        pulses[::60] = torch.tensor([8.0, -8.0, -8.0, 8.0, -8.0])[: -(-len(rows) // 60)]
        rows[:, 1] = pulses  # rows are a view of what is trained on
        latch = torch.repeat_interleave(pulses[::60] > 0, 60)[: len(rows)]
        labels += (around if bidirectional else latch).long().tolist()
    targets = class_rows(labels, per_frame=True)
    head = head_of(hidden=16, cell="gru", steps=True, bidirectional=bidirectional)
    config = FitConfig(epochs=30, chunk_steps=20, learning_rate=3e-2)
    fitted = fit(
        head, sequences, targets, np.arange(3), np.array([0, 2]), Objective("class", per_frame=True), ALL, config
    )
    assert max(row["validation_frame_accuracy"] for row in fitted.history) > 0.93
    assert "validation_edit" in fitted.history[0]


def test_masked_frames_leave_no_trace_in_the_weights() -> None:
    sequences = sequences_of([9, 5, 12])
    labels = [row % 2 if row % 3 else -1 for row in range(26)]
    targets = class_rows(labels, per_frame=True)
    disturbed = torch.cat(rows_of(sequences)).where(torch.tensor(targets.known)[:, None], 1e3)
    states = []
    for rows in (torch.cat(rows_of(sequences)), disturbed):
        again = Sequences(sequences.ids, [sequences.seconds(video) for video in range(3)], rows)
        head = head_of(cell="none", steps=True, mlp=(4,))
        objective = Objective("class", per_frame=True)
        states.append(fit(head, again, targets, np.arange(3), NOBODY, objective, ALL, FitConfig(epochs=3)).state_dict)
    assert same(*states)


def test_the_best_epoch_is_kept_and_waiting_ends() -> None:
    sequences, targets = two_orders(60)
    opposite = targets.values.clone()
    opposite[40:] = 1 - opposite[40:]  # the better it learns, the worse it validates
    targets = targets._replace(values=opposite)
    train, validation = np.arange(40), np.arange(40, 60)
    config = FitConfig(epochs=30, schedule="constant", warmup=0, learning_rate=1e-2, patience=4)
    fitted = fit(head_of(), sequences, targets, train, validation, CLASS, ALL, config)
    losses = [row["validation_loss"] for row in fitted.history]
    assert len(losses) < 30
    assert losses[fitted.best_epoch - 1] == min(losses)
    assert len(losses) == fitted.best_epoch + 4
    until = dataclasses.replace(config, epochs=fitted.best_epoch)
    assert same(fitted.state_dict, fit(head_of(), sequences, targets, train, NOBODY, CLASS, ALL, until).state_dict)
    watched = dataclasses.replace(config, monitor="accuracy")
    fitted = fit(head_of(), sequences, targets, train, validation, CLASS, ALL, watched)
    scores = [row["validation_accuracy"] for row in fitted.history]
    assert fitted.best_epoch == int(np.argmax(scores)) + 1


def test_values_of_any_unit_are_learnt() -> None:
    sequences = sequences_of([5] * 120)
    wanted = torch.tensor([float(rows[:, 0].mean()) for rows in rows_of(sequences)]) * 1e4 + 1e6
    wanted[7] = float("nan")
    targets = TargetRows("value", False, (), wanted, ~wanted.isnan().numpy())
    head = head_of(1, cell="none", pool="mean")
    config = FitConfig(epochs=40, learning_rate=2e-2)
    fitted = fit(head, sequences, targets, np.arange(100), np.arange(100, 120), Objective("value"), ALL, config)
    assert fitted.history[fitted.best_epoch - 1]["validation_r2"] > 0.95
    assert fitted.notes == ("training videos without a target, left out: 1 of 100",)
    assert fitted.history[0]["train_loss"] < 3  # in units of the targets' spread


def test_weights_and_their_notes() -> None:
    sequences = sequences_of([4] * 10)
    targets = class_rows([0] * 8 + [1] * 2, ("a", "b", "c"))
    config = FitConfig(epochs=1, balance="weights")
    fitted = fit(head_of(3), sequences, targets, np.arange(10), NOBODY, CLASS, ALL, config)
    assert fitted.notes == ("c does not occur in the training part: it weighs 0 in the loss",)
    rare = class_rows([1] * 8 + [0] * 2, ("a", "b", "c"))
    swapped = fit(head_of(3), sequences, rare, np.arange(10), NOBODY, CLASS, ALL, config)
    assert not same(fitted.state_dict, swapped.state_dict)


def test_a_loss_that_is_not_finite_stops_with_the_videos() -> None:
    sequences = sequences_of([4] * 6)
    rows = torch.cat(rows_of(sequences))
    rows[4 * 4, 2] = float("inf")
    spoilt = Sequences(sequences.ids, [sequences.seconds(video) for video in range(6)], rows)
    head = head_of(cell="none", pool="mean")
    config = FitConfig(epochs=3, batch_size=1, learning_rate=1e-3)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch 1, batch \d of 6; .* in its videos: v4$"):
        fit(head, spoilt, class_rows([0, 1] * 3), np.arange(6), NOBODY, CLASS, ALL, config)


def test_weights_that_are_not_finite_stop_too() -> None:
    sequences = sequences_of([4])
    head = head_of(cell="none", pool="mean")
    config = FitConfig(epochs=1, optimizer="sgd", learning_rate=1e38, weight_decay=1e5, clip_norm=None)
    with pytest.raises(UserError, match="weights became infinite or NaN in the last steps of epoch 1"):
        fit(head, sequences, class_rows([0]), np.arange(1), NOBODY, CLASS, ALL, config)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    sequences, targets = two_orders(20)
    checkpoint = tmp_path / "new" / "checkpoint.pt"
    arguments = (targets, np.arange(20), NOBODY, CLASS, ALL)
    fit(head_of(), sequences, *arguments, FitConfig(epochs=1), checkpoint=checkpoint)
    with pytest.raises(UserError, match=r"fit\.epochs is 1 \(in the checkpoint\) and 2 \(now\)"):
        fit(head_of(), sequences, *arguments, FitConfig(epochs=2), checkpoint=checkpoint)
    with pytest.raises(UserError, match=r"head\.hidden is 8"):
        fit(head_of(hidden=9), sequences, *arguments, FitConfig(epochs=1), checkpoint=checkpoint)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read; remove it"):
        fit(head_of(), sequences, *arguments, FitConfig(epochs=1), checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"amp": True}, "mixed precision is for NVIDIA GPUs"),
        ({"schedule": "plateau"}, "there is no validation part; choose cosine"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, object], message: str) -> None:
    sequences, targets = two_orders(10)
    config = dataclasses.replace(FitConfig(epochs=1), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        fit(head_of(), sequences, targets, np.arange(10), NOBODY, CLASS, ALL, config)


def test_what_cannot_be_watched() -> None:
    sequences, targets = two_orders(12)
    train, validation = np.arange(10), np.array([10])
    for monitor, message in (("acc", "choose from loss, accuracy"), ("auc", "auc is nan on the validation part")):
        config = FitConfig(epochs=1, monitor=monitor)
        with pytest.raises(UserError, match=message):
            fit(head_of(), sequences, targets, train, validation, CLASS, ALL, config)
    fitted = fit(head_of(), sequences, targets, train, NOBODY, CLASS, ALL, FitConfig(epochs=1, patience=3))
    assert fitted.notes == ("there is no validation part to stop early by: all 1 epochs are run",)


def test_refusals_of_targets() -> None:
    sequences = sequences_of([3, 4])
    nothing = class_rows([-1, -1])
    with pytest.raises(UserError, match="no training video has a target"):
        fit(head_of(), sequences, nothing, np.arange(2), NOBODY, CLASS, ALL, FitConfig(epochs=1))
    frames = class_rows([0, 1, 0, 1, 0, 1, 0], per_frame=True)
    objective, config = Objective("class", per_frame=True), FitConfig(epochs=1, balance="sampling")
    with pytest.raises(UserError, match="balanced sampling is for one class per video"):
        fit(head_of(steps=True), sequences, frames, np.arange(2), NOBODY, objective, ALL, config)


def test_standardised_inputs_come_with_the_head() -> None:
    sequences, targets = two_orders(20)
    torch.manual_seed(0)
    prepared = statistics(sequences, np.arange(20))
    head = Head(HeadConfig(hidden=4), (FEATURES,), 2, prepared)
    fitted = fit(head, sequences, targets, np.arange(20), NOBODY, CLASS, ALL, FitConfig(epochs=1))
    assert torch.equal(fitted.state_dict["mean"], prepared.mean)
