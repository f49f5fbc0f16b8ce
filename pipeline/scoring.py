"""A trained head -> its predictions of videos: batch by batch, long videos in chunks, several crops and views averaged.

Of several ranks each scores its share of the videos, and all have all predictions.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pipeline import ranks
from pipeline.errors import UserError
from pipeline.heads import SequenceModel
from pipeline.layout import alone
from pipeline.long_sequences import RawRead, score_in_chunks
from pipeline.objectives import Objective, TargetRows
from pipeline.sampling import nearest
from pipeline.selection import Selection, select
from pipeline.sequences import Batch, Sequences, buckets
from pipeline.transfers import moved

CHUNK_STEPS = 4096  # a longer video is scored in such chunks
OVERLAPS = 4  # chunks of a bidirectional head see 1 / OVERLAPS of their length more on either side
BATCH_SIZE, MAX_STEPS = 64, 32768

Scores = np.ndarray | list[np.ndarray]


def score(
    head: SequenceModel,
    sequences: Sequences,
    videos: np.ndarray,
    objective: Objective,
    selection: Selection,
    *,
    device: torch.device | str = "cpu",
    chunk_steps: int = CHUNK_STEPS,
) -> Scores:
    """Predictions for videos, in float32, averaged over the selection's draws in all views.

    Args:
        head: on any device; it stays on `device`, in the mode it was in.
        sequences: what the head reads.
        videos: (B,) positions in them, each once.
        objective: what the head was trained for.
        selection: which rows of a video it sees.
        device: where to compute.
        chunk_steps: a video of more selected rows goes through the head in chunks of so many: exact for one direction,
            and as good as the cell forgets for two (see `pipeline.long_sequences`).

    Returns:
        (B, K) float32; for targets per frame one (T, K) per video, T being all its rows: a row that no draw selects has
        the prediction of the nearest row that one does, of the earlier of two.
    """
    head, sequences = head.to(device), sequences.to(device)
    gathered = Gathered(sequences, objective, head.outputs)
    shared = ranks.share(videos)
    for view, draw in product(sequences.in_each_view(), range(selection.test_crops)):
        for batch, output in outputs(head, view, shared, selection, draw=draw, chunk_steps=chunk_steps):
            gathered.add(batch, output)
    gathered.over_ranks()
    return gathered.of(videos)


def evaluate(
    head: SequenceModel,
    sequences: Sequences,
    videos: np.ndarray,
    targets: TargetRows,
    objective: Objective,
    selection: Selection,
    *,
    chunk_steps: int = CHUNK_STEPS,
) -> tuple[float, Scores]:
    """The mean loss of videos in one draw of the selection, in all views, and their predictions; all is on one device
    already."""
    gathered = Gathered(sequences, objective, head.outputs)
    sums, shared = [torch.zeros(2, device=sequences.device)], ranks.share(videos)
    for view in sequences.in_each_view():
        for batch, output in outputs(head, view, shared, selection, draw=0, chunk_steps=chunk_steps):
            sums.append(torch.stack(objective.loss_sum(output, targets.of(batch))))
            gathered.add(batch, output)
    gathered.over_ranks()
    loss, weight = ranks.sum_(torch.stack(sums).double().sum(dim=0)).tolist()
    return loss / weight if weight else float("nan"), gathered.of(videos)


class Gathered:
    """Scores of batches in any order, and of several draws and views, put where they belong and averaged."""

    def __init__(self, sequences: Sequences, objective: Objective, outputs: int) -> None:
        self.sequences, self.objective = sequences, objective
        rows = int(sequences.offsets[-1]) if objective.per_frame else len(sequences.ids)
        self.sums = torch.zeros(rows, outputs, device=sequences.device)
        self.draws = torch.zeros(rows, device=sequences.device)

    def add(self, batch: Batch, output: Tensor | PackedSequence) -> None:
        """Take in what the head gave for a batch."""
        scores = self.objective.scores(output)
        if self.objective.per_frame:
            rows = batch.rows
        else:
            rows = moved(torch.from_numpy(batch.videos), scores.device)
        self.sums.index_add_(0, rows, scores)
        self.draws.index_add_(0, rows, torch.ones(len(rows), device=scores.device))

    def over_ranks(self) -> None:
        """Take in what all ranks have, after the last batch; all of them must come here."""
        ranks.sum_(self.sums)
        ranks.sum_(self.draws)

    def of(self, videos: np.ndarray) -> Scores:
        """The means of some videos (see `score`)."""
        draws = self.draws.cpu().numpy()
        means = self.sums.cpu().numpy() / np.maximum(draws, 1)[:, None]
        if not np.isfinite(means).all():
            raise UserError(
                "the head's predictions are no finite numbers; train it with a lower learning rate, and look for odd "
                "features and targets"
            )
        if not self.objective.per_frame:
            return means[videos]
        spans = [self.sequences.offsets[video : video + 2].tolist() for video in videos]
        taken = [start + np.flatnonzero(draws[start:stop]) for start, stop in spans]
        return [means[rows[nearest(rows, np.arange(*span))]] for rows, span in zip(taken, spans, strict=True)]


@torch.no_grad()
def outputs(
    head: SequenceModel, sequences: Sequences, videos: np.ndarray, selection: Selection, *, draw: int, chunk_steps: int
) -> Iterator[tuple[Batch, Tensor | PackedSequence]]:
    """What the head gives for videos without dropout, batch by batch; a batch of a long video is the video alone."""
    at_once = min(MAX_STEPS, sequences.most_rows)
    chunk = min(chunk_steps, at_once)
    chosen = chosen_rows(sequences, videos, selection, draw=draw)
    lengths = lengths_of(sequences, videos, chosen)
    short, long = np.flatnonzero(lengths <= chunk), np.flatnonzero(lengths > chunk)
    plan = [short[batch] for batch in buckets(lengths[short], BATCH_SIZE, max_steps=at_once, generator=None)]
    wanted = ((videos[batch], None if chosen is None else [chosen[place] for place in batch]) for batch in plan)
    was_training = head.training
    head.eval()
    try:
        for batch in sequences.batches(wanted):
            yield batch, head(batch.packed)
        for place in long:
            yield _in_chunks(head, sequences, int(videos[place]), None if chosen is None else chosen[place], chunk)
    finally:
        head.train(was_training)


def _in_chunks(
    head: SequenceModel, sequences: Sequences, video: int, chosen: np.ndarray | None, chunk: int
) -> tuple[Batch, Tensor | PackedSequence]:
    steps = np.arange(sequences.lengths[video]) if chosen is None else chosen
    read = reading(sequences, video, steps)
    output = score_in_chunks(head, read, len(steps), chunk=chunk, overlap=max(1, chunk // OVERLAPS))
    rows = moved(torch.from_numpy(steps + sequences.offsets[video]), sequences.device)
    whole = alone(output if output.ndim == 2 else output[None])
    return Batch(np.array([video]), whole, rows), whole if output.ndim == 2 else output[None]


def reading(sequences: Sequences, video: int, steps: np.ndarray) -> RawRead:
    """How those rows of a video are read that a selection takes."""
    return lambda start, stop: sequences.batch(np.array([video]), [steps[start:stop]]).packed.data


def chosen_rows(
    sequences: Sequences,
    videos: np.ndarray,
    selection: Selection,
    *,
    draw: int | None = None,
    generator: np.random.Generator | None = None,
) -> list[np.ndarray] | None:
    """For each video the rows that a selection takes of it; None where it takes all of all."""
    if selection.rule == "all":
        return None
    return [select(selection, sequences.seconds(video), draw=draw, generator=generator) for video in videos.tolist()]


def lengths_of(sequences: Sequences, videos: np.ndarray, chosen: list[np.ndarray] | None) -> np.ndarray:
    """(b,) int64: how many rows of each video are taken."""
    return sequences.lengths[videos] if chosen is None else np.array([len(steps) for steps in chosen], np.int64)
