"""Small real videos for tests: frames that can be told apart, encoded with PyAV, the same bytes on every run."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipeline.frames import Decoded, Frame, read_frames
from pipeline.sampling import Sampling

ALL = Sampling()
PIXEL_FORMATS = {"gif": "rgb8", "mjpeg": "yuvj420p", "png": "rgb24", "ffv1": "bgr0", "libx264rgb": "rgb24"}
OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "10"},
    "libx264rgb": {"preset": "veryfast", "crf": "0"},
    "libvpx": {"crf": "10", "deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"crf": "10", "deadline": "realtime", "cpu-used": "8"},
}


def pattern(index: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Frame `index` before encoding: a level that rises with the index, the upper left quarter white.

    Returns (H, W, 3) uint8. The level (the median of the lower half) is 8 * index + 16 modulo 224; the white quarter
    shows how a frame was turned.
    """
    width, height = size
    image = np.full((height, width, 3), (8 * index + 16) % 224, np.uint8)
    image[: height // 2, : width // 2] = 255
    return image


def make_clip(
    path: str | Path,
    frames: int = 12,
    size: tuple[int, int] = (64, 48),
    fps: float = 10,
    codec: str = "libx264",
    pts: Sequence[float] | None = None,
    rotation: int = 0,
    colours: Sequence[tuple[int, int, int]] | None = None,
    images: Sequence[np.ndarray] = (),
) -> Path:
    """Encode a clip at `path`, whose suffix chooses the container; missing folders are made. Returns the path.

    size: (width, height) as stored. pts: presentation times in seconds, rising, one per frame; evenly spaced by `fps`
    if not given. rotation: degrees counter-clockwise by which a player turns the stored frames (MP4 and MOV only).
    colours: one flat RGB colour per frame instead of `pattern` (then `frames` is ignored).
    images: the frames themselves, (H, W, 3) uint8 of that size.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = images or [np.full((size[1], size[0], 3), colour, np.uint8) for colour in colours or ()]
    images = images or [pattern(index, size) for index in range(frames)]
    rate = Fraction(fps).limit_denominator(1000)
    time_base = Fraction(1, 1000) if pts is not None else 1 / rate
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:  # no random ids
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        stream.codec_context.options = OPTIONS.get(codec, {})
        if rotation:
            stream.set_display_rotation(rotation)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = time_base
            frame.pts = index if pts is None else round(pts[index] / time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(
    path: str | Path, sampling: Sampling = ALL, kind: str = "video", **options: Any
) -> tuple[list[Frame], Decoded]:
    decoded = Decoded()
    return list(read_frames(str(path), kind, sampling, decoded, **options)), decoded


def levels(frames: list[Frame]) -> list[int]:
    """The index that `pattern` has painted into each frame."""
    return [round((np.median(frame.rgb[frame.rgb.shape[0] // 2 :]) - 16) / 8) for frame in frames]


def plain(path: str | Path) -> list[np.ndarray]:
    """An independent reference: PyAV alone."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.best("video"))]
