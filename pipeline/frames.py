"""One video or one folder of images -> RGB frames with their real times. The only file that knows a decoder.

The rules, for videos (for images see `pipeline.image_folders`):

- Stream: the best video stream as FFmpeg chooses it; a cover picture is no video.
- Pixels: (H, W, 3) uint8 RGB, exactly PyAV's `frame.to_ndarray(format="rgb24")`, turned and mirrored as the file's
  display matrix says. Pixel aspect ratio is ignored; interlaced frames are not taken apart; alpha is dropped.
- Order and time: frames in presentation order, each at its real presentation time in seconds, never decreasing. The
  time of the first frame may be anything. A frame without a time gets the previous one plus one frame interval, a
  frame earlier than the previous one gets the previous time; both are counted in `Decoded.times_mended`.
- Size: a video whose header announces more than MAX_PIXELS is refused before decoding; the decoder refuses larger
  frames later on.
- Wholeness: an error while decoding ends the video there. A video that decodes without an error is *truncated* when
  data is missing, that is when any of these holds:
    1. its last packet is marked as incomplete by the reader, or its last frame as incomplete by the decoder;
    2. where the header counts frames: fewer packets came, and they end more than 1.5 frame intervals before the end
       that the header gives; for AVI, whose end FFmpeg recomputes: fewer came, and the file is shorter than it says;
    3. where it counts none but gives a duration: the packets of all streams (sound may outlast the picture) end
       earlier than that, counted from zero, by more than 1.5 frame intervals and more than 0.1 s;
    4. the frames are not all there by count, and the file is shorter than its structure says
       (`pipeline.stated_length`); or a GIF does not end with its trailer byte.
  Any other difference means that the header miscounts, and the video is whole. What these signs cannot show: a cut
  exactly between two packets of a stream without an end (MPEG streams, raw streams, fragments, FLV without duration).
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
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from pipeline.errors import VideoError
from pipeline.image_folders import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from pipeline.image_folders import MAX_PIXELS as MAX_PIXELS
from pipeline.image_folders import check_pixels, image_header, list_images, read_image
from pipeline.sampling import Sampling, chooser
from pipeline.stated_length import stated_bytes

# What PyAV raises on damaged files, its own FFmpegError apart; a mistake of ours (TypeError, ...) is not among them.
DECODER_ERRORS = (av.FFmpegError, ValueError, RuntimeError, MemoryError, OverflowError, EOFError, OSError)

# Spans and times are compared with this tolerance: sums of times in seconds are not exact in binary.
TIME_TOLERANCE_SECONDS = 1e-6

SHORT_BY_INTERVALS = 1.5  # of a frame: what may be missing at a video's end before it counts as truncated
SHORT_BY_SECONDS = 0.1  # the same where no frames are counted: one packet of sound lasts up to 0.064 s
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"  # FFmpeg's name of it
STATES_DURATION = (MP4, "matroska,webm", "flv", "asf", "mxf")  # in its header; FFmpeg does not have to estimate it
GIF_TRAILER = b";"
UNKNOWN_SIZE = f"its pictures have no known size, or more than {MAX_PIXELS:,} pixels"  # FFmpeg does not say which
MP4_FIRST_BOXES = (b"ftyp", b"styp", b"moof")

FALLBACK_FPS = 25.0  # for a video with neither times nor a rate, as FFmpeg assumes it


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


class Frame(NamedTuple):
    """One frame. `rgb` is (H, W, 3) uint8, each frame its own memory, with any stride between rows; it stays valid."""

    rgb: np.ndarray
    seconds: float
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses on a frame


class _Incomplete(VideoError):
    """The video is broken, but at least one frame before that is good: it can be banked in part."""


_ToRgb = Callable[[], np.ndarray]
_Timed = Generator[tuple[float, _ToRgb], None, None]  # every frame: its time in seconds, and how to get its pixels
_Numbered = Generator[tuple[int, float, _ToRgb], None, None]  # with its index in front


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
) -> Generator[Frame, None, None]:
    """Yield the sampled frames of a video (`kind` "video") or of a folder of images ("images"), filling in `decoded`.

    start, end: seconds from the first frame, start inclusive, end exclusive, NaN for none. Frames before the span are
    decoded but not converted, nothing is read beyond it. Sampling counts from the span's first frame;
    `Frame.index` counts from the video's. Sampling a fixed number of frames decodes twice, because it counts first.

    image_fps: frames per second of a folder of images: frame i is shown at i / image_fps. Without it the times are
    NaN, and neither a span nor sampling by rate is possible. Images that are not sampled are not opened.

    indices: the frames of these numbers (`Frame.index`) instead of the sampled ones, as far as the video has them;
    nothing is read beyond the last. Later numbers may be added to it until the frame after the last one is asked for.

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
        read = partial(_video_frames, path)
    yielded = 0
    try:
        count = None
        if sampling.frames is not None and indices is None:
            count = _count(_within(read(Decoded()), start, end), allow_partial)
        take = chooser(sampling if indices is None else Sampling(), count)
        with closing(_within(read(decoded), start, end)) as span:
            for position, (index, seconds, to_rgb) in enumerate(span):
                if index in indices if indices is not None else take(position, seconds):
                    yield Frame(to_rgb(), seconds, index)
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
        for index, (seconds, to_rgb) in enumerate(frames):
            first = seconds if index == 0 else first
            if seconds - first >= end - TIME_TOLERANCE_SECONDS:
                return
            if not seconds - first < start - TIME_TOLERANCE_SECONDS:
                yield index, seconds, to_rgb


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


def _nth_image(path: str, index: int, count: int) -> np.ndarray:
    try:
        return read_image(path)
    except VideoError as error:
        kind = _Incomplete if index else VideoError
        raise kind(f"{error} (number {index + 1} of {count})") from error


# --- videos ----------------------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What the packets and frames of a video have shown so far, by which its wholeness is judged."""

    packets: int = 0
    video_end: float = -inf  # seconds, where the video's last packet in presentation order ends
    any_end: float = -inf  # seconds, the same over all streams
    last_packet_corrupt: bool = False
    last_frame_corrupt: bool = False
    last_byte: bytes = b""


def _video_frames(path: str, decoded: Decoded) -> _Timed:
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
        seen = _Seen()
        seconds = nan
        end = nan
        try:
            for frame in _decode(container, stream, seen):
                if decoded.frames_decoded == 0:
                    _describe_first(frame, decoded)
                seconds = _mended(frame.time, seconds, interval)
                decoded.times_mended += seconds != frame.time
                decoded.frames_decoded += 1
                decoded.frames_corrupt += frame.is_corrupt
                seen.last_frame_corrupt = frame.is_corrupt
                end = seconds + (float(frame.duration * (frame.time_base or 0)) or interval)
                yield seconds, partial(_rgb, frame, converter)
        except DECODER_ERRORS as error:
            why = _words(error) if stream.codec_context.width else UNKNOWN_SIZE
            raise _broken(decoded, seen.last_packet_corrupt, why) from error
        if _truncated(path, container, stream, seen):
            raise _broken(decoded, True, "")
        if decoded.frames_decoded == 0:
            why = "the file holds no picture data" if stream.codec_context.width else UNKNOWN_SIZE
            raise _broken(decoded, False, why)
        if seconds > decoded.start_time:
            decoded.fps = round((decoded.frames_decoded - 1) / (seconds - decoded.start_time), 3)
        decoded.duration = end - decoded.start_time


def _decode(container: InputContainer, stream: VideoStream, seen: _Seen) -> Iterator[av.VideoFrame]:
    """The stream's frames as the decoder yields them. Other streams are read, for where they end, but not decoded."""
    for packet in container.demux():
        at = packet.dts if packet.pts is None else packet.pts
        if at is not None:
            seen.any_end = max(seen.any_end, float((at + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != stream.index:
            continue
        if packet.size:  # the last packet is an empty one, which makes the decoder hand over the frames it still holds
            seen.packets += 1
            seen.last_packet_corrupt = packet.is_corrupt
            seen.last_byte = bytes(packet)[-1:] if container.format.name == "gif" else b""
            if at is not None:
                seen.video_end = max(seen.video_end, float((at + (packet.duration or 0)) * packet.time_base))
        yield from stream.codec_context.decode(packet)


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
    # Not `frame.side_data`: it and the frame would hold each other, and frames would stay until a garbage collection.
    container = cast(Callable[[av.VideoFrame], Mapping[str, SideData]], SideDataContainer)
    matrix = container(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return False, 1, 1
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    sideways = abs(b) > abs(a)
    y_sign, x_sign = (b, c) if sideways else (d, a)
    return sideways, -1 if y_sign < 0 else 1, -1 if x_sign < 0 else 1


def _rgb(frame: av.VideoFrame, converter: VideoReformatter) -> np.ndarray:
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
    sideways, y_step, x_step = _orientation(frame)
    if (sideways, y_step, x_step) == (False, 1, 1):
        return rgb
    turned = rgb.transpose(1, 0, 2) if sideways else rgb
    return np.ascontiguousarray(turned[::y_step, ::x_step])


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


def _truncated(path: str, container: InputContainer, stream: VideoStream, seen: _Seen) -> bool:
    """Whether a video that decoded without an error lacks data at its end: the four signs in the module's docstring."""
    layout = container.format.name
    if seen.last_packet_corrupt or seen.last_frame_corrupt:
        return True
    if layout == "gif":  # whose frames FFmpeg counts itself: the count says nothing
        return seen.last_byte != GIF_TRAILER
    cut = Path(path).stat().st_size < stated_bytes(path, layout)
    if 0 < stream.frames <= seen.packets and layout != MP4:
        return False
    if cut or layout == "avi":
        return cut
    slack = SHORT_BY_INTERVALS / (float(stream.average_rate or 0) or FALLBACK_FPS)
    if stream.frames > seen.packets:
        starts = float((stream.start_time or 0) * (stream.time_base or 0))
        return seen.video_end < starts + _duration(container, stream) - slack
    if stream.frames == 0 and layout in STATES_DURATION and container.duration is not None:
        return seen.any_end < container.duration / av.time_base - max(slack, SHORT_BY_SECONDS)
    return False
