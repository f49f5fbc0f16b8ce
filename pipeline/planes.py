"""Frames as decoders store them, YUV 4:2:0 with half the bytes of RGB: sent to a device as they are, made RGB there.

The arithmetic is that of swscale on x86, with which `pipeline.frames` makes RGB on the CPU: steps of 1/8192, rounded
down, a colour for each four pixels repeated. There the two are equal to the last bit; on other machines, for which
swscale has other code, they may differ by two levels of 256. Frames of an odd height, of whose colours swscale
interpolates, do not come as planes.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.frames import MATRICES, Planes

CHUNK_BYTES = 16 << 20  # of planes; while they are prepared, a device has about twenty times as much in work

_BT709, _BT601 = (117489, 138438, 13975, 34925), (104597, 132201, 25675, 53279)
# By FFmpeg's number of the matrix, in 1/65536: red by v, blue by u, green by u and by v.
_MATRICES = dict(
    zip(
        MATRICES,
        (
            _BT709,
            _BT601,  # of those that name none, as swscale assumes it
            (104448, 132798, 24759, 53109),
            _BT601,
            _BT601,
            (117579, 136230, 16907, 35559),
            (110013, 140363, 12277, 42626),
        ),
        strict=True,
    )
)
_STEPS = 8192
_CENTRE = 128  # the byte of no colour


def at_once(planes: Planes) -> int:
    """How many frames like this one are prepared together."""
    return max(1, CHUNK_BYTES // sum(plane.size for plane in planes[:3]))


def alike(one: Planes, other: Planes) -> bool:
    """Whether two frames are of one size and coded alike, so that they may be sent together."""
    return one.y.shape == other.y.shape and one[3:] == other[3:]


def to_rgb(frames: Sequence[Planes], device: torch.device) -> Tensor:
    """Frames that are `alike`, N of them -> (N, 3, H, W) float32 RGB on a device, whole numbers from 0 to 255."""
    y, u, v = (_sent(planes, device).float() for planes in zip(*(frame[:3] for frame in frames), strict=True))
    luma, by_v, by_u, green_u, green_v = _steps(frames[0].matrix, frames[0].full_range)
    if not frames[0].full_range:
        y -= 16
    u, v = u - _CENTRE, v - _CENTRE
    colours = torch.stack(
        [_scaled(v, by_v), _scaled(u, green_u) + _scaled(v, green_v), _scaled(u, by_u)], dim=1
    )  # (N, 3, H/2, ⌈W/2⌉)
    rgb = F.interpolate(colours, scale_factor=2, mode="nearest")[..., : y.shape[2]]
    return rgb.add_(_scaled(y, luma)[:, None]).clamp_(0, 255)


def _sent(planes: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """N planes as one tensor on a device; a GPU fetches it while this thread goes on."""
    together = torch.empty(len(planes), *planes[0].shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for place, plane in zip(together.numpy(), planes, strict=True):
        np.copyto(place, plane)
    return together.to(device, non_blocking=True)


def _steps(matrix: int, full_range: bool) -> tuple[float, ...]:
    """The factors of brightness and colours, in steps of 1/8192: all products with bytes are exact in float32."""
    red, blue, green_u, green_v = _MATRICES[matrix]
    luma, colours = 1 << 16, (red, blue, -green_u, -green_v)
    if full_range:
        colours = tuple(int(each * 224 / 255) for each in colours)  # type: ignore[assignment]
    else:
        luma = luma * 255 // 219
    return tuple((each * _STEPS + (1 << 15) >> 16) / _STEPS for each in (luma, *colours))


def _scaled(plane: Tensor, factor: float) -> Tensor:
    return (plane * factor).floor_()
