"""Frames as sequences are exactly those that the bank has rows of, however they are read; or they say so."""

import threading
from collections.abc import Iterator
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from pipeline import bank as banks
from pipeline import video_frames
from pipeline.augmentation import Augmentation, apply, draw
from pipeline.bank import Bank
from pipeline.engine import Progress, extract_videos
from pipeline.errors import UserError
from pipeline.extraction import with_region
from pipeline.features import records
from pipeline.frames import read_frames
from pipeline.networks import choose_preset
from pipeline.preprocessing import Preprocessing, prepare
from pipeline.rows import ReadOptions
from pipeline.sampling import Sampling
from pipeline.scoring import reading
from pipeline.sealing import PartWriter
from pipeline.sequences import Sequences, load_sequences
from pipeline.video_frames import frame_sequences
from pipeline.videos import find_videos
from tests.banks import config
from tests.clips import make_clip, pattern, plain

PREPROCESSING = choose_preset("resnet18", image_size=32)
MANIFEST = """path,start,end,crop_x,crop_y,crop_w,crop_h,fps
long.mp4,,,,,,,
short.mp4,,,,,,,
span.mp4,0.5,1.6,,,,,
crop.mp4,,,8,4,40,30,
stills,,,,,,,5
"""
IDS = ["crop", "long", "short", "span@0.5-1.6", "stills"]
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def picture_mean(frames: Tensor) -> Tensor:
    """Stands in for a network, one whose embeddings tell frames apart."""
    return frames.float().mean(dim=(2, 3))


def bank_videos(data: Path, out: Path, sampling: Sampling, preprocessing: Preprocessing) -> tuple[Bank, pd.DataFrame]:
    """A bank as the engine makes it."""
    table = with_region(find_videos(data).table, "", None)
    made = config(store="float32", feature_shape=[3])
    banks.create(out, made)
    extract_videos(
        [{**row, "source": row["path"], "size": 0, "mtime": 0} for row in records(table)],
        ReadOptions(sampling, preprocessing),
        lambda frames: picture_mean(frames).numpy,
        4,
        PartWriter(out, made, lambda *_: None),
        lanes=1,
        threads_per_lane=1,
        stop=threading.Event(),
        progress=Progress(),
        on_progress=lambda _: None,
    )
    return Bank(out), table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of several lengths and sizes: whole ones, a span, a region, and a folder of images."""
    data = tmp_path_factory.mktemp("data")
    make_clip(data / "long.mp4", frames=25, size=(64, 48))
    make_clip(data / "short.mp4", frames=3, size=(48, 80))
    make_clip(data / "span.mp4", frames=20, size=(48, 48))
    make_clip(data / "crop.mp4", frames=9, size=(64, 48))
    (data / "stills").mkdir()
    for index in range(6):
        Image.fromarray(pattern(index)).save(data / "stills" / f"{index}.png")
    (data / "manifest.csv").write_text(MANIFEST)
    return data


@pytest.fixture(scope="module", params=[Sampling(), Sampling(stride=2), Sampling(fps=4), Sampling(frames=4)], ids=repr)
def banked(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bank, pd.DataFrame]:
    return bank_videos(folder, tmp_path_factory.mktemp("bank") / "bank.h5", request.param, PREPROCESSING)


@pytest.fixture
def every(folder: Path, tmp_path: Path) -> tuple[Bank, pd.DataFrame]:
    """All frames of all videos."""
    return bank_videos(folder, tmp_path / "bank.h5", Sampling(), PREPROCESSING)


def pictures(folder: Path, video_id: str) -> list[np.ndarray]:
    """All frames of a video as PyAV and Pillow alone give them, of its region if it has one."""
    if video_id == "stills":
        return [np.array(Image.open(path)) for path in sorted((folder / "stills").iterdir())]
    frames = plain(folder / f"{video_id.split('@')[0]}.mp4")
    return [frame[4:34, 8:48] for frame in frames] if video_id == "crop" else frames


def expected(folder: Path, bank: Bank, video_id: str) -> Tensor:
    frames = pictures(folder, video_id)
    return torch.stack([prepare(PREPROCESSING, frames[index].copy()) for index in bank.frame_index(video_id)])


def test_rows_are_the_pictures_of_what_was_banked(banked, folder):
    bank, table = banked
    sequences = frame_sequences(bank, table, PREPROCESSING)
    assert list(sequences.ids) == IDS == list(bank)
    assert (sequences.feature_shape, sequences.streamed) == ((3, 32, 32), True)
    for position, video_id in enumerate(IDS):
        rows = sequences.read(position)
        assert rows.dtype == torch.uint8
        assert torch.equal(rows, expected(folder, bank, video_id))
        assert np.array_equal(picture_mean(rows).numpy(), bank[video_id])
        assert np.array_equal(sequences.seconds(position), bank.timestamps(video_id))
    assert bank.frame_index("span@0.5-1.6")[0] >= 5  # numbers count from the file's first frame


def test_batches_are_packed_as_those_of_the_bank(every, folder):
    bank, table = every
    sequences, embedded = frame_sequences(bank, table, PREPROCESSING), load_sequences([bank])
    plan = [
        (np.array([2, 1, 4, 0]), None),
        (np.array([1, 3]), [np.array([0, 7, 24]), np.array([2, 3, 4, 10])]),
        (np.array([4]), [np.array([5])]),
        (np.array([0, 1, 2, 3, 4]), None),
    ]
    for batch, banks_own in zip(sequences.batches(plan), embedded.batches(plan), strict=True):
        assert batch.packed.data.dtype == torch.uint8
        assert torch.equal(picture_mean(batch.packed.data), banks_own.packed.data)
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert torch.equal(getattr(batch.packed, name), getattr(banks_own.packed, name))
        assert torch.equal(batch.rows, banks_own.rows)
    videos, steps = plan[1]
    pieces = [expected(folder, bank, IDS[video])[rows] for video, rows in zip(videos, steps, strict=True)]
    packed = sequences.batch(videos, steps).packed
    assert torch.equal(packed.data, pack_sequence(pieces, enforce_sorted=False).data)
    for mine, piece in zip(unpack_sequence(packed), pieces, strict=True):
        assert torch.equal(mine, piece)


def test_the_order_is_that_of_the_table(every, folder):
    bank, table = every
    sequences = frame_sequences(bank, table.iloc[[3, 1]], PREPROCESSING)
    assert sequences.ids == (IDS[3], IDS[1])
    assert torch.equal(sequences.read(1), expected(folder, bank, IDS[1]))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened for decoding, in order."""
    opened: list[str] = []

    def noted(path: str, *arguments: object, **options: object) -> Iterator[object]:
        opened.append(Path(path).stem)
        return read_frames(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(video_frames, "read_frames", noted)
    return opened


@pytest.mark.parametrize("pieces", [[(0, 10), (10, 20), (20, 25)], [(0, 10), (4, 6), (7, 17), (14, 25)]], ids=repr)
def test_a_long_video_read_in_pieces_is_decoded_once(every, folder, decoded, pieces):
    bank, table = every
    sequences = frame_sequences(bank, table, PREPROCESSING)
    whole, rows = expected(folder, bank, "long"), reading(sequences, 1, np.arange(25))
    for start, stop in pieces:
        assert torch.equal(rows(start, stop), whole[start:stop])
    assert decoded == ["long"]


def test_whatever_is_read_after_whatever(every, folder, decoded):
    bank, table = every
    sequences = frame_sequences(bank, table, PREPROCESSING)
    wholes = [expected(folder, bank, video_id) for video_id in IDS]
    generator = np.random.default_rng(0)
    for _ in range(60):
        video = int(generator.choice([1, 1, 1, 0]))
        length = len(wholes[video])
        rows = np.sort(generator.choice(length, int(generator.integers(1, 6)), replace=False))
        assert torch.equal(sequences.batch(np.array([video]), [rows]).packed.data, wholes[video][rows])
    assert 10 < len(decoded) < 60  # some went on from the one before, most did not


def test_augmented_rows_are_seen_in_training_alone(every, folder):
    bank, table = every
    augmentation = Augmentation(("crop", "flip", "jitter"), 7)
    sequences = frame_sequences(bank, table, PREPROCESSING, augmentation=augmentation)
    videos = np.arange(5)
    assert torch.equal(
        sequences.batch(videos).packed.data, frame_sequences(bank, table, PREPROCESSING).batch(videos).packed.data
    )
    seen = []
    for epoch in (1, 2, 1):
        training = sequences.in_epoch(epoch)
        assert training.ids == sequences.ids
        assert np.array_equal(training.lengths, sequences.lengths)
        seen.append(training.batch(videos).packed)
    assert torch.equal(seen[0].data, seen[2].data)
    assert not torch.equal(seen[0].data, seen[1].data)
    wider = augmentation.wider(PREPROCESSING)
    for video_id, rows in zip(IDS, unpack_sequence(seen[1]), strict=True):
        frames = [prepare(wider, pictures(folder, video_id)[index].copy()) for index in bank.frame_index(video_id)]
        assert torch.equal(rows, apply(draw(augmentation, 2, video_id), torch.stack(frames), 32))
    # Piece by piece, as long videos are read, it is the same.
    training = sequences.in_epoch(2)
    pieces = [training.read(1, start, start + 10) for start in (0, 10, 20)]
    assert torch.equal(torch.cat(pieces), unpack_sequence(seen[1])[1])


def test_moving_keeps_what_training_sees(every):
    bank, table = every
    sequences = frame_sequences(bank, table, PREPROCESSING, augmentation=Augmentation(("jitter",)), most_rows=11)
    moved = sequences.to("cpu")
    assert moved.most_rows == moved.in_epoch(1).most_rows == 11
    assert torch.equal(moved.in_epoch(1).read(1), sequences.in_epoch(1).read(1))
    assert not torch.equal(moved.in_epoch(1).read(1), moved.read(1))
    still = frame_sequences(bank, table, PREPROCESSING)
    assert still.in_epoch(3) is still


# --- what is not what was banked any more ----------------------------------------------------------------------------


@pytest.fixture
def changing(tmp_path: Path) -> tuple[Path, Sequences]:
    data = tmp_path / "data"
    make_clip(data / "a.mp4", frames=12)
    make_clip(data / "b.mp4", frames=5)
    bank, table = bank_videos(data, tmp_path / "bank.h5", Sampling(), PREPROCESSING)
    return data, frame_sequences(bank, table, PREPROCESSING)


def gone(path: Path) -> None:
    path.unlink()


def shorter(path: Path) -> None:
    make_clip(path, frames=7)


def truncated(path: Path) -> None:
    content = make_clip(path.with_suffix(".avi"), frames=12, size=(640, 480), codec="mjpeg").read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def faster(path: Path) -> None:
    make_clip(path, frames=12, fps=20)


def rubbish(path: Path) -> None:
    path.write_bytes(b"no film" * 100)


@pytest.mark.parametrize("together", [True, False], ids=["in a batch", "alone"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (gone, r"the file cannot be opened: there is no such file"),
        (shorter, r"it gives 7 of 12 frames that the bank has rows of\."),
        (truncated, r"it gives \d+ of 12 frames that the bank has rows of \(.*truncated"),
        (faster, r"frame 1 is at 0\.050 s, and was at 0\.100 s"),
        (rubbish, r"not a media file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_changed_after_it_was_banked(changing, change, message, together):
    data, sequences = changing
    change(data / "a.mp4")
    with pytest.raises(
        UserError, match=rf"a \(.*a\.mp4\) is not what was banked any more: .*{message}.*extract the bank"
    ):
        sequences.batch(np.array([1, 0])) if together else sequences.read(0)
    assert len(sequences.read(1)) == 5  # the others are read as before


def test_times_that_were_never_known_are_not_compared(folder, tmp_path):
    """Images have the times that they are given; with another rate they are the same images."""
    bank, table = bank_videos(folder, tmp_path / "bank.h5", Sampling(), PREPROCESSING)
    table["fps"] = nan
    assert torch.equal(frame_sequences(bank, table, PREPROCESSING).read(4), expected(folder, bank, "stills"))


def test_decoding_threads_leave_the_others_their_cores(every):
    bank, table = every
    torch.set_num_threads(2)
    sequences = frame_sequences(bank, table, PREPROCESSING)
    sequences.batch(np.array([0, 1, 2]))
    assert torch.get_num_threads() == 2
