"""Trainings that two processes run together and one runs alone, to the same end: started by tests/test_ranks.py.

As a program, under torchrun, it runs all of them and leaves what came of them in a folder, one file for each rank.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import fitting, ranks
from pipeline.fitting import Fitted, fit
from pipeline.heads import Head, HeadConfig
from pipeline.objectives import Objective, TargetRows
from pipeline.optimisation import FitConfig
from pipeline.scoring import score
from pipeline.selection import Selection
from tests.heads import FEATURES, class_rows, sequences_of

LENGTHS = [5, 40, 12, 1, 23, 8, 33, 9, 2, 17, 6]
PLAIN = FitConfig(epochs=3, batch_size=5, optimizer="sgd", learning_rate=0.1, warmup=0, chunk_steps=10)
CLASSES = [0, 1, 2, 1, 0, 0, 2, 1, 0, 2, 0]


def head_of(outputs: int, **config: object) -> Head:
    torch.manual_seed(0)
    return Head(HeadConfig(**{"hidden": 8, "norm": "batch", **config}), (FEATURES,), outputs)  # type: ignore[arg-type]


def changed(**changes: object) -> FitConfig:
    return FitConfig(**{**vars(PLAIN), **changes})  # type: ignore[arg-type]


def values() -> TargetRows:
    numbers = np.arange(len(LENGTHS), dtype=np.float32)
    return TargetRows("value", False, (), torch.from_numpy(numbers), np.full(len(LENGTHS), True))


def framewise() -> TargetRows:
    """Classes of frames; the first video has none in its first 25, the last ones none at all."""
    classes = [row % 3 if row % 7 else -1 for row in range(sum(LENGTHS))]
    start = LENGTHS[0]
    classes[start : start + 25] = [-1] * 25
    classes[-8:] = [-1] * 8
    return class_rows(classes, ("a", "b", "c"), per_frame=True)


def trained(
    head: Head,
    targets: TargetRows,
    objective: Objective,
    config: FitConfig,
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    *,
    train: int = 11,
    **more: Any,
) -> dict[str, Any]:
    """What came of a training: weights, history, and scores of all videos. Those from `train` on validate."""
    sequences = sequences_of(LENGTHS)
    parts = np.arange(train), np.arange(train, len(LENGTHS))
    fitted: Fitted = fit(head, sequences, targets, *parts, objective, selection, config, **more)
    scores = score(head, sequences, np.array([4, 1, 3]), objective, selection, chunk_steps=10)
    history = [{**row, "seconds": 0} for row in fitted.history]
    return {"state": fitted.state_dict, "history": history, "scores": [torch.as_tensor(each) for each in scores]}


def resumed(folder: Path) -> dict[str, Any]:
    """Dropout, a checkpoint, and an interruption: the end, beside that of an undisturbed training."""
    fitting.CHECKPOINT_SECONDS = 0.0

    def interrupt(row: Any) -> None:
        if row["epoch"] == 2:
            raise InterruptedError

    def run(**more: Any) -> dict[str, Any]:
        head = head_of(3, input_dropout=0.3, output_dropout=0.3)
        return trained(head, class_rows(CLASSES, ("a", "b", "c")), Objective("class"), PLAIN, train=8, **more)

    undisturbed, checkpoint = run(), folder / "checkpoint.pt"
    try:
        run(checkpoint=checkpoint, on_epoch=interrupt)
    except InterruptedError:
        ranks.wait()  # a process that was started anew would come long after the file was written
    return {"undisturbed": undisturbed, "resumed": run(checkpoint=checkpoint)}


LABELS = ("a", "b", "c")
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "class": lambda: trained(head_of(3), class_rows(CLASSES, LABELS), Objective("class"), PLAIN),
    "adamw": lambda: trained(
        head_of(3, norm="none", pool="attention"),
        class_rows(CLASSES, LABELS),
        Objective("class", label_smoothing=0.1),
        changed(optimizer="adamw", learning_rate=1e-3, balance="weights"),
        train=10,
    ),
    # Without a cell no gradient flows into what is normalised. A video longer than `max_steps` is a batch by itself.
    "a batch of one": lambda: trained(
        head_of(3, cell="none", pool="mean"),
        class_rows(CLASSES, LABELS),
        Objective("class"),
        changed(batch_size=10, max_steps=32),
        train=10,
    ),
    "accumulate": lambda: trained(
        head_of(3, norm="none"),
        class_rows(CLASSES, LABELS),
        Objective("class"),
        changed(accumulate=2, batch_size=3, balance="weights"),
    ),
    "crops": lambda: trained(
        head_of(3), class_rows(CLASSES, LABELS), Objective("class"), PLAIN, Selection("crop", 6, test_crops=3)
    ),
    "every step": lambda: trained(
        head_of(3, steps=True), class_rows(CLASSES, LABELS), Objective("class", supervise="growing"), PLAIN
    ),
    "values": lambda: trained(
        head_of(1), values(), Objective("value"), changed(epochs=6, schedule="plateau", step_epochs=1), train=7
    ),
    "frames": lambda: trained(
        head_of(3, steps=True, centre=True, changes=(2,)),
        framewise(),
        Objective("class", per_frame=True),
        changed(batch_size=2, accumulate=2),
        train=9,
    ),
    "frames both ways": lambda: trained(
        head_of(3, steps=True, bidirectional=True), framewise(), Objective("class", per_frame=True), PLAIN, train=9
    ),
}


def small_things() -> dict[str, Any]:
    """What the parts of `pipeline.ranks` give on this rank."""
    own = torch.tensor([1.0, 2.0], requires_grad=True)
    total = ranks.summed(own * (ranks.rank() + 1))
    (total[0] * 10 + total[1] * (ranks.rank() + 1)).backward()
    weights = torch.nn.Parameter(torch.arange(24.0).view(2, 3, 2, 2) * (1 - ranks.rank()))
    if not ranks.first():
        weights = torch.nn.Parameter(weights.detach().to(memory_format=torch.channels_last))
    ranks.spread_([weights])
    return {
        "rank": ranks.rank(),
        "size": ranks.size(),
        "first": ranks.first(),
        "shares": [ranks.share([1, 2, 3]), ranks.share(np.arange(5)).tolist(), list(ranks.share(range(1)))],
        "same": ranks.same({"value": ranks.rank()}),
        "total": total.tolist(),
        "gradient": own.grad.tolist() if own.grad is not None else None,
        "spread": weights.flatten().tolist(),
        "device": ranks.device("cpu"),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with ranks.joined():
        found = {name: case() for name, case in CASES.items()}
        found |= {"resumed": resumed(folder), "small things": small_things()}
        torch.save(found, folder / f"rank{ranks.rank()}.pt")
    ranks.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
