"""A script as a user writes it, of the public API alone. Tests run it, and hold its types against the packages'."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

import framebank


def banked(videos: Path, folder: Path) -> framebank.Bank:
    bank = framebank.extract(
        videos, folder / "bank.h5", backbone="squeezenet1_1", weights="random", image_size=48, precision="fp32"
    )
    failures: pd.DataFrame = bank.failures
    print(f"{len(bank)} videos, {len(failures)} failed")
    for video in bank:
        features: np.ndarray = bank[video]
        seconds: np.ndarray = bank.timestamps(video)
        assert len(features) == len(seconds)
    return bank


def trained(bank: framebank.Bank, folder: Path) -> framebank.Run:
    run = framebank.train_head(
        bank,
        folder / "run",
        cell="gru",
        hidden=8,
        changes=(2, 4),
        centre=True,
        epochs=2,
        test_share=0.4,
        init=["bias-one"],
    )
    low, high = run.interval or (float("nan"), float("nan"))
    print(f"{run.metric} {run.score:.3f} [{low:.3f}, {high:.3f}], best of {len(run.baselines)}: {run.best_baseline}")
    again = framebank.evaluate(run)
    assert again.as_before
    assert again.score == run.score
    return run


def own_loop(bank: framebank.Bank) -> float:
    data: framebank.SequenceDataset = bank.torch_dataset()
    gru, classify = nn.GRU(data[0][0].shape[1], 4), nn.Linear(4, len(data.labels))
    last = 0.0
    for packed, targets in DataLoader(data, batch_size=4, collate_fn=data.collate):
        assert isinstance(packed, PackedSequence)
        assert isinstance(targets, torch.Tensor)
        loss = nn.functional.cross_entropy(classify(gru(packed)[1][-1]), targets)
        torch.autograd.backward(loss)  # as loss.backward(), which torch gives no types
        last = loss.item()
    return last


def main(videos: Path, new: Path, folder: Path) -> None:
    bank = banked(videos, folder)
    run = trained(bank, folder)
    print(f"loss of a loop of one's own: {own_loop(bank):.3f}")
    predictor = framebank.load_bundle(run, device="cpu")
    said: framebank.Prediction = predictor.predict(new)
    print(f"{said.label} {max(said.probabilities.values()):.3f}")
    several: framebank.Predictions = framebank.predict(run, [new], precision="fp32")
    assert several[0].label == said.label
    page: Path = framebank.report(run)
    print(page, framebank.explore(bank), framebank.__version__)
    try:
        framebank.train_head(bank, folder / "other", folds=2, splits=folder / "splits.csv")
    except framebank.UserError as error:
        print(error)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
