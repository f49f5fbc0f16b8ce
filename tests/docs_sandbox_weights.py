"""Named weights of torchvision without a network: random ones, made when they are asked for.

torchvision's names of weights lead to a file in $TORCH_HOME that is made on the spot, with its own digest in its name
as theirs have. All else (looking for the file, checking it, loading it) is as with the real ones.
"""

import hashlib
import os
from pathlib import Path

from torch import Tensor, hub, nn, no_grad, save
from torchvision.models import ResNet, WeightsEnum, get_model, get_model_weights, list_models
from torchvision.models.video import VideoResNet


def random_url(entry: WeightsEnum) -> str:
    """Where the weights "are": an address that ends with the name of a file that is there already."""
    folder = Path(hub.get_dir()) / "checkpoints"
    (name,) = (name for name in list_models() if entry in get_model_weights(name))
    made = next(folder.glob(f"{name}_{entry.name}-*.pth"), None)
    if made is None:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{name}_{entry.name}.{os.getpid()}"
        save(_random(name), draft)
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        made = draft.replace(folder / f"{name}_{entry.name}-{digest[:8]}.pth")
    return f"https://example.invalid/{made.name}"


def _random(name: str) -> dict[str, Tensor]:
    """Random tensors of a network whose embeddings float16 can hold."""
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = get_model(name, weights=None, **quick)
    if isinstance(model, ResNet | VideoResNet):  # every block adds to what comes in: 33 of them to 90,000
        with no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                    module.weight /= 2
    state: dict[str, Tensor] = model.state_dict()
    return state
