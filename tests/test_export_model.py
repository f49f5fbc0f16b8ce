"""`framebank export-model` as people call it: real videos, files that predict, refusals that leave nothing."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline import runs
from pipeline.bank import Bank
from pipeline.bundles import Bundle, save_bundle
from pipeline.export_check import original
from pipeline.onnx_cells import OnnxCell
from pipeline.resampling import Resampling
from pipeline.selection import Selection
from stages import progress
from stages.export_model_words import frames_words
from tests.clips import make_clip
from tests.commands import extract, framebank, said
from tests.test_predict import bundle_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of clips and their bank."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(3):
        make_clip(folder / "data" / f"clip{number}.mp4", frames=5 + 3 * number)
    assert extract(folder / "data", folder / "bank.h5").exit_code == 0
    return folder / "data", folder / "bank.h5"


def run_of(folder: Path, bundle: Bundle, *banks: Path) -> Path:
    """A run folder as far as exporting reads it."""
    opened = [Bank(bank) for bank in banks]
    runs.begin(folder, {}, runs.data_identity(opened, {}))
    save_bundle(folder, bundle)
    return folder


def test_model_json_says_exactly_which_frames_are_taken() -> None:
    assert frames_words({"stride": 1}) == "every frame"
    assert frames_words({"stride": 5}) == "one in 5: 0, N, 2N, … for N = stride"
    assert "number floor((k + 1/2) n / N), k = 0 … N - 1" in frames_words({"frames": 6})
    assert "each time first + k / fps" in frames_words({"fps": 2.0})


def test_files_that_predict_without_us(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_STILL_SECONDS", 0.1)
    _, bank = made
    bundle = replace(bundle_of(bank), temperature=1.5)
    run = run_of(tmp_path / "run", bundle, bank)
    result = framebank("export-model", run, "--out", tmp_path / "new" / "deployed")
    assert result.exit_code == 0, result.output
    assert "exporting to onnx, " in result.stderr, "it takes a while"
    folder = tmp_path / "new" / "deployed"
    assert sorted(path.name for path in folder.iterdir()) == ["backbone.onnx", "head.onnx", "model.json"]
    assert "backbone on 3 videos, 24 rows" in said(result, "Checked")

    model = json.loads((folder / "model.json").read_text())
    assert model["labels"] == ["left", "right", "up"]
    assert model["checked"]["head"] < 1e-5
    assert model["checked"]["videos"] == 3
    assert model["checked"]["frames_to_prediction"] < 0.02
    (told,) = model["backbones"]
    assert told["preprocessing"]["words"].startswith("shorter side resized to 55 (bilinear, antialiased), middle 48×48")
    assert told["input"] == {"name": "rows", "dtype": "uint8", "shape": ["rows", 3, 48, 48]}
    assert model["head"]["inputs"] == [
        {"name": "features", "dtype": "float32", "shape": ["time", 512], "from": "backbone.onnx"}
    ]
    head = onnxruntime.InferenceSession(folder / "head.onnx")
    assert [(each.name, each.shape) for each in head.get_inputs()] == [("features", ["time", 512])]
    assert [(each.name, each.shape) for each in head.get_outputs()] == [("probabilities", [3])]
    with Bank(bank) as opened:
        features = opened["clip2"].astype(np.float32)
    (probabilities,) = head.run(None, {"features": features})
    np.testing.assert_allclose(probabilities, original(bundle, [features]), atol=1e-5)
    assert np.ptp(probabilities) > 0.01


def test_given_videos_and_torch(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    run = run_of(tmp_path / "run", bundle_of(bank, per_frame=True), bank)
    result = framebank(
        "export-model", run, "--to", "torch-export", "--check", data / "clip1.mp4", "--out", tmp_path / "deployed"
    )
    assert result.exit_code == 0, result.output
    assert "backbone on 1 video, 8 rows" in said(result, "Checked")
    head = torch.export.load(tmp_path / "deployed" / "head.pt2").module()
    assert head(torch.zeros(11, 512)).shape == (11, 3)


def test_without_videos_it_says_so(made: tuple[Path, Path], tmp_path: Path) -> None:
    _, bank = made
    save_bundle(tmp_path / "run", bundle_of(bank))  # as folders of folds are
    result = framebank("export-model", tmp_path / "run", "--to", "torch-export", "--out", tmp_path / "deployed")
    assert result.exit_code == 0, result.output
    assert "checked on noise; --check VIDEO takes others" in said(result, "Note")
    assert json.loads((tmp_path / "deployed" / "model.json").read_text())["checked"]["videos"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bundle: replace(bundle, selection=Selection("tsn", 4, 3)), "averages over 3 draws of frames"),
        (lambda bundle: replace(bundle, resampling=Resampling("nearest")), "reads banks with times of their own"),
        (lambda bundle: _with_views(bundle), "averages over 5 views of each video"),
    ],
)
def test_what_is_refused_before_work_begins(
    change: Callable[[Bundle], Bundle], words: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    save_bundle(tmp_path / "run", change(bundle_of(made[1])))
    result = framebank("export-model", tmp_path / "run", "--out", tmp_path / "deployed")
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "deployed").exists()


def _with_views(bundle: Bundle) -> Bundle:
    (member,) = bundle.members
    (bank,) = member.banks
    recipe = {**bank["config"]["recipe"], "views": {"kind": "corners", "count": 5}}
    return replace(
        bundle, members=(replace(member, banks=({**bank, "config": {**bank["config"], "recipe": recipe}},)),)
    )


def test_folders_that_are_there_are_left_alone(made: tuple[Path, Path], tmp_path: Path) -> None:
    save_bundle(tmp_path / "run", bundle_of(made[1]))
    result = framebank("export-model", tmp_path / "run", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "is there already" in result.stderr


def test_a_wrong_graph_is_refused_and_leaves_nothing(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an exporter's mistake would be: the LSTM's gates in torch's order."""
    _, bank = made
    run = run_of(tmp_path / "run", bundle_of(bank), bank)
    monkeypatch.setattr(OnnxCell, "_in_order", lambda self, weight: weight.detach())
    result = framebank("export-model", run, "--out", tmp_path / "deployed")
    assert result.exit_code == 2
    assert re.search(
        r"head.onnx predicts otherwise than the head: .* apart \(at most 0.0001 is rounding\)", result.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_fine_tuned_run_exports_its_own_network(tmp_path: Path) -> None:
    for number in range(8):
        make_clip(tmp_path / "data" / f"class{number % 2}" / f"clip{number}.mp4", frames=5 + number)
    bank = tmp_path / "bank.h5"
    assert extract(tmp_path / "data", bank).exit_code == 0
    head: list[Any] = ["--epochs", 2, "--out", tmp_path / "head", "--quiet", "--hidden", 8, "--no-centre"]
    assert framebank("train-head", bank, *head).exit_code == 0
    tuned: list[Any] = ["--head", tmp_path / "head", "--out", tmp_path / "tuned", "--epochs", 1, "--unfreeze", 1]
    assert framebank("finetune", tmp_path / "data", *tuned, "--quiet").exit_code == 0
    result = framebank("export-model", tmp_path / "tuned", "--out", tmp_path / "deployed")
    assert result.exit_code == 0, result.output
    assert "on 3 videos" in said(result, "Checked")
    assert json.loads((tmp_path / "deployed" / "model.json").read_text())["backbones"][0]["weights"] == "file:tuned"


@pytest.mark.slow
def test_two_banks_fused(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, bank = made
    wide = tmp_path / "wide.h5"
    assert extract(data, wide, "--layer", "features.9:mean", "--stride", 2).exit_code == 0
    run = run_of(tmp_path / "run", bundle_of(bank, wide), bank, wide)
    result = framebank("export-model", run, "--out", tmp_path / "deployed")
    assert result.exit_code == 0, result.output
    model = json.loads((tmp_path / "deployed" / "model.json").read_text())
    assert [each["shape"][0] for each in model["head"]["inputs"]] == ["time_1", "time_2"]
    assert {path.name for path in (tmp_path / "deployed").iterdir()} == {
        "backbone_1.onnx",
        "backbone_2.onnx",
        "head.onnx",
        "model.json",
    }
