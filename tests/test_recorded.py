"""What a run wrote down is read back as it was: every kind of target, with the very same metrics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.recorded import held_out, tables, task_of
from pipeline.results import HeldOut, Task, frame_table, metrics_of, prediction_table
from pipeline.segments import IGNORED
from pipeline.writing import write_csv

KINDS = [(kind, per_frame) for kind in ("class", "multilabel", "value") for per_frame in (False, True)]


def made(kind: str, per_frame: bool, videos: int = 9) -> tuple[Task, HeldOut]:
    """Held-out predictions drawn at random; per frame some frames have no target."""
    random = np.random.default_rng(0)
    labels = () if kind == "value" else ("run", "walk, slow", "None")
    held = HeldOut()
    for number in range(videos):
        steps = int(random.integers(4, 9)) if per_frame else 1
        scores = random.dirichlet(np.ones(3), steps).astype(np.float32)
        target: Any = random.integers(0, 3, steps)
        decided: Any = scores.argmax(1)
        if kind == "multilabel":
            target, decided = random.integers(0, 2, (steps, 3)).astype(np.float32), (scores > 0.3).astype(np.int64)
        if kind == "value":
            target, scores = random.normal(size=steps).astype(np.float32), scores[:, :1]
            decided = scores[:, 0]
        if per_frame and number == 2:
            target[1] = IGNORED if kind == "class" else np.nan
            if kind == "multilabel":
                target[[0, 2, 3]] = 1  # a frame without a label cannot be told from one that nobody labelled
                target[4:] = 1
        held.ids.append(f"NA/{number}")
        held.folds.append(str(number % 2 + 1))
        held.targets.append(target if per_frame else target[0])
        held.scores.append(scores if per_frame else scores[0])
        held.decided.append(decided if per_frame else decided[0])
        if per_frame:
            held.seconds.append(np.arange(steps) / 10)
    return Task(kind, per_frame, labels), held


def write(folder: Path, task: Task, held: HeldOut) -> None:
    write_csv(folder / "predictions.csv", prediction_table(task, held))
    if task.per_frame:
        write_csv(folder / "frames.csv", frame_table(task, held))


@pytest.mark.parametrize(("kind", "per_frame"), KINDS)
def test_read_back_as_it_was(kind: str, per_frame: bool, tmp_path: Path) -> None:
    task, held = made(kind, per_frame)
    write(tmp_path, task, held)
    again = held_out(tmp_path, task)
    assert (again.ids, again.folds) == (held.ids, held.folds)
    for name in ("targets", "scores", "decided", "seconds"):
        for now, before in zip(getattr(again, name), getattr(held, name), strict=True):
            np.testing.assert_allclose(now, before, atol=1e-6)
            assert np.asarray(now).shape == np.asarray(before).shape
    assert metrics_of(task, again) == pytest.approx(metrics_of(task, held), nan_ok=True)


def test_the_task_is_that_of_the_results() -> None:
    said = {"kind": "class", "per_frame": True, "labels": ["a", "b"], "background": 1}
    assert task_of({"task": said}) == Task("class", True, ("a", "b"), 1)


def test_damaged_tables_are_told(tmp_path: Path) -> None:
    task, held = made("class", False)
    with pytest.raises(UserError, match=r"predictions.csv cannot be read"):
        tables(tmp_path, task)
    write(tmp_path, task, held)
    with pytest.raises(UserError, match=r"are not those of its results\.json"):
        held_out(tmp_path, Task("class", False, ("run", "swim", "None")))
    (tmp_path / "predictions.csv").write_text("name\nx\n")
    with pytest.raises(UserError, match="has no column id"):
        tables(tmp_path, task)
