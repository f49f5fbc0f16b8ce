"""What is made of the rows, against a loop over the steps of each video; pieces with their context are the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from pipeline.inputs import Context, Inputs, centre_of, context_at, expand, joined

FEATURES = 3
LAGS = st.lists(st.integers(1, 9), max_size=3, unique=True).map(tuple)
INPUTS = st.builds(Inputs, st.booleans(), LAGS, LAGS)
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def videos_of(lengths: list[int]) -> list[Tensor]:
    generator = np.random.default_rng(0)
    return [torch.from_numpy(generator.normal(5, 1, (length, FEATURES)).astype(np.float32)) for length in lengths]


def by_the_definition(rows: Tensor, inputs: Inputs) -> np.ndarray:
    """One video (T, D) -> (T, E), a step at a time."""
    x = rows.numpy().astype(np.float64)
    mean = x.sum(axis=0) / len(x)
    made = []
    for step, now in enumerate(x):
        earlier = {lag: x[step - lag] if step >= lag else x[0] for lag in (*inputs.deltas, *inputs.changes)}
        parts = [now - mean if inputs.centre else now]
        parts += [now - earlier[lag] for lag in inputs.deltas]
        parts += [np.abs(now - earlier[lag]) for lag in inputs.changes]
        made.append(np.concatenate(parts))
    return np.array(made)


def expanded(parts: list[Tensor], inputs: Inputs, context: Context | None = None) -> tuple[list[Tensor], Context]:
    found, after = expand(pack_sequence(parts, enforce_sorted=False), inputs, context)
    return unpack_sequence(found), after


@settings(deadline=None)
@given(lengths=LENGTHS, inputs=INPUTS)
def test_rows_become_what_the_definition_says(lengths: list[int], inputs: Inputs) -> None:
    videos = videos_of(lengths)
    found, _ = expanded(videos, inputs)
    for rows, made in zip(videos, found, strict=True):
        assert made.shape == (len(rows), inputs.width(FEATURES))
        np.testing.assert_allclose(made, by_the_definition(rows, inputs), atol=2e-6)
        torch.testing.assert_close(expanded([rows], inputs)[0][0], made, rtol=0, atol=1e-6)


@settings(deadline=None)
@given(lengths=LENGTHS, inputs=INPUTS, chunk=st.integers(1, 4))
def test_pieces_with_what_is_carried_on_are_the_whole(lengths: list[int], inputs: Inputs, chunk: int) -> None:
    videos = videos_of(lengths)
    whole, _ = expanded(videos, inputs)
    context = Context(None, torch.stack([rows.mean(0) for rows in videos]) if inputs.centre else None)
    left = list(range(len(videos)))
    for start in range(0, max(lengths), chunk):
        still = [place for place, video in enumerate(left) if lengths[video] > start]
        context = context.detach().select(torch.tensor(still))
        left = [left[place] for place in still]
        found, context = expanded([videos[video][start : start + chunk] for video in left], inputs, context)
        for video, made in zip(left, found, strict=True):
            torch.testing.assert_close(made, whole[video][start : start + chunk], rtol=0, atol=2e-6)


@settings(deadline=None)
@given(lengths=LENGTHS, inputs=INPUTS, data=st.data())
def test_pieces_that_begin_anywhere(lengths: list[int], inputs: Inputs, data: st.DataObject) -> None:
    videos = videos_of(lengths)
    whole, _ = expanded(videos, inputs)
    begins = [data.draw(st.integers(0, length - 1)) for length in lengths]
    contexts = []
    for rows, begin in zip(videos, begins, strict=True):

        def read(start: int, stop: int, rows: Tensor = rows) -> Tensor:
            assert 0 <= start < stop <= len(rows)
            assert stop - start <= max(3, inputs.reach)
            return rows[start:stop]

        centre = centre_of(read, len(rows), 3) if inputs.centre else None
        contexts.append(context_at(read, begin, inputs, centre))
    parts = [rows[begin:] for rows, begin in zip(videos, begins, strict=True)]
    found, _ = expanded(parts, inputs, joined(contexts))
    for made, rows, begin in zip(found, whole, begins, strict=True):
        torch.testing.assert_close(made, rows[begin:], rtol=0, atol=2e-6)


def test_what_never_changes_leaves_nothing_at_all() -> None:
    """Rounding errors would be scaled up to look like a feature."""
    rows = torch.full((7, FEATURES), 0.1)
    assert not expanded([rows, rows[:3]], Inputs(centre=True))[0][0].any()
    assert torch.equal(centre_of(lambda start, stop: rows[start:stop], 7, 2), rows[:1])


def test_nothing_asked_for_is_nothing_done() -> None:
    packed = pack_sequence(videos_of([3, 2]))
    found, context = expand(packed, Inputs())
    assert found is packed
    assert context == Context()
    assert Inputs().reach == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: whether it is waited for")
def test_a_gpu_is_never_waited_for() -> None:
    packed = pack_sequence(videos_of([2, 5, 1, 3]), enforce_sorted=False)
    inputs = Inputs(centre=True, deltas=(1, 2), changes=(4,))
    expected, after = expand(packed, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, context = expand(packed.to("cuda"), inputs)
        expand(packed.to("cuda"), inputs, context)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(first.data.cpu(), expected.data)
    torch.testing.assert_close(context.before, after.before, check_device=False)
