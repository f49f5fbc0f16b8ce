"""What tests of fine-tuning start from: small clips, their bank, a head on it, and fine-tuning through the command."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from click.testing import Result
from safetensors.torch import load_file

from pipeline.backbone import load_backbone
from pipeline.halves import named_state, split
from tests.clips import make_clip
from tests.commands import extract, framebank

QUICK_HEAD = ("--hidden", 8, "--epochs", 3, "--batch-size", 8)
# Slow steps along the gradient itself: larger ones, and those of Adam, make much of rounding.
SGD = ("--optimizer", "sgd", "--learning-rate", 0.002, "--backbone-rate", 0.001, "--warmup", 0)


class Start(NamedTuple):
    """Videos, the bank of their embeddings, and the run of a head on it."""

    data: Path
    bank: Path
    run: Path


def make_clips(folder: Path, count: int = 14, size: int = 48) -> Path:
    """Clips of 5 to 12 frames of two classes, class0/clip00.mp4, ...: coarse noise that drifts right, or left."""
    generator = np.random.default_rng(0)
    for number in range(count):
        scene = generator.integers(0, 256, (size // 4, size // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        steps = np.arange(int(generator.integers(5, 13))) * (4 if number % 2 else -4)
        images = [np.roll(scene, step, 1) for step in steps]
        make_clip(folder / f"class{number % 2}" / f"clip{number:02}.mp4", size=(size, size), images=images)
    return folder


def start_of(folder: Path, data: Path, *arguments: object, network: tuple[object, ...] = ()) -> Start:
    """Bank the clips and train a head on them: `arguments` are those of train-head, `network` those of extract."""
    start = Start(data, folder / "bank.h5", folder / "run")
    for done in (
        extract(data, start.bank, *network),
        framebank("train-head", start.bank, "--out", start.run, *QUICK_HEAD, *arguments),
    ):
        assert done.exit_code == 0, done.output
    return start


def finetune(start: Start, out: Path, *arguments: object) -> Result:
    epochs = () if "--epochs" in arguments else ("--epochs", 2)
    return framebank("finetune", start.data, "--head", start.run, "--out", out, *epochs, *arguments)


def finetuned(start: Start, out: Path, *arguments: object) -> Path:
    """The folder of a run that must succeed."""
    done = finetune(start, out, *arguments)
    assert done.exit_code == 0, done.output
    return out


def first_weights() -> dict[str, torch.Tensor]:
    """The tensors that the backbone of these tests began with."""
    backbone = load_backbone("squeezenet1_1", weights="random", image_size=48)
    return named_state(split(backbone, ["features.12"]))


def backbone_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "backbone.safetensors")


def changed(run: Path) -> set[str]:
    """The tensors of the backbone that training has changed."""
    before, after = first_weights(), backbone_of(run)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def metrics(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "metrics.csv")


def losses(run: Path) -> list[float]:
    found: list[float] = metrics(run)["train_loss"].tolist()
    return found


def chances(run: Path) -> np.ndarray:
    """(B, K) probabilities of the held-out videos."""
    return pd.read_csv(run / "predictions.csv").filter(regex="^p_").to_numpy()


def results(run: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / "results.json").read_text())
    return read


def far_apart(one: Path, other: Path) -> float:
    """The largest difference between the backbones of two runs."""
    first, second = backbone_of(one), backbone_of(other)
    return max(float((first[name] - second[name]).abs().max()) for name in first)
