"""Which sampled frames make one row of the bank: a frame, a stack of neighbours, a clip, or the motion between frames.

Index arithmetic only, on the frames that `pipeline.sampling` takes, n of them. The rules:

- `frame`: each frame is a row.
- `stack`: row t is the K frames around frame t, one after the other as channels: from t - K // 2 on. There are as many
  rows as frames; before the first and after the last frame, that frame is repeated.
- `clip`: row k is L frames from frame k·S on. Every frame is in a clip: the last one is shifted back so that it ends
  with the last frame. A video of fewer than L frames is one clip, its last frame repeated.
- `flow`: row t is the motion between the L + 1 frames around frame t, laid out as for a stack; a frame that is repeated
  does not move (Simonyan & Zisserman 2014, "Two-stream convolutional networks", https://arxiv.org/abs/1406.2199).

The frame of a row is the one in its middle: number F // 2 of its F frames, the later of two. It stands for the row
where one number is wanted; the row's time is that frame's, and of a clip the middle between its first and last frame.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.errors import UserError

KINDS = ("frame", "stack", "clip", "flow")
_LONGEST = 1024  # frames; more is a slip of the finger
_T = TypeVar("_T")


@dataclass(frozen=True)
class Window:
    """What of a video makes one row.

    Attributes:
        kind: one of `KINDS`.
        length: frames of a stack or clip, pairs of frames of a flow stack; 1 for a frame.
        stride: sampled frames from the beginning of one clip to that of the next; 1 for the others.
        grey: whether the frames of a stack are grey, one channel each.

    Raises UserError for a value that is out of range, and for what the kind does not have.
    """

    kind: str = "frame"
    length: int = 1
    stride: int = 1
    grey: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"there is no window {self.kind!r}; choose one of {', '.join(KINDS)}")
        if not 1 <= self.length <= _LONGEST:
            raise UserError(f"a {self.kind} of {self.length} frames is impossible; give from 1 to {_LONGEST}")
        if self.kind == "frame" and self.length != 1:
            raise UserError("one frame is one frame long; choose a stack or a clip for more")
        if self.kind != "clip" and self.stride != 1:
            raise UserError("only clips have a stride; sample frames for the others")
        if self.kind == "clip" and not 1 <= self.stride <= self.length:
            raise UserError(
                f"clips of {self.length} frames every {self.stride} would leave frames out; give a --clip-stride "
                f"from 1 to {self.length} (frames are left out by --stride, --fps or --frames)"
            )
        if self.grey and self.kind != "stack":
            raise UserError("only the frames of a stack can be grey; give --stack 1 --grey for single ones")

    @property
    def frames(self) -> int:
        """F: of how many frames a row is made."""
        return self.length + (self.kind == "flow")

    @property
    def middle(self) -> int:
        """Which of them stands for the row."""
        return self.frames // 2

    @property
    def channels(self) -> int:
        """C of what a network sees: colours; of a stack or flow stack, those of all its frames or pairs."""
        each = {"frame": 3, "clip": 3, "stack": 1 if self.grey else 3, "flow": 2}[self.kind]
        return each if self.kind == "clip" else each * self.length

    @property
    def depth(self) -> int:
        """Frames that a network sees along time: those of a clip; 1 of the others."""
        return self.length if self.kind == "clip" else 1

    def input_shape(self, size: int) -> tuple[int, ...]:
        """What a network sees of frames of `size` S: (C, S, S), or (3, L, S, S) of a clip."""
        return (self.channels, *((self.length,) if self.kind == "clip" else ()), size, size)

    def describe(self) -> dict[str, Any]:
        """The rule in one canonical form for the fingerprint: equal rules give equal, JSON-able dicts."""
        described: dict[str, Any] = {"kind": self.kind, "length": self.length}
        if self.kind == "clip":
            described["stride"] = self.stride
        return described | ({"grey": True} if self.grey else {})


FRAME = Window()


def window_in(recipe: Mapping[str, Any]) -> Window:
    """What of a video makes one row of a bank, by the recipe in its config: a frame, where that names no window."""
    return Window(**recipe.get("window", {}))


def windows(window: Window, items: Iterable[_T]) -> Iterator[list[_T]]:
    """Put the items of one video, one for each sampled frame in order, together as rows: lists of F items.

    It takes no more items than the next row needs, and keeps at most F.
    """
    if window.kind == "clip":
        return _clips(window, items)
    return _around(window.frames, items)


def seconds_of(window: Window, seconds: list[float]) -> float:
    """The time of a row of which the F frames are shown at `seconds`."""
    return (seconds[0] + seconds[-1]) / 2 if window.kind == "clip" else seconds[window.middle]


def _around(frames: int, items: Iterable[_T]) -> Iterator[list[_T]]:
    """As many rows as items, the ends repeated."""
    row: deque[_T] = deque(maxlen=frames)
    before, after = frames // 2, frames - 1 - frames // 2
    count = 0
    for count, item in enumerate(items, 1):
        row.extend([item] * (1 if row else before + 1))
        if count > after:
            yield list(row)
    if 0 < count < after:  # not even the first row is whole
        row.extend([row[-1]] * (after - count))
    for _ in range(min(count, after)):  # the rows whose later frames never came
        row.append(row[-1])
        yield list(row)


def _clips(window: Window, items: Iterable[_T]) -> Iterator[list[_T]]:
    clip: deque[_T] = deque(maxlen=window.length)
    count = ended = 0  # items so far, and those when the last clip ended
    for count, item in enumerate(items, 1):
        clip.append(item)
        if count >= window.length and (count - window.length) % window.stride == 0:
            yield list(clip)
            ended = count
    if count > ended:
        yield list(clip) + [clip[-1]] * (window.length - len(clip))
