"""One fold, end to end: a head that was trained on a bank, and its backbone -> both trained together.

As in `pipeline.training`, the test part is not touched: the head that a fold starts from was trained without it, and
the epoch that is kept, the temperature and the thresholds come from the validation part.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import ranks, runs
from pipeline.bank import fingerprint_of
from pipeline.bundles import Bundle, load_bundle
from pipeline.checkpoints import copy_into, load_checkpoint, tensors_sha256
from pipeline.errors import UserError
from pipeline.fitting import fit
from pipeline.halves import Halves, named_state
from pipeline.heads import Head
from pipeline.joining import Joined, check_joined
from pipeline.material import Material
from pipeline.objectives import Objective, target_rows
from pipeline.optimisation import FitConfig, RateGroup
from pipeline.selection import Selection
from pipeline.sequences import Sequences, available_bytes
from pipeline.splits import Fold
from pipeline.training import OnEpoch, calibrate, finish_fold
from pipeline.unfreezing import Group, Unfreezing
from pipeline.video_model import Front, VideoModel, kept_bytes

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

    def model(self, head: Head, plan: JointPlan, weights: Path | None = None) -> VideoModel:
        """Backbone and head as one module, with the backbone's first weights or those of a file."""
        suffix = copy.deepcopy(self.halves.suffix)
        model = VideoModel(
            suffix,
            head,
            front=self.front,
            feature_shape=self.sequences.feature_shape,
            unfreezing=plan.unfreezing,
            precision=plan.precision,
            micro_batch=plan.micro_batch,
            recompute=plan.recompute,
            threads=plan.threads,
        )
        if weights is not None:
            state = load_checkpoint(weights)
            missing, misshaped = copy_into(self.named(model), state)
            if missing or misshaped:
                raise UserError(
                    f"{weights} is not of this backbone ({(missing or misshaped)[0]}); train the run again."
                )
        return model

    def named(self, model: VideoModel) -> dict[str, Tensor]:
        """All tensors of the backbone by torchvision's names: the frozen part's, and those of the model's suffix."""
        return named_state(self.halves._replace(suffix=model.suffix))


class Finetuned(NamedTuple):
    """One fold. `bundle` scores `sequences`: its head is the joined model."""

    bundle: Bundle
    sequences: tuple[Sequences, ...]
    history: list[dict[str, Any]]
    notes: list[str]


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
) -> Finetuned:
    """The bundle of one fold, from its folder if it was finished before, else trained (on from its checkpoint).

    Args:
        joint: what all folds begin with.
        material: the head's bank; its videos are those of `joint.sequences`, in the same order.
        fold: the fold.
        start: the head that was trained for it.
        plan: how.
        folder: of the fold; bundle, backbone weights and epochs are written there.
        on_epoch: called with every row of the history.
        on_joined: called with what the comparison of joined model and head has found.

    Raises:
        UserError: the joined model is not what the head was on its bank, or what `pipeline.fitting.fit` refuses.
    """
    read = (joint.sequences,)
    if ranks.same((folder / "model.json").exists()):
        bundle = load_bundle(folder)
        model = joint.model(head_of(bundle), plan, bundle.weights)
        return Finetuned(_with_head(bundle, model), read, runs.history(folder), [])
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
        groups=_rates(model, plan),
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
        bundle = calibrate(bundle, replace(material, sequences=read), fold, plan.device)
    history = [{"member": 0, **epoch, "kept": int(epoch["epoch"] == fitted.best_epoch)} for epoch in fitted.history]
    if ranks.first():
        finish_fold(folder, _with_head(bundle, model.head), history, backbone=state)
    ranks.wait()
    return Finetuned(bundle, read, history, list(fitted.notes))


def head_of(bundle: Bundle) -> Head:
    """The head of a bundle that has one, as it was loaded."""
    (head,) = (member.head for member in bundle.members)
    assert isinstance(head, Head)
    return head


def _with_head(bundle: Bundle, head: Any) -> Bundle:
    return replace(bundle, members=(replace(bundle.members[0], head=head.eval()),))


def _rates(model: VideoModel, plan: JointPlan) -> list[RateGroup]:
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


def needs_recomputing(joint: Joint, head: Head, plan: JointPlan, rows: int) -> tuple[bool, float]:
    """Whether the activations of `rows` rows are more than half of the memory that is free, and how many bytes they
    take."""
    model = joint.model(copy.deepcopy(head), replace(plan, recompute=False))
    model.begin_epoch(max(epoch for epoch, _ in plan.unfreezing.stages))
    tried = joint.sequences.read(0, 0, _TRIED_ROWS)
    model.to(plan.device)
    size = kept_bytes(model, tried.to(plan.device)) * rows
    free = torch.cuda.mem_get_info(plan.device)[0] if plan.device.type == "cuda" else available_bytes()
    return size > free / 2, size
