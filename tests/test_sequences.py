"""Sequences come out of the bank packed as PyTorch packs them, from memory and from disk alike."""

import multiprocessing
import subprocess
import sys
import threading
from copy import copy
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, unpack_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import joined_banks, packing
from pipeline.bank import Bank, create
from pipeline.errors import UserError
from pipeline.sealing import PartWriter
from pipeline.sequences import Batch, Sequences, buckets, load_sequences, same_rows
from tests.banks import config, embeddings, fill, row

LENGTHS = {"a": 5, "b": 1, "c": 9, "d": 5, "e": 12}
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def bank_of(path: Path, videos: dict[str, np.ndarray], seconds: dict[str, np.ndarray] | None = None, **changes) -> Bank:
    """A bank of given features, (T, D) or (T, C, H, W), ten rows a second unless `seconds` says otherwise."""
    made = config(feature_shape=list(next(iter(videos.values())).shape[1:]), **changes)
    create(path, made)
    writer = PartWriter(path, made, lambda *_: None)
    for video_id, features in videos.items():
        sink = writer.open(row(video_id))
        times = (seconds or {}).get(video_id, np.arange(len(features)) / 10)
        sink.append(features, times, np.arange(len(features)))
        sink.finish({"frames_decoded": len(features), "duration": len(features) / 10})
    writer.seal()
    return Bank(path)


def videos_of(lengths: dict[str, int], shape: tuple[int, ...] = (8,)) -> dict[str, np.ndarray]:
    return {name: embeddings(name, length, shape) for name, length in lengths.items()}


@pytest.fixture
def bank(out) -> Bank:
    fill(out, LENGTHS)
    return Bank(out)


@pytest.fixture(params=["memory", "stream"])
def sequences(bank, request) -> Sequences:
    loaded = load_sequences([bank], memory_bytes=0 if request.param == "stream" else None)
    assert loaded.streamed == (request.param == "stream")
    return loaded


def assert_packed_as_pytorch_does(batch: Batch, expected: list[torch.Tensor]) -> None:
    reference = pack_sequence(expected, enforce_sorted=False)
    assert batch.packed.data.dtype == torch.float32
    assert torch.equal(batch.packed.batch_sizes, reference.batch_sizes)
    for name in ("sorted_indices", "unsorted_indices"):
        order = getattr(batch.packed, name)
        assert sorted(order.tolist()) == list(range(len(expected)))
    for mine, theirs in zip(unpack_sequence(batch.packed), expected, strict=True):
        assert torch.equal(mine, theirs)
    padded, lengths = pad_packed_sequence(batch.packed, batch_first=True)
    assert lengths.tolist() == [len(one) for one in expected]
    assert torch.equal(padded, pad_packed_sequence(reference, batch_first=True)[0])


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7), data=st.data())
def test_any_batch_is_packed_as_pytorch_packs_it(lengths, data):
    videos = [torch.from_numpy(embeddings(f"{number}", length)) for number, length in enumerate(lengths)]
    sequences = Sequences("abcdefg"[: len(videos)], [np.arange(length) / 10 for length in lengths], torch.cat(videos))
    chosen = np.array(data.draw(st.lists(st.integers(0, len(videos) - 1), min_size=1, unique=True)))
    batch = sequences.batch(chosen)
    assert_packed_as_pytorch_does(batch, [videos[video] for video in chosen])
    assert torch.equal(torch.cat(videos)[batch.rows], batch.packed.data)
    steps = [
        np.array(sorted(data.draw(st.sets(st.integers(0, lengths[video] - 1), min_size=1))))
        for video in chosen.tolist()
    ]
    batch = sequences.batch(chosen, steps)
    assert_packed_as_pytorch_does(batch, [videos[video][rows] for video, rows in zip(chosen, steps, strict=True)])
    assert torch.equal(torch.cat(videos)[batch.rows], batch.packed.data)


def test_the_bank_comes_out_as_it_was_put_in(sequences, bank):
    assert sequences.ids == ("a", "b", "c", "d", "e")
    assert sequences.lengths.tolist() == [5, 1, 9, 5, 12]
    assert sequences.offsets.tolist() == [0, 5, 6, 15, 20, 32]
    assert sequences.feature_shape == (8,)
    assert sequences.notes == ()
    assert sequences.seconds(1).tolist() == [0.0]
    for position, video_id in enumerate(sequences.ids):
        stored = torch.from_numpy(bank[video_id]).float()
        assert torch.equal(sequences.read(position), stored)
        assert torch.equal(sequences.read(position, 2, 4), stored[2:4])
        assert np.array_equal(sequences.seconds(position), bank.timestamps(video_id))


def test_batches_of_the_bank(sequences, bank):
    plan = [
        (np.array([4, 1, 2]), None),
        (np.array([0]), [np.array([0, 3])]),
        (np.array([2, 0]), [np.array([8]), np.arange(5)]),
        (np.array([3, 4]), None),
        (np.array([1]), None),
    ]
    batches = list(sequences.batches(plan))
    for batch, (videos, steps) in zip(batches, plan, strict=True):
        features = [torch.from_numpy(bank[sequences.ids[video]]).float() for video in videos]
        if steps is not None:
            features = [one[rows] for one, rows in zip(features, steps, strict=True)]
        assert_packed_as_pytorch_does(batch, features)
        assert batch.videos.tolist() == videos.tolist()
        again = sequences.batch(videos, steps)
        assert torch.equal(again.packed.data, batch.packed.data)
        assert torch.equal(again.rows, batch.rows)


def test_moving_to_where_they_are_changes_nothing(sequences):
    moved = sequences.to("cpu")
    assert moved.ids == sequences.ids
    assert torch.equal(moved.batch(np.array([2, 4])).packed.data, sequences.batch(np.array([2, 4])).packed.data)


def test_half_precision_stays_half_in_memory(bank):
    sequences = load_sequences([bank])
    assert sequences._rows.dtype == torch.float16
    assert sequences._rows.shape == (32, 8)


@pytest.mark.parametrize("videos", [[], [0, 1]], ids=["no video", "a video without rows"])
def test_empty_batches_are_refused(sequences, videos):
    steps = [np.array([2]), np.array([], int)][: len(videos)]
    with pytest.raises(ValueError, match="at least one row of each"):
        sequences.batch(np.array(videos, int), steps)


def test_a_long_video_is_read_in_pieces(bank, monkeypatch):
    monkeypatch.setattr("pipeline.sequences._LOAD_ROWS", 5)
    monkeypatch.setattr(joined_banks, "_READ_BYTES", 3 * 8 * 2)  # three rows
    for memory_bytes in (None, 0):
        sequences = load_sequences([bank], memory_bytes=memory_bytes)
        assert torch.equal(sequences.read(4), torch.from_numpy(bank["e"]).float())
        sparse = sequences.batch(np.array([4]), [np.array([0, 7, 8, 11])])
        assert torch.equal(sparse.packed.data, torch.from_numpy(bank["e"][[0, 7, 8, 11]]).float())


def test_memory_decides(bank):
    size = 32 * 8 * 2
    assert not load_sequences([bank], memory_bytes=size).streamed
    assert load_sequences([bank], memory_bytes=size - 1).streamed


def test_a_chosen_few_in_the_order_asked_for(bank):
    sequences = load_sequences([bank], ["d", "b"])
    assert sequences.ids == ("d", "b")
    assert torch.equal(sequences.read(1), torch.from_numpy(bank["b"]).float())
    with pytest.raises(UserError, match=r"2 videos are not in .*bank\.h5, e\.g\. 'x'; `framebank describe .* --csv`"):
        load_sequences([bank], ["d", "x", "y"])


def test_the_stream_opens_the_bank_when_first_asked_in_a_thread_of_its_own(bank, monkeypatch):
    opened = []

    class Watched(Bank):
        def __init__(self, path):
            opened.append(threading.current_thread())
            super().__init__(path)

    monkeypatch.setattr(joined_banks, "Bank", Watched)
    sequences = load_sequences([bank], memory_bytes=0)
    assert opened == []
    list(sequences.batches([(np.array([0]), None)] * 3))
    sequences.read(2)
    assert len(opened) == 1
    assert opened[0] is not threading.current_thread()


def test_the_stream_reads_ahead_of_the_consumer_but_not_far(bank):
    planned = []

    def plan():
        for video in range(5):
            planned.append(video)
            yield np.array([video]), None

    batches = load_sequences([bank], memory_bytes=0).batches(plan())
    next(batches)
    assert planned == [0, 1, 2]
    batches.close()
    assert planned == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_opens_the_bank_for_itself(bank):
    sequences = load_sequences([bank], memory_bytes=0)
    expected = sequences.read(2).tolist()  # the parent has it open already
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=lambda: queue.put(sequences.read(2).tolist()))
    worker.start()
    assert queue.get(timeout=30) == expected
    worker.join(30)
    assert worker.exitcode == 0


def test_a_bank_packed_meanwhile_is_opened_again(out):
    for part in ({"a": 2}, {"b": 3}):
        fill(out, part)
    bank = Bank(out)
    expected = torch.from_numpy(bank["b"]).float()
    sequences = load_sequences([bank], memory_bytes=0)
    sequences.read(0)
    packing.pack(out)
    assert not bank.path_of("b").exists()
    assert torch.equal(sequences.read(1), expected)


MAPS = {"a": 3, "b": 1}


def test_maps_averaged_or_flattened_or_kept(out):
    bank = bank_of(out, videos_of(MAPS, (4, 2, 3)))
    stored = torch.from_numpy(bank["a"]).float()
    for memory_bytes in (None, 0):
        mean = load_sequences([bank], spatial="mean", memory_bytes=memory_bytes)
        assert mean.feature_shape == (4,)
        torch.testing.assert_close(mean.read(0), stored.mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)
        flat = load_sequences([bank], spatial="flatten", memory_bytes=memory_bytes)
        assert flat.feature_shape == (24,)
        assert torch.equal(flat.read(0), stored.flatten(1))
        kept = load_sequences([bank], spatial="attention", memory_bytes=memory_bytes)
        assert kept.feature_shape == (4, 2, 3)
        assert torch.equal(kept.batch(np.array([0])).packed.data, stored)


def test_what_to_do_with_maps_is_never_guessed(bank, tmp_path):
    maps = bank_of(tmp_path / "maps.h5", videos_of(LENGTHS, (4, 2, 3)))
    with pytest.raises(UserError, match=r"maps\.h5, \(4, 2, 3\), .*--spatial: mean .*, flatten .*, attention "):
        load_sequences([maps])
    with pytest.raises(UserError, match=r"--spatial mean is for maps.*\(8,\)"):
        load_sequences([bank], spatial="mean")
    with pytest.raises(UserError, match=r"--spatial max is unknown; choose one of mean, flatten, attention"):
        load_sequences([maps], spatial="max")
    with pytest.raises(UserError, match=r"one height and width.*\(8,\).*\(4, 2, 3\).*Choose mean or flatten"):
        load_sequences([bank, maps], spatial="attention")
    both = load_sequences([bank, maps], spatial="flatten")
    assert both.feature_shape == (8 + 24,)


@pytest.mark.parametrize("memory_bytes", [None, 0])
def test_several_banks_side_by_side(bank, tmp_path, memory_bytes):
    other = bank_of(
        tmp_path / "flow.h5",
        videos_of({**LENGTHS, "z": 2}, (3,)),
        {"e": np.arange(12) / 10 + 0.0009},  # rounded elsewhere
        store="float32",
    )
    sequences = load_sequences([bank, other], memory_bytes=memory_bytes)
    assert sequences.feature_shape == (11,)
    assert sequences.ids == tuple(LENGTHS)
    (note,) = sequences.notes
    assert "left out: 1, e.g. z (missing in " in note
    expected = np.concatenate([bank["e"].astype(np.float32), other["e"]], axis=1)
    assert np.array_equal(sequences.read(4).numpy(), expected)
    assert np.array_equal(sequences.batch(np.array([4])).packed.data.numpy(), expected)


@pytest.mark.parametrize(
    ("length", "seconds", "message"),
    [
        (4, None, r"do not agree on c: 9 and 4 rows"),
        (9, np.arange(9) / 8, r"do not agree on c: row 1 is at 0\.100 s and at 0\.125 s"),
        (9, np.full(9, np.nan), r"do not agree on c: row 0 is at 0\.000 s and at nan s"),
    ],
)
def test_banks_that_disagree(bank, tmp_path, length, seconds, message):
    other = bank_of(
        tmp_path / "flow.h5",
        videos_of({**LENGTHS, "c": length}),
        {"c": np.arange(length) / 10 if seconds is None else seconds},
    )
    with pytest.raises(UserError, match=message):
        load_sequences([bank, other])
    assert len(load_sequences([bank, other], ["a", "b"])) == 2


def test_sources_without_a_clock_agree(tmp_path):
    nan = {"a": np.full(3, np.nan)}
    banks = [bank_of(tmp_path / f"{name}.h5", videos_of({"a": 3}), nan) for name in "xy"]
    assert np.isnan(load_sequences(banks).seconds(0)).all()


def test_videos_without_frames_are_left_out_and_counted(out):
    bank = bank_of(out, videos_of({"full": 2, "none": 0, "one": 1, "void": 0}))
    sequences = load_sequences([bank])
    assert sequences.ids == ("full", "one")
    assert sequences.notes == ("videos without a single frame, left out: 2, e.g. none",)
    with pytest.raises(UserError, match=r"No video of .* is left .*without a single frame, left out: 2"):
        load_sequences([bank], ["none", "void"])


@pytest.mark.parametrize("memory_bytes", [None, 0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(bank, value, memory_bytes):
    with h5py.File(bank.path_of("c"), "r+") as file:
        file["videos/c/features"][4, 3] = value
    with pytest.raises(UserError, match=r"the features of c are not finite .*framebank remove .* c`"):
        list(load_sequences([bank], memory_bytes=memory_bytes).batches([(np.arange(5), None)]))
    assert len(load_sequences([bank], ["a", "b"], memory_bytes=memory_bytes)) == 2


@pytest.mark.parametrize("memory_bytes", [None, 0])
def test_videos_that_are_damaged(bank, memory_bytes):
    with h5py.File(bank.path_of("c"), "r+") as file:
        del file["videos/c/features"]
        file["videos/c/features"] = np.zeros((9, 7), np.float16)
        del file["videos/d/features"]
        del file["videos/e/timestamps"]
    for video_id, message in (
        ("c", r"of c have shape \(9, 7\), and should have \(9, 8\).*--verify"),
        ("d", r"bank\.h5: d cannot be read .*--verify"),
        ("e", r"bank\.h5: e cannot be read .*--verify"),
    ):
        with pytest.raises(UserError, match=message):
            load_sequences([bank], ["a", video_id], memory_bytes=memory_bytes).read(1)


@given(
    lengths=st.lists(st.integers(1, 50), max_size=60),
    batch_size=st.integers(1, 9),
    max_steps=st.integers(1, 120),
    seed=st.none() | st.integers(0, 5),
)
def test_buckets_hold_every_video_once_within_bounds(lengths, batch_size, max_steps, seed):
    array = np.array(lengths, np.int64)
    generator = None if seed is None else np.random.default_rng(seed)
    batches = buckets(array, batch_size, max_steps=max_steps, generator=generator)
    assert sorted(video for batch in batches for video in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or array[batch].sum() <= max_steps
    if seed is None:
        assert array[np.concatenate([*batches, np.array([], int)])].tolist() == sorted(lengths, reverse=True)


def test_buckets_are_shuffled_and_alike_in_length():
    lengths = np.random.default_rng(0).integers(1, 1000, 300)
    generator = np.random.default_rng(1)
    epochs = [buckets(lengths, 16, max_steps=10**6, generator=generator) for _ in range(2)]
    partners = [{frozenset(batch.tolist()) for batch in batches} for batches in epochs]
    assert not partners[0] & partners[1]
    spread = np.mean([np.ptp(lengths[batch]) for batch in epochs[0]])
    assert spread < np.ptp(lengths) / 4  # of batches drawn at random it is 0.88 of that
    longest = [lengths[batch].max() for batch in epochs[0]]
    assert longest != sorted(longest)
    again = buckets(lengths, 16, max_steps=10**6, generator=np.random.default_rng(1))
    assert all(np.array_equal(one, other) for one, other in zip(again, epochs[0], strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("memory_bytes", [None, 0])
def test_batches_on_a_gpu(bank, memory_bytes):
    sequences = load_sequences([bank], memory_bytes=memory_bytes)
    here, there = (one.batch(np.array([2, 4])) for one in (sequences, sequences.to("cuda")))
    assert there.packed.data.is_cuda
    assert there.rows.is_cuda
    assert there.packed.batch_sizes.device.type == "cpu"
    assert torch.equal(there.packed.data.cpu(), here.packed.data)


class Transfers(TorchDispatchMode):
    """Counts what goes from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device != result.device:
            self.sent.append(args[0])
        return result


def test_a_batch_of_resident_rows_sends_their_numbers_alone_and_at_once():
    """The device `meta` computes nothing, but like a GPU it is another one."""
    rows = torch.randn(11, 4, dtype=torch.float16)
    sequences = Sequences(["a", "b"], [np.arange(5.0), np.arange(6.0)], rows)
    resident = sequences.to("meta")
    sent = copy(sequences)
    sent.device = torch.device("meta")
    for there, place, what in ((resident, "on meta", [15]), (sent, "in memory", [15, 11 * 4])):
        assert there.place == place
        with Transfers() as transfers:
            batch = there.batch(np.array([1, 0]))
        assert [one.numel() for one in transfers.sent] == what  # 11 rows, and the order of 2 videos there and back
        assert batch.packed.batch_sizes.device.type == "cpu"  # as cuDNN wants them: it waits for nothing
        assert (batch.packed.data.dtype, batch.packed.data.device.type) == (torch.float32, "meta")
    assert transfers.sent[1].dtype == torch.float16  # half the bytes: they are widened there


def test_what_is_needed_only_at_times_is_loaded_only_then():
    code = "import sys, pipeline.standardisation; sys.exit(bool({'dask.array', 'sklearn'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_rows_are_so_many_at_the_same_times() -> None:
    def timed(*seconds: list[float]) -> Sequences:
        return Sequences(["a", "b"], [np.array(each) for each in seconds], torch.zeros(sum(map(len, seconds)), 2))

    first = timed([0.0, 0.1], [0.0, np.nan])
    assert [same_rows([first, timed([0.0, 0.1001], [0.0, np.nan])], video) for video in range(2)] == [True, True]
    assert [same_rows([first, timed([0.0, 0.2], [0.0])], video) for video in range(2)] == [False, False]
    assert not same_rows([first, first, timed([0.0, 0.1], [0.0, 0.1])], 1)


@pytest.mark.parametrize("memory_bytes", [None, 0])
def test_maps_as_they_are(tmp_path, memory_bytes):
    videos = videos_of({"a": 3, "b": 5}, (4, 3, 2))
    sequences = load_sequences(
        [bank_of(tmp_path / "maps.h5", videos)], spatial=joined_banks.MAPS, memory_bytes=memory_bytes
    )
    assert sequences.feature_shape == (4, 3, 2)
    stored = [torch.from_numpy(one).half().float() for one in videos.values()]
    assert torch.equal(sequences.read(1), stored[1])
    assert torch.equal(sequences.batch(np.array([1, 0])).packed.data, pack_sequence(stored[::-1]).data)
    rows = load_sequences([bank_of(tmp_path / "rows.h5", videos_of({"a": 3}))], spatial=joined_banks.MAPS)
    assert rows.feature_shape == (8,)  # what is no map stays what it is, too


def test_frames_stay_whole_numbers():
    frames = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sequences = Sequences("ab", [np.arange(3) / 10, np.arange(4) / 10], frames).to("cpu")
    packed = sequences.batch(np.array([0, 1])).packed
    assert packed.data.dtype == sequences.read(0).dtype == torch.uint8
    for mine, theirs in zip(unpack_sequence(packed), frames.split([3, 4]), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("shape", "rows"), [((8,), 2**24), ((512, 7, 7), 5349), ((2**28,), 1)])
def test_a_batch_takes_half_a_gigabyte_unless_told(shape, rows):
    seconds, few = [np.arange(0)], torch.empty(0, *shape)
    assert Sequences("a", seconds, few).most_rows == rows
    assert Sequences("a", seconds, few, most_rows=9).to("cpu").most_rows == 9


def test_what_training_sees_may_differ_from_epoch_to_epoch():
    seconds, rows = [np.arange(3) / 10], torch.arange(3.0)[:, None]
    plain = Sequences("a", seconds, rows, most_rows=2)
    assert plain.in_epoch(1) is plain
    varying = plain.varying(lambda epoch: Sequences("a", seconds, rows + 10 * epoch)).to("cpu")
    assert varying.most_rows == 2
    assert torch.equal(varying.read(0), rows)
    assert torch.equal(varying.in_epoch(2).read(0), rows + 20)
