"""One video or one folder of images -> RGB frames with their real times. The only file that knows a decoder.

The rules, for videos (for images see `pipeline.image_folders`):

- Stream: the best video stream as FFmpeg chooses it; a cover picture is no video.
- Pixels: (H, W, 3) uint8 RGB, exactly PyAV's `frame.to_ndarray(format="rgb24")`, turned and mirrored as the file's
  display matrix says; or as they are stored, for `pipeline.planes` to make RGB of. Pixel aspect ratio is ignored;
  interlaced frames are not taken apart; alpha is dropped.
- Order and time: frames in presentation order, each at its real presentation time in seconds, never decreasing. The
  time of the first frame may be anything. A frame without a time gets the previous one plus one frame interval, a
  frame earlier than the previous one gets the previous time; both are counted in `Decoded.times_mended`.
- Size: a video whose header announces more than MAX_PIXELS is refused before decoding; the decoder refuses larger
  frames later on.
- Wholeness: an error while decoding ends the video there; one that decodes without may still lack its end, see
  `pipeline.wholeness`.
"""

import stat
import struct
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import inf, isnan, nan
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData, SideDataContainer
from av.stream import Disposition
from av.video.reformatter import ColorRange, VideoReformatter
from av.video.stream import VideoStream

from pipeline.errors import VideoError
from pipeline.image_folders import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from pipeline.image_folders import MAX_PIXELS as MAX_PIXELS
from pipeline.image_folders import check_pixels, image_header, list_images, read_image
from pipeline.sampling import Sampling, chooser
from pipeline.wholeness import FALLBACK_FPS, Header, Seen, truncated

# What PyAV raises on damaged files, its own FFmpegError apart; a mistake of ours (TypeError, ...) is not among them.
DECODER_ERRORS = (av.FFmpegError, ValueError, RuntimeError, MemoryError, OverflowError, EOFError, OSError)

# Spans and times are compared with this tolerance: sums of times in seconds are not exact in binary.
TIME_TOLERANCE_SECONDS = 1e-6

UNKNOWN_SIZE = f"its pictures have no known size, or more than {MAX_PIXELS:,} pixels"  # FFmpeg does not say which
MP4_FIRST_BOXES = (b"ftyp", b"styp", b"moof")

STORED = ("yuv420p", "yuvj420p")  # layouts of `Planes`
MATRICES = (1, 2, 4, 5, 6, 7, 9)  # BT.709, unspecified, FCC, BT.601 twice, SMPTE 240M, BT.2020
_NO_RGB = np.empty((0, 0, 3), np.uint8)
_AS_IT_IS = (False, 1, 1)
# Not `frame.side_data`: it and the frame would hold each other, and frames would stay until a garbage collection.
_side_data = cast(Callable[[av.VideoFrame], Mapping[str, SideData]], SideDataContainer)


@dataclass(frozen=True)
class Probe:
    """What a header says. Width and height in pixels as stored (before any rotation), duration in seconds."""

    width: int  # 0 if unknown
    height: int
    fps: float  # frames per second, 0 if unknown
    duration: float  # NaN if unknown
    frames_declared: int  # 0 if unknown
    codec: str


@dataclass
class Decoded:
    """What decoding has found out, filled in while `read_frames` runs and final when it is exhausted.

    `fps` and `duration` (seconds) come from the header until the video was decoded to its end, then from its real
    times. A span that ends before the video does leaves them, and its wholeness, as the header says.
    """

    width: int = 0  # pixels of the first frame as shown, that is after rotation
    height: int = 0
    rotation: int = 0  # degrees counter-clockwise by which stored frames are turned to be shown
    fps: float = 0.0  # 0 if unknown
    codec: str = ""
    duration: float = nan
    frames_declared: int = 0  # 0 if the header counts none
    frames_decoded: int = 0
    frames_corrupt: int = 0  # decoded, but with damage that the decoder has covered up
    times_mended: int = 0
    start_time: float = nan  # seconds, of the first frame
    partial: str = ""  # why only a part was read; empty for a whole video


class Planes(NamedTuple):
    """A frame as it is stored, YUV 4:2:0 of 8 bits: brightness for each pixel, colours for each four of them.

    `y` is (H, W), `u` and `v` are (H/2, ⌈W/2⌉) uint8, with any stride between rows; H is even.
    """

    y: np.ndarray
    u: np.ndarray
    v: np.ndarray
    matrix: int  # FFmpeg's number of the matrix that makes RGB of them: one of MATRICES
    full_range: bool  # whether values reach from 0 to 255, not from 16 to 235 (240)


class Frame(NamedTuple):
    """One frame. `rgb` is (H, W, 3) uint8, each frame its own memory, with any stride between rows; it stays valid.

    With `planes`, of its own memory too, `rgb` is empty.
    """

    rgb: np.ndarray
    seconds: float
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses on a frame
    planes: Planes | None = None


class _Incomplete(VideoError):
    """The video is broken, but at least one frame before that is good: it can be banked in part."""


_Pixels = tuple[np.ndarray, Planes | None]
_GetPixels = Callable[[], _Pixels]
_Timed = Generator[tuple[float, _GetPixels], None, None]  # every frame: its time in seconds, and how to get its pixels
_Numbered = Generator[tuple[int, float, _GetPixels], None, None]  # with its index in front


def probe(path: str, kind: str) -> Probe:
    """Read the header of a video (`kind` "video") or of a folder's first image ("images"). VideoError says why not."""
    if kind == "images":
        images = list_images(path)
        width, height, codec = image_header(images[0])
        return Probe(width, height, 0.0, nan, len(images), codec)
    with _open(path) as container:
        stream = _video_stream(container)
        context = stream.codec_context
        rate = float(stream.average_rate or 0)
        return Probe(
            width=context.width,
            height=context.height,
            fps=rate,
            duration=_duration(container, stream),
            frames_declared=stream.frames,
            codec=context.codec.canonical_name,
        )


def read_frames(
    path: str,
    kind: str,
    sampling: Sampling,
    decoded: Decoded,
    *,
    start: float = nan,
    end: float = nan,
    image_fps: float | None = None,
    allow_partial: bool = False,
    indices: Collection[int] | None = None,
    planes: bool = False,
) -> Generator[Frame, None, None]:
    """Yield the sampled frames of a video (`kind` "video") or of a folder of images ("images"), filling in `decoded`.

    start, end: seconds from the first frame, start inclusive, end exclusive, NaN for none. Frames before the span are
    decoded but not converted, nothing is read beyond it. Sampling counts from the span's first frame;
    `Frame.index` counts from the video's. Sampling a fixed number of frames decodes twice, because it counts first.

    image_fps: frames per second of a folder of images: frame i is shown at i / image_fps. Without it the times are
    NaN, and neither a span nor sampling by rate is possible. Images that are not sampled are not opened.

    indices: the frames of these numbers (`Frame.index`) instead of the sampled ones, as far as the video has them;
    nothing is read beyond the last. Later numbers may be added to it until the frame after the last one is asked for.

    planes: give `Frame.planes` where a frame is stored in such and shown as it is stored, else RGB as without.

    Raises VideoError, its message the reason for the ledger, when the video is broken, truncated or has no frame in
    the span. It may come after frames were yielded: those are then not a whole video. With `allow_partial` a broken
    video that has at least one good sampled frame ends quietly instead, and `decoded.partial` says why.
    """
    read: Callable[[Decoded], _Timed]
    if kind == "images":
        rate = image_fps if image_fps is not None and image_fps > 0 else None
        if rate is None and (sampling.fps is not None or not isnan(start) or not isnan(end)):
            raise VideoError("the images have no times; give --image-fps or a column fps in the manifest")
        read = partial(_image_frames, path, rate)
    else:
        read = partial(_video_frames, path, _as_stored if planes else _as_rgb)
    yielded = 0
    try:
        count = None
        if sampling.frames is not None and indices is None:
            count = _count(_within(read(Decoded()), start, end), allow_partial)
        take = chooser(sampling if indices is None else Sampling(), count)
        with closing(_within(read(decoded), start, end)) as span:
            for position, (index, seconds, pixels) in enumerate(span):
                if index in indices if indices is not None else take(position, seconds):
                    rgb, stored = pixels()
                    yield Frame(rgb, seconds, index, stored)
                    yielded += 1
                    if indices is not None and yielded == len(indices):
                        return
    except _Incomplete as error:
        if not allow_partial:
            raise VideoError(f"{error}; --allow-partial banks what decodes") from error
        if not yielded:
            raise VideoError(str(error)) from error
        decoded.partial = str(error)
    if not yielded and indices is None:
        span_words = " ".join(
            f"{word} {value:g} s" for word, value in (("from", start), ("to", end)) if not isnan(value)
        )
        raise VideoError(f"no frame in the span {span_words}; the video lasts {decoded.duration:.3g} s")


def _within(frames: _Timed, start: float, end: float) -> _Numbered:
    """Number the frames and keep those of a span, measured from the first frame; comparing with NaN keeps all."""
    first = nan
    with closing(frames):
        for index, (seconds, pixels) in enumerate(frames):
            first = seconds if index == 0 else first
            if seconds - first >= end - TIME_TOLERANCE_SECONDS:
                return
            if not seconds - first < start - TIME_TOLERANCE_SECONDS:
                yield index, seconds, pixels


def _count(frames: _Numbered, allow_partial: bool) -> int:
    count = 0
    try:
        for _ in frames:
            count += 1
    except _Incomplete:
        if not allow_partial:
            raise
    return count


# --- folders of images -----------------------------------------------------------------------------------------------


def _image_frames(folder: str, fps: float | None, decoded: Decoded) -> _Timed:
    images = list_images(folder)
    decoded.width, decoded.height, decoded.codec = image_header(images[0])
    decoded.frames_declared = len(images)
    if fps is not None:
        decoded.fps, decoded.duration, decoded.start_time = fps, len(images) / fps, 0.0
    for index, path in enumerate(images):
        decoded.frames_decoded = index
        yield (nan if fps is None else index / fps), partial(_nth_image, path, index, len(images))
    decoded.frames_decoded = len(images)


def _nth_image(path: str, index: int, count: int) -> _Pixels:
    try:
        return read_image(path), None
    except VideoError as error:
        kind = _Incomplete if index else VideoError
        raise kind(f"{error} (number {index + 1} of {count})") from error


# --- videos ----------------------------------------------------------------------------------------------------------


def _video_frames(path: str, convert: Callable[[av.VideoFrame, VideoReformatter], _Pixels], decoded: Decoded) -> _Timed:
    with _open(path) as container:
        stream = _video_stream(container)
        # One thread per video: several videos are decoded side by side, which is faster than several threads for each.
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        decoded.fps = float(stream.average_rate or 0)
        decoded.duration = _duration(container, stream)
        decoded.codec = stream.codec_context.codec.canonical_name
        decoded.frames_declared = stream.frames
        interval = 1 / (decoded.fps or FALLBACK_FPS)
        converter = VideoReformatter()
        seen = Seen()
        ends: dict[int, int] = {}
        seconds = nan
        frame = None
        try:
            for frame in _decode(container, stream, seen, ends):
                if decoded.frames_decoded == 0:
                    _describe_first(frame, decoded)
                shown = frame.time
                seconds = _mended(shown, seconds, interval)
                decoded.times_mended += seconds != shown
                decoded.frames_decoded += 1
                seen.last_frame_corrupt = frame.is_corrupt
                decoded.frames_corrupt += seen.last_frame_corrupt
                yield seconds, partial(convert, frame, converter)
        except DECODER_ERRORS as error:
            why = _words(error) if stream.codec_context.width else UNKNOWN_SIZE
            raise _broken(decoded, seen.last_packet_corrupt, why) from error
        if _lacks_its_end(path, container, stream, seen, ends):
            raise _broken(decoded, True, "")
        if frame is None:
            why = "the file holds no picture data" if stream.codec_context.width else UNKNOWN_SIZE
            raise _broken(decoded, False, why)
        if seconds > decoded.start_time:
            decoded.fps = round((decoded.frames_decoded - 1) / (seconds - decoded.start_time), 3)
        lasts = float(frame.duration * (frame.time_base or 0)) or interval
        decoded.duration = seconds + lasts - decoded.start_time


def _decode(
    container: InputContainer, stream: VideoStream, seen: Seen, ends: dict[int, int]
) -> Iterator[av.VideoFrame]:
    """The stream's frames as the decoder yields them. Other streams are read, for where they end, but not decoded.

    ends: filled with where the last packet of each stream ends, by its number, in units of its clock.

    What this does for every packet holds up the other threads, most of which decode: so it counts in whole numbers.
    """
    decode, own, gif = stream.codec_context.decode, stream.index, container.format.name == "gif"
    for packet in container.demux():
        at = packet.dts if packet.pts is None else packet.pts
        number = packet.stream.index  # not `stream_index`, which the packets at the end do not have
        if at is not None:
            end = at + (packet.duration or 0)
            if number not in ends or end > ends[number]:
                ends[number] = end
        if number != own:
            continue
        if packet.size:  # the last packet is an empty one, which makes the decoder hand over the frames it still holds
            seen.packets += 1
            seen.last_packet_corrupt = packet.is_corrupt
            seen.last_byte = bytes(packet)[-1:] if gif else b""
        yield from decode(packet)


def _mended(seconds: float | None, previous: float, interval: float) -> float:
    """A frame's time: one interval after the previous frame's if it has none, and never earlier than that."""
    if seconds is None:
        return 0.0 if isnan(previous) else previous + interval
    return seconds if isnan(previous) else max(seconds, previous)


def _describe_first(frame: av.VideoFrame, decoded: Decoded) -> None:
    decoded.start_time = frame.time or 0.0
    decoded.rotation = round(frame.rotation)
    sideways, _, _ = _orientation(frame)
    decoded.width, decoded.height = (frame.height, frame.width) if sideways else (frame.width, frame.height)


def _orientation(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """How stored pixels are turned to be shown: whether x and y change places, then the steps (1, -1) along y and x.

    FFmpeg's display matrix a b u c d v x y w takes (x, y) to (a x + c y, b x + d y). Angles between quarter turns
    count as the nearest.
    """
    matrix = _side_data(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return _AS_IT_IS
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    sideways = abs(b) > abs(a)
    y_sign, x_sign = (b, c) if sideways else (d, a)
    return sideways, -1 if y_sign < 0 else 1, -1 if x_sign < 0 else 1


def _as_stored(frame: av.VideoFrame, converter: VideoReformatter) -> _Pixels:
    """The frame's planes without a copy, where `planes` can have them (`read_frames`), else as RGB."""
    layout, matrix = frame.format.name, frame.colorspace
    # Of an odd height swscale puts the colours of the last rows elsewhere.
    if layout not in STORED or matrix not in MATRICES or frame.height % 2 or _orientation(frame) != _AS_IT_IS:
        return _as_rgb(frame, converter)
    y, u, v = (
        np.ndarray((plane.height, plane.width), np.uint8, memoryview(plane), strides=(plane.line_size, 1))
        for plane in frame.planes
    )
    return _NO_RGB, Planes(y, u, v, matrix, layout == "yuvj420p" or frame.color_range == ColorRange.JPEG)


def _as_rgb(frame: av.VideoFrame, converter: VideoReformatter) -> _Pixels:
    """The frame as it is shown, (H, W, 3) uint8; without a copy unless it is turned."""
    try:
        image = converter.reformat(frame, format="rgb24", threads=1)
        if image is frame:  # is RGB already, in memory that the decoder may still read: the caller gets a copy
            rgb = frame.to_ndarray()
        else:
            plane = image.planes[0]  # the array keeps it alive
            shape, strides = (image.height, image.width, 3), (plane.line_size, 3, 1)
            rgb = np.ndarray(shape, np.uint8, memoryview(plane), strides=strides)
    except DECODER_ERRORS as error:
        raise VideoError(f"a frame cannot be converted to RGB: {_words(error)}") from error
    sideways, y_step, x_step = orientation = _orientation(frame)
    if orientation == _AS_IT_IS:
        return rgb, None
    turned = rgb.transpose(1, 0, 2) if sideways else rgb
    return np.ascontiguousarray(turned[::y_step, ::x_step]), None


# --- opening, and what a header says ---------------------------------------------------------------------------------


def _open(path: str) -> InputContainer:
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise VideoError("a folder, not a video file")
        if not stat.S_ISREG(status.st_mode):
            raise VideoError("not an ordinary file")  # opening a pipe would wait for ever
        if status.st_size == 0:
            raise VideoError("empty file (0 bytes)")
        # Absolute, so that no name is taken for an address; playlists reach nothing but files.
        container = av.open(
            Path(path).absolute(),
            options={"max_pixels": str(MAX_PIXELS), "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except EOFError as error:
        raise VideoError("the file ends within its header (truncated copy or recording?)") from error
    except av.InvalidDataError as error:
        if _head(path)[4:8] in MP4_FIRST_BOXES:
            raise VideoError("an MP4 file without a usable index (copy or recording not finished?)") from error
        raise VideoError("not a media file that FFmpeg knows, or its header is damaged") from error
    except DECODER_ERRORS as error:
        raise VideoError(f"the file cannot be opened: {_words(error)}") from error
    if container.format.name == "tty":  # FFmpeg renders any .txt as a film of its letters
        container.close()
        raise VideoError("a text file, not a video")
    return container


def _head(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(16)


def _video_stream(container: InputContainer) -> VideoStream:
    """The best video stream that is not a cover picture; VideoError if there is none that can be decoded."""
    best = container.streams.best("video")
    if not isinstance(best, VideoStream):
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(f"no video stream ({' and '.join(kinds)} only)" if kinds else "no video stream, nor any other")
    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not films:
        raise VideoError("only a cover picture, no video")
    stream = best if best in films else films[0]
    if stream.codec_context is None:
        raise VideoError("FFmpeg has no decoder for this video's codec")
    check_pixels(stream.codec_context.width, stream.codec_context.height, "the video")
    return stream


def _duration(container: InputContainer, stream: VideoStream) -> float:
    """Seconds by the header, of the stream or else of the whole file; NaN if it does not say."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration is not None else nan


# --- broken and truncated videos -------------------------------------------------------------------------------------


def _broken(decoded: Decoded, ends_early: bool, why: str) -> VideoError:
    """The error for a video that breaks off: _Incomplete if any frame is good."""
    frames = decoded.frames_decoded
    of_declared = f" of {decoded.frames_declared}" if decoded.frames_declared > frames else ""
    after = f"after {frames}{of_declared} frames" if frames else "before its first frame"
    if ends_early:
        reason = f"the file ends early, {after} (truncated copy or recording?)"
    elif frames:
        reason = f"decoding fails {after}: {why}"
    else:
        reason = f"no frame can be decoded: {why}"
    return _Incomplete(reason) if frames else VideoError(reason)


def _words(error: BaseException) -> str:
    """An error of PyAV or the operating system in one line for people."""
    if isinstance(error, av.InvalidDataError):
        return "the data is damaged"
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _lacks_its_end(
    path: str, container: InputContainer, stream: VideoStream, seen: Seen, ends: Mapping[int, int]
) -> bool:
    """Whether a video that decoded without an error is truncated; `ends` as `_decode` leaves it."""
    seconds = {number: float(end * (container.streams[number].time_base or 0)) for number, end in ends.items()}
    seen.video_end, seen.any_end = seconds.get(stream.index, -inf), max(seconds.values(), default=-inf)
    starts = float((stream.start_time or 0) * (stream.time_base or 0))
    lasts = container.duration / av.time_base if container.duration is not None else nan
    rate = float(stream.average_rate or 0)
    header = Header(container.format.name, stream.frames, rate, starts + _duration(container, stream), lasts)
    return truncated(path, header, seen)
