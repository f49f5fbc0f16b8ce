"""The frames of banked videos as sequences: decoded when they are asked for, exactly those that the bank has rows of.

What a row of the bank is an embedding of, a row here is the picture of: the same frame (by its number in the video),
prepared by the same preprocessing, (3, S, S) uint8. Nothing is kept on disk: an epoch decodes every video once.
"""

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.augmentation import Augmentation, preparing
from pipeline.bank import Bank
from pipeline.errors import UserError, VideoError
from pipeline.extraction import cores
from pipeline.features import records
from pipeline.frames import Decoded, Frame, read_frames
from pipeline.ids import readable
from pipeline.joined_banks import TIME_TOLERANCE_SECONDS, Stream
from pipeline.preprocessing import Preprocessing
from pipeline.sampling import Sampling
from pipeline.sequences import Sequences


class _Course(NamedTuple):
    """A video that is being decoded, for whoever reads on from where the last read ended.

    Attributes:
        video: which.
        numbers: of its frames that are wanted; there may be more before the last of them is passed.
        decoding: gives them, and closes the file when it is closed.
        decoded: what it has found out, such as why it ended early.
        rows, frames: what was read last: (n,) row numbers, rising, and (n, 3, S, S) uint8.
    """

    video: int
    numbers: set[int]
    decoding: Generator[Frame, None, None]
    decoded: Decoded
    rows: np.ndarray
    frames: Tensor


class FrameReader:
    """Decodes rows of videos. It belongs to one thread, and has others at work for it.

    Args:
        videos: of each video its row of `pipeline.videos.find_videos`.
        frame_index: of each video (T,) int64: the number in the video of the frame of each row.
        seconds: of each video (T,) float64: when those are shown.
        preprocessing: how a frame becomes the network's input.
        augmentation: what changes the frames at random, in the epoch of number `epoch`.
    """

    def __init__(
        self,
        videos: Sequence[Mapping[str, Any]],
        frame_index: Sequence[np.ndarray],
        seconds: Sequence[np.ndarray],
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        epoch: int = 0,
    ) -> None:
        self.videos, self.frame_index, self.seconds = videos, frame_index, seconds
        self.preprocessing, self.augmentation, self.epoch = preprocessing, augmentation, epoch
        self.feature_shape = preprocessing.output_shape
        self._threads: ThreadPoolExecutor | None = None
        self._course: _Course | None = None

    def again(self) -> Self:
        """One of the same for another thread."""
        return type(self)(
            self.videos, self.frame_index, self.seconds, self.preprocessing, self.augmentation, self.epoch
        )

    def read_all(self, wanted: Sequence[tuple[int, np.ndarray]]) -> list[Tensor]:
        """Some rows of several videos, decoded side by side: PyAV and torch release the interpreter while they work."""
        if len(wanted) == 1:
            return [self.read(*wanted[0])]
        if self._threads is None:
            self._threads = ThreadPoolExecutor(cores(), "decoding", initializer=partial(torch.set_num_threads, 1))
        return list(self._threads.map(self._decode_alone, *zip(*wanted, strict=True)))

    def _decode_alone(self, video: int, rows: np.ndarray) -> Tensor:
        course = self._begin(video)
        with closing(course.decoding):
            return self._decode(course, rows)

    def read(self, video: int, rows: np.ndarray) -> Tensor:
        """Some rows of a video, (n,) rising -> (n, 3, S, S) uint8.

        A long video is read piece by piece, each of which may begin a little before the last one ended: it is decoded
        only once for all of them.

        Raises:
            UserError: the file does not give these frames any more.
        """
        course, self._course = self._course, None
        if course is None or not _goes_on(course, video, rows):
            if course is not None:
                course.decoding.close()
            course = self._begin(video)
        known = rows[: np.searchsorted(rows, course.rows[-1], side="right")] if len(course.rows) else rows[:0]
        frames = course.frames[np.searchsorted(course.rows, known)]
        if len(known) == len(rows):
            self._course = course
            return frames
        frames = torch.cat([frames, self._decode(course, rows[len(known) :])])
        if rows[-1] < len(self.frame_index[video]) - 1:
            self._course = course._replace(rows=rows, frames=frames)
        else:
            course.decoding.close()
        return frames

    def _begin(self, video: int) -> _Course:
        row, numbers, decoded = self.videos[video], set[int](), Decoded()
        # The numbers count from the file's first frame, whichever span of it was banked.
        decoding = read_frames(row["path"], row["kind"], Sampling(), decoded, allow_partial=True, indices=numbers)
        nothing = torch.empty(0, *self.feature_shape, dtype=torch.uint8)
        return _Course(video, numbers, decoding, decoded, np.empty(0, np.int64), nothing)

    def _decode(self, course: _Course, rows: np.ndarray) -> Tensor:
        """Rows of a video that come after all those that were decoded before."""
        row, seconds = self.videos[course.video], self.seconds[course.video]
        prepared = preparing(self.preprocessing, row["crop"], self.augmentation, self.epoch, row["id"])
        frames = torch.empty(len(rows), *self.feature_shape, dtype=torch.uint8)
        course.numbers.update(self.frame_index[course.video][rows].tolist())
        found = 0
        try:
            # The rows come first: when they are used up, no further frame is asked for.
            for found, (place, frame) in enumerate(zip(rows.tolist(), course.decoding, strict=False), 1):
                if row["kind"] == "video" and abs(frame.seconds - seconds[place]) > TIME_TOLERANCE_SECONDS:
                    times = f"{frame.seconds:.3f} s, and was at {seconds[place]:.3f} s"
                    raise UserError(_changed(row, f"frame {frame.index} is at {times}"))
                frames[found - 1] = prepared(frame.rgb)
        except (VideoError, OSError) as error:
            raise UserError(_changed(row, str(error))) from error
        if found < len(rows):
            why = course.decoded.partial and f" ({course.decoded.partial})"
            raise UserError(_changed(row, f"it gives {found} of {len(rows)} frames that the bank has rows of{why}"))
        return frames


def _goes_on(course: _Course, video: int, rows: np.ndarray) -> bool:
    """Whether each of the rows is one that was read last, or comes later."""
    return video == course.video and bool(np.isin(rows[rows <= course.rows[-1]], course.rows).all())


def _changed(row: Mapping[str, Any], what: str) -> str:
    return (
        f"{readable(row['id'])} ({readable(row['path'])}) is not what was banked any more: {what}. Restore the file, "
        "or extract the bank again and train the head on it."
    )


def frame_sequences(
    bank: Bank,
    table: pd.DataFrame,
    preprocessing: Preprocessing,
    *,
    augmentation: Augmentation | None = None,
    most_rows: int | None = None,
) -> Sequences:
    """The frames of videos, in the order of a table.

    Args:
        bank: which has rows of them; it is read here and not needed later.
        table: rows of `pipeline.videos.find_videos`, crops and frame rates filled in as for banking.
        preprocessing: that of the bank.
        augmentation: what changes them in training, anew in every epoch (`Sequences.in_epoch`); never elsewhere.
        most_rows: of a batch at most.
    """
    torch.get_num_threads()  # settles it for this thread, which would take over what the decoding ones are told
    videos = records(table)
    ids = [row["id"] for row in videos]
    seconds, frame_index = [bank.timestamps(video) for video in ids], [bank.frame_index(video) for video in ids]

    def in_epoch(epoch: int) -> Sequences:
        reader = FrameReader(videos, frame_index, seconds, preprocessing, augmentation, epoch)
        return Sequences(ids, seconds, Stream(reader), most_rows=most_rows)

    plain = FrameReader(videos, frame_index, seconds, preprocessing)
    varied = None if augmentation is None else in_epoch
    return Sequences(ids, seconds, Stream(plain), most_rows=most_rows, varied=varied)
