"""Frames are all there, exact and at their real times, of videos and of folders of images."""

import gc
import re
from concurrent.futures import ThreadPoolExecutor
from math import nan
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline import frames as frames_module
from pipeline.errors import VideoError
from pipeline.frames import Decoded, _mended, probe, read_frames
from pipeline.sampling import Sampling
from tests.clips import ALL, levels, make_clip, pattern, plain, read

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


def test_frames_let_go_of_are_freed_at_once(tmp_path):
    path = make_clip(tmp_path / "a.mp4")
    gc.collect()
    gc.disable()  # which comes round seldom beside a large program: what waits for it is as good as kept
    try:
        before = sum(type(each) is av.VideoFrame for each in gc.get_objects())
        read(path)
        assert sum(type(each) is av.VideoFrame for each in gc.get_objects()) == before
    finally:
        gc.enable()


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
        ((rgb, _, _, _),), _ = read(folder, kind="images")
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
    (folder / "f3.png").write_bytes((folder / "f3.png").read_bytes()[:100])
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


# --- frames by number ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [ALL, Sampling(stride=5), Sampling(fps=2), Sampling(frames=2)], ids=repr)
def test_frames_by_number_whatever_the_sampling(tmp_path, sampling):
    path = make_clip(tmp_path / "a.mp4", frames=20)
    frames, decoded = read(path, sampling, indices={17, 0, 5, 6})
    assert levels(frames) == [frame.index for frame in frames] == [0, 5, 6, 17]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.5, 0.6, 1.7])
    assert decoded.frames_decoded == 18  # nothing is decoded beyond the last


def test_frames_by_number_count_from_the_video_even_in_a_span(tmp_path):
    path = make_clip(tmp_path / "a.mp4", frames=20)
    frames, _ = read(path, start=0.5, end=1.5, indices=[3, 7, 16])
    assert levels(frames) == [7]


def test_only_frames_that_are_taken_are_converted(tmp_path, monkeypatch):
    path, converted = make_clip(tmp_path / "a.mp4", frames=20), []
    to_rgb = frames_module._as_rgb
    monkeypatch.setattr(frames_module, "_as_rgb", lambda *frame: converted.append(1) or to_rgb(*frame))
    assert levels(read(path, indices=range(9, 12))[0]) == [9, 10, 11]
    assert len(converted) == 3


def test_images_by_number_are_the_only_ones_opened(tmp_path):
    for index in range(6):
        Image.fromarray(pattern(index)).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    frames, _ = read(tmp_path, kind="images", indices={1, 4})
    assert levels(frames) == [1, 4]


def test_numbers_beyond_the_end_are_left_out(tmp_path):
    path = make_clip(tmp_path / "a.mp4", frames=8)
    assert levels(read(path, indices={2, 7, 8, 30})[0]) == [2, 7]
    assert read(path, indices={9})[0] == []


def test_numbers_may_be_added_while_frames_are_read(tmp_path):
    numbers = {1, 3}
    reading = read_frames(str(make_clip(tmp_path / "a.mp4", frames=12)), "video", ALL, Decoded(), indices=numbers)
    first = [next(reading), next(reading)]
    numbers |= {4, 9}
    assert levels([*first, *reading]) == [1, 3, 4, 9]
