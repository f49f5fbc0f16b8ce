"""What can be had without a sequence model: the baselines that every head is printed beside.

A head that knows the order of frames must beat models that do not: the majority class, a network that sees the last
frame alone, and linear models on the mean, or on mean and standard deviation over time, of the features. The last is
strong, so it gets what the head gets: features standardised by the training part, and a penalty chosen by the loss on
inner folds of the training part (whole groups, classes in proportion).

Linear models are penalised per training row: they minimise mean loss + strength / 2 |w|^2 (ridge: squared error), so
that a strength means the same for 100 rows and for 20,000, and the inner folds' choice holds for the whole.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.neural_network import MLPClassifier

from pipeline.metrics import unmasked

# (kind, per frame) -> its baselines, from the plainest to the strongest.
NAMES = {
    ("class", False): (
        "majority",
        "last frame MLP",
        "logistic regression on mean",
        "logistic regression on mean + std",
    ),
    ("multilabel", False): ("majority", "one-vs-rest on mean", "one-vs-rest on mean + std"),
    ("value", False): ("mean", "ridge on mean", "ridge on mean + std"),
    ("class", True): ("majority", "logistic regression per frame"),
    ("multilabel", True): ("majority", "one-vs-rest per frame"),
    ("value", True): ("mean", "ridge per frame"),
}
FRAME_ROWS = 20_000  # at most so many training frames are fitted on
_SEARCH_ROWS = 5_000  # and at most so many take part in the choice of the penalty
_STRENGTHS = 10.0 ** np.arange(3, -5, -1)  # from strong to weak: each fit starts where the one before ended
_FOLDS = 5
_UNCHOSEN = 1.0  # the strength where no inner fold can be made: a class, or everything, in one group alone
_ITERATIONS = 500
_HIDDEN, _BATCH, _EPOCHS = 128, 32, 50


@dataclass(frozen=True)
class Pooled:
    """Features without order, their targets, and the groups that inner folds keep whole.

    Attributes:
        targets: class (n,) int64; multilabel (n, K) float32; value (n,) float32. Per frame, rows may be masked.
        groups: (n,) text; per frame the group (or else the video) of each row.
        mean, std, last: (n, D) float32 over the steps of each video; None per frame.
        rows: (n, D) float32, one row per frame; None per video.
        notes: what was left out.
    """

    targets: np.ndarray
    groups: np.ndarray
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    last: np.ndarray | None = None
    rows: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def pool_videos(sequences: Iterable[np.ndarray], targets: np.ndarray, groups: Sequence[str]) -> Pooled:
    """Pool each video over its steps.

    Args:
        sequences: per video (T, D), T > 0, in the order of targets.
        targets: (B,) or (B, K).
        groups: of each video; its id where there are no groups.
    """
    mean, std, last = [], [], []
    for sequence in sequences:
        steps = sequence.astype(np.float64)
        mean.append(steps.mean(0))
        std.append(steps.std(0))
        last.append(steps[-1])
    means, deviations, lasts = (np.stack(part).astype(np.float32) for part in (mean, std, last))
    return Pooled(targets, np.asarray(groups), means, deviations, lasts)


def pool_frames(
    sequences: Iterable[np.ndarray],
    targets: Sequence[np.ndarray],
    groups: Sequence[str],
    *,
    kind: str,
    training: bool,
) -> Pooled:
    """The frames of videos one after another.

    Args:
        sequences: per video (T, D).
        targets: per video (T,) or (T, K).
        groups: of each video; its id where there are no groups.
        training: leave masked frames out, and take every n-th of the rest so that at most `FRAME_ROWS` remain.
    """
    kept = [np.flatnonzero(unmasked(kind, target)) if training else np.arange(len(target)) for target in targets]
    total = sum(map(len, kept))
    step = max(1, -(-total // FRAME_ROWS)) if training else 1
    rows, passed = [], 0
    for place, sequence in enumerate(sequences):
        chosen = kept[place][-passed % step :: step]  # evenly over all videos, across their borders
        passed += len(kept[place])
        kept[place] = chosen
        rows.append(sequence[chosen].astype(np.float32))
    notes = [f"the baseline per frame is fitted on every {step}th of {total} training frames"] if step > 1 else []
    return Pooled(
        np.concatenate([target[chosen] for target, chosen in zip(targets, kept, strict=True)]),
        np.repeat(np.asarray(groups), [len(chosen) for chosen in kept]),
        rows=np.concatenate(rows),
        notes=tuple(notes),
    )


def fit_and_score(
    name: str, kind: str, per_frame: bool, train: Pooled, test: Pooled, seed: int, *, outputs: int
) -> np.ndarray:
    """Fit a baseline on the training part and score the test part as a head would.

    Args:
        name: one of `NAMES[kind, per_frame]`.
        train, test: from `pool_videos`, or per frame from `pool_frames`.
        outputs: K, the number of classes or labels; 1 for values. A class that training lacks has probability 0.

    Returns:
        (n, K) float32 probabilities, or (n, 1) values, of the rows of `test`.
    """
    assert name in NAMES[kind, per_frame], name
    if name in ("majority", "mean"):
        constant = _frequencies(kind, train.targets, outputs)
        return np.tile(constant.astype(np.float32), (len(test.targets), 1))
    train_x, test_x = _standardised(_inputs(name, train), _inputs(name, test))
    if name == "last frame MLP":
        found = _perceptron(train_x, train.targets, test_x, outputs, seed)
    elif kind == "class":
        found = _logistic(train_x, train.targets, train.groups, test_x, outputs, seed)
    elif kind == "multilabel":
        columns = [
            _logistic(train_x, column, train.groups, test_x, 2, seed)[:, 1]
            for column in train.targets.astype(np.int64).T
        ]
        found = np.stack(columns, 1)
    else:
        found = _ridge(train_x, train.targets.astype(np.float64), train.groups, test_x, seed)[:, None]
    return found.astype(np.float32)


def _inputs(name: str, pooled: Pooled) -> np.ndarray:
    if name.endswith("per frame"):
        parts = [pooled.rows]
    elif name == "last frame MLP":
        parts = [pooled.last]
    else:
        parts = [pooled.mean, pooled.std] if name.endswith("mean + std") else [pooled.mean]
    return np.concatenate([part for part in parts if part is not None], 1)


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By mean and deviation of training; a feature that is constant there is only centred."""
    mean, scale = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    scale[scale < 1e-6 * np.maximum(np.abs(mean), 1)] = 1
    return ((train - mean) / scale).astype(np.float32), ((test - mean) / scale).astype(np.float32)


def _frequencies(kind: str, targets: np.ndarray, outputs: int) -> np.ndarray:
    """What is predicted when nothing is seen, (K,)."""
    if kind == "class":
        return np.bincount(targets, minlength=outputs) / len(targets)
    return np.atleast_1d(targets.mean(0, dtype=np.float64))


def _rotated(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewer columns than rows. Exact for an L2 penalty: the best weights lie in the space that the rows span."""
    if train.shape[1] <= train.shape[0]:
        return train, test
    _, _, basis = np.linalg.svd(train, full_matrices=False)
    return train @ basis.T, test @ basis.T


def _logistic(
    train_x: np.ndarray, target: np.ndarray, groups: np.ndarray, test_x: np.ndarray, outputs: int, seed: int
) -> np.ndarray:
    """(n, K) probabilities of a logistic regression whose strength has the least log loss on inner folds."""
    if len(np.unique(target)) < 2:
        return np.tile(_frequencies("class", target, outputs), (len(test_x), 1))
    train_x, test_x = _rotated(train_x, test_x)

    def on_fold(fitted: np.ndarray, held_out: np.ndarray) -> Callable[[float], float]:
        classes = np.unique(target[fitted])
        known = held_out[np.isin(target[held_out], classes)]  # the others cost the same under every strength
        right = np.arange(len(known)), np.searchsorted(classes, target[known])
        model = LogisticRegression(max_iter=_ITERATIONS, warm_start=True)

        def loss(strength: float) -> float:
            if not len(known):
                return 0.0
            _fit(model.set_params(C=1 / (strength * len(fitted))), train_x[fitted], target[fitted])
            return float(-np.log(np.maximum(model.predict_proba(train_x[known])[right], 1e-12)).sum())

        return loss

    strength = _choose(on_fold, target, groups, seed, classes=True)
    model = LogisticRegression(max_iter=_ITERATIONS, C=1 / (strength * len(train_x)))
    _fit(model, train_x, target)
    return _over_all_classes(model, test_x, outputs)


def _ridge(train_x: np.ndarray, target: np.ndarray, groups: np.ndarray, test_x: np.ndarray, seed: int) -> np.ndarray:
    """(n,) values of a ridge regression whose strength has the least squared error on inner folds."""
    # In float64: features of videos that look alike are too near to each other for solving in float32.
    train_x, test_x = (part.astype(np.float64) for part in _rotated(train_x, test_x))

    def on_fold(fitted: np.ndarray, held_out: np.ndarray) -> Callable[[float], float]:
        def loss(strength: float) -> float:
            model = Ridge(alpha=strength * len(fitted)).fit(train_x[fitted], target[fitted])
            return float(((model.predict(train_x[held_out]) - target[held_out]) ** 2).sum())

        return loss

    strength = _choose(on_fold, target, groups, seed, classes=False)
    return Ridge(alpha=strength * len(train_x)).fit(train_x, target).predict(test_x)


def _perceptron(train_x: np.ndarray, target: np.ndarray, test_x: np.ndarray, outputs: int, seed: int) -> np.ndarray:
    """(n, K) probabilities of one hidden layer."""
    if len(np.unique(target)) < 2:
        return np.tile(_frequencies("class", target, outputs), (len(test_x), 1))
    batch = min(_BATCH, len(train_x))
    model = MLPClassifier((_HIDDEN,), alpha=1.0, batch_size=batch, max_iter=_EPOCHS, random_state=seed)
    _fit(model, train_x, target)
    return _over_all_classes(model, test_x, outputs)


def _over_all_classes(model: LogisticRegression | MLPClassifier, x: np.ndarray, outputs: int) -> np.ndarray:
    """(n, K) probabilities; 0 for a class that the model has never seen."""
    found = np.zeros((len(x), outputs))
    found[:, model.classes_] = model.predict_proba(x)
    return found


def _fit(model: LogisticRegression | MLPClassifier, x: np.ndarray, target: np.ndarray) -> None:
    """Fit, and take an optimum that is not quite reached: under the weakest penalties that is overfitting anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # few videos of many classes
        model.fit(x, target)


def _choose(
    on_fold: Callable[[np.ndarray, np.ndarray], Callable[[float], float]],
    target: np.ndarray,
    groups: np.ndarray,
    seed: int,
    *,
    classes: bool,
) -> float:
    """The strength with the least loss over all inner folds, from strong to weak until it rises twice in a row.

    Args:
        on_fold: rows to fit, rows to score -> a function of strength that fits the ones and gives the others' loss.
    """
    rows = np.arange(0, len(target), -(-len(target) // _SEARCH_ROWS))
    folds = _inner_folds(target[rows], groups[rows], seed, classes=classes)
    losses_of = [on_fold(rows[fitted], rows[held_out]) for fitted, held_out in folds]
    if not losses_of:
        return _UNCHOSEN
    totals: list[float] = []
    for strength in _STRENGTHS.tolist():
        totals.append(sum(loss(strength) for loss in losses_of))
        if len(totals) > 2 and totals[-1] > totals[-2] > totals[-3]:
            break
    return float(_STRENGTHS[np.argmin(totals)])


def _inner_folds(
    target: np.ndarray, groups: np.ndarray, seed: int, *, classes: bool
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Up to five folds of whole groups, (rows to fit, rows to score); none where one group holds everything.

    A fold without rows to score, or with one class alone to fit, is left out.
    """
    count = min(_FOLDS, len(np.unique(groups)), np.unique(target, return_counts=True)[1].max() if classes else _FOLDS)
    if count < 2:
        return
    splitter = (StratifiedGroupKFold if classes else GroupKFold)(int(count), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        folds = list(splitter.split(target, target, groups))
    for fitted, held_out in folds:
        if len(held_out) and (not classes or len(np.unique(target[fitted])) > 1):
            yield fitted, held_out
