"""Videos by a network's own classifier: what torchvision's network says of each window, averaged; or a refusal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights, get_model
from torchvision.models.video import R3D_18_Weights

from pipeline.errors import UserError
from pipeline.gathering import find_all
from pipeline.networks import choose_preset
from pipeline.preprocessing import prepare
from pipeline.sampling import Sampling
from pipeline.views import Views
from pipeline.windows import Window
from stages.classify import ClassifyConfig, mean_probabilities, run
from tests.clips import make_clip, plain

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of different lengths and pictures."""
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((3, 5, 8)):
        pictures = np.random.default_rng(number).integers(0, 256, (frames, 6, 8, 3), np.uint8)
        make_clip(folder / f"clip{number}.mp4", images=list(pictures.repeat(8, 1).repeat(8, 2)))
    return folder


def saved(path: Path, name: str, classes: int) -> tuple[Path, nn.Module]:
    """A network that says different things of different videos, with random weights in a file."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = get_model(name, num_classes=classes).eval()
    parts = [part for part in network.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    parts[-1].weight.data.mul_(30)
    torch.save(network.state_dict(), path)
    return path, network


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    return saved(tmp_path_factory.mktemp("weights") / "squeezenet.pth", "squeezenet1_1", 1000)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    return saved(tmp_path_factory.mktemp("weights") / "r3d.pth", "r3d_18", 400)


def shown(name: str, weights: Path, size: int, path: Path, **other: Any) -> Tensor:
    """The frames of a video as floats, normalised (T, 3, S, S); with another preprocessing in some respects."""
    preset = replace(choose_preset(name, str(weights), image_size=size), **other)
    frames = torch.stack([prepare(preset, frame) for frame in plain(path)]).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    return (frames - mean) / std


def wanted(network: nn.Module, windows: Tensor) -> np.ndarray:
    with torch.no_grad():
        return network(windows).softmax(1).mean(0).numpy()


def asked(backbone: str, weights: Path, videos: Path, **settings: Any) -> ClassifyConfig:
    settings = {"device": "cpu", "precision": "fp32", "image_size": 64, **settings}
    return ClassifyConfig((videos,), backbone, str(weights), **settings)


def test_an_image_network_says_of_a_video_what_it_says_of_its_frames(
    images: tuple[Path, nn.Module], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, network = images
    files = {"csv": tmp_path / "p.csv", "json": tmp_path / "p.json"}
    assert run(asked("squeezenet1_1", weights, videos, top_k=3, **files)) == 0
    names = SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"]
    table, said = pd.read_csv(files["csv"]), json.loads(files["json"].read_text())
    columns = ["id", "predicted", "probability", "predicted_2", "probability_2", "predicted_3", "probability_3"]
    assert list(table.columns) == columns
    lines = capsys.readouterr().out.splitlines()
    for number in range(3):
        path = videos / f"clip{number}.mp4"
        probabilities = wanted(network, shown("squeezenet1_1", weights, 64, path))
        best = probabilities.argsort()[::-1][:3]
        row = table.iloc[number].tolist()
        assert row[0] == f"clip{number}"
        assert row[1::2] == [names[place] for place in best]
        np.testing.assert_allclose(np.array(row[2::2], float), probabilities[best], atol=1e-5)
        top = [f"{names[place]} {probabilities[place]:.3f}" for place in best]
        assert lines[-3 + number] == f"clip{number}  {', '.join(top)}"
        video = said["videos"][number]
        assert (video["id"], video["path"], video["rows"]) == (f"clip{number}", str(path), (3, 5, 8)[number])
        assert [each["label"] for each in video["top"]] == row[1::2]
        assert video["predicted"] == row[1]
    assert table["probability"].nunique() == 3, "videos that all look the same are no test"
    assert said["backbone"] == "squeezenet1_1"
    assert said["weights"] == "file:squeezenet.pth"
    assert said["failed"] == []


def test_a_video_network_says_of_a_video_what_it_says_of_its_clips(
    clips: tuple[Path, nn.Module], videos: Path, tmp_path: Path
) -> None:
    """Clips of 4 frames, one every 2; of the 3 frames the last is repeated, of the 5 the last clip is shifted back."""
    weights, network = clips
    out = tmp_path / "p.json"
    settings = {"image_size": 32, "window": Window("clip", 4, 2), "json": out, "top_k": 400, "quiet": True}
    assert run(asked("r3d_18", weights, videos, **settings)) == 0
    names = R3D_18_Weights.KINETICS400_V1.meta["categories"]
    said = json.loads(out.read_text())["videos"]
    for number, places in enumerate(
        ([[0, 1, 2, 2]], [[0, 1, 2, 3], [1, 2, 3, 4]], [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]])
    ):
        frames = shown("r3d_18", weights, 32, videos / f"clip{number}.mp4")
        probabilities = wanted(network, torch.stack([frames[each].transpose(0, 1) for each in places]))
        top = {each["label"]: each["probability"] for each in said[number]["top"]}
        assert said[number]["rows"] == len(places)
        assert len(top) == 400
        np.testing.assert_allclose([top[name] for name in names], probabilities, atol=1e-5)
        assert list(top.values()) == sorted(top.values(), reverse=True)


def test_frames_are_sampled_as_asked(images: tuple[Path, nn.Module], videos: Path, tmp_path: Path) -> None:
    weights, network = images
    out = tmp_path / "p.csv"
    settings = {"sampling": Sampling(stride=3), "csv": out, "top_k": 1, "quiet": True, "crop": "8,0,40,40"}
    assert run(asked("squeezenet1_1", weights, videos, **settings)) == 0
    preset = choose_preset("squeezenet1_1", str(weights), image_size=64)
    table = pd.read_csv(out)
    for number in range(3):
        frames = plain(videos / f"clip{number}.mp4")[::3]
        prepared = torch.stack([prepare(preset, frame, (8, 0, 40, 40)) for frame in frames]).float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
        probability = wanted(network, (prepared - mean) / std).max()
        assert table["probability"][number] == pytest.approx(probability, abs=1e-5)


def test_views_are_averaged_like_windows(images: tuple[Path, nn.Module], videos: Path, tmp_path: Path) -> None:
    """Centre and corners of the resized frame's middle square: 64 of 73 pixels."""
    weights, network = images
    out = tmp_path / "p.csv"
    settings = {"views": Views("corners", 5), "csv": out, "top_k": 1, "quiet": True}
    assert run(asked("squeezenet1_1", weights, videos, **settings)) == 0
    table = pd.read_csv(out)
    for number in range(3):
        path = videos / f"clip{number}.mp4"
        whole = shown("squeezenet1_1", weights, 64, path, resize=73, crop=73)
        corners = [whole[:, :, top : top + 64, left : left + 64] for top in (0, 9) for left in (0, 9)]
        seen = torch.cat([shown("squeezenet1_1", weights, 64, path), *corners])
        assert table["probability"][number] == pytest.approx(wanted(network, seen).max(), abs=1e-5)
    with pytest.raises(UserError, match="nothing around the centre"):
        run(asked("squeezenet1_1", weights, videos, views=Views("corners", 5), fit="squash", quiet=True))


def test_what_cannot_be_read_is_named_and_the_rest_predicted(
    images: tuple[Path, nn.Module], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, out = tmp_path / "broken.mp4", tmp_path / "p.json"
    broken.write_bytes(b"not a video")
    config = asked("squeezenet1_1", images[0], videos / "clip1.mp4", json=out)
    both = ClassifyConfig(**{**vars(config), "videos": (videos / "clip1.mp4", broken)})
    assert run(both) == 3
    said = json.loads(out.read_text())
    assert [video["id"] for video in said["videos"]] == ["clip1"]
    assert [failure["id"] for failure in said["failed"]] == ["broken"]
    assert "broken: not predicted, " in capsys.readouterr().out
    alone = ClassifyConfig(**{**vars(config), "videos": (broken,), "json": tmp_path / "none.json", "quiet": True})
    assert run(alone) == 3
    assert capsys.readouterr().err == "1 video could not be read\n"
    assert not (tmp_path / "none.json").exists()


def test_classes_that_nobody_knows_are_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="random weights know no classes"):
        run(ClassifyConfig((videos,), "squeezenet1_1", "random", quiet=True))
    other, _ = saved(tmp_path / "ten.pth", "squeezenet1_1", 10)
    with pytest.raises(UserError, match=r"classifier in .*ten\.pth is not the one .*train a head"):
        run(asked("squeezenet1_1", other, videos, quiet=True))
    foreign, _ = saved(tmp_path / "resnet.pth", "resnet18", 1000)
    with pytest.raises(UserError, match=r"resnet\.pth does not fit squeezenet1_1"):
        run(asked("squeezenet1_1", foreign, videos, quiet=True))


def test_what_cannot_be_done_is_refused(images: tuple[Path, nn.Module], videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--top-k 0"):
        run(asked("squeezenet1_1", images[0], videos, top_k=0))
    with pytest.raises(UserError, match="sees single images, not clips"):
        run(asked("squeezenet1_1", images[0], videos, window=Window("clip", 4, 2), quiet=True))
    with pytest.raises(UserError, match="written over what is read"):
        run(asked("squeezenet1_1", images[0], videos, csv=images[0], quiet=True))


def test_probabilities_are_averaged_not_outputs() -> None:
    outputs = np.array([[100.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
    e = np.e
    expected = [(1 + 1 / (2 + e)) / 2, e / (2 + e) / 2, 1 / (2 + e) / 2]
    np.testing.assert_allclose(mean_probabilities(outputs), expected)
    np.testing.assert_allclose(mean_probabilities(outputs[:, None]), expected)  # two views of one window


def test_several_sources_make_one_table(videos: Path, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip9.mp4", frames=2)
    table, notes = find_all([videos / "clip1.mp4", videos, tmp_path / "clip9.mp4", videos / "clip2.mp4"])
    assert table["id"].tolist() == ["clip1", "clip0", "clip2", "clip9"]
    assert list(table.index) == [0, 1, 2, 3]
    assert notes == []
