"""How good predictions are, in the field's own names and by scikit-learn's definitions.

Kinds: "class" (one of K), "multilabel" (any of K) and "value" (a number). Every score is a fraction, not a percentage.
A class that the scored part lacks is no error: averages go over the classes that are there.

- accuracy, balanced_accuracy (the mean recall of the classes that occur), macro_f1 (over classes that occur or are
  predicted), micro_f1, exact_match (all labels of a row right)
- auc: area under the ROC curve; with more than two classes the mean of one against the rest
- mAP: the mean over labels of average precision
- nll: the mean of -ln(probability of the true class). ece: expected calibration error of the winning class, in 15
  equally wide bins (Guo et al. 2017)
- mae and rmse in the target's unit, r2
- frame_accuracy, edit, f1@10, f1@25, f1@50: see `pipeline.segment_metrics`
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from pipeline.bootstrap import Ratio, Score
from pipeline.segment_metrics import edit_score, segmental_f1

# (kind, per frame) -> the metric that is reported first, and compared.
HEADLINE = {
    ("class", False): "accuracy",
    ("multilabel", False): "mAP",
    ("value", False): "mae",
    ("class", True): "frame_accuracy",
    ("multilabel", True): "mAP",
    ("value", True): "mae",
}
_LOWER_IS_BETTER = frozenset(("loss", "nll", "ece", "mae", "rmse"))
_BINS = 15
_SMALLEST = 1e-12  # a probability of 0 for what happened costs this much, not infinity


def higher_is_better(name: str) -> bool:
    """Whether a larger value of a metric is the better one."""
    return name not in _LOWER_IS_BETTER


def video_metrics(
    kind: str, target: np.ndarray, probability: np.ndarray, *, decided: np.ndarray | None = None
) -> dict[str, float]:
    """All metrics of rows that are scored alone; NaN where one is not defined.

    Args:
        target: class (n,) integers; multilabel (n, K) of 0 and 1; value (n,).
        probability: (n, K); value: (n,) or (n, 1) predicted values.
        decided: multilabel only, (n, K) of 0 and 1: which labels are predicted; None: those of probability 0.5 or more.
    """
    if kind == "value":
        return _value_metrics(target, probability.reshape(len(target)))
    if kind == "multilabel":
        return _multilabel_metrics(target, probability, probability >= 0.5 if decided is None else decided)
    predicted = probability.argmax(1)
    return {
        **_class_metrics(target, predicted),
        "auc": _class_auc(target, probability),
        "nll": float(np.mean(-np.log(np.maximum(_of_true(target, probability), _SMALLEST)))) if len(target) else np.nan,
        "ece": _ece(target == predicted, probability.max(1)),
    }


def frame_metrics(
    kind: str,
    targets: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    *,
    background: int | None = None,
) -> dict[str, float]:
    """All metrics of videos with a target per frame. Masked frames are dropped before anything else.

    Args:
        targets: per video: class (T,) integers, masked < 0; multilabel (T, K), masked rows NaN; value (T,), masked NaN.
        predictions: per video: class (T,) integers; multilabel (T, K) probabilities; value (T,) or (T, 1).
        background: class only: a class whose segments do not count in edit and F1.
    """
    kept = [unmasked(kind, target) for target in targets]
    targets = [target[rows] for target, rows in zip(targets, kept, strict=True) if rows.any()]
    predictions = [found[rows] for found, rows in zip(predictions, kept, strict=True) if rows.any()]
    if not targets:
        raise ValueError("every frame is masked: there is nothing to score")
    target, predicted = np.concatenate(targets), np.concatenate(predictions)
    if kind != "class":
        return video_metrics(kind, target, predicted)
    scores = _class_metrics(target, predicted)
    return {
        "frame_accuracy": scores.pop("accuracy"),
        **scores,
        "edit": edit_score(targets, predictions, background),
        **{f"f1@{k}": segmental_f1(targets, predictions, k / 100, background) for k in (10, 25, 50)},
    }


def unmasked(kind: str, target: np.ndarray) -> np.ndarray:
    """(T,) bool: the frames of a video that have a target."""
    if kind == "class":
        return target >= 0
    return ~np.isnan(target.reshape(len(target), -1)).any(1)


def rows_with_target(kind: str, targets: Sequence[np.ndarray], *others: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The frames of all videos one after another, without the masked ones.

    Args:
        targets: per video, as in `frame_metrics`.
        others: what else there is of the same frames, per video (T, …).

    Returns:
        the n targets, and of each of the others (n, …).
    """
    known = [unmasked(kind, target) for target in targets]
    return tuple(
        np.concatenate([each[rows] for each, rows in zip(values, known, strict=True)]) for values in (targets, *others)
    )


def per_class(kind: str, target: np.ndarray, decided: np.ndarray, labels: Sequence[str]) -> pd.DataFrame:
    """Columns label, support, precision, recall, f1; one row per class. What divides by nothing is 0.

    Args:
        target: class (n,) integers, or multilabel (n, K) of 0 and 1; no masked rows.
        decided: what is predicted, likewise.
    """
    if kind == "multilabel":
        target, decided = target.astype(np.int64), decided.astype(np.int64)
        columns = [
            sk.precision_recall_fscore_support(target[:, k], decided[:, k], labels=[1], zero_division=0)
            for k in range(len(labels))
        ]
        precision, recall, f1, support = (np.concatenate(column) for column in zip(*columns, strict=True))
    else:
        precision, recall, f1, support = sk.precision_recall_fscore_support(
            target, decided, labels=range(len(labels)), zero_division=0
        )
    scores = {"support": support.astype(np.int64), "precision": precision, "recall": recall, "f1": f1}
    return pd.DataFrame({"label": list(labels), **scores})


def headline_score(
    kind: str, per_frame: bool, targets: Sequence[np.ndarray] | np.ndarray, predictions: Sequence[np.ndarray]
) -> Score:
    """The headline metric as a score of videos, for `pipeline.bootstrap`.

    Args:
        targets: per video, as in `video_metrics`; per frame one array per video, as in `frame_metrics`.
        predictions: likewise; class per video: (n, K) probabilities.
    """
    if not per_frame:
        if kind == "multilabel":
            return _mean_average_precision(np.asarray(targets), np.asarray(predictions), np.arange(len(targets)))
        target, found = np.asarray(targets), np.asarray(predictions)
        if kind == "class":
            return (target == found.argmax(1)).astype(np.float64)
        return np.abs(target.astype(np.float64) - found.reshape(len(target)))
    rows = [unmasked(kind, target) for target in targets]
    kept = [target[row] for target, row in zip(targets, rows, strict=True)]
    found_rows = [found[row] for found, row in zip(predictions, rows, strict=True)]
    frames = np.array([row.sum() for row in rows], np.float64)
    if kind == "multilabel":
        videos = np.repeat(np.arange(len(kept)), frames.astype(np.int64))
        return _mean_average_precision(np.concatenate(kept), np.concatenate(found_rows), videos)
    pairs = list(zip(kept, found_rows, strict=True))
    if kind == "class":
        return Ratio(np.array([(true == found).sum() for true, found in pairs], np.float64), frames)
    errors = [np.abs(true.astype(np.float64) - found.reshape(len(true))).sum() for true, found in pairs]
    return Ratio(np.array(errors), frames)


def _class_metrics(target: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    if not len(target):
        return dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), float("nan"))
    return {
        "accuracy": float((target == predicted).mean()),
        # over the classes that occur; balanced_accuracy_score warns where another is predicted
        "balanced_accuracy": float(
            sk.recall_score(target, predicted, labels=np.unique(target), average="macro", zero_division=0)
        ),
        "macro_f1": float(sk.f1_score(target, predicted, average="macro", zero_division=0)),
    }


def _multilabel_metrics(target: np.ndarray, probability: np.ndarray, decided: np.ndarray) -> dict[str, float]:
    target, predicted = target.astype(np.int64), decided.astype(np.int64)
    labels = range(target.shape[1])
    # Label by label: scikit-learn takes a matrix of one column for something else.
    precisions = [sk.average_precision_score(target[:, k], probability[:, k]) for k in labels if target[:, k].any()]
    f1 = [
        sk.f1_score(target[:, k], predicted[:, k], zero_division=0)
        for k in labels
        if target[:, k].any() or predicted[:, k].any()
    ]
    return {
        "mAP": _mean(precisions),
        "macro_f1": _mean(f1),
        "micro_f1": float(sk.f1_score(target.ravel(), predicted.ravel(), zero_division=0)) if len(target) else np.nan,
        "exact_match": _mean((target == predicted).all(1)),
        "auc": _mean_auc(target, probability),
    }


def _value_metrics(target: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    target = target.astype(np.float64)
    errors = target - predicted
    spread = float(((target - target.mean()) ** 2).sum()) if len(target) else 0.0
    return {
        "mae": _mean(np.abs(errors)),
        "rmse": float(np.sqrt(_mean(errors**2))),
        "r2": 1 - float((errors**2).sum()) / spread if spread > 0 else float("nan"),
    }


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _of_true(target: np.ndarray, probability: np.ndarray) -> np.ndarray:
    return probability[np.arange(len(target)), target].astype(np.float64)


def _class_auc(target: np.ndarray, probability: np.ndarray) -> float:
    classes = probability.shape[1]
    if classes == 2:
        return _mean_auc((target == 1).astype(np.int64)[:, None], probability[:, 1:])
    return _mean_auc((target[:, None] == np.arange(classes)).astype(np.int64), probability)


def _mean_auc(positive: np.ndarray, probability: np.ndarray) -> float:
    """The mean of the columns' areas; columns that are all 0 or all 1 have none."""
    mixed = [k for k in range(positive.shape[1]) if 0 < positive[:, k].sum() < len(positive)]
    return _mean([sk.roc_auc_score(positive[:, k], probability[:, k]) for k in mixed])


class Reliability(NamedTuple):
    """Rows by how sure the prediction was, in equally wide bins: counts (B,), mean confidence and share right (B,).

    Of a bin without rows both are NaN.
    """

    counts: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def reliability(right: np.ndarray, confidence: np.ndarray) -> Reliability:
    """How often predictions come true, by how sure they were; the bins of ece, open below and closed above.

    Args:
        right: (n,) bool or 0 and 1.
        confidence: (n,) probabilities of what was predicted.
    """
    bins = np.clip(np.ceil(confidence.astype(np.float64) * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    with np.errstate(invalid="ignore"):
        sums = (np.bincount(bins, each.astype(np.float64), minlength=_BINS) / counts for each in (confidence, right))
        return Reliability(counts, *sums)


def _ece(right: np.ndarray, confidence: np.ndarray) -> float:
    """Sum over bins of (share of rows) |accuracy - mean confidence|."""
    if not len(right):
        return float("nan")
    bins = reliability(right, confidence)
    return float(np.nansum(bins.counts * np.abs(bins.right - bins.confidence)) / len(right))


def _mean_average_precision(target: np.ndarray, probability: np.ndarray, videos: np.ndarray) -> Score:
    """mAP of chosen videos. Sorted once, so that a replicate costs two running sums per label.

    Args:
        target: (n, K) of 0 and 1; probability: (n, K).
        videos: (n,) the video of each row, from 0.
    """
    columns = []
    for k in range(target.shape[1]):
        order = np.argsort(-probability[:, k], kind="stable")
        falling = probability[order, k]
        ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # rows that tie count at once
        columns.append((videos[order], target[order, k] > 0, ends))
    count = int(videos.max()) + 1

    def score(rows: np.ndarray) -> float:
        times = np.bincount(rows, minlength=count)
        precisions = []
        for owner, positive, ends in columns:
            weights = times[owner]
            hits, passed = np.cumsum(weights * positive)[ends], np.cumsum(weights)[ends]
            if hits[-1]:
                precision = hits / np.maximum(passed, 1)
                precisions.append(float((np.diff(hits, prepend=0) * precision).sum() / hits[-1]))
        return _mean(precisions)

    return score
