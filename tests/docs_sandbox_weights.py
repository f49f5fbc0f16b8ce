"""Named weights of torchvision without a network: random ones, made when they are asked for.

torchvision's names of weights lead to a file in $TORCH_HOME that is made on the spot, with its own digest in its name
as theirs have. All else (looking for the file, checking it, loading it) is as with the real ones.
"""

import hashlib
import os
from pathlib import Path

from torch import hub, save
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models


def serve_random_weights() -> None:
    """From now on, in this process."""
    WeightsEnum.url = property(random_url)


def random_url(entry: WeightsEnum) -> str:
    """Where the weights "are": an address that ends with the name of a file that is there already."""
    folder = Path(hub.get_dir()) / "checkpoints"
    (name,) = (name for name in list_models() if entry in get_model_weights(name))
    made = next(folder.glob(f"{name}_{entry.name}-*.pth"), None)
    if made is None:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{name}_{entry.name}.{os.getpid()}"
        quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        save(get_model(name, weights=None, **quick).state_dict(), draft)
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        made = draft.replace(folder / f"{name}_{entry.name}-{digest[:8]}.pth")
    return f"https://example.invalid/{made.name}"
