"""The videos of a bank as a data set of torch: sequences with their targets, and batches of them, packed."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import Dataset

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.targets import Targets


class SequenceDataset(Dataset[tuple[Tensor, Tensor]]):
    """The videos of a bank that have a target, read when they are asked for; `Bank.torch_dataset` makes it.

    An item is (sequence, target). The sequence is float32 (T, D), or (T, C, H, W) of maps; of several views the plain
    one. The target is, for one class, an int64 scalar that counts in `labels`; for several labels float32 (K,) of 0 and
    1; for a value a float32 scalar. With a target per frame it is (T,) int64 (-100: no target, which torch's
    cross-entropy ignores), (T, K) float32 or (T,) float32 (NaN: no target).

    Give `collate` to a `DataLoader`, as `collate_fn`. Worker processes of a loader open the bank for themselves.

    Attributes:
        ids: of the videos, in the order of the items.
        labels: names of the K classes; () for values.
        kind: "class", "multilabel" or "value".
        per_frame: whether there is a target for every frame.
        notes: what was left out, in words.
    """

    def __init__(self, bank: Bank, targets: Targets, ids: Iterable[str] | None = None) -> None:
        chosen = list(bank if ids is None else ids)
        if strangers := [video for video in chosen if video not in bank]:
            raise UserError(
                f"{len(strangers)} ids are not in {bank.path}, e.g. {strangers[0]!r}; take them from its catalog."
            )
        rows = dict(zip(bank.catalog["id"], bank.catalog["rows"].tolist(), strict=True))
        self.ids = tuple(video for video in chosen if video in targets.values and rows[video] > 0)
        if not self.ids:
            raise UserError(
                f"None of the {len(chosen)} videos of {bank.path} has a target and a frame; give other ids."
            )
        self.labels, self.kind, self.per_frame, self.notes = (
            *(targets.labels, targets.kind, targets.per_frame),
            targets.notes,
        )
        self._targets = {video: np.array(targets.values[video]) for video in self.ids}
        self._views = "views" in bank.config["recipe"]
        self._bank, self._process = bank, os.getpid()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        """Sequence and target of one video, as float32 and as above."""
        if os.getpid() != self._process:  # files that were opened before a fork are not to be shared
            self._bank, self._process = type(self._bank)(self._bank.path), os.getpid()
        video = self.ids[place]
        rows = self._bank[video]
        sequence = torch.from_numpy((rows[0] if self._views else rows).astype(np.float32))
        return sequence, torch.from_numpy(self._targets[video])

    def collate(self, items: Sequence[tuple[Tensor, Tensor]]) -> tuple[PackedSequence, Tensor | PackedSequence]:
        """A batch of B items.

        Returns:
            the sequences packed, without padding, in the order of the items (`enforce_sorted=False`); and the targets:
            stacked, (B,) or (B, K), or packed alike where there is one per frame.
        """
        sequences, targets = zip(*items, strict=True)
        packed = pack_sequence(list(sequences), enforce_sorted=False)
        if self.per_frame:
            return packed, pack_sequence(list(targets), enforce_sorted=False)
        return packed, torch.stack(list(targets))
