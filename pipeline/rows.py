"""The rows of a video before the network: its frames decoded, prepared and put together by windows, as uint8.

This is all that decides what a network sees of a video, so it is the same code that banks it and that decodes it again
for fine-tuning. Each frame is prepared once for each view, however many rows it is in; the motion between two frames is
measured once.

Motion is measured on frames as they were filmed: where a view mirrors them, the measured motion is mirrored.
"""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from pipeline.augmentation import PLAIN, Augmentation, Draw, draw, preparing
from pipeline.flow import Flow, measuring, mirrored, still
from pipeline.frames import Decoded, Frame, read_frames
from pipeline.planes import alike, at_once, to_rgb
from pipeline.preprocessing import Preprocessing, prepare_together, region_of
from pipeline.sampling import Sampling
from pipeline.timing import Spent
from pipeline.views import Views, draws
from pipeline.windows import FRAME, Window, seconds_of, windows


@dataclass(frozen=True)
class ReadOptions:
    """How every video of a run is read.

    Attributes:
        sampling: which frames are taken.
        preprocessing: how each becomes the network's square.
        window: which of them make a row.
        allow_partial: whether a video that breaks off is read up to there.
        augmentation: what changes the frames at random, as it is drawn for the view of number `view`.
        view: of one view; 0 without an augmentation.
        views: several views of each video, side by side; not beside an augmentation.
        flow: how motion is measured; given exactly where the window is of motion.
        device: where frames are prepared, as `pipeline.planes` has them, and rows lie; None: on the CPU, by swscale and
            in whole numbers. Only where frames are `plain`.
    """

    sampling: Sampling
    preprocessing: Preprocessing
    window: Window = FRAME
    allow_partial: bool = False
    augmentation: Augmentation | None = None
    view: int = 0
    views: Views | None = None
    flow: Flow | None = None
    device: torch.device | None = None

    def __post_init__(self) -> None:
        if self.augmentation is not None and self.views is not None:
            raise ValueError("views are drawn by themselves, not by an augmentation")
        if (self.flow is not None) != (self.window.kind == "flow"):
            raise ValueError("a way to measure motion goes with a window of motion")
        if self.device is not None and not self.plain:
            raise ValueError("only plain frames are prepared on a device")

    @property
    def plain(self) -> bool:
        """Whether each frame is prepared once, as it is: without draws, views or motion."""
        return self.augmentation is None and self.views is None and self.flow is None

    def draws(self, video_id: str) -> list[Draw]:
        """What is done to the frames of a video, once for each of its K views; without views K is 1.

        Raises:
            UserError: the preprocessing has no room for such views.
        """
        if self.views is not None:
            return draws(self.views, self.preprocessing, video_id)
        return [PLAIN if self.augmentation is None else draw(self.augmentation, self.view, video_id)]


class Row(NamedTuple):
    """What a network sees at once.

    Attributes:
        inputs: (K, *shape) uint8, one for each view, of the shape that `Window.input_shape` gives.
        seconds: the time of the row; NaN where the source has no clock.
        frames: (F,) numbers in the source of the frames that it is made of.
    """

    inputs: Tensor
    seconds: float
    frames: tuple[int, ...]


class Shown(NamedTuple):
    """One frame of a video, prepared: (K, 3, S, S) uint8, one channel where the window is grey.

    Where motion is measured, views that are mirror images of each other are one.
    """

    number: int
    seconds: float
    pixels: Tensor


class Assembler:
    """Prepares the frames of one video and puts them together as rows.

    Args:
        preprocessing, window, flow: as of `ReadOptions`.
        crop: the region of frames that is used, as tables of videos hold it.
        drawn: what is done to the frames, in each of K views.

    Raises:
        UserError: the motion cannot be measured on this machine.
    """

    def __init__(
        self, preprocessing: Preprocessing, window: Window, flow: Flow | None, crop: str, drawn: Sequence[Draw]
    ) -> None:
        self.window, self._drawn = window, drawn
        self._preprocessing, self._region = preprocessing, region_of(crop)
        self._upright = list(dict.fromkeys(each._replace(flip=False) for each in drawn))  # what is measured, M of them
        self._prepared = preparing(preprocessing, crop, self._upright if flow else drawn)
        self._still = still(preprocessing.crop).expand(len(self._upright), -1, -1, -1)
        self._measure: Callable[[Tensor, Tensor], Tensor] | None = measuring(flow) if flow else None
        self._motions: dict[tuple[int, int], Tensor] = {}  # between frames of these numbers, (M, 2, S, S)

    def show(self, rgb: np.ndarray, seconds: float, number: int) -> Shown:
        """Prepare a frame (H, W, 3) uint8. VideoError as `pipeline.preprocessing.prepare`."""
        return self._shown(self._prepared(rgb), seconds, number)

    def show_together(self, frames: Sequence[Frame], device: torch.device) -> list[Shown]:
        """Prepare frames with planes that are `pipeline.planes.alike` on a device. VideoError as `show`."""
        rgb = to_rgb([frame.planes for frame in frames if frame.planes is not None], device)
        pixels = prepare_together(self._preprocessing, rgb, self._region)
        return [self._shown(each[None], frame.seconds, frame.index) for frame, each in zip(frames, pixels, strict=True)]

    def _shown(self, pixels: Tensor, seconds: float, number: int) -> Shown:
        return Shown(number, seconds, rgb_to_grayscale(pixels) if self.window.grey else pixels)

    def row(self, frames: Sequence[Shown]) -> Row:
        """The row of the F frames of a window. Windows come in the order of their first frames."""
        pixels = [frame.pixels for frame in frames]
        if self.window.kind == "clip":
            inputs = torch.stack(pixels, dim=2)
        elif self.window.kind == "flow":
            inputs = self._motion(frames)
        else:
            inputs = torch.cat(pixels, dim=1) if len(pixels) > 1 else pixels[0]
        seconds = seconds_of(self.window, [frame.seconds for frame in frames])
        return Row(inputs, seconds, tuple(frame.number for frame in frames))

    def _motion(self, frames: Sequence[Shown]) -> Tensor:
        """(K, 2L, S, S): the motion between each of L + 1 frames and the next."""
        measured = torch.cat([self._between(*pair) for pair in pairwise(frames)], dim=1)
        for pair in [pair for pair in self._motions if pair[0] < frames[0].number]:
            del self._motions[pair]  # no later window holds it
        views = [(each.flip, measured[self._upright.index(each._replace(flip=False))]) for each in self._drawn]
        return torch.stack([mirrored(motion) if flip else motion for flip, motion in views])

    def _between(self, first: Shown, second: Shown) -> Tensor:
        """(M, 2, S, S): the motion from one frame to another; a frame that is repeated does not move."""
        assert self._measure is not None
        if first.number == second.number:
            return self._still
        pair = (first.number, second.number)
        if pair not in self._motions:
            views = zip(first.pixels, second.pixels, strict=True)
            self._motions[pair] = torch.stack([self._measure(*both) for both in views])
        return self._motions[pair]


def read_rows(
    row: Mapping[str, Any], options: ReadOptions, decoded: Decoded, spent: Spent | None = None
) -> Generator[Row, None, None]:
    """Yield the rows of one video, decoding as far as the next one needs.

    Args:
        row: of the table of `pipeline.videos.find_videos`.
        options: how.
        decoded: filled in as by `pipeline.frames.read_frames`.
        spent: takes the time of decoding and of preparing.

    Raises:
        VideoError: as `read_frames`; rows may have been yielded then.
        UserError: the motion cannot be measured on this machine, or the preprocessing has no room for such views.
    """
    assembler = Assembler(options.preprocessing, options.window, options.flow, row["crop"], options.draws(row["id"]))
    reading = read_frames(
        row["path"],
        row["kind"],
        options.sampling,
        decoded,
        start=row["start"],
        end=row["end"],
        image_fps=None if math.isnan(row["fps"]) else row["fps"],
        allow_partial=options.allow_partial,
        planes=options.device is not None,
    )
    with closing(reading):
        spent = spent or Spent()
        shown = _shown(spent.taking("decoding", reading), assembler, options.device, spent)
        for frames in windows(options.window, shown):
            with spent.on("preparing"):
                assembled = assembler.row(frames)
            yield assembled


def _shown(
    reading: Iterator[Frame], assembler: Assembler, device: torch.device | None, spent: Spent
) -> Iterator[Shown]:
    """The frames of a video, prepared: on a device several together where they have planes, else each by itself."""
    together: list[Frame] = []
    for frame in reading:
        first = together[0].planes if together else None
        if first is not None and (frame.planes is None or not alike(first, frame.planes)):
            yield from _prepared(together, assembler, device, spent)
            together = []
        together.append(frame)
        if frame.planes is None or len(together) == at_once(frame.planes):
            yield from _prepared(together, assembler, device, spent)
            together = []
    yield from _prepared(together, assembler, device, spent)


def _prepared(
    frames: Sequence[Frame], assembler: Assembler, device: torch.device | None, spent: Spent
) -> Sequence[Shown]:
    with spent.on("preparing"):
        if device is not None and frames and frames[0].planes is not None:
            return assembler.show_together(frames, device)
        shown = [assembler.show(frame.rgb, frame.seconds, frame.index) for frame in frames]
    # A window may hold frames of both kinds: they are put together where rows lie.
    return shown if device is None else [each._replace(pixels=each.pixels.to(device)) for each in shown]
