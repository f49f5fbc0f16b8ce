"""A finished run that predicts: new videos, or features that were made by its backbone elsewhere."""

import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, overload

import numpy as np
import pandas as pd
import torch

from framebank.asking import StrPath, asked, file_named, several, unchanged, with_keywords
from framebank.predict_options import PredictOptions
from pipeline import bundles
from pipeline.alike import bank_with, encoding_alike, load_alike
from pipeline.bank import Bank
from pipeline.encoder import choose_device
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.gathering import find_all
from pipeline.predictions import Predictions as Made
from pipeline.predictions import predict as predict_banked
from pipeline.predictions import predict_sequences
from pipeline.segments import Clock
from pipeline.sequences import Sequences
from pipeline.targets import SEPARATOR
from stages.console import Display

if TYPE_CHECKING:
    from pipeline.extraction import Encoding

Features = np.ndarray | torch.Tensor


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says of one video.

    Attributes:
        id: of the video; "" of features.
        label: the class; of several labels their names joined by "|", "" for none; "" of a value. With a prediction
            per frame the class of most frames, or the labels of any.
        labels: the same as a tuple of names.
        value: the number that was predicted, in natural units; None of classes and labels.
        probabilities: label -> calibrated probability, in the order of the run's labels; with a prediction per frame
            their means over the frames. Empty of a value.
        frames: DataFrame, one row per banked frame: frame (its number in the video), seconds (from the video's first
            frame; NaN without a clock), predicted, p_LABEL; None where the head gives no output for frames.
        segments: DataFrame of runs of equal predictions: start and end in seconds, label; None where the run was not
            trained on frames' labels.
    """

    id: str
    label: str
    labels: tuple[str, ...]
    value: float | None
    probabilities: Mapping[str, float]
    frames: pd.DataFrame | None
    segments: pd.DataFrame | None


@dataclass(frozen=True, eq=False)
class Predictions(Sequence[Prediction]):
    """What a run says of several videos: a sequence of `Prediction`s, and the same as tables.

    Attributes:
        videos: DataFrame, one row per video that could be read: id, predicted, p_LABEL.
        failures: DataFrame, one row per video that could not: id, reason.
        notes: lines worth reading: what differs from training, videos that the head was trained on.
    """

    videos: pd.DataFrame
    failures: pd.DataFrame
    notes: tuple[str, ...]
    _each: tuple[Prediction, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self._each)

    @overload
    def __getitem__(self, place: int) -> Prediction: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Prediction]: ...
    def __getitem__(self, place: int | slice) -> Prediction | Sequence[Prediction]:
        return self._each[place]


class Predictor:
    """A finished run, loaded to predict: its heads at once, its backbone with the first video. `load_bundle` makes it.

    It may be used by several threads, and keeps what it has loaded.

    Attributes:
        run: the folder.
        labels: the classes, in the order of the outputs; () for values.
        kind: "class", "multilabel" or "value".
        per_frame: whether every frame has a prediction of its own.
        feature_shapes: for each of its heads the shape of one row of the features that it reads: (D,) or (C, H, W).
    """

    def __init__(self, run: StrPath, *, progress: bool = False, **options: Unpack[PredictOptions]) -> None:
        self.run = Path(run)
        with asked("predict", [run, "video"], options) as given:
            self._given = given
        with unchanged():
            self._bundle = bundles.load_bundle(self.run)
            self._device = choose_device(given["device"])
        if given["min_seconds"] is not None:
            if not self._bundle.per_frame or self._bundle.kind == "value":
                raise UserError(f"{self.run} predicts no segments that min_seconds could smooth; leave it out.")
            self._bundle = replace(self._bundle, min_seconds=given["min_seconds"])
        self.labels, self.kind, self.per_frame = self._bundle.labels, self._bundle.kind, self._bundle.per_frame
        self.feature_shapes = tuple(member.head.feature_shape for member in self._bundle.members)
        self._display = Display(quiet=not progress)
        self._lock = threading.Lock()
        self._loaded: tuple[dict[str, Encoding], tuple[str, ...]] | None = None

    def __repr__(self) -> str:
        what = ", ".join(self.labels) or "a value"
        return f"Predictor({str(self.run)!r}, {what} per {'frame' if self.per_frame else 'video'})"

    def predict(self, video: StrPath | Features | Sequence[Features], seconds: np.ndarray | None = None) -> Prediction:
        """Predict one video.

        Args:
            video: a file, a folder of images, or its features by the run's backbone: (T, D) or (T, C, H, W) of any
                float type, T at least 1, one row for each frame in order; of a run with a head for each bank a list of
                them, one for each head.
            seconds: of features, (T,) when each row is shown, from the video's first frame; None: unknown, so that
                `frames` has no times and nothing is smoothed. Files have times of their own.

        Raises:
            UserError: it cannot be read (the reason), it is several videos, features of another shape or that are no
                finite numbers, or times that decrease.
            KeyboardInterrupt: it was interrupted.
        """
        if not isinstance(video, str | os.PathLike):
            return self._of_features(video, seconds)
        if seconds is not None:
            raise TypeError("seconds are of features; a file has times of its own")
        found, _ = find_all([Path(file_named(video))], all_files=self._given["all_files"])
        if len(found) != 1:
            raise UserError(f"{os.fspath(video)} holds {len(found)} videos; give one, or all of them to predict_all.")
        said = self._of_files(found)
        for row in records(said.failures):
            raise UserError(f"{os.fspath(video)}: {row['reason']}")
        return said._each[0]

    def predict_all(self, videos: StrPath | Iterable[StrPath]) -> Predictions:
        """Predict several videos at once, which shares out the cores.

        Args:
            videos: files, folders, manifests.

        Returns:
            a prediction of each video that could be read, and which could not, and why.

        Raises:
            UserError: there is no video, or the backbone is not the one that the head was trained on.
            KeyboardInterrupt: it was interrupted.
        """
        paths = [Path(file_named(each)) for each in several(videos)]
        if not paths:
            raise UserError("There is no video to predict; give files, folders or manifests.")
        found, notes = find_all(paths, all_files=self._given["all_files"])
        return self._of_files(found, notes)

    def _encodings(self) -> tuple[dict[str, "Encoding"], tuple[str, ...]]:
        """For each bank that the heads read, by its fingerprint, what embeds videos as it was made; and notes."""
        with self._lock:
            if self._loaded is None:
                given = self._given
                alikes = load_alike(
                    self._bundle,
                    given["weights"],
                    device=self._device,
                    precision=given["precision"],
                    typed=given["backbone"],
                )
                made = {
                    each.fingerprint: encoding_alike(
                        each,
                        device=self._device,
                        batch_size=given["batch_size"],
                        allow_partial=given["allow_partial"],
                    )
                    for each in alikes
                }
                self._loaded = made, tuple(note for each in alikes for note in each.notes)
        return self._loaded

    def _of_files(self, found: pd.DataFrame, notes: Sequence[str] = ()) -> Predictions:
        with unchanged(), tempfile.TemporaryDirectory(prefix="framebank-") as folder:
            encodings, more = self._encodings()
            made: dict[str, Bank] = {}
            try:
                for fingerprint, encoding in encodings.items():
                    path = Path(folder) / f"{len(made)}.h5"
                    with self._display.progress(len(found), 0) as show:
                        if bank_with(path, found, encoding, image_fps=self._given["image_fps"], on_progress=show):
                            raise KeyboardInterrupt
                    made[fingerprint] = Bank(path)
                failures = pd.concat([bank.failures[["id", "reason"]] for bank in made.values()])
                failures = failures.drop_duplicates("id").reset_index(drop=True)
                ids = [video for video in found["id"] if video not in set(failures["id"])]
                banks = [made[each["fingerprint"]] for member in self._bundle.members for each in member.banks]
                said = predict_banked(self._bundle, banks, ids, device=self._device) if ids else None
                same, spans = bundles.seen_in_training(self._bundle, next(iter(made.values())))
            finally:
                for bank in made.values():
                    bank.close()
        told = [*notes, *more, *(said.notes if said else ())]
        if again := [*same, *spans]:
            told.append(f"the head was trained on {len(again)} of these, e.g. {again[0]}")
        videos = pd.DataFrame({"id": []}) if said is None else said.videos
        return Predictions(videos, failures, tuple(told), () if said is None else _each(said))

    def _of_features(self, features: Features | Sequence[Features], seconds: np.ndarray | None) -> Prediction:
        given = [features] if isinstance(features, np.ndarray | torch.Tensor) else list(features)
        if len(given) != len(self.feature_shapes):
            raise UserError(
                f"{self.run} has {len(self.feature_shapes)} heads, and features for {len(given)} were given."
            )
        tensors = [_plain_tensor(each) for each in given]
        sequences, rows = [], len(tensors[0]) if tensors[0].ndim else 0
        times = np.full(rows, np.nan) if seconds is None else _plain_times(seconds)
        for tensor, shape in zip(tensors, self.feature_shapes, strict=True):
            if not tensor.ndim or tuple(tensor.shape[1:]) != shape or not len(tensor):
                wanted = ", ".join(map(str, shape))
                raise UserError(f"Features are {tuple(tensor.shape)}, and the head of {self.run} reads (T, {wanted}).")
            if len(tensor) != len(times):
                raise UserError(
                    f"There are {len(times)} times or rows of another bank for {len(tensor)} rows of features."
                )
            if not torch.isfinite(tensor).all():
                raise UserError("The features are not finite everywhere.")
            sequences.append(Sequences([""], [times], tensor))
        clock = Clock(times, np.arange(rows), np.nan, np.nan)
        with unchanged():
            torch.set_num_threads(1)  # as in training: more lose more to waking than matrices this small gain
            return _each(predict_sequences(self._bundle, sequences, {"": clock}, device=self._device))[0]


@with_keywords(PredictOptions)
def load_bundle(run: StrPath, *, progress: bool = False, **options: Unpack[PredictOptions]) -> Predictor:
    """Load a finished run to predict with, for as often as one likes.

    Args:
        run: the run, a path or a `Run`.
        progress: whether to show how far it is on standard error.
        **options: those of `framebank predict` with a run, see `framebank.predict_options.PredictOptions`.

    Raises:
        UserError: the folder holds no finished run, or it cannot be read.
    """
    return Predictor(run, progress=progress, **options)


@with_keywords(PredictOptions)
def predict(
    run: StrPath, videos: StrPath | Iterable[StrPath], *, progress: bool = False, **options: Unpack[PredictOptions]
) -> Predictions:
    """Predict videos with a finished run, as `framebank predict` does; `load_bundle(run)` for more than one call.

    Args:
        run: the run, a path or a `Run`.
        videos: files, folders, manifests.
        progress: whether to show how far it is on standard error.
        **options: as of `load_bundle`.

    Returns:
        a prediction of each video that could be read, and which could not, and why.

    Raises:
        UserError: it could not be done as asked.
        KeyboardInterrupt: it was interrupted.
    """
    return load_bundle(run, progress=progress, **options).predict_all(videos)


def _plain_tensor(features: Features) -> torch.Tensor:
    """A copy in float32 on the CPU. UserError: it holds no real numbers."""
    if isinstance(features, torch.Tensor):
        if features.is_complex():
            raise UserError(f"Features are {features.dtype}; give real numbers.")
        return features.detach().to("cpu", torch.float32)
    array = np.asarray(features)
    if array.dtype.kind not in "fiub":
        raise UserError(f"Features are {array.dtype}; give real numbers.")
    # Of any order, also of bytes, which torch does not take.
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(array, np.float32, order="C"))


def _plain_times(seconds: np.ndarray) -> np.ndarray:
    """(T,) float64. UserError: they are not one for each row, decrease, or are missing in part."""
    try:
        times = np.asarray(seconds, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"The seconds are no numbers ({error}).") from None
    if times.ndim != 1:
        raise UserError(f"The seconds are {times.shape}; give one number for each row, (T,).")
    if not (np.isnan(times).all() or (np.isfinite(times).all() and (np.diff(times) >= 0).all())):
        raise UserError("The seconds decrease or are missing in part; give rising ones, or none at all.")
    return times


def _each(made: Made) -> tuple[Prediction, ...]:
    """The predictions of each video by itself."""
    bundle = made.bundle
    frames = dict(list(made.frame_table().groupby("id", sort=False))) if made.steps else {}
    segmented = bundle.per_frame and bundle.kind != "value"
    segments = dict(list(made.segment_table().groupby("id", sort=False))) if segmented else {}
    every = []
    for row in records(made.videos):
        video, said = row["id"], row["predicted"]
        label = "" if bundle.kind == "value" else said
        of_frames, of_segments = frames.get(video), segments.get(video)
        every.append(
            Prediction(
                video,
                label,
                tuple(label.split(SEPARATOR)) if bundle.kind == "multilabel" and label else (label,) if label else (),
                float(said) if bundle.kind == "value" else None,
                {name: float(row[f"p_{name}"]) for name in bundle.labels},
                None if of_frames is None else _plain(of_frames),
                _plain(of_segments)
                if of_segments is not None
                else made.segment_table().iloc[:0]
                if segmented
                else None,
            )
        )
    return tuple(every)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="id").reset_index(drop=True)
