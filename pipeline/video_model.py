"""Backbone and head as one module: packed frames, or what the frozen part makes of them -> what the head makes of them.

The CNN runs on `PackedSequence.data`, which holds the frames of all videos and no padding, and its embeddings are
packed again in the very same layout (batch sizes, sorted and unsorted indices: without the indices videos would swap
labels unnoticed). So it has the interface of `pipeline.heads.Head`, and is trained and scored by the same code.

Frozen are all parameters that `pipeline.unfreezing` does not name, whatever `train()` says: see `freeze` there. Frames
go through the network in micro-batches. With `recompute` only their inputs are kept for the backward pass, which then
runs the trained part once more (Chen et al. 2016, "Training deep nets with sublinear memory cost").
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from pipeline.backbone import Backbone
from pipeline.encoder import PRECISIONS, channels_last, choose_batch_size, in_channels_last, made_fast, placed
from pipeline.errors import UserError
from pipeline.halves import Suffix
from pipeline.heads import Carry, Head, HeadConfig
from pipeline.layout import with_data
from pipeline.pooling import Pool
from pipeline.preprocessing import normalise
from pipeline.unfreezing import Unfreezing, freeze

Front = Callable[[Tensor], Tensor]


class VideoModel(nn.Module):
    """Rows (n, ...) of B videos -> what `head` gives for their embeddings.

    Attributes:
        suffix: the part of the backbone that is trained, in part or whole; float32.
        head: the head.
        feature_shape: of a row: what the backbone sees, (3, S, S) uint8 of a frame, or boundary activations.
        micro_batch: rows that go through the network at once.
        recompute: whether activations are computed again in the backward pass instead of kept.
    """

    def __init__(
        self,
        suffix: Suffix,
        head: Head,
        *,
        front: Front | None,
        feature_shape: tuple[int, ...],
        unfreezing: Unfreezing,
        precision: str = "fp32",
        micro_batch: int = 32,
        recompute: bool = False,
        threads: int | None = None,
    ) -> None:
        """`front` takes rows to the input of the suffix, without gradients; None where they are that already.

        `precision` is that of the suffix's forward and backward pass, by autocast; the head computes in float32.
        `threads` of the CPU work on the backbone, in both passes, and one on the head, whose operations are so small
        that waking more threads takes longer than it saves; None leaves all as it is.
        """
        super().__init__()
        self.suffix: Suffix = channels_last(suffix)
        self.head = head
        self.feature_shape, self.unfreezing = feature_shape, unfreezing
        self.micro_batch, self.recompute, self.threads = micro_batch, recompute, threads
        self._front, self._dtype = front, PRECISIONS[precision]
        self.begin_epoch(0)

    def begin_epoch(self, epochs_passed: int) -> None:
        """Let train what trains from now on."""
        self._names = self.unfreezing.names_at(epochs_passed)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As usual, but what is frozen stays in evaluation mode."""
        super().train(mode)
        freeze(self.suffix.net, self._names, batch_norm=self.unfreezing.batch_norm, training=mode)
        return self

    def use_less_memory(self) -> str | None:
        """Change what memory hangs on, and say so; None when there is nothing left to change."""
        if not self.recompute and not self.unfreezing.batch_norm:  # whose statistics would be updated twice
            self.recompute = True
            return "memory did not suffice: activations are computed again in the backward pass"
        if self.micro_batch == 1:
            return None
        self.micro_batch //= 2
        return f"memory did not suffice: micro-batches of {self.micro_batch} frames from here on"

    def embed(self, rows: Tensor) -> Tensor:
        """Rows (n, *feature_shape) -> embeddings (n, ...) float32 as the head's bank holds them, maps unreduced."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        embeddings = self._in_pieces(rows)
        if self.threads is not None:
            torch.set_num_threads(1)
            embeddings = _Threads.apply(embeddings, self.threads)
        return embeddings

    def _in_pieces(self, rows: Tensor) -> Tensor:
        while True:
            try:
                pieces = [self._embed(piece) for piece in rows.tensor_split(-(-len(rows) // self.micro_batch))]
                return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            except torch.OutOfMemoryError:  # in training the whole step must be repeated, which is not done here
                if torch.is_grad_enabled() or self.use_less_memory() is None:
                    raise

    def _embed(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            inputs = rows if self._front is None else self._front(rows)
        inputs = in_channels_last(inputs)
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._trained, inputs, use_reentrant=False)
        return self._trained(inputs)

    def _trained(self, inputs: Tensor) -> Tensor:
        try:
            with torch.autocast(inputs.device.type, self._dtype, enabled=self._dtype != torch.float32):
                embeddings: Tensor = self.suffix(inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "a batch held a single frame, whose activations have no variance for BatchNorm; give larger batches, "
                "or "
                "leave --train-batch-norm out"
            ) from error
        return embeddings.float()

    # What follows is the interface of `pipeline.heads.Head`.

    @property
    def config(self) -> HeadConfig:
        return self.head.config

    @property
    def outputs(self) -> int:
        return self.head.outputs

    @property
    def pool(self) -> Pool | None:
        return self.head.pool

    @property
    def learns_vectors(self) -> bool:
        return True

    @property
    def value_mean(self) -> Tensor:
        return self.head.value_mean

    @property
    def value_scale(self) -> Tensor:
        return self.head.value_scale

    def forward(self, packed: PackedSequence) -> Tensor | PackedSequence:
        """(B, K) in the order in which the videos were packed; with `steps` packed like the input, (n, K)."""
        return self.head(with_data(packed, self.embed(packed.data)))

    def run(self, packed: PackedSequence, carry: Carry | None = None) -> tuple[PackedSequence, Carry]:
        """States at every step, and what the next piece of the same videos needs."""
        return self.head.run(with_data(packed, self.embed(packed.data)), carry)

    def vectors(self, rows: Tensor) -> Tensor:
        """Rows -> vectors (n, D) as the head reads them."""
        return self.head.vectors(self.embed(rows))

    def classify(self, states: Tensor) -> Tensor:
        """Pooled or single states (..., H) -> (..., K)."""
        return self.head.classify(states)


class _Threads(torch.autograd.Function):
    """Nothing on the way forward; backward, what comes before it is computed by so many threads."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, threads: int) -> Tensor:
        ctx.threads = threads
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        torch.set_num_threads(ctx.threads)
        return gradient, None


def front_of(backbone: Backbone, prefix: Backbone | None, precision: str, device: torch.device) -> Front:
    """What takes a backbone's uint8 rows (n, *input_shape) to the boundary, as the extraction engine does it: through
    the normalisation and, in `precision`, the frozen part of the backbone, if there is one."""
    dtype = PRECISIONS[precision]
    module = None
    if prefix is not None:
        placed(prefix.module, device, dtype)
        batch_size = choose_batch_size("auto", device, window=backbone.window) or 1
        module = made_fast(prefix, batch_size, device, dtype)

    def front(rows: Tensor) -> Tensor:
        inputs = normalise(backbone.preprocessing, rows, backbone.window)
        if module is None:
            return inputs
        activations: Tensor = module(in_channels_last(inputs.to(dtype)))
        return activations.float()

    return front


def kept_bytes(model: VideoModel, rows: Tensor) -> float:
    """Bytes per row that the backward pass of the trained part keeps, tried on rows (n, *feature_shape), n from 2.

    What it keeps of many rows and of few alike, such as weights in half precision, is not of the rows.
    """
    twice = torch.cat([rows, rows])
    return (_kept_bytes(model, twice) - _kept_bytes(model, rows)) / len(rows)


def _kept_bytes(model: VideoModel, rows: Tensor) -> int:
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.embed(rows)
    return sum(size for place, size in kept.items() if place not in own)
