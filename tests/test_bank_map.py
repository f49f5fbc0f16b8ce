"""The maps against plain linear algebra and plain distances, and the same twice."""

import numpy as np
import pytest

from pipeline.bank_map import maps, neighbours


def groups(count: int = 20, width: int = 12, seed: int = 0) -> np.ndarray:
    """Three groups of vectors far from each other."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(scale=8, size=(3, width))
    return np.concatenate([centre + generator.normal(size=(count, width)) for centre in centres]).astype(np.float32)


def test_pca_is_the_singular_value_decomposition() -> None:
    vectors = groups() + 100
    made = maps(vectors)
    assert made is not None
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    for axis in range(2):
        wanted, found = left[:, axis] * singular[axis], made.pca[:, axis]
        assert abs(np.corrcoef(wanted, found)[0, 1]) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(made.shares, (singular**2 / (singular**2).sum())[:2], rtol=1e-4)


def test_both_maps_keep_groups_together_and_come_out_the_same_twice() -> None:
    vectors = groups()
    first, again = maps(vectors), maps(vectors)
    assert first is not None
    assert again is not None
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)
    for points in (first.pca, first.tsne):
        middles = points.reshape(3, 20, 2).mean(axis=1)
        nearest = np.linalg.norm(points[:, None] - middles[None], axis=2).argmin(axis=1)
        assert nearest.tolist() == [0] * 20 + [1] * 20 + [2] * 20


@pytest.mark.parametrize(("count", "width"), [(4, 1), (4, 600), (620, 610)])
def test_maps_of_few_and_of_many(count: int, width: int) -> None:
    made = maps(np.random.default_rng(0).normal(size=(count, width)).astype(np.float32))
    assert made is not None
    assert made.pca.shape == made.tsne.shape == (count, 2)
    assert np.isfinite(made.pca).all()
    assert np.isfinite(made.tsne).all()


def test_what_makes_no_map() -> None:
    assert maps(groups()[:3]) is None
    assert maps(np.zeros((0, 5), np.float32)) is None
    assert maps(np.full((9, 5), 0.1, np.float32)) is None, "all the same"


def test_huge_features_have_a_map() -> None:
    made = maps(groups() * np.float32(1e36))
    assert made is not None
    assert np.isfinite(made.pca).all()


def test_neighbours_against_every_pair() -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    places, cosines = neighbours(vectors, 4)
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    every = unit @ unit.T
    np.fill_diagonal(every, -2)
    np.testing.assert_allclose(np.sort(every, axis=1)[:, :-5:-1], cosines, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(every, places, axis=1), cosines, atol=1e-5)


def test_neighbours_of_few() -> None:
    assert neighbours(groups()[:3])[0].shape == (3, 2)
    assert neighbours(groups()[:1])[0].shape == (1, 0)
    assert neighbours(np.zeros((0, 4), np.float32))[0].shape == (0, 0)
    assert neighbours(np.ones((2, 4), np.float32))[1].tolist() == [[0], [0]], "no direction, no angle"
