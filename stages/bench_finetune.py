"""How fast fine-tuning is here: an epoch from videos beside one from the prefix bank, and what each of them is made of.

The ways train the same model on the same batches, one epoch of each in turn, so that whatever else the machine does
falls on all of them. Both begin each turn from the same weights, and their losses of it are held against each other:
left to themselves they drift apart where anything is rounded, for training amplifies that. The parts are measured
by themselves in the same turns: reading over a whole epoch, computation over some frames that lie in memory.

Two bounds say what to expect. One counts operations: with a forward pass of cost 1, of which the trained part is q, a
backward pass of twice that, and decoding that costs d, an epoch costs 1 + 2q + d from videos, and 3q from the bank if
reading it is free. The other adds up the parts as they were measured. On a GPU decoding and reading go on beside the
computation, and the longer of the two counts; on a CPU they share its cores, and both do.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.bank import Bank
from pipeline.blocks import blocks_of
from pipeline.bundles import load_bundle
from pipeline.encoder import choose_device
from pipeline.epochs import portions_of
from pipeline.errors import UserError
from pipeline.finetuning import (
    FIT,
    FROM_HEAD,
    MICRO_BATCH,
    UNFREEZE,
    Joint,
    JointPlan,
    bank_boundary,
    head_of,
    joint_on_banks,
    joint_on_frames,
    needs_recomputing,
    rates_of,
)
from pipeline.fitting import fit
from pipeline.halves import Halves, split
from pipeline.heads import Head, SequenceModel
from pipeline.objectives import TargetRows, target_rows
from pipeline.optimisation import RateGroup
from pipeline.prefix_bank import prefix_bytes
from pipeline.sequences import Sequences, available_bytes, load_sequences
from pipeline.starting_point import StartingPoint, bank_of, find_sources, open_run
from pipeline.targets import as_asked
from pipeline.unfreezing import groups_of, read_unfreezing
from pipeline.video_model import VideoModel
from pipeline.writing import check_outputs, write_json
from stages.console import Display, counted, plain_time
from stages.machine import clock_mhz, machine, machine_words, versions

OK, DIFFER, INTERRUPTED = 0, 1, 130
_VIDEOS, _BANKED, _HEAD = "1  from videos", "2  from the prefix bank", "3  the head alone, on its bank"
_DECODING, _FROZEN, _FORWARD = "decoding, preprocessing", "frozen part, forward", "trained part, forward"
_TRAINED, _READING = "trained part, both passes", "reading the prefix bank"
_SAMPLE_ROWS = 256  # that computation is measured on
# How far losses of an epoch from the same weights may be apart; whether the backbone computes in float32, in which the
# bank keeps every bit and another batch shape alone rounds otherwise.
TOLERANCES = {True: 1e-3, False: 0.05}


@dataclass(frozen=True)
class BenchFinetuneConfig:
    """Everything that `framebank bench finetune` can be told; the defaults are those of the command."""

    data: Path
    head: Path
    bank: Path | None = None
    weights: str | None = None
    backbone: str | None = None
    unfreeze: str = UNFREEZE
    videos: int = 24
    epochs: int = 3
    threads: int | None = None
    device: str = "auto"
    precision: str = "auto"
    json: Path | None = None


class _Setting(NamedTuple):
    """What all measurements have in common.

    Attributes:
        start: the run, with its bank and backbone.
        head: its final head.
        plan: of one epoch, with all that is to train in the end.
        halves: of the backbone; there is something before the boundary.
        files: the videos that are measured, as rows of `find_sources`.
        banked: their embeddings in the head's bank.
        targets: theirs.
        run_videos, run_rows: how many all videos of the run are, and have.
        threads: of the CPU, for the backbone.
    """

    start: StartingPoint
    head: Head
    plan: JointPlan
    halves: Halves
    files: pd.DataFrame
    banked: Sequences
    targets: TargetRows
    run_videos: int
    run_rows: int
    threads: int


class _Measured(NamedTuple):
    """What came of measuring.

    Attributes:
        seconds: of each way and part, per epoch, in every turn but the first.
        rows: that an epoch trains on.
        losses: of both ways, in every turn.
        place: where the prefix bank lies (`Sequences.place`); it is streamed if it would be for all videos of the run.
        kept: whether activations are kept for the backward pass, and not computed again.
    """

    seconds: dict[str, list[float]]
    rows: int
    losses: np.ndarray
    place: str
    kept: bool

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))


def run(config: BenchFinetuneConfig) -> int:
    """Measure, print, and write JSON if asked.

    Returns:
        the exit status: 0; 1 if the losses of both ways differ; 130 if it was interrupted.

    Raises:
        UserError: the run cannot be fine-tuned on these videos, or there is nothing to bank.
    """
    threads = torch.get_num_threads()
    with threadpool_limits(limits=1, user_api="blas"), ExitStack() as stack:
        torch.set_num_threads(1)  # for the head, as in fine-tuning; the backbone takes all
        stack.callback(torch.set_num_threads, threads)
        return _run(config, stack, config.threads or threads)


def _run(config: BenchFinetuneConfig, stack: ExitStack, threads: int) -> int:
    display = Display.beside(config.json)
    bank_path = bank_of(config.head, config.bank)
    check_outputs({"--json": config.json}, [bank_path])
    setting = _setting(config, stack.enter_context(Bank(bank_path)), threads)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="framebank-")))
    assert setting.halves.prefix is not None
    begun = time.perf_counter()
    with display.progress(
        len(setting.files), int(setting.banked.lengths.sum()), doing="banking the frozen part"
    ) as show:
        interrupted = bank_boundary(
            folder / "bench.h5",
            setting.halves.prefix,
            setting.start.bank,
            setting.files,
            precision=setting.plan.precision,
            device=setting.plan.device,
            data=config.data,
            on_progress=show,
            on_note=display.note,
        )
    banking = time.perf_counter() - begun
    if interrupted:
        return INTERRUPTED
    with display.steps("measuring", config.epochs + 1, "epochs", still=True) as show_epoch:
        measured = _measure(setting, folder / "bench.h5", config.epochs, show_epoch)
    result = _result(setting, measured, banking)
    _show(display, setting, measured, result)
    if config.json is not None:
        write_json(config.json, result)
    if not result["loss_difference"] <= result["loss_tolerance"]:
        display.line("The two ways do not give the same losses: that is an error in framebank; please report it.")
        return DIFFER
    return OK


def _setting(config: BenchFinetuneConfig, bank: Bank, threads: int) -> _Setting:
    """Some of the run's videos, evenly spread, and how fine-tuning would begin on them."""
    device = choose_device(config.device)
    weights = () if config.weights is None else (config.weights,)
    start = open_run(config.head, bank, weights, device=device, precision=config.precision, typed=config.backbone)
    learning = start.learning
    known = as_asked(learning.resolved(), bank)
    ids = [video for video in bank if video in known.values]
    rows = bank.catalog.set_index("id").loc[ids, "rows"]
    chosen = ids[:: max(1, len(ids) // config.videos)][: config.videos]
    banked = load_sequences([bank], chosen, spatial=learning.head.spatial)
    files = find_sources(config.data, bank, banked.ids)
    unfreezing = read_unfreezing(config.unfreeze, start.backbone, batch_norm=False)
    halves = split(start.backbone, unfreezing.names)
    if halves.prefix is None:
        raise UserError(
            f"With --unfreeze {config.unfreeze} nothing at the front of {start.backbone.name} is frozen, so there is "
            "nothing to bank and nothing to compare; let less of it train."
        )
    blocks = blocks_of(start.backbone)
    groups = groups_of(
        start.backbone.module.net, blocks, unfreezing, rate=FROM_HEAD.backbone_rate, decay=FROM_HEAD.layer_decay
    )
    plan = JointPlan(
        objective=learning.objective,
        selection=learning.selection,
        fit=replace(FIT, epochs=1),
        unfreezing=unfreezing,
        groups=tuple(groups),
        precision=start.precision,
        micro_batch=MICRO_BATCH[device.type],
        recompute=False,
        identity={},
        device=device,
        threads=threads if device.type == "cpu" else None,
    )
    targets = target_rows(known, banked)
    head = head_of(load_bundle(config.head))
    return _Setting(start, head, plan, halves, files, banked, targets, len(ids), int(rows.sum()), threads)


def _measure(setting: _Setting, prefix_bank: Path, epochs: int, show: Callable[[int], None]) -> _Measured:
    """Everything in turn, so many times, after a first turn that warms up; `show` is called with the turns before."""
    plan, halves = setting.plan, setting.halves
    assert halves.prefix is not None
    most_rows, device = plan.fit.max_steps, plan.device
    videos = joint_on_frames(
        halves,
        setting.start.backbone,
        setting.start.bank,
        setting.files,
        precision=plan.precision,
        device=device,
        most_rows=most_rows,
    )
    # Whether it fits into memory is asked of all that fine-tuning would bank, not of the few videos of this bench.
    whole = prefix_bytes(halves.prefix.feature_shape, setting.run_rows, setting.plan.precision)
    memory = 0 if whole > available_bytes() // 2 else None
    banked = joint_on_banks(halves, [prefix_bank], setting.banked, most_rows=most_rows, memory_bytes=memory)
    plan = replace(plan, recompute=needs_recomputing(videos, setting.head, plan)[0])
    setting = setting._replace(plan=plan)
    reads = {
        _VIDEOS: videos.sequences.to(device),
        _BANKED: banked.sequences.to(device),
        _HEAD: setting.banked.to(device),
    }
    models = {
        name: joint.model(copy.deepcopy(setting.head), plan) for name, joint in ((_VIDEOS, videos), (_BANKED, banked))
    }
    heads = copy.deepcopy(setting.head)
    seconds: dict[str, list[float]] = {
        name: [] for name in (_VIDEOS, _BANKED, _HEAD, _DECODING, _FROZEN, _FORWARD, _TRAINED, _READING)
    }
    losses: dict[str, list[float]] = {_VIDEOS: [], _BANKED: []}
    rows = []
    for turn in range(epochs + 1):
        show(turn)
        models[_BANKED].load_state_dict(models[_VIDEOS].state_dict())
        for name, model in models.items():
            epoch = _epoch(setting, model, reads[name], turn, rates_of(model, plan))
            seconds[name].append(epoch["seconds"])
            losses[name].append(epoch["train_loss"])
            rows.append(epoch["rows"])
        seconds[_HEAD].append(_epoch(setting, heads, reads[_HEAD], turn, None)["seconds"])
        seconds[_DECODING].append(_seconds(partial(_read, setting, reads[_VIDEOS], turn), device))
        seconds[_READING].append(_seconds(partial(_read, setting, reads[_BANKED], turn), device))
        for name, per_row in _computing(setting, videos, models[_BANKED], reads[_VIDEOS]).items():
            seconds[name].append(per_row * rows[-1])
    counted_turns = {name: each[1:] for name, each in seconds.items()}
    return _Measured(counted_turns, rows[-1], np.array(list(losses.values())), reads[_BANKED].place, not plan.recompute)


def _epoch(
    setting: _Setting, model: SequenceModel, sequences: Sequences, turn: int, groups: list[RateGroup] | None
) -> dict[str, Any]:
    """Train one epoch on; all that is to train in the end does. Returns its row of the history."""
    plan = setting.plan
    last = plan.unfreezing.stages[-1][0]
    fitted = fit(
        model,
        sequences,
        setting.targets.to(plan.device),
        np.arange(len(sequences)),
        np.zeros(0, np.int64),
        plan.objective,
        plan.selection,
        replace(plan.fit, seed=turn),
        device=plan.device,
        groups=groups,
        on_begin=(lambda _: model.begin_epoch(last)) if isinstance(model, VideoModel) else None,
    )
    return fitted.history[0]


def _read(setting: _Setting, sequences: Sequences, turn: int) -> None:
    """Take the batches of an epoch, and do nothing with them."""
    videos, drawn = np.arange(len(sequences)), np.random.default_rng(turn)
    portions = portions_of(
        sequences,
        videos,
        setting.targets,
        setting.plan.selection,
        setting.plan.fit,
        drawn,
        bidirectional=setting.head.config.bidirectional,
    )
    for _ in sequences.batches((portion.videos, portion.steps) for portion in portions):
        pass


def _computing(setting: _Setting, videos: Joint, model: VideoModel, frames: Sequences) -> dict[str, float]:
    """Seconds per row of the frozen and of the trained part, on rows that lie in memory."""
    plan = setting.plan
    assert videos.front is not None
    rows = frames.read(0, 0, _SAMPLE_ROWS)
    for video in range(1, len(frames)):
        if len(rows) < _SAMPLE_ROWS:
            rows = torch.cat([rows, frames.read(video, 0, _SAMPLE_ROWS - len(rows))])
    front = videos.front
    activations: list[Tensor] = []

    @torch.no_grad()
    def frozen() -> None:
        activations[:] = [front(piece) for piece in rows.split(plan.micro_batch)]

    @torch.no_grad()
    def forward() -> None:
        model.embed(inputs)

    def both() -> None:
        model.embed(inputs).sum().backward()

    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    found = {_FROZEN: _seconds(frozen, plan.device)}
    inputs = torch.cat(activations)
    found[_FORWARD] = _seconds(forward, plan.device)
    model.train()
    found[_TRAINED] = _seconds(both, plan.device)
    model.zero_grad()
    torch.set_num_threads(1)
    return {name: each / len(rows) for name, each in found.items()}


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """How long something takes until the device is done with it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _result(setting: _Setting, measured: _Measured, banking: float) -> dict[str, Any]:
    """All figures, for JSON."""
    plan, q = setting.plan, setting.halves.share
    median = {name: measured.median(name) for name in measured.seconds}
    beside = sum if plan.device.type == "cpu" else max
    computing = median[_TRAINED] + median[_HEAD]
    parts = {
        _VIDEOS: beside((median[_DECODING], median[_FROZEN] + computing)),
        _BANKED: beside((median[_READING], computing)),
    }
    forward = median[_FROZEN] + median[_FORWARD]
    d = median[_DECODING] / forward
    passes = 3 if measured.kept else 4  # in units of a forward pass; activations that are not kept cost another
    speedup = median[_VIDEOS] / median[_BANKED]
    saved = median[_VIDEOS] - median[_BANKED]
    return {
        "machine": machine(),
        "clock_mhz": clock_mhz(),
        "versions": versions(),
        "device": plan.device.type,
        "threads": setting.threads,
        "precision": plan.precision,
        "backbone": setting.start.backbone.name,
        "unfreeze": list(plan.unfreezing.names),
        "videos": len(setting.banked),
        "rows": measured.rows,
        "prefix_bank": measured.place,
        "recompute": not measured.kept,
        "least": {name: min(each) for name, each in measured.seconds.items()},
        "median": median,
        "banking_seconds": banking,
        "banking_epochs": banking / saved if saved > 0 else None,
        "q": q,
        "q_of_time": median[_FORWARD] / forward,
        "d": d,
        "passes": median[_TRAINED] / median[_FORWARD],
        "speedup": speedup,
        "bound_by_operations": (1 + (passes - 1) * q + d) / (passes * q),
        "bound_by_parts": parts[_VIDEOS] / parts[_BANKED],
        "parts": parts,
        "losses": dict(zip((_VIDEOS, _BANKED), measured.losses.tolist(), strict=True)),
        "loss_difference": float(np.abs(measured.losses[0] - measured.losses[1]).max()),
        "loss_tolerance": TOLERANCES[plan.precision == "fp32"],
    }


def _show(display: Display, setting: _Setting, measured: _Measured, result: dict[str, Any]) -> None:
    prefix, backbone, plan = setting.halves.prefix, setting.start.backbone, setting.plan
    assert prefix is not None
    median = result["median"]
    display.field("Machine", machine_words(result["machine"]))
    display.field(
        "Run",
        f"{setting.start.run}: {len(setting.banked)} of {counted(setting.run_videos, 'video')}, "
        f"{counted(measured.rows, 'frame')} an epoch, batches of at most {plan.fit.batch_size} videos and "
        f"{plan.fit.max_steps:,} frames",
    )
    where = plan.device.type + (f", {counted(setting.threads, 'thread')}" if plan.threads else "")
    display.field(
        "Backbone", f"{backbone.name}, layer {backbone.layer}, {backbone.weights}; {plan.precision} on {where}"
    )
    shape = "×".join(map(str, prefix.feature_shape))
    kept = "kept" if measured.kept else "computed again in the backward pass"
    display.field(
        "Trained",
        f"{', '.join(plan.unfreezing.names)}; frozen up to {prefix.layer} ({shape}), activations {kept}",
    )
    turns = len(measured.seconds[_VIDEOS])
    display.field("Measured", f"{counted(turns, 'epoch')} of each in turn, after one that warms up; medians")
    display.line()
    display.line(f"{'':<34}{'s/epoch':>9}{'ms/frame':>10}")
    for name, seconds in median.items():
        note = f" ({result['prefix_bank']})" if name == _READING else ""
        display.line(f"{name + note:<34}{seconds:>9.3f}{1000 * seconds / measured.rows:>10.3f}")
    display.line()
    frames = int(setting.banked.lengths.sum())
    paid = result["banking_epochs"]
    after = "never paid back" if paid is None else f"paid back after {counted(math.ceil(paid), 'epoch')}"
    each = 1000 * result["banking_seconds"] / frames
    display.field("Banking", f"{plain_time(result['banking_seconds'])} once, {each:.3f} ms per frame; {after}")
    display.field("Speed-up", f"{result['speedup']:.2f} times: (1) / (2)")
    q, d, kept_passes = result["q"], result["d"], measured.kept
    formula = "(1 + 2q + d) / 3q" if kept_passes else "(1 + 3q + d) / 4q"
    _bound(display, result, "bound_by_operations", f"by operations: {formula}, q = {q:.3f}, d = {d:.3f}")
    _bound(display, result, "bound_by_parts", "by the parts as measured")
    for way, parts in ((_VIDEOS, (_DECODING, _FROZEN, _TRAINED, _HEAD)), (_BANKED, (_READING, _TRAINED, _HEAD))):
        most = max(parts, key=median.__getitem__)
        display.field(
            f"Limit ({way[0]})",
            f"{most.removeprefix('3  ')}, {median[most] / median[way]:.0%} of its time; by themselves all its parts "
            f"take {result['parts'][way] / median[way]:.0%} of it",
        )
    display.field(
        "Operations",
        f"the trained part is {q:.0%} of those of a forward pass and {result['q_of_time']:.0%} of its time; its both "
        f"passes take {result['passes']:.1f} times one of them",
    )
    display.field(
        "Losses",
        f"of (1) and (2) differ by at most {result['loss_difference']:.2g} in {turns + 1} epochs, each from the same "
        f"weights (tolerance {result['loss_tolerance']:g})",
    )


def _bound(display: Display, result: dict[str, Any], name: str, what: str) -> None:
    display.field("Bound", f"{result[name]:.2f} times {what}; {result['speedup'] / result[name]:.0%} of it reached")
