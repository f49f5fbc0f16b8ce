"""Stage three: videos and a head on their bank -> backbone and head trained end to end, in a run folder."""

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from pipeline import ranks, runs
from pipeline.augmentation import Augmentation
from pipeline.bank import Bank
from pipeline.blocks import blocks_of
from pipeline.encoder import choose_device
from pipeline.errors import UserError
from pipeline.finetuning import (
    FIT,
    FROM_HEAD,
    MICRO_BATCH,
    UNFREEZE,
    Joint,
    JointPlan,
    bank_boundary,
    finetune_fold,
    head_of,
    joint_on_banks,
    joint_on_frames,
    needs_recomputing,
)
from pipeline.fitting import check_parts
from pipeline.halves import Halves, split
from pipeline.heads import Head
from pipeline.held_out import hold_out
from pipeline.joining import Joined
from pipeline.learning import Learning
from pipeline.optimisation import FitConfig
from pipeline.prefix_bank import check_room, prefix_bytes
from pipeline.rescoring import embedded_anew
from pipeline.results import HeldOut, joined
from pipeline.selection import Selection
from pipeline.sequences import load_sequences
from pipeline.sources import source_text
from pipeline.splits import Fold
from pipeline.starting_point import StartingPoint, bank_of, find_sources, open_bank, open_run
from pipeline.training import OnEpoch
from pipeline.unfreezing import Group, Unfreezing, groups_of, has_batch_norm, read_unfreezing
from stages import finetune_words as words
from stages.console import Display, counted
from stages.training_run import Asked, Loaded, Train, Trained, begin, load, train_and_score

OK, INTERRUPTED = 0, 130
_THREAD_FLOPS = 5e8  # of a micro-batch's forward pass, for each thread that shares it


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that `framebank finetune` can be told; the defaults are those of the command.

    It starts from the heads of the run `head`, or from new ones on `bank`, and then `learning` says what they learn.
    """

    data: Path
    out: Path
    head: Path | None = None
    bank: Path | None = None
    learning: Learning | None = None
    weights: str | None = None
    backbone: str | None = None
    all_files: bool = False
    image_fps: float | None = None
    unfreeze: str = UNFREEZE
    train_batch_norm: bool = False
    backbone_rate: float = FROM_HEAD.backbone_rate
    layer_decay: float = FROM_HEAD.layer_decay
    selection: Selection | None = None
    augment: tuple[str, ...] = ()
    views: int = 0
    fit: FitConfig = FIT
    seeds: int = 1
    prefix: bool = True
    prefix_bank: Path | None = None
    micro_batch: int | None = None
    recompute: bool | None = None
    device: str = "auto"
    precision: str = "auto"
    quiet: bool = False

    def __post_init__(self) -> None:
        if (self.head is None) == (self.learning is None) or (self.head is None and self.bank is None):
            raise ValueError("either a run to start from, or a bank and what to learn")
        if self.head is not None and self.head.resolve() == self.out.resolve():
            raise UserError(f"--out {self.out} is the run that --head names, whose head is still needed; give another")
        Augmentation(self.augment, self.fit.seed)  # refuses what it does not know, before any work
        if self.learning is not None and self.learning.fuse != "concat":
            raise UserError(
                f"--fuse {self.learning.fuse} fuses the heads of several banks, and fine-tuning has one; train-head "
                "does that"
            )
        if self.views and not self.augment:
            raise UserError("--views are views by augmentation; say which: --augment crop,flip,jitter")
        if not self.prefix and (self.views or self.prefix_bank):
            given = "--views are banked at the boundary" if self.views else f"--prefix-bank names {self.prefix_bank}"
            raise UserError(f"{given}, and --no-prefix-bank banks nothing; leave one of them out")
        if self.recompute and self.train_batch_norm:
            raise UserError(
                "--recompute would update the statistics of --train-batch-norm twice; leave one of them out, and give "
                "a "
                "smaller --batch-size if memory does not suffice"
            )
        if self.prefix_bank is not None and self.augment and not self.views:
            raise UserError(
                "--augment draws anew in every epoch, so nothing can be banked; leave --prefix-bank out, or bank "
                "--views"
            )

    def resolved(self, learning: Learning, precision: str) -> dict[str, Any]:
        """What was asked, as plain values: all that can change the result. `learning` is that of the run."""
        own = ("unfreeze", "train_batch_norm", "backbone_rate", "layer_decay", "augment", "views", "prefix")
        asked = {name: getattr(self, name) for name in own}
        where = {
            "data": source_text(str(self.data.absolute())),
            "head": None if self.head is None else source_text(str(self.head.absolute())),
            "all_files": self.all_files,
            "image_fps": self.image_fps,
        }
        return {**learning.resolved(), "finetune": {**where, **asked, "precision": precision}}


def run(config: FinetuneConfig) -> int:
    """Join backbone and head, train both, score what was held out, and compare with the frozen backbone.

    Returns:
        the exit status: 0, or 130 if it was interrupted while activations were banked.

    Raises:
        UserError: it could not be done as asked; what the run folder held is kept.
    """
    threads = torch.get_num_threads()
    with ranks.joined(), threadpool_limits(limits=1, user_api="blas"):
        torch.set_num_threads(1)  # for the heads, as in train-head; the backbone takes all
        try:
            return _run(config, threads)
        finally:
            torch.set_num_threads(threads)


class _Opened(NamedTuple):
    """What was asked, held against what is there.

    Attributes:
        start: where it begins.
        learning: what is learnt, with the frames, the training and the seeds of this run.
        loaded: the videos with their targets, and the folds.
        videos: their files, in their order.
        unfreezing, groups: what of the backbone trains, and how fast.
        halves: of the backbone.
    """

    start: StartingPoint
    learning: Learning
    loaded: Loaded
    videos: pd.DataFrame
    unfreezing: Unfreezing
    groups: tuple[Group, ...]
    halves: Halves


def _run(config: FinetuneConfig, threads: int) -> int:
    started = time.monotonic()
    display = Display(quiet=config.quiet or not ranks.first())
    device = choose_device(ranks.device(config.device))
    with ExitStack() as stack:
        opened = _open(config, stack, display, device)
        start, learning, folds = opened.start, opened.learning, opened.loaded.folds
        files = {"targets": learning.targets, "segments": learning.segments, "frame values": learning.frame_values}
        begun = None if config.head is None else config.head / "model.safetensors"  # it may be trained anew meanwhile
        identity = runs.data_identity([start.bank], {**files, "splits": learning.splits, "head": begun})
        _check_files(config, files, identity["files"])
        asked = Asked(config.out, config.resolved(learning, start.precision), identity, "model")
        state = begin(display, asked, folds)
        if state == runs.FINISHED:
            return OK
        if state == runs.NEW:  # what a call with other options has left
            _remove_prefix(config)
        banks = _prefix_banks(config, opened.halves)
        if not banks:
            words.show_unbanked(display, opened.halves)
        elif not _bank(config, opened, banks, display, device):
            display.line("Interrupted. Run the same command again to go on where it stopped.")
            return INTERRUPTED
        with display.busy("reading what is banked"):
            joint = _joint(config, opened, banks, device)
            first = head_of(start.head(opened.loaded.material, folds[0], 0))
            plan, kept = _plan(config, opened, joint, first, asked.config["finetune"], device, threads)
        words.show_trained(
            display,
            first,
            learning.pca,
            plan,
            opened.groups,
            has_batch_norm=has_batch_norm(start.backbone.module.net),
            random=start.backbone.weights.startswith("random"),
        )
        words.show_plan(display, plan, kept, config.augment, config.views, resumed=state == runs.UNFINISHED)
        frames = {"frames_embedded": len(banks) * int(joint.sequences.lengths.sum()), "frames_trained": 0}

        def cost() -> dict[str, Any]:
            return {**frames, "trained_share": opened.halves.share, "seconds": time.monotonic() - started}

        train_and_score(
            display,
            asked,
            learning,
            opened.loaded,
            _training(opened, joint, plan, frames, display, stack),
            device=device,
            cost=cost,
            more_baselines=None if config.head is None else partial(_frozen, opened, device),
        )
    _remove_prefix(config)
    return OK


def _remove_prefix(config: FinetuneConfig) -> None:
    """Remove what is banked for this run alone."""
    ranks.wait()
    if ranks.first():
        shutil.rmtree(config.out / runs.PREFIX, ignore_errors=True)
    ranks.wait()


def _open(config: FinetuneConfig, stack: ExitStack, display: Display, device: torch.device) -> _Opened:
    """Open all that is needed, say what it is, and refuse what does not go together before any work is done."""
    with display.busy("loading the network"):
        start = _start(config, stack, device)
    learning = replace(
        start.learning,
        selection=config.selection or start.learning.selection,
        epochs=config.fit.epochs,
        fit=config.fit,
        seeds=config.seeds,
    )
    unfreezing = read_unfreezing(config.unfreeze, start.backbone, batch_norm=config.train_batch_norm)
    _check(config, start, unfreezing)
    words.show_backbone(display, start.backbone, start.precision, device.type)
    loaded = load(display, [start.bank], learning)
    for note in start.notes:
        display.field("Note", note)
    start.check(loaded.material, loaded.folds, config.seeds)
    for fold in loaded.folds:
        check_parts(config.fit, len(fold.validation))
    ids = loaded.material.sequences[0].ids
    with display.busy("looking for videos"):
        videos = find_sources(config.data, start.bank, ids, all_files=config.all_files, image_fps=config.image_fps)
    groups = groups_of(
        start.backbone.module.net,
        blocks_of(start.backbone),
        unfreezing,
        rate=config.backbone_rate,
        decay=config.layer_decay,
    )
    halves = split(start.backbone, unfreezing.names)
    return _Opened(start, learning, loaded, videos, unfreezing, tuple(groups), halves)


def _plan(
    config: FinetuneConfig,
    opened: _Opened,
    joint: Joint,
    head: Head,
    identity: Mapping[str, Any],
    device: torch.device,
    threads: int,
) -> tuple[JointPlan, float]:
    """How all is trained, and how many bytes the activations of the largest batch take."""
    plan = JointPlan(
        objective=opened.learning.objective,
        selection=opened.learning.selection,
        fit=config.fit,
        unfreezing=opened.unfreezing,
        groups=opened.groups,
        precision=opened.start.precision,
        micro_batch=config.micro_batch or max(1, MICRO_BATCH[device.type] // opened.start.backbone.window.depth),
        recompute=bool(config.recompute),
        identity=identity,
        device=device,
        threads=_threads(joint, threads) if device.type == "cpu" else None,
    )
    too_much, kept = needs_recomputing(joint, head, plan)
    if config.recompute is None:
        plan = replace(plan, recompute=too_much and not config.train_batch_norm)
    return plan, kept


def _training(
    opened: _Opened, joint: Joint, plan: JointPlan, frames: dict[str, int], display: Display, stack: ExitStack
) -> Train:
    """What trains a fold; `frames` counts what it takes."""
    start, material = opened.start, opened.loaded.material
    scored = stack.enter_context(ExitStack())  # what the last fold's test videos are read from
    said: list[Joined] = []

    def on_joined(found: Joined) -> None:
        if not said:
            words.show_joined(display, found)
        said.append(found)

    def train(fold: Fold, seed: int, folder: Path, on_epoch: OnEpoch) -> Trained:
        scored.close()
        begins = start.head(material, fold, seed)
        seeded = replace(plan, fit=replace(plan.fit, seed=plan.fit.seed + seed))
        bundle, history, notes = finetune_fold(
            joint, material, fold, begins, seeded, folder, on_epoch=on_epoch, on_joined=on_joined
        )
        _count(frames, history, joint, fold)
        read = []
        if fold.test:  # by what was written, as predict does: what is scored is what is used
            tested = opened.videos[opened.videos["id"].isin(fold.test)]
            anew = embedded_anew(
                bundle, tested, start.bank, device=plan.device, on_progress=lambda _: None, typed=start.typed
            )
            read = [load_sequences([scored.enter_context(anew)], fold.test, spatial=material.spatial)]
        return Trained(bundle, read, history, notes)

    return train


def _frozen(opened: _Opened, device: torch.device) -> dict[str, HeldOut]:
    """What the heads that it starts from say of the test parts, on the bank."""
    material = opened.loaded.material
    parts = [
        hold_out(
            opened.start.head(material, fold, 0),
            material.sequences,
            material.targets,
            fold.test,
            fold=fold.name,
            device=device,
        )
        for fold in opened.loaded.folds
    ]
    return {"frozen backbone": joined(parts)}


def _check(config: FinetuneConfig, start: StartingPoint, unfreezing: Unfreezing) -> None:
    """Refuse what is found out only when the run, its bank and its backbone are known."""
    if start.precision == "fp16":
        raise UserError(
            "In fp16 small gradients vanish, so nothing is trained in it; give --precision bf16, or fp32 where the "
            "device has no bf16 (the head's bank may be fp16)."
        )
    late, names = unfreezing.stages[-1]
    if late >= config.fit.epochs:
        raise UserError(
            f"--unfreeze lets {', '.join(names)} train when {counted(late, 'epoch')} have passed, and there are "
            f"{config.fit.epochs}; give more --epochs, or begin earlier"
        )
    if not start.learning.per_frame and config.fit.chunk_steps != FIT.chunk_steps:
        raise UserError(
            "--chunk-steps would change nothing: it is for a label or number per frame, and the run has one per video; "
            "leave it out"
        )
    if config.prefix_bank is not None and config.prefix_bank.resolve() == start.bank.path.resolve():
        raise UserError(
            f"--prefix-bank {config.prefix_bank} is the head's bank; what the frozen part gives is another: give a new "
            "file"
        )


def _threads(joint: Joint, usable: int) -> int:
    """How many threads the backbone is worth: waking more for little work takes longer than they save."""
    part = joint.halves.share if joint.front is None else 1
    return max(1, min(usable, int(part * joint.halves.flops * MICRO_BATCH["cpu"] / _THREAD_FLOPS)))


def _check_files(config: FinetuneConfig, files: Mapping[str, Path | None], digests: Mapping[str, str]) -> None:
    """Refuse targets that are others than those that the head was trained on."""
    if config.head is None:
        return
    before = runs.read_config(config.head)["data"]["files"]
    for name in files:
        if name in digests and digests[name] != before.get(name):
            raise UserError(
                f"{files[name]}, the {name} of {config.head}, is not what it was when that head was trained; restore "
                f"it, or "
                "train the head again."
            )


def _start(config: FinetuneConfig, stack: ExitStack, device: torch.device) -> StartingPoint:
    weights = () if config.weights is None else (config.weights,)
    if config.head is not None:
        bank = stack.enter_context(Bank(bank_of(config.head, config.bank)))
        return open_run(config.head, bank, weights, device=device, precision=config.precision, typed=config.backbone)
    assert config.bank is not None
    assert config.learning is not None
    bank = stack.enter_context(Bank(config.bank))
    weights = weights if bank.config["weights"].startswith("file:") else ()  # others it finds by their name
    return open_bank(config.learning, bank, weights, device=device, precision=config.precision, typed=config.backbone)


def _prefix_banks(config: FinetuneConfig, halves: Halves) -> list[Path]:
    """Where what the frozen part gives is banked: without augmentation, then for each view; [] where it is not."""
    if not config.prefix or halves.prefix is None or (config.augment and not config.views):
        return []
    plain = config.prefix_bank or config.out / runs.PREFIX / "plain.h5"
    return [plain, *(plain.with_stem(f"{plain.stem}-view{view}") for view in range(1, config.views + 1))]


def _bank(config: FinetuneConfig, opened: _Opened, banks: list[Path], display: Display, device: torch.device) -> bool:
    """Bank what the frozen part gives, of all frames in the head's bank. Returns whether it was finished."""
    start, prefix, videos = opened.start, opened.halves.prefix, opened.videos
    assert prefix is not None
    rows = int(opened.loaded.material.sequences[0].lengths.sum())
    size = prefix_bytes(prefix.feature_shape, rows, start.precision) * len(banks)
    check_room(banks, size)
    words.show_banked(display, opened.halves, banks[0], size, rows)
    for view, out in enumerate(banks):
        with display.progress(len(videos), rows, doing="banking the frozen part") as show:
            interrupted = bank_boundary(
                out,
                prefix,
                start.bank,
                videos,
                precision=start.precision,
                device=device,
                augmentation=Augmentation(config.augment, config.fit.seed) if view else None,
                view=view,
                data=config.data,
                on_progress=show,
                on_note=display.note,
            )
        if interrupted:
            return False
    return True


def _joint(config: FinetuneConfig, opened: _Opened, banks: list[Path], device: torch.device) -> Joint:
    """What the joined model reads: activations from the banks, or frames from the videos."""
    most_rows = config.fit.max_steps  # the same either way, so that batches are
    if banks:
        return joint_on_banks(opened.halves, banks, opened.loaded.material.sequences[0], most_rows=most_rows)
    return joint_on_frames(
        opened.halves,
        opened.start.backbone,
        opened.start.bank,
        opened.videos,
        precision=opened.start.precision,
        device=device,
        most_rows=most_rows,
        augmentation=Augmentation(config.augment, config.fit.seed) if config.augment else None,
    )


def _count(frames: dict[str, int], history: list[dict[str, Any]], joint: Joint, fold: Fold) -> None:
    """Add the frames that one training took: through the part that trains, and through the whole if nothing is
    banked."""
    lengths = dict(zip(joint.sequences.ids, joint.sequences.lengths.tolist(), strict=True))
    trained = sum(int(epoch["rows"]) for epoch in history)
    validated = sum(lengths[video] for video in fold.validation) * len(history)
    frames["frames_trained"] += trained
    frames["frames_embedded"] += sum(lengths[video] for video in fold.test) + (
        0 if joint.front is None else trained + validated
    )
