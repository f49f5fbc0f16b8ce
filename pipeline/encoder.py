"""The backbone as a function from uint8 rows to embeddings, on a device and in a precision that are stated.

A row is what the backbone sees of a video at once: a frame, a stack, a clip. The batch shape is constant (the last
batch is filled up), so that the same kernels run for every row and a video's embedding does not depend on which videos
shared its batch.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.allocator import keep_memory
from pipeline.backbone import Backbone, FeatureExtractor
from pipeline.compiling import TOLERANCES, Compiling, Forward
from pipeline.errors import UserError
from pipeline.folding import folded
from pipeline.prepacking import can_prepack, prepacked
from pipeline.preprocessing import normalise
from pipeline.windows import FRAME, Window

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH_SIZES = {"cpu": 8, "mps": 64}  # frames; of clips, as many as have so many frames together
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes

# Starts the forward of (B, *input_shape) uint8 rows; what it returns waits for it and gives (B, …) float32 embeddings.
# On a CPU, and on Apple's GPU, they are computed before it returns.
Encode = Callable[[Tensor], Callable[[], np.ndarray]]
_Module = TypeVar("_Module", bound=nn.Module)


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes a CUDA GPU, then Apple's, then the CPU.

    Raises:
        UserError: the name is unknown or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Device {name!r} is not usable here ({reason}); try --device auto or cpu.") from error
    return device


def native_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself: where it is emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_precision(name: str, device: torch.device, banked: str | None = None) -> str:
    """The compute precision; `auto` keeps to what the bank was begun with, else bf16 where it is native, else fp32."""
    if name != "auto":
        return name
    return banked or ("bf16" if native_bf16(device) else "fp32")


def choose_batch_size(
    size: str | int, device: torch.device, banked: Mapping[str, Any] | None = None, window: Window = FRAME
) -> int | None:
    """The batch size; `auto` keeps to what the bank was begun with on such a device: resumed rows are the same.

    None, on a GPU of CUDA alone, is for `pipeline.batch_probe` to find.
    """
    if size != "auto":
        return int(size)
    if banked is not None and banked.get("device") == device.type:
        return int(banked["batch_size"])
    if device.type == "cuda":
        return None
    frames = BATCH_SIZES.get(device.type, BATCH_SIZES["cpu"])
    return max(1, frames // window.depth)


def placed(module: FeatureExtractor, device: torch.device, dtype: torch.dtype) -> FeatureExtractor:
    """A frozen float32 network on a device, in a precision, as it is fastest there; changed in place."""
    module.net = folded(module.net)
    module = channels_last(module.to(device, dtype))
    if device.type == "cpu" and dtype != torch.float32:
        for parent in list(module.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.AvgPool3d):
                    setattr(parent, name, _Float32(child))
    return module


def made_fast(backbone: Backbone, batch_size: int, device: torch.device, dtype: torch.dtype) -> FeatureExtractor:
    """The module of a backbone that is `placed`; on a CPU with its convolutions prepacked for batches of one size.

    It is the module as it is where torch has no such kernels, where it does not give the same finite numbers for noise,
    and of a user's own network, which may compute anything: numbers that are not finite have to be seen
    (`pipeline.sealing`). Call it in inference mode.
    """
    module, shape = backbone.module, (batch_size, *backbone.input_shape)
    if device.type != "cpu" or backbone.code or not can_prepack(dtype):
        return module
    images = in_channels_last(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))
    try:
        net = prepacked(module.net, images)
        faster = FeatureExtractor(net, layout=module.layout, average=module.average).eval()
        with torch.inference_mode():
            expected, found = (each(images.clone()).float() for each in (module, faster))
    except Exception:  # noqa: BLE001 - of kernels that torch lacks for what it was asked, of any class
        return module
    apart = (found - expected).abs().max()  # NaN where one of them is not finite
    return faster if apart <= TOLERANCES[dtype] * expected.abs().max() else module


class _Float32(nn.Module):
    """An operation that the CPU knows in float32 alone (torch's avg_pool3d), for other precisions."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.operation(features.float())
        return result.to(features.dtype)


def channels_last(module: _Module) -> _Module:
    """A module with the channels of its images and volumes last in memory, changed in place; the numbers stay."""
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = in_channels_last(tensor.data)
    return module


def in_channels_last(tensor: Tensor) -> Tensor:
    """Images (N, C, H, W) or volumes (N, C, T, H, W) with the channels last in memory; others as they are."""
    layout = _CHANNELS_LAST.get(tensor.ndim)
    return tensor if layout is None else tensor.contiguous(memory_format=layout)


def make_encoder(
    backbone: Backbone, device: torch.device, precision: str, batch_size: int, compiling: Compiling | None = None
) -> tuple[Encode, int]:
    """Put the backbone on the device and try one batch, halving the batch size while the device has no room for it.

    On a CPU this process's allocator is told, once, to keep what it has: batches are all of one size, and a third of
    the time of a small network would go into getting the same memory from the kernel again for each. `compiling` says
    afterwards whether the network is compiled; None leaves it as it is.

    Returns:
        the encoder, from (B, *input_shape) uint8 rows to (B, D) or (B, C, H, W) float32 embeddings, and B. The rows may
        not change before it has given its embeddings.

    Raises:
        UserError: not even one row fits, or the device can't compute in this precision.
    """
    dtype = PRECISIONS[precision]
    if device.type == "cpu":
        keep_memory()
    module = placed(backbone.module, device, dtype)

    def forward(rows: Tensor, module: FeatureExtractor = module) -> Tensor:
        batch = normalise(backbone.preprocessing, rows, backbone.window)
        embeddings: Tensor = module(in_channels_last(batch.to(dtype))).float()
        return embeddings

    encoding = _submitting if device.type == "cuda" else _computing
    encode = encoding(forward, device)
    what = "frame" if backbone.window == FRAME else f"{backbone.window.kind} of {backbone.window.length}"
    while True:
        try:
            encode(torch.zeros(batch_size, *backbone.input_shape, dtype=torch.uint8))()
            break
        except torch.OutOfMemoryError as error:
            if batch_size == 1:
                raise UserError(f"{device} has no room for one {what}; try --device cpu.") from error
            batch_size //= 2
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{backbone.name} does not run in {precision} on {device} ({reason}); try --precision fp32."
            ) from error
    shape = batch_size, *backbone.input_shape
    faster: Forward = partial(forward, module=made_fast(backbone, batch_size, device, dtype))
    if compiling is not None:
        faster = compiling(forward, faster, shape, device, dtype)
    return encoding(faster, device), batch_size


def batches_ahead(device: torch.device) -> int:
    """How many batches of a lane may be under way on a device while it fills the next: one where they are submitted."""
    return 1 if device.type == "cuda" else 0


def _computing(forward: Forward, device: torch.device) -> Encode:
    """Forwards that are done when they return: on a CPU side by side, else one after the other."""
    turn = nullcontext() if device.type == "cpu" else threading.Lock()

    @torch.inference_mode()
    def encode(rows: Tensor) -> Callable[[], np.ndarray]:
        with turn:
            embeddings: np.ndarray = forward(rows.to(device)).cpu().numpy()
        return lambda: embeddings

    return encode


def _submitting(forward: Forward, device: torch.device) -> Encode:
    """Forwards on a stream of their own: batches come to the GPU on the callers' streams, beside the one it computes.

    All forwards share the one stream, and so the memory of their activations.
    """
    stream, turn = torch.cuda.Stream(device), threading.Lock()

    @torch.inference_mode()
    def encode(rows: Tensor) -> Callable[[], np.ndarray]:
        sent = rows.to(device, non_blocking=True)
        sent.record_stream(stream)  # whose memory is not to be used again before this stream is done with it
        sending = torch.cuda.current_stream(device).record_event()
        with turn, torch.cuda.stream(stream):
            stream.wait_event(sending)
            embeddings = forward(sent)
            fetched = torch.empty(embeddings.shape, dtype=embeddings.dtype, pin_memory=True)
            fetched.copy_(embeddings, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # one that is waited for asleep
            done.record(stream)

        def result() -> np.ndarray:
            done.synchronize()
            return fetched.numpy().copy()  # pinned memory goes back to the next batch

        return result

    return encode
