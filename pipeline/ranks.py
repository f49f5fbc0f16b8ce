"""One training over several processes, as torchrun starts them: what all of them add up, and which of them writes.

Each process is a rank: it computes on its share of every batch, and what is summed over all ranks is the same, bit for
bit, on each. So all of them take the same decisions, and none has to tell the others. Alone everything here does
nothing: code is written once, for any number of ranks.

All that add up or wait must do so, in the same order: who does not come is waited for.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import UserError

_PATIENCE = timedelta(days=2)  # the first rank may write, or decode a long video, while the others wait
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

Items = TypeVar("Items", bound="Sequence[Any] | np.ndarray")


@contextmanager
def joined() -> Iterator[None]:
    """Within it this process is one of those that torchrun started; without torchrun it is alone.

    What is summed on the CPU goes through gloo, on NVIDIA GPUs through NCCL. After an exception the others are not
    waited for: torchrun ends them.
    """
    alone = not all(name in os.environ for name in _TORCHRUN) or int(os.environ["WORLD_SIZE"]) == 1
    if alone or _is_joined():  # by the caller
        yield
        return
    if _local() < torch.cuda.device_count():
        torch.cuda.set_device(_local())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    yield
    wait()
    dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process with an exit status; one of several ends at once, with all that it has said written.

    What gloo leaves running is taken apart when a process ends by itself, and now and then aborts it there, when all is
    done (torch 2.14).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


def rank() -> int:
    """The number of this process among `size()`, from 0."""
    return dist.get_rank() if _is_joined() else 0


def size() -> int:
    """How many processes train together; 1 alone."""
    return dist.get_world_size() if _is_joined() else 1


def first() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return rank() == 0


def wait() -> None:
    """Go on when all ranks have come here."""
    sum_(torch.zeros(1))


def share(items: Items) -> Items:
    """What of `items` is this rank's: every `size()`th, of its own kind (a list of a list, an array of an array)."""
    return cast(Items, items[rank() :: size()])


def sum_(tensor: Tensor) -> Tensor:
    """Put the sum over all ranks in the place of a contiguous tensor, which is returned. No gradient flows through."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def summed(tensor: Tensor) -> Tensor:
    """The sum over all ranks, of any shape. Its gradient is that of the sum of what all ranks make of it: every rank
    must run its backward pass too, whether or not its own tensor hangs on anything."""
    result: Tensor = _Summed.apply(tensor)
    return result


def spread_(tensors: Iterable[Tensor]) -> None:
    """Put the first rank's numbers in the place of those that the others have, however they lie in memory."""
    if size() > 1:
        for tensor in tensors:
            numbers = tensor.detach().contiguous()
            dist.broadcast(numbers, 0)
            tensor.detach().copy_(numbers)


def same(value: Any) -> Any:
    """What the first rank has: plain values."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
    return box[0]


def device(name: str) -> str:
    """What `pipeline.encoder.choose_device` is to be given for `name`: each of several ranks has a GPU to itself.

    Raises:
        UserError: there are more ranks on this machine than GPUs, or the device is one that they cannot share out.
    """
    if size() == 1 or name == "cpu":
        return name
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name not in ("auto", "cuda"):
        raise UserError(f"several processes cannot all compute on {name}; give --device cuda, or cpu")
    gpus = torch.cuda.device_count()
    if _local() >= gpus:
        raise UserError(
            f"there are {gpus} GPUs on this machine, and process {_local() + 1} has none to itself; start as many "
            "processes as GPUs (torchrun --nproc-per-node), or give --device cpu"
        )
    return f"cuda:{_local()}"


class _Summed(torch.autograd.Function):
    """The derivative of every rank's result by this rank's tensor is 1, so the gradients add up as well."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_(gradient.clone(memory_format=torch.contiguous_format))


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _local() -> int:
    return int(os.environ["LOCAL_RANK"])
