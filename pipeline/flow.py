"""The motion between two prepared frames, as pixels that a network can see.

Measured on the network's square of S×S pixels, from the earlier frame to the later one: u is how far what lies at a
pixel moves to the right, v how far down, in pixels of the square. Three methods:

* `dis`: dense inverse search (Kroeger et al. 2016, "Fast optical flow using dense inverse search"), OpenCV's preset
  `medium`, on grey frames;
* `tvl1`: Zach, Pock & Bischof 2007, "A duality based approach for realtime TV-L1 optical flow", OpenCV's settings, on
  grey frames;
* `raft`: Teed & Deng 2020, "RAFT: recurrent all-pairs field transforms for optical flow", torchvision's networks, on
  RGB frames, in float32, on a CUDA GPU where there is one.

Stored are bytes: a displacement f, clipped to ±bound, becomes 128 + round(127 · f / bound), from 1 to 255. No motion is
128 exactly, and the motion of the mirrored video is the mirrored motion exactly (`mirrored`).

OpenCV computes on one thread: its DIS gives other numbers on two.
"""

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights, raft_large, raft_small
from torchvision.transforms.v2.functional import rgb_to_grayscale

from pipeline.checkpoints import copy_into, load_checkpoint, tensors_sha256
from pipeline.downloads import downloaded
from pipeline.errors import UserError

METHODS = ("dis", "tvl1", "raft")
STILL = 128  # the byte of no motion
_STEPS = 127  # bytes on either side of it
_LEAST = 12  # pixels; OpenCV's DIS takes no smaller square
_RAFT: dict[str, tuple[Callable[..., nn.Module], type[WeightsEnum]]] = {
    "raft_large": (raft_large, Raft_Large_Weights),
    "raft_small": (raft_small, Raft_Small_Weights),
}
_RAFT_LEAST, _RAFT_MULTIPLE = 128, 8  # pixels that it takes

Measure = Callable[[Tensor, Tensor], Tensor]


class _Network(NamedTuple):
    """A RAFT, loaded: torchvision's name of it, what its weights are called, their sum, the module on its device."""

    name: str
    weights: str
    sha256: str
    module: nn.Module
    device: torch.device


@dataclass(frozen=True)
class Flow:
    """How motion is measured.

    Attributes:
        method: one of `METHODS`.
        bound: the largest displacement that is told apart, in pixels of the square; what is farther is as far.
        weights: of `raft` alone: a name of torchvision's (C_T_SKHT_V2 is of raft_large; Raft_Small_Weights.C_T_V2 where
            both have the name) or a checkpoint file.

    UserError at birth: an unknown method, a bound that is not above 0, `raft` without weights, weights without `raft`.
    """

    method: str = "dis"
    bound: float = 20.0
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"there is no way {self.method!r} to measure motion; choose one of {', '.join(METHODS)}")
        if not (isfinite(self.bound) and self.bound > 0):
            raise UserError(f"a bound of {self.bound:g} pixels of motion is impossible; give a number above 0")
        if self.method == "raft" and self.weights is None:
            raise UserError(
                "RAFT has learnt to see motion, so it needs weights: add --flow-weights C_T_SKHT_V2, another of "
                "torchvision's names, or a file"
            )
        if self.method != "raft" and self.weights is not None:
            raise UserError(f"{self.method} has no weights; leave --flow-weights out, or choose --flow-method raft")

    def describe(self) -> dict[str, Any]:
        """What decides the measured motion, for the fingerprint: equal ways give equal, JSON-able dicts.

        Raises:
            UserError: RAFT's weights cannot be loaded.
        """
        described: dict[str, Any] = {"method": self.method, "bound": float(self.bound)}
        if self.method == "raft":
            described |= {"network": self.network.name, "weights_sha256": self.network.sha256}
        return described

    def recorded(self) -> dict[str, str]:
        """What is worth keeping beside the fingerprint: where RAFT's weights came from, or OpenCV's version.

        Raises:
            UserError: RAFT's weights cannot be loaded, or OpenCV is not installed.
        """
        return {"weights": self.network.weights} if self.method == "raft" else {"opencv": _opencv(self).__version__}

    @cached_property
    def network(self) -> _Network:
        """RAFT, loaded once. UserError: there are no such weights, or they do not fit."""
        assert self.weights is not None
        return _load(self.weights)


def measuring(flow: Flow) -> Measure:
    """What measures the motion between two frames; one for each thread.

    Returns:
        a function of two prepared frames (3, S, S) uint8, the earlier one first, to (2, S, S) uint8: u, then v. It
        raises UserError for a square that is too small.

    Raises:
        UserError: RAFT's weights cannot be loaded, or OpenCV is not installed.
    """
    field = _raft(flow.network) if flow.method == "raft" else _of_opencv(flow)
    return lambda first, second: quantised(field(first, second), flow.bound)


def quantised(field: Tensor, bound: float) -> Tensor:
    """Displacements in pixels, float of any shape -> bytes from 1 to 255 of the same shape; 0 is `STILL`."""
    steps = (field.clamp(-bound, bound) * (_STEPS / bound)).round()
    return (steps + STILL).to(torch.uint8)


def still(size: int) -> Tensor:
    """What is measured where nothing moves: (2, S, S) uint8 with S = `size`."""
    return torch.full((2, size, size), STILL, dtype=torch.uint8)


def mirrored(stack: Tensor) -> Tensor:
    """The motion of the mirrored video: (..., 2L, S, S) uint8 -> the same shape. Columns are reversed, u is negated."""
    stack = stack.flip(-1)
    stack[..., 0::2, :, :] = stack[..., 0::2, :, :].neg()  # of a byte q: 256 - q
    return stack


def _opencv(flow: Flow) -> ModuleType:
    """OpenCV, which only measuring motion needs, on one thread. UserError: it is not installed, or lacks the method."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"measuring motion by {flow.method} needs OpenCV, which is not installed; pip install 'framebank[flow]'"
        ) from error
    if flow.method == "tvl1" and not hasattr(cv2, "optflow"):
        raise UserError(
            f"this OpenCV ({cv2.__version__}) has no TV-L1, which is among its extra modules; uninstall it, then "
            "pip install 'framebank[flow]', or choose --flow-method dis"
        )
    cv2.setNumThreads(1)
    return cv2


def _of_opencv(flow: Flow) -> Measure:
    """Two frames -> displacements (2, S, S) float32, by DIS or TV-L1."""
    cv2 = _opencv(flow)

    def algorithm() -> Any:
        """A new one for each pair: at some sizes OpenCV's DIS remembers what it measured before."""
        if flow.method == "dis":
            return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return cv2.optflow.DualTVL1OpticalFlow_create()

    def field(first: Tensor, second: Tensor) -> Tensor:
        size = first.shape[-1]
        if size < _LEAST:
            raise UserError(
                f"motion cannot be measured on {size}×{size} pixels; give an --image-size of {_LEAST} or more"
            )
        earlier, later = (rgb_to_grayscale(frame)[0].contiguous().numpy() for frame in (first, second))
        return torch.from_numpy(algorithm().calc(earlier, later, None)).permute(2, 0, 1)

    return field


def _raft(network: _Network) -> Measure:
    """Two frames -> displacements (2, S, S) float32, by RAFT: frames padded at the right and below by their edge."""

    # torchvision's RAFT keeps what it is working on in its modules: on a CPU each thread has one of its own.
    module = network.module if network.device.type == "cuda" else copy.deepcopy(network.module)

    @torch.inference_mode()
    def field(first: Tensor, second: Tensor) -> Tensor:
        size = first.shape[-1]
        room = max(_RAFT_LEAST, -(-size // _RAFT_MULTIPLE) * _RAFT_MULTIPLE) - size
        with _TURN if network.device.type == "cuda" else nullcontext():
            pair = torch.stack([first, second]).to(network.device, torch.float32).div(255).sub(0.5).div(0.5)
            pair = F.pad(pair, (0, room, 0, room), mode="replicate")
            found: Tensor = module(pair[:1], pair[1:])[-1][0, :, :size, :size].cpu()
        return found

    return field


_TURN = threading.Lock()  # on one GPU, threads take turns


def _load(weights: str) -> _Network:
    """A RAFT with these weights; of a file, whichever of the two it fits."""
    named = _named(weights)
    if named is not None:
        name, entry = named
        path, label = (
            downloaded(name, entry.name, entry.url, "--flow-weights FILE"),
            f"{type(entry).__name__}.{entry.name}",
        )
    else:
        path, label = Path(weights), f"file:{Path(weights).name}"
        if not path.is_file():
            raise UserError(f"there is no file {path}; check the path given to --flow-weights")
    state = load_checkpoint(path)
    for name, (build, _) in _RAFT.items():
        with torch.random.fork_rng(devices=[]):
            module = build(weights=None).eval().requires_grad_(False)
        targets = module.state_dict()
        if state.keys() - targets.keys() or any(copy_into(targets, state)):
            continue
        if not all(tensor.isfinite().all() for tensor in targets.values()):
            raise UserError(f"{path} holds values that are not finite; choose other weights by --flow-weights")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return _Network(name, label, tensors_sha256(targets), module.to(device), device)
    raise UserError(
        f"{path} ({len(state)} tensors) fits neither raft_large nor raft_small of torchvision; give weights of one of "
        "them by --flow-weights"
    )


def _named(weights: str) -> tuple[str, WeightsEnum] | None:
    """The network and the entry of a name of torchvision's, raft_large first; None for a file. UserError: neither."""
    for name, (_, entries) in _RAFT.items():
        if (short := weights.removeprefix(f"{entries.__name__}.")) in entries.__members__:
            return name, entries[short]
    path = Path(weights)
    if path.suffix or path.name != weights or path.exists():
        return None
    raise UserError(
        f"RAFT has no weights {weights!r}; --flow-weights takes {', '.join(Raft_Large_Weights.__members__)}, "
        f"{', '.join(f'Raft_Small_Weights.{name}' for name in Raft_Small_Weights.__members__)}, or a file"
    )
