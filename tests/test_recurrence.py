"""The cell over packed rows, against loops written step by step; dropped recurrent weights; first weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from pipeline.recurrence import Recurrence, initialise

LENGTHS = (3, 1, 7, 12)
FEATURES, HIDDEN = 5, 4

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def make(cell="lstm", layers=1, *, bidirectional=False, dropout=0.0, recurrent_dropout=0.0, init=()):
    torch.manual_seed(0)
    return Recurrence(
        cell,
        FEATURES,
        HIDDEN,
        layers,
        bidirectional=bidirectional,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
        variational_dropout=0.0,
        init=init,
    )


@pytest.fixture
def videos():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, FEATURES, generator=generator) for length in LENGTHS]


def step_by_step(recurrence, rows):
    """One video (T, D) through LSTMCell or GRUCell, a step at a time: states (T, H), and all last states."""
    cell, ends = recurrence.cell, []
    kind = nn.LSTMCell if isinstance(cell, nn.LSTM) else nn.GRUCell
    for layer in range(cell.num_layers):
        directions = []
        for suffix in ["", "_reverse"][: 2 if cell.bidirectional else 1]:
            one = kind(rows.shape[1], HIDDEN)
            one.load_state_dict(
                {
                    name: getattr(cell, f"{name}_l{layer}{suffix}")
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
            )
            state, states = None, []
            for row in rows.flip(0) if suffix else rows:
                state = one(row[None], state)
                states.append(state[0] if isinstance(state, tuple) else state)
            ends.append(state)
            states = torch.cat(states)
            directions.append(states.flip(0) if suffix else states)
        rows = torch.cat(directions, 1)
    return rows, ends


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_packed_states_are_those_of_a_loop_over_steps(cell, layers, bidirectional, videos):
    recurrence = make(cell, layers, bidirectional=bidirectional)
    states, end = recurrence(pack_sequence(videos, enforce_sorted=False))
    assert states.data.shape[1] == recurrence.width
    for video, (rows, found) in enumerate(zip(videos, unpack_sequence(states), strict=True)):
        expected, ends = step_by_step(recurrence, rows)
        torch.testing.assert_close(found, expected)
        hidden = [last[0] if cell == "lstm" else last for last in ends]
        torch.testing.assert_close(end[0][:, video], torch.cat(hidden))  # layer by layer, forward before backward
        if cell == "lstm":
            torch.testing.assert_close(end[1][:, video], torch.cat([last[1] for last in ends]))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_state_to_begin_with_goes_on_where_it_ended(cell, videos):
    recurrence = make(cell, 2)
    longer = [video for video in videos if len(video) > 2]
    whole, end = recurrence(pack_sequence(longer, enforce_sorted=False))
    _, middle = recurrence(pack_sequence([rows[:2] for rows in longer], enforce_sorted=False))
    after, last = recurrence(pack_sequence([rows[2:] for rows in longer], enforce_sorted=False), middle)
    for all_states, found in zip(unpack_sequence(whole), unpack_sequence(after), strict=True):
        torch.testing.assert_close(found, all_states[2:])
    for expected, found in zip(end, last, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_dropout_drops_the_same_weights_at_every_step(cell, bidirectional, videos):
    recurrence = make(cell, 2, bidirectional=bidirectional, recurrent_dropout=0.5)
    packed = pack_sequence(videos, enforce_sorted=False)
    torch.manual_seed(3)
    states, _ = recurrence(packed)
    plain = copy.deepcopy(recurrence).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in plain.cell.named_parameters():
            if name.startswith("weight_hh"):
                weight.copy_(F.dropout(weight, 0.5))
    expected, _ = plain(packed)
    torch.testing.assert_close(states.data, expected.data)
    dropped = {name: weight == 0 for name, weight in plain.cell.named_parameters() if name.startswith("weight_hh")}
    states.data.square().sum().backward()
    for name, weight in recurrence.cell.named_parameters():
        assert weight.grad is not None
        if name in dropped:
            assert 0.3 < dropped[name].float().mean() < 0.7
            assert not weight.grad[dropped[name]].any()
            assert weight.grad[~dropped[name]].all()


def test_recurrent_dropout_leaves_the_weights_and_their_names_alone(videos):
    recurrence, plain = make(recurrent_dropout=0.5), make()
    packed = pack_sequence(videos, enforce_sorted=False)
    first, second = (recurrence(packed)[0].data for _ in range(2))
    assert not torch.equal(first, second)  # drawn anew
    state = recurrence.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[name], weight) for name, weight in plain.state_dict().items())
    assert all(parameter.is_leaf for parameter in recurrence.parameters())
    copied = copy.deepcopy(recurrence)  # the best epoch's weights are kept that way
    for module in (recurrence.eval(), copied.eval()):
        assert torch.equal(module(packed)[0].data, plain(packed)[0].data)


def test_training_with_dropped_weights_moves_the_weights_that_are_used(videos):
    recurrence = make(recurrent_dropout=0.2)
    packed = pack_sequence(videos, enforce_sorted=False)
    before = recurrence.eval()(packed)[0].data.detach()
    optimizer = torch.optim.SGD(recurrence.parameters(), lr=0.1)
    recurrence.train()
    for _ in range(3):
        optimizer.zero_grad()
        recurrence(packed)[0].data.square().sum().backward()
        optimizer.step()
    after = recurrence.eval()(packed)[0].data
    assert after.square().sum() < before.square().sum()


def test_orthogonal_matrices_have_orthonormal_columns_or_rows():
    plain = make("gru", 2)
    both = make("gru", 2, init=("orthogonal-recurrent", "orthogonal-input"))
    for name, weight in both.cell.named_parameters():
        if name.startswith("weight"):  # (3 H, D), more rows than columns
            torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]), rtol=1e-5, atol=1e-5)
    only = dict(make("gru", 2, init=("orthogonal-input",)).cell.named_parameters())
    for name, weight in plain.cell.named_parameters():
        if name.startswith("weight_hh"):
            assert not torch.allclose(only[name].T @ only[name], torch.eye(HIDDEN), atol=1e-3)
        else:
            assert name.startswith("bias") == torch.equal(only[name], weight)


def biases(cell):
    """Both of torch's biases added up, (gates, H) for each layer and direction."""
    parameters = dict(cell.named_parameters())
    return [
        (bias + parameters[name.replace("bias_ih", "bias_hh")]).view(-1, cell.hidden_size)
        for name, bias in parameters.items()
        if name.startswith("bias_ih")
    ]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_biases_of_one_add_up_to_one(cell):
    found = biases(make(cell, 2, bidirectional=True, init=("bias-one",)).cell)
    assert len(found) == 4
    assert all((bias == 1).all() for bias in found)


def test_the_forget_gate_begins_open():
    plain, cell = nn.LSTM(FEATURES, HIDDEN, 2), nn.LSTM(FEATURES, HIDDEN, 2)
    cell.load_state_dict(plain.state_dict())
    initialise(cell, ("forget-bias",))
    for before, after in zip(biases(plain), biases(cell), strict=True):
        assert torch.equal(after[1], torch.ones(HIDDEN))
        assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    # Which rows are the forget gate's: with all other gates shut, the cell state stays
    one = nn.LSTMCell(1, 1)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
        one.bias_ih.copy_(torch.tensor([-50.0, 50.0, 0.0, 0.0]))
    assert one(torch.zeros(1, 1), (torch.zeros(1, 1), torch.full((1, 1), 7.0)))[1].item() == pytest.approx(7)


@pytest.mark.parametrize("lengths", [(3, 1, 7, 12), (5, 5, 5), (1,), (1, 1), (9, 9, 2, 2, 2)])
@pytest.mark.parametrize("settings", [{}, {"layers": 2, "bidirectional": True}], ids=str)
def test_rectangles_are_what_torch_s_packed_lstm_is(lengths, settings):
    made = make(**settings)
    layers, directions = made.cell.num_layers, 1 + made.cell.bidirectional
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(length, FEATURES, generator=generator, requires_grad=True) for length in lengths]
    begin = tuple(torch.randn(layers * directions, len(lengths), HIDDEN, generator=generator) for _ in range(2))
    for state in (None, begin):
        results = []
        for run in (made, made.cell):
            packed = pack_sequence(rows, enforce_sorted=False)
            states, ends = run(packed, state)
            loss = (states.data.cos().sum() + sum((end**2).sum() for end in ends)) / 10
            grads = torch.autograd.grad(loss, [*made.parameters(), *rows])
            results.append((states.data, *ends, *grads))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
