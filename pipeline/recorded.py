"""What a finished run wrote down, read back: settings, results, folds, and its tables of held-out videos."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import runs, splits
from pipeline.errors import UserError
from pipeline.results import HeldOut, Task
from pipeline.segments import IGNORED
from pipeline.splits import Fold
from pipeline.targets import SEPARATOR


@dataclass(frozen=True)
class Recorded:
    """A finished run: its folder, config.json, results.json, task and folds."""

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    task: Task
    folds: list[Fold]

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked, resolved."""
        return self.config["config"]

    @property
    def finetuned(self) -> dict[str, Any] | None:
        """How backbone and head were trained together; None where only a head was trained."""
        return self.asked.get("finetune")

    @property
    def tested(self) -> list[str]:
        """The ids that were held out."""
        return [video for fold in self.folds for video in fold.test]


def read_run(folder: Path) -> Recorded:
    """A finished run. UserError if there is none."""
    config, results = runs.read_config(folder), runs.read_results(folder)
    folds, _ = splits.read_splits(folder / "splits.csv")
    return Recorded(folder, config, results, task_of(results), folds)


def task_of(results: Mapping[str, Any]) -> Task:
    """What a run predicts, from its results.json."""
    said = results["task"]
    return Task(said["kind"], said["per_frame"], tuple(said["labels"]), said["background"])


def tables(folder: Path, task: Task, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """predictions.csv of a seed, and frames.csv where targets are per frame; UserError where they cannot be read."""
    text = dict.fromkeys(("id", "fold"), str)
    if task.kind != "value":
        text |= dict.fromkeys(("target", "predicted"), str)
    read = []
    for name in ("predictions", "frames")[: 1 + task.per_frame]:
        path = runs.seed_file(folder, name, seed)
        try:
            read.append(
                pd.read_csv(path, dtype=text, keep_default_na=False, encoding_errors="surrogatepass", na_values=[])
            )
        except (OSError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise UserError(f"{path} cannot be read ({said}); restore it, or train with another --out.") from None
        if "id" not in read[-1].columns:
            raise UserError(f"{path} has no column id; restore it, or train with another --out.")
    return read[0], read[1] if task.per_frame else None


def held_out(folder: Path, task: Task, seed: int = 0) -> HeldOut:
    """The held-out videos with what one seed said of them, as they were when they were scored.

    The frames of several labels that have none are taken as labelled so, unless predictions.csv counts fewer: then
    those are taken as not labelled.

    Raises:
        UserError: the tables cannot be read, or are not of this run's task.
    """
    predictions, frames = tables(folder, task, seed)
    held = HeldOut()
    try:
        if frames is None:
            held.ids, held.folds = predictions["id"].tolist(), predictions["fold"].tolist()
            held.targets = list(_values(task, predictions["target"], np.float32))
            held.scores, held.decided = list(_scores(task, predictions)), list(_values(task, predictions["predicted"]))
            return held
        known = dict(zip(predictions["id"], predictions["frames"], strict=True))
        for video, rows in frames.groupby("id", sort=False):
            target = _values(task, rows["target"], np.float32)
            if task.kind == "multilabel" and known[video] < len(rows):
                target[(rows["target"] == "").to_numpy()] = np.nan
            held.ids.append(str(video))
            held.folds.append(rows["fold"].iloc[0])
            held.targets.append(target)
            held.scores.append(_scores(task, rows))
            held.decided.append(_values(task, rows["predicted"]))
            held.seconds.append(pd.to_numeric(rows["seconds"], errors="coerce").to_numpy(np.float64))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"The predictions in {folder} are not those of its results.json ({type(error).__name__} {error}); restore "
            "them, or train with another --out."
        ) from None
    return held


def _scores(task: Task, rows: pd.DataFrame) -> np.ndarray:
    columns = ["predicted"] if task.kind == "value" else [f"p_{label}" for label in task.labels]
    return rows[columns].to_numpy(np.float32)


def _values(task: Task, words: pd.Series, several: type = np.int64) -> np.ndarray:
    """(n,) int64 classes, IGNORED where empty; (n, K) of 0 and 1 as `several`; or (n,) float32, NaN where empty."""
    if task.kind == "value":
        return pd.to_numeric(words, errors="coerce").to_numpy(np.float32)
    places = {label: place for place, label in enumerate(task.labels)}
    if task.kind == "class":
        known = {"": IGNORED, **places} if task.per_frame else places
        return np.array([known[word] for word in words], np.int64)
    rows = {word: [places[label] for label in word.split(SEPARATOR) if label] for word in words.unique()}
    values: np.ndarray = np.zeros((len(words), len(places)), several)
    for row, word in enumerate(words):
        values[row, rows[word]] = 1
    return values
