"""The engine against a plain loop in torch: the same rows, whichever videos share a batch, whatever goes wrong."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import get_model, get_model_weights

from pipeline import bank as banks
from pipeline import engine
from pipeline.backbone import FeatureExtractor, load_backbone
from pipeline.bank import Bank
from pipeline.encoder import (
    choose_batch_size,
    choose_device,
    choose_precision,
    make_encoder,
    native_bf16,
)
from pipeline.engine import Progress, extract_videos
from pipeline.errors import UserError
from pipeline.rows import ReadOptions
from pipeline.sampling import Sampling
from pipeline.sealing import PartWriter
from tests.banks import config, row
from tests.clips import make_clip, plain
from tests.transforms import WHOLE_NUMBERS, Shown, in_whole_numbers, of_image

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def job(path: Path, **changes: Any) -> dict[str, Any]:
    """A video as the engine takes it."""
    return {**row(path.stem), "path": str(path), "fps": float("nan"), **changes}


def extract(
    out: Path,
    jobs: list[dict[str, Any]],
    backbone: Any,
    *,
    precision: str = "fp32",
    batch_size: int = 8,
    lanes: int = 1,
    sampling: Sampling | None = None,
    encode: Any = None,
    allow_partial: bool = False,
    ahead: int = 0,
    prepared_on: torch.device | None = None,
) -> Bank:
    """Run the engine over jobs into a new bank of float32."""
    made = config(store="float32", feature_shape=list(backbone.feature_shape))
    banks.create(out, made)
    if encode is None:
        encode, batch_size = make_encoder(backbone, CPU, precision, batch_size)
    extract_videos(
        jobs,
        ReadOptions(sampling or Sampling(), backbone.preprocessing, allow_partial=allow_partial, device=prepared_on),
        encode,
        batch_size,
        PartWriter(out, made, lambda *_: None),
        lanes=lanes,
        threads_per_lane=1,
        stop=threading.Event(),
        progress=Progress(),
        on_progress=lambda _: None,
        ahead=ahead,
    )
    return Bank(out)


def reference(path: Path, module: torch.nn.Module, transforms: Any, shown: Shown) -> np.ndarray:
    """The plain loop: PyAV frame by frame, the weights' own transforms, a batch of one."""
    with torch.inference_mode():
        return np.stack([module(shown(transforms, frame)[None])[0].numpy() for frame in plain(path)])


def assert_rows_are_those_of_the_plain_loop(
    rows: np.ndarray, path: Path, module: torch.nn.Module, transforms: Any
) -> None:
    """Up to rounding where torchvision resizes as we do; and nearly so where Pillow resizes."""
    of_images = reference(path, module, transforms, of_image)
    assert rows.shape == of_images.shape
    assert relative_error(rows, of_images) <= 5e-3
    if WHOLE_NUMBERS:
        assert relative_error(rows, reference(path, module, transforms, in_whole_numbers)) <= 1e-5


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    sizes = [(64, 48), (96, 64), (48, 80)]
    return [make_clip(folder / f"clip{n}.mp4", frames=3 + 4 * n, size=sizes[n % 3]) for n in range(6)]


@pytest.fixture(scope="module")
def small() -> Any:
    return load_backbone("squeezenet1_1", weights="random", image_size=48)


def relative_error(rows: np.ndarray, expected: np.ndarray) -> float:
    difference = np.linalg.norm(rows - expected, axis=1)
    return float((difference / np.linalg.norm(expected, axis=1)).max())


def squeezenet(state: Any) -> torch.nn.Module:
    model = get_model("squeezenet1_1").eval()
    model.load_state_dict(state)
    return torch.nn.Sequential(model.features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def mobilenet(state: Any) -> torch.nn.Module:
    model = get_model("mobilenet_v2").eval()
    model.load_state_dict(state)
    return torch.nn.Sequential(model.features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()


def resnet(state: Any) -> torch.nn.Module:
    model = get_model("resnet18").eval()
    model.load_state_dict(state)
    model.fc = torch.nn.Identity()
    return model


@pytest.mark.parametrize(("name", "headless"), [("squeezenet1_1", squeezenet), ("resnet18", resnet)])
def test_rows_equal_the_plain_loop(name: str, headless: Any, clips: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = get_model(name).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    backbone = load_backbone(name, weights=str(tmp_path / "weights.pth"))
    transforms = get_model_weights(name).DEFAULT.transforms()
    with extract(tmp_path / "bank.h5", [job(clip) for clip in clips[:3]], backbone, lanes=2) as bank:
        for clip in clips[:3]:
            assert_rows_are_those_of_the_plain_loop(bank[clip.stem], clip, headless(state), transforms)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "headless"), [("squeezenet1_1", squeezenet), ("mobilenet_v2", mobilenet), ("resnet18", resnet)]
)
def test_rows_of_real_videos_equal_the_plain_loop(name: str, headless: Any, shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights" / f"{name}-imagenet.pth"
    if not weights.exists():  # no real weights at hand: any will do for the arithmetic
        torch.manual_seed(0)
        weights = tmp_path / "weights.pth"
        torch.save(get_model(name).state_dict(), weights)
    videos = sorted((shared / "data" / "fights").rglob("*.mp4"))[::30]
    assert len(videos) == 10
    options = {} if name != "mobilenet_v2" else {"preset": "IMAGENET1K_V1"}
    backbone = load_backbone(name, weights=str(weights), **options)
    transforms = get_model_weights(name).IMAGENET1K_V1.transforms()
    with extract(tmp_path / "bank.h5", [job(video) for video in videos], backbone, lanes=2) as bank:
        state = torch.load(weights, weights_only=True)
        for video in videos:
            assert_rows_are_those_of_the_plain_loop(bank[video.stem], video, headless(state), transforms)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_do_not_depend_on_the_company_in_the_batch(
    precision: str, clips: list[Path], small: Any, tmp_path: Path
) -> None:
    if precision == "bf16" and not native_bf16(CPU):
        pytest.skip("this CPU has no native bfloat16")
    jobs = [job(clip) for clip in clips]
    together = extract(tmp_path / "together.h5", jobs, small, precision=precision)
    backwards = extract(tmp_path / "backwards.h5", jobs[::-1], small, precision=precision, lanes=3)
    for number, one in enumerate(jobs):
        alone = extract(tmp_path / f"alone{number}.h5", [one], small, precision=precision)
        np.testing.assert_array_equal(together[one["id"]], alone[one["id"]])
        np.testing.assert_array_equal(together[one["id"]], backwards[one["id"]])


def test_batches_are_always_full_and_of_one_shape(clips: list[Path], small: Any, tmp_path: Path) -> None:
    encode, _ = make_encoder(small, CPU, "fp32", 8)
    shapes = []

    def counting(frames: torch.Tensor) -> Callable[[], np.ndarray]:
        shapes.append(tuple(frames.shape))
        return encode(frames)

    frames = sum(3 + 4 * number for number in range(6))
    extract(tmp_path / "bank.h5", [job(clip) for clip in clips], small, encode=counting)
    assert shapes == [(8, 3, 48, 48)] * -(-frames // 8)


def test_a_broken_video_costs_only_itself(clips: list[Path], small: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    whole = clips[5].read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    jobs = [job(clips[0]), job(broken), job(tmp_path / "missing.mp4"), job(clips[1])]
    with extract(tmp_path / "bank.h5", jobs, small) as bank:
        assert sorted(bank) == ["clip0", "clip1"]
        assert set(bank.failures["id"]) == {"broken", "missing"}
        assert bank.verify() == []


def test_a_video_that_breaks_late_leaves_no_rows_behind(small: Any, tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mkv", frames=60, codec="mpeg4")
    data = bytearray(whole.read_bytes())
    (tmp_path / "cut.mkv").write_bytes(data[: int(len(data) * 0.7)])
    jobs = [job(tmp_path / "cut.mkv"), job(whole)]
    with extract(tmp_path / "bank.h5", jobs, small) as bank:
        assert list(bank) == ["whole"]
        assert len(bank["whole"]) == 60
    with extract(tmp_path / "partial.h5", jobs, small, allow_partial=True) as bank:
        partial = bank.catalog.set_index("id").loc["cut"]
        assert 0 < partial["rows"] < 60
        assert partial["partial"] != ""
        np.testing.assert_array_equal(bank["cut"], bank["whole"][: partial["rows"]])


def test_rows_that_come_later_are_the_same_and_their_batch_waits(clips: list[Path], small: Any, tmp_path: Path) -> None:
    """With batches under way as on a GPU: computed elsewhere, late, from a batch that nobody may write to meanwhile."""
    jobs = [job(clip) for clip in clips]
    at_once = extract(tmp_path / "at_once.h5", jobs, small)
    encode, _ = make_encoder(small, CPU, "fp32", 8)
    under_way: list[int] = []

    def computed(frames: torch.Tensor) -> np.ndarray:
        time.sleep(0.02)
        return encode(frames)()

    with ThreadPoolExecutor(1) as elsewhere:

        def submitting(frames: torch.Tensor) -> Callable[[], np.ndarray]:
            result = elsewhere.submit(computed, frames)
            waited: list[np.ndarray] = []
            under_way.append(0)

            def wait() -> np.ndarray:
                waited.append(result.result())
                under_way.pop()
                return waited[0]

            most.append(len(under_way))
            return wait

        for lanes, ahead in ((1, 1), (1, 2), (2, 1)):
            most: list[int] = []
            bank = extract(tmp_path / f"{lanes}-{ahead}.h5", jobs, small, encode=submitting, lanes=lanes, ahead=ahead)
            assert ahead < max(most) <= lanes * (ahead + 1)
            assert not under_way
            assert sorted(bank) == sorted(at_once)
            for video_id in at_once:
                np.testing.assert_array_equal(bank[video_id], at_once[video_id])


def test_frames_prepared_where_the_network_is_are_banked(clips: list[Path], small: Any, tmp_path: Path) -> None:
    jobs = [job(clip) for clip in clips]
    here, there = (extract(tmp_path / f"{device}.h5", jobs, small, prepared_on=device) for device in (None, CPU))
    for video_id in here:
        np.testing.assert_array_equal(here.timestamps(video_id), there.timestamps(video_id))
        assert relative_error(there[video_id], here[video_id]) < 5e-3
    reversed_lanes = extract(tmp_path / "again.h5", jobs[::-1], small, prepared_on=CPU, lanes=3)
    for video_id in there:
        np.testing.assert_array_equal(there[video_id], reversed_lanes[video_id])


def test_values_that_are_not_finite_are_the_videos_failure(clips: list[Path], small: Any, tmp_path: Path) -> None:
    def broken(frames: torch.Tensor) -> Callable[[], np.ndarray]:
        return lambda: np.full((len(frames), *small.feature_shape), np.nan, np.float32)

    with extract(tmp_path / "bank.h5", [job(clip) for clip in clips], small, encode=broken) as bank:
        assert len(bank) == 0
        assert len(bank.failures) == 6
        assert "not finite" in bank.failures["reason"][0]


def test_a_bug_in_the_encoder_stops_the_run_and_keeps_what_is_done(
    clips: list[Path], small: Any, tmp_path: Path
) -> None:
    encode, _ = make_encoder(small, CPU, "fp32", 8)
    calls = iter(range(100))

    def failing(frames: torch.Tensor) -> Callable[[], np.ndarray]:
        if next(calls) == 4:
            raise ZeroDivisionError
        return encode(frames)

    with pytest.raises(ZeroDivisionError):
        extract(tmp_path / "bank.h5", [job(clip) for clip in clips], small, encode=failing)
    with Bank(tmp_path / "bank.h5") as bank:
        assert list(bank) == ["clip0", "clip1", "clip2"]
        assert bank.verify() == []


def test_batches_that_lie_ready_are_not_embedded_after_a_stop_and_count_as_progress(
    clips: list[Path], small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU a lane prepares many batches before it embeds them: Ctrl-C waits for one; slow is not hanging."""
    made = config(feature_shape=list(small.feature_shape))
    banks.create(tmp_path / "bank.h5", made)
    encode, _ = make_encoder(small, CPU, "fp32", 2)
    stop, progress = threading.Event(), Progress()
    done: list[int] = []
    since: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: float(len(done)), perf_counter=time.perf_counter)  # counts batches
    monkeypatch.setattr(engine, "time", clock)

    def slow(frames: torch.Tensor) -> Callable[[], np.ndarray]:
        assert progress.frames == sum(done)
        time.sleep(0.1)
        done.append(len(frames))
        if len(done) == 5:
            stop.set()
        return encode(frames)

    extract_videos(
        [job(clip) for clip in clips],  # 78 frames, which fit into the memory for one turn
        ReadOptions(Sampling(), small.preprocessing),
        slow,
        2,
        PartWriter(tmp_path / "bank.h5", made, lambda *_: None),
        lanes=1,
        threads_per_lane=1,
        stop=stop,
        progress=progress,
        on_progress=lambda _: None,
        watch=lambda in_work: since.extend(video.seconds for video in in_work),
    )
    assert done == [2] * 5
    assert max(since) <= 1
    with Bank(tmp_path / "bank.h5") as bank:
        assert list(bank) == ["clip0", "clip1"]  # 10 frames, of the 3 and 7 of both; those of clip2 were dropped


def test_regions_and_samplings_reach_the_frames(clips: list[Path], small: Any, tmp_path: Path) -> None:
    jobs = [job(clips[5]), job(clips[5], id="left", crop="0,0,24,80"), job(clips[5], id="late", start=1.0)]
    with extract(tmp_path / "bank.h5", jobs, small, sampling=Sampling(stride=5)) as bank:
        assert bank.frame_index("clip5").tolist() == [0, 5, 10, 15, 20]
        assert bank.frame_index("late").tolist() == [10, 15, 20]
        assert not np.array_equal(bank["left"], bank["clip5"])
        assert bank.timestamps("late")[0] == pytest.approx(1.0)


def test_memory_does_not_grow_with_the_length_of_a_video(small: Any, tmp_path: Path) -> None:
    waiting: list[int] = []

    def encode(frames: torch.Tensor) -> Callable[[], np.ndarray]:
        return lambda: np.zeros((len(frames), 512), np.float32)

    class Watched(PartWriter):
        def open(self, row: Any, views: Any = None) -> Any:
            sink = super().open(row, views)
            append = sink.append

            def watched(*pieces: np.ndarray) -> None:
                append(*pieces)
                waiting.append(sum(piece[0].nbytes for piece in sink._pieces))

            sink.append = watched  # type: ignore[method-assign]
            return sink

    clip = make_clip(tmp_path / "long.mp4", frames=3000, size=(32, 32))
    made = config(store="float32", feature_shape=[512])
    out = tmp_path / "bank.h5"
    banks.create(out, made)
    from pipeline import sealing

    before = sealing.STREAM_BYTES
    sealing.STREAM_BYTES = 1 << 18
    try:
        extract_videos(
            [job(clip)], ReadOptions(Sampling(), small.preprocessing), encode, 8, Watched(out, made, lambda *_: None),
            lanes=1, threads_per_lane=1, stop=threading.Event(), progress=Progress(), on_progress=lambda _: None,
        )  # fmt: skip
    finally:
        sealing.STREAM_BYTES = before
    assert max(waiting) <= 1 << 18
    with Bank(out) as bank:
        assert bank["long"].shape == (3000, 512)


class Crowded(FeatureExtractor):
    """A network on what stands for a GPU with room for two frames."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError
        return super().forward(images)


def test_a_batch_that_does_not_fit_is_halved(small: Any) -> None:
    module = small.module
    crowded = replace(small, module=Crowded(module.net, layout=module.layout, average=module.average))
    encode, batch_size = make_encoder(crowded, CPU, "fp32", 16)
    assert batch_size == 2
    assert encode(torch.zeros(2, 3, 48, 48, dtype=torch.uint8))().shape == (2, 512)


def test_devices_precisions_and_batch_sizes() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(UserError, match="'gpu' is not usable here"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="'cuda' is not usable here"):
            choose_device("cuda")
        assert choose_device("auto").type in ("cpu", "mps")
    assert choose_precision("fp16", CPU) == "fp16"
    assert choose_precision("auto", CPU) == ("bf16" if native_bf16(CPU) else "fp32")
    assert choose_precision("auto", CPU, "fp32") == "fp32"
    assert choose_batch_size("7", CPU) == 7
    assert choose_batch_size("auto", CPU, {"device": "cpu", "batch_size": 5}) == 5
    assert choose_batch_size("auto", CPU, {"device": "cuda", "batch_size": 5}) == choose_batch_size("auto", CPU)
