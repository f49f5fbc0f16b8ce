"""How fast heads train here: an epoch of ours beside a bare loop, beside the usual collation, and beside the CNN.

All loops train the same LSTM with the same optimiser on the same videos, one epoch of each in turn, so that whatever
else the machine does falls on all of them: the ratios hold better than the seconds.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from pipeline.alike import bank_alike, load_alike
from pipeline.bank import Bank
from pipeline.bundles import Bundle, Member, described
from pipeline.encoder import choose_device
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.fitting import fit
from pipeline.heads import Head, HeadConfig
from pipeline.objectives import Objective, TargetRows, target_rows
from pipeline.optimisation import FitConfig
from pipeline.selection import Selection
from pipeline.sequences import Sequences, buckets, load_sequences
from pipeline.sources import source_path
from pipeline.targets import from_catalog
from pipeline.writing import check_outputs, write_json
from stages.console import Display, counted
from stages.machine import clock_mhz, machine, machine_words, versions

OK = 0
_OURS, _BARE, _COLLATED = "ours", "bare loop, packed beforehand", "pack_sequence for every batch"


@dataclass(frozen=True)
class BenchHeadsConfig:
    """Everything that `framebank bench heads` can be told; the defaults are those of the command."""

    bank: Path
    epochs: int = 10
    hidden: int = 256
    batch_size: int = 16
    threads: int = 1
    cnn_videos: int = 0
    weights: tuple[str, ...] = ()
    backbone: str | None = None
    device: str = "auto"
    json: Path | None = None


class _Bare(nn.Module):
    """What one writes by hand: an LSTM, and a linear layer on its last state."""

    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(features, hidden), nn.Linear(hidden, outputs)

    def forward(self, packed: PackedSequence) -> Tensor:
        return self.linear(self.lstm(packed)[1][0][-1])


def run(config: BenchHeadsConfig) -> int:
    """Measure, print, and write JSON if asked.

    Returns:
        the exit status, 0.

    Raises:
        UserError: no such bank, no labels in it, or no source video to measure the CNN on.
    """
    display = Display.beside(config.json)
    check_outputs({"--json": config.json}, [config.bank])
    device = choose_device(config.device)
    with Bank(config.bank) as bank:
        known = from_catalog(bank.catalog)
        spatial = "mean" if len(bank.config["recipe"]["feature_shape"]) == 3 else None
        sequences = load_sequences([bank], [video for video in bank if video in known.values], spatial=spatial)
        targets = target_rows(known, sequences)
        threads = torch.get_num_threads()
        torch.set_num_threads(config.threads)
        try:
            with threadpool_limits(limits=config.threads, user_api="blas"):
                there = sequences.to(device)
                with display.steps("measuring", config.epochs + 1, "epochs", still=True) as show:
                    seconds = _epochs(config, there, targets.to(device), device, show)
        finally:
            torch.set_num_threads(threads)
        with display.steps("running the network", 1, still=True):
            cnn = _cnn_epoch(config, bank, device, sequences) if config.cnn_videos else None
    rows = int(sequences.lengths.sum())
    fastest = {name: float(np.min(each)) for name, each in seconds.items()}
    middle = {name: float(np.median(each)) for name, each in seconds.items()}
    size = f"{counted(len(sequences), 'video')}, {rows:,} rows × {sequences.feature_shape[0]}"
    known_machine = machine()
    display.field("Machine", machine_words(known_machine))
    display.field("Bank", f"{config.bank}: {size}, {there.place}")
    display.field(
        "Head",
        f"LSTM {config.hidden}, last state, batches of {config.batch_size}, adamw; float32 on {device.type}, "
        f"{counted(config.threads, 'thread')}, {counted(config.epochs, 'epoch')} of each in turn",
    )
    display.line()
    display.line(f"{'seconds per epoch':<32}{'least':>9}{'median':>9}{'ratio':>8}")
    for name in seconds:
        ratio = middle[_OURS] / middle[name]
        display.line(f"{name:<32}{fastest[name]:>9.3f}{middle[name]:>9.3f}{ratio:>8.2f}")
    display.line("(ratio: our median to this one; up to 1.15 is the aim beside the bare loop)")
    result: dict[str, Any] = {
        "machine": known_machine,
        "clock_mhz": clock_mhz(),
        "versions": versions(),
        "device": device.type,
        "threads": config.threads,
        "videos": len(sequences),
        "rows": rows,
        "features": there.place,
        "seconds": seconds,
        "least": fastest,
        "median": middle,
    }
    if cnn is not None:
        display.line()
        display.field(
            "CNN",
            f"one epoch that runs the network again would take {cnn:.0f} s, scaled up from {config.cnn_videos} videos: "
            f"{cnn / middle[_OURS]:.0f} times as long as an epoch on the bank",
        )
        result |= {"cnn_epoch": cnn, "cnn_ratio": cnn / middle[_OURS]}
    if config.json is not None:
        write_json(config.json, result)
    return OK


def _epochs(
    config: BenchHeadsConfig,
    sequences: Sequences,
    targets: TargetRows,
    device: torch.device,
    show: Callable[[int], None],
) -> dict[str, list[float]]:
    """Seconds of every epoch of every loop; `show` is called with the number of epochs of each."""
    videos = np.flatnonzero(targets.known)
    bare = [_BareLoop(config, sequences, targets, videos, device, collate) for collate in (False, True)]
    seconds: dict[str, list[float]] = {_OURS: [], _BARE: [], _COLLATED: []}

    def others(row: Any) -> None:
        seconds[_OURS].append(row["seconds"])
        seconds[_BARE].append(bare[0].epoch())
        seconds[_COLLATED].append(bare[1].epoch())
        show(len(seconds[_OURS]))

    head = Head(HeadConfig(hidden=config.hidden), sequences.feature_shape, targets.outputs)
    fitting = FitConfig(epochs=config.epochs + 1, batch_size=config.batch_size, clip_norm=5.0)
    settings = Objective("class"), Selection(), fitting
    fit(head, sequences, targets, videos, np.zeros(0, np.int64), *settings, device=device, on_epoch=others)
    return {name: each[1:] for name, each in seconds.items()}  # the first epoch warms up


class _BareLoop:
    """The loop that one writes by hand, over batches that lie packed in memory, or that are collated every time."""

    def __init__(
        self,
        config: BenchHeadsConfig,
        sequences: Sequences,
        targets: TargetRows,
        videos: np.ndarray,
        device: torch.device,
        collate: bool,
    ) -> None:
        torch.manual_seed(0)
        self.model = _Bare(sequences.feature_shape[0], config.hidden, targets.outputs).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3, fused=True)
        self.targets, self.device, self.size, self.order = targets.values, device, config.batch_size, videos
        self.packed: list[tuple[PackedSequence, Tensor]] = []
        self.rows: list[Tensor] = []
        if collate:
            self.rows = [sequences.read(int(video)).to(device) for video in range(len(sequences))]
            return
        generator = np.random.default_rng(0)
        for places in buckets(
            sequences.lengths[videos], config.batch_size, max_steps=FitConfig.max_steps, generator=generator
        ):
            batch = sequences.batch(videos[places])
            self.packed.append((batch.packed, self._of(batch.videos)))

    def _of(self, videos: np.ndarray) -> Tensor:
        return self.targets[torch.from_numpy(videos).to(self.device)]

    def epoch(self) -> float:
        """Train one epoch. Returns its seconds."""
        begun = time.perf_counter()
        self.model.train()
        for packed, wanted in self.packed or self._collated():
            loss = F.cross_entropy(self.model(packed), wanted)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begun

    def _collated(self) -> Iterator[tuple[PackedSequence, Tensor]]:
        order = np.random.permutation(self.order)
        for place in range(0, len(order), self.size):
            videos = order[place : place + self.size]
            yield pack_sequence([self.rows[video] for video in videos], enforce_sorted=False), self._of(videos)


def _cnn_epoch(config: BenchHeadsConfig, bank: Bank, device: torch.device, sequences: Sequences) -> float:
    """Seconds that the CNN would take over all videos of the bank, from some of them, decoding and all."""
    there = [row for row in records(bank.catalog) if Path(source_path(row["source"])).exists()]
    if not there:
        raise UserError(f"None of the videos of {config.bank} is where it was banked from; leave --cnn-videos out.")
    step = max(1, len(there) // config.cnn_videos)
    table = pd.DataFrame(there[::step][: config.cnn_videos])
    table = table.assign(path=[source_path(source) for source in table["source"]])
    head = Head(HeadConfig(hidden=1), sequences.feature_shape, 1)
    objective = Objective("class")
    bundle = Bundle((Member(head, (described(bank),)),), "class", False, (), objective, Selection())
    alike = load_alike(bundle, config.weights, device=device, typed=config.backbone)[0]
    with tempfile.TemporaryDirectory(prefix="framebank-") as folder:
        begun = time.perf_counter()
        bank_alike(Path(folder) / "bench.h5", table, alike, device=device, on_progress=lambda _: None)
        seconds = time.perf_counter() - begun
        with Bank(Path(folder) / "bench.h5") as made:
            rows = int(made.catalog["rows"].sum())
    if not rows:
        raise UserError("None of the videos that were tried could be read; give more --cnn-videos.")
    return seconds * float(sequences.lengths.sum()) / rows
