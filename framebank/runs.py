"""A finished run, read back: its score beside the baselines, its tables; and a run that was scored once more."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from framebank.asking import StrPath
from pipeline import recorded, runs

Interval = tuple[float, float]


class Run:
    """A finished run of `train_head` or `finetune`, read from its folder. It may be given wherever its path may.

    Attributes:
        path: the folder.

    Raises:
        UserError: the folder holds no finished run.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self._results = runs.read_results(self.path)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        between = "" if self.interval is None else f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"
        return f"Run({str(self.path)!r}, {self.metric} {self.score:.3f}{between})"

    @property
    def metric(self) -> str:
        """Name of the headline metric, as "accuracy"."""
        return str(self._results["headline"])

    @property
    def score(self) -> float:
        """The headline metric on held-out videos, of several seeds their mean."""
        return float(self._results["score"])

    @property
    def interval(self) -> Interval | None:
        """Its 95 % interval, whole groups resampled; None where too few videos were held out for one."""
        return _interval(self._results["interval"])

    @property
    def baselines(self) -> pd.DataFrame:
        """What does without order, on the same videos: name, score, low and high (of the interval; NaN without)."""
        rows = []
        for name, said in self._results["baselines"].items():
            low, high = said["interval"] or (float("nan"), float("nan"))
            rows.append({"name": name, "score": said["score"], "low": low, "high": high})
        return pd.DataFrame(rows)

    @property
    def best_baseline(self) -> str:
        """Name of the baseline that scores best."""
        return str(self._results["best_baseline"])

    @property
    def difference(self) -> float:
        """How much better than the best baseline; positive where the head is better, whatever the metric."""
        return float(self._results["difference"])

    @property
    def difference_interval(self) -> Interval | None:
        """Its 95 % interval: where it holds 0, it is not shown that the head is better."""
        return _interval(self._results["difference_interval"])

    @property
    def metrics(self) -> Mapping[str, float]:
        """All metrics on held-out videos, by name, of the first seed."""
        return dict(self._results["metrics"])

    @property
    def per_class(self) -> pd.DataFrame:
        """label, support, precision, recall, f1 of every class; no rows for values."""
        return pd.DataFrame(self._results["per_class"])

    @property
    def folds(self) -> pd.DataFrame:
        """One row per fold: name, videos, and every metric."""
        return pd.DataFrame(self._results["folds"])

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the outputs; () for values."""
        return tuple(self._results["task"]["labels"])

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per held-out video: id, fold, target, predicted, p_LABEL; of the first seed. With targets per frame
        how many frames were right. UserError: the table cannot be read."""
        return recorded.tables(self.path, recorded.task_of(self._results))[0]

    @cached_property
    def frames(self) -> pd.DataFrame | None:
        """One row per held-out frame, with its time in seconds; None where there is a target per video."""
        return recorded.tables(self.path, recorded.task_of(self._results))[1]

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch of every training: seed, fold, epoch, losses, validation metrics, kept."""
        return pd.read_csv(self.path / "metrics.csv")

    @property
    def splits(self) -> pd.DataFrame:
        """Which video trained, validated and tested what: id, fold, part."""
        return pd.read_csv(self.path / "splits.csv", dtype=str, keep_default_na=False)

    @property
    def config(self) -> Mapping[str, Any]:
        """What was asked, resolved (`config`), of which data (`data`), with which libraries (`versions`).

        UserError: it cannot be read, or is of another version."""
        return runs.read_config(self.path)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came of scoring a run once more.

    Attributes:
        metric: name of the headline metric.
        score: its value on these videos.
        interval: its 95 % interval; None where there are too few videos for one.
        metrics: all metrics, by name.
        per_class: label, support, precision, recall, f1 of every class; no rows for values.
        videos: how many were scored.
        as_before: of the run's own held-out videos, whether the scores are those that it wrote down, up to rounding;
            None of other banks.
    """

    metric: str
    score: float
    interval: Interval | None
    metrics: Mapping[str, float]
    per_class: pd.DataFrame
    videos: int
    as_before: bool | None


def _interval(ends: Any) -> Interval | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))
