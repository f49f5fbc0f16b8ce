"""Steps of the optimiser: of several batches, of parameters that begin to train later, and too large for memory."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pipeline import fitting
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.fitting import Fitted, fit
from pipeline.heads import Carry, Head, HeadConfig
from pipeline.objectives import Objective
from pipeline.optimisation import FitConfig, RateGroup, optimizer_of
from pipeline.selection import Selection
from pipeline.sequences import Sequences, load_sequences
from tests.banks import fill
from tests.heads import FEATURES, class_rows, packed_of, rows_of, sequences_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")
NOBODY = np.zeros(0, np.int64)
LENGTHS = [5, 14, 12, 1, 23, 8, 3, 9]
CLASSES = [0, 0, 0, 0, 0, 1, 1, 1]
CLASS, ALL = Objective("class"), Selection()
PLAIN = FitConfig(epochs=4, batch_size=8, schedule="constant", warmup=0, learning_rate=1e-2, clip_norm=None)


def head_of(outputs: int = 2, **config: object) -> Head:
    torch.manual_seed(0)
    return Head(HeadConfig(**{"hidden": 6, **config}), (FEATURES,), outputs)  # type: ignore[arg-type]


def fitted(head: Any, config: FitConfig, sequences: Sequences | None = None, **more: Any) -> Fitted:
    sequences = sequences_of(LENGTHS) if sequences is None else sequences
    return fit(head, sequences, class_rows(CLASSES), np.arange(8), NOBODY, CLASS, ALL, config, **more)


def assert_same(one: Fitted, other: Fitted, **tolerance: float) -> None:
    torch.testing.assert_close(one.state_dict, other.state_dict, **(tolerance or {"rtol": 0, "atol": 0}))
    losses = [[row["train_loss"] for row in each.history] for each in (one, other)]
    assert losses[0] == pytest.approx(losses[1])


def test_two_batches_of_half_the_size_are_one_step() -> None:
    """Classes weigh differently, so the mean of two batches' means would be another."""
    config = dataclasses.replace(PLAIN, optimizer="sgd", balance="weights")
    whole = fitted(head_of(), config)
    halves = fitted(head_of(), dataclasses.replace(config, batch_size=4, accumulate=2))
    assert_same(whole, halves, rtol=1e-4, atol=1e-6)
    uneven = fitted(head_of(), dataclasses.replace(config, batch_size=3, accumulate=5))  # more than there are
    assert_same(whole, uneven, rtol=1e-4, atol=1e-6)
    assert halves.history[0]["rows"] == sum(LENGTHS)
    with pytest.raises(UserError, match="accumulate is 0"):
        FitConfig(accumulate=0)


def test_chunks_of_one_step_are_one_gradient() -> None:
    """Overlapping chunks, all of them in one batch or two by two."""
    targets = class_rows([row % 2 if row % 5 else -1 for row in range(sum(LENGTHS))], per_frame=True)
    objective, states = Objective("class", per_frame=True), []
    for batch_size, accumulate in ((100, 2), (2, 100)):  # short videos and chunks are never in one batch
        sizes: dict[str, Any] = {"chunk_steps": 8, "batch_size": batch_size, "accumulate": accumulate}
        config = dataclasses.replace(PLAIN, optimizer="sgd", **sizes)
        head = head_of(steps=True, bidirectional=True)
        result = fit(head, sequences_of(LENGTHS), targets, np.arange(8), NOBODY, objective, ALL, config)
        states.append(result.state_dict)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)


def groups_of(head: Head) -> list[RateGroup]:
    recurrent = [parameter for name, parameter in head.named_parameters() if "recurrence" in name]
    return [
        RateGroup("classifier", list(head.classifier.parameters()), 1e-2),
        RateGroup("cell", recurrent, 1e-3),
    ]


def cell_trains_from(head: Head, epochs: int) -> Callable[[int], None]:
    def on_begin(passed: int) -> None:
        assert head.recurrence is not None
        head.recurrence.requires_grad_(passed >= epochs)

    return on_begin


def test_groups_that_begin_later_against_a_plain_loop() -> None:
    head, plain = head_of(), head_of()
    fitted(head, PLAIN, groups=groups_of(head), on_begin=cell_trains_from(head, 2))
    groups = [
        {
            "params": [each for each in group.parameters if (each.ndim >= 2) == decays],
            "lr": group.rate,
            "weight_decay": PLAIN.weight_decay if decays else 0,
        }
        for group in groups_of(plain)
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups)
    begin = cell_trains_from(plain, 2)
    packed = packed_of(rows_of(sequences_of(LENGTHS)))
    for epoch in range(PLAIN.epochs):
        before = {name: value.clone() for name, value in plain.state_dict().items()}
        begin(epoch)
        optimizer.zero_grad()
        output = plain(packed)
        assert isinstance(output, Tensor)
        F.cross_entropy(output, torch.tensor(CLASSES)).backward()
        optimizer.step()
        moved = [name for name, value in plain.state_dict().items() if not torch.equal(value, before[name])]
        assert any("recurrence" in name for name in moved) == (epoch >= 2)
    for one, other in zip(head.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_groups_go_on_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    begun: list[int] = []

    def run(*, stop_after: int | None = None, cell_rate: float = 1e-3, **more: Any) -> Fitted:
        head = head_of(input_dropout=0.2)
        begin = cell_trains_from(head, 2)

        def on_begin(passed: int) -> None:
            begun.append(passed)
            begin(passed)

        def on_epoch(row: Any) -> None:
            if row["epoch"] == stop_after:
                raise InterruptedError

        classifier, cell = groups_of(head)
        groups = [classifier, cell._replace(rate=cell_rate)]
        more = {"identity": {"unfreeze": "all"}, **more}
        return fitted(head, PLAIN, groups=groups, on_begin=on_begin, on_epoch=on_epoch, **more)

    undisturbed = run()
    for stop_after in (1, 3):
        checkpoint = tmp_path / f"{stop_after}.pt"
        with pytest.raises(InterruptedError):
            run(stop_after=stop_after, checkpoint=checkpoint)
        begun.clear()
        assert_same(run(checkpoint=checkpoint), undisturbed)
        assert begun == list(range(stop_after, 4))
    with pytest.raises(UserError, match=r"identity\.unfreeze is all \(in the checkpoint\) and 2 \(now\)"):
        run(checkpoint=checkpoint, identity={"unfreeze": "2"})
    with pytest.raises(UserError, match=r"groups\.cell is .*0\.001.* and .*0\.002"):
        run(checkpoint=checkpoint, cell_rate=2e-3)


def test_no_parameter_is_forgotten() -> None:
    head = head_of()
    with pytest.raises(ValueError, match="is in no group"):
        optimizer_of(head.parameters(), PLAIN, groups_of(head)[:1])


class Crowded(Head):
    """Runs out of memory in given calls, on the way in or back, until it has been changed often enough."""

    def __init__(self, config: HeadConfig, features: int, calls: dict[int, str], changes: list[str]) -> None:
        super().__init__(config, (features,), 2)
        self.count, self.calls, self.changes = 0, calls, changes

    def run(self, packed: PackedSequence, carry: Carry | None = None) -> tuple[PackedSequence, Carry]:
        states, carry = super().run(packed, carry)
        self.count += 1
        wrong = self.calls.get(self.count)
        if wrong == "forward":
            raise torch.OutOfMemoryError("no memory")
        if wrong == "backward":
            states.data.register_hook(out_of_memory)
        return states, carry

    def use_less_memory(self) -> str | None:
        return self.changes.pop(0) if self.changes else None


def out_of_memory(_: Tensor) -> None:
    raise torch.OutOfMemoryError("no memory")


def crowded(features: int, calls: dict[int, str], changes: list[str]) -> Crowded:
    torch.manual_seed(0)
    config = HeadConfig(hidden=6, input_dropout=0.3, output_dropout=0.3, norm="batch")
    return Crowded(config, features, calls, changes)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_step_is_taken_again_with_less_memory(tmp_path: Path, streamed: bool) -> None:
    """As if nothing had happened: the same dropout, running statistics and batches."""
    fill(tmp_path / "bank.h5", {f"{'ab'[number // 5]}/{number}": length for number, length in enumerate(LENGTHS)})
    with Bank(tmp_path / "bank.h5") as bank:
        sequences = load_sequences([bank], memory_bytes=0 if streamed else None)
    config = dataclasses.replace(PLAIN, batch_size=2, accumulate=2)
    undisturbed = fitted(crowded(8, {}, []), config, sequences)
    # Two batches a step: the second batch of the first, again its first; later the last of the third epoch.
    calls = {2: "backward", 3: "forward", 14: "forward"}
    disturbed = fitted(crowded(8, calls, ["less", "less", "still less"]), config, sequences)
    assert disturbed.notes == (*undisturbed.notes, "less", "still less")
    assert_same(disturbed, undisturbed)
    with pytest.raises(torch.OutOfMemoryError):
        fitted(crowded(8, calls, ["less"]), config, sequences)
    head = head_of()
    head.classifier.register_forward_hook(lambda *_: out_of_memory(torch.zeros(())))
    with pytest.raises(torch.OutOfMemoryError):
        fitted(head, config)


def test_an_epoch_may_have_rows_of_its_own() -> None:
    """Training sees those of the epoch, validation always the plain ones."""
    plain, asked = sequences_of(LENGTHS), []

    def varied(epoch: int) -> Sequences:
        asked.append(epoch)
        return sequences_of(LENGTHS, seed=epoch)

    rows = torch.cat(rows_of(plain))
    seconds = [plain.seconds(video) for video in range(8)]
    sequences = Sequences(plain.ids, seconds, rows, varied=varied)
    parts = class_rows(CLASSES), np.arange(6), np.arange(6, 8), CLASS, ALL
    head = head_of()
    result = fit(head, sequences, *parts, dataclasses.replace(PLAIN, epochs=2))
    assert asked == [1, 2]
    again = head_of()
    first = fit(again, sequences_of(LENGTHS, seed=1), *parts, dataclasses.replace(PLAIN, epochs=1))
    assert result.history[0]["train_loss"] == first.history[0]["train_loss"]
    with torch.no_grad():
        again.load_state_dict(first.state_dict)
        output = again(packed_of(rows_of(plain)[6:]))
    assert isinstance(output, Tensor)
    loss = F.cross_entropy(output, torch.tensor(CLASSES[6:])).item()
    assert result.history[0]["validation_loss"] == pytest.approx(loss, rel=1e-5)
