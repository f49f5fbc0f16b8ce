"""A long video in pieces, against the whole at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from pipeline.heads import Head, HeadConfig
from pipeline.long_sequences import pieces, score_in_chunks
from pipeline.pooling import POOLS

LENGTH, FEATURES, OUTPUTS = 50, 6, 3

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def video():
    return torch.randn(LENGTH, FEATURES, generator=torch.Generator().manual_seed(1))


def make(**options):
    torch.manual_seed(0)
    config = HeadConfig(hidden=4, **{"centre": True, "deltas": (1, 3), "changes": (8,), **options})
    return Head(config, (FEATURES,), OUTPUTS).eval()


def whole(head, video):
    found = head(pack_sequence([video]))
    return found[0] if isinstance(found, torch.Tensor) else found.data


def in_chunks(head, video, chunk, overlap):
    return score_in_chunks(head, lambda start, stop: video[start:stop], len(video), chunk=chunk, overlap=overlap)


@given(length=st.integers(1, 200), chunk=st.integers(1, 60), overlap=st.integers(0, 60))
def test_pieces_cover_every_row_once(length, chunk, overlap):
    cut = pieces(length, chunk, overlap)
    assert [row for piece in cut for row in range(piece.start, piece.stop)] == list(range(length))
    for piece in cut:
        assert piece.stop - piece.start <= chunk
        assert piece.low == max(piece.start - overlap, 0)
        assert piece.high == min(piece.stop + overlap, length)


@pytest.mark.parametrize("arguments", [(0, 5, 0), (10, 0, 0), (10, 5, -1)])
def test_impossible_pieces_are_refused(arguments):
    with pytest.raises(ValueError, match="no pieces"):
        pieces(*arguments)


@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 1000])
@pytest.mark.parametrize("options", [{"steps": True}, *({"pool": pool} for pool in POOLS)], ids=str)
@pytest.mark.parametrize("cell", [{"cell": "lstm", "layers": 2}, {"cell": "gru"}, {"cell": "none"}], ids=str)
def test_carried_state_gives_the_whole(cell, options, chunk, video):
    head = make(**cell, **options)
    torch.testing.assert_close(in_chunks(head, video, chunk, 0), whole(head, video), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"steps": True}, *({"pool": pool} for pool in POOLS)], ids=str)
def test_overlap_over_everything_gives_the_whole_in_both_directions(options, video):
    head = make(cell="lstm", layers=2, bidirectional=True, **options)
    torch.testing.assert_close(in_chunks(head, video, 9, LENGTH), whole(head, video), rtol=0, atol=1e-5)


@pytest.mark.parametrize("inputs", [{"centre": False}, {"deltas": (), "changes": ()}, {"changes": (60,)}], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_whatever_the_inputs_are_made_of(inputs, bidirectional, video):
    head = make(bidirectional=bidirectional, **inputs)
    torch.testing.assert_close(in_chunks(head, video, 7, LENGTH), whole(head, video), rtol=0, atol=1e-5)


@pytest.mark.parametrize("overlap", [0, 2, 30])
def test_inputs_in_the_overlap_are_those_of_the_whole(overlap, video):
    """What looks at every step by itself shows them, whatever the overlap."""
    head = make(cell="none", steps=True)
    object.__setattr__(head.config, "bidirectional", True)  # as overlapping pieces are cut
    torch.testing.assert_close(in_chunks(head, video, 9, overlap), whole(head, video), rtol=0, atol=1e-5)


def test_more_overlap_is_closer_to_the_whole(video):
    head = make(cell="gru", bidirectional=True, steps=True, centre=False, deltas=(1,), changes=())
    errors = [(in_chunks(head, video, 10, overlap) - whole(head, video)).abs().max() for overlap in (0, 3, 12)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0


@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_more_rows_than_stated_are_held(bidirectional, video):
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return video[start:stop]

    plain = make(bidirectional=bidirectional, centre=False, deltas=(), changes=())
    chunks = [(start, min(start + 8, LENGTH)) for start in range(0, LENGTH, 8)]
    score_in_chunks(plain, read, LENGTH, chunk=8, overlap=3)
    if bidirectional:
        assert asked == [(0, 11), (5, 19), (13, 27), (21, 35), (29, 43), (37, 50), (45, 50)]
    else:
        assert asked == chunks
    asked.clear()
    score_in_chunks(make(bidirectional=bidirectional), read, LENGTH, chunk=8, overlap=3)
    assert asked[: 1 + len(chunks)] == [(0, 1), *chunks]  # the mean
    before = [(0, 1), (0, 5), (5, 13), (13, 21), (21, 29), (29, 37), (37, 45)] if bidirectional else [(0, 1)]
    assert asked[1 + len(chunks) :: 2][: len(before)] == before


def test_maps_in_chunks():
    maps = torch.randn(20, 4, 3, 2, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    config = HeadConfig(hidden=4, spatial="attention", pool="stats", centre=True, changes=(4,))
    head = Head(config, (4, 3, 2), OUTPUTS).eval()
    torch.testing.assert_close(in_chunks(head, maps, 6, 0), whole(head, maps), rtol=0, atol=1e-5)


def test_a_head_in_training_is_refused_and_no_gradients_are_kept(video):
    with pytest.raises(ValueError, match="training mode"):
        in_chunks(make().train(), video, 8, 0)
    assert not in_chunks(make(), video, 8, 0).requires_grad
