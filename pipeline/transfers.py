"""What a GPU is sent without waiting for it: a copy from ordinary memory begins only when all before it is done."""

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, by way of page-locked memory where it goes from here to a GPU; itself where it is there.

    The caller goes on at once: what it then asks of the GPU comes after the copy.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
