"""Motion between frames: the motion that is there, as bytes that mirror exactly, the same on every thread."""

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.optical_flow import Raft_Large_Weights, raft_small

from pipeline.errors import UserError
from pipeline.flow import Flow, measuring, mirrored, quantised, still
from tests.commands import extract

pytestmark = pytest.mark.usefixtures("one_torch_thread")
OPENCV = ("dis", "tvl1")


def texture(size: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture (3, size, size) float64 of values within 0 to 255."""
    noise = np.random.default_rng(seed).normal(size=(size, size, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return (128 + 40 * smooth / smooth.std()).clip(0, 255).transpose(2, 0, 1)


def shifted(right: float, down: float, size: int = 64) -> tuple[Tensor, Tensor]:
    """Two views (3, size, size) uint8 of one picture, which in the second lies so many pixels further on."""
    picture = texture(size + 32).transpose(1, 2, 0)
    moved = cv2.warpAffine(picture, np.array([[1, 0, right], [0, 1, down]], float), picture.shape[:2])
    first, second = (torch.from_numpy(each[16:-16, 16:-16].round().astype(np.uint8)) for each in (picture, moved))
    return first.permute(2, 0, 1), second.permute(2, 0, 1)


def pixels(measured: Tensor, bound: float) -> np.ndarray:
    """Bytes -> displacements, without the border of 8 pixels: of what comes in there, nothing is known."""
    return (measured[:, 8:-8, 8:-8].numpy().astype(float) - 128) * bound / 127


@pytest.mark.parametrize("method", OPENCV)
@pytest.mark.parametrize("motion", [(3.0, 0.0), (0.0, 2.0), (-1.5, -2.5), (4.25, -0.75)], ids=str)
def test_a_known_translation_is_found(method: str, motion: tuple[float, float]) -> None:
    measured = measuring(Flow(method))(*shifted(*motion))
    assert measured.shape == (2, 64, 64)
    assert measured.dtype == torch.uint8
    found = pixels(measured, 20)
    assert np.abs(found - np.array(motion)[:, None, None]).mean() < 0.1
    assert np.abs(np.median(found, axis=(1, 2)) - motion).max() < 0.1
    assert np.percentile(np.abs(found - np.array(motion)[:, None, None]), 99) < 0.3


@pytest.mark.parametrize("method", OPENCV)
def test_what_does_not_move_is_still(method: str) -> None:
    frame, _ = shifted(0, 0)
    assert torch.equal(measuring(Flow(method))(frame, frame), still(64))
    assert still(7).tolist() == [[[128] * 7] * 7] * 2


def test_bytes_are_symmetric_and_end_at_the_bound() -> None:
    field = torch.tensor([-1000.0, -20.0, -10.0, -0.05, 0.0, 0.1, 0.05, 10.0, 20.0, float("inf")])
    assert quantised(field, 20.0).tolist() == [1, 1, 64, 128, 128, 129, 128, 192, 255, 255]
    many = torch.linspace(-30, 30, 20_001)
    assert torch.equal(quantised(many, 20.0).int(), 256 - quantised(-many, 20.0).int())
    near = many[many.abs() <= 20]
    back = (quantised(near, 20.0).float() - 128) * 20 / 127
    assert (back - near).abs().max() <= 20 / 254 + 1e-5


def test_motion_beyond_the_bound_is_at_the_bound() -> None:
    measured = measuring(Flow(bound=2.0))(*shifted(6, 1))
    inside = measured[:, 8:-8, 8:-8]
    assert (inside[0] == 255).float().mean() > 0.95
    assert abs(float(inside[1].float().median()) - (128 + 127 / 2)) < 8


def test_the_mirrored_motion_is_that_of_the_mirrored_video() -> None:
    """In numbers, exactly: columns change places and what went to the right goes to the left."""
    field = 8 * torch.randn(3, 2, 9, 7, generator=torch.Generator().manual_seed(1))  # three pairs: u, v each
    other = field.flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    stack = quantised(field, 20.0).view(6, 9, 7)
    before = stack.clone()
    assert torch.equal(mirrored(stack), quantised(other, 20.0).view(6, 9, 7))
    assert torch.equal(stack, before), "what was given stays as it was"
    assert torch.equal(mirrored(mirrored(stack)), stack)
    assert torch.equal(mirrored(stack.expand(2, 5, 6, 9, 7))[1, 4], mirrored(stack))
    assert torch.equal(mirrored(still(5)), still(5))


@pytest.mark.parametrize("method", OPENCV)
def test_the_mirrored_motion_is_measured_in_the_mirrored_video(method: str) -> None:
    """Measured, nearly: a method goes over the picture in one direction."""
    first, second = shifted(3, 1)
    measure = measuring(Flow(method))
    there, back = measure(first.flip(-1), second.flip(-1)), mirrored(measure(first, second))
    assert np.abs(pixels(there, 20) - pixels(back, 20)).mean() < 0.1
    assert np.median(pixels(there, 20), axis=(1, 2)) == pytest.approx([-3, 1], abs=0.1)


@pytest.mark.parametrize("method", OPENCV)
def test_it_is_the_same_on_every_thread(method: str) -> None:
    pairs = [shifted(step / 2, 1 - step / 4, 96) for step in range(8)]
    cv2.setNumThreads(2)  # as OpenCV is by itself
    measure = measuring(Flow(method))
    assert cv2.getNumThreads() == 1
    alone = [measure(*pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: measuring(Flow(method))(*pair), pairs * 2))
    assert all(torch.equal(one, other) for one, other in zip(together, alone * 2, strict=True))


def test_dis_forgets_the_pair_before() -> None:
    """At this size OpenCV's own object does not: what it measures depends on what it has measured."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randint(256, (3, 42, 42), dtype=torch.uint8, generator=generator) for _ in range(4)]
    pairs = [*pairwise(noise), *(shifted(step, 1 - step, 42) for step in range(3))]
    measure = measuring(Flow())
    there = [measure(*pair) for pair in pairs]
    back = [measure(*pair) for pair in reversed(pairs)][::-1]
    alone = [measuring(Flow())(*pair) for pair in pairs]
    for one, two, three in zip(there, back, alone, strict=True):
        assert torch.equal(one, three)
        assert torch.equal(two, three)


def reference(first: Tensor, second: Tensor, state: dict[str, Tensor], room: int) -> Tensor:
    """RAFT by torchvision alone."""
    network = raft_small(weights=None).eval()
    network.load_state_dict(state)
    pair = Raft_Large_Weights.DEFAULT.transforms()(first[None], second[None])
    pair = [torch.nn.functional.pad(each, (0, room, 0, room), mode="replicate") for each in pair]
    size = first.shape[-1]
    with torch.no_grad():
        return network(*pair)[-1][0, :, :size, :size]


@pytest.fixture(scope="module")
def raft(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file of random weights of the small network, which sees motion of some sort, and what is in it."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        state = raft_small(weights=None).state_dict()
    path = tmp_path_factory.mktemp("raft") / "raft.safetensors"
    save_file(state, path)
    return path, state


@pytest.mark.parametrize(("size", "room"), [(48, 80), (130, 6)])
def test_raft_is_torchvisions(raft: tuple[Path, dict[str, Tensor]], size: int, room: int) -> None:
    path, state = raft
    flow = Flow("raft", weights=str(path))
    first, second = shifted(2, 1, size)
    wanted = reference(first, second, state, room)
    if flow.network.device.type == "cpu":
        bound = float(wanted.abs().max()) / 2  # of random weights, motion may be large
        measured = measuring(Flow("raft", bound=bound, weights=str(path)))(first, second)
        assert measured.shape == (2, size, size)
        assert len(measured.unique()) > 20, "flat motion would be no test"
        assert (measured.int() - quantised(wanted, bound).int()).abs().max() <= 1  # rounding
    described = flow.describe()
    assert described == {
        "method": "raft",
        "bound": 20.0,
        "network": "raft_small",
        "weights_sha256": described["weights_sha256"],
    }
    assert flow.recorded() == {"weights": "file:raft.safetensors"}


def test_raft_is_the_same_on_every_thread(raft: tuple[Path, dict[str, Tensor]]) -> None:
    """torchvision's network keeps what it is working on in its modules."""
    flow = Flow("raft", weights=str(raft[0]))
    if flow.network.device.type != "cpu":
        pytest.skip("threads take turns on a GPU")
    pairs = [shifted(step, 1 - step, 48) for step in range(4)]
    measure = measuring(flow)
    alone = [measure(*pair) for pair in pairs]
    assert not any(torch.equal(one, alone[0]) for one in alone[1:])
    begin = Barrier(4)

    def thread(first: int) -> list[Tensor]:
        own = measuring(flow)
        begin.wait()
        return [own(*pair) for pair in (pairs[first:] + pairs[:first])]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(thread, range(4)))
    for first, found in enumerate(together):
        assert all(torch.equal(one, other) for one, other in zip(found, alone[first:] + alone[:first], strict=True))


def test_other_weights_are_another_way(raft: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path, state = raft
    same, other = tmp_path / "same.pth", tmp_path / "other.pth"
    torch.save(state, same)
    torch.save({name: tensor + 1 if name.endswith("bias") else tensor for name, tensor in state.items()}, other)
    described = [Flow("raft", weights=str(each)).describe() for each in (path, same, other)]
    assert described[0] == described[1] != described[2]


def test_a_way_is_described_in_one_form() -> None:
    assert Flow().describe() == {"method": "dis", "bound": 20.0}
    assert Flow("tvl1", bound=8).describe() == {"method": "tvl1", "bound": 8.0}
    assert Flow().recorded() == {"opencv": cv2.__version__}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"method": "farneback"}, "no way 'farneback'.*dis, tvl1, raft"),
        ({"bound": 0.0}, "bound of 0"),
        ({"bound": float("nan")}, "bound of nan"),
        ({"method": "raft"}, "needs weights.*--flow-weights"),
        ({"weights": "C_T_V2"}, "dis has no weights"),
    ],
)
def test_impossible_ways_are_refused(asked: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Flow(**asked)  # type: ignore[arg-type]


def test_weights_that_are_none_of_rafts_are_refused(raft: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    _, state = raft
    with pytest.raises(UserError, match=r"no weights 'C_T_V9'.*C_T_SKHT_V2.*Raft_Small_Weights.C_T_V2"):
        Flow("raft", weights="C_T_V9").describe()
    with pytest.raises(UserError, match=r"no file .*gone.pth.*--flow-weights"):
        Flow("raft", weights=str(tmp_path / "gone.pth")).describe()
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "head.pth")
    with pytest.raises(UserError, match="fits neither raft_large nor raft_small"):
        measuring(Flow("raft", weights=str(tmp_path / "head.pth")))
    name = next(name for name in state if name.endswith("weight"))
    torch.save(state | {name: torch.full_like(state[name], torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(UserError, match="not finite"):
        Flow("raft", weights=str(tmp_path / "nan.pth")).describe()


def test_published_weights_are_looked_for_where_torchvision_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged file is found by its name, so the name is right and the sum is checked."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for weights, file in [
        ("C_T_V2", "raft_large_C_T_V2-1bb1363a.pth"),
        ("Raft_Small_Weights.C_T_V2", "raft_small_C_T_V2-01064c6d.pth"),
    ]:
        (folder / file).write_bytes(b"half a downlo")
        with pytest.raises(UserError, match=f"{file} is damaged.*--flow-weights FILE"):
            Flow("raft", weights=weights).describe()


@pytest.mark.parametrize("method", OPENCV)
def test_opencv_that_is_not_there_is_asked_for(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # as an import of what is not installed ends
    assert Flow(method).describe()["method"] == method
    for ask in (measuring, Flow.recorded):
        with pytest.raises(UserError, match=r"pip install 'framebank\[flow\]'"):
            ask(Flow(method))


def test_opencv_without_its_extra_modules_has_no_tvl1(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ModuleType("cv2")  # what opencv-python-headless has of it
    plain.__dict__.update(__version__="4.10.0", setNumThreads=cv2.setNumThreads)
    monkeypatch.setitem(sys.modules, "cv2", plain)
    with pytest.raises(UserError, match=r"no TV-L1.*extra modules"):
        measuring(Flow("tvl1"))


@pytest.mark.parametrize("method", OPENCV)
def test_squares_that_are_too_small_are_refused(method: str) -> None:
    small = torch.zeros(3, 11, 11, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"11×11.*--image-size of 12"):
        measuring(Flow(method))(small, small)
    assert measuring(Flow(method))(*shifted(0, 0, 12)).tolist() == still(12).tolist()


def test_squares_that_are_too_small_are_refused_before_any_bank_is_made(data: Path, out: Path) -> None:
    done = extract(data, out, "--backbone", "resnet18", "--flow", 2, "--image-size", 8)
    assert done.exit_code == 2
    assert "8×8 pixels; give an --image-size of 12" in done.stderr
    assert sorted(path.name for path in out.parent.iterdir()) == ["data"]
