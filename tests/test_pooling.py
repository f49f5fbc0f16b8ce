"""Pools over packed steps, against numpy on each video by itself."""

import math

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from pipeline.pooling import POOLS, SMALLEST_VARIANCE, SpatialAttention, pool_of

LENGTHS = (3, 1, 7, 7, 20)
STATES = 6

pytestmark = pytest.mark.usefixtures("one_torch_thread")

KINDS = (*POOLS, "max+stats", "attention+last+mean")


@pytest.fixture
def videos():
    generator = torch.Generator().manual_seed(0)
    return [100 + 3 * torch.randn(length, STATES, generator=generator) for length in LENGTHS]


def make(kind, **options):
    torch.manual_seed(1)
    return pool_of(kind, STATES, **options)


def reference(pool, kind, states):
    """One video (T, H) in float64, as the pools' definitions read."""
    if "+" in kind:
        parts = zip(pool.pools, kind.split("+"), strict=True)
        return np.concatenate([reference(part, name, states) for part, name in parts])
    states = states.double().numpy()
    if kind == "attention":
        hidden, _, out = pool.score
        score = np.tanh(states @ hidden.weight.detach().numpy().T + hidden.bias.detach().numpy())
        score = score @ out.weight.detach().numpy()[0]
        weight = np.exp(score) / np.exp(score).sum()
        return weight @ states
    return {
        "last": lambda: states[-1],
        "mean": lambda: states.mean(0),
        "max": lambda: states.max(0),
        "stats": lambda: np.concatenate([states.mean(0), np.maximum(states.std(0), SMALLEST_VARIANCE**0.5)]),
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_each_pool_is_its_definition_on_the_true_steps_of_each_video(kind, videos):
    pool = make(kind)
    pooled = pool(pack_sequence(videos, enforce_sorted=False)).detach().numpy()
    assert pooled.shape == (len(videos), pool.width)
    for row, states in zip(pooled, videos, strict=True):
        np.testing.assert_allclose(row, reference(pool, kind, states), rtol=1e-5, atol=1e-5)


def test_negative_states_keep_their_maximum(videos):
    below = [-states for states in videos]  # a pool that starts from zeros, or reads padding, answers 0
    pooled = make("max")(pack_sequence(below, enforce_sorted=False))
    assert torch.equal(pooled, torch.stack([states.amax(0) for states in below]))


def test_the_last_state_of_both_directions_is_each_ones_own(videos):
    pooled = make("last", bidirectional=True)(pack_sequence(videos, enforce_sorted=False))
    for row, states in zip(pooled, videos, strict=True):
        assert torch.equal(row, torch.cat([states[-1, :3], states[0, 3:]]))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_merge_into_the_whole(kind, bidirectional, videos):
    pool, states = make(kind, bidirectional=bidirectional), torch.cat(videos)
    whole = pool(pack_sequence([states]))
    for lengths in ([len(states) - 1, 1], [1] * len(states), [5, 20, len(states) - 25]):
        summaries = [pool.summarise(pack_sequence([piece])) for piece in states.split(lengths)]
        merged = summaries[0]
        for summary in summaries[1:]:
            merged = pool.merge(merged, summary)
        torch.testing.assert_close(pool.finish(merged), whole, rtol=1e-5, atol=1e-5)


def test_the_standard_deviation_keeps_its_digits_far_from_zero():
    states = 10_000 + torch.tensor([[0.0], [0.5], [1.0]])  # E[x^2] - E[x]^2 in float32 would be off by whole units
    pooled = pool_of("stats", 1)(pack_sequence([states]))
    torch.testing.assert_close(pooled, torch.tensor([[10_000.5, math.sqrt(1 / 6)]]))


@pytest.mark.parametrize("kind", POOLS)
def test_slopes_are_right_and_finite_even_of_one_step(kind, videos):
    pool = make(kind)
    small = [(states / 100).requires_grad_() for states in videos[:3]]
    pool(pack_sequence(small, enforce_sorted=False)).sum().backward()
    assert all(states.grad.isfinite().all() for states in small)
    # Against the definition, on the video of three steps
    alone = small[0].detach().clone().requires_grad_()
    expected = {
        "last": lambda: alone[-1],
        "mean": lambda: alone.mean(0),
        "max": lambda: alone.amax(0),
        "stats": lambda: torch.cat([alone.mean(0), alone.std(0, correction=0)]),
        "attention": lambda: (pool.score(alone).softmax(0) * alone).sum(0),
    }[kind]()
    expected.sum().backward()
    torch.testing.assert_close(small[0].grad, alone.grad, rtol=1e-4, atol=1e-5)


def test_large_scores_do_not_overflow(videos):
    pool = make("attention")
    with torch.no_grad():
        pool.score[2].weight.mul_(1e4)
    assert pool(pack_sequence(videos, enforce_sorted=False)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_states_are_pooled_in_float32(kind, videos):
    pool = make(kind)
    rough = [states.bfloat16() for states in videos]
    pooled = pool(pack_sequence(rough, enforce_sorted=False))
    exact = pool(pack_sequence([states.float() for states in rough], enforce_sorted=False))
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, exact)


def test_attention_over_places_is_its_definition():
    torch.manual_seed(2)
    attend, maps = SpatialAttention(5), torch.randn(4, 5, 3, 2)
    for row, features in zip(attend(maps), maps, strict=True):
        places = [features[:, y, x] for y in range(3) for x in range(2)]
        score = torch.stack([attend.score(place) for place in places]).softmax(0)
        torch.testing.assert_close(row, sum(weight * place for weight, place in zip(score, places, strict=True)))
