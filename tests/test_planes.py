"""Frames sent as planes and prepared on a device, here the CPU, beside those that swscale and whole numbers make."""

import platform
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from pipeline import planes as planes_module
from pipeline.errors import VideoError
from pipeline.frames import MATRICES, Decoded, Frame, Planes, read_frames
from pipeline.networks import choose_preset
from pipeline.planes import alike, at_once, to_rgb
from pipeline.preprocessing import FITS, Preprocessing, prepare, prepare_together
from pipeline.rows import ReadOptions, Row, read_rows
from pipeline.sampling import Sampling
from pipeline.views import Views
from pipeline.windows import Window
from tests.banks import row
from tests.clips import ALL, make_clip

CPU = torch.device("cpu")
LEVELS = 0 if platform.machine() in ("x86_64", "AMD64") else 2  # by which swscale's code for other machines may differ
NAMED = {"BT.709": 1, "unspecified": 2, "BT.601": 5}
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def scenes(frames: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Pictures (H, W, 3) of smooth colours that move, with edges and some noise, as those of cameras are."""
    width, height = size
    down, across = np.mgrid[:height, :width]
    noise = np.random.default_rng(0)
    found = []
    for number in range(frames):
        waves = [128 + 120 * np.sin((across * (k + 1) + down * (3 - k) + 9 * number) / 25) for k in range(3)]
        picture = np.stack(waves, axis=-1) + noise.normal(0, 4, (height, width, 3))
        picture[height // 4 : height // 2, width // 3 : width // 2] = (230, 20, 40)
        found.append(picture.clip(0, 255).astype(np.uint8))
    return found


def clip(
    path: Path,
    images: Sequence[np.ndarray],
    *,
    layout: str = "yuv420p",
    matrix: int | None = None,
    full: bool | None = None,
) -> Path:
    """A lossless clip of a layout, with the matrix and the range that its frames name, or none."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = layout
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        if full is not None:
            stream.codec_context.color_range = 2 if full else 1
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=layout)
            if matrix is not None:
                frame.colorspace = matrix
            if full is not None:
                frame.color_range = 2 if full else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(path: Path, *, planes: bool) -> list[Frame]:
    return list(read_frames(str(path), "video", ALL, Decoded(), planes=planes))


def stored(path: Path) -> list[Planes]:
    found = [frame.planes for frame in frames_of(path, planes=True)]
    assert all(each is not None for each in found)
    return [each for each in found if each is not None]


def apart(one: Any, other: Any) -> np.ndarray:
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))


def assert_rgb_is_swscales(path: Path) -> None:
    expected = np.stack([frame.rgb for frame in frames_of(path, planes=False)])
    rgb = to_rgb(stored(path), CPU)
    assert rgb.dtype == torch.float32
    assert torch.equal(rgb, rgb.round())
    assert apart(rgb.permute(0, 2, 3, 1), expected).max() <= LEVELS


@pytest.mark.parametrize("size", [(96, 64), (70, 50), (65, 48)])  # whose rows lie apart in memory, and one is odd
def test_rgb_is_that_of_swscale(tmp_path: Path, size: tuple[int, int]) -> None:
    path = clip(tmp_path / "a.mkv", scenes(2, size))
    assert stored(path)[0].u.shape == (size[1] // 2, -(-size[0] // 2))
    assert_rgb_is_swscales(path)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_rgb_is_that_of_swscale_in_each_matrix_and_range(tmp_path: Path, matrix: int, full: bool) -> None:
    path = clip(tmp_path / "a.mkv", scenes(1, (64, 48)), matrix=matrix, full=full)
    (found,) = stored(path)
    assert (found.matrix, found.full_range) == (matrix, full)
    assert_rgb_is_swscales(path)


def test_every_byte_of_brightness_and_colour_is_that_of_swscale() -> None:
    """Also those that no camera gives: from noise, in which each of 256 values meets many others."""
    draw = np.random.default_rng(0)
    for matrix in MATRICES:
        for full in (1, 2):
            frame = av.VideoFrame(256, 256, "yuv420p")
            for plane in frame.planes:
                plane.update(draw.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
            frame.colorspace, frame.color_range = matrix, full
            y, u, v = (np.frombuffer(plane, np.uint8).reshape(plane.height, -1) for plane in frame.planes)
            planes = Planes(y[:, :256], u[:, :128], v[:, :128], matrix, full == 2)
            expected = frame.to_ndarray(format="rgb24")
            assert apart(to_rgb([planes], CPU)[0].permute(1, 2, 0), expected).max() <= LEVELS


def test_colours_of_motion_jpeg_reach_over_the_full_range(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mov", codec="mjpeg", images=scenes(2, (64, 48)))
    assert all(each.full_range for each in stored(path))
    assert_rgb_is_swscales(path)


def test_what_is_stored_otherwise_or_turned_comes_as_rgb(tmp_path: Path) -> None:
    images = scenes(2, (64, 48))
    for path in (
        clip(tmp_path / "odd.mkv", scenes(2, (64, 47))),
        clip(tmp_path / "444.mkv", images, layout="yuv444p"),
        clip(tmp_path / "deep.mkv", images, layout="yuv420p10le"),
        make_clip(tmp_path / "turned.mp4", images=images, rotation=90),
    ):
        found, expected = frames_of(path, planes=True), frames_of(path, planes=False)
        assert len(found) == 2, path
        for frame, same in zip(found, expected, strict=True):
            assert frame.planes is None, path
            np.testing.assert_array_equal(frame.rgb, same.rgb)
    assert frames_of(clip(tmp_path / "even.mkv", images), planes=True)[0].rgb.size == 0


def test_planes_stay_valid_after_the_next_and_after_the_end(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", images=scenes(6, (64, 48)))
    kept = [
        (frame.planes, [plane.copy() for plane in frame.planes[:3]])
        for frame in read_frames(str(path), "video", ALL, Decoded(), planes=True)
        if frame.planes is not None
    ]
    assert len(kept) == 6
    for planes, copies in kept:
        for plane, copy in zip(planes[:3], copies, strict=True):
            np.testing.assert_array_equal(plane, copy)


def test_frames_are_alike_in_size_matrix_and_range(tmp_path: Path) -> None:
    one, other = stored(clip(tmp_path / "a.mkv", scenes(2, (64, 48))))
    assert alike(one, other)
    assert not alike(one, stored(clip(tmp_path / "b.mkv", scenes(1, (64, 46))))[0])
    assert not alike(one, one._replace(full_range=True))
    assert not alike(one, one._replace(matrix=1))
    assert at_once(one) == planes_module.CHUNK_BYTES // (64 * 48 * 3 // 2)
    assert at_once(one._replace(y=np.empty((8192, 8192), np.uint8))) == 1


# --- rows prepared on a device ---------------------------------------------------------------------------------------


def rows_of(path: Path, preprocessing: Preprocessing, device: torch.device | None, **changes: Any) -> list[Row]:
    job = {**row(path.stem), "path": str(path), "kind": "video", "fps": nan, **changes.pop("job", {})}
    return list(read_rows(job, ReadOptions(Sampling(), preprocessing, device=device, **changes), Decoded()))


def assert_rows_agree(there: list[Row], here: list[Row], most: int) -> np.ndarray:
    """The same rows up to some levels; returns by how many levels each value differs."""
    assert [(row.seconds, row.frames) for row in there] == [(row.seconds, row.frames) for row in here]
    levels = np.stack([apart(one.inputs, other.inputs) for one, other in zip(there, here, strict=True)])
    assert levels.max() <= most + LEVELS
    return levels


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(160, 96), (71, 130), (40, 30)])
def test_prepared_frames_are_those_of_the_cpu_up_to_few_levels(tmp_path: Path, size: tuple[int, int], fit: str) -> None:
    path = clip(tmp_path / "a.mkv", scenes(3, size), matrix=1)
    preprocessing = choose_preset("resnet18", image_size=64, fit=fit)
    levels = assert_rows_agree(rows_of(path, preprocessing, CPU), rows_of(path, preprocessing, None), 2)
    assert (levels > 0).mean() < 0.06  # as many where 40 pixels become 64: many values lie halfway between two levels
    assert (levels > 1).mean() < 1e-4


def test_so_are_bicubic_ones(tmp_path: Path) -> None:
    preprocessing = replace(choose_preset("resnet18", image_size=64), interpolation="bicubic")
    path = clip(tmp_path / "a.mkv", scenes(3, (160, 96)))
    levels = assert_rows_agree(rows_of(path, preprocessing, CPU), rows_of(path, preprocessing, None), 2)
    assert (levels > 0).mean() < 0.03


def test_without_antialiasing_and_without_resizing_they_are_equal(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", scenes(3, (64, 48)))
    plain = replace(choose_preset("r3d_18", image_size=32), fit="crop")
    as_it_is = Preprocessing(48, 48, plain.mean, plain.std, "bilinear", True, "crop", "")
    for preprocessing in (plain, as_it_is):
        assert_rows_agree(rows_of(path, preprocessing, CPU), rows_of(path, preprocessing, None), 0)


@pytest.mark.parametrize("window", [Window("clip", 4, 2), Window("stack", 3), Window("stack", 3, grey=True)])
def test_windows_regions_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: Window) -> None:
    path = clip(tmp_path / "a.mkv", scenes(11, (96, 64)))
    monkeypatch.setattr(planes_module, "CHUNK_BYTES", 4 * 96 * 64 * 3 // 2)  # four frames
    preprocessing = choose_preset("resnet18", image_size=32)
    options: dict[str, Any] = {"window": window, "job": {"crop": "8,4,71,51"}}
    there = rows_of(path, preprocessing, CPU, **options)
    assert there[0].inputs.device == CPU
    assert_rows_agree(there, rows_of(path, preprocessing, None, **options), 2)


def test_frames_are_prepared_in_chunks_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = clip(tmp_path / "a.mkv", scenes(11, (96, 64))), []
    monkeypatch.setattr(planes_module, "CHUNK_BYTES", 4 * 96 * 64 * 3 // 2)
    monkeypatch.setattr(
        "pipeline.rows.to_rgb", lambda frames, device: seen.append(len(frames)) or to_rgb(frames, device)
    )
    assert len(rows_of(path, choose_preset("resnet18", image_size=32), CPU)) == 11
    assert seen == [4, 4, 3]


def test_a_video_that_changes_midway_is_prepared_whole(tmp_path: Path) -> None:
    """Two sizes in one stream, as recorders that are switched write them."""
    parts = [make_clip(tmp_path / f"{n}.ts", images=scenes(4, size)) for n, size in enumerate([(96, 64), (64, 48)])]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    preprocessing = choose_preset("resnet18", image_size=32)
    here = rows_of(path, preprocessing, None)
    assert len(here) == 8
    assert_rows_agree(rows_of(path, preprocessing, CPU), here, 2)


def test_what_has_no_planes_is_prepared_as_ever_and_errors_are_the_same(tmp_path: Path) -> None:
    preprocessing = choose_preset("resnet18", image_size=32)
    turned = make_clip(tmp_path / "turned.mp4", images=scenes(2, (64, 48)), rotation=90)
    assert_rows_agree(rows_of(turned, preprocessing, CPU), rows_of(turned, preprocessing, None), 0)
    path = clip(tmp_path / "a.mkv", scenes(2, (64, 48)))
    for device in (CPU, None):
        with pytest.raises(VideoError, match="does not lie within the frame of 64×48"):
            rows_of(path, preprocessing, device, job={"crop": "0,0,65,48"})
    broken = tmp_path / "broken.mkv"
    whole = make_clip(tmp_path / "whole.mkv", frames=60, codec="mpeg4").read_bytes()
    broken.write_bytes(whole[: len(whole) * 7 // 10])
    reasons = []
    for device in (CPU, None):
        with pytest.raises(VideoError) as error:
            rows_of(broken, preprocessing, device)
        reasons.append(str(error.value))
    assert reasons[0] == reasons[1]


def test_only_plain_frames_are_prepared_on_a_device() -> None:
    with pytest.raises(ValueError, match="only plain frames"):
        ReadOptions(Sampling(), choose_preset("resnet18"), views=Views("corners", 5), device=CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "swin_t"])
def test_frames_of_real_videos_agree(shared: Path, name: str) -> None:
    preprocessing = choose_preset(name)
    videos = sorted((shared / "data" / "fights").rglob("*.mp4"))[::40]
    assert videos
    for video in videos:
        planes = stored(video)[:4]
        expected = [prepare(preprocessing, frame.rgb) for frame in frames_of(video, planes=False)[:4]]
        levels = apart(prepare_together(preprocessing, to_rgb(planes, CPU)), torch.stack(expected))
        assert levels.max() <= 2 + LEVELS
        assert (levels > 0).mean() < 0.02
        assert (levels > 1).mean() < 1e-4
