"""Weight files: a path -> named tensors, and named tensors -> their digest; nothing in a file is ever executed.

Read are PyTorch files (`.pth`, `.pt`, any other suffix; always `weights_only=True`) and `.safetensors`. The rules:

* The state dict may lie at the top or nested, as training scripts leave it, under the names of `NESTED_UNDER`,
  tried in that order, at any depth. What is no tensor there (an epoch, an accuracy) is dropped.
* A prefix of `WRAPPER_PREFIXES` (DataParallel's `module.`, torch.compile's `_orig_mod.`, ...) goes when *all* names
  carry it, again and again until none is left that all share.
* The names in which torchvision still publishes its DenseNets and vision transformers are brought up to date
  (`OLD_NAMES`, the renaming that torchvision's own loaders do).
"""

import argparse
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import UserError

NESTED_UNDER = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
OLD_NAMES = (
    # torchvision/models/densenet.py, _load_state_dict
    (re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$"), r"\1\2"),
    # torchvision/models/vision_transformer.py, MLPBlock._load_from_state_dict
    (re.compile(r"^(.*\.mlp)\.linear_1\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(.*\.mlp)\.linear_2\.(weight|bias)$"), r"\1.3.\2"),
)


MAX_NESTING = 4  # a file may even hold itself


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The named tensors of a weight file, on the CPU, by the rules above.

    UserError: no such file, not a weight file, damaged, pickled objects rather than tensors, or no tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"the weight file {path} {what}; check the path given to --weights")
    content = _read(path)
    state = _find_state_dict(content)
    if not state:
        inside = ", ".join(map(str, content)) if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(
            f"no state dict in {path}: looked at the top and under {', '.join(NESTED_UNDER)}, "
            f"found only {inside or 'nothing'}; save one with torch.save(model.state_dict(), FILE)"
        )
    odd = [
        name
        for name, tensor in state.items()
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized
    ]
    if odd:
        raise UserError(f"{path} holds sparse, quantised or empty (meta) tensors, e.g. {odd[0]}; save plain dense ones")
    return {_current_name(name): tensor for name, tensor in _strip_wrappers(state).items()}


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hex digits) over name, dtype, shape and bytes of every tensor, in the order of the names.

    BatchNorm's `num_batches_tracked` is left out: it changes no output, and older files lack it.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if _is_counter(name):
            continue
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def copy_into(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy each target's namesake of `state` into it, in place, converted to the target's dtype and device.

    Nothing is copied unless all fit. Returns what hinders: the names missing from `state`, and those of another shape
    as "NAME is (101, 512) instead of (1000, 512)". A missing `num_batches_tracked` is no hindrance and becomes 0.
    """
    missing = [name for name in targets if name not in state and not _is_counter(name)]
    misshaped = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(target.shape)}"
        for name, target in targets.items()
        if name in state and state[name].shape != target.shape
    ]
    if not missing and not misshaped:
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(state.get(name, torch.zeros_like(target)))
    return missing, misshaped


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _read(path: Path) -> Any:
    if path.suffix != ".safetensors" and _is_torchscript(path):
        raise UserError(
            f"{path} is a TorchScript archive, which holds code; save its tensors alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # torchvision's training script saves its arguments beside the model; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the weight file {path}: {error.strerror or error}") from error
    except Exception as error:  # damaged bytes make the readers raise nearly anything: all of it means "no weight file"
        pickled = re.search(r"GLOBAL (\S+)", str(error))
        if pickled:
            raise UserError(
                f"{path} holds pickled Python objects ({pickled[1]}), not only tensors, and framebank runs nothing "
                "from a file; where you trust it, save its tensors alone: torch.save(model.state_dict(), NEW_FILE)"
            ) from error
        raise UserError(
            f"{path} is not a PyTorch or safetensors weight file, or is damaged; fetch or save it again"
        ) from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _find_state_dict(content: Any, depth: int = MAX_NESTING) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not depth:
        return {}
    for key in NESTED_UNDER:
        state = _find_state_dict(content.get(key), depth - 1)
        if state:
            return state
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _strip_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _strip_wrappers({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def _current_name(name: str) -> str:
    for pattern, replacement in OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name
