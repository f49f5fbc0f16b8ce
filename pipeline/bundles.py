"""The model bundle: everything that turns banked embeddings into predictions, as safetensors and JSON.

A bundle is one trained head, or several whose scores are fused (one per bank), with the labels, the calibration, and
the recipes of the embeddings that it understands. `model.safetensors` holds the tensors, `model.json` all the rest;
nothing in them is executed. With the backbone's weights it is all that prediction on a new video needs. Where those
were trained with the head they lie beside it: `backbone.safetensors`, under torchvision's own names, so that it is a
checkpoint file like any other (`pipeline.checkpoints`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.bank import Bank, differences
from pipeline.calibration import tempered
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.heads import HeadConfig, SequenceModel, restored
from pipeline.objectives import Objective
from pipeline.resampling import Resampling
from pipeline.scoring import Scores, score
from pipeline.selection import Selection
from pipeline.sequences import Sequences, load_same_videos
from pipeline.writing import replace_file

FORMAT, SCHEMA = "framebank head", 1
BACKBONE_FILE = "backbone.safetensors"
_MAY_DIFFER = ("precision", "store")  # embeddings that differ in these alone are close enough to predict from


@dataclass(frozen=True)
class Member:
    """One head and what it reads.

    Attributes:
        head: the trained head, in evaluation mode; while it is fine-tuned, the model that it is part of.
        banks: of each bank whose features it reads side by side, what made it: {"config": ..., "fingerprint": ...}.
        spatial: how maps are read (see `pipeline.sequences.load_sequences`).
    """

    head: SequenceModel
    banks: tuple[dict[str, Any], ...]
    spatial: str | None = None


@dataclass(frozen=True)
class Bundle:
    """Heads, and how their outputs become predictions.

    Attributes:
        members: one head, or one per bank.
        kind: "class", "multilabel" or "value"; per_frame: one target per frame instead of one per video.
        labels: the K classes in the order of the outputs; empty for values.
        temperature: what the log-probabilities are divided by (Guo et al. 2017), fitted on held-out validation videos.
        thresholds: (K,) above which a label counts as present; only for multilabel.
        fusion: "none", "mean" of the members' scores, or "svm": a linear SVM on them, `svm` (K, members × K + 1).
        min_seconds: predicted segments shorter than this are smoothed away.
        trained_on: id -> digest of every video that training or validation saw.
        weights: the file of the backbone's own weights, where it was trained with the head: of one head on one bank,
            whose recipe has the sum of these weights. None where the backbone is the one of the bank.
        resampling: how the banks after the first are read at its times; None: as they are.
    """

    members: tuple[Member, ...]
    kind: str
    per_frame: bool
    labels: tuple[str, ...]
    objective: Objective
    selection: Selection
    temperature: float = 1.0
    thresholds: np.ndarray | None = None
    fusion: str = "none"
    svm: np.ndarray | None = None
    min_seconds: float = 0.0
    trained_on: Mapping[str, str] | None = None
    weights: Path | None = None
    resampling: Resampling | None = None


def described(bank: Bank) -> dict[str, Any]:
    """What a bundle keeps of a bank."""
    return {"config": bank.config, "fingerprint": bank.fingerprint}


def load_for(bundle: Bundle, banks: Sequence[Bank], ids: Sequence[str]) -> tuple[list[Sequences], list[str]]:
    """What each head of a bundle reads, all of the same videos, and lines worth telling.

    Args:
        bundle: the bundle.
        banks: those that it reads, in its order (see `check_banks`).
        ids: the videos that are wanted.

    Raises:
        UserError: banks that do not fit together, or in which rows are missing.
    """
    rest = iter(banks)
    joined = [[next(rest) for _ in member.banks] for member in bundle.members]
    return load_same_videos(
        joined,
        ids,
        spatial=bundle.members[0].spatial,
        per_frame=bundle.per_frame,
        resampling=bundle.resampling,
    )


def score_bundle(
    bundle: Bundle, sequences: Sequence[Sequences], videos: np.ndarray, *, device: torch.device | str = "cpu"
) -> Scores:
    """Calibrated and fused probabilities (values for regression).

    Args:
        bundle: the bundle.
        sequences: of each member, the sequences that its head reads, all with the same videos in the same order.
        videos: (B,) positions in them.

    Returns:
        (B, K) float32 for targets per video, else per video (T, K) for all its banked rows.
    """
    scores = [
        score(member.head, each, videos, bundle.objective, bundle.selection, device=device)
        for member, each in zip(bundle.members, sequences, strict=True)
    ]
    if bundle.per_frame:
        return [_calibrated(bundle, _fused(bundle, list(steps))) for steps in zip(*scores, strict=True)]
    return _calibrated(bundle, _fused(bundle, [np.asarray(each) for each in scores]))


def _fused(bundle: Bundle, scores: list[np.ndarray]) -> np.ndarray:
    """The members' scores, each (n, K), as one (n, K)."""
    if bundle.fusion == "svm":
        assert bundle.svm is not None
        from scipy.special import softmax  # not at the top: extraction reads bundles too, and starts without SciPy

        return softmax(np.hstack(scores) @ bundle.svm[:, :-1].T + bundle.svm[:, -1], axis=1).astype(np.float32)
    return scores[0] if len(scores) == 1 else np.mean(scores, axis=0)


def _calibrated(bundle: Bundle, probability: np.ndarray) -> np.ndarray:
    return tempered(bundle.kind, probability, bundle.temperature)


def decide(bundle: Bundle, probability: np.ndarray) -> np.ndarray:
    """Predictions: (n,) int64 classes, (n, K) 0 and 1, or (n,) values."""
    if bundle.kind == "class":
        return probability.argmax(axis=1)
    if bundle.kind == "multilabel":
        return (probability >= (0.5 if bundle.thresholds is None else bundle.thresholds)).astype(np.int64)
    return probability[:, 0]


def check_banks(bundle: Bundle, banks: Iterable[Bank]) -> list[str]:
    """Hold banks against those that the bundle was trained on, in its order.

    Returns:
        what differs without making prediction impossible (precision, stored type), in words.

    Raises:
        UserError: another number of banks, or embeddings made otherwise, with both values.
    """
    banks = list(banks)
    wanted = [bank for member in bundle.members for bank in member.banks]
    if len(banks) != len(wanted):
        raise UserError(f"This head reads {len(wanted)} bank(s) side by side and {len(banks)} were given.")
    notes = []
    for bank, made in zip(banks, wanted, strict=True):
        notes += check_recipe(made["config"]["recipe"], bank.config["recipe"], str(bank.path))
    return notes


def check_recipe(trained: Mapping[str, Any], given: Mapping[str, Any], what: str) -> list[str]:
    """The same for one recipe of embeddings; `what` names the given one."""
    names = ("the head's bank", what)
    strict = [{key: value for key, value in recipe.items() if key not in _MAY_DIFFER} for recipe in (trained, given)]
    if differing := list(differences(strict[0], strict[1], names)):
        raise UserError(f"The head was trained on other embeddings: {'; '.join(differing)}. Bank the videos alike.")
    loose = [{key: recipe.get(key) for key in _MAY_DIFFER} for recipe in (trained, given)]
    return [f"{line}: the predictions may differ a little" for line in differences(loose[0], loose[1], names)]


def seen_in_training(bundle: Bundle, bank: Bank) -> tuple[list[str], list[str]]:
    """The videos of a bank that training or validation saw.

    Returns:
        ids of the same content (the same id, or the whole file under another id), and ids of other spans of such files.
    """
    seen = bundle.trained_on or {}
    digests = set(seen.values()) - {""}
    same: list[str] = []
    spans: list[str] = []
    for row in records(bank.catalog):
        if seen.get(row["id"]) == row["digest"]:
            same.append(row["id"])
        elif row["digest"] in digests:
            whole = np.isnan(row["start"]) and np.isnan(row["end"])
            (same if whole else spans).append(row["id"])
    return same, spans


def save_bundle(folder: Path, bundle: Bundle, backbone: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a bundle into a folder, each file replaced in one step and `model.json` last.

    Args:
        folder: made if need be.
        bundle: the bundle.
        backbone: all tensors that the layer needs, under torchvision's names, where the backbone was trained with the
            head. Without them, a bundle that has a file of its own weights gets a copy of it.
    """
    tensors = {
        f"{number}.{name}": _plain(tensor)
        for number, member in enumerate(bundle.members)
        for name, tensor in member.head.state_dict().items()
    }
    if bundle.svm is not None:
        tensors["svm"] = torch.from_numpy(np.ascontiguousarray(bundle.svm))
    members = [
        {
            "head": asdict(member.head.config),
            "feature_shape": list(member.head.feature_shape),
            "banks": list(member.banks),
            "spatial": member.spatial,
        }
        for member in bundle.members
    ]
    described = {
        "format": FORMAT,
        "schema": SCHEMA,
        "kind": bundle.kind,
        "per_frame": bundle.per_frame,
        "labels": list(bundle.labels),
        "members": members,
        "objective": {
            name: value for name, value in vars(bundle.objective).items() if not isinstance(value, torch.Tensor)
        },
        "selection": asdict(bundle.selection),
        "temperature": bundle.temperature,
        "thresholds": None if bundle.thresholds is None else bundle.thresholds.tolist(),
        "fusion": bundle.fusion,
        "min_seconds": bundle.min_seconds,
        "resampling": None if bundle.resampling is None else asdict(bundle.resampling),
        "trained_on": dict(bundle.trained_on or {}),
        "own_weights": backbone is not None or bundle.weights is not None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if backbone is not None:
        replace_file(folder / BACKBONE_FILE, save({name: _plain(tensor) for name, tensor in backbone.items()}))
    elif bundle.weights is not None:
        replace_file(folder / BACKBONE_FILE, bundle.weights.read_bytes())
    replace_file(folder / "model.safetensors", save(tensors))
    replace_file(folder / "model.json", json.dumps(described, indent=1, ensure_ascii=False).encode())


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def load_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, its heads on the CPU in evaluation mode.

    Raises:
        UserError: there is none, or it cannot be read, or the weights that the backbone was given are gone.
    """
    try:
        described = json.loads((folder / "model.json").read_text("utf-8"))
        tensors = load((folder / "model.safetensors").read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no finished model (no {Path(error.filename).name}); `framebank train-head` makes one."
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"The model in {folder} cannot be read ({error}); train it again.") from None
    if not isinstance(described, dict) or (described.get("format"), described.get("schema")) != (FORMAT, SCHEMA):
        raise UserError(f"{folder / 'model.json'} is not of this version's format; train the head again.")
    own = folder / BACKBONE_FILE if described.get("own_weights") else None  # older files have no such key
    if own is not None and not own.is_file():
        raise UserError(
            f"The backbone of {folder} was trained with its head, and its weights are gone (no {own.name}); restore "
            "that file, or train again."
        )
    try:
        members = tuple(
            _member(made, len(described["labels"]) or 1, number, tensors)
            for number, made in enumerate(described["members"])
        )
        thresholds = described["thresholds"]
        resampling = described.get("resampling")  # older files have no such key
        return Bundle(
            members,
            described["kind"],
            described["per_frame"],
            tuple(described["labels"]),
            Objective(**described["objective"]),
            Selection(**described["selection"]),
            described["temperature"],
            None if thresholds is None else np.array(thresholds, np.float32),
            described["fusion"],
            tensors["svm"].numpy() if "svm" in tensors else None,
            described["min_seconds"],
            described["trained_on"],
            own,
            None if resampling is None else Resampling(**resampling),
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"The model in {folder} is damaged ({str(error).splitlines()[0]}); train it again.") from None


def _member(made: Mapping[str, Any], outputs: int, number: int, tensors: Mapping[str, torch.Tensor]) -> Member:
    prefix = f"{number}."
    state = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    head = restored(HeadConfig(**made["head"]), tuple(made["feature_shape"]), outputs, state)
    return Member(head, tuple(made["banks"]), made["spatial"])
