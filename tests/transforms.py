"""What torchvision itself makes of a frame, with the transforms of its weights: the references for preprocessing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import convert_image_dtype
from torchvision.transforms.v2 import functional as v2

# Elsewhere torchvision resizes uint8 tensors in float32, because there that is faster.
WHOLE_NUMBERS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")

Shown = Callable[[Any, np.ndarray], Tensor]  # the transforms of weights, a frame (H, W, 3) -> (3, S, S)


def of_image(transforms: Any, rgb: np.ndarray) -> Tensor:
    """The transforms on a Pillow image, which they were made for."""
    return transforms(Image.fromarray(rgb))


def in_whole_numbers(transforms: Any, rgb: np.ndarray) -> Tensor:
    """The transforms' steps, resized as torchvision's v2 transforms resize uint8 tensors where `WHOLE_NUMBERS`."""
    image = torch.from_numpy(rgb).permute(2, 0, 1)
    resized = v2.resize(image, transforms.resize_size, interpolation=transforms.interpolation, antialias=True)
    pixels = convert_image_dtype(v2.center_crop(resized, transforms.crop_size), torch.float32)
    return v2.normalize(pixels, transforms.mean, transforms.std)
