"""A run whose backbone was trained with its head: predicting, banking and scoring by the weights beside the head.

The run is one of train-head in which every fold is then given a backbone of its own, a little off the one that made the
bank, with what its head says of the fold's videos by a plain loop over the frames.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import runs, splits
from pipeline.alike import load_alike
from pipeline.backbone import Backbone, load_backbone
from pipeline.bank import Bank, fingerprint_of
from pipeline.bundles import Bundle, load_bundle, save_bundle, score_bundle
from pipeline.checkpoints import load_checkpoint, tensors_sha256
from pipeline.errors import UserError
from pipeline.heads import HeadConfig
from pipeline.optimisation import FitConfig
from pipeline.preprocessing import normalise, prepare
from pipeline.sampling import Sampling
from pipeline.sequences import Sequences
from pipeline.writing import write_json
from stages.evaluate import EvaluateConfig
from stages.evaluate import run as evaluate
from stages.extract import ExtractConfig
from stages.extract import run as extract
from stages.predict import PredictConfig
from stages.predict import run as predict
from stages.train_head import TrainHeadConfig
from stages.train_head import run as train
from tests.clips import make_clip, plain
from tests.commands import framebank

CPU = torch.device("cpu")
NETWORK: dict[str, Any] = {"backbone": "squeezenet1_1", "image_size": 48, "fit": "squash"}

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def changed(amount: float) -> Backbone:
    """The backbone of the bank, its last block changed as training might."""
    backbone = load_backbone("squeezenet1_1", weights="random", image_size=48, fit="squash")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in backbone.module.named_parameters():
        if "features.12." in name and parameter.ndim > 1:
            parameter.add_(amount * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return backbone


def tensors_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name.removeprefix("net."): tensor for name, tensor in backbone.module.state_dict().items()}


def embedded(backbone: Backbone, data: Path, ids: list[str], stride: int) -> Sequences:
    """The videos in a plain loop: decoded by PyAV alone, one frame after the other through the network."""
    rows = []
    for video in ids:
        frames = [prepare(backbone.preprocessing, frame) for frame in plain(data / f"{video}.mp4")[::stride]]
        images = [normalise(backbone.preprocessing, frame[None]) for frame in frames]
        rows.append(torch.cat([backbone.module(image) for image in images]).float())
    return Sequences(ids, [np.arange(len(each)) * stride / 10 for each in rows], torch.cat(rows))


def with_backbone(folder: Path, backbone: Backbone, precision: str) -> Bundle:
    """Give the bundle in a folder a backbone of its own, as fine-tuning does."""
    bundle = load_bundle(folder)
    [member] = bundle.members
    made = member.banks[0]["config"]
    own = {"weights_sha256": tensors_sha256(tensors_of(backbone)), "store": "float32", "precision": precision}
    recipe = {**made["recipe"], **own}
    banks = ({"config": {**made, "recipe": recipe}, "fingerprint": fingerprint_of(recipe)},)
    save_bundle(folder, replace(bundle, members=(replace(member, banks=banks),)), tensors_of(backbone))
    return load_bundle(folder)


def finetuned(folder: Path, precision: str = "fp32") -> Path:
    """Videos in `data`, a bank `bank.h5`, a run `head`, and `run`, in which every fold has a backbone of its own."""
    for number in range(8):
        make_clip(folder / "data" / f"class{number % 2}" / f"clip{number}.mp4", frames=6 + number)
    sampling = Sampling(stride=2)
    asked = ExtractConfig(
        folder / "data",
        folder / "bank.h5",
        weights="random",
        sampling=sampling,
        device="cpu",
        precision="fp32",
        quiet=True,
        **NETWORK,
    )
    assert extract(asked) == 0
    settings: dict[str, Any] = {
        "folds": 2,
        "head": HeadConfig(hidden=4),
        "fit": FitConfig(epochs=2),
        "group_column": "none",
        "epochs": 2,
    }
    train(TrainHeadConfig(banks=(folder / "bank.h5",), out=folder / "head", device="cpu", quiet=True, **settings))
    run = shutil.copytree(folder / "head", folder / "run")
    config = runs.read_config(run)
    config["config"]["finetune"] = {"data": str(folder / "data"), "unfreeze": "features.12", "precision": precision}
    write_json(run / "config.json", config)
    table = pd.read_csv(run / "predictions.csv").set_index("id")
    for number, fold in enumerate(splits.read_splits(run / "splits.csv")[0], start=1):
        backbone = changed(0.5 * number)
        bundle = with_backbone(run / "folds" / fold.name, backbone, precision)
        sequences = embedded(backbone, folder / "data", list(fold.test), 2)
        scores = np.asarray(score_bundle(bundle, [sequences], np.arange(len(fold.test))))
        table.loc[list(fold.test), [f"p_{label}" for label in bundle.labels]] = scores
        table.loc[list(fold.test), "predicted"] = [bundle.labels[code] for code in scores.argmax(1)]
    table.reset_index().to_csv(run / "predictions.csv", index=False)
    with_backbone(run, changed(0.25), precision)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield finetuned(tmp_path_factory.mktemp("finetuned"))
    torch.set_num_threads(threads)


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The run's folder, to be tampered with."""
    return shutil.copytree(made / "run", tmp_path / "run")


def test_the_weights_lie_beside_the_head_and_go_where_it_goes(made: Path, tmp_path: Path) -> None:
    bundle = load_bundle(made / "run")
    assert bundle.weights == made / "run" / "backbone.safetensors"
    wanted = tensors_of(changed(0.25))
    state = load_checkpoint(bundle.weights)
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    save_bundle(tmp_path / "copy", bundle)
    again = load_bundle(tmp_path / "copy")
    assert again.weights == tmp_path / "copy" / "backbone.safetensors"
    assert again.weights.read_bytes() == bundle.weights.read_bytes()
    save_bundle(tmp_path / "copy", again)
    assert load_bundle(tmp_path / "copy").weights is not None, "a bundle written onto itself keeps its weights"
    assert load_bundle(made / "head").weights is None


def test_a_model_of_an_older_version_has_no_weights_of_its_own(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "head", tmp_path / "old")
    described = json.loads((run / "model.json").read_text())
    assert described.pop("own_weights") is False
    (run / "model.json").write_text(json.dumps(described))
    assert load_bundle(run).weights is None


def test_weights_that_are_gone_or_of_another_training_are_refused(copied: Path) -> None:
    shutil.copy(copied / "folds" / "1" / "backbone.safetensors", copied)
    with pytest.raises(
        UserError, match=r"trained on other embeddings: weights_sha256 is .* \(squeezenet1_1 file:run\)"
    ):
        load_alike(load_bundle(copied), (), device=CPU)
    (copied / "backbone.safetensors").unlink()
    with pytest.raises(UserError, match=r"its weights are gone \(no backbone.safetensors\); restore"):
        load_bundle(copied)


def test_prediction_takes_the_weights_beside_the_head(made: Path, tmp_path: Path) -> None:
    videos = [f"class{number % 2}/clip{number}" for number in range(8)]
    asked = PredictConfig(made / "run", (made / "data",), csv=tmp_path / "p.csv", device="cpu", quiet=True)
    assert predict(asked) == 0
    table = pd.read_csv(tmp_path / "p.csv").set_index("id")
    bundle = load_bundle(made / "run")
    wanted = score_bundle(bundle, [embedded(changed(0.25), made / "data", videos, 2)], np.arange(8))
    np.testing.assert_allclose(table.loc[videos, ["p_class0", "p_class1"]], wanted, atol=1e-5)
    first = score_bundle(bundle, [embedded(changed(0.0), made / "data", videos, 2)], np.arange(8))
    assert np.abs(np.asarray(wanted) - np.asarray(first)).max() > 1e-3, (
        "the backbones must differ, or nothing was tested"
    )
    with pytest.raises(UserError, match=r"trained with this head, .* Leave --weights out"):
        predict(replace(asked, weights=("random",)))


def test_extract_with_the_weights_of_a_run_makes_its_embeddings(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(made / "data", tmp_path / "data")
    for number in (20, 21):
        make_clip(data / f"class{number % 2}" / f"clip{number}.mp4", frames=number)
    bank = tmp_path / "new.h5"
    asked = ["extract", data, "--weights", made / "run", "--out", bank, "--precision", "fp32"]
    result = framebank(*asked, "--store", "float32")
    assert result.exit_code == 0, result.output
    assert "squeezenet1_1, layer features.12.cat:mean (512), file:run" in result.output
    assert "one in 2" in result.output
    assert "assumed" not in result.output
    known = len(set(load_bundle(made / "run").trained_on or {}) & {f"class{i % 2}/clip{i}" for i in range(30)})
    assert 0 < known == int(result.output.partition("was trained with ")[2].split()[0])
    with Bank(bank) as opened:
        [made_by] = load_bundle(made / "run").members[0].banks
        assert opened.config["recipe"] == made_by["config"]["recipe"]
        assert opened.fingerprint == made_by["fingerprint"]
        assert opened.config["weights"] == "file:run"
        wanted = embedded(changed(0.25), data, ["class1/clip5"], 2).read(0).numpy()
        np.testing.assert_allclose(opened["class1/clip5"], wanted, rtol=1e-4, atol=1e-5)
    assert evaluate(EvaluateConfig(made / "run", (bank,), json=tmp_path / "e.json", device="cpu")) == 0
    assert "predictions.csv" not in capsys.readouterr().out, "what the run wrote down is of other backbones"
    said = json.loads((tmp_path / "e.json").read_text())
    assert (said["videos"], said["left_out"]) == (2, 8)


def test_a_head_on_such_a_bank_predicts_with_the_run_as_its_weights(made: Path, tmp_path: Path) -> None:
    assert extract(ExtractConfig(made / "data", tmp_path / "new.h5", weights=str(made / "run"), quiet=True)) == 0
    head = TrainHeadConfig(banks=(tmp_path / "new.h5",), out=tmp_path / "head", epochs=1, quiet=True)
    assert train(head) == 0
    bundle = load_bundle(tmp_path / "head")
    (by_folder,), (by_file,) = (
        load_alike(bundle, (str(weights),), device=CPU)
        for weights in (made / "run", made / "run" / "backbone.safetensors")
    )
    assert by_folder.backbone.sha256 == by_file.backbone.sha256 == by_folder.made["recipe"]["weights_sha256"]


def test_what_is_typed_goes_before_what_the_run_has(made: Path, tmp_path: Path) -> None:
    bank = tmp_path / "new.h5"
    typed: dict[str, Any] = {
        "layer": "features.9",
        "sampling": Sampling(frames=3),
        "image_size": 40,
        "crop": "0,0,32,32",
    }
    asked = ExtractConfig(
        made / "data", bank, weights=str(made / "run" / "folds" / "2"), device="cpu", quiet=True, **typed
    )
    assert extract(asked) == 0
    with Bank(bank) as opened:
        recipe = opened.config["recipe"]
        assert (recipe["layer"], recipe["sampling"], recipe["crop"]) == ("features.9", {"frames": 3}, "0,0,32,32")
        assert (recipe["preprocessing"]["crop"], recipe["preprocessing"]["fit"]) == (40, "squash")
        assert opened.config["weights"] == "file:2"


def test_a_run_that_brings_no_such_weights_is_refused(made: Path, tmp_path: Path) -> None:
    asked = ExtractConfig(made / "data", tmp_path / "new.h5", weights=str(made / "run"), backbone="vgg11", quiet=True)
    with pytest.raises(UserError, match=r"was made with squeezenet1_1, not with vgg11; give --backbone squeezenet1_1"):
        extract(asked)
    plain_run = replace(asked, backbone=None, weights=str(made / "head"))
    with pytest.raises(UserError, match=r"was made with: --backbone squeezenet1_1 --weights random --seed 0\.$"):
        extract(plain_run)
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(made / "run" / "config.json", begun)
    with pytest.raises(UserError, match="holds no finished model"):
        extract(replace(plain_run, weights=str(begun)))
    assert not (tmp_path / "new.h5").exists()


def test_every_fold_is_scored_again_by_its_own_backbone(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in made.iterdir())
    assert evaluate(EvaluateConfig(made / "run", json=tmp_path / "e.json", device="cpu")) == 0
    said = json.loads((tmp_path / "e.json").read_text())
    assert said["largest_difference"] < 1e-5
    assert (said["changed_predictions"], said["videos"]) == (0, 8)
    table = pd.read_csv(made / "run" / "predictions.csv")
    assert said["metrics"]["accuracy"] == pytest.approx((table["predicted"] == table["target"]).mean())
    assert "(up to 0.005 is rounding)" in capsys.readouterr().out
    assert sorted(path.name for path in made.iterdir()) == before, "the bank made for it is gone"
    assert evaluate(EvaluateConfig(made / "run", split="all", json=tmp_path / "e.json", device="cpu", quiet=True)) == 0
    assert json.loads((tmp_path / "e.json").read_text())["parts"].keys() == {"train", "test"}


def test_the_backbone_of_another_fold_is_a_difference(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = copied / "folds" / "1", copied / "folds" / "2"
    for name in ("model.json", "backbone.safetensors"):
        shutil.copy(one / name, two / name)
    assert evaluate(EvaluateConfig(copied, device="cpu")) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_half_precision_is_given_no_more_room(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, fold in enumerate(splits.read_splits(copied / "splits.csv")[0], start=1):
        with_backbone(copied / "folds" / fold.name, changed(0.5 * number), "bf16")
    assert evaluate(EvaluateConfig(copied, json=tmp_path / "e.json", device="cpu")) == 0
    assert "(up to 0.005 is rounding)" in capsys.readouterr().out
    assert 1e-5 < json.loads((tmp_path / "e.json").read_text())["largest_difference"] < 0.15


def test_a_bank_that_moved_still_says_what_the_targets_are(made: Path, copied: Path, tmp_path: Path) -> None:
    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(config.replace(str(made / "bank.h5"), str(tmp_path / "gone.h5")))
    with pytest.raises(UserError, match=r"gone.h5, which is not there any more; .*evaluate .*run BANK"):
        evaluate(EvaluateConfig(copied))
    moved = Path(shutil.copy(made / "bank.h5", tmp_path / "moved.h5"))
    assert evaluate(EvaluateConfig(copied, (moved,), device="cpu", quiet=True)) == 0


def test_videos_that_are_not_what_was_banked(tmp_path: Path) -> None:
    folder = finetuned(tmp_path)
    make_clip(folder / "data" / "class1" / "clip3.mp4", frames=30)
    with pytest.raises(UserError, match=r"class1/clip3"):
        evaluate(EvaluateConfig(folder / "run", device="cpu", quiet=True))
    (folder / "data" / "class1" / "clip3.mp4").unlink()
    with pytest.raises(UserError, match=r"class1/clip3"):
        evaluate(EvaluateConfig(folder / "run", device="cpu", quiet=True))
