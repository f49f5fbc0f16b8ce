"""How a head is trained, and the steps that its optimiser takes: AdamW or SGD, learning rate over time, clipping.

Nothing here has a memory but the optimiser itself. The learning rate is a function of how far training has come and of
the losses so far, so that a resumed training goes on exactly as an undisturbed one would have.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline import ranks
from pipeline.errors import UserError

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine", "step", "plateau")
BALANCES = ("none", "weights", "sampling")


@dataclass(frozen=True)
class FitConfig:
    """How a head is trained.

    Attributes:
        epochs: passes over the training videos.
        batch_size: most videos in a batch.
        max_steps: most rows of all videos of a batch together; one video alone may have more.
        chunk_steps: a longer video with a target per frame is trained in chunks of so many steps.
        optimizer: "adamw" (Loshchilov & Hutter 2019) or "sgd" (Nesterov's momentum where `momentum` is above 0).
        learning_rate: at its peak; of groups of parameters, each has its own.
        momentum: of SGD.
        weight_decay: of weight matrices; biases and other vectors are left alone.
        schedule: "constant"; "cosine", to 0 at the last epoch; "step", times `step_factor` every `step_epochs` epochs
            after the warm-up; "plateau", times `step_factor` when the validation loss has not fallen for `step_epochs`
            epochs.
        warmup: share of all epochs during which the learning rate rises linearly from 0, in any schedule.
        clip_norm, clip_value: gradients are clipped to this global norm, then each to this absolute value.
        balance: against classes of different size: "weights" in the loss, or "sampling" of videos (with replacement).
        patience: stop when `monitor` has not improved for so many epochs; None runs all epochs.
        monitor: "loss" or a metric of the validation part; decides which epoch's weights are kept.
        amp: bfloat16 mixed precision, on a GPU.
        seed: of everything random.
        accumulate: batches of a step: its gradient is that of the mean loss over all their targets.

    Raises UserError for a value that is out of range.
    """

    epochs: int = 30
    batch_size: int = 16
    max_steps: int = 32768
    chunk_steps: int = 256
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    warmup: float = 0.1
    step_epochs: int = 10
    step_factor: float = 0.5
    clip_norm: float | None = 1
    clip_value: float | None = None
    balance: str = "none"
    patience: int | None = None
    monitor: str = "loss"
    amp: bool = False
    seed: int = 0
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_steps", "step_epochs", "patience", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_spoken(name)} is {value}; it must be a whole number from 1")
        if self.chunk_steps < 8:
            raise UserError(f"chunk steps is {self.chunk_steps}; give at least 8, or nothing is left to learn from")
        for name in ("learning_rate", "clip_norm", "clip_value"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{_spoken(name)} is {value:g}; it must be above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"weight decay is {self.weight_decay:g}; it must be 0 or above")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum is {self.momentum:g}; it must be from 0 to below 1, such as 0.9")
        if not 0 < self.step_factor < 1:
            raise UserError(f"step factor is {self.step_factor:g}; it must be between 0 and 1, such as 0.1")
        if not 0 <= self.warmup < 1:
            raise UserError(f"the warm-up is {self.warmup:g}; it is a share of the training, from 0 to below 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"the seed is {self.seed}; it must be a whole number from 0")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("balance", BALANCES)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} {getattr(self, name)!r} is not known; choose from {', '.join(known)}")


class RateGroup(NamedTuple):
    """Parameters that share a learning rate; in training each is multiplied by the same schedule."""

    name: str
    parameters: list[nn.Parameter]
    rate: float  # at its peak


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def optimizer_of(
    parameters: Iterable[nn.Parameter], config: FitConfig, groups: Sequence[RateGroup] | None = None
) -> torch.optim.Optimizer:
    """The optimiser of a model's `parameters`; each of its groups keeps its peak learning rate as `peak_lr`.

    Args:
        parameters: all of the model.
        config: how they are trained.
        groups: which of them change, now or later: those that have no gradient in a step are passed over in it. None:
            all that require a gradient, at the configured learning rate.

    Raises:
        ValueError: a parameter requires a gradient and is in no group, or one is in two.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if groups is None:
        groups = [RateGroup("head", wanted, config.learning_rate)]
    elif {id(parameter) for parameter in wanted} - {id(each) for group in groups for each in group.parameters}:
        raise ValueError("a parameter requires a gradient and is in no group of the optimiser")
    parts = [
        {
            "params": [parameter for parameter in group.parameters if (parameter.ndim >= 2) == decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "peak_lr": group.rate,
        }
        for group in groups
        for decays in (True, False)
    ]
    parts = [part for part in parts if part["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parts, config.learning_rate, config.momentum, nesterov=config.momentum > 0, fused=True)
    return torch.optim.AdamW(parts, config.learning_rate, fused=True)


def average_gradients(parameters: Iterable[nn.Parameter], weight: Tensor) -> None:
    """Turn gradients of a sum of losses, on this rank, into those of the mean loss over all ranks.

    Args:
        parameters: those that require a gradient have one afterwards, on several ranks of zeros if need be.
        weight: of the targets in this rank's sum, a float32 scalar.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if ranks.size() > 1:
        for parameter in wanted:
            if parameter.grad is None:  # this rank had no video
                parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in wanted if parameter.grad is not None]
    if ranks.size() > 1:  # all in one message
        flat = ranks.sum_(torch.cat([weight.reshape(1), *(gradient.reshape(-1) for gradient in gradients)]))
        weight, pieces = flat[0], flat[1:].split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view(gradient.shape))
    torch._foreach_div_(gradients, weight)


def take_step(optimizer: torch.optim.Optimizer, config: FitConfig, factor: float) -> None:
    """Clip the gradients, change the parameters at `factor` of their peak learning rates, forget the gradients."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    if config.clip_value is not None:
        nn.utils.clip_grad_value_(parameters, config.clip_value)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    optimizer.step()
    optimizer.zero_grad()


def rate_of(config: FitConfig, losses: Sequence[float]) -> Callable[[float], float]:
    """A function from training's progress, in epochs, to the share of the peak learning rate.

    Progress is that of the middle of a step: the second of four batches of the first epoch has 1.5 / 4.

    Args:
        config: the schedule.
        losses: validation losses of the epochs before this one, for "plateau".
    """
    drops = plateau_drops(losses, config.step_epochs) if config.schedule == "plateau" else 0

    warmup = config.warmup * config.epochs

    def rate(progress: float) -> float:
        warm = min(1.0, progress / warmup) if warmup else 1.0
        if config.schedule == "cosine":
            part = max(0.0, progress - warmup) / (config.epochs - warmup)
            return warm * (1 + math.cos(math.pi * part)) / 2
        if config.schedule == "step":
            return warm * config.step_factor ** math.floor(max(0.0, progress - warmup) / config.step_epochs)
        return warm * config.step_factor**drops

    return rate


def plateau_drops(losses: Sequence[float], patience: int) -> int:
    """How often `losses` (one per epoch) stopped falling: whenever `patience` epochs in a row set no new minimum."""
    drops = waited = 0
    best = math.inf
    for loss in losses:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited == patience:
            drops, waited = drops + 1, 0
    return drops
