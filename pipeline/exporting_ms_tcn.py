"""A bank and segments as MS-TCN reads them: features D×T, a label for every row, a mapping and bundles of splits.

`features/NAME.npy` and `groundTruth/NAME.txt` (a line per row), `mapping.txt` ("0 label"), and
`splits/train.split1.bundle` and the like, a line `NAME.txt` per video. NAME is `pipeline.exporting.flat_name` of the
id, since MS-TCN cuts names at their first dot and, of its results, at slashes. It reads a label up to the first space,
so spaces become `_`. Times and `manifest.csv` are there for `framebank import`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.exporting import MANIFEST, Plan, flat_name, manifest_of, write_features
from pipeline.segments import IGNORED, clocks
from pipeline.targets import from_segments

FEATURES, LABELS, MAPPING, SPLITS = "features", "groundTruth", "mapping.txt", "splits"


def plan(bank: Bank, segments: Path | None, background: str | None) -> Plan:
    """What the text files will hold.

    Raises:
        UserError: no segments, some that do not fit the bank, rows without a label, or labels that become one.
    """
    if segments is None:
        raise UserError("MS-TCN reads a label for every row: give --segments, in any form that train-head reads.")
    targets = from_segments(segments, clocks(bank), background=background)
    gaps = {video: int((codes == IGNORED).sum()) for video, codes in targets.values.items()}
    open_rows = {video: count for video, count in gaps.items() if count}
    if open_rows:
        video, count = next(iter(open_rows.items()))
        raise UserError(
            f"{sum(open_rows.values())} rows of {len(open_rows)} videos are in no segment, e.g. {count} of "
            f"{video!r}, and MS-TCN needs a label for each: give them one by --background LABEL."
        )
    names = ["_".join(label.split()) for label in targets.labels]
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise UserError(f"Two labels would be {doubled!r} in MS-TCN, which reads none with spaces. Rename one of them.")
    notes = [note for note in targets.notes if "left out" not in note]
    spaced = [label for label, name in zip(targets.labels, names, strict=True) if label != name]
    if spaced:
        notes.append(f"labels with spaces, which become _: {len(spaced)}, e.g. {spaced[0]!r}")
    files = {
        f"{LABELS}/{flat_name(video)}.txt": "".join(f"{names[code]}\n" for code in codes).encode()
        for video, codes in targets.values.items()
    }
    labelled = bank.catalog[bank.catalog["id"].isin(targets.values.keys())]
    files |= _bundles(labelled)
    if not any(name.startswith(SPLITS) for name in files):
        notes.append("no bundles: the catalog has no splits (train, test); MS-TCN needs them to say what it trains on")
    without = sorted(set(bank) - set(targets.values))
    if without:
        notes.append(f"videos without labels, which are in no bundle: {len(without)}, e.g. {without[0]}")
    files[MAPPING] = "".join(f"{code} {name}\n" for code, name in enumerate(names)).encode()
    files[MANIFEST] = manifest_of(bank, _path)
    return Plan(files, notes)


def _bundles(catalog: pd.DataFrame) -> dict[str, bytes]:
    """The bundles of the column `split`, or of `split_1`, `split_2`, … where there are any."""
    numbered = [column for column in catalog.columns if column.removeprefix("split_").isdecimal()]
    columns = dict(zip(numbered, (column.removeprefix("split_") for column in numbered), strict=True)) or {"split": "1"}
    return {
        f"{SPLITS}/{use}.split{number}.bundle": "".join(f"{flat_name(video)}.txt\n" for video in ids).encode()
        for column, number in columns.items()
        for use, ids in catalog[catalog[column] != ""].groupby(column)["id"]
    }


def write_video(bank: Bank, row: Mapping[str, Any], out: Path) -> bool:
    """Write the features and the times of one video, given by its catalog row. Returns whether they are new."""
    return write_features(bank, row, out / _path(row["id"]), turned=True)


def _path(video: str) -> str:
    return f"{FEATURES}/{flat_name(video)}.npy"
