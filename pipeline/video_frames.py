"""The frames of banked videos as sequences: decoded when they are asked for, exactly those that the bank has rows of.

What a row of the bank is an embedding of, a row here is the picture of: the same frames (by their numbers in the
video), prepared and put together in the same way (`pipeline.rows`), uint8. Nothing is kept on disk: an epoch decodes
every video once.
"""

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.augmentation import PLAIN, Augmentation, draw
from pipeline.bank import Bank
from pipeline.errors import UserError, VideoError
from pipeline.extraction import cores
from pipeline.features import records
from pipeline.flow import Flow
from pipeline.frames import Decoded, Frame, read_frames
from pipeline.ids import readable
from pipeline.joined_banks import TIME_TOLERANCE_SECONDS, Stream
from pipeline.preprocessing import Preprocessing
from pipeline.rows import Assembler, Shown
from pipeline.sampling import Sampling
from pipeline.sequences import Sequences
from pipeline.windows import FRAME, Window


@dataclass
class _Course:
    """A video that is being decoded, for whoever reads on from where the last read ended.

    Attributes:
        video: which.
        numbers: of its frames that are wanted; there may be more before the last of them is passed.
        decoding: gives them, and closes the file when it is closed.
        decoded: what it has found out, such as why it ended early.
        assembler: prepares the frames and puts them together.
        shown: frames that may be wanted again, by their numbers: those of the rows that were read last.
        passed: the number of the last frame that was decoded.
    """

    video: int
    numbers: set[int]
    decoding: Generator[Frame, None, None]
    decoded: Decoded
    assembler: Assembler
    shown: dict[int, Shown] = field(default_factory=dict)
    passed: int = -1


class FrameReader:
    """Decodes rows of videos. It belongs to one thread, and has others at work for it.

    Args:
        videos: of each video its row of `pipeline.videos.find_videos`.
        frames: of each video (T, F) int64: the numbers in the video of the frames of each row.
        seconds: of each video (T,) float64: the times of its rows.
        preprocessing: how a frame becomes the network's square.
        augmentation: what changes the frames at random, in the epoch of number `epoch`.
        window: which frames make a row.
        flow: how motion is measured, exactly where the window is of motion.
    """

    def __init__(
        self,
        videos: Sequence[Mapping[str, Any]],
        frames: Sequence[np.ndarray],
        seconds: Sequence[np.ndarray],
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        epoch: int = 0,
        window: Window = FRAME,
        flow: Flow | None = None,
    ) -> None:
        self.videos, self.frames, self.seconds = videos, frames, seconds
        self.preprocessing, self.augmentation, self.epoch = preprocessing, augmentation, epoch
        self.window, self.flow = window, flow
        self.feature_shape = window.input_shape(preprocessing.crop)
        self._threads: ThreadPoolExecutor | None = None
        self._course: _Course | None = None

    def again(self) -> Self:
        """One of the same for another thread."""
        return type(self)(
            self.videos,
            self.frames,
            self.seconds,
            self.preprocessing,
            self.augmentation,
            self.epoch,
            self.window,
            self.flow,
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
            return self._rows(course, rows, keep=False)

    def read(self, video: int, rows: np.ndarray) -> Tensor:
        """Some rows of a video, (n,) never falling -> (n, *feature_shape) uint8.

        A long video is read piece by piece, each of which may begin a little before the last one ended: it is decoded
        only once for all of them.

        Raises:
            UserError: the file does not give these frames any more.
        """
        course, self._course = self._course, None
        if course is None or not self._goes_on(course, video, rows):
            if course is not None:
                course.decoding.close()
            course = self._begin(video)
        passed = course.passed
        inputs = self._rows(course, rows, keep=True)
        if course.passed > passed:
            wanted = set(self.frames[video][rows].ravel().tolist())
            course.shown = {number: shown for number, shown in course.shown.items() if number in wanted}
        if rows[-1] < len(self.frames[video]) - 1 or course.passed == passed:
            self._course = course
        else:
            course.decoding.close()
        return inputs

    def _goes_on(self, course: _Course, video: int, rows: np.ndarray) -> bool:
        """Whether each frame of the rows is at hand, or comes later."""
        if video != course.video:
            return False
        return all(number in course.shown for number in _distinct(self.frames[video][rows]) if number <= course.passed)

    def _begin(self, video: int) -> _Course:
        row, numbers, decoded = self.videos[video], set[int](), Decoded()
        # The numbers count from the file's first frame, whichever span of it was banked.
        decoding = read_frames(row["path"], row["kind"], Sampling(), decoded, allow_partial=True, indices=numbers)
        drawn = PLAIN if self.augmentation is None else draw(self.augmentation, self.epoch, row["id"])
        assembler = Assembler(self.preprocessing, self.window, self.flow, row["crop"], [drawn])
        return _Course(video, numbers, decoding, decoded, assembler)

    def _rows(self, course: _Course, rows: np.ndarray, *, keep: bool) -> Tensor:
        """Rows of a video whose frames are at hand or come later; `keep` them at hand for the rows to come."""
        row, seconds = self.videos[course.video], self.seconds[course.video]
        wanted = self.frames[course.video][rows]
        missing = [number for number in _distinct(wanted) if number > course.passed]
        course.numbers.update(missing)
        inputs = torch.empty(len(rows), *self.feature_shape, dtype=torch.uint8)
        found = 0
        for place, numbers in enumerate(wanted.tolist()):
            while course.passed < numbers[-1]:
                if not self._show_next(course):
                    why = course.decoded.partial and f" ({course.decoded.partial})"
                    what = f"it gives {found} of {len(missing)} frames that the bank has rows of{why}"
                    raise UserError(_changed(row, what))
                found += 1
            made = course.assembler.row([course.shown[number] for number in numbers])
            banked = seconds[rows[place]]
            if row["kind"] == "video" and abs(made.seconds - banked) > TIME_TOLERANCE_SECONDS:
                which = f"frame {numbers[0]} is" if len(numbers) == 1 else f"frames {numbers[0]} to {numbers[-1]} are"
                times = f"{made.seconds:.3f} s, and {'was' if len(numbers) == 1 else 'were'} at {banked:.3f} s"
                raise UserError(_changed(row, f"{which} at {times}"))
            inputs[place] = made.inputs[0]
            if self.window == FRAME:  # such a row is its frame: one of them is kept
                course.shown[numbers[0]] = course.shown[numbers[0]]._replace(pixels=inputs[place, None])
            if not keep:
                course.shown = {number: shown for number, shown in course.shown.items() if number >= numbers[0]}
        return inputs

    def _show_next(self, course: _Course) -> bool:
        """Decode and prepare one more of the frames that are wanted; False where the file has no more of them."""
        try:
            frame = next(course.decoding, None)
            if frame is None:
                return False
            course.shown[frame.index] = course.assembler.show(frame.rgb, frame.seconds, frame.index)
        except (VideoError, OSError) as error:
            raise UserError(_changed(self.videos[course.video], str(error))) from error
        course.passed = frame.index
        return True


def _distinct(numbers: np.ndarray) -> list[int]:
    return np.unique(numbers).tolist()


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
    window: Window = FRAME,
    flow: Flow | None = None,
    most_rows: int | None = None,
) -> Sequences:
    """The frames of videos, in the order of a table.

    Args:
        bank: which has rows of them; it is read here and not needed later.
        table: rows of `pipeline.videos.find_videos`, crops and frame rates filled in as for banking.
        preprocessing: that of the bank.
        augmentation: what changes them in training, anew in every epoch (`Sequences.in_epoch`); never elsewhere.
        window: that of the bank.
        flow: how its motion was measured, exactly where it is a bank of motion.
        most_rows: of a batch at most.
    """
    torch.get_num_threads()  # settles it for this thread, which would take over what the decoding ones are told
    videos = records(table)
    ids = [row["id"] for row in videos]
    seconds, frames = [bank.timestamps(video) for video in ids], [bank.frames(video) for video in ids]

    def in_epoch(epoch: int) -> Sequences:
        reader = FrameReader(videos, frames, seconds, preprocessing, augmentation, epoch, window, flow)
        return Sequences(ids, seconds, Stream(reader), most_rows=most_rows)

    plain = FrameReader(videos, frames, seconds, preprocessing, window=window, flow=flow)
    varied = None if augmentation is None else in_epoch
    return Sequences(ids, seconds, Stream(plain), most_rows=most_rows, varied=varied)
