"""The batch size of a GPU, found by a short probe: the smallest one that is about as fast as the fastest.

A small one keeps memory for other programs, fills sooner, and lets more lanes work side by side. What it found is
recorded in the bank, and a resumed run keeps to it.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from pipeline.backbone import Backbone
from pipeline.encoder import Encode, make_encoder
from pipeline.windows import Window

SIZES = (32, 64, 128, 256, 512)  # frames; of clips, as many as have so many frames together
AS_FAST = 0.97  # of the best rate
_SECONDS = 0.3  # that each size is measured for
_AT_LEAST = 3  # batches
_UNDER_WAY = 2  # batches


def probed_batch_size(backbone: Backbone, device: torch.device, precision: str, sizes: Sequence[int]) -> int:
    """The smallest of some batch sizes, rising, that is within 3 % of the fastest; less where not even the first fits,
    with another one under way.

    Raises:
        UserError: as `pipeline.encoder.make_encoder`.
    """
    encode, smallest = make_encoder(backbone, device, precision, sizes[0])
    if smallest < sizes[0]:
        return smallest
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            rates[size] = rate_of(encode, torch.zeros(size, *backbone.input_shape, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            break
    torch.cuda.empty_cache()  # the room that larger batches took
    return smallest_as_fast(rates) if rates else max(1, smallest // 2)


def sizes_for(window: Window) -> list[int]:
    """The sizes that are tried for rows of this kind."""
    return sorted({max(1, frames // window.depth) for frames in SIZES})


def smallest_as_fast(rates: Mapping[int, float]) -> int:
    """The smallest of some sizes whose rate, in rows per second, is within 3 % of the best."""
    enough = AS_FAST * max(rates.values())
    return min(size for size, rate in rates.items() if rate >= enough)


def rate_of(encode: Encode, batch: torch.Tensor) -> float:
    """Rows per second of batches of this size, with some of them under way as lanes have them."""
    encode(batch)()  # the first of a shape chooses its kernels
    under_way: deque[Callable[[], np.ndarray]] = deque()
    begun, done = time.perf_counter(), 0
    while done < _AT_LEAST or time.perf_counter() - begun < _SECONDS:
        under_way.append(encode(batch))
        if len(under_way) == _UNDER_WAY:
            under_way.popleft()()
            done += 1
    while under_way:
        under_way.popleft()()
        done += 1
    return done * len(batch) / (time.perf_counter() - begun)
