"""What makes probabilities mean what they say, fitted on held-out scores: a temperature, and a threshold per label.

SciPy and scikit-learn are imported where they are needed: they take most of a second, and what only reads a bundle
(`framebank extract` with the weights of a fine-tuned run) needs neither.
"""

import numpy as np

TINY = 1e-12  # probabilities are kept this far from 0 and 1 before their logarithm is taken
_PRIOR_SD = 0.5  # of the temperature's logarithm: most heads are off by less than a factor of 1.6


def tempered(kind: str, probability: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (n, K) with their logits divided by a temperature; values are left alone."""
    if kind == "value" or temperature == 1.0:
        return probability
    from scipy.special import expit, logit, softmax

    safe = np.clip(probability.astype(np.float64), TINY, 1 - TINY)
    if kind == "class":
        return softmax(np.log(safe) / temperature, axis=-1).astype(np.float32)
    return expit(logit(safe) / temperature).astype(np.float32)


def fit_temperature(kind: str, probability: np.ndarray, target: np.ndarray) -> float:
    """The temperature of least negative log-likelihood on held-out scores, between 1/5 and 5 (Guo et al. 2017).

    Its logarithm has a normal prior about 0, which gives way as rows come in: alone, the twenty scores of a small
    validation part ask for the sharpest there is as soon as all happen to be right, and new videos pay for it.

    Args:
        kind: "class" or "multilabel".
        probability: (n, K).
        target: (n,) int64 classes, or (n, K) 0 and 1.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax, logit

    safe = np.clip(probability.astype(np.float64), TINY, 1 - TINY)

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        prior = (log_temperature / _PRIOR_SD) ** 2 / (2 * len(target))
        if kind == "class":
            return float(-log_softmax(np.log(safe) * scale, axis=1)[np.arange(len(target)), target].mean()) + prior
        signed = logit(safe) * scale * (2 * target - 1)
        return float(np.logaddexp(0, -signed).mean()) + prior

    return float(np.exp(minimize_scalar(loss, bounds=(-np.log(5), np.log(5)), method="bounded").x))


def fit_thresholds(probability: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(K,) float32: for each label the threshold of highest F1 on held-out scores (n, K); 0.5 where it never occurs."""
    from sklearn.metrics import precision_recall_curve

    thresholds = np.full(target.shape[1], 0.5, np.float32)
    for label in range(target.shape[1]):
        if target[:, label].any():
            precision, recall, at = precision_recall_curve(target[:, label], probability[:, label])
            f1 = 2 * precision * recall / np.maximum(precision + recall, TINY)
            thresholds[label] = at[min(int(np.argmax(f1)), len(at) - 1)]
    return thresholds
