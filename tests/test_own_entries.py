"""A user's own network: a function of theirs, by its file or module, and no code that a bank names."""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2

from pipeline.backbone import load_backbone
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.halves import split
from pipeline.networks import absolute_name, blueprint_of, choose_preset, named_weights, recorded_name, window_of
from pipeline.windows import Window
from tests.clips import make_clip, plain
from tests.commands import framebank, said

SOURCE = """
import pathlib

import torch
from torch import nn

pathlib.Path(__file__).with_name("ran").write_text("it ran")


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 12, 3, 2)

    def forward(self, images):
        return torch.relu(self.body(self.stem(images))).mean((2, 3))


class Winding(Tower):
    def forward(self, images):
        features = super().forward(images)
        return features if bool((features >= 0).all()) else -features


SHOWN = {"size": 32, "resize": 36, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.25], "interpolation": "bicubic"}


def load():
    return Tower(), SHOWN


def winding():
    return Winding(), SHOWN
"""

TORCH = "import torch\ndef load():\n"
GOOD = "{'size': 32, 'mean': [0.5] * 3, 'std': [0.5] * 3}"

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def towers(tmp_path: Path) -> Path:
    """A file with two networks; it leaves a file `ran` beside itself where it runs."""
    path = tmp_path / "code" / "towers.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def noise(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def the_users(towers: Path, name: str) -> nn.Module:
    """What the function returns, called by hand as framebank says that it calls it."""
    namespace: dict[str, Any] = {"__file__": str(towers), "__name__": "by_hand"}
    exec(towers.read_text(), namespace)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return namespace[name]()[0].eval()


def test_the_network_is_what_the_function_returns(towers: Path) -> None:
    for name in ("load", "winding"):
        backbone = load_backbone(f"{towers}:{name}")
        assert (backbone.name, backbone.weights, backbone.feature_shape) == (f"towers:{name}", "DEFAULT", (12,))
        assert backbone.code == hashlib.sha256(towers.read_bytes()).hexdigest()
        assert bool(backbone.whole) == (name == "winding")
        with torch.no_grad():
            torch.testing.assert_close(backbone.module(noise()), the_users(towers, name)(noise()))
        assert load_backbone(f"{towers}:{name}").sha256 == backbone.sha256, "random weights are the same each time"
    assert load_backbone(f"{towers}:load", layer="stem").feature_shape == (8, 14, 14)
    with pytest.raises(UserError, match=r"layer 'stem' of towers:winding cannot be reached \(it cannot be traced: "):
        load_backbone(f"{towers}:winding", layer="stem")


def test_one_name_however_it_is_written(towers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(towers.parent)
    written = ["towers:load", "towers.py:load", "./towers.py:load", f"{towers}:load", "../code/towers:load"]
    assert {recorded_name(name) for name in written} == {"towers:load"}
    assert {load_backbone(name).sha256 for name in written} == {load_backbone("towers:load").sha256}
    assert {absolute_name(name) for name in written[:2]} == {f"{towers.with_suffix('')}:load"}
    assert absolute_name("xml.sax:parse") == "xml.sax:parse"  # installed
    assert str(towers.parent) not in sys.path


def test_frames_are_prepared_as_the_function_says(towers: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "data" / "clip.mp4", frames=6, size=(96, 64))
    options = ["--backbone", f"{towers}:load", "--precision", "fp32", "--store", "float32", "--device", "cpu"]
    result = framebank("extract", tmp_path / "data", "--out", tmp_path / "bank.h5", *options)
    assert result.exit_code == 0, result.output
    assert said(result, "Backbone").startswith("towers:load, layer mean (12), DEFAULT")
    resize = v2.Compose([v2.Resize(36, v2.InterpolationMode.BICUBIC), v2.CenterCrop(32)])
    normal = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.2, 0.25])]
    )
    images = torch.stack([normal(resize(Image.fromarray(frame))) for frame in plain(clip)])
    with torch.no_grad():
        expected = the_users(towers, "load")(images).numpy()
    with Bank(tmp_path / "bank.h5") as bank:
        np.testing.assert_allclose(bank["clip"], expected, atol=2e-3 * np.abs(expected).max())
        assert bank.config["recipe"]["code_sha256"] == hashlib.sha256(towers.read_bytes()).hexdigest()


def test_transforms_of_torchvisions_weights_will_do(towers: Path) -> None:
    towers.write_text(
        "from torchvision.models import ResNet18_Weights, resnet18\n"
        "def load():\n    return resnet18(), ResNet18_Weights.DEFAULT.transforms(crop_size=64, resize_size=72)\n"
    )
    preset = choose_preset(f"{towers}:load")
    assert (preset.resize, preset.crop, preset.interpolation, preset.antialias) == (72, 64, "bilinear", True)
    assert preset.mean == tuple(ResNet18_Weights.DEFAULT.transforms().mean)


def test_no_code_runs_because_a_bank_or_a_run_names_it(data: Path, towers: Path, tmp_path: Path) -> None:
    bank, head, tuned = tmp_path / "bank.h5", tmp_path / "head", tmp_path / "tuned"
    typed = ["--backbone", f"{towers}:load"]
    assert framebank("extract", data, "--out", bank, *typed).exit_code == 0
    assert "nothing" in said(framebank("extract", data, "--out", bank, *typed), "To do")
    trained = framebank("train-head", bank, "--out", head, "--epochs", 2, "--hidden", 4, "--group-column", "none")
    assert trained.exit_code == 0, trained.output
    clip = next((data / "class0").iterdir())
    ran = towers.with_name("ran")
    commands: list[list[object]] = [
        ["predict", head, clip],
        ["finetune", data, "--head", head, "--out", tuned, "--epochs", 1, "--unfreeze", 1],
        ["predict", tuned, clip],
        ["evaluate", tuned],
        ["extract", data, "--weights", tuned, "--out", tmp_path / "tuned.h5"],
    ]
    for command in commands:
        ran.unlink()
        refused = framebank(*command)
        assert refused.exit_code == 2, refused.output
        assert "type it again: --backbone towers:load" in refused.output
        assert not ran.exists()
        done = framebank(*command, *typed)
        assert done.exit_code == 0, done.output
        assert ran.exists()
    other = framebank("predict", head, clip, "--backbone", f"{towers}:winding")
    assert other.exit_code == 2
    assert "the bank was made with towers:load, not with" in other.output
    towers.write_text(SOURCE + "\n# another opinion\n")
    for command in (["extract", data, "--out", bank], ["predict", head, clip]):
        changed = framebank(*command, *typed)
        assert changed.exit_code == 2
        assert "code_sha256 is" in changed.output


def test_a_network_in_one_piece_trains_as_a_whole(towers: Path) -> None:
    halves = split(load_backbone(f"{towers}:winding"), ["network"])
    assert (halves.prefix, halves.share) == (None, 1.0)
    assert halves.flops > 0


def test_a_checkpoint_goes_into_the_network(towers: Path, tmp_path: Path) -> None:
    for name in ("load", "winding"):
        model = the_users(towers, name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        torch.save(model.state_dict(), tmp_path / "mine.pth")
        backbone = load_backbone(f"{towers}:{name}", weights=str(tmp_path / "mine.pth"))
        assert backbone.weights == "file:mine.pth"
        with torch.no_grad():
            torch.testing.assert_close(backbone.module(noise()), model(noise()))
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth does not fit towers:load \(1 tensors in the file, 8 needed"):
        load_backbone(f"{towers}:load", weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def load():\n    return 3\n", "towers:load returns a int; it has to return a torch.nn.Module and its"),
        ("import torch\ndef load():\n    return torch.nn.ReLU()\n", "returns a ReLU; it has to return"),
        ("import torch\ndef load():\n    return torch.nn.ReLU(), 3\n", "the preprocessing of towers:load is a int"),
        ("def other():\n    pass\n", r"towers.py has no function 'load'; its functions are other"),
        ("x = 1\nraise ValueError('no\\nsuch')\n", r"towers.py, line 2: ValueError: no$"),
        ("def load(:\n", r"towers.py, line 1: SyntaxError"),
        ("import no_such_thing\n", r"towers.py, line 1: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def load(weights):\n    pass\n", "TypeError: load\\(\\) missing 1 required"),
        ("def load():\n    raise SystemExit(0)\n", "towers.py, line 2: SystemExit: 0$"),
        (f"{TORCH}    return torch.jit.ScriptModule(), {GOOD}\n", "returns a network of TorchScript"),
        (f"{TORCH}    return torch.nn.LazyConv2d(4, 3), {GOOD}\n", "with parameters that have no shape yet"),
        (
            f"{TORCH}    return torch.nn.Conv2d(3, 4, 3).half(), {GOOD}\n",
            "towers:load fails on images of its own 32×32",
        ),
    ],
)
def test_what_the_function_does_wrong_is_one_line(towers: Path, source: str, message: str) -> None:
    towers.write_text(source)
    with pytest.raises(UserError, match=message) as error:
        load_backbone(f"{towers}:load")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("maps - maps.mean(0)", r"for the same image when it is alone and among others \(.* apart\)"),
        ("maps + torch.randn(1)", "for the same image when it is alone and among others"),
        ("maps * float('nan')", "towers:load gives values that are not finite for images of noise"),
    ],
)
def test_a_network_whose_embeddings_hang_on_their_batch_or_on_chance(towers: Path, gives: str, message: str) -> None:
    towers.write_text(
        "import torch\nclass Odd(torch.nn.Conv2d):\n"
        f"    def forward(self, images):\n        maps = super().forward(images)\n        return {gives}\n"
        f"def load():\n    return Odd(3, 4, 3), {GOOD}\n"
    )
    with pytest.raises(UserError, match=message):
        load_backbone(f"{towers}:load")


def test_what_the_function_prints_and_where_it_goes_stays_its_own(
    towers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path.cwd()
    towers.write_text(
        f"import os\nimport torch\ndef load():\n    print('hello')\n    os.chdir('/')\n"
        f"    return torch.nn.Conv2d(3, 4, 3), {GOOD}\n"
    )
    load_backbone(f"{towers}:load")
    assert capsys.readouterr() == ("", "hello\n"), "standard output may be a JSON document"
    assert Path.cwd() == before, "relative paths of the command are meant from where it began"


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ("{'size': 32, 'mean': [0.5] * 3}", "lacks std"),
        ("{**GOOD, 'crop': 3}", "has crop, which is none of size, mean"),
        ("{**GOOD, 'mean': [float('nan')] * 3}", r"has a mean of \[nan, nan, nan\], not three numbers"),
        ("{**GOOD, 'size': 32.0}", "has a size of 32.0, not whole pixels"),
        ("{**GOOD, 'std': [0.5, 0, 0.5]}", r"has a std of \[0.5, 0, 0.5\], not three numbers above 0"),
        ("{**GOOD, 'interpolation': 'lanczos'}", "has a interpolation of 'lanczos', not bilinear or bicubic"),
        ("{**GOOD, 'resize': 20}", "cannot crop 32 pixels out of a side resized to 20"),
    ],
)
def test_preprocessing_that_is_not_one(towers: Path, shown: str, message: str) -> None:
    towers.write_text(
        "import torch\nGOOD = {'size': 32, 'mean': [0.5] * 3, 'std': [0.5] * 3}\n"
        f"def load():\n    return torch.nn.Conv2d(3, 4, 3), {shown}\n"
    )
    with pytest.raises(UserError, match=message):
        load_backbone(f"{towers}:load")


def test_names_and_options_that_do_not_go_with_it(towers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{towers}:load"
    with pytest.raises(UserError, match="there is no module nowhere in the current folder, nor installed"):
        blueprint_of("nowhere:load")
    with pytest.raises(UserError, match=r"is not MODULE:FUNCTION, nor FILE\.py:FUNCTION"):
        blueprint_of("towers.py:load()")
    with pytest.raises(UserError, match="math has no Python source"):
        blueprint_of("math:sqrt")
    with pytest.raises(UserError, match="towers:load makes its weights itself"):
        named_weights(name, "random")
    with pytest.raises(UserError, match="--weights IMAGENET1K_V1 is no file; towers:load takes a checkpoint file"):
        named_weights(name, "IMAGENET1K_V1")
    with pytest.raises(UserError, match=r"towers:load sees a frame, not a stack; leave --stack out$"):
        window_of(name, Window("stack", 3))
    with pytest.raises(UserError, match="towers:load does not take 3×3 images"):
        load_backbone(name, image_size=3)
    shutil.copy(towers, towers.with_name("json.py"))
    with pytest.raises(UserError, match=r"a module named json is in use here already; rename .*json.py"):
        blueprint_of(f"{towers.with_name('json.py')}:load")
    assert not towers.with_name("ran").exists() or towers.with_name("ran").read_text() == "it ran"


@pytest.mark.slow
def test_workers_import_it_too(data: Path, towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(towers.parent)
    (towers.parent / "kit").mkdir()
    shutil.copy(towers, towers.parent / "kit" / "nets.py")
    for entry in ("towers:load", "kit.nets:load"):
        alone, spread = tmp_path / "alone.h5", tmp_path / "spread.h5"
        options = ["--backbone", entry, "--precision", "fp32"]
        assert framebank("extract", data, "--out", alone, *options).exit_code == 0
        result = framebank("extract", data, "--out", spread, *options, "--workers", 2)
        assert result.exit_code == 0, result.output
        with Bank(alone) as one, Bank(spread) as two:
            assert one.fingerprint == two.fingerprint
            for video in one:
                np.testing.assert_array_equal(one[video], two[video])
        for bank in (alone, spread):
            bank.unlink()
            shutil.rmtree(f"{bank}.parts", ignore_errors=True)
