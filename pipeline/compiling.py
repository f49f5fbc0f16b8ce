"""The network compiled for its one batch shape, where compiling pays for itself.

torch's compiler fuses what lies between the convolutions into C++ loops over blocks that stay in the cache. What it
makes is called by itself, without the checks (of threads, modes, shapes) by which `torch.compile` would compile anew in
every lane, and lets go of the interpreter while it runs. Rows come out the same, bit for bit, in every lane and at
every place of a batch; from those of the network as it is they differ by rounding (at batch 8, of the largest value of
a row: at most 1e-2 in bfloat16, 1e-5 in float32). So a bank begun one way is gone on with in that way.

What is generated is kept in torch's own cache (TORCHINDUCTOR_CACHE_DIR), from which compiling again is faster.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor], Tensor]

COMPILE_SECONDS = 40.0  # on one core, without anything in the cache
ASSUMED_GAIN = 1.1  # what was measured on CPUs lies between 1.08 and 1.4
KEPT_GAIN = 1.03  # less is noise
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}  # of the largest value
_FORWARDS = 100  # in so many at least, one to measure by is no matter
_ROUNDS = 5


@dataclass
class Compiling:
    """Whether a run's network is to be compiled, and whether it was.

    Attributes:
        rows: how many this run is to embed, by estimate; 0 where nobody knows.
        lanes: how many threads run the network side by side.
        banked: whether the bank was begun with a compiled network, and so is kept to; None: it begins now.
        on_note: called with a line where a network is not compiled that should have been.
        done: whether it is compiled: what the bank records.
    """

    rows: int
    lanes: int
    banked: bool | None
    on_note: Callable[[str], None]
    done: bool = False

    def __call__(
        self, forward: Forward, otherwise: Forward, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> Forward:
        """The compiled network where that is as the bank was begun, or pays; else `otherwise`.

        Args:
            forward: from uint8 rows of `shape` on the device to float32 embeddings: what is compiled.
            otherwise: the same, as it runs without.
            shape: of every batch, (B, *input_shape).
            device: where.
            dtype: what it computes in, which says how far rounding may go.
        """
        if self.banked is False or device.type not in ("cpu", "cuda"):
            return otherwise
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        with one_thread():
            if self.banked is None and not self._pays(otherwise, rows, device):
                return otherwise
            try:
                faster = compiled(forward, rows)
                difference = _difference(otherwise, faster, rows)
            except Exception as error:  # noqa: BLE001 - the compiler's own errors are of any class
                self._say(_reason(error))
                return otherwise
            if not difference <= TOLERANCES[dtype]:
                self._say(f"compiled, its embeddings differ by {difference:.2g} of the largest")
                return otherwise
            self.done = self.banked is not None or _gain(otherwise, faster, rows) >= KEPT_GAIN
        return faster if self.done else otherwise

    def _pays(self, forward: Forward, rows: Tensor, device: torch.device) -> bool:
        """Whether compiling saves more time than it takes, by what one forward pass takes here."""
        if self.rows < _FORWARDS * len(rows):
            return False
        at_once = self.lanes if device.type == "cpu" else 1  # a GPU has one forward after the other in work
        return pays(self.rows, _seconds(forward, rows) / len(rows), at_once)

    def _say(self, reason: str) -> None:
        rounding = "; the bank's other rows are from a compiled one, so these differ by rounding" if self.banked else ""
        self.on_note(f"The network runs uncompiled ({reason}){rounding}.")


def pays(rows: float, seconds_per_row: float, lanes: int) -> bool:
    """Whether compiling saves more time than it takes, by estimate.

    Args:
        rows: to embed.
        seconds_per_row: of one lane, not compiled.
        lanes: so many at once.
    """
    return rows * seconds_per_row / lanes * (1 - 1 / ASSUMED_GAIN) > COMPILE_SECONDS


def compiled(forward: Forward, rows: Tensor) -> Forward:
    """A network as one compiled function, for any thread, in inference mode.

    Its loops run on as many threads as the one has that calls this; what the libraries compute, on those of the caller.

    Args:
        forward: in evaluation mode, without anything that depends on the numbers.
        rows: of the shape, type and device of all that it will be called with.

    Raises:
        Exception: of whatever class, where torch cannot compile it here, such as without a C++ compiler.
    """
    with _quiet():
        from torch._inductor import config  # here, for it takes time to import and is seldom needed
        from torch._inductor.compile_fx import compile_fx

    made: list[Any] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        if len(inputs) != 1:
            raise ValueError(f"it takes {len(inputs)} inputs once compiled")
        made.append(compile_fx(graph, inputs))
        return made[-1]

    settings = {"freezing": True, "cpp_wrapper": True, "compile_threads": 1}
    try:
        with _quiet(), torch.no_grad(), config.patch(settings):
            torch.compile(forward, backend=keep, fullgraph=True, dynamic=False)(rows)
    finally:
        torch._dynamo.reset()  # which would keep every network it has seen
    (function,) = made

    def call(rows: Tensor) -> Tensor:
        embeddings: Tensor = function(rows)[0]
        return embeddings

    return call


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it this thread computes alone, as a lane does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, what the compiler has to say of itself goes unsaid; nothing else runs meanwhile."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@torch.inference_mode()
def _seconds(forward: Forward, rows: Tensor) -> float:
    begun = time.perf_counter()
    forward(rows).cpu()  # which waits for a GPU
    return time.perf_counter() - begun


def _gain(forward: Forward, faster: Forward, rows: Tensor) -> float:
    """How many times as fast the second is, by the best of several rounds in turn."""
    turns = [(_seconds(forward, rows), _seconds(faster, rows)) for _ in range(_ROUNDS)]
    before, after = map(min, zip(*turns, strict=True))
    return before / after


@torch.inference_mode()
def _difference(forward: Forward, faster: Forward, rows: Tensor) -> float:
    """The largest difference of their embeddings, in parts of the largest value; NaN where they are not finite."""
    expected = forward(rows)
    return float((faster(rows) - expected).abs().max() / expected.abs().max())


def _reason(error: Exception) -> str:
    """Why torch could not compile, in one line."""
    from torch._inductor.exc import InvalidCxxCompiler

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InvalidCxxCompiler):
            return "there is no C++ compiler here; install g++"
        cause = getattr(cause, "inner_exception", None) or cause.__cause__
    lines = str(error).strip().splitlines()
    return f"torch cannot compile it here: {lines[0] if lines else type(error).__name__}"
