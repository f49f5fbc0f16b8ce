"""Row arithmetic in a PackedSequence, against what unpacking says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from pipeline.layout import alone, layout, sums, with_data

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=9)


def numbered(lengths):
    """Every row is (video, step), packed."""
    rows = [
        torch.stack([torch.full((length,), video), torch.arange(length)], 1) for video, length in enumerate(lengths)
    ]
    return pack_sequence(rows, enforce_sorted=False)


@given(lengths=LENGTHS)
def test_every_row_is_found(lengths):
    packed = numbered(lengths)
    place = layout(packed)
    assert place.lengths.tolist() == lengths
    assert torch.equal(torch.stack([place.video, place.step], 1), packed.data)
    assert packed.data[place.first].tolist() == [[video, 0] for video in range(len(lengths))]
    assert packed.data[place.last].tolist() == [[video, length - 1] for video, length in enumerate(lengths)]

    assert torch.equal(place.row(place.video, place.step), torch.arange(sum(lengths)))


@given(lengths=LENGTHS)
def test_sums_are_of_each_video(lengths):
    packed = numbered(lengths)
    expected = [[video * length, length * (length - 1) // 2] for video, length in enumerate(lengths)]
    assert sums(packed.data, layout(packed)).tolist() == expected


def test_one_video_is_packed_as_pytorch_packs_it():
    rows = torch.arange(10).reshape(5, 2)
    for mine, theirs in zip(alone(rows), pack_sequence([rows], enforce_sorted=False), strict=True):
        assert torch.equal(mine, theirs)


def test_a_sequence_packed_in_order_has_no_indices_and_is_read_as_well():
    rows = [torch.arange(length) + 10 * video for video, length in enumerate((4, 4, 2, 1))]
    packed = pack_sequence(rows)
    assert packed.sorted_indices is None
    place = layout(packed)
    assert torch.equal(10 * place.video + place.step, packed.data)
    assert place.lengths.tolist() == [4, 4, 2, 1]
    assert packed.data[place.last].tolist() == [3, 13, 21, 30]
    assert packed.data[place.first].tolist() == [0, 10, 20, 30]
    assert packed.data[place.row(torch.tensor([2, 0]), torch.tensor([1, 3]))].tolist() == [21, 3]


def test_other_data_keeps_the_order_of_the_videos():
    packed = numbered([2, 5, 1, 3])
    other = with_data(packed, packed.data.double() * 2)
    for video, rows in enumerate(torch.nn.utils.rnn.unpack_sequence(other)):
        assert rows[:, 0].unique().tolist() == [2 * video]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: whether it is waited for")
def test_a_gpu_is_never_waited_for():
    packed = numbered([2, 5, 1, 3]).to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        layout(packed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
