"""Whether a video that was decoded without an error is whole, or lacks data at its end.

It is truncated when any of these holds:

1. its last packet is marked as incomplete by the reader, or its last frame as incomplete by the decoder;
2. where the header counts frames: fewer packets came, and they end more than 1.5 frame intervals before the end that
   the header gives; for AVI, whose end FFmpeg recomputes: fewer came, and the file is shorter than it says;
3. where it counts none but gives a duration: the packets of all streams (sound may outlast the picture) end earlier
   than that, counted from zero, by more than 1.5 frame intervals and more than 0.1 s;
4. the frames are not all there by count, and the file is shorter than its structure says (`pipeline.stated_length`); or
   a GIF does not end with its trailer byte.

Any other difference means that the header miscounts, and the video is whole. What these signs cannot show: a cut
exactly between two packets of a stream without an end (MPEG streams, raw streams, fragments, FLV without duration).
"""

from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import NamedTuple

from pipeline.stated_length import stated_bytes

FALLBACK_FPS = 25.0  # for a video with neither times nor a rate, as FFmpeg assumes it
SHORT_BY_INTERVALS = 1.5  # of a frame: what may be missing at a video's end before it counts as truncated
SHORT_BY_SECONDS = 0.1  # the same where no frames are counted: one packet of sound lasts up to 0.064 s
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"  # FFmpeg's name of it
STATES_DURATION = (MP4, "matroska,webm", "flv", "asf", "mxf")  # in its header; FFmpeg does not have to estimate it
GIF_TRAILER = b";"


class Header(NamedTuple):
    """What a video's header says, as FFmpeg gives it after the last packet. Times in seconds, NaN if unknown."""

    layout: str  # FFmpeg's name of the container
    frames: int  # 0 if it counts none
    fps: float  # 0 if unknown
    end: float  # of the video stream
    duration: float  # of the file


@dataclass
class Seen:
    """What the packets and frames of a video have shown so far."""

    packets: int = 0
    video_end: float = -inf  # seconds, where the video's last packet in presentation order ends
    any_end: float = -inf  # seconds, the same over all streams
    last_packet_corrupt: bool = False
    last_frame_corrupt: bool = False
    last_byte: bytes = b""  # of a GIF


def truncated(path: str, header: Header, seen: Seen) -> bool:
    """Whether a video that decoded without an error to its end lacks data there."""
    if seen.last_packet_corrupt or seen.last_frame_corrupt:
        return True
    if header.layout == "gif":  # whose frames FFmpeg counts itself: the count says nothing
        return seen.last_byte != GIF_TRAILER
    cut = Path(path).stat().st_size < stated_bytes(path, header.layout)
    if 0 < header.frames <= seen.packets and header.layout != MP4:
        return False
    if cut or header.layout == "avi":
        return cut
    slack = SHORT_BY_INTERVALS / (header.fps or FALLBACK_FPS)
    if header.frames > seen.packets:
        return seen.video_end < header.end - slack
    if header.frames == 0 and header.layout in STATES_DURATION and not isnan(header.duration):
        return seen.any_end < header.duration - max(slack, SHORT_BY_SECONDS)
    return False
