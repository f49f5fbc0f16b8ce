"""Weight files as people really have them: nested, wrapped, old, damaged, and dangerous."""

import argparse
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.checkpoints import copy_into, load_checkpoint, tensors_sha256
from pipeline.errors import UserError

STATE = OrderedDict(
    [
        ("conv.weight", torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2)),
        ("bn.weight", torch.tensor([1.5, -2.0])),
        ("bn.num_batches_tracked", torch.tensor(7)),
    ]
)


def assert_same(loaded: dict[str, torch.Tensor]) -> None:
    assert list(loaded) == list(STATE)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in STATE.items())


def prefixed(*prefixes: str) -> dict[str, torch.Tensor]:
    return {"".join(prefixes) + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "best_acc1": torch.tensor(76.1)},
        {"model_state_dict": STATE, "optimizer": {"state": {0: torch.ones(2)}}},
        {"epoch": 1, "model": {"state_dict": STATE}},
        {"model": STATE, "args": argparse.Namespace(lr=0.1, data_path="/data")},
        STATE | {"epoch": 4},
        prefixed("module."),
        prefixed("module.", "_orig_mod."),
        {"state_dict": prefixed("model.", "backbone.")},
        {name: nn.Parameter(tensor) if tensor.is_floating_point() else tensor for name, tensor in STATE.items()},
    ],
    ids=[
        "plain",
        "nested",
        "tensors-beside",
        "deep",
        "namespace",
        "dropped",
        "module",
        "compiled",
        "lightning",
        "parameters",
    ],
)
def test_state_dict_is_found_wherever_training_scripts_leave_it(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert_same(load_checkpoint(tmp_path / "weights.pth"))


def test_safetensors_and_the_old_torch_format(tmp_path: Path) -> None:
    save_file(dict(STATE), tmp_path / "weights.safetensors")
    loaded = load_checkpoint(tmp_path / "weights.safetensors")
    assert_same({name: loaded[name] for name in STATE})
    torch.save(STATE, tmp_path / "weights.pt", _use_new_zipfile_serialization=False)
    assert_same(load_checkpoint(tmp_path / "weights.pt"))


def test_prefix_stays_unless_all_names_share_it(tmp_path: Path) -> None:
    torch.save(prefixed("module.") | {"loss.weight": torch.ones(1)}, tmp_path / "weights.pth")
    assert "module.conv.weight" in load_checkpoint(tmp_path / "weights.pth")


def test_names_that_torchvision_still_publishes_are_brought_up_to_date(tmp_path: Path) -> None:
    renamed = {
        "features.denseblock1.denselayer1.norm.1.running_mean": "features.denseblock1.denselayer1.norm1.running_mean",
        "features.denseblock1.denselayer1.conv.2.weight": "features.denseblock1.denselayer1.conv2.weight",
        "encoder.layers.encoder_layer_0.mlp.linear_1.weight": "encoder.layers.encoder_layer_0.mlp.0.weight",
        "encoder.layers.encoder_layer_0.mlp.linear_2.bias": "encoder.layers.encoder_layer_0.mlp.3.bias",
        "layer1.0.conv1.weight": "layer1.0.conv1.weight",
    }
    torch.save({old: torch.ones(1) for old in renamed}, tmp_path / "weights.pth")
    assert list(load_checkpoint(tmp_path / "weights.pth")) == list(renamed.values())


class Bomb:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "extra": Bomb(tmp_path / "exploded")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"pickled Python objects .*not only tensors.*torch\.save"):
        load_checkpoint(tmp_path / "weights.pth")
    assert not (tmp_path / "exploded").exists()
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UserError, match=r"pickled Python objects \(torch\.nn\.modules\.linear\.Linear\)"):
        load_checkpoint(tmp_path / "module.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="TorchScript archive"):
        load_checkpoint(tmp_path / "weights.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "garbage", "half"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(dict(STATE), path) if suffix == ".safetensors" else torch.save(STATE, path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "garbage": b"no weights here " * 50, "half": whole[: len(whole) // 2]}[damage])
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*(damaged|fetch or save it again)"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [({"epoch": 3, "history": [1]}, "epoch, history"), ({}, "nothing"), (torch.ones(3), "a Tensor")],
)
def test_a_file_without_state_dict_says_what_it_holds(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=f"no state dict.*found only {found};"):
        load_checkpoint(tmp_path / "weights.pth")


def test_paths_that_are_no_readable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="is not a file"):
        load_checkpoint(tmp_path)

    def refuse(*_: object, **__: object) -> None:  # root may read everything, so chmod would not do
        raise PermissionError(13, "Permission denied")

    torch.save(STATE, tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(UserError, match=r"cannot read the weight file .*: Permission denied"):
        load_checkpoint(tmp_path / "weights.pth")


def test_sha256_depends_on_all_that_matters_and_on_nothing_else() -> None:
    digest = tensors_sha256(STATE)
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert tensors_sha256(OrderedDict(reversed(STATE.items()))) == digest
    assert tensors_sha256(STATE | {"bn.num_batches_tracked": torch.tensor(8)}) == digest
    assert tensors_sha256({n: t for n, t in STATE.items() if "num_batches" not in n}) == digest
    strided = STATE["conv.weight"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert tensors_sha256(STATE | {"conv.weight": strided}) == digest
    others = [
        {"conv.weight": STATE["conv.weight"] + 1},
        {"conv.weight": STATE["conv.weight"].reshape(2, 12)},
        {"conv.weight": STATE["conv.weight"].view(torch.int32)},
        {"bn.bias": torch.zeros(0)},
        {"scale": torch.tensor(1.0, dtype=torch.bfloat16)},
    ]
    assert len({digest, *(tensors_sha256(STATE | other) for other in others)}) == 1 + len(others)


def test_copy_into_copies_all_or_nothing() -> None:
    targets = {name: torch.full_like(tensor, -1) for name, tensor in STATE.items()}
    untouched = {name: tensor.clone() for name, tensor in targets.items()}
    wrong = {"conv.weight": torch.ones(2, 3, 1, 1), "unrelated": torch.ones(1)}
    assert copy_into(targets, wrong) == (["bn.weight"], ["conv.weight is (2, 3, 1, 1) instead of (2, 3, 2, 2)"])
    assert all(torch.equal(targets[name], untouched[name]) for name in targets)

    halves = {name: tensor.half() for name, tensor in STATE.items() if "num_batches" not in name}
    assert copy_into(targets, halves) == ([], [])
    assert_same(targets | {"bn.num_batches_tracked": STATE["bn.num_batches_tracked"]})
    assert targets["bn.num_batches_tracked"] == 0
    assert targets["conv.weight"].dtype == torch.float32
