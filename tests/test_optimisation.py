"""Learning rates against torch's own schedulers where it has them, clipping and decay against arithmetic."""

import dataclasses
import math
import random

import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.optimisation import FitConfig, optimizer_of, plateau_drops, rate_of, take_step


def rates(config: FitConfig, per_epoch: int = 4) -> list[float]:
    """Of every batch, with `per_epoch` batches in an epoch."""
    rate = rate_of(config, [])
    return [rate(epoch + (batch + 0.5) / per_epoch) for epoch in range(config.epochs) for batch in range(per_epoch)]


def test_constant_and_warm_up() -> None:
    assert rates(FitConfig(epochs=2, schedule="constant", warmup=0)) == [1.0] * 8
    warm = rates(FitConfig(epochs=2, schedule="constant", warmup=0.5))
    assert warm == [0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1]


def test_cosine_falls_to_nothing_over_the_epochs() -> None:
    # torch steps at the ends of batches, we at their middle: half a step apart
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    expected = []
    for step in range(40):
        optimizer.step()
        scheduler.step()
        if step % 2 == 0:
            expected.append(scheduler.get_last_lr()[0])
    assert rates(FitConfig(epochs=5, warmup=0)) == pytest.approx(expected, abs=1e-9)
    warm = rates(FitConfig(epochs=5, warmup=0.4))
    assert max(warm) == warm[8]
    assert warm[7] == pytest.approx(7.5 / 8)
    assert warm[-1] < 0.01


def test_step_schedule() -> None:
    config = FitConfig(epochs=5, schedule="step", step_epochs=2, step_factor=0.1)
    assert rates(config, 1) == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_steps_are_counted_from_the_end_of_the_warm_up() -> None:
    config = FitConfig(epochs=45, schedule="step", step_epochs=10, step_factor=0.1, warmup=10 / 45)
    rising = [(epoch + 0.5) / 10 for epoch in range(10)]
    falling = [0.1**drops for drops in range(4) for _ in range(10)][:35]
    assert rates(config, 1) == pytest.approx(rising + falling)


def test_plateau_is_torchs() -> None:
    draw = random.Random(0)
    for _ in range(20):
        losses = [draw.choice([1.0, 0.9, 0.8, 0.7]) for _ in range(30)]
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, threshold=0)
        for epoch, loss in enumerate(losses):
            scheduler.step(loss)
            drops = plateau_drops(
                losses[: epoch + 1], 3
            )  # torch lowers the rate after one epoch more than its patience
            assert 0.5**drops == pytest.approx(optimizer.param_groups[0]["lr"])
    config = FitConfig(schedule="plateau", step_epochs=3, step_factor=0.2)
    assert rate_of(config, [1.0, 2, 2, 2])(4.5) == pytest.approx(0.2)


def test_only_matrices_decay_and_what_is_frozen_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    model[2].requires_grad_(False)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    config = FitConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = optimizer_of(model.parameters(), config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    take_step(optimizer, config, 0.5)
    for name, value in model.named_parameters():
        decayed = 1 - 0.5 * 0.1 * 0.5 if name == "0.weight" else 1
        torch.testing.assert_close(value.detach(), before[name] * decayed)


def test_gradients_are_clipped_by_norm_and_then_by_value() -> None:
    weight = nn.Parameter(torch.zeros(2, 1))
    model = nn.Module()
    model.weight = weight
    config = FitConfig(optimizer="sgd", learning_rate=1.0, momentum=0, weight_decay=0, clip_norm=1.0, clip_value=0.7)
    optimizer = optimizer_of(model.parameters(), config)
    weight.grad = torch.tensor([[30.0], [40.0]])  # norm 50 -> (0.6, 0.8) -> (0.6, 0.7)
    take_step(optimizer, config, 1.0)
    assert weight.flatten().tolist() == pytest.approx([-0.6, -0.7])
    assert weight.grad is None


def test_sgd_has_nesterovs_momentum() -> None:
    weight = nn.Parameter(torch.zeros(1, 1))
    reference = nn.Parameter(torch.zeros(1, 1))
    model = nn.Module()
    model.weight = weight
    config = FitConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0, clip_norm=None)
    ours = optimizer_of(model.parameters(), config)
    torchs = torch.optim.SGD([reference], 0.1, momentum=0.9, nesterov=True)
    for gradient in (1.0, -2.0, 3.0):
        weight.grad, reference.grad = torch.full((1, 1), gradient), torch.full((1, 1), gradient)
        take_step(ours, config, 1.0)
        torchs.step()
    assert weight.item() == pytest.approx(reference.item())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be a whole number from 1"),
        ({"patience": 0}, "patience is 0"),
        ({"chunk_steps": 2}, "chunk steps is 2"),
        ({"learning_rate": -1.0}, "learning rate is -1; it must be above 0"),
        ({"learning_rate": math.nan}, "learning rate is nan"),
        ({"clip_norm": 0.0}, "clip norm is 0"),
        ({"weight_decay": -0.1}, "weight decay is -0.1"),
        ({"momentum": 1.0}, "momentum is 1"),
        ({"step_factor": 1.5}, "step factor is 1.5"),
        ({"warmup": 1.0}, "the warm-up is 1; it is a share"),
        ({"seed": -1}, "the seed is -1"),
        ({"optimizer": "adam"}, "optimizer 'adam' is not known; choose from adamw, sgd"),
        ({"schedule": "linear"}, "constant, cosine, step, plateau"),
        ({"balance": "both"}, "none, weights, sampling"),
    ],
)
def test_refusals_say_what_there_is(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(FitConfig(), **changes)  # type: ignore[arg-type]
