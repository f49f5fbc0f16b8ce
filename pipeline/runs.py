"""The folder of a run: what was asked, how it went, what came of it. Begun first, marked finished last.

config.json       what was asked, resolved, and of which data: the same call again goes on where the first stopped
splits.csv        id, fold, part: which video trained, validated and tested what
metrics.csv       one row per epoch
predictions.csv   held-out videos only: target, prediction, probability per class (frames.csv: the same per frame)
results.json      the headline with its interval, the baselines, per class, per fold; written last
model.*           the bundle (`pipeline.bundles`); folds/ holds those that scored each fold
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Set
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.bank import Bank, differences
from pipeline.errors import UserError
from pipeline.features import records
from pipeline.frame_labels import LABEL_SUFFIXES
from pipeline.sources import source_text
from pipeline.writing import write_json

FORMAT, SCHEMA = "framebank run", 1
NEW, UNFINISHED, FINISHED = "new", "unfinished", "finished"
PREFIX = "prefix"  # folder of what is banked for the run alone, until it is finished; it is as good for another run
MADE = ("model.safetensors", "model.json", "results.json")  # what no finished run lacks
RESULTS = {"task", "headline", "score", "baselines"}  # and what its results hold at least
_LIBRARIES = ("framebank", "torch", "numpy", "scikit-learn", "h5py")


def begin(out: Path, config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Begin a run in a folder, or go on with the one that is there if it was asked for the same of the same data.

    Args:
        out: the folder; made if need be.
        config: what was asked, resolved to plain values; without what cannot change the result (device, folder).
        data: what identifies the data (see `data_identity`).

    Returns:
        "new", "unfinished" or "finished".

    Raises:
        UserError: the folder holds another run, or something else.
    """
    asked = json.loads(json.dumps({"config": config, "data": data}))
    if (out / "config.json").exists() and not _nothing_made(out):
        found = read_config(out)
        if changed := list(differences(found["config"], asked["config"], ("that run", "now"))):
            raise UserError(
                f"{out} holds another run: {'; '.join(changed[:4])}. Give another --out, or remove that folder."
            )
        if found["data"] != asked["data"]:
            raise UserError(
                f"{out} was run on other data: {_what_differs(found['data'], asked['data'])}. Give another --out."
            )
        return FINISHED if all((out / name).exists() for name in MADE) else UNFINISHED
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not _nothing_made(out):
        raise UserError(f"{out} is there and is no run; give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    versions = {name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()}
    write_json(out / "config.json", {"format": FORMAT, "schema": SCHEMA, **asked, "versions": versions})
    return NEW


def _nothing_made(out: Path) -> bool:
    """Whether a folder holds a run that was begun and stopped, by a mistake in its options, say, before any work."""
    found = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    files = {path.name for path in found if path.parts[0] != PREFIX}
    return "config.json" in files and files <= {"config.json", "splits.csv"} and bool(read_config(out))


def _what_differs(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return "; ".join(list(differences(old, new, ("that run", "now")))[:3])


def data_identity(banks: list[Bank], files: Mapping[str, Path | None]) -> dict[str, Any]:
    """What tells whether a run is of the same data: fingerprints, videos with labels, and files of targets.

    Args:
        banks: the banks, in order.
        files: name of the option -> the file or folder it names, or None.
    """
    described = []
    for bank in banks:
        shown = bank.catalog.drop(columns=["banked", "source", "mtime"]).sort_values("id")  # packing may reorder
        digest = hashlib.sha256(shown.to_csv(index=False).encode("utf-8", "surrogatepass")).hexdigest()
        described.append(
            {"path": source_text(str(bank.path.absolute())), "fingerprint": bank.fingerprint, "catalog": digest}
        )
    digests = {name: _digest(path) for name, path in files.items() if path is not None}
    return {"banks": described, "files": digests}


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and (file == path or file.suffix.lower() in LABEL_SUFFIXES):  # videos may lie beside labels
            total.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + file.read_bytes())
    return total.hexdigest()


def read_config(run: Path) -> dict[str, Any]:
    """config.json of a run. UserError if the folder holds no run."""
    return _read(run, "config.json", "`framebank train-head --out` makes one", {"format"})


def read_results(run: Path) -> dict[str, Any]:
    """results.json of a finished run. UserError if there is none."""
    read_config(run)
    return _read(run, "results.json", "give the same command again to finish it", RESULTS)


def _read(run: Path, name: str, remedy: str, needed: Set[str]) -> dict[str, Any]:
    try:
        content = json.loads((run / name).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # the latter where a bank is given as a run
        what = "is no run" if name == "config.json" else "is a run that has not finished"
        raise UserError(f"{run} {what}: it has no {name}; {remedy}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{run / name} cannot be read ({error}); restore it, or train with another --out.") from None
    if not isinstance(content, dict) or not needed <= content.keys():
        raise UserError(f"{run / name} is damaged; restore it, or train with another --out.")
    if name == "config.json" and (content.get("format"), content.get("schema")) != (FORMAT, SCHEMA):
        raise UserError(f"{run / name} is not of this version's format; train again with another --out.")
    return content


def fold_folder(run: Path, seed: int, fold: str) -> Path:
    """Where the bundle that scored a fold lies: folds/1 for the first seed, folds/1-seed2 for others."""
    return run / "folds" / (fold if seed == 0 else f"{fold}-seed{seed}")


def seed_file(run: Path, name: str, seed: int) -> Path:
    """A table of one seed: predictions.csv for the first one, predictions-seed2.csv for others."""
    return run / f"{name}{'' if seed == 0 else f'-seed{seed}'}.csv"


def history(folder: Path) -> list[dict[str, Any]]:
    """The epochs of one finished fold, as `train-head` wrote them beside its bundle."""
    return records(pd.read_csv(folder / "metrics.csv"))
