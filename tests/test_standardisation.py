"""Training statistics equal those of NumPy and scikit-learn on the training rows, and know no other rows."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from pipeline import blockwise, standardisation
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.heads import Head, HeadConfig
from pipeline.inputs import Inputs
from pipeline.sequences import Sequences, load_sequences
from pipeline.standardisation import Standardisation, statistics
from tests.banks import fill

LENGTHS = [40, 1, 25, 60, 3, 31]
TRAIN = np.array([3, 0, 1, 5])
EVERYTHING = Inputs(centre=True, deltas=(1, 4), changes=(4,))
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def sequences_of(videos: list[np.ndarray]) -> Sequences:
    flat = torch.from_numpy(np.concatenate(videos).astype(np.float32))
    return Sequences([f"v{number}" for number in range(len(videos))], [np.arange(len(one)) for one in videos], flat)


def correlated(features: int = 6, seed: int = 0) -> list[np.ndarray]:
    """Videos whose features hang together and have different means and scales."""
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(features, features))
    return [
        ((generator.normal(size=(length, features)) @ mix) * (1 + np.arange(features)) + 3).astype(np.float32)
        for length in LENGTHS
    ]


def assert_close(one: Standardisation, other: Standardisation) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert mine.dtype == theirs.dtype == torch.float32
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def expanded(videos: list[np.ndarray], inputs: Inputs, chosen: np.ndarray = TRAIN) -> np.ndarray:
    """The rows of some videos (T, D) as a head reads them, one after the other, (n, E) float64."""
    made = []
    for video in chosen:
        rows = videos[video].astype(np.float32).astype(np.float64)
        earlier = {lag: rows[np.maximum(np.arange(len(rows)) - lag, 0)] for lag in (*inputs.deltas, *inputs.changes)}
        columns = [rows - rows.mean(axis=0) if inputs.centre else rows]
        columns += [rows - earlier[lag] for lag in inputs.deltas]
        columns += [np.abs(rows - earlier[lag]) for lag in inputs.changes]
        made.append(np.hstack(columns))
    return np.concatenate(made)


@pytest.mark.parametrize("inputs", [Inputs(), Inputs(centre=True), EVERYTHING], ids=str)
def test_mean_and_standard_deviation_of_the_training_rows(inputs):
    videos = correlated()
    rows = expanded(videos, inputs)
    result = statistics(sequences_of(videos), TRAIN, inputs)
    np.testing.assert_allclose(result.mean, rows.mean(axis=0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(result.scale, rows.std(axis=0), rtol=1e-5)
    assert result.components is None
    assert result.channel_mean is None
    assert result.channel_scale is None


def everything(videos: list[np.ndarray]) -> Standardisation:
    return statistics(sequences_of(videos), TRAIN, EVERYTHING, pca=5)


def test_other_videos_do_not_matter():
    videos = correlated()
    for video in {*range(len(videos))} - {*TRAIN.tolist()}:
        videos[video] = videos[video] * 100 + 7
    assert_close(everything(videos), everything(correlated()))


@pytest.mark.parametrize("centre", [False, True])
def test_a_feature_that_never_changes_has_scale_1(centre):
    videos = correlated()
    for one in videos:
        one[:, 2] = 0.1
    result = statistics(sequences_of(videos), TRAIN, Inputs(centre, (2,)), pca=6)
    assert result.scale[[2, 8]].tolist() == [1, 1]
    assert result.mean[[2, 8]].tolist() == [0 if centre else np.float32(0.1), 0]
    assert (result.scale != 1).sum() == 10
    assert all(torch.isfinite(values).all() for values in result if values is not None)


def test_a_small_variation_about_a_large_mean_keeps_its_digits():
    generator = np.random.default_rng(0)
    videos = [(1e4 + generator.normal(size=(length, 2)) * 0.1).astype(np.float32) for length in LENGTHS]
    for inputs in (Inputs(), Inputs(centre=True)):
        expected = expanded(videos, inputs).std(axis=0)
        np.testing.assert_allclose(statistics(sequences_of(videos), TRAIN, inputs).scale, expected, rtol=1e-3)


@pytest.mark.parametrize("inputs", [Inputs(), EVERYTHING], ids=str)
def test_components_are_those_of_scikit_learn_at_one_size(inputs):
    videos = correlated()
    rows = expanded(videos, inputs)
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    expected = PCA(4, svd_solver="full").fit(rows).components_
    components = statistics(sequences_of(videos), TRAIN, inputs, pca=4).components.numpy()
    assert components.shape == (rows.shape[1], 4)
    size = np.linalg.norm(components, axis=0)
    np.testing.assert_allclose(size, size[0], rtol=1e-5)
    signs = np.sign((expected * components.T).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(components.T / size[0], expected * signs, atol=1e-4)
    strongest = np.abs(components).argmax(axis=0)
    assert (components[strongest, np.arange(4)] > 0).all()
    assert ((rows @ components) ** 2).mean() == pytest.approx(1, rel=1e-4)


def test_components_of_very_many_inputs_are_estimated(monkeypatch):
    generator = np.random.default_rng(0)
    hidden, mix = generator.normal(size=(sum(LENGTHS), 3)) * [9, 5, 3], generator.normal(size=(3, 50))
    rows = hidden @ mix + generator.normal(size=(sum(LENGTHS), 50)) * 0.01
    sequences = sequences_of(np.split(rows, np.cumsum(LENGTHS)[:-1]))
    exact = statistics(sequences, TRAIN, pca=3).components
    monkeypatch.setattr(standardisation, "_EXACT_WIDTH", 10)
    found = statistics(sequences, TRAIN, pca=3).components
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)
    monkeypatch.setattr(standardisation, "_SUBSET_ROWS", 50)
    fewer = statistics(sequences, TRAIN, pca=3).components
    every_third = np.concatenate([sequences.read(video).double().numpy() for video in sorted(TRAIN)])
    every_third = ((every_third - every_third.mean(axis=0)) / every_third.std(axis=0))[::3]
    strengths, expected = np.linalg.eigh(every_third.T @ every_third / len(every_third))
    expected = expected[:, :-4:-1] / np.sqrt(strengths[-3:].mean())
    np.testing.assert_allclose(fewer.abs().numpy(), np.abs(expected), atol=1e-4)
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 8 * 50 * 7)
    torch.testing.assert_close(statistics(sequences, TRAIN, pca=3).components, fewer, rtol=0, atol=1e-6)
    few = statistics(sequences, np.array([4]), pca=3).components  # as many as rows
    assert few.shape == (50, 3)


def test_videos_of_one_row_have_no_differences():
    result = statistics(sequences_of([np.ones((1, 3)), np.zeros((1, 3))]), np.array([0, 1]), Inputs(deltas=(1,)))
    assert result.mean.tolist() == [0.5] * 3 + [0] * 3
    assert result.scale.tolist() == [0.5] * 3 + [1] * 3


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_blocks_change_nothing(rows, monkeypatch):
    """Not even blocks that are parts of a video, shorter than a lag."""
    expected = everything(correlated())
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 8 * 24 * rows)
    found = everything(correlated())
    for mine, theirs in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spatial", [None, "mean", "attention"])
@pytest.mark.parametrize("exact", [True, False])
def test_streamed_as_in_memory(out, spatial, exact, monkeypatch):
    fill(
        out,
        {f"v{number}": length for number, length in enumerate(LENGTHS)},
        feature_shape=[5, 2, 3] if spatial else [5],
    )
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 8 * 30 * 17)
    monkeypatch.setattr(standardisation, "_EXACT_WIDTH", 1000 if exact else 10)
    monkeypatch.setattr(standardisation, "_SUBSET_ROWS", 60)
    bank = Bank(out)
    in_memory = statistics(load_sequences([bank], spatial=spatial), TRAIN, EVERYTHING, pca=4)
    assert (in_memory.channel_mean is not None) == (spatial == "attention")
    streamed = load_sequences([bank], spatial=spatial, memory_bytes=0)
    assert streamed.streamed
    assert_close(statistics(streamed, TRAIN, EVERYTHING, pca=4), in_memory)


def test_maps_are_standardised_by_channel_and_averaged():
    generator = np.random.default_rng(0)
    videos = [generator.normal(2, 3, size=(length, 4, 2, 3)) for length in LENGTHS]
    result = statistics(sequences_of(videos), TRAIN, EVERYTHING, pca=2)
    rows = np.concatenate([videos[video] for video in TRAIN]).astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(result.channel_mean, rows.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(result.channel_scale, rows.std(axis=(0, 2, 3)), rtol=1e-6)
    mean, scale = (values.numpy()[:, None, None] for values in (result.channel_mean, result.channel_scale))
    inputs = expanded([((video - mean) / scale).mean(axis=(2, 3)) for video in videos], EVERYTHING)
    np.testing.assert_allclose(result.mean, inputs.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(result.scale, inputs.std(axis=0), rtol=1e-5)
    assert result.components.shape == (16, 2)


def test_a_head_reads_what_the_statistics_are_of():
    videos = correlated()
    sequences = sequences_of(videos)
    config = HeadConfig(cell="none", **EVERYTHING._asdict())
    head = Head(config, (6,), 2, statistics(sequences, TRAIN, EVERYTHING, pca=5))
    states, _ = head.run(sequences.batch(TRAIN).packed)
    torch.testing.assert_close(states.data.mean(0), torch.zeros(5), rtol=0, atol=1e-5)
    assert states.data.square().mean().item() == pytest.approx(1, rel=1e-5)
    variances = states.data.var(0)
    assert (variances[:-1] > variances[1:]).all()


@pytest.mark.parametrize(("pca", "videos", "most"), [(7, [0, 2], 6), (0, [0], 6), (4, [4], 3)])
def test_more_components_than_there_can_be(pca, videos, most):
    message = f"{pca} principal components.*of 6 inputs in .* training rows; give a number from 1 to {most}"
    with pytest.raises(UserError, match=message):
        statistics(sequences_of(correlated()), np.array(videos), pca=pca)
    with pytest.raises(UserError, match=r"25 .* 24 inputs \(made of 6 features\).* from 1 to 24"):
        statistics(sequences_of(correlated()), TRAIN, EVERYTHING, pca=25)


def test_features_that_float32_cannot_compute_with():
    with pytest.raises(UserError, match="too large"):
        statistics(
            sequences_of([np.sign(video) * np.float32(3e38) for video in correlated()]), TRAIN, Inputs(deltas=(1,))
        )
