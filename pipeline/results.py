"""What came of a run: held-out predictions of head and baselines -> scores, intervals, differences, tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pipeline.bootstrap import Ratio, Score, bootstrap, paired, score_of
from pipeline.features import records
from pipeline.metrics import (
    HEADLINE,
    frame_metrics,
    headline_score,
    higher_is_better,
    per_class,
    rows_with_target,
    unmasked,
    video_metrics,
)
from pipeline.predictions import in_words, table


@dataclass(frozen=True)
class Task:
    """What is predicted: see `pipeline.targets.Targets`. `background` is a class whose segments do not count."""

    kind: str
    per_frame: bool
    labels: tuple[str, ...]
    background: int | None = None

    @property
    def headline(self) -> str:
        """Name of the metric that comes first."""
        return HEADLINE[self.kind, self.per_frame]


@dataclass
class HeldOut:
    """What one method said of held-out videos, one entry of each list per video.

    Attributes:
        ids, folds: the video, and the fold that tested it.
        targets: class int, (K,) or value; per frame (T,) or (T, K), masked frames among them.
        scores: (K,) probabilities or (1,) values; per frame (T, K).
        decided: class int, (K,) of 0 and 1, or value; per frame (T,) or (T, K).
        seconds: per frame only: (T,) times of the frames.
    """

    ids: list[str] = field(default_factory=list)
    folds: list[str] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    decided: list[np.ndarray] = field(default_factory=list)
    seconds: list[np.ndarray] = field(default_factory=list)

    def of_fold(self, fold: str) -> "HeldOut":
        """What was said of one fold's videos."""
        places = [place for place, name in enumerate(self.folds) if name == fold]
        return HeldOut(*([values[place] for place in places] if values else [] for values in vars(self).values()))


def joined(parts: Sequence[HeldOut]) -> HeldOut:
    """The videos of several, one after the other."""
    return HeldOut(*([each for part in parts for each in vars(part)[name]] for name in vars(HeldOut())))


def metrics_of(task: Task, held: HeldOut) -> dict[str, float]:
    """All metrics of held-out predictions."""
    if task.per_frame and task.kind == "class":
        return frame_metrics(task.kind, held.targets, held.decided, background=task.background)
    target, scores, decided = rows_of(task, held)
    # Each fold has its own thresholds, so labels are what was decided, not what is likelier than not.
    return video_metrics(task.kind, target, scores, decided=decided if task.kind == "multilabel" else None)


def rows_of(task: Task, held: HeldOut) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, scores and decisions row by row: of videos, or of all frames that have a target."""
    if not task.per_frame:
        return np.stack(held.targets), np.stack(held.scores), np.stack(held.decided)
    target, scores, decided = rows_with_target(task.kind, held.targets, held.scores, held.decided)
    return target, scores, decided


def score_rows(task: Task, held: HeldOut) -> Score:
    """The headline metric as something that can be resampled by video."""
    if task.per_frame:
        said = held.decided if task.kind != "multilabel" else held.scores
        return headline_score(task.kind, True, held.targets, said)
    return headline_score(task.kind, False, np.stack(held.targets), list(np.stack(held.scores)))


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of several scores of the same videos."""
    if len(scores) == 1:
        return scores[0]
    if all(isinstance(score, np.ndarray) for score in scores):
        return np.mean([np.asarray(score) for score in scores], axis=0)
    ratios = [score for score in scores if isinstance(score, Ratio)]
    if len(ratios) == len(scores):  # seeds share their videos, so their weights are the same
        return Ratio(np.mean([ratio.values for ratio in ratios], axis=0), ratios[0].weights)
    calls = [score for score in scores if callable(score)]
    return lambda rows: float(np.mean([call(rows) for call in calls]))


def compare_with_baselines(
    task: Task, seeds: Sequence[HeldOut], baselines: Mapping[str, HeldOut], groups: Sequence[str] | None
) -> dict[str, Any]:
    """The headline of the head and of each baseline with 95 % intervals, and the paired difference to the best.

    The score of several seeds is the mean of theirs. Whole groups are resampled where there are groups. The best
    baseline is the one that scores best on these very videos, which favours the baselines.

    Returns:
        a JSON-able dict; a positive difference is in favour of the head.
    """
    count = len(seeds[0].ids)
    head = mean_score([score_rows(task, held) for held in seeds])
    others = {name: score_rows(task, held) for name, held in baselines.items()}
    values = {name: score_of(score, count) for name, score in others.items()}
    up = higher_is_better(task.headline)
    best = (max if up else min)(values, key=lambda name: values[name])
    first, second = (head, others[best]) if up else (others[best], head)
    value = score_of(head, count)
    by_seed = [score_of(score_rows(task, held), count) for held in seeds]
    return {
        "headline": task.headline,
        "score": value,
        "interval": bootstrap(head, groups, count).ends,
        "seeds": by_seed,
        "seeds_sd": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        "baselines": {
            name: {"score": values[name], "interval": bootstrap(score, groups, count).ends}
            for name, score in others.items()
        },
        "best_baseline": best,
        "difference": value - values[best] if up else values[best] - value,
        "difference_interval": paired(first, second, groups, count).ends,
        "resampled": "videos" if groups is None else "groups",
        "units": count if groups is None else len(set(groups)),
    }


def class_table(task: Task, held: HeldOut) -> list[dict[str, Any]]:
    """Support, precision, recall and F1 of every class; empty for values."""
    if task.kind == "value":
        return []
    target, _, decided = rows_of(task, held)
    return records(per_class(task.kind, target, decided, task.labels))


def confusion(task: Task, held: HeldOut) -> np.ndarray | None:
    """(K, K) int64 counts, targets by predictions; None where there is not one class per row."""
    if task.kind != "class":
        return None
    target, _, decided = rows_of(task, held)
    counts = np.zeros((len(task.labels),) * 2, np.int64)
    np.add.at(counts, (target, decided), 1)
    return counts


def prediction_table(task: Task, held: HeldOut) -> pd.DataFrame:
    """One row per held-out video: id, fold, target, predicted, and a probability per class.

    For targets per frame a row counts the video's frames and how many are right (its error, for values).
    """
    if task.per_frame:
        return pd.DataFrame([_frame_summary(task, held, place) for place in range(len(held.ids))])
    said = table(task, np.stack(held.scores), np.stack(held.decided))
    known = {"id": held.ids, "fold": held.folds, "target": in_words(task, np.stack(held.targets))}
    return pd.concat([pd.DataFrame(known), said], axis=1)


def frame_table(task: Task, held: HeldOut) -> pd.DataFrame:
    """One row per frame of the held-out videos: id, fold, seconds, target, predicted, and a probability per class."""
    tables = []
    for place, video in enumerate(held.ids):
        target = held.targets[place]
        known = unmasked(task.kind, target)
        spoken = np.full(len(target), "", object)
        spoken[known] = in_words(task, target[known])
        columns = {"id": video, "fold": held.folds[place], "seconds": held.seconds[place], "target": spoken}
        said = table(task, held.scores[place], held.decided[place])
        tables.append(pd.concat([pd.DataFrame(columns), said], axis=1))
    return pd.concat(tables, ignore_index=True)


def _frame_summary(task: Task, held: HeldOut, place: int) -> dict[str, Any]:
    target, decided = held.targets[place], held.decided[place]
    known = unmasked(task.kind, target)
    row: dict[str, Any] = {"id": held.ids[place], "fold": held.folds[place], "frames": int(known.sum())}
    if task.kind == "value":
        return row | {"mae": float(np.abs(target[known] - decided[known]).mean()) if known.any() else float("nan")}
    right = (target[known] == decided[known]).reshape(int(known.sum()), -1).all(axis=1)
    return row | {"right": int(right.sum())}
