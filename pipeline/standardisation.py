"""The statistics of the training videos by which a head's inputs are centred, scaled and projected.

They are computed from the rows of the training videos as they are banked (of several views: the plain one), whichever
rows the head is later shown, and from nothing else: statistics of all videos would let a test video shape what it is
tested with. Each row is first made into what the head makes of it (`pipeline.inputs`). Sums run in float64 over blocks
of rows; of a streamed bank the blocks make up a dask array, so no more than a few are ever in memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.blockwise import Read, Span, computed, in_blocks, lazy, of_each, rows_at_once
from pipeline.errors import UserError
from pipeline.inputs import Inputs, centre_of, context_at, expand
from pipeline.layout import alone, with_data
from pipeline.sequences import Sequences

_EXACT_WIDTH = 1536  # up to here the E × E matrix of correlations and its eigenvectors take less than a second
_SUBSET_ROWS, _SUBSET_BYTES = 10_000, 1 << 30  # beyond, so many rows are enough for principal components
_LEAST_SCALE = float(np.finfo(np.float32).tiny)

# A block of rows (n, E) -> sums over them, (k, E) float64.
_Sums = Callable[[np.ndarray], np.ndarray]


class Standardisation(NamedTuple):
    """How an input row x (E,) is prepared: z = (x - mean) / scale, then z @ components where there are any.

    Attributes:
        mean: (E,) float32.
        scale: (E,) float32, the standard deviation; 1 for an input that never changes.
        components: (E, P) float32, orthogonal columns, the greatest variance first. Not whitened: all have one length,
            so that the P numbers of a row have mean square 1 taken together. None without PCA.
        channel_mean, channel_scale: (C,) float32, the same of maps (C, H, W), every place counting as a row: what maps
            are standardised by before a head attends to places. None for vectors.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    components: torch.Tensor | None = None
    channel_mean: torch.Tensor | None = None
    channel_scale: torch.Tensor | None = None


class _Rows:
    """Something of every row of some videos, in blocks (`pipeline.blockwise`). In memory and streamed the blocks are
    the same, and so are the numbers, but for the last digit of sums of many blocks."""

    def __init__(self, sequences: Sequences, videos: np.ndarray, width: int, read: Read, places: int = 1) -> None:
        """`read` gives for each banked row `places` rows of `width` numbers."""
        self.streamed, self.width, self.read = sequences.streamed, width, read
        at_once = rows_at_once(max(places * width, int(np.prod(sequences.feature_shape))))
        self.blocks = in_blocks(videos.tolist(), sequences.lengths[videos].tolist(), at_once)
        self.counts = [places * sum(stop - start for _, start, stop in spans) for spans in self.blocks]
        self.count = sum(self.counts)

    def total(self, sums: _Sums, height: int) -> np.ndarray:
        """Sums (height, width) over all rows."""
        if not self.streamed:
            total = sums(self.read(self.blocks[0]))
            for spans in self.blocks[1:]:
                total += sums(self.read(spans))
            return total
        return computed(of_each(self._lazy(), sums, height).sum(axis=0))[0]

    def every(self, stride: int) -> np.ndarray:
        """Every `stride`-th row, (n, width) float32."""
        if self.streamed:
            return computed(self._lazy()[::stride])[0]
        begins = np.cumsum([0, *self.counts])
        blocks = zip(self.blocks, begins, strict=False)
        return np.concatenate([self.read(spans)[-begin % stride :: stride] for spans, begin in blocks])

    def _lazy(self) -> Any:
        return lazy(self.read, self.blocks, self.counts, self.width)


class _Expanded:
    """Reads rows as the head sees them: (n, E). Maps are standardised by channel and averaged over places, which is
    what attention begins with."""

    def __init__(self, sequences: Sequences, inputs: Inputs, channels: tuple[np.ndarray, np.ndarray] | None) -> None:
        self.sequences, self.inputs = sequences, inputs
        self.channels = channels and [torch.from_numpy(part).to(sequences.device)[:, None, None] for part in channels]
        self.centres: dict[int, torch.Tensor] = {}  # of videos that come in parts

    def __call__(self, spans: list[Span]) -> np.ndarray:
        video, start, stop = spans[0]
        if stop - start < self.sequences.lengths[video]:

            def read(low: int, high: int) -> torch.Tensor:
                return self._vectors(self.sequences.read(video, low, high))

            if self.inputs.centre and video not in self.centres:
                self.centres[video] = centre_of(read, int(self.sequences.lengths[video]), stop - start)
            context = context_at(read, start, self.inputs, self.centres.get(video))
            return _numpy(expand(alone(read(start, stop)), self.inputs, context)[0].data)
        batch = self.sequences.batch(np.array([video for video, _, _ in spans]))
        vectors = with_data(batch.packed, self._vectors(batch.packed.data))
        return _numpy(expand(vectors, self.inputs)[0].data[batch.rows.argsort()])

    def _vectors(self, rows: torch.Tensor) -> torch.Tensor:
        if self.channels is None:
            return rows
        return ((rows - self.channels[0]) / self.channels[1]).mean((2, 3))


def statistics(
    sequences: Sequences,
    videos: np.ndarray,
    inputs: Inputs = Inputs(),  # noqa: B008 (immutable)
    *,
    pca: int | None = None,
) -> Standardisation:
    """Statistics of the training videos.

    Principal components are exact up to 1,536 inputs. Of more they are estimated by randomised SVD (Halko et al. 2011)
    from every k-th row, with the least k that leaves at most 10,000 rows and 1 GiB, but no fewer than 2 P of them.

    Args:
        sequences: of features (D,), or of maps (C, H, W) that a head attends to: D = C. What it will attend to cannot
            be known before, so its inputs are taken to be those of the average over places.
        videos: (b,) int64 positions of the training videos.
        inputs: what the head makes of its rows.
        pca: how many principal components P of the standardised inputs to project on.

    Raises:
        UserError: more components than inputs or rows, or features that cannot be read.
    """
    if not len(videos):
        raise ValueError("statistics need at least one video")
    videos = np.sort(videos)
    features, *places = sequences.feature_shape
    channels = None
    if places:
        by_place = _Rows(sequences, videos, features, lambda spans: _by_place(sequences, spans), int(np.prod(places)))
        channels = _mean_and_scale(by_place)
    rows = _Rows(sequences, videos, inputs.width(features), _Expanded(sequences, inputs, channels))
    if pca is not None and not 1 <= pca <= min(rows.count, rows.width):
        made = "" if rows.width == features else f" (made of {features} features)"
        raise UserError(
            f"{pca} principal components were asked for, of {rows.width} inputs{made} in {rows.count} training rows; "
            f"give a number from 1 to {min(rows.count, rows.width)}."
        )
    mean, scale = _mean_and_scale(rows)
    components = None if pca is None else torch.from_numpy(_components(rows, mean, scale, pca))
    of_channels = (None, None) if channels is None else tuple(map(torch.from_numpy, channels))
    return Standardisation(torch.from_numpy(mean), torch.from_numpy(scale), components, *of_channels)


def _by_place(sequences: Sequences, spans: list[Span]) -> np.ndarray:
    """Maps (C, H, W) as H W rows of C features each."""
    maps = (_numpy(sequences.read(*span)) for span in spans)
    return np.concatenate([np.moveaxis(each, 1, -1).reshape(-1, each.shape[1]) for each in maps])


def _numpy(rows: torch.Tensor) -> np.ndarray:
    return rows.cpu().numpy()


def _mean_and_scale(rows: _Rows) -> tuple[np.ndarray, np.ndarray]:
    """(width,) float32 mean, and standard deviation or 1."""
    # Moments about the first row, not about 0: a constant gives exactly 0, and a large mean costs no digits.
    with np.errstate(over="ignore", invalid="ignore"):
        pivot = rows.read(rows.blocks[0][:1])[0].astype(np.float64)
        first, second = rows.total(partial(_moments, pivot), 2) / rows.count
        scale = np.sqrt(np.maximum(second - first**2, 0))
    if not np.isfinite(scale).all():
        raise UserError("the features are too large to compute with: near the end of float32. Extract them anew.")
    scale[scale < _LEAST_SCALE] = 1
    return (pivot + first).astype(np.float32), scale.astype(np.float32)


def _moments(pivot: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(2, width): sums of first and second powers about a pivot."""
    about = rows - pivot
    return np.stack([about.sum(axis=0), np.einsum("ij,ij->j", about, about)])


def _products(mean: np.ndarray, scale: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(E, E): sums of all products of two standardised inputs."""
    rows = (rows - mean) / scale
    return (rows.T @ rows).astype(np.float64)


def _components(rows: _Rows, mean: np.ndarray, scale: np.ndarray, count: int) -> np.ndarray:
    """(E, P) float32 principal components of the standardised rows, each with its largest weight positive."""
    if rows.width <= _EXACT_WIDTH:
        variances, vectors = np.linalg.eigh(rows.total(partial(_products, mean, scale), rows.width) / rows.count)
        variances, vectors = variances[: -count - 1 : -1], vectors[:, : -count - 1 : -1]
    else:
        from sklearn.utils.extmath import randomized_svd

        most = min(_SUBSET_ROWS, _SUBSET_BYTES // (4 * rows.width))
        subset = rows.every(max(1, min(-(-rows.count // most), rows.count // (2 * count))))
        subset -= mean
        subset /= scale
        _, singular, turned = randomized_svd(subset, count, n_iter=3, random_state=0)
        variances, vectors = singular**2 / len(subset), turned.T
    strongest = vectors[np.abs(vectors).argmax(axis=0), np.arange(count)]
    size = np.sqrt(max(variances.mean(), 0)) or 1
    return np.ascontiguousarray(vectors * np.sign(strongest) / size, np.float32)
