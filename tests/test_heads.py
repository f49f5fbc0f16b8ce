"""Heads: a batch is each video by itself, against a loop written out; carried state; what is refused."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from pipeline.errors import UserError
from pipeline.heads import Carry, Head, HeadConfig, restored
from pipeline.inputs import Context
from pipeline.standardisation import Standardisation
from tests.heads import packed_of

LENGTHS = (3, 1, 7, 7, 12)
FEATURES, OUTPUTS = 6, 3
CONFIGS = [
    HeadConfig(hidden=4),
    HeadConfig(hidden=4, layers=2, bidirectional=True),
    HeadConfig(cell="gru", hidden=4, layers=3, bidirectional=True, pool="max", projection=5),
    HeadConfig(hidden=4, pool="stats", deltas=(1,), mlp=(5, 4)),
    HeadConfig(cell="gru", hidden=4, bidirectional=True, pool="attention", centre=True, changes=(2,), projection=3),
    HeadConfig(cell="none", pool="mean", centre=True, deltas=(1, 5), changes=(3, 1), projection=5, mlp=(4,)),
    HeadConfig(cell="none", pool="last"),
    HeadConfig(hidden=4, bidirectional=True, deltas=(1,), steps=True),
    HeadConfig(hidden=4, changes=(4, 9), deltas=(4,), steps=True),
    HeadConfig(cell="none", steps=True, mlp=(4,)),
    HeadConfig(hidden=4, step_mlp=(5, 3), pool="last", projection=5, projection_dropout=0.5),
    HeadConfig(cell="gru", hidden=4, bidirectional=True, step_mlp=(5,), pool="max", variational_dropout=0.5),
    HeadConfig(cell="none", step_mlp=(5,), pool="stats", mlp=(4,)),
    HeadConfig(hidden=4, layers=2, step_mlp=(5,), steps=True, changes=(3,), variational_dropout=0.5),
]

pytestmark = pytest.mark.usefixtures("one_torch_thread")
every_head = pytest.mark.parametrize("config", CONFIGS, ids=repr)


def standardisation(inputs=FEATURES, kept=4, *, channels=None):
    generator = torch.Generator().manual_seed(5)
    rotation = torch.linalg.qr(torch.randn(inputs, inputs, generator=generator))[0][:, :kept]
    return Standardisation(
        torch.randn(inputs, generator=generator),
        torch.rand(inputs, generator=generator) + 0.5,
        rotation.contiguous(),
        None if channels is None else torch.randn(channels, generator=generator),
        None if channels is None else torch.rand(channels, generator=generator) + 0.5,
    )


def make(config, shape=(FEATURES,)):
    torch.manual_seed(0)
    head = Head(config, shape, OUTPUTS, standardisation(config.inputs.width(shape[0])))
    head.value_mean.copy_(torch.tensor([1.0, -2.0, 0.0]))
    head.value_scale.copy_(torch.tensor([3.0, 0.5, 1.0]))
    return head.eval()


@pytest.fixture
def videos():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, FEATURES, generator=generator) for length in LENGTHS]


def outputs(head, videos):
    """What the head says of each video of one batch: (K,) or (T, K)."""
    found = head(pack_sequence(videos, enforce_sorted=False))
    return list(found) if isinstance(found, torch.Tensor) else unpack_sequence(found)


def written_out(head, rows):
    """One video (T, D) by the definition, a step at a time: (K,), or (T, K)."""
    config, weights = head.config, head.state_dict()
    columns = [rows - rows.mean(0) if config.centre else rows]
    columns += [torch.stack([rows[t] - rows[max(t - lag, 0)] for t in range(len(rows))]) for lag in config.deltas]
    columns += [
        torch.stack([rows[t] - rows[max(t - lag, 0)] for t in range(len(rows))]).abs() for lag in config.changes
    ]
    rows = (torch.cat(columns, 1) - weights["mean"]) / weights["scale"] @ weights["components"]
    if config.projection:
        rows = rows @ weights["projection.weight"].T + weights["projection.bias"]
    half = rows.shape[1]
    for layer in range(config.layers if config.cell != "none" else 0):
        directions = []
        for suffix in ["", "_reverse"] if config.bidirectional else [""]:
            cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}[config.cell](rows.shape[1], config.hidden)
            cell.load_state_dict(
                {
                    name: weights[f"recurrence.cell.{name}_l{layer}{suffix}"]
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
            )
            state, states = None, {}
            for step in reversed(range(len(rows))) if suffix else range(len(rows)):
                state = cell(rows[step][None], state)
                states[step] = state[0] if isinstance(state, tuple) else state
            directions.append(torch.cat([states[step] for step in range(len(rows))]))
        rows = torch.cat(directions, 1)
        half = config.hidden
    for layer in range(len(config.step_mlp)):
        weight, bias = (weights[f"step_mlp.{2 * layer}.{name}"] for name in ("weight", "bias"))
        rows = (rows @ weight.T + bias).clamp(min=0)
        half = rows.shape[1]
    if not config.steps:
        rows = {
            "last": lambda: torch.cat([rows[-1, :half], rows[0, half:]]),
            "mean": lambda: rows.mean(0),
            "max": lambda: rows.amax(0),
            "stats": lambda: torch.cat([rows.mean(0), rows.std(0, correction=0).clamp(min=1e-5)]),
            "attention": lambda: (head.pool.score(rows).softmax(0) * rows).sum(0),
        }[config.pool]()
    linear = [module for module in head.classifier if isinstance(module, nn.Linear)]
    for module in linear[:-1]:
        rows = module(rows).clamp(min=0)
    return linear[-1](rows) * torch.tensor([3.0, 0.5, 1.0]) + torch.tensor([1.0, -2.0, 0.0])


@every_head
def test_a_batch_gives_what_a_loop_over_the_steps_of_each_video_gives(config, videos):
    head = make(config)
    for rows, found in zip(videos, outputs(head, videos), strict=True):
        torch.testing.assert_close(found, written_out(head, rows), rtol=1e-4, atol=1e-5)


@every_head
def test_a_video_alone_and_among_others_in_any_order_is_the_same(config, videos):
    head = make(config)
    alone = [outputs(head, [rows])[0] for rows in videos]
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        for place, found in zip(order, outputs(head, [videos[place] for place in order]), strict=True):
            torch.testing.assert_close(found, alone[place], rtol=1e-5, atol=1e-6)


@every_head
def test_every_parameter_learns_and_a_video_of_one_step_does_no_harm(config, videos):
    head = make(config).train()
    sum(found.square().sum() for found in outputs(head, videos)).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every_head
def test_the_head_of_a_state_dict_and_a_configuration_from_json_is_the_same(config, videos):
    head = make(config)
    again = restored(HeadConfig(**json.loads(json.dumps(asdict(config)))), (FEATURES,), OUTPUTS, head.state_dict())
    assert again.config == config
    for found, expected in zip(outputs(again, videos), outputs(head, videos), strict=True):
        assert torch.equal(found, expected)


@every_head
@pytest.mark.parametrize("cut", [1, 2, 6])
def test_pieces_with_carried_state_are_the_whole(config, cut, videos):
    head = make(config)
    longer = videos[2:]  # 7, 7 and 12 steps
    states, end = head.run(pack_sequence(longer, enforce_sorted=False))
    _, carry = head.run(pack_sequence([rows[:cut] for rows in longer], enforce_sorted=False))
    kept = torch.tensor([1, 2])  # one video has ended; of those left the shorter comes first
    after = pack_sequence([longer[video][cut:] for video in kept], enforce_sorted=False)
    if config.bidirectional:
        with pytest.raises(ValueError, match="overlapping"):
            head.run(after, carry)
        return
    if config.centre:  # known beforehand alone
        centre = torch.stack([rows.mean(0) for rows in longer])
        before = Carry(Context(None, centre), ())
        _, carry = head.run(pack_sequence([rows[:cut] for rows in longer], enforce_sorted=False), before)
    found, last = head.run(after, carry.detach().select(kept))
    whole = unpack_sequence(states)
    for video, rows in zip(kept, unpack_sequence(found), strict=True):
        torch.testing.assert_close(rows, whole[video][cut:])
    for one, other in zip(last.state, end.select(kept).state, strict=True):
        torch.testing.assert_close(one, other)


def test_a_detached_carry_stops_the_gradient(videos):
    head = make(HeadConfig(hidden=4, deltas=(1,)))
    first = videos[4][:6].clone().requires_grad_()
    _, carry = head.run(pack_sequence([first]))
    assert carry.context.before.requires_grad
    states, _ = head.run(pack_sequence([videos[4][6:]]), carry.detach())
    states.data.sum().backward()
    assert first.grad is None


def test_without_standardisation_features_are_read_as_they_are(videos):
    torch.manual_seed(0)
    head = Head(HeadConfig(cell="none", deltas=(1,), pool="mean"), (FEATURES,), OUTPUTS)
    rows = videos[4]
    expected = torch.cat([rows.mean(0), (rows[-1] - rows[0]) / len(rows)])
    torch.testing.assert_close(head(pack_sequence([rows]))[0], head.classifier[1](expected))


def test_heads_made_with_one_standardisation_do_not_share_it():
    given = standardisation()
    one, other = (Head(HeadConfig(hidden=4), (FEATURES,), OUTPUTS, given) for _ in range(2))
    one.mean.zero_()
    assert torch.equal(other.mean, given.mean)
    assert given.mean.all()


def test_the_state_of_another_head_is_refused():
    state = make(HeadConfig(hidden=4)).state_dict()
    with pytest.raises(RuntimeError, match=r"recurrence\.cell"):
        restored(HeadConfig(hidden=5), (FEATURES,), OUTPUTS, state)
    with pytest.raises(ValueError, match="of 6 inputs"):
        restored(HeadConfig(hidden=4), (FEATURES + 1,), OUTPUTS, state)


def test_gradients_reach_the_rows(videos):
    """Fine-tuning puts a network before the head."""
    rows = [video.clone().requires_grad_() for video in videos]
    head = make(HeadConfig(hidden=4, centre=True, changes=(1,), pool="attention"))
    head(pack_sequence(rows, enforce_sorted=False)).sum().backward()
    assert all(video.grad.abs().sum(1).all() for video in rows if len(video) > 1)  # a single row minus its mean is 0


def test_dropout_works_in_training_and_in_its_place(videos):
    config = HeadConfig(
        hidden=4, layers=2, dropout=0.5, input_dropout=0.5, recurrent_dropout=0.5, output_dropout=0.5, mlp=(8,)
    )
    head, packed = make(config), pack_sequence(videos, enforce_sorted=False)
    assert torch.equal(head(packed), head(packed))
    assert not torch.equal(head.train()(packed), head(packed))
    assert head.state_dict().keys() == make(HeadConfig(hidden=4, layers=2, mlp=(8,))).state_dict().keys()
    copy.deepcopy(head)


@pytest.mark.parametrize("place", ["input_dropout", "output_dropout"])
def test_rows_and_what_the_classifier_reads_are_dropped(place, videos):
    head = make(HeadConfig(cell="none", **{place: 0.999})).train()
    nothing = head.classify(torch.zeros(head.components.shape[1]))
    assert (head(pack_sequence(videos, enforce_sorted=False)) == nothing).all(1).sum() >= len(videos) - 1


def test_what_the_projection_gives_is_dropped(videos):
    config = HeadConfig(cell="none", pool="max", projection=400, projection_dropout=0.5)
    head = make(config).train()
    torch.nn.init.ones_(head.projection.bias)
    head.projection.weight.data.zero_()
    seen = head.run(pack_sequence(videos, enforce_sorted=False))[0].data
    assert set(seen.unique().tolist()) == {0.0, 2.0}
    assert 0.45 < (seen == 0).float().mean() < 0.55
    assert not torch.equal(seen[0], seen[1])  # every step by itself
    assert (head.eval().run(pack_sequence(videos, enforce_sorted=False))[0].data == 1).all()


def test_variational_dropout_changes_training_alone_and_no_weights(videos):
    head, packed = make(HeadConfig(hidden=4, layers=2, variational_dropout=0.5)), packed_of(videos)
    plain = make(HeadConfig(hidden=4, layers=2))
    assert head.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(head(packed), plain(packed))
    assert not torch.equal(head.train()(packed), plain.train()(packed))


def test_all_steps_of_a_video_lose_the_same_numbers():
    """Of equal steps, what a cell without memory says is equal: so is what it reads. Of two videos it is not."""
    head = make(HeadConfig(cell="gru", hidden=40, variational_dropout=0.5, steps=True)).train()
    with torch.no_grad():
        for name, weight in head.recurrence.cell.named_parameters():
            if "hh" in name:
                weight.zero_()
            if name.startswith("bias_ih"):
                weight[40:80] = -50.0  # the update gate: nothing of the old state is kept
    one, other = unpack_sequence(head.run(packed_of([torch.ones(6, FEATURES), torch.ones(4, FEATURES)]))[0])
    torch.testing.assert_close(one, one[:1].expand(6, -1))
    torch.testing.assert_close(other, other[:1].expand(4, -1))
    assert not torch.allclose(one[0], other[0])


def test_chunks_in_training_carry_the_state_on(videos):
    """The masks of a chunk are its own; what it starts from is what the one before ended with."""
    head = make(HeadConfig(hidden=4, variational_dropout=0.5, steps=True)).train()
    _, carry = head.run(packed_of([videos[4][:6]]))
    torch.manual_seed(1)
    after, _ = head.run(packed_of([videos[4][6:]]), carry.detach())
    torch.manual_seed(1)
    anew, _ = head.run(packed_of([videos[4][6:]]))
    assert not torch.allclose(after.data[0], anew.data[0])
    assert after.data.shape == anew.data.shape


@pytest.mark.parametrize("spatial", ["mean", "flatten", "attention"])
def test_maps_become_vectors(spatial):
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn(length, 4, 3, 2, generator=generator) for length in LENGTHS]
    features = 24 if spatial == "flatten" else 4
    config = HeadConfig(hidden=4, spatial=spatial, centre=True, deltas=(1,), changes=(2,))
    given = standardisation(3 * features, channels=4 if spatial == "attention" else None)
    torch.manual_seed(0)
    head = Head(config, (4, 3, 2), OUTPUTS, given).eval()
    found = head(pack_sequence(maps, enforce_sorted=False))
    assert found.shape == (len(maps), OUTPUTS)
    for rows, row in zip(maps, found, strict=True):
        torch.testing.assert_close(row, head(pack_sequence([rows]))[0])
    if spatial != "attention":  # the same head on vectors made beforehand, as a bank is read
        torch.manual_seed(0)
        other = Head(config, (features,), OUTPUTS, given).eval()
        vectors = [rows.mean((2, 3)) if spatial == "mean" else rows.flatten(1) for rows in maps]
        torch.testing.assert_close(other(pack_sequence(vectors, enforce_sorted=False)), found)
    else:  # with scores that are all the same, attention is the mean
        with torch.no_grad():
            head.attend.score[2].weight.zero_()
        kept = given._replace(channel_mean=None, channel_scale=None)
        even = Head(replace(config, spatial=None), (4,), OUTPUTS, kept).eval()
        even.load_state_dict({name: head.state_dict()[name] for name in even.state_dict()})
        vectors = [
            ((rows - given.channel_mean[:, None, None]) / given.channel_scale[:, None, None]).mean((2, 3))
            for rows in maps
        ]
        torch.testing.assert_close(
            head(pack_sequence(maps, enforce_sorted=False)), even(pack_sequence(vectors, enforce_sorted=False))
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cell": "rnn"}, "unknown cell 'rnn'; choose one of lstm, gru, none"),
        ({"pool": "sum"}, "unknown pool 'sum'; choose one of last, mean, max, stats, attention"),
        ({"spatial": "max"}, "unknown spatial reading 'max'"),
        ({"init": ("ones",)}, "unknown initialisation 'ones'"),
        ({"hidden": 0}, "hidden units is 0"),
        ({"layers": 0}, "layers is 0"),
        ({"projection": 0}, "projection is 0"),
        ({"mlp": (8, 0)}, "hidden layer 2 is 0"),
        ({"deltas": (1, 0)}, "lag 2 of the deltas is 0; it must be from 1"),
        ({"changes": (-4,)}, "lag 1 of the changes is -4"),
        ({"changes": (4, 1, 4)}, "the lag 4 is given twice for the changes"),
        ({"input_dropout": 1.0}, "input dropout is 1; it is a share"),
        ({"recurrent_dropout": -0.1}, "recurrent dropout is -0.1"),
        ({"output_dropout": float("nan")}, "output dropout is nan"),
        ({"dropout": 0.5}, "there is one layer"),
        ({"cell": "none", "layers": 2}, "layers asked for without a recurrent cell"),
        ({"cell": "none", "bidirectional": True}, "both directions asked for without"),
        ({"cell": "none", "recurrent_dropout": 0.2}, "recurrent dropout asked for without"),
        ({"cell": "none", "init": ("bias-one",)}, "initialisation asked for without"),
        ({"cell": "none", "variational_dropout": 0.2}, "variational dropout asked for without"),
        ({"variational_dropout": 1.5}, "variational dropout is 1.5; it is a share"),
        ({"variational_dropout": 0.2, "recurrent_dropout": 0.2}, "give one of them"),
        ({"projection_dropout": 0.5}, "give the width of the projection"),
        ({"projection": 5, "projection_dropout": 1.0}, "projection dropout is 1"),
        ({"step_mlp": (8, 0)}, "layer 2 of the MLP of every step is 0"),
        ({"step_mlp": (8,), "bidirectional": True, "pool": "max+last"}, "mixes the directions; choose another pool"),
        ({"cell": "gru", "init": ("forget-bias",)}, "a GRU has no forget gate"),
        ({"init": ("bias-one", "forget-bias")}, "bias-one sets every bias"),
    ],
)
def test_impossible_heads_are_refused_at_birth(arguments, words):
    with pytest.raises(UserError, match=words):
        HeadConfig(**arguments)


def test_features_that_do_not_suit_the_head_are_refused(videos):
    with pytest.raises(UserError, match=r"maps \(4, 3, 2\); say how to read them"):
        Head(HeadConfig(), (4, 3, 2), OUTPUTS)
    with pytest.raises(UserError, match=r"vectors \(6\), there are no places"):
        Head(HeadConfig(spatial="attention"), (6,), OUTPUTS)
    with pytest.raises(ValueError, match="rows of 6 features; the head reads 7"):
        Head(HeadConfig(), (7,), OUTPUTS)(pack_sequence(videos, enforce_sorted=False))
    with pytest.raises(ValueError, match="of 6 inputs, made of vectors; the head has 12"):
        Head(HeadConfig(deltas=(1,)), (6,), OUTPUTS, standardisation(6))
    with pytest.raises(ValueError, match="of 4 inputs, made of vectors; the head has 4, with spatial='attention'"):
        Head(HeadConfig(spatial="attention"), (4, 3, 2), OUTPUTS, standardisation(4))


def test_batch_normalisation_of_what_the_classifier_reads() -> None:
    torch.manual_seed(0)
    head = Head(HeadConfig(hidden=3, norm="batch"), (FEATURES,), OUTPUTS)
    videos = [torch.randn(length, FEATURES) for length in (4, 2, 9)]
    seen = {}
    head.classifier[0].register_forward_hook(lambda module, given, made: seen.update(given=given[0], made=made))
    head(pack_sequence(videos, enforce_sorted=False))
    given = seen["given"]
    expected = (given - given.mean(0)) / (given.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(seen["made"], expected, atol=1e-5, rtol=1e-5)
    head(pack_sequence(videos[:1]))  # one row has no variance: the running statistics serve
    norm = head.classifier[0]
    expected = (seen["given"] - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(seen["made"], expected, atol=1e-5, rtol=1e-5)
    head.eval()
    together = head(pack_sequence(videos, enforce_sorted=False))
    for row, video in zip(together, videos, strict=True):
        torch.testing.assert_close(row, head(pack_sequence([video]))[0], atol=1e-6, rtol=1e-5)
