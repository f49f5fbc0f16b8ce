"""What an exported model says of itself: model.json, and the lines on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.alike import Alike
from pipeline.bundles import Bundle
from pipeline.export_check import BACKBONE_TOLERANCE, BATCHES, HEAD_TOLERANCE, LENGTHS, Found
from pipeline.exported_models import ONNX, OPSET, SUFFIXES
from pipeline.heads import HeadConfig
from pipeline.joining import TOLERANCES
from pipeline.plain_models import shapes_of
from pipeline.preprocessing import by_channel
from pipeline.selection import Selection
from stages.console import counted, input_words, megabytes, sampling_words, window_words

FORMAT, SCHEMA = "framebank exported model", 1
_ARITHMETIC = {
    "uint8": "antialiased, in whole numbers, as Pillow resizes",
    "float32": "without antialiasing, in float32, then rounded",
}
_SELECTIONS = {
    "all": "every row",
    "stride": "rows 0, N, 2N, … for N = amount",
    "fps": "for each time first + k / N, N = amount, the first row at or after it (2 ms early still counts), each once",
    "frames": "N = amount rows: number floor((k + 1/2) n / N) of n, k = 0 … N - 1; of fewer all",
    "tsn": "N = amount rows: number (2 k + 1) n // (2 N) of n, k = 0 … N - 1; of fewer all",
    "tail": "N = amount rows from the last backwards in steps of max(1, round(n / N)), as far as there are any",
    "lrcn": "N = amount rows: number max(0, n - 1 - k round(n / N)) of n, k = N - 1 … 0",
    "crop": "every row",
}
_OUTPUTS = {
    "class": "calibrated probabilities of the labels, which sum to 1",
    "multilabel": "the calibrated probability of each label; it is present where that is at least its threshold",
    "value": "the value, in the unit of the targets",
}

Described = dict[str, Any]


def describe(bundle: Bundle, loaded: Sequence[Alike], to: str) -> Described:
    """model.json without what was checked: `loaded` are the backbones, in the order of the bundle's banks."""
    numbers = [""] if len(loaded) == 1 else [f"_{number}" for number in range(1, len(loaded) + 1)]
    members = [number for number, member in enumerate(bundle.members, 1) for _ in member.banks]
    together = bundle.per_frame or len(bundle.members) == 1
    backbones = [
        _backbone(alike, f"backbone{number}{SUFFIXES[to]}") for alike, number in zip(loaded, numbers, strict=True)
    ]
    inputs = [
        {
            "name": f"features{number}",
            "dtype": "float32",
            "shape": ["time" if together else f"time_{member}", *shape],
            "from": told["file"],
        }
        for number, member, shape, told in zip(numbers, members, shapes_of(bundle), backbones, strict=True)
    ]
    outputs = len(bundle.labels) or 1
    thresholds = bundle.thresholds.tolist() if bundle.thresholds is not None else [0.5] * outputs
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "to": to,
        "versions": {"framebank": version("framebank"), "torch": torch.__version__}
        | ({"opset": OPSET} if to == ONNX else {}),
        "kind": bundle.kind,
        "per_frame": bundle.per_frame,
        "labels": list(bundle.labels),
        "thresholds": thresholds if bundle.kind == "multilabel" else None,
        "backbones": backbones,
        "head": {
            "file": f"head{SUFFIXES[to]}",
            "inputs": inputs,
            "output": {
                "name": "values" if bundle.kind == "value" else "probabilities",
                "dtype": "float32",
                "shape": [*(["time"] if bundle.per_frame else []), outputs],
                "words": _OUTPUTS[bundle.kind] + (", for each row" if bundle.per_frame else ""),
            },
            "rows": _selection(bundle.selection),
            "within": [_head(member.head.config) for member in bundle.members] + _scores(bundle),
        },
    }


def _backbone(alike: Alike, file: str) -> dict[str, Any]:
    recipe, backbone = alike.recipe, alike.backbone
    shown = recipe["preprocessing"]
    mean, std = by_channel(backbone.preprocessing, backbone.window)
    region = f"of the region {recipe['crop']} (x, y, width, height); " if recipe["crop"] else ""
    still = "; motion as bytes, 128 is none" if "flow" in recipe else ""
    return {
        "file": file,
        "network": backbone.name,
        "layer": backbone.layer,
        "weights": backbone.weights,
        "weights_sha256": recipe["weights_sha256"],
        "frames": {**recipe["sampling"], "words": frames_words(recipe["sampling"])},
        "preprocessing": {
            **{name: shown[name] for name in ("fit", "resize", "crop", "interpolation", "antialias")},
            "region": recipe["crop"] or None,
            "words": f"{region}{input_words(shown)}; {_ARITHMETIC[shown['arithmetic']]}; RGB",
        },
        "row": {
            **recipe.get("window", {"kind": "frame", "length": 1}),
            **({"flow": recipe["flow"]} if "flow" in recipe else {}),
            "words": f"{window_words(recipe)}{still}",
        },
        "input": {"name": "rows", "dtype": "uint8", "shape": ["rows", *backbone.input_shape]},
        "within": {
            "mean": list(mean),
            "std": list(std),
            "words": "x / 255, minus mean, divided by std, by channel; the network in float32",
        },
        "output": {"name": "features", "dtype": "float32", "shape": ["rows", *backbone.feature_shape]},
        "banked": {"precision": recipe["precision"], "store": recipe["store"]},
    }


def frames_words(sampling: Mapping[str, Any]) -> str:
    """Which frames are taken, so that another program can take the same."""
    exact = ""
    if sampling.get("fps"):
        exact = ": for each time first + k / fps the first frame at or after it (2 ms early still counts), each once"
    elif sampling.get("frames"):
        exact = ": of n frames number floor((k + 1/2) n / N), k = 0 … N - 1 for N = frames; of fewer all"
    elif sampling.get("stride", 1) > 1:
        exact = ": 0, N, 2N, … for N = stride"
    return f"{sampling_words(sampling)}{exact}"


def _selection(selection: Selection) -> dict[str, Any]:
    words = _SELECTIONS[selection.rule]
    return {"rule": selection.rule, "amount": selection.amount, "words": f"of the n rows of a video: {words}"}


def _head(config: HeadConfig) -> str:
    """What a head does with its rows, in words."""
    parts = ["less the video's mean"] if config.centre else []
    parts += [f"differences over {lag} rows" for lag in config.deltas]
    parts += [f"changes over {lag} rows" for lag in config.changes]
    parts += ["standardised and projected as in training"]
    if config.cell != "none":
        both = "bidirectional " if config.bidirectional else ""
        parts.append(
            f"{both}{config.cell.upper()} {config.hidden}" + (f" × {config.layers}" if config.layers > 1 else "")
        )
    parts.append("every step" if config.steps else f"{config.pool} pool")
    return ", ".join(parts)


def _scores(bundle: Bundle) -> list[str]:
    objective = bundle.objective
    said = [f"steps read by {objective.read}"] if objective.steps and not objective.per_frame else []
    said += [f"heads fused by {bundle.fusion}"] if len(bundle.members) > 1 else []
    return said + ([f"temperature {bundle.temperature:.3g}"] if bundle.kind != "value" else [])


def files(described: Described, folder: Path) -> Iterator[str]:
    """A line per file: what it is, how large, what goes in and what comes out."""
    for told in described["backbones"]:
        yield _file(told["file"], f"{told['network']}, layer {told['layer']}", [told["input"]], told["output"], folder)
    head = described["head"]
    yield _file(head["file"], "the head", head["inputs"], head["output"], folder)


def _file(name: str, what: str, inputs: Sequence[dict[str, Any]], output: dict[str, Any], folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.glob(f"{name}*"))
    takes = ", ".join(f"{each['name']} {_shape(each['shape'])}" for each in inputs)
    return f"{name} ({what}, {megabytes(size)}): {takes} → {output['name']} {_shape(output['shape'])}"


def _shape(shape: Sequence[Any]) -> str:
    return f"({', '.join(map(str, shape))})"


def checks(found: Found, bundle: Bundle, loaded: Sequence[Alike]) -> Iterator[tuple[str, str]]:
    """Lines about what was checked, each with its name: largest differences and what they may be."""
    unit = "of a standard deviation" if bundle.kind == "value" else "of a probability"
    on = f" on {counted(found.videos, 'video')}, {counted(found.rows, 'row')}" if found.videos else ""
    yield (
        "Checked",
        f"backbone{on}, {', '.join(map(str, BATCHES))} rows at once: {found.backbone:.1e} of the largest feature "
        f"(at most {BACKBONE_TOLERANCE:g})",
    )
    yield (
        "",
        f"head on sequences of {', '.join(map(str, LENGTHS))} and all rows: {found.head:.1e} {unit} (at most "
        f"{HEAD_TOLERANCE:g})",
    )
    if found.joint is not None:
        made = " and ".join(
            dict.fromkeys(f"{each.recipe['precision']}, kept as {each.recipe['store']}" for each in loaded)
        )
        exact = all(each.recipe["precision"] == "fp32" for each in loaded)
        yield (
            "",
            f"both, beside the head on a bank in {made}: {found.joint:.1e} {unit} (at most {TOLERANCES[exact][1]:g}), "
            f"features at a cosine of {found.cosine:.6f} or more",
        )


def checked(found: Found, to: str) -> dict[str, Any]:
    """The same for model.json."""
    runtime = f"onnxruntime {version('onnxruntime')}" if to == ONNX else f"torch {torch.__version__}"
    return {
        "runtime": runtime,
        "videos": found.videos,
        "rows": found.rows,
        "backbone": found.backbone,
        "head": found.head,
        "frames_to_prediction": found.joint,
        "cosine_to_bank": found.cosine,
    }
