"""Frames are all there, exact and at their real times; what is broken says so, and nothing crashes or hangs."""

import csv
import os
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from math import nan
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from pipeline.errors import VideoError
from pipeline.frames import Decoded, Frame, _mended, probe, read_frames
from pipeline.sampling import Sampling
from tests.clips import make_clip, pattern

ALL = Sampling()


def read(path, sampling=ALL, kind="video", **options) -> tuple[list[Frame], Decoded]:
    decoded = Decoded()
    return list(read_frames(str(path), kind, sampling, decoded, **options)), decoded


def levels(frames: list[Frame]) -> list[int]:
    """The index that `pattern` has painted into each frame."""
    return [round((np.median(frame.rgb[frame.rgb.shape[0] // 2 :]) - 16) / 8) for frame in frames]


def plain(path) -> list[np.ndarray]:
    """An independent reference: PyAV alone."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.best("video"))]


def remux(source: Path, target: Path, **options: str) -> Path:
    """The same packets in another file."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                new.mux(packet)
    return target


def cut(path: Path, bytes_kept: int) -> Path:
    shorter = path.with_name(f"cut_{path.name}")
    shorter.write_bytes(path.read_bytes()[:bytes_kept])
    return shorter


# --- whole videos ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),  # with B-frames: decoding order is not presentation order
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
        ("a.ts", "libx264"),
        ("a.flv", "libx264"),
        ("a.mov", "mjpeg"),
        ("a.mpg", "mpeg2video"),
        ("a.wmv", "wmv2"),
    ],
)
def test_every_frame_in_order_at_its_time(tmp_path, name, codec):
    path = make_clip(tmp_path / name, frames=20, fps=25, codec=codec)
    frames, decoded = read(path)
    assert levels(frames) == list(range(20))
    assert [frame.index for frame in frames] == list(range(20))
    seconds = np.array([frame.seconds for frame in frames])
    assert seconds - seconds[0] == pytest.approx(np.arange(20) / 25, abs=0.0011)  # whole milliseconds in some
    assert (decoded.width, decoded.height, decoded.frames_decoded) == (64, 48, 20)
    assert decoded.fps == pytest.approx(25, abs=0.1)
    assert decoded.duration == pytest.approx(0.8, abs=0.01)
    assert decoded.start_time == seconds[0]
    assert (decoded.partial, decoded.frames_corrupt, decoded.times_mended) == ("", 0, 0)


@pytest.mark.parametrize(("size", "codec"), [((64, 48), "libx264"), ((66, 50), "libx264"), ((37, 23), "ffv1")])
def test_pixels_are_those_of_pyav(tmp_path, size, codec):
    path = make_clip(tmp_path / "a.mkv", size=size, codec=codec)
    for frame, reference in zip(read(path)[0], plain(path), strict=True):
        assert frame.rgb.dtype == np.uint8
        np.testing.assert_array_equal(frame.rgb, reference)


def test_a_codec_that_is_rgb_already(tmp_path):
    path = make_clip(tmp_path / "a.mov", codec="png", size=(37, 23))
    for index, frame in enumerate(read(path)[0]):
        np.testing.assert_array_equal(frame.rgb, pattern(index, (37, 23)))
        assert frame.rgb.flags.writeable


def test_a_frame_stays_valid_after_the_next_and_after_the_end(tmp_path):
    path = make_clip(tmp_path / "a.mp4", frames=6)
    kept = [(frame.rgb, frame.rgb.copy()) for frame in read_frames(str(path), "video", ALL, Decoded())]
    for rgb, copy in kept:
        np.testing.assert_array_equal(rgb, copy)


def test_variable_frame_rate_and_real_times(tmp_path):
    times = [0.5, 0.6, 1.0, 1.9, 2.0, 4.25]
    frames, decoded = read(make_clip(tmp_path / "a.mkv", frames=6, pts=times))
    assert [frame.seconds for frame in frames] == pytest.approx(times)
    assert decoded.start_time == 0.5
    assert decoded.fps == pytest.approx(5 / 3.75, abs=0.001)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(tmp_path, rotation):
    path = make_clip(tmp_path / "a.mp4", rotation=rotation)
    frames, decoded = read(path)
    for frame, stored in zip(frames, plain(path), strict=True):
        np.testing.assert_array_equal(frame.rgb, np.rot90(stored, rotation // 90))  # both counter-clockwise
        assert frame.rgb.flags.c_contiguous
    assert (decoded.height, decoded.width) == frames[0].rgb.shape[:2]
    assert decoded.rotation % 360 == rotation
    assert (probe(str(path), "video").width, probe(str(path), "video").height) == (64, 48)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", ["hflip", "vflip"])
def test_mirrored_videos_are_mirrored(tmp_path, rotation, flip):
    """PyAV's `rotation` alone would turn a mirrored video upside down."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(rotation, **{flip: True})
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pattern(0), format="rgb24")))
        container.mux(stream.encode(None))
    (stored,) = plain(path)
    expected = np.rot90(stored, rotation // 90)
    expected = expected[:, ::-1] if flip == "hflip" else expected[::-1]
    np.testing.assert_array_equal(read(path)[0][0].rgb, expected)


def test_a_video_without_times_gets_them_from_its_rate(tmp_path):
    frames, decoded = read(make_clip(tmp_path / "a.h264", frames=8, fps=25))
    assert levels(frames) == list(range(8))
    assert [frame.seconds for frame in frames] == pytest.approx(np.arange(8) / 25)
    assert decoded.times_mended == 8


def test_times_are_mended_as_stated():
    assert _mended(None, nan, 0.1) == 0.0
    assert _mended(None, 2.0, 0.1) == 2.1
    assert _mended(1.9, 2.0, 0.1) == 2.0
    assert _mended(-3.0, nan, 0.1) == -3.0
    assert _mended(2.5, 2.0, 0.1) == 2.5


def test_decoding_side_by_side_changes_nothing(tmp_path):
    path = make_clip(tmp_path / "a.mp4", size=(160, 120), frames=30)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: [frame.rgb for frame in read(path)[0]], range(8)))
    for result in results:
        np.testing.assert_array_equal(result, results[0])


def test_probe_reads_the_header(tmp_path):
    header = probe(str(make_clip(tmp_path / "a.mp4", frames=12, fps=10)), "video")
    assert (header.width, header.height, header.frames_declared, header.codec) == (64, 48, 12, "h264")
    assert (header.fps, header.duration) == pytest.approx((10, 1.2))
    header = probe(str(make_clip(tmp_path / "a.webm", codec="libvpx")), "video")
    assert (header.frames_declared, header.codec, header.duration) == (0, "vp8", pytest.approx(1.2))
    assert np.isnan(probe(str(make_clip(tmp_path / "a.h264")), "video").duration)


# --- sampling and spans ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(stride=5), [0, 5, 10]),
        (Sampling(fps=2), [0, 5, 10]),
        (Sampling(frames=3), [2, 6, 10]),
        (Sampling(frames=99), list(range(12))),
    ],
)
def test_sampling(tmp_path, sampling, expected):
    frames, decoded = read(make_clip(tmp_path / "a.mp4"), sampling)
    assert [frame.index for frame in frames] == levels(frames) == expected
    assert [frame.seconds for frame in frames] == pytest.approx(np.array(expected) / 10)
    assert decoded.frames_decoded == 12


@pytest.mark.parametrize(
    ("span", "sampling", "expected"),
    [
        ({"start": 0.4, "end": 0.8}, ALL, [4, 5, 6, 7]),  # start inclusive, end exclusive
        ({"start": 0.35}, ALL, [4, 5, 6, 7, 8, 9, 10, 11]),
        ({"end": 0.25}, ALL, [0, 1, 2]),
        ({"start": 0.3, "end": 1.0}, Sampling(stride=3), [3, 6, 9]),
        ({"start": 0.3, "end": 1.1}, Sampling(frames=2), [5, 9]),
        ({"start": 0.3, "end": 99.0}, Sampling(fps=5), [3, 5, 7, 9, 11]),
    ],
)
@pytest.mark.parametrize("first", [0.0, 8.333])
def test_a_span_counts_from_the_first_frame(tmp_path, span, sampling, expected, first):
    path = make_clip(tmp_path / "a.mkv", pts=[first + index / 10 for index in range(12)])
    frames, decoded = read(path, sampling, **span)
    assert [frame.index for frame in frames] == levels(frames) == expected
    assert decoded.start_time == pytest.approx(first)


def test_nothing_is_read_beyond_a_span(tmp_path):
    _, decoded = read(make_clip(tmp_path / "a.mp4", frames=60), end=0.5)
    assert decoded.frames_decoded == 6  # five, and the one that lies beyond
    assert decoded.duration == pytest.approx(6)  # by the header


@pytest.mark.parametrize("sampling", [ALL, Sampling(frames=4)])
def test_an_empty_span_is_an_error(tmp_path, sampling):
    with pytest.raises(VideoError, match=r"no frame in the span from 5 s to 6 s; the video lasts 1\.2 s"):
        read(make_clip(tmp_path / "a.mp4"), sampling, start=5.0, end=6.0)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
@pytest.mark.parametrize("sampling", [ALL, Sampling(frames=4)])
def test_a_video_left_early_is_closed(tmp_path, sampling):
    path = make_clip(tmp_path / "a.mp4")
    frames = read_frames(str(path), "video", sampling, Decoded())
    next(frames)
    frames.close()
    assert not [link for link in Path("/proc/self/fd").iterdir() if link.exists() and link.resolve() == path.resolve()]


# --- truncated videos, and headers that miscount ---------------------------------------------------------------------


TRUNCATED = [
    ("front.mp4", "libx264", 25),
    ("front.mov", "mjpeg", 25),
    ("fragmented.mp4", "libx264", 25),
    ("a.mkv", "libx264", 25),
    ("a.webm", "libvpx-vp9", 25),
    ("b.webm", "libvpx", 25),
    ("a.avi", "mpeg4", 25),
    ("a.ts", "libx264", 25),
    ("a.flv", "libx264", 25),
    ("a.gif", "gif", 10),
    ("a.mpg", "mpeg2video", 25),
    ("a.wmv", "wmv2", 25),
    ("a.mxf", "mpeg2video", 25),
]


def noisy_colours(count: int) -> list[tuple[int, int, int]]:
    draw = random.Random(0)
    return [(draw.randrange(256), draw.randrange(256), draw.randrange(256)) for _ in range(count)]


@pytest.fixture(scope="module")
def whole_clips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    clips = {}
    for name, codec, fps in TRUNCATED:
        path = make_clip(folder / name, size=(160, 120), fps=fps, codec=codec, colours=noisy_colours(50))
        if path.stem == "front":
            path = remux(path, folder / f"re_{name}", movflags="faststart")
        if path.stem == "fragmented":
            path = remux(path, folder / f"re_{name}", movflags="frag_keyframe+empty_moov", frag_duration="500000")
        clips[name] = path
    return clips


@pytest.mark.parametrize("name", [name for name, _, _ in TRUNCATED])
def test_a_truncated_video_is_refused_or_banked_in_part(whole_clips, name):
    path = whole_clips[name]
    whole, decoded = read(path)
    assert len(whole) == 50
    assert decoded.partial == ""
    size = path.stat().st_size
    refused = partly = 0
    for percent in range(15, 96, 4):
        shorter = cut(path, size * percent // 100 | 1)  # an odd size: in the middle of something
        try:
            reached = len(read(shorter)[0])
        except VideoError:
            refused += 1
        else:
            assert reached == 50, f"cut to {percent} %, {reached} frames of 50 were taken for the whole"
            continue
        try:
            frames, decoded = read(shorter, allow_partial=True)
        except VideoError:
            continue  # not even one frame
        partly += 1
        assert 0 < len(frames) == decoded.frames_decoded <= 50
        assert "ends early" in decoded.partial or "decoding fails" in decoded.partial
        if len(frames) > 1:  # the last one may be damaged
            np.testing.assert_array_equal(frames[0].rgb, whole[0].rgb)
    assert refused >= 10
    assert partly >= 8 or name == "a.mxf" or name == "fragmented.mp4"


@pytest.mark.parametrize("name", ["front.mp4", "a.mkv", "a.avi", "a.webm"])
def test_a_cut_exactly_between_two_frames_is_seen(whole_clips, name):
    path = whole_clips[name]
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[30]
        boundary = packet.pos
    with pytest.raises(VideoError, match="ends early, after"):
        read(cut(path, boundary))


def test_the_reason_counts_and_names_the_way_out(whole_clips):
    path = whole_clips["front.mp4"]
    with pytest.raises(
        VideoError,
        match=r"^the file ends early, after \d+ of 50 frames \(truncated copy or recording\?\); "
        r"--allow-partial banks what decodes$",
    ):
        read(cut(path, path.stat().st_size * 6 // 10))
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
    with pytest.raises(VideoError, match="ends early, before its first frame"):
        read(cut(path, first.pos + 1), allow_partial=True)


def test_a_partial_video_is_sampled_by_the_frames_there_are(whole_clips):
    path = whole_clips["a.mkv"]
    shorter = cut(path, path.stat().st_size * 6 // 10)
    everything, _ = read(shorter, allow_partial=True)
    frames, decoded = read(shorter, Sampling(frames=3), allow_partial=True)
    assert [frame.index for frame in frames] == [int((part + 0.5) * len(everything) / 3) for part in range(3)]
    assert "ends early" in decoded.partial
    with pytest.raises(VideoError, match="--allow-partial"):
        read(shorter, Sampling(frames=3))
    with pytest.raises(VideoError, match="ends early"):
        read(shorter, start=1.9, allow_partial=True)  # the span lies beyond what is there
    frames, decoded = read(shorter, end=0.4)  # and this one within it
    assert len(frames) == 10
    assert decoded.partial == ""


def test_a_header_that_miscounts_is_no_truncation(tmp_path):
    path = make_clip(tmp_path / "a.avi", codec="mpeg4")
    data = bytearray(path.read_bytes())
    length = data.index(b"strh") + 8 + 32  # dwLength of the stream header: frames
    assert int.from_bytes(data[length : length + 4], "little") == 12
    data[length : length + 4] = (20).to_bytes(4, "little")
    path.write_bytes(data)
    frames, decoded = read(path)
    assert (len(frames), decoded.frames_declared, decoded.partial) == (12, 20, "")


def test_a_live_recording_states_neither_size_nor_duration(tmp_path):
    path = remux(make_clip(tmp_path / "a.mp4"), tmp_path / "live.mkv", live="1")
    assert np.isnan(probe(str(path), "video").duration)
    frames, decoded = read(path)
    assert len(frames) == 12
    assert decoded.duration == pytest.approx(1.2)


def test_a_trimmed_clip_is_whole(tmp_path):
    """Phones trim by an edit list: all packets are there and fewer frames are shown."""
    path = make_clip(tmp_path / "a.mp4", frames=50)
    data = bytearray(path.read_bytes())
    duration = data.index(b"elst") + 12
    data[duration : duration + 4] = (2000).to_bytes(4, "big")  # ms of 5000
    path.write_bytes(data)
    frames, decoded = read(path)
    assert levels(frames) == list(range(20))
    assert decoded.partial == ""


# --- what is no video ------------------------------------------------------------------------------------------------


def write_sound(path: Path, cover: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("mp3" if path.suffix == ".mp3" else "aac", rate=16000)
        picture = None
        if cover:
            picture = container.add_stream("mjpeg")
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pattern(0), format="rgb24")))
            container.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


def gif_announcing(path: Path, width: int, height: int) -> Path:
    data = bytearray(make_clip(path, codec="gif").read_bytes())
    data[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    path.write_bytes(data)
    return path


def test_what_is_no_video_says_what_it_is(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.txt").write_text("not a film\n" * 50)
    (tmp_path / "noise.mp4").write_bytes(random.Random(1).randbytes(5000))
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    clip = make_clip(tmp_path / "clip.mp4")
    cases = {
        tmp_path / "absent.mp4": "there is no such file",
        tmp_path / "empty.mp4": "empty file (0 bytes)",
        tmp_path: "a folder, not a video file",
        tmp_path / "pipe.mp4": "not an ordinary file",
        tmp_path / "loop.mp4": "cannot be opened",
        tmp_path / "text.txt": "a text file, not a video",
        tmp_path / "noise.mp4": "not a media file that FFmpeg knows",
        tmp_path / "nul\0.mp4": "cannot be opened",
        cut(clip, 800): "an MP4 file without a usable index",
        write_sound(tmp_path / "sound.m4a"): "no video stream (audio only)",
        write_sound(tmp_path / "cover.mp3", cover=True): "only a cover picture, no video",
    }
    for path, reason in cases.items():
        for call in (lambda path=path: probe(str(path), "video"), lambda path=path: read(path, allow_partial=True)):
            with pytest.raises(VideoError, match=re.escape(reason)) as caught:
                call()
            assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = make_clip(tmp_path / "a.mp4")
    path.chmod(0)
    with pytest.raises(VideoError, match="cannot be opened: Permission denied"):
        read(path)


def test_pictures_beyond_the_cap_are_never_decoded(tmp_path, monkeypatch):
    with pytest.raises(VideoError, match="no known size, or more than 67,108,864 pixels"):
        read(gif_announcing(tmp_path / "huge.gif", 12336, 12336))
    path = make_clip(tmp_path / "a.mp4", size=(640, 480))
    monkeypatch.setattr("pipeline.frames.MAX_PIXELS", 64 * 48)  # the decoder's own cap
    with pytest.raises(VideoError, match="no frame can be decoded"):
        read(path)
    monkeypatch.setattr("pipeline.image_folders.MAX_PIXELS", 64 * 48)  # by the announced size
    for call in (probe, lambda path, kind: read(path)):
        with pytest.raises(VideoError, match="the video has 640×480 pixels; framebank reads up to 3,072"):
            call(str(path), "video")


@pytest.mark.parametrize("name", ["-dash.mp4", "http:colon.mp4", "%03d.mp4", "é ü 名.mp4", "concat:a|b.mp4"])
def test_odd_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_clip(Path("plain.mp4")).rename(name)
    assert len(read(name)[0]) == 12


def test_a_name_that_is_not_unicode(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    try:
        make_clip(tmp_path / "a.mp4").rename(name)
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    assert len(read(name)[0]) == 12


def test_decoders_write_nothing_to_the_terminal(whole_clips, capfd):
    for path in whole_clips.values():
        with pytest.raises(VideoError):
            read(cut(path, path.stat().st_size // 2 | 1))
    assert capfd.readouterr() == ("", "")


# --- folders of images -----------------------------------------------------------------------------------------------


def folder_of(folder: Path, **images: Image.Image) -> Path:
    folder.mkdir()
    for name, image in images.items():
        image.save(folder / re.sub("_(?=[a-z]+$)", ".", name))
    return folder


def flat(mode: str, colour, size=(8, 6)) -> Image.Image:
    return Image.new(mode, size, colour)


def test_images_in_natural_order_without_times(tmp_path):
    folder = folder_of(
        tmp_path / "a", f10_png=flat("L", 30), f2_jpg=flat("L", 20), F1_bmp=flat("L", 10), f11_webp=flat("L", 40)
    )
    (folder / "notes.txt").write_text("no image")
    (folder / ".f0.png").write_bytes(b"hidden")
    frames, decoded = read(folder, kind="images")
    assert [round(frame.rgb.mean() / 10) for frame in frames] == [1, 2, 3, 4]
    assert np.isnan([frame.seconds for frame in frames]).all()
    assert (decoded.frames_declared, decoded.frames_decoded, decoded.fps) == (4, 4, 0)
    header = probe(str(folder), "images")
    assert (header.width, header.height, header.frames_declared, header.codec) == (8, 6, 4, "bmp")


def test_image_modes_become_rgb(tmp_path):
    palette = flat("P", 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.info["transparency"] = 0
    cases = {
        "grey": (flat("L", 77), (77, 77, 77)),
        "grey_alpha": (flat("LA", (77, 9)), (77, 77, 77)),
        "rgba": (flat("RGBA", (1, 2, 3, 0)), (1, 2, 3)),
        "palette": (palette, (200, 100, 50)),
        "bilevel": (flat("1", 1), (255, 255, 255)),
        "grey16": (Image.fromarray(np.full((6, 8), 0x8123, np.uint16)), (0x81, 0x81, 0x81)),
        "cmyk": (flat("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
    }
    for name, (image, colour) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        image.save(folder / ("a.tif" if image.mode == "CMYK" else "a.png"))
        ((rgb, _, _),), _ = read(folder, kind="images")
        assert rgb.shape == (6, 8, 3)
        assert rgb.dtype == np.uint8
        assert (rgb == colour).all(), name


def test_exif_orientation_and_mixed_sizes(tmp_path):
    folder = folder_of(tmp_path / "a", b_png=flat("RGB", 0, (20, 10)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter clockwise to be shown
    Image.fromarray(pattern(0, (64, 48))).save(folder / "a.png", exif=exif)
    frames, decoded = read(folder, kind="images")
    np.testing.assert_array_equal(frames[0].rgb, np.rot90(pattern(0, (64, 48)), -1))
    assert frames[1].rgb.shape == (10, 20, 3)
    assert (decoded.width, decoded.height) == (48, 64)


def test_images_with_a_rate_have_times_spans_and_sampling(tmp_path):
    images = {f"f{index}_png": flat("L", index) for index in range(10)}
    folder = folder_of(tmp_path / "a", **images)
    frames, decoded = read(folder, kind="images", image_fps=5.0, start=0.4, end=1.6)
    assert [(frame.index, frame.seconds) for frame in frames] == [(index, index / 5) for index in range(2, 8)]
    assert (decoded.fps, decoded.duration, decoded.start_time) == (5.0, 2.0, 0.0)
    assert [frame.index for frame in read(folder, Sampling(frames=2), "images")[0]] == [2, 7]
    assert [frame.index for frame in read(folder, Sampling(fps=1), "images", image_fps=5.0)[0]] == [0, 5]
    for sampling, span in ((Sampling(fps=1), {}), (ALL, {"start": 1.0}), (ALL, {"end": 1.0, "image_fps": nan})):
        with pytest.raises(VideoError, match="--image-fps"):
            read(folder, sampling, "images", **span)


def test_one_broken_image_fails_the_folder_or_ends_it(tmp_path):
    folder = folder_of(tmp_path / "a", **{f"f{index}_png": flat("RGB", 9, (200, 200)) for index in range(5)})
    cut(folder / "f3.png", 100).rename(folder / "f3.png")
    with pytest.raises(VideoError, match=r"image f3.png cannot be read: .* \(number 4 of 5\); --allow-partial"):
        read(folder, kind="images")
    frames, decoded = read(folder, kind="images", allow_partial=True)
    assert len(frames) == decoded.frames_decoded == 3
    assert "f3.png" in decoded.partial
    assert len(read(folder, Sampling(stride=2), "images")[0]) == 3  # it is not opened
    (folder / "f0.png").write_bytes(b"")
    with pytest.raises(VideoError, match=r"image f0.png cannot be read"):
        read(folder, kind="images", allow_partial=True)


def test_folders_and_images_that_cannot_be_taken(tmp_path, monkeypatch):
    with pytest.raises(VideoError, match="the folder cannot be read: No such file"):
        probe(str(tmp_path / "absent"), "images")
    (tmp_path / "none").mkdir()
    with pytest.raises(VideoError, match="holds no images"):
        read(tmp_path / "none", kind="images")
    deep = folder_of(tmp_path / "deep", a_tif=Image.fromarray(np.zeros((4, 4), np.float32)))
    with pytest.raises(VideoError, match="32 bits per pixel"):
        read(deep, kind="images")
    large = folder_of(tmp_path / "large", a_png=Image.new("1", (12336, 12336)))
    with pytest.raises(VideoError, match="pixels"):
        probe(str(large), "images")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit, were it lower than ours
    with pytest.raises(VideoError, match="pixels"):
        read(large, kind="images")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(VideoError, match="12336×12336 pixels"):
        read(large, kind="images")


# --- anything at all -------------------------------------------------------------------------------------------------


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Truncate, flip bytes, zero a run, or splice one part over another."""
    changed = bytearray(data)
    at, other = draw.randrange(len(data)), draw.randrange(len(data))
    length = draw.choice([1, 16, 256, len(data) // 4])
    kind = draw.choice(["truncate", "flip", "zero", "splice"])
    if kind == "truncate":
        del changed[at:]
    elif kind == "flip":
        for _ in range(draw.choice([1, 4, 40])):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif kind == "zero":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    else:
        changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


def survive(folder: Path, mutations: int, seed: int) -> None:
    """Each mutation is read whole, in part or not at all: within a time limit, and with a reason."""
    names = [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.ts", "mpeg2video"),
    ]
    clips = [make_clip(folder / name, frames=15, fps=25, codec=codec) for name, codec in names]
    draw = random.Random(seed)
    outcomes: list[str] = []
    reasons: list[str] = []

    def work() -> None:
        for number in range(mutations):
            clip = clips[number % len(clips)]
            victim = folder / f"victim{clip.suffix}"
            victim.write_bytes(mutated(clip.read_bytes(), draw))
            try:
                frames, decoded = read(victim, allow_partial=bool(number % 2))
                seconds = [frame.seconds for frame in frames]
                assert seconds == sorted(seconds)
                assert len(frames) == decoded.frames_decoded > 0
                outcomes.append("partial" if decoded.partial else "whole")
            except VideoError as error:
                outcomes.append("refused")
                reasons.append(str(error))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(timeout=1.0 * mutations)
    assert not worker.is_alive(), "decoding hangs"
    assert len(outcomes) == mutations
    assert set(outcomes) == {"whole", "partial", "refused"}
    assert all(10 < len(reason) < 200 and reason.isprintable() for reason in reasons)


def test_five_hundred_mutations(tmp_path):
    survive(tmp_path, 500, seed=2)


# --- real files ------------------------------------------------------------------------------------------------------

# FFmpeg's best stream of two; and a file that PyAV refuses only because its title is not UTF-8.
KNOWN_BETTER = {"nasa_13013.mp4": 390, "video_desks.3gp": 71}


def test_the_awkward_files(shared):
    """Each file that decodes without an error gives exactly its frames, every other a reason for people."""
    folder = shared / "data" / "awkward"
    with (folder / "expected.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 71
    reasons = {}
    for row in rows:
        name = Path(row["path"]).name
        expected = KNOWN_BETTER.get(name, 0 if row["error"] else int(row["frames_decoded"]))
        decoded, count, previous = Decoded(), 0, -np.inf
        try:
            for frame in read_frames(str(folder / row["path"]), "video", ALL, decoded):
                count += 1
                assert frame.rgb.shape == (decoded.height, decoded.width, 3)
                assert frame.seconds >= previous
                previous = frame.seconds
        except VideoError as error:
            reasons[name] = str(error)
        assert (name in reasons) == (expected == 0), f"{name}: {reasons.get(name)}"
        if expected:
            assert count == expected == decoded.frames_decoded, name
            if name not in KNOWN_BETTER:
                assert decoded.rotation == int(row["rotation"]), name
                stored = [int(pixels) for pixels in row["first_frame"].split("x")]
                assert sorted((decoded.width, decoded.height)) == sorted(stored), name
    assert len(reasons) == 12
    for reason in reasons.values():
        assert reason.isprintable()
        assert 10 < len(reason) < 150
        assert not re.search(r"av_|Errno|Error|/|\bNone\b", reason), reason


def test_phone_videos_are_turned(shared):
    """Clips held four ways: counter-clockwise by what FFmpeg calls their rotation (-90, -180, 90)."""
    folder = shared / "data" / "awkward" / "decord" / "tests" / "test_data"
    for name, quarters in (("video_0", 0), ("video_90", -1), ("video_180", 2), ("video_270", 1)):
        frames, _ = read(folder / f"{name}.mov")
        assert len(frames) == 3
        for frame, stored in zip(frames, plain(folder / f"{name}.mov"), strict=True):
            np.testing.assert_array_equal(frame.rgb, np.rot90(stored, quarters))
