"""How long a media file is by its own outermost structure: a file that is shorter was cut, in copying or recording.

Only where the structure is reliable, and only its outermost level is read:

- Matroska, WebM: the Segment element states its size, unless it was recorded live (RFC 8794, RFC 9559).
- AVI: the first RIFF chunk states its size; files beyond 1 GB have more of them, which are not followed.
- WMV and the rest of ASF: the data object states its size.
- Fragmented MP4: every box states its size. An MP4 with one index for the whole file is not judged here: its index
  counts the frames, and some writers announce more data than there is.
- MPEG transport stream: whole packets of 188, 192 or 204 bytes.
- MPEG program stream: the packets after the last pack header state their sizes.
"""

from collections.abc import Callable
from io import SEEK_CUR, SEEK_END
from pathlib import Path
from typing import BinaryIO

TRANSPORT_PACKET_BYTES = (188, 192, 204)
MATROSKA_SEGMENT = bytes.fromhex("18538067")
MP4_BOX_HEADER_BYTES = 8
ASF_OBJECT_HEADER_BYTES = 24
PACK_START = b"\x00\x00\x01\xba"
PACK_TAIL_BYTES = 2**17  # holds the last pack header: a PES packet has at most 64 KiB
PES_IDS = range(0xBB, 0x100)  # the start codes that are followed by a length: system header, padding, sound, picture


def stated_bytes(path: str, layout: str) -> int:
    """The file's length in bytes by its structure; 0 if that says nothing. `layout`: FFmpeg's name of the container."""
    reader = _READERS.get(layout)
    if reader is None:
        return 0
    with Path(path).open("rb") as file:
        return reader(file)


def _matroska_bytes(file: BinaryIO) -> int:
    _vint(file)
    file.seek(_vint(file)[0], SEEK_CUR)  # over the body of the EBML header
    if file.read(len(MATROSKA_SEGMENT)) != MATROSKA_SEGMENT:
        return 0
    size, known = _vint(file)
    return file.tell() + size if known else 0


def _vint(file: BinaryIO) -> tuple[int, bool]:
    """Read one EBML variable-size integer: its value, and whether it is a value (all ones means unknown)."""
    first = file.read(1) or b"\x01"
    length = 9 - first[0].bit_length()
    ones = (1 << 7 * length) - 1
    value = int.from_bytes(first + file.read(length - 1), "big") & ones
    return value, value != ones


def _avi_bytes(file: BinaryIO) -> int:
    return 8 + int.from_bytes(file.read(8)[4:], "little")


def _asf_bytes(file: BinaryIO) -> int:
    """The header object comes first, the data object second; a live recording leaves the data's size at 0."""
    file.seek(int.from_bytes(file.read(ASF_OBJECT_HEADER_BYTES)[16:], "little"))
    start = file.tell()
    return start + int.from_bytes(file.read(ASF_OBJECT_HEADER_BYTES)[16:], "little")


def _mp4_bytes(file: BinaryIO) -> int:
    fragmented = False
    end = 0
    while header := file.read(MP4_BOX_HEADER_BYTES):
        size, kind = int.from_bytes(header[:4], "big"), header[4:]
        if size == 1:  # a 64-bit size follows
            size = int.from_bytes(file.read(8), "big")
        if len(header) < MP4_BOX_HEADER_BYTES:
            end += MP4_BOX_HEADER_BYTES
            break
        if size < MP4_BOX_HEADER_BYTES:  # 0: up to the end of the file; anything else is damage
            break
        fragmented = fragmented or kind == b"moof"
        if kind == b"moov":
            fragmented = fragmented or b"mvex" in file.read(size - (file.tell() - end))
        end += size
        file.seek(end)
    return end if fragmented else 0


def _transport_bytes(file: BinaryIO) -> int:
    size = file.seek(0, SEEK_END)
    return min(-(-size // packet) * packet for packet in TRANSPORT_PACKET_BYTES)


def _program_bytes(file: BinaryIO) -> int:
    size = file.seek(0, SEEK_END)
    start = file.seek(max(0, size - PACK_TAIL_BYTES))
    tail = file.read()
    at = tail.rfind(PACK_START)
    if at < 0 or at + 14 > len(tail):  # a cut within the pack header is too small to matter
        return 0
    at += 14 + (tail[at + 13] & 7) if tail[at + 4] & 0xC0 == 0x40 else 12  # MPEG-2 or MPEG-1
    while tail[at : at + 3] == PACK_START[:3] and at + 6 <= len(tail) and tail[at + 3] in PES_IDS:
        at += 6 + int.from_bytes(tail[at + 4 : at + 6], "big")
    return start + at


_READERS: dict[str, Callable[[BinaryIO], int]] = {
    "matroska,webm": _matroska_bytes,
    "avi": _avi_bytes,
    "asf": _asf_bytes,
    "mov,mp4,m4a,3gp,3g2,mj2": _mp4_bytes,
    "mpegts": _transport_bytes,
    "mpeg": _program_bytes,
}
