"""Every recipe, whole: its network and head held against what was published, and all of its commands run on real clips.

The counts of parameters are at the published sizes, written down from the papers' tables or counted by hand from their
layers (a layer of i inputs and o outputs has i·o + o; torch's LSTM gates have two biases). What runs does so at a
reduced size, with random weights.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from pipeline.backbone import load_backbone
from pipeline.bank import Bank
from pipeline.heads import Head
from pipeline.recipes import find, names, read_recipe
from stages.cli import main
from stages.head_options import learning_of
from stages.options import read_window
from stages.recipe_options import SHIPPED
from stages.train_head import TrainHeadConfig
from tests.commands import framebank
from tests.finetuning import make_clips

CLASSES = 10


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def lstm(inputs: int, hidden: int) -> int:
    """One direction of one layer."""
    return 4 * (inputs * hidden + hidden * hidden + 2 * hidden)


def gru(inputs: int, hidden: int) -> int:
    return 3 * (inputs * hidden + hidden * hidden + 2 * hidden)


class Published(NamedTuple):
    """A system as its source has it.

    Attributes:
        shape: of the embedding of one row.
        network: parameters up to the embedding.
        head: parameters of the head, for CLASSES.
        small: what makes it small enough to run, as options of extract.
        quick: and of train-head.
    """

    shape: tuple[int, ...]
    network: int
    head: int
    small: tuple[object, ...] = ("--image-size", 32)
    quick: tuple[object, ...] = ()


# Whole networks at 400 classes by Tran et al. 2018, in millions: R2D 11.4, MC3 11.7, rMC3 33.0, R3D 33.4, R(2+1)D 33.3.
IN_MILLIONS = {"r2d": 11.4, "mc3": 11.7, "rmc3": 33.0, "r3d": 33.4}
VGG16 = 14_714_688  # its 13 convolutions, of 138,357,544 in all (Simonyan & Zisserman 2015: 138 million)
FC7 = VGG16 + linear(512 * 7 * 7, 4096) + linear(4096, 4096)
GOOGLENET = 5_599_904  # without its classifiers
STREAM = linear(3 * 4 * 121, 96) + linear(96 * 2 * 25, 256) + linear(256 * 2 * 9, 384)  # of slow fusion
STREAM += linear(384 * 9, 384) + linear(384 * 9, 256)
VGG_M = linear(5 * 49, 96) + linear(96 * 25, 256) + linear(256 * 9, 512) + 2 * linear(512 * 9, 512)
CLIPS = ("--image-size", 32, "--clip-length", 4, "--clip-stride", 2)
TABLE = {
    "cnn-lstm": Published(
        (2048,),
        44_549_160 - linear(2048, 1000),
        linear(2048, 300) + lstm(300, 256) + 2 * lstm(256, 256) + linear(256, 128) + linear(128, CLASSES),
    ),
    "video-rnn": Published(
        (4096,),
        FC7,
        2 * lstm(4096, 2048) + linear(2 * 2048, 256) + linear(256, CLASSES),
        quick=("--hidden", 8),
    ),
    "lrcn": Published(
        (512, 7, 7),
        VGG16,
        linear(512 * 7 * 7, 2048) + gru(2048, 1024) + linear(1024, CLASSES),
        quick=("--hidden", 8, "--projection", 16),
    ),
    "lip-vggm": Published(
        (512,), VGG_M + linear(512 * 9, 512), lstm(512, 256) + linear(256, CLASSES), ("--image-size", 64)
    ),
    "r2d": Published((512,), 11_317_632, linear(512, CLASSES), CLIPS),
    "f-r2d": Published((512,), 11_176_512, linear(512, CLASSES), CLIPS),
    "mc3": Published((512,), 11_490_240, linear(512, CLASSES), CLIPS),
    "rmc3": Published((512,), 32_852_544, linear(512, CLASSES), CLIPS),
    "r3d": Published((512,), 33_166_272, linear(512, CLASSES), CLIPS),
    "r2plus1d": Published((512,), 31_300_125, linear(512, CLASSES), CLIPS),
    "beyond-short-snippets": Published(
        (1000,),
        GOOGLENET + linear(1024, 1000),
        lstm(1000, 512) + 4 * lstm(512, 512) + linear(512, CLASSES),
        quick=("--hidden", 8),
    ),
    "beyond-short-snippets-pooling": Published(
        (1024,), GOOGLENET, linear(1024, 4096) + linear(4096, 4096) + linear(4096, CLASSES), quick=("--mlp", 16)
    ),
    "i3d": Published(
        (1024,),
        12_287_264,  # as in the paper's table: 12 M
        linear(1024, CLASSES),
        ("--image-size", 64, "--clip-length", 8, "--clip-stride", 4),
    ),
    "slow-fusion": Published(
        (4096,), 2 * STREAM + linear(2 * 256 * 49, 4096) + linear(4096, 4096), linear(4096, CLASSES)
    ),
    "two-stream-rgb": Published((4096,), FC7, linear(4096, CLASSES)),
    # the first convolution sees 20 channels of motion instead of three colours
    "two-stream-flow": Published((4096,), FC7 + (20 - 3) * 64 * 9, linear(4096, CLASSES)),
}
FUSED = "two-stream"
LIGHT = {"lip-vggm", "r2d", "beyond-short-snippets", "beyond-short-snippets-pooling"}
RUNS = [pytest.param(name, marks=() if name in LIGHT else pytest.mark.slow) for name in TABLE]


def options(command: str, arguments: list[str], recipe: str) -> dict[str, Any]:
    """What a command would be called with."""
    with main.commands[command].make_context(command, [*arguments, "--recipe", recipe]) as context:
        return dict(context.params)


def test_the_table_has_every_recipe() -> None:
    assert {*TABLE, FUSED} == set(names(SHIPPED))


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_is_the_published_architecture(name: str) -> None:
    published = TABLE[name]
    with main.commands["extract"].make_context("extract", ["d", "-o", "o", "--recipe", name]) as context:
        asked = dict(context.params)
        read_window(asked)
    backbone = load_backbone(
        asked["backbone"],
        weights="random",
        layer=asked["layer"],
        fit=asked["fit"] or "crop",
        window=asked["window"],
        inflate=asked["inflate"],
    )
    assert backbone.feature_shape == published.shape
    parameters = sum(parameter.numel() for parameter in backbone.module.parameters())
    assert parameters == published.network
    if name in IN_MILLIONS:
        assert (parameters + linear(512, 400)) / 1e6 == pytest.approx(IN_MILLIONS[name], abs=0.15)
    learning = learning_of(TrainHeadConfig, options("train-head", ["b", "-o", "r"], name))
    head = Head(replace(learning.head, steps=learning.objective.steps), published.shape, CLASSES)
    assert sum(parameter.numel() for parameter in head.parameters()) == published.head


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips"), count=8, size=32)


def run(*arguments: object) -> str:
    """The command, which must succeed: what it says."""
    done = framebank(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def train(bank: Path, out: Path, name: str, *more: object) -> Path:
    run("train-head", bank, "--out", out, "--recipe", name, *TABLE[name].quick, *FEW, *more)
    return out


FEW = ("--epochs", 1, "--test-share", 0.25)


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_runs_from_videos_to_predictions(tmp_path: Path, data: Path, name: str) -> None:
    bank, video = tmp_path / "bank.h5", data / "class0" / "clip00.mp4"
    recipe = ("--recipe", name)
    said = run("extract", data, "--out", bank, *recipe, "--weights", "random", *TABLE[name].small)
    assert "Banked      8 videos" in said
    with Bank(bank) as banked:
        assert len(banked) == 8
        features = banked["class0/clip00"]
    assert features.shape[-1] == (TABLE[name].shape[-1] if name != "lrcn" else 1)  # maps of 32 pixels are 1×1
    out = train(bank, tmp_path / "run", name)
    run("predict", out, video, "--csv", tmp_path / "p.csv")
    row = pd.read_csv(tmp_path / "p.csv").iloc[0]
    assert row["p_class0"] + row["p_class1"] == pytest.approx(1, abs=1e-5)
    assert row["predicted"] in ("class0", "class1")
    if "finetune" not in read_recipe(find(name, SHIPPED), SHIPPED).tables:
        return
    tuned = tmp_path / "tuned"
    run("finetune", data, "--head", out, "--out", tuned, *recipe, "--epochs", 1)
    run("predict", tuned, video, "--csv", tmp_path / "p2.csv")
    assert pd.read_csv(tmp_path / "p2.csv").iloc[0]["p_class0"] != row["p_class0"]


@pytest.mark.parametrize("fuse", [pytest.param("svm", marks=pytest.mark.slow), "mean"])
def test_two_streams_are_fused(tmp_path: Path, data: Path, fuse: str) -> None:
    network = ("--backbone", "squeezenet1_1", "--weights", "random", "--image-size", 32)
    pytest.importorskip("cv2", reason="measuring motion needs OpenCV")
    banks = [tmp_path / f"{stream}.h5" for stream in ("rgb", "flow")]
    for bank in banks:  # of TV-L1, the recipe's, come most of the seconds
        quick = ("--flow-method", "dis") if (fuse, bank.stem) == ("mean", "flow") else ()
        run("extract", data, "--out", bank, "--recipe", f"two-stream-{bank.stem}", *network, *quick)
    out, csv = tmp_path / "run", tmp_path / "p.csv"
    run("train-head", *banks, "--out", out, "--recipe", FUSED, "--fuse", fuse, *FEW)
    run("predict", out, data / "class1", "--csv", csv)
    predicted = pd.read_csv(csv)
    assert len(predicted) == 4
    assert (predicted["p_class0"] + predicted["p_class1"]).to_numpy() == pytest.approx(1, abs=1e-5)
