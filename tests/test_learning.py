"""What is learnt, as a run keeps it and as it is read back, and which settings contradict each other."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.heads import HeadConfig
from pipeline.learning import Learning, learning_of
from pipeline.objectives import Objective
from pipeline.optimisation import FitConfig
from pipeline.resampling import Resampling
from pipeline.selection import Selection

OTHER = {  # a value for every field that is not its default, in three that do not contradict each other
    "segments": Path("/labels/segments.csv"),
    "multi_label": True,
    "background": "none",
    "allow": frozenset({"overlap", "beyond"}),
    "min_seconds": 0.5,
    "split_column": "half",
    "splits": Path("splits.csv"),
    "test_share": 0.3,
    "validation_share": 0.25,
    "group_column": "person",
    "split_seed": 5,
    "selection": Selection("tsn", 8, 3),
    "head": HeadConfig(cell="gru", mlp=(16, 8), deltas=(1, 4), init=("bias-one",), spatial="mean"),
    "pca": 0,
    "supervise": "growing",
    "read": "weighted",
    "label_smoothing": 0.05,
    "fuse": "mean",
    "resampling": Resampling("nearest", 0.5),
    "epochs": 7,
    "fit": FitConfig(epochs=7, clip_norm=None, patience=3, schedule="plateau"),
    "seeds": 3,
}
MORE = {
    "target": "speed",
    "targets": Path("speed.csv"),
    "regression": True,
    "loss": "huber",
    "folds": 4,
    "label_smoothing": 0.0,
}
FRAMES = {"frame_values": Path("angles.csv"), "target": "elbow"}


@pytest.mark.parametrize("settings", [{}, OTHER, MORE, FRAMES], ids=["defaults", "other", "more", "frames"])
def test_a_run_tells_what_it_learnt(settings: dict[str, Any]) -> None:
    """Through JSON and back, but for the usual smoothing: a run says what it was."""
    learning = Learning(**settings)
    written = json.loads(json.dumps({"banks": ["bank.h5"], "finetune": {"unfreeze": "2"}, **learning.resolved()}))
    assert learning_of(written) == replace(learning, label_smoothing=learning.smoothing)


def test_what_is_read_back_is_every_setting() -> None:
    """Else one of them would be its default wherever it is read back, and the test above would not see it."""
    assert {field.name for field in fields(Learning)} == {*OTHER, *MORE, *FRAMES}
    for settings in (OTHER, MORE, FRAMES):
        defaults = vars(Learning())
        assert [name for name, value in settings.items() if value == defaults[name]] == []


def test_runs_of_earlier_versions_are_read() -> None:
    """Their files do not name what heads learnt to do later."""
    learning = Learning(head=HeadConfig(cell="gru", projection=7))
    written = json.loads(json.dumps(learning.resolved()))
    for name in ("variational_dropout", "projection_dropout", "step_mlp"):
        del written["head"][name]
    assert "resampling" not in written, "or a run that was begun before would be taken for another"
    assert learning_of(written) == replace(learning, label_smoothing=learning.smoothing)


@pytest.mark.parametrize(
    "change",
    [
        {"fuse": ...},
        {"head": {**vars(HeadConfig()), "attention_heads": 8}},
        {"fit": None},
        {"resampling": {"method": "linear", "order": 3}},
        {"allow": 3},
    ],
)
def test_a_run_of_another_version_is_refused(change: dict[str, Any]) -> None:
    config = {name: value for name, value in {**Learning().resolved(), **change}.items() if value is not ...}
    with pytest.raises(UserError, match=r"of another version .*train the run again"):
        learning_of(config)


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({}, Objective("class", label_smoothing=0.1)),
        ({"label_smoothing": 0.0}, Objective("class")),
        (
            {"multi_label": True, "supervise": "every-step", "read": "mean"},
            Objective("multilabel", False, "every-step", "mean"),
        ),
        ({"regression": True, "loss": "huber"}, Objective("value", loss="huber")),
        ({"segments": Path("a.csv")}, Objective("class", per_frame=True, label_smoothing=0.1)),
        ({"segments": Path("a.csv"), "multi_label": True}, Objective("multilabel", per_frame=True)),
        ({"frame_values": Path("a.csv")}, Objective("value", per_frame=True)),
    ],
)
def test_the_objective_is_that_of_the_targets(settings: dict[str, Any], objective: Objective) -> None:
    learning = Learning(**settings)
    assert vars(learning.objective) == vars(objective)
    assert (learning.kind, learning.per_frame) == (objective.kind, objective.per_frame)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": Path("a"), "segments": Path("b")}, "--targets and --segments both give targets"),
        ({"multi_label": True, "regression": True}, "exclude one another: labels, or a number"),
        ({"frame_values": Path("a"), "multi_label": True}, "--multi-label asks for labels"),
        ({"segments": Path("a"), "regression": True}, "use --frame-values"),
        ({"background": "none"}, "are for --segments"),
        ({"allow": frozenset({"overlap"})}, "are for --segments"),
        ({"segments": Path("a"), "target": "colour"}, "--target names a column"),
        ({"min_seconds": 1.0}, "it needs --segments"),
        ({"fuse": "svm", "regression": True}, "one class per video"),
        ({"fuse": "svm", "segments": Path("a")}, "one class per video"),
        ({"splits": Path("a"), "folds": 3}, "--splits and --folds"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Learning(**settings)
