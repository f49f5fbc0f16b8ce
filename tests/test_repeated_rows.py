"""A selection may take a row more than once: it is read, scored and trained on as often as it is taken."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import joined_banks
from pipeline.bank import Bank
from pipeline.epochs import Portion, apart, beginning
from pipeline.heads import Head, HeadConfig
from pipeline.inputs import context_at
from pipeline.scoring import reading
from pipeline.sequences import load_sequences
from tests.banks import bank_of
from tests.heads import FEATURES, sequences_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")
STEPS = ([3, 3, 5], [0, 0, 0, 0], [0, 0, 0, 1, 2, 3], [4, 4, 5, 5, 6, 6], [2, 8, 8, 8])
ROWS = np.random.default_rng(0).normal(size=(9, FEATURES)).astype(np.float32)


@pytest.mark.parametrize("memory_bytes", [None, 0])
@pytest.mark.parametrize("read_rows", [None, 2])
def test_rows_are_read_as_often_as_they_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int | None, read_rows: int | None
) -> None:
    if read_rows:
        monkeypatch.setattr(joined_banks, "_READ_BYTES", read_rows * ROWS[:1].nbytes)
    sequences = load_sequences([Bank(bank_of(tmp_path / "bank.h5", {"a": ROWS}))], memory_bytes=memory_bytes)
    for steps in STEPS:
        batch = sequences.batch(np.array([0]), [np.array(steps)])
        np.testing.assert_array_equal(batch.packed.data.numpy(), ROWS[steps])
        assert batch.rows.tolist() == steps


@pytest.mark.parametrize("start", range(1, 11))
def test_a_chunk_that_begins_with_a_repeated_row_knows_what_came_before(start: int) -> None:
    sequences = sequences_of([9])
    head = Head(HeadConfig(cell="none", changes=(2,), centre=True, steps=True), (FEATURES,), 2).eval()
    whole = np.array([0, 0, 1, 4, 4, 4, 5, 5, 6, 8, 8])
    rows = sequences.read(0)[whole]
    part = Portion(np.zeros(1, np.int64), [whole[start:]], None, [whole], np.array([start]))
    context = beginning(head, sequences, part, 3, {}).context
    expected = context_at(lambda low, high: rows[low:high], start, head.config.inputs, rows.mean(0, keepdim=True))
    assert torch.equal(context.before, expected.before)
    torch.testing.assert_close(context.centre, expected.centre)
    between = rows.mean(0, keepdim=True) - rows[start:].mean(0, keepdim=True)
    torch.testing.assert_close(apart(head, sequences, part, 3, {}), between)
    assert torch.equal(reading(sequences, 0, whole)(2, 7), rows[2:7])
