"""The rows that a network sees equal a plain loop over all frames of the video, and its bank holds them as they are."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import nan
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from pipeline import bank as banks
from pipeline import packing, rows, sealing
from pipeline.augmentation import PLAIN, Augmentation, Draw, apply, draw
from pipeline.bank import Bank
from pipeline.engine import Progress, extract_videos
from pipeline.errors import UserError
from pipeline.flow import Flow, measuring, mirrored, still
from pipeline.frames import Decoded
from pipeline.preprocessing import Preprocessing, prepare
from pipeline.rows import ReadOptions, read_rows
from pipeline.sampling import Sampling
from pipeline.sealing import PartWriter
from pipeline.views import Views, described, draws
from pipeline.windows import FRAME, Window
from tests.banks import config, row
from tests.clips import make_clip, plain
from tests.test_windows import clips_of

PREPROCESSING = Preprocessing(20, 16, (0.5,) * 3, (0.25,) * 3, "bilinear", True, "crop", "test")
WINDOWS = [
    FRAME,
    Window("stack", 3),
    Window("stack", 4, grey=True),
    Window("clip", 4, 2),
    Window("clip", 9, 9),
    Window("flow", 2),
]
FIVE, DRAWN = Views("corners", 5), Views("random", 3, seed=5)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven frames in which a texture moves, at uneven times."""
    texture = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    images = [np.roll(texture, (2 * step, 3 * step), (0, 1))[:48, :64] for step in range(7)]
    times = [0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.9]
    return make_clip(tmp_path_factory.mktemp("clips") / "moving.mkv", images=images, pts=times)


def flow_for(window: Window) -> Flow | None:
    if window.kind != "flow":
        return None
    pytest.importorskip("cv2", reason="OpenCV measures motion")
    return Flow()


def options_of(window: Window, **changes: Any) -> ReadOptions:
    return ReadOptions(Sampling(), PREPROCESSING, window, flow=flow_for(window), **changes)


def job(path: Path, **changes: Any) -> dict[str, Any]:
    return {**row(path.stem), "path": str(path), "fps": nan, **changes}


def reference(path: Path, window: Window, drawn: Sequence[Draw], numbers: Sequence[int] | None = None) -> Tensor:
    """The plain loop: all frames (or those of some numbers) prepared for each view, then rows by index arithmetic.

    Returns (T, K, *shape).
    """
    frames = plain(path)
    frames = frames if numbers is None else [frames[number] for number in numbers]
    wide = replace(PREPROCESSING, crop=PREPROCESSING.resize)
    motion = window.kind == "flow"

    def seen(each: Draw, rgb: np.ndarray) -> Tensor:
        pixels = prepare(PREPROCESSING if each.box is None else wide, rgb)[None]
        image = apply(each._replace(flip=False) if motion else each, pixels, 16)[0]
        return rgb_to_grayscale(image) if window.grey else image

    def made(each: Draw, pictures: list[Tensor], which: list[int]) -> Tensor:
        chosen = [pictures[number] for number in which]
        if window.kind == "clip":
            return torch.stack(chosen, dim=1)
        if not motion:
            return torch.cat(chosen)
        measure, parts = measuring(Flow()), []
        for first, second in pairwise(which):
            parts.append(still(16) if first == second else measure(pictures[first], pictures[second]))
        return mirrored(torch.cat(parts)) if each.flip else torch.cat(parts)

    count, width = len(frames), window.frames
    around = [[min(max(at - width // 2 + step, 0), count - 1) for step in range(width)] for at in range(count)]
    wanted = clips_of(count, window.length, window.stride) if window.kind == "clip" else around
    views = [[seen(each, rgb) for rgb in frames] for each in drawn]
    return torch.stack(
        [
            torch.stack([made(each, pictures, which) for each, pictures in zip(drawn, views, strict=True)])
            for which in wanted
        ]
    )


def read(path: Path, options: ReadOptions) -> list[rows.Row]:
    return list(read_rows(job(path), options, Decoded()))


@pytest.mark.parametrize("window", WINDOWS, ids=repr)
@pytest.mark.parametrize("views", [None, FIVE, Views("corners", 10), DRAWN], ids=repr)
def test_rows_are_those_of_the_plain_loop(clip, window, views):
    drawn = [PLAIN] if views is None else draws(views, PREPROCESSING, "moving")
    made = read(clip, options_of(window, views=views))
    expected = reference(clip, window, drawn)
    assert expected.shape[1:] == (len(drawn), *window.input_shape(16))
    assert torch.equal(torch.stack([each.inputs for each in made]), expected)
    assert all(each.inputs.dtype == torch.uint8 for each in made)


@pytest.mark.parametrize("window", WINDOWS, ids=repr)
def test_an_augmentation_changes_all_frames_of_a_row_alike(clip, window):
    augmentation = Augmentation(("crop", "flip", "jitter"), 1)
    for number in range(4):  # flipped and not
        drawn = draw(augmentation, number, "moving")
        made = read(clip, options_of(window, augmentation=augmentation, view=number))
        assert torch.equal(torch.stack([each.inputs for each in made]), reference(clip, window, [drawn]))


def test_times_and_frames_of_rows(clip):
    stack = read(clip, options_of(Window("stack", 4)))
    assert [each.frames for each in stack[:2]] == [(0, 0, 0, 1), (0, 0, 1, 2)]
    assert [each.seconds for each in stack] == pytest.approx([0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.9])
    clips = read(clip, options_of(Window("clip", 4, 2)))
    assert [each.frames for each in clips] == [(0, 1, 2, 3), (2, 3, 4, 5), (3, 4, 5, 6)]
    assert [each.seconds for each in clips] == pytest.approx([0.15, 0.425, 0.6])
    short = read(clip, options_of(Window("clip", 9, 9)))
    assert [each.frames for each in short] == [(0, 1, 2, 3, 4, 5, 6, 6, 6)]


def test_windows_are_of_sampled_frames(clip):
    sampled = replace(options_of(Window("clip", 2, 1)), sampling=Sampling(stride=3))
    made = read(clip, sampled)
    assert [each.frames for each in made] == [(0, 3), (3, 6)]
    expected = reference(clip, Window("clip", 2, 1), [PLAIN], [0, 3, 6])
    assert torch.equal(torch.stack([each.inputs for each in made]), expected)


def test_frames_without_planes_are_put_together_on_the_device_as_well(clip, tmp_path):
    """A window may hold frames that come as planes beside others; meta stands for a device that is not the CPU."""
    images = tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(plain(clip)):
        Image.fromarray(image).save(images / f"{number}.png")
    options = ReadOptions(Sampling(), PREPROCESSING, Window("clip", 4, 2), device=torch.device("meta"))
    for video in (row("a", path=str(clip), fps=nan), row("b", path=str(images), kind="images", fps=nan)):
        inputs = [each.inputs for each in read_rows(video, options, Decoded())]
        assert [each.device.type for each in inputs] == ["meta"] * len(inputs)
        assert inputs[0].shape == (1, 3, 4, 16, 16)


def test_the_motion_between_two_frames_is_measured_once(clip, monkeypatch):
    measured, window = [], Window("flow", 3)
    options = options_of(window, views=Views("corners", 10))

    def counting(flow: Flow) -> Any:
        measure = measuring(flow)
        return lambda first, second: measured.append(1) or measure(first, second)

    monkeypatch.setattr(rows, "measuring", counting)
    read(clip, options)
    assert len(measured) == 6 * 5  # six pairs of frames, five views and their mirror images


def test_options_that_contradict_each_other():
    with pytest.raises(ValueError, match="goes with a window of motion"):
        ReadOptions(Sampling(), PREPROCESSING, Window("flow", 2))
    with pytest.raises(ValueError, match="goes with a window of motion"):
        ReadOptions(Sampling(), PREPROCESSING, flow=Flow())
    with pytest.raises(ValueError, match="by themselves"):
        ReadOptions(Sampling(), PREPROCESSING, augmentation=Augmentation(("flip",)), views=FIVE)


# --- banked ----------------------------------------------------------------------------------------------------------


def as_features(inputs: Tensor) -> Callable[[], np.ndarray]:
    """Stands in for a network that forgets nothing: its embeddings are what it sees."""
    return inputs.flatten(1).float().numpy


def bank_rows(
    out: Path, jobs: list[dict[str, Any]], options: ReadOptions, *, batch_size: int = 4, lanes: int = 1
) -> tuple[Bank, Progress]:
    changes: dict[str, Any] = {} if options.window == FRAME else {"window": options.window.describe()}
    if options.views is not None:
        changes["views"] = options.views.describe()
    shape = int(np.prod(options.window.input_shape(16)))
    made, progress = config(store="float32", feature_shape=[shape], **changes), Progress()
    banks.create(out, made)
    extract_videos(
        jobs,
        options,
        as_features,
        batch_size,
        PartWriter(out, made, lambda *_: None),
        lanes=lanes,
        threads_per_lane=1,
        stop=threading.Event(),
        progress=progress,
        on_progress=lambda _: None,
    )
    return Bank(out), progress


@pytest.fixture(scope="module")
def jobs(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("jobs")
    return [job(clip)] + [job(make_clip(folder / f"{count}.mp4", frames=count)) for count in (2, 5, 1, 8)]


@pytest.mark.parametrize("views", [None, FIVE, DRAWN], ids=repr)
@pytest.mark.parametrize("window", WINDOWS, ids=repr)
def test_a_bank_holds_every_row_whatever_shared_its_batch(jobs, window, views, tmp_path):
    options = options_of(window, views=views)
    bank, progress = bank_rows(tmp_path / "bank.h5", jobs, options)
    other, _ = bank_rows(tmp_path / "other.h5", jobs[::-1], options, batch_size=7, lanes=2)
    assert bank.verify() == other.verify() == []
    assert progress.frames == sum(bank.catalog["rows"])
    for each in jobs:
        video, path = each["id"], Path(each["path"])
        drawn = [PLAIN] if views is None else draws(views, PREPROCESSING, video)
        expected = reference(path, window, drawn).flatten(2).float().numpy()
        stored = bank[video]
        assert np.array_equal(stored, expected[:, 0] if views is None else expected.swapaxes(0, 1))
        assert np.array_equal(stored, other[video])
        made = read(path, options)
        assert np.array_equal(bank.frames(video), [row.frames for row in made])
        assert np.array_equal(bank.frame_index(video), [row.frames[window.middle] for row in made])
        assert np.array_equal(bank.timestamps(video), [row.seconds for row in made])
        group = bank.file_of(video)[f"videos/{video}"]
        assert ("window_frames" in group) == (window.frames > 1)
        kept = group["features"].attrs.get("views")
        assert kept is None if views is None else json.loads(kept) == described(drawn)


def test_short_videos_say_how_much_is_repeated(jobs, tmp_path):
    made, progress = bank_rows(tmp_path / "bank.h5", jobs, options_of(Window("clip", 5, 2)))
    made.close()
    assert progress.padded == 2
    packing.pack(tmp_path / "bank.h5")
    with Bank(tmp_path / "bank.h5") as bank:
        attributes = {video: bank.file_of(video)[f"videos/{video}"].attrs for video in bank}
        padded = {video: each.get("padded") for video, each in attributes.items()}
        assert padded == {"1": 4, "2": 3, "5": None, "8": None, "moving": None}


@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("views", [None, DRAWN], ids=repr)
def test_packing_and_linking_keep_all_of_it(jobs, views, streamed, tmp_path, monkeypatch):
    if streamed:  # every video in pieces, when it is banked and when it is packed
        monkeypatch.setattr(sealing, "STREAM_BYTES", 1000)
        monkeypatch.setattr("pipeline.features._COPY_BYTES", 20_000)
    path, window = tmp_path / "bank.h5", Window("clip", 2, 1)
    bank, _ = bank_rows(path, jobs, options_of(window, views=views), batch_size=2)
    before = {video: (bank[video], bank.frames(video), bank.timestamps(video)) for video in bank}
    bank.close()
    for fold in (packing.link, packing.pack):
        fold(path)
        with Bank(path) as bank:
            assert bank.verify() == []
            for video, arrays in before.items():
                for mine, then in zip((bank[video], bank.frames(video), bank.timestamps(video)), arrays, strict=True):
                    assert np.array_equal(mine, then)
            features = bank.file_of("8")["videos/8/features"]
            assert (features.chunks is not None) == streamed
            if views is not None:
                assert json.loads(features.attrs["views"]) == described(draws(views, PREPROCESSING, "8"))
    with xarray.open_dataset(path, group="videos/8", engine="h5netcdf") as dataset:
        axes = ("timestamps", "feature") if views is None else ("view", "timestamps", "feature")
        assert dataset["features"].dims == axes
        assert dataset["window_frames"].dims == ("timestamps", "window_frame")
        assert set(dataset.coords) == {"timestamps"}
        assert np.array_equal(dataset["features"], before["8"][0])


def test_verify_knows_windows_and_views(jobs, tmp_path):
    bank, _ = bank_rows(tmp_path / "bank.h5", jobs, options_of(Window("stack", 3), views=DRAWN))
    bank.close()
    packing.pack(tmp_path / "bank.h5")
    with h5py.File(tmp_path / "bank.h5", "a") as file:
        file["videos/moving/features"][2, 4, 0] = np.nan
        file["videos/1/window_frames"][0, 1] = 1
        file["videos/5/features"].attrs["views"] = "[]"
        del file["videos/2/window_frames"]
        file["videos/8/window_frames"][2] = [3, 2, 1]
    with Bank(tmp_path / "bank.h5") as bank:
        problems = dict(bank.verify())
    assert problems["moving"] == "features are not finite, first in row 4"
    assert problems["1"] == problems["8"] == "window_frames are not 3 rising frames of each row around its frame index"
    assert problems["5"] == "features have 3 views or describe another number; expected 3"
    assert "window_frames" in problems["2"]


def test_views_without_room_are_refused_before_anything_is_read(clip, tmp_path):
    tight = replace(options_of(FRAME, views=FIVE), preprocessing=replace(PREPROCESSING, resize=16))
    with pytest.raises(UserError, match="nothing around the centre"):
        bank_rows(tmp_path / "bank.h5", [job(clip)], tight)
