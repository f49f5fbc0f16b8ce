"""What is learnt from a bank, and how: targets, splits, the frames that are seen, the head, its training.

A run keeps it in its config.json, so that another command can learn the same once more.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.heads import HeadConfig
from pipeline.objectives import Objective
from pipeline.optimisation import FitConfig
from pipeline.resampling import Resampling
from pipeline.selection import Selection

# What was best on developing splits of surveillance and motion clips; docstrings of `pipeline.inputs` say why it helps.
HEAD = HeadConfig(
    hidden=64,
    bidirectional=True,
    pool="max+stats",
    norm="batch",
    output_dropout=0.5,
    centre=True,
    changes=(4,),
)
COMPONENTS = 128  # of the PCA, where the inputs are wider and nothing else was asked for
SMOOTHING = 0.1  # of class targets
EPOCHS, STEPS = 30, 240  # at least so many epochs, and so many steps of the optimiser

_NESTED = {"selection": Selection, "head": HeadConfig, "fit": FitConfig}


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What is learnt, and how; the defaults are those of `framebank train-head`.

    Attributes:
        target, targets, segments, frame_values, multi_label, regression, background, allow: where the targets are and
            of what kind, see `pipeline.targets.as_asked`.
        min_seconds: predicted segments that are shorter join their neighbours.
        split_column, splits, folds, test_share, validation_share, group_column, split_seed: what is held out, see
            `pipeline.folds.choose_folds`.
        selection: the rows of a video that the head sees.
        head: the head.
        pca: components of the PCA, 0 for none; None for the usual.
        supervise, read, loss, label_smoothing: see `pipeline.objectives.Objective`; None for the usual.
        fuse: of several banks: "concat" of features, "mean" of scores, or "svm" on them.
        resampling: how the banks after the first are read at its times; None: as they are.
        epochs: as asked for; None for the usual. What `fit` says of epochs holds.
        fit: the training.
        seeds: how many times all is trained, each time with the next seed.

    Raises UserError for settings that contradict each other.
    """

    target: str | None = None
    targets: Path | None = None
    segments: Path | None = None
    frame_values: Path | None = None
    multi_label: bool = False
    regression: bool = False
    background: str | None = None
    allow: frozenset[str] = frozenset()
    min_seconds: float = 0.0
    split_column: str = "split"
    splits: Path | None = None
    folds: int | None = None
    test_share: float = 0.2
    validation_share: float = 0.0
    group_column: str = "group"
    split_seed: int = 0
    selection: Selection = field(default_factory=Selection)
    head: HeadConfig = HEAD
    pca: int | None = None
    supervise: str = "pooled"
    read: str = "last"
    loss: str | None = None
    label_smoothing: float | None = None
    fuse: str = "concat"
    resampling: Resampling | None = None
    epochs: int | None = None
    fit: FitConfig = field(default_factory=FitConfig)
    seeds: int = 1

    def __post_init__(self) -> None:
        sources = {"--targets": self.targets, "--segments": self.segments, "--frame-values": self.frame_values}
        given = [name for name, path in sources.items() if path is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} both give targets; give one of them")
        if self.multi_label and self.regression:
            raise UserError("--multi-label and --regression exclude one another: labels, or a number")
        if self.frame_values is not None and self.multi_label:
            raise UserError("--frame-values gives numbers, and --multi-label asks for labels; leave it out")
        if self.segments is not None and self.regression:
            raise UserError("--segments gives labels, and --regression asks for numbers; use --frame-values")
        if self.segments is None and (self.background is not None or self.allow):
            raise UserError("--background and the --allow options are for --segments; leave them out")
        if self.segments is not None and self.target is not None:
            raise UserError("--target names a column, and --segments files have their own; leave it out")
        if self.segments is None and self.min_seconds:
            raise UserError("--min-seconds smooths predicted segments; it needs --segments")
        if self.fuse == "svm" and (self.per_frame or self.kind != "class"):
            raise UserError("--fuse svm is for one class per video; use --fuse mean")
        if self.splits is not None and self.folds is not None:
            raise UserError("--splits and --folds exclude one another; give one of them")

    @property
    def kind(self) -> str:
        """Kind of the targets."""
        if self.regression or self.frame_values is not None:
            return "value"
        return "multilabel" if self.multi_label else "class"

    @property
    def per_frame(self) -> bool:
        """Whether there is one target per frame."""
        return self.segments is not None or self.frame_values is not None

    @property
    def smoothing(self) -> float:
        """Label smoothing as asked for, or the default of the kind of target."""
        if self.label_smoothing is not None:
            return self.label_smoothing
        return SMOOTHING if self.kind == "class" else 0.0

    @property
    def objective(self) -> Objective:
        """What the head is trained for."""
        return Objective(
            kind=self.kind,
            per_frame=self.per_frame,
            supervise=self.supervise,
            read=self.read,
            loss=self.loss or "",
            label_smoothing=self.smoothing,
        )

    def resolved(self) -> dict[str, Any]:
        """It as plain values, for JSON; `learning_of` reads them."""
        every = asdict(self) | {"label_smoothing": self.smoothing, "allow": sorted(self.allow)}
        plain = {each.name: every[each.name] for each in fields(Learning)}
        if self.resampling is None:  # as in runs that were begun before it was known
            del plain["resampling"]
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


def learning_of(config: Mapping[str, Any]) -> Learning:
    """What a run has learnt, from the `config` of its config.json; other keys there are left alone.

    Raises:
        UserError: it was written by another version.
    """
    try:
        plain = {each.name: config[each.name] for each in fields(Learning) if each.name != "resampling"}
        for name in ("targets", "segments", "frame_values", "splits"):
            plain[name] = None if plain[name] is None else Path(plain[name])
        nested = {name: kind(**plain[name]) for name, kind in _NESTED.items()}
        nested |= {"resampling": Resampling(**config["resampling"])} if "resampling" in config else {}
        return Learning(**{**plain, **nested, "allow": frozenset(plain["allow"])})
    except (KeyError, TypeError) as error:
        raise UserError(f"The run's config.json is of another version ({error}); train the run again.") from None
