"""What `framebank describe` finds in a bank, as plain data: what its lines say in words, and --json as it is."""

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.feature_statistics import feature_statistics
from pipeline.features import records
from pipeline.videos import label_order
from pipeline.windows import window_in


def overview(bank: Bank) -> dict[str, Any]:
    """What a bank holds, what made it, and what could not be banked."""
    catalog = bank.catalog
    lengths = catalog["rows"]
    labels, splits = catalog["label"], catalog["split"]
    order = [*label_order(list(labels)), *([""] if (labels == "").any() else [])]
    return {
        "bank": str(bank.path),
        "created": bank.created,
        "fingerprint": bank.fingerprint,
        "bytes": bank.nbytes,
        "parts": len(bank.parts),
        "config": bank.config,
        "videos": len(catalog),
        "rows": int(lengths.sum()),
        "rows_a_video": [lengths.min(), lengths.median(), lengths.max()] if len(catalog) else None,
        "seconds": float(catalog["duration"].sum()),
        "partial": int((catalog["partial"] != "").sum()),
        "corrupt": int((catalog["frames_corrupt"] > 0).sum()),
        "classes": [
            {
                "label": label,
                "videos": int((labels == label).sum()),
                "splits": {split: int(count) for split, count in splits[labels == label].value_counts().items()},
            }
            for label in order
        ],
        **failures(bank),
    }


def failures(bank: Bank) -> dict[str, Any]:
    """The ledger: what could not be banked."""
    return {"failures": records(bank.failures[["id", "path", "reason", "when"]])}


def video(bank: Bank, video_id: str) -> dict[str, Any]:
    """A video's catalog row, and what its embeddings are like: least, greatest, mean norm, mean change from row to row
    (of the plain view, where there are several).

    Raises:
        UserError: the bank has no such video; if it is in the ledger, with the reason.
    """
    if video_id not in bank:
        failure = bank.failures.loc[bank.failures["id"] == video_id, "reason"]
        if len(failure):
            raise UserError(f"{video_id!r} could not be banked: {failure.iloc[0]}")
        raise UserError(f"{bank.path} has no video {video_id!r}{_near(video_id, bank)}; --csv lists the ids.")
    (row,) = records(bank.catalog[bank.catalog["id"] == video_id])
    features = bank[video_id].astype(np.float32)
    plain = features[0] if "views" in bank.config["recipe"] else features
    seconds = bank.timestamps(video_id)
    flat = plain.reshape(len(plain), -1)
    steps = np.linalg.norm(np.diff(flat, axis=0), axis=1)
    padded = 0
    if window_in(bank.config["recipe"]).kind == "clip":
        first = bank.frames(video_id)[0]
        padded = len(first) - len(set(first.tolist()))
    return {
        "bank": str(bank.path),
        "id": video_id,
        "catalog": {name: value for name, value in row.items() if name != "id"},
        "shape": list(features.shape),
        "least": float(features.min()),
        "greatest": float(features.max()),
        "seconds": [float(seconds[0]), float(seconds[-1])] if np.isfinite(seconds).all() else None,
        "padded": padded,
        "norm": float(np.linalg.norm(flat, axis=1).mean()),
        "change": float(steps.mean()) if len(steps) else None,
    }


def _near(video_id: str, bank: Bank) -> str:
    """ " (did you mean a/x?)": ids that end alike, else similar ones."""
    near = [known for known in bank if known.endswith(f"/{video_id}")] or difflib.get_close_matches(video_id, bank)
    return f" (did you mean {', or '.join(near[:3])}?)" if near else ""


def statistics(bank: Bank) -> dict[str, Any]:
    """What the values of a bank are like: of all of them, and of each feature (channel, where it holds maps).

    Raises:
        UserError: it holds no rows, or some that cannot be read.
    """
    found = feature_statistics(bank)
    mean = found.mean.mean()
    with np.errstate(invalid="ignore"):  # what is not finite is told as such
        deviation = np.sqrt((found.deviation**2 + (found.mean - mean) ** 2).mean())
    return {
        "bank": str(bank.path),
        "of": "channel" if len(bank.config["recipe"]["feature_shape"]) > 1 else "feature",
        "features": len(found.mean),
        "values_each": found.values,
        "finite": bool(np.isfinite([*found.least, *found.greatest]).all()),
        "least": found.least.min(),
        "greatest": found.greatest.max(),
        "mean": mean,
        "standard_deviation": deviation,
        "zeros": found.zeros.mean(),
        "constant": int((found.least == found.greatest).sum()),
        "each": {
            "least": found.least.tolist(),
            "greatest": found.greatest.tolist(),
            "mean": found.mean.tolist(),
            "standard_deviation": found.deviation.tolist(),
            "zeros": found.zeros.tolist(),
        },
    }


def verified(bank: Bank, on_video: Callable[[int], None]) -> dict[str, Any]:
    """What is wrong in a bank, of which everything is read."""
    problems = bank.verify(on_video)
    return {
        "bank": str(bank.path),
        "videos": len(bank),
        "problems": [{"id": video_id, "problem": problem} for video_id, problem in problems],
    }
