"""Videos as points in a plane, and which of them are alike: PCA, t-SNE and nearest neighbours of their mean features.

The same vectors give the same map: nothing is drawn but from a fixed seed, and sums run on one thread.
"""

from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

LEAST = 4  # videos that make a map
NEIGHBOURS = 8  # of each video
_BEFORE_TSNE = 50  # principal components that t-SNE starts from
_PERPLEXITY = 30.0
_EXACT = 500  # up to so many videos, or features, principal components are exact


class Maps(NamedTuple):
    """Two maps of n videos: `pca` and `tsne` (n, 2) float64, and `shares` (2,) of the variance that PCA's axes hold."""

    pca: np.ndarray
    tsne: np.ndarray
    shares: np.ndarray


def maps(vectors: np.ndarray) -> Maps | None:
    """Both maps, t-SNE (van der Maaten and Hinton 2008) from the first 50 principal components.

    Args:
        vectors: (n, D) float32, finite.

    Returns:
        None where fewer than 4 videos, or none that differs from another, make no map.
    """
    centred = _centred(vectors)
    if len(vectors) < LEAST or not centred.any():
        return None
    count = min(_BEFORE_TSNE, *centred.shape)
    exact = min(centred.shape) <= _EXACT
    with threadpool_limits(limits=1):
        made = PCA(count, svd_solver="full" if exact else "randomized", random_state=0)
        scores = made.fit_transform(centred)
        perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init=_start(scores), learning_rate="auto", random_state=0)
        embedded = tsne.fit_transform(scores)
    shares = np.zeros(2)
    shares[: min(2, count)] = made.explained_variance_ratio_[:2]
    return Maps(_two(scores), embedded.astype(np.float64), shares)


def _centred(vectors: np.ndarray) -> np.ndarray:
    """Less their mean, in units in which the largest number is 1: squares of any features stay finite."""
    if not len(vectors):
        return vectors.astype(np.float64)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    largest = np.abs(centred).max(initial=0)
    apart = np.abs(vectors).max(initial=0) * 1e-6  # what is less is rounding
    return centred / largest if largest > apart else np.zeros_like(centred)


def _two(scores: np.ndarray) -> np.ndarray:
    """The first two columns, the second 0 where there is one."""
    return np.pad(scores[:, :2], ((0, 0), (0, max(0, 2 - scores.shape[1]))))


def _start(scores: np.ndarray) -> np.ndarray:
    """PCA's map as small as t-SNE wants its beginning."""
    return (_two(scores) / scores[:, 0].std() * 1e-4).astype(np.float32)


def neighbours(vectors: np.ndarray, count: int = NEIGHBOURS) -> tuple[np.ndarray, np.ndarray]:
    """The videos most like each: by the cosine of the angle between their vectors, the mean of all taken off.

    Args:
        vectors: (n, D) float32, finite.
        count: how many, or n - 1.

    Returns:
        (n, k) int64 positions, the most alike first, and (n, k) float64 cosines.
    """
    centred = _centred(vectors)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(lengths == 0, 1, lengths)
    count = min(count, len(vectors) - 1)
    places = np.zeros((len(vectors), max(0, count)), np.int64)
    cosines = np.zeros(places.shape)
    with threadpool_limits(limits=1):
        for begin in range(0, len(vectors) if count > 0 else 0, 256):
            block = unit[begin : begin + 256] @ unit.T
            own = np.arange(len(block))
            block[own, begin + own] = -np.inf
            best = np.argsort(-block, axis=1, kind="stable")[:, :count]
            places[begin : begin + 256] = best
            cosines[begin : begin + 256] = np.take_along_axis(block, best, axis=1)
    return places, np.clip(cosines, -1, 1)
