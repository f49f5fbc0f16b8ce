"""Training: a head, sequences and targets -> the weights of the best epoch, and how it went.

All randomness of an epoch comes from the seed and the epoch's number. A training that was killed and resumed therefore
goes on as if nothing had happened: on a CPU, with as many threads, to the same weights bit for bit.

Several ranks (`pipeline.ranks`) make the same plan of an epoch, and each takes its share of the videos of every batch.
What is minimised is the mean over the targets of all, so their number changes nothing but what is drawn by dropout.

The loop never waits for a GPU: losses stay on the device until the epoch's end, when they are looked at together.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pipeline import ranks
from pipeline.allocator import keep_memory
from pipeline.epochs import Portion, apart, beginning, in_steps, portions_of, sizes_of
from pipeline.errors import UserError
from pipeline.heads import Carry, SequenceModel, without_rows
from pipeline.ids import readable
from pipeline.layout import with_data
from pipeline.metrics import frame_metrics, higher_is_better, video_metrics
from pipeline.objectives import Objective, TargetRows, balanced_weights, values_at
from pipeline.optimisation import FitConfig, RateGroup, average_gradients, optimizer_of, rate_of, take_step
from pipeline.scoring import Scores, evaluate
from pipeline.selection import Selection
from pipeline.sequences import Batch, Sequences
from pipeline.training_state import load_checkpoint, save_checkpoint

CHECKPOINT_SECONDS = 5.0  # at most so much work is lost, and an epoch
_ADVICE = "try a lower learning rate or clipping by norm, and look for odd features and targets"
Epoch = dict[str, Any]  # one row of the history


@dataclass(frozen=True)
class Fitted:
    """What came of a training.

    Attributes:
        state_dict: the head's, on the CPU, of the best epoch; of the last where nothing was validated.
        history: per epoch: epoch (from 1), train_loss, rows (that went through the head in training, of all ranks),
            learning_rate (of its last step; of several groups that of the first), seconds; with a validation part
            validation_loss and validation_METRIC.
        best_epoch: whose weights these are.
        notes: lines worth telling the user.
    """

    state_dict: dict[str, Tensor]
    history: list[Epoch]
    best_epoch: int
    notes: tuple[str, ...]


@dataclass
class _Course:
    """How far training has come, beside the weights and the optimiser's state."""

    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    finished: bool = False


@dataclass(frozen=True)
class _Task:
    """What an epoch needs; everything is on the device already."""

    head: SequenceModel
    sequences: Sequences
    targets: TargetRows
    train: np.ndarray
    validation: np.ndarray
    objective: Objective
    selection: Selection
    config: FitConfig
    optimizer: torch.optim.Optimizer
    on_begin: Callable[[int], None] | None
    notes: list[str]


def fit(
    head: SequenceModel,
    sequences: Sequences,
    targets: TargetRows,
    train: np.ndarray,
    validation: np.ndarray,
    objective: Objective,
    selection: Selection,
    config: FitConfig,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    on_begin: Callable[[int], None] | None = None,
    groups: Sequence[RateGroup] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Fitted:
    """Train a head; it ends on `device`, in evaluation mode, with the weights that are returned. All ranks must call
    it, with the same arguments but the device.

    Args:
        head: with its first weights; of several ranks the first one's count. Of values, the mean and the scale are set
            from the training targets. Where memory does not suffice for a step, its method `use_less_memory`, if it has
            one, is called until it does: it returns what it changed, which is noted, or None when there is nothing
            left to change.
        sequences: what it reads; in training `sequences.in_epoch(epoch)`, with epochs from 1.
        targets: those of all videos of the sequences.
        train, validation: positions of videos. The validation part decides which epoch is kept, when to stop, and when
            a plateau is reached; it may be empty, and then all epochs are run and the last is kept.
        objective: what to minimise; the scale of values and balanced weights are filled in.
        selection: which rows of a video are seen, at random in training where it draws.
        config: how.
        device: where.
        checkpoint: a file that the state is saved in at the end of epochs, at most every few seconds, and gone on
            from if it is there. It stays when training is finished.
        on_epoch: called with every new row of the history.
        on_begin: called before every epoch with the number of epochs that have passed; what requires a gradient may
            change there, among the parameters of `groups`.
        groups: the parameters that are trained, now or later, by learning rate; None: all that require a gradient now.
        identity: further plain settings that a checkpoint must have in common with this training.

    Raises:
        UserError: nothing to learn from, settings that don't go together, a loss that is not finite, or a checkpoint
            that cannot be read or is of another training.
    """
    device = torch.device(device)
    _check(head, targets, objective, config, device)
    if device.type == "cpu":
        keep_memory()  # else a fifth of a step, and more, goes into getting the same memory from the kernel again
    notes: list[str] = []
    train = _with_targets("training", train, targets, sequences, notes)
    validation = _with_targets("validation", validation, targets, sequences, notes)
    if not len(train):
        raise UserError("no training video has a target; give targets for some, or another split")
    check_parts(config, len(validation))
    if config.patience is not None and not len(validation):
        notes.append(f"there is no validation part to stop early by: all {config.epochs} epochs are run")
    sequences, targets, head = sequences.to(device), targets.to(device), head.to(device)
    places = _known_places(targets, sequences, train)
    if config.balance == "weights":
        weights, more = balanced_weights(targets, places)
        objective = replace(objective, class_weights=weights)
        notes += more
    elif objective.class_weights is not None:
        objective = replace(objective, class_weights=objective.class_weights.to(device))
    if objective.kind == "value":
        values = values_at(targets, places).double()
        objective = replace(objective, scale=float(values.std(correction=0)) or 1.0)
        head.value_mean.fill_(float(values.mean()))
        head.value_scale.fill_(objective.scale)
    optimizer = optimizer_of(head.parameters(), config, groups)
    task = _Task(head, sequences, targets, train, validation, objective, selection, config, optimizer, on_begin, notes)
    course, settings = _Course(), _settings(task, groups, identity)
    if checkpoint is not None and (found := load_checkpoint(checkpoint, settings, device)):
        head.load_state_dict(found.pop("model"))
        task.optimizer.load_state_dict(found.pop("optimizer"))
        course = _Course(**found)
    if ranks.same(len(course.history)) != len(course.history):
        raise UserError(f"rank {ranks.rank()} does not see the checkpoint {checkpoint} of the first; share the folder")
    ranks.spread_([*head.parameters(), *head.buffers()])
    saved = time.monotonic()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        while not course.finished:
            row = _run_epoch(task, course)
            due = course.finished or time.monotonic() - saved >= CHECKPOINT_SECONDS
            if checkpoint is not None and due and ranks.first():
                state = {"model": head.state_dict(), "optimizer": task.optimizer.state_dict(), **vars(course)}
                save_checkpoint(checkpoint, state, settings)
                saved = time.monotonic()
            if on_epoch is not None:
                on_epoch(row)
    head.load_state_dict(course.best)
    head.eval()
    best = {name: tensor.detach().cpu().clone() for name, tensor in course.best.items()}
    return Fitted(best, course.history, course.best_epoch, tuple(notes))


def _check(
    head: SequenceModel, targets: TargetRows, objective: Objective, config: FitConfig, device: torch.device
) -> None:
    """Refuse settings that don't go together."""
    if config.amp and device.type != "cuda":
        raise UserError(f"mixed precision is for NVIDIA GPUs, and this trains on {device.type}; leave it out")
    if config.amp and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("mixed precision needs a GPU that computes in bfloat16 (Ampere or newer); leave it out")
    if config.balance == "sampling" and (targets.kind != "class" or targets.per_frame):
        raise UserError("balanced sampling is for one class per video; use balanced weights, or none")
    if (objective.kind, objective.per_frame) != (targets.kind, targets.per_frame):
        raise ValueError(f"an objective for {objective.kind} and targets of {targets.kind}, or not both per frame")
    if head.config.steps != objective.steps:
        raise ValueError(
            "the head gives outputs per step and the objective wants them per video, or the other way round"
        )


def check_parts(config: FitConfig, validation: int) -> None:
    """Make sure that there is what the training watches. UserError: it watches the validation part of no videos."""
    if config.schedule == "plateau" and not validation:
        raise UserError(
            "the plateau schedule watches the validation loss, and there is no validation part; choose cosine"
        )
    if config.monitor != "loss" and not validation:
        raise UserError(
            f"{config.monitor} is watched on the validation part, and there is none; give --validation-share, or leave "
            "--monitor out"
        )


def _with_targets(
    part: str, videos: np.ndarray, targets: TargetRows, sequences: Sequences, notes: list[str]
) -> np.ndarray:
    """The videos that have a target; how many don't is noted."""
    known = targets.known
    if targets.per_frame:
        known = np.diff(np.concatenate([[0], np.cumsum(known)])[sequences.offsets]) > 0
    has = known[videos]
    if not has.all():
        notes.append(f"{part} videos without a target, left out: {int((~has).sum())} of {len(videos)}")
    return videos[has]


def _known_places(targets: TargetRows, sequences: Sequences, videos: np.ndarray) -> np.ndarray:
    """Positions in `targets.values` of all targets of some videos."""
    if not targets.per_frame:
        return videos
    spans = [np.arange(*sequences.offsets[video : video + 2]) for video in videos]
    places = np.concatenate(spans)
    return places[targets.known[places]]


def _settings(task: _Task, groups: Sequence[RateGroup] | None, identity: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a training must have in common with the one whose checkpoint it goes on from."""
    objective = {name: value for name, value in vars(task.objective).items() if not isinstance(value, Tensor)}
    values = task.targets.values.cpu().numpy()
    parts = {"train": task.train, "validation": task.validation}
    ids = {name: ",".join(task.sequences.ids[video] for video in part) for name, part in parts.items()}
    further: dict[str, Any] = {} if identity is None else {"identity": dict(identity)}
    if groups is not None:
        further["groups"] = {
            group.name: [group.rate, *(list(each.shape) for each in group.parameters)] for group in groups
        }
    return {
        **further,
        "head": asdict(task.head.config),
        "features": list(task.head.feature_shape),
        "fit": asdict(task.config),
        "objective": objective,
        "selection": asdict(task.selection),
        "targets_sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        **{
            f"{name}_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            for name, text in ids.items()
        },
    }


def _run_epoch(task: _Task, course: _Course) -> Epoch:
    """Train and validate one epoch, and note it in the course."""
    begun = time.perf_counter()
    epoch = len(course.history) + 1
    if task.on_begin is not None:
        task.on_begin(epoch - 1)
    loss, rows = _train_epoch(replace(task, sequences=task.sequences.in_epoch(epoch)), epoch, course.history)
    ranks.spread_(task.head.buffers())  # such as statistics that each rank gathers from its own rows
    row: Epoch = {"epoch": epoch, "train_loss": loss, "rows": rows}
    if len(task.validation):
        row.update(_validate(task))
    row["learning_rate"] = task.optimizer.param_groups[0]["lr"]
    row["seconds"] = time.perf_counter() - begun
    course.history.append(row)
    if not len(task.validation) or _improved(task.config.monitor, course):
        course.best_epoch = epoch
        course.best = {name: tensor.detach().clone() for name, tensor in task.head.state_dict().items()}
    patience = task.config.patience
    waited = patience is not None and epoch - course.best_epoch >= patience
    course.finished = epoch == task.config.epochs or waited
    return row


def _train_epoch(task: _Task, epoch: int, history: list[Epoch]) -> tuple[float, int]:
    """All steps of one epoch; returns the mean loss over its targets (NaN: random rows without a single target), and
    how many rows it saw; both of all ranks."""
    config = task.config
    seeds = np.random.SeedSequence([config.seed, epoch])
    torch.manual_seed(int(seeds.generate_state(ranks.size(), np.uint64)[ranks.rank()]))
    portions = portions_of(
        task.sequences,
        task.train,
        task.targets,
        task.selection,
        config,
        np.random.default_rng(seeds),
        bidirectional=task.head.config.bidirectional,
    )
    rate = rate_of(config, [row["validation_loss"] for row in history] if len(task.validation) else [])
    steps = in_steps(portions, config.accumulate)
    task.head.train()
    sums: list[Tensor] = []
    way = _Way(_batches(task, steps))
    for number, step in enumerate(steps):
        while (gradients := _gradients(task, step, way)) is None:  # again, from the step's beginning
            way.batches = _batches(task, steps[number:])
        sums.append(gradients)
        average_gradients(task.head.parameters(), gradients[1])
        take_step(task.optimizer, config, rate(epoch - 1 + (number + 0.5) / len(steps)))
    if not sums:
        return float("nan"), 0
    losses = ranks.sum_(torch.stack(sums)).double().cpu()
    _stop_if_not_finite(task, epoch, losses[:, 0], steps)
    return float(losses[:, 0].sum() / losses[:, 1].sum()), sum(portion.rows(task.sequences) for portion in portions)


@dataclass
class _Way:
    """What one portion of an epoch leaves to the next.

    Of long videos, for other parts of them: the mean, or where vectors are learnt (T, D) those that the epoch began
    with.
    """

    batches: Iterator[Batch]
    carry: Carry | None = None
    centres: dict[int, Tensor | None] = field(default_factory=dict)
    vectors: dict[int, Tensor] = field(default_factory=dict)


def _batches(task: _Task, steps: list[list[Portion]]) -> Iterator[Batch]:
    """The batches of this rank's shares of all portions, those that have a video."""
    shares = (portion.share() for step in steps for portion in step)
    return task.sequences.batches((share.videos, share.steps) for share in shares if len(share.videos))


def _gradients(task: _Task, step: list[Portion], way: _Way) -> Tensor | None:
    """Leave the gradients of the sum of a step's losses in the parameters.

    Returns:
        (2,) float32: this rank's sum, and the weight of the targets in it. None: memory did not suffice, and the model
        has been changed to use less; everything is as it was before but the batches, which have gone on.
    """
    carry, restore = way.carry, _restoring(task)
    try:
        return _backward(task, step, way)
    except torch.OutOfMemoryError:
        if restore is None or (changed := task.head.use_less_memory()) is None:  # type: ignore[attr-defined]
            raise
    restore()  # only here, where the failed step's tensors are no longer held by the exception
    way.carry = carry
    if changed not in task.notes:
        task.notes.append(changed)
    return None


def _backward(task: _Task, step: list[Portion], way: _Way) -> Tensor:
    sums = torch.zeros(2, device=task.sequences.device)
    for portion in step:
        share = portion.share()
        if not len(share.videos):
            with torch.set_grad_enabled(portion.learns):
                nothing = without_rows(task.head)
            if nothing.requires_grad:
                nothing.backward()
            continue
        batch = next(way.batches)
        with torch.autocast(task.sequences.device.type, torch.bfloat16, enabled=task.config.amp):
            output, way.carry = _outputs(task, share, batch, way)
        if portion.learns:
            total, weight = task.objective.loss_sum(output, share.targets(task.targets, batch))
            total.backward()
            sums += torch.stack([total.detach(), weight])
    return sums


def _restoring(task: _Task) -> Callable[[], None] | None:
    """What undoes a step that was not taken; None for a model that cannot do with less memory.

    Ranks that have statistics in common cannot either: the others would not come to the same sums again.
    """
    if not hasattr(task.head, "use_less_memory") or (ranks.size() > 1 and task.head.config.norm == "batch"):
        return None
    device = task.sequences.device
    drawn = torch.get_rng_state()
    drawn_on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    buffers = [buffer.clone() for buffer in task.head.buffers()]

    def restore() -> None:
        task.optimizer.zero_grad()
        torch.set_rng_state(drawn)
        if drawn_on_gpu is not None:
            torch.cuda.set_rng_state(drawn_on_gpu, device)
            torch.cuda.empty_cache()
        with torch.no_grad():
            for buffer, before in zip(task.head.buffers(), buffers, strict=True):
                buffer.copy_(before)

    return restore


def _outputs(task: _Task, portion: Portion, batch: Batch, way: _Way) -> tuple[Tensor | PackedSequence, Carry | None]:
    """What the head gives for a portion, and the state to carry on if the next one goes on from it."""
    head, carry = task.head, way.carry
    if portion.whole is None:
        return head(batch.packed), None
    _, chunk = sizes_of(task.sequences, task.config)
    if carry is None or not portion.chunk:
        carry = beginning(head, task.sequences, portion, chunk, way.centres)
    else:  # the videos that have ended are the last
        carry = carry.select(torch.arange(len(portion.videos), device=batch.rows.device))
    if head.config.centre and head.learns_vectors:
        carry = carry._replace(
            context=carry.context._replace(apart=apart(head, task.sequences, portion, chunk, way.vectors))
        )
    with torch.set_grad_enabled(portion.learns):
        states, carry = head.run(batch.packed, carry)
        return with_data(states, head.classify(states.data)), carry.detach()


def _stop_if_not_finite(task: _Task, epoch: int, losses: Tensor, steps: list[list[Portion]]) -> None:
    wrong = torch.nonzero(~losses.isfinite()).flatten().tolist()
    if wrong:
        videos = [video for portion in steps[wrong[0]] if portion.learns for video in portion.videos.tolist()]
        ids = [readable(task.sequences.ids[video]) for video in videos]
        shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise UserError(
            f"the loss is {losses[wrong[0]]:g} in epoch {epoch}, batch {wrong[0] + 1} of {len(losses)}; {_ADVICE} "
            f"in its videos: {shown}"
        )
    if not torch.stack([parameter.isfinite().all() for parameter in task.head.parameters()]).all():
        raise UserError(f"weights became infinite or NaN in the last steps of epoch {epoch}; {_ADVICE}")


def _validate(task: _Task) -> Epoch:
    """Loss and metrics of the validation part, as columns of the history."""
    loss, scores = evaluate(task.head, task.sequences, task.validation, task.targets, task.objective, task.selection)
    metrics = _metrics(task, scores)
    return {"validation_loss": loss, **{f"validation_{name}": value for name, value in metrics.items()}}


def _metrics(task: _Task, scores: Scores) -> dict[str, float]:
    values, kind = task.targets.values.cpu().numpy(), task.targets.kind
    if isinstance(scores, np.ndarray):
        return video_metrics(kind, values[task.validation], scores)
    offsets = task.sequences.offsets
    targets = [values[offsets[video] : offsets[video + 1]] for video in task.validation]
    return frame_metrics(kind, targets, [each.argmax(axis=1) for each in scores] if kind == "class" else scores)


def _improved(monitor: str, course: _Course) -> bool:
    """Whether the last epoch is the best so far.

    Raises:
        UserError: there is no such metric, or it is not defined on this validation part.
    """
    name = f"validation_{monitor}"
    now = course.history[-1]
    if name not in now:
        known = ", ".join(key.removeprefix("validation_") for key in now if key.startswith("validation_"))
        raise UserError(f"there is no metric {monitor!r} to watch; choose from {known}")
    if monitor == "loss" and not np.isfinite(now[name]):
        raise UserError(f"the validation loss is {now[name]:g} in epoch {now['epoch']}; {_ADVICE}")
    if not np.isfinite(now[name]):
        raise UserError(f"{monitor} is {now[name]:g} on the validation part; watch the loss, or give a larger part")
    best = course.history[course.best_epoch - 1][name]
    return course.best_epoch == 0 or (now[name] > best if higher_is_better(monitor) else now[name] < best)
