"""A training's state on disk: written whole or not at all, read without executing anything.

It holds tensors and plain values only. A kill while it is written leaves the one before it.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.bank import differences
from pipeline.errors import UserError
from pipeline.writing import replace_file


def save_checkpoint(path: Path, state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path` in one step.

    Args:
        path: its folder is made if need be.
        state: tensors and plain values, nested as one likes.
        settings: plain values; whoever reads the checkpoint must have the same.
    """
    content = io.BytesIO()
    torch.save({"state": dict(state), "settings": dict(settings)}, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())


def load_checkpoint(path: Path, settings: Mapping[str, Any], device: torch.device) -> dict[str, Any] | None:
    """What was saved, its tensors on `device`; None where there is no checkpoint.

    Raises:
        UserError: the checkpoint is damaged, or of a training with other settings.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location=device, weights_only=True)
        state, made = dict(found["state"]), dict(found["settings"])
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        raise UserError(f"the checkpoint {path} cannot be read; remove it to train from the start") from error
    if changed := list(differences(made, settings, ("in the checkpoint", "now"))):
        raise UserError(
            f"the checkpoint {path} is of another training: {'; '.join(changed[:3])}; "
            "train into another folder, or remove it to train from the start"
        )
    return state
