"""Stage three: videos and a head on their bank -> backbone and head trained end to end, in a run folder."""

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from pipeline import ranks, runs
from pipeline.augmentation import Augmentation
from pipeline.bank import Bank
from pipeline.blocks import blocks_of
from pipeline.encoder import choose_batch_size, choose_device
from pipeline.errors import UserError
from pipeline.finetuning import MICRO_BATCH, Joint, JointPlan, finetune_fold, head_of, needs_recomputing
from pipeline.halves import Halves, split
from pipeline.held_out import hold_out
from pipeline.joined_banks import MAPS
from pipeline.joining import Joined
from pipeline.learning import Learning
from pipeline.material import Material
from pipeline.optimisation import FitConfig
from pipeline.prefix_bank import bank_prefix, check_room, prefix_bytes
from pipeline.results import HeldOut, joined
from pipeline.sampling import Sampling
from pipeline.scoring import chosen_rows, lengths_of
from pipeline.selection import Selection
from pipeline.sequences import Sequences, load_sequences
from pipeline.sources import source_text
from pipeline.splits import Fold
from pipeline.starting_point import StartingPoint, bank_of, find_sources, open_bank, open_run
from pipeline.training import OnEpoch
from pipeline.unfreezing import groups_of, read_unfreezing
from pipeline.video_frames import frame_sequences
from pipeline.video_model import front_of
from stages import finetune_words as words
from stages.console import Display
from stages.training_run import Asked, Trained, begin, load, train_and_score

OK, INTERRUPTED = 0, 130
_PREFIX = "prefix"  # folder in the run that holds what is banked for it alone, until it is finished
# What was best on a developing split of surveillance clips. Rates are of AdamW; the backbone's is that of its last
# block.
FIT = FitConfig(epochs=8, max_steps=1024, learning_rate=5e-4)
BACKBONE_RATE, LAYER_DECAY, UNFREEZE = 1e-4, 0.7, "2"


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
    all_files: bool = False
    image_fps: float | None = None
    unfreeze: str = UNFREEZE
    train_batch_norm: bool = False
    backbone_rate: float = BACKBONE_RATE
    layer_decay: float = LAYER_DECAY
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
        if self.views and not self.augment:
            raise UserError("--views are views by augmentation; say which: --augment crop,flip,jitter")
        if not self.prefix and (self.views or self.prefix_bank):
            given = "--views are banked at the boundary" if self.views else f"--prefix-bank names {self.prefix_bank}"
            raise UserError(f"{given}, and --no-prefix-bank banks nothing; leave one of them out")
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


def _run(config: FinetuneConfig, threads: int) -> int:
    started = time.monotonic()
    display = Display(quiet=config.quiet or not ranks.first())
    device = choose_device(ranks.device(config.device))
    with ExitStack() as stack:
        start = _start(config, stack, device)
        learning = replace(
            start.learning,
            selection=config.selection or start.learning.selection,
            epochs=config.fit.epochs,
            fit=config.fit,
            seeds=config.seeds,
        )
        words.show_backbone(display, start.backbone, start.precision, device.type)
        loaded = load(display, [start.bank], learning)
        for note in start.notes:
            display.field("Note", note)
        material, folds = loaded.material, loaded.folds
        ids = material.sequences[0].ids
        videos = find_sources(config.data, start.bank, ids, all_files=config.all_files, image_fps=config.image_fps)
        unfreezing = read_unfreezing(config.unfreeze, start.backbone, batch_norm=config.train_batch_norm)
        groups = groups_of(
            start.backbone.module.net,
            blocks_of(start.backbone),
            unfreezing,
            rate=config.backbone_rate,
            decay=config.layer_decay,
        )
        halves = split(start.backbone, unfreezing.names)
        files = {"targets": learning.targets, "segments": learning.segments, "frame values": learning.frame_values}
        identity = runs.data_identity([start.bank], {**files, "splits": learning.splits})
        asked = Asked(config.out, config.resolved(learning, start.precision), identity, "model")
        state = begin(display, asked, folds)
        if state == runs.FINISHED:
            return OK
        banks = _prefix_banks(config, halves)
        if banks and not _bank(config, start, halves, videos, banks, display, device):
            display.line("Interrupted; the same command goes on.")
            return INTERRUPTED
        if not banks:
            words.show_unbanked(display, halves)
        joint = _joint(config, start, halves, material, videos, banks, device)
        first = head_of(start.head(material, folds[0], 0))
        plan = JointPlan(
            objective=learning.objective,
            selection=learning.selection,
            fit=learning.fit,
            unfreezing=unfreezing,
            groups=tuple(groups),
            precision=start.precision,
            micro_batch=config.micro_batch or MICRO_BATCH[device.type],
            recompute=bool(config.recompute),
            identity=asked.config["finetune"],
            device=device,
            threads=threads if device.type == "cpu" else None,
        )
        recompute, kept = needs_recomputing(joint, first, plan, _most_rows(joint.sequences, plan))
        plan = replace(plan, recompute=recompute if config.recompute is None else config.recompute)
        words.show_trained(display, first, learning.pca, plan, groups)
        words.show_plan(display, plan, kept, config.augment, config.views, resumed=state == runs.UNFINISHED)
        said: list[Joined] = []

        def on_joined(found: Joined) -> None:
            if not said:
                words.show_joined(display, found)
            said.append(found)

        frames = {"frames_embedded": 0, "frames_trained": 0}

        def train(fold: Fold, seed: int, folder: Path, on_epoch: OnEpoch) -> Trained:
            begins = start.head(material, fold, seed)
            seeded = replace(plan, fit=replace(plan.fit, seed=plan.fit.seed + seed))
            done = finetune_fold(joint, material, fold, begins, seeded, folder, on_epoch=on_epoch, on_joined=on_joined)
            _count(frames, done.history, joint, fold, banked=bool(banks))
            return Trained(*done)

        def frozen() -> dict[str, HeldOut]:
            parts = [
                hold_out(
                    start.head(material, fold, 0),
                    material.sequences,
                    material.targets,
                    fold.test,
                    fold=fold.name,
                    device=device,
                )
                for fold in folds
            ]
            return {"frozen backbone": joined(parts)}

        def cost() -> dict[str, Any]:
            once = len(banks) * int(joint.sequences.lengths.sum())
            embedded = frames["frames_embedded"] + once
            return {
                **frames,
                "frames_embedded": embedded,
                "seconds": time.monotonic() - started,
                "trained_share": halves.share,
            }

        train_and_score(
            display,
            asked,
            learning,
            loaded,
            train,
            device=device,
            cost=cost,
            more_baselines=None if config.head is None else frozen,
        )
    if ranks.first():
        shutil.rmtree(config.out / _PREFIX, ignore_errors=True)
    return OK


def _start(config: FinetuneConfig, stack: ExitStack, device: torch.device) -> StartingPoint:
    weights = () if config.weights is None else (config.weights,)
    if config.head is not None:
        bank = stack.enter_context(Bank(bank_of(config.head, config.bank)))
        return open_run(config.head, bank, weights, device=device, precision=config.precision)
    assert config.bank is not None
    assert config.learning is not None
    bank = stack.enter_context(Bank(config.bank))
    weights = weights if bank.config["weights"].startswith("file:") else ()  # others it finds by their name
    return open_bank(config.learning, bank, weights, device=device, precision=config.precision)


def _prefix_banks(config: FinetuneConfig, halves: Halves) -> list[Path]:
    """Where what the frozen part gives is banked: without augmentation, then for each view; [] where it is not."""
    if not config.prefix or halves.prefix is None or (config.augment and not config.views):
        return []
    plain = config.prefix_bank or config.out / _PREFIX / "plain.h5"
    return [plain, *(plain.with_stem(f"{plain.stem}-view{view}") for view in range(1, config.views + 1))]


def _bank(
    config: FinetuneConfig,
    start: StartingPoint,
    halves: Halves,
    videos: pd.DataFrame,
    banks: list[Path],
    display: Display,
    device: torch.device,
) -> bool:
    """Bank what the frozen part gives, of all frames in the head's bank. Returns whether it was finished."""
    assert halves.prefix is not None
    recipe = start.bank.config["recipe"]
    rows = int(start.bank.catalog.set_index("id").loc[list(videos["id"]), "rows"].sum())
    size = prefix_bytes(halves.prefix.feature_shape, rows, "float16") * len(banks)
    check_room(banks, size)
    words.show_banked(display, halves, banks[0], size, rows)
    for view, out in enumerate(banks):
        with display.progress(len(videos), rows) as show:
            interrupted = bank_prefix(
                out,
                halves.prefix,
                videos,
                Sampling(**recipe["sampling"]),
                crop=recipe["crop"],
                precision=start.precision,
                device=device,
                batch_size=choose_batch_size("auto", device),
                augmentation=Augmentation(config.augment, config.fit.seed) if view else None,
                view=view,
                allow_partial=bool((start.bank.catalog["partial"] != "").any()),
                data=str(config.data),
                on_progress=show,
                on_note=display.line,
            )
        if interrupted:
            return False
    return True


def _joint(
    config: FinetuneConfig,
    start: StartingPoint,
    halves: Halves,
    material: Material,
    videos: pd.DataFrame,
    banks: list[Path],
    device: torch.device,
) -> Joint:
    """What the joined model reads: activations from the banks, or frames from the videos."""
    most_rows = config.fit.max_steps  # the same either way, so that batches are
    if not banks:
        preprocessing = start.backbone.preprocessing
        augmentation = Augmentation(config.augment, config.fit.seed) if config.augment else None
        sequences = frame_sequences(start.bank, videos, preprocessing, augmentation=augmentation, most_rows=most_rows)
        return Joint(halves, sequences, front_of(preprocessing, halves.prefix, start.precision, device))
    plain, *views = (_activations(path, material, most_rows) for path in banks)
    if views:
        plain = plain.varying(lambda epoch: (plain, *views)[epoch % len(banks)])
    return Joint(halves, plain, None)


def _activations(path: Path, material: Material, most_rows: int) -> Sequences:
    """What a bank holds of the boundary, of the videos of the material in their order."""
    ids = material.sequences[0].ids
    with Bank(path) as bank:
        sequences = load_sequences([bank], ids, spatial=MAPS, most_rows=most_rows)
    if sequences.ids != ids or (sequences.lengths != material.sequences[0].lengths).any():
        raise UserError(f"{path} holds other frames than {ids[0]} and others have in the head's bank; remove it.")
    return sequences


def _most_rows(sequences: Sequences, plan: JointPlan) -> int:
    """Of a step of the optimiser: as many as are allowed together, or one video that is longer than that."""
    videos = np.arange(len(sequences))
    longest = int(lengths_of(sequences, videos, chosen_rows(sequences, videos, plan.selection, draw=0)).max())
    return max(longest, min(plan.fit.max_steps, plan.fit.batch_size * longest))


def _count(frames: dict[str, int], history: list[dict[str, Any]], joint: Joint, fold: Fold, *, banked: bool) -> None:
    """Add the frames that one training took: through the part that trains, and through the whole if nothing is
    banked."""
    trained = sum(int(epoch["rows"]) for epoch in history)
    lengths = dict(zip(joint.sequences.ids, joint.sequences.lengths.tolist(), strict=True))
    scored = sum(lengths[video] for video in fold.validation) * len(history) + sum(
        lengths[video] for video in fold.test
    )
    frames["frames_trained"] += trained
    frames["frames_embedded"] += 0 if banked else trained + scored
