"""What finetune says beside what it has in common with train-head: the backbone's halves, what trains, the
comparison."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.backbone import Backbone
from pipeline.finetuning import JointPlan
from pipeline.halves import Halves
from pipeline.heads import Head
from pipeline.joining import Joined
from pipeline.unfreezing import Group
from stages.console import Display, counted, megabytes
from stages.training_words import head_words, selection_words


def show_backbone(display: Display, backbone: Backbone, precision: str, device: str) -> None:
    """The backbone, and how it computes."""
    shape = "×".join(map(str, backbone.feature_shape))
    display.field(
        "Backbone", f"{backbone.name}, layer {backbone.layer} ({shape}), {backbone.weights}; {precision} on {device}"
    )


def show_banked(display: Display, halves: Halves, out: Path, size: int, frames: int) -> None:
    """What is computed once and banked."""
    what = f"{megabytes(size)} in {out}, of {counted(frames, 'frame')}"
    display.field("Frozen", f"{_frozen(halves)}; computed once and banked: {what}")


def show_unbanked(display: Display, halves: Halves) -> None:
    """What is frozen for good and is computed in every epoch."""
    nothing = "nothing at the front of the backbone: frames go through all of it in every epoch"
    display.field("Frozen", nothing if halves.prefix is None else f"{_frozen(halves)}; computed anew in every epoch")


def _frozen(halves: Halves) -> str:
    assert halves.prefix is not None
    shape = "×".join(map(str, halves.prefix.feature_shape))
    return f"{1 - halves.share:.0%} of the computation, up to {halves.prefix.layer} ({shape})"


def show_trained(
    display: Display,
    head: Head,
    pca: int | None,
    plan: JointPlan,
    groups: Sequence[Group],
    *,
    has_batch_norm: bool,
    random: bool,
) -> None:
    """The table of what trains: from which epoch, how many parameters, at which learning rate; of a network that has
    BatchNorm or not, its weights random or not."""
    count = sum(parameter.numel() for parameter in head.parameters())
    rows = [("1", "head", f"{count:,}", f"{plan.fit.learning_rate:.2g}")]
    rows += [(str(group.epoch + 1), group.name, f"{group.count:,}", f"{group.rate:.2g}") for group in groups]
    names = ("from epoch", "trains", "parameters", "learning rate")
    widths = [max(len(row[place]) for row in (names, *rows)) for place in range(4)]
    for row in (names, *rows):
        display.line(
            f"  {row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
        )
    norm = "trains" if plan.unfreezing.batch_norm else "stays frozen, statistics and all"
    of_norm = f"; BatchNorm in the backbone {norm}" if has_batch_norm else ""
    display.line(f"  (all else is frozen{of_norm})")
    if has_batch_norm and random and not plan.unfreezing.batch_norm:
        display.field("Note", "random weights have no statistics that BatchNorm should keep; see --train-batch-norm")
    display.field("Head", head_words(head.config, pca))


def show_plan(
    display: Display, plan: JointPlan, kept_bytes: float, parts: Sequence[str], views: int, *, resumed: bool
) -> None:
    """How backbone and head are trained."""
    fit = plan.fit
    stop = f", stops after {fit.patience} without improvement" if fit.patience else ""
    steps = f" × {fit.accumulate} accumulated" if fit.accumulate > 1 else ""
    chosen = plan.selection
    drawn = f" in {counted(views, 'banked view')}" if views else ", drawn anew in every epoch"
    augmented = f", augmented by {', '.join(parts)}{drawn}" if parts else ""
    frames = selection_words(chosen)
    display.field(
        "Training",
        f"{counted(fit.epochs, 'epoch')}{stop}, batches of {fit.batch_size}{steps} videos and at most "
        f"{fit.max_steps:,} rows, {fit.optimizer}, {fit.schedule} schedule{frames}{augmented}",
    )
    how = "computed again in the backward pass" if plan.recompute else "kept for the backward pass"
    display.field(
        "Memory",
        f"{counted(plan.micro_batch, 'row')} at once; activations, {megabytes(kept_bytes)} of the largest batch, "
        f"are {how}",
    )
    if resumed:
        display.field("Resumed", "what an earlier call of this command finished is not done again")


def show_joined(display: Display, joined: Joined) -> None:
    """What comparing the joined model with the head on its bank has found."""
    display.field(
        "Joined",
        f"gives what the head gave on its bank: of {counted(joined.videos, 'video')}, embeddings within "
        f"{joined.embeddings:.2g} of their norm (tolerance {joined.tolerances[0]:g}), scores within "
        f"{joined.scores:.2g} "
        f"({joined.tolerances[1]:g})",
    )
