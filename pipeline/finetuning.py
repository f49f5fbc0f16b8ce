"""One fold, end to end: a head that was trained on a bank, and its backbone -> both trained together.

As in `pipeline.training`, the test part is not touched: the head that a fold starts from was trained without it, and
the epoch that is kept, the temperature and the thresholds come from the validation part.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline import ranks, runs
from pipeline.augmentation import Augmentation
from pipeline.backbone import Backbone
from pipeline.bank import Bank, fingerprint_of
from pipeline.bundles import Bundle, load_bundle
from pipeline.checkpoints import tensors_sha256
from pipeline.encoder import choose_batch_size
from pipeline.engine import Progress
from pipeline.errors import UserError
from pipeline.extraction import flow_of, reading_of
from pipeline.fitting import fit
from pipeline.halves import Halves, named_state
from pipeline.heads import Head
from pipeline.joined_banks import MAPS
from pipeline.joining import Joined, check_joined
from pipeline.material import Material
from pipeline.objectives import Objective, target_rows
from pipeline.optimisation import FitConfig, RateGroup
from pipeline.prefix_bank import bank_prefix
from pipeline.scoring import chosen_rows, lengths_of
from pipeline.selection import Selection
from pipeline.sequences import Sequences, available_bytes, load_sequences
from pipeline.splits import Fold
from pipeline.training import OnEpoch, calibrate, finish_fold
from pipeline.unfreezing import Group, Unfreezing
from pipeline.video_frames import frame_sequences
from pipeline.video_model import Front, VideoModel, front_of, kept_bytes


class Pace(NamedTuple):
    """How long and how fast is trained: epochs, and peak learning rates of AdamW."""

    epochs: int
    learning_rate: float  # of the head
    backbone_rate: float  # of the last block
    layer_decay: float  # of each block before, against the next


# From a trained head: the fastest that lost nothing on developing splits of surveillance clips. New heads, and networks
# drawn at random, have further to go.
FROM_HEAD, NEW_HEAD, FROM_SCRATCH = Pace(8, 2e-4, 3e-5, 0.7), Pace(30, 1e-3, 1e-4, 0.7), Pace(30, 1e-3, 1e-3, 1.0)
FIT = FitConfig(epochs=FROM_HEAD.epochs, max_steps=1024, learning_rate=FROM_HEAD.learning_rate)
UNFREEZE = "2"
MICRO_BATCH = {"cpu": 32, "mps": 32, "cuda": 256}
_TRIED_ROWS = 2


@dataclass(frozen=True)
class JointPlan:
    """How backbone and head are trained together.

    Attributes:
        objective, selection, fit: as in `pipeline.training.Plan`; the learning rate is the head's.
        unfreezing: what of the backbone trains, from which epoch on.
        groups: its parameters by block, with the learning rate of each.
        precision: in which the backbone computes.
        micro_batch: frames that go through it at once.
        recompute: whether activations are computed again in the backward pass.
        identity: further plain settings that decide the result.
        device: where.
        threads: of the CPU, for the backbone; None on a GPU.
    """

    objective: Objective
    selection: Selection
    fit: FitConfig
    unfreezing: Unfreezing
    groups: tuple[Group, ...]
    precision: str
    micro_batch: int
    recompute: bool
    identity: Mapping[str, Any]
    device: torch.device
    threads: int | None = None


@dataclass(frozen=True)
class Joint:
    """What all folds begin with.

    Attributes:
        halves: of the backbone, at its first weights.
        sequences: what the joined model reads: frames, or activations banked at the boundary.
        front: what takes frames to the boundary; None for banked activations.
    """

    halves: Halves
    sequences: Sequences
    front: Front | None

    def model(self, head: Head, plan: JointPlan) -> VideoModel:
        """Backbone and head as one module."""
        return VideoModel(
            copy.deepcopy(self.halves.suffix),
            head,
            front=self.front,
            feature_shape=self.sequences.feature_shape,
            unfreezing=plan.unfreezing,
            precision=plan.precision,
            micro_batch=plan.micro_batch,
            recompute=plan.recompute,
            threads=plan.threads,
        )

    def named(self, model: VideoModel) -> dict[str, Tensor]:
        """All tensors of the backbone by torchvision's names: the frozen part's, and those of the model's suffix."""
        return named_state(self.halves._replace(suffix=model.suffix))


def joint_on_frames(
    halves: Halves,
    backbone: Backbone,
    bank: Bank,
    videos: pd.DataFrame,
    *,
    precision: str,
    device: torch.device,
    most_rows: int,
    augmentation: Augmentation | None = None,
) -> Joint:
    """What reads the frames that a bank holds of videos, decoded when they are asked for.

    Args:
        halves: of the backbone.
        backbone: the whole.
        bank: that of its embeddings.
        videos: rows of `pipeline.starting_point.find_sources`.
        precision: in which the frozen part computes.
        device: where it does.
        most_rows: of a batch.
        augmentation: how frames are changed at random in training, if at all.
    """
    sequences = frame_sequences(
        bank,
        videos,
        backbone.preprocessing,
        window=backbone.window,
        flow=flow_of(bank.config),
        augmentation=augmentation,
        most_rows=most_rows,
    )
    return Joint(halves, sequences, front_of(backbone, halves.prefix, precision, device))


def joint_on_banks(
    halves: Halves, paths: Sequence[Path], banked: Sequences, *, most_rows: int, memory_bytes: int | None = None
) -> Joint:
    """What reads activations banked at the boundary.

    Args:
        halves: of the backbone.
        paths: the prefix bank without augmentation, then those of augmented views, which epochs of training take in
            turn.
        banked: of the head's bank: the same videos in the same order.
        most_rows: of a batch.
        memory_bytes: as in `pipeline.sequences.load_sequences`.

    Raises:
        UserError: a bank holds other frames.
    """
    loaded = [_activations(path, banked, most_rows, memory_bytes) for path in paths]
    plain = loaded[0]
    if len(loaded) > 1:
        plain = plain.varying(lambda epoch: loaded[epoch % len(loaded)])
    return Joint(halves, plain, None)


def _activations(path: Path, banked: Sequences, most_rows: int, memory_bytes: int | None) -> Sequences:
    with Bank(path) as bank:
        sequences = load_sequences([bank], banked.ids, spatial=MAPS, memory_bytes=memory_bytes, most_rows=most_rows)
    if sequences.ids != banked.ids or (sequences.lengths != banked.lengths).any():
        raise UserError(
            f"{path} holds other frames than {banked.ids[0]} and others have in the head's bank; remove it."
        )
    return sequences


def bank_boundary(
    out: Path,
    prefix: Backbone,
    bank: Bank,
    videos: pd.DataFrame,
    *,
    precision: str,
    device: torch.device,
    augmentation: Augmentation | None = None,
    view: int = 0,
    data: Path,
    on_progress: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> bool:
    """Bank what the frozen part gives of the frames that the head's bank holds of videos: see `bank_prefix`."""
    partial = bool((bank.catalog["partial"] != "").any())
    reading = reading_of(bank.config, prefix.preprocessing, allow_partial=partial)
    return bank_prefix(
        out,
        prefix,
        videos,
        replace(reading, augmentation=augmentation, view=view),
        crop=bank.config["recipe"]["crop"],
        precision=precision,
        device=device,
        batch_size=choose_batch_size("auto", device, window=reading.window),
        data=str(data),
        on_progress=on_progress,
        on_note=on_note,
    )


def finetune_fold(
    joint: Joint,
    material: Material,
    fold: Fold,
    start: Bundle,
    plan: JointPlan,
    folder: Path,
    *,
    on_epoch: OnEpoch | None,
    on_joined: Callable[[Joined], None],
) -> tuple[Bundle, list[dict[str, Any]], list[str]]:
    """The bundle of one fold, with a backbone of its own.

    It comes from the folder if it was finished before, else it is trained, on from its checkpoint.

    Args:
        joint: what all folds begin with.
        material: the head's bank; its videos are those of `joint.sequences`, in the same order.
        fold: the fold.
        start: the head that was trained for it.
        plan: how.
        folder: of the fold; bundle, backbone weights and epochs are written there.
        on_epoch: called with every row of the history.
        on_joined: called with what the comparison of joined model and head has found.

    Returns:
        the bundle, one row per epoch, and lines worth telling.

    Raises:
        UserError: the joined model is not what the head was on its bank, or what `pipeline.fitting.fit` refuses.
    """
    if ranks.same((folder / "model.json").exists()):
        return load_bundle(folder), runs.history(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    (member,) = start.members
    head = head_of(start)
    model = joint.model(copy.deepcopy(head), plan)
    (banked,) = material.sequences
    precisions = {plan.precision, member.banks[0]["config"]["recipe"]["precision"]}
    on_joined(
        check_joined(
            model,
            joint.sequences,
            head,
            banked,
            start.objective,
            start.selection,
            exact=precisions == {"fp32"},
            device=plan.device,
        )
    )
    fitted = fit(
        model,
        joint.sequences,
        target_rows(material.targets, joint.sequences),
        material.positions(fold.train),
        material.positions(fold.validation),
        plan.objective,
        plan.selection,
        plan.fit,
        device=plan.device,
        checkpoint=folder / "checkpoint-0.pt",
        on_epoch=on_epoch,
        groups=rates_of(model, plan),
        on_begin=model.begin_epoch,
        identity=plan.identity,
    )
    state = {name: tensor.detach().cpu().clone() for name, tensor in joint.named(model).items()}
    seen = {video: material.digests[video] for video in (*fold.train, *fold.validation)}
    bundle = replace(
        start,
        members=(replace(member, head=model, banks=(_made(member.banks[0], state, plan),)),),
        objective=plan.objective,
        selection=plan.selection,
        temperature=1.0,
        thresholds=None,
        trained_on=dict(start.trained_on or {}) | seen,
    )
    if fold.validation and bundle.kind != "value":
        bundle = calibrate(bundle, replace(material, sequences=(joint.sequences,)), fold, plan.device)
    history = [{"member": 0, **epoch, "kept": int(epoch["epoch"] == fitted.best_epoch)} for epoch in fitted.history]
    if ranks.first():
        kept = replace(bundle, members=(replace(bundle.members[0], head=model.head.eval()),))
        finish_fold(folder, kept, history, state)
    ranks.wait()
    notes = list(fitted.notes)
    if fitted.best_epoch <= min(group.epoch for group in plan.groups):
        notes.append(
            f"the validation part chose epoch {fitted.best_epoch}, before anything of the backbone trained: what was "
            "kept has the weights that it began with"
        )
    return load_bundle(folder), history, notes


def head_of(bundle: Bundle) -> Head:
    """The head of a bundle that has one, as it was loaded."""
    (head,) = (member.head for member in bundle.members)
    assert isinstance(head, Head)
    return head


def rates_of(model: VideoModel, plan: JointPlan) -> list[RateGroup]:
    """The head's parameters at its rate, then the backbone's, block by block, from the last one on."""
    known = dict(model.suffix.net.named_parameters())
    head = RateGroup("head", list(model.head.parameters()), plan.fit.learning_rate)
    return [
        head,
        *(RateGroup(group.name, [known[name] for name in group.parameters], group.rate) for group in plan.groups),
    ]


def _made(bank: Mapping[str, Any], state: Mapping[str, Tensor], plan: JointPlan) -> dict[str, Any]:
    """What made the embeddings that the fine-tuned head reads: as its bank was made, but by the trained backbone."""
    config = bank["config"]
    recipe = {
        **config["recipe"],
        "weights_sha256": tensors_sha256(state),
        "precision": plan.precision,
        "store": "float32",  # they were never stored, so they were not rounded
    }
    return {
        "config": {**config, "recipe": recipe, "weights": "file:backbone.safetensors"},
        "fingerprint": fingerprint_of(recipe),
    }


def needs_recomputing(joint: Joint, head: Head, plan: JointPlan) -> tuple[bool, float]:
    """Whether the activations of the largest batch are more than half of the memory that is free, and how many bytes
    they take."""
    model = joint.model(copy.deepcopy(head), replace(plan, recompute=False))
    model.begin_epoch(max(epoch for epoch, _ in plan.unfreezing.stages))
    tried = joint.sequences.read(int(joint.sequences.lengths.argmax()), 0, _TRIED_ROWS)  # the first may be one frame
    model.to(plan.device)
    size = kept_bytes(model, tried.to(plan.device)) * _most_rows(joint.sequences, plan)
    free = torch.cuda.mem_get_info(plan.device)[0] if plan.device.type == "cuda" else available_bytes()
    return size > free / 2, size


def _most_rows(sequences: Sequences, plan: JointPlan) -> int:
    """Of a step of the optimiser: as many as are allowed together, or one video that is longer than that."""
    videos = np.arange(len(sequences))
    longest = int(lengths_of(sequences, videos, chosen_rows(sequences, videos, plan.selection, draw=0)).max())
    return max(longest, min(plan.fit.max_steps, plan.fit.batch_size * longest))
