"""A bank as tables: Parquet with the pooled features of every video beside its catalog row, CSV of the catalog alone.

Parquet has three lists of D numbers per video: `mean`, `std` and `max` of each feature over time, float32, computed in
float64; the deviation is that of all rows (divided by T), 0 for one row. Other columns are those of the catalog.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.exporting import keep_or_write, keep_or_write_bytes
from pipeline.features import records

_PIECE_ROWS = 4096
_GROUP_VIDEOS = 1024  # that are in memory together


def write_csv(bank: Bank, out: Path) -> bool:
    """Write the catalog. Returns whether the file is new. UserError: another file is there."""
    return keep_or_write_bytes(out, bank.catalog.to_csv(index=False).encode())


def pooled(bank: Bank, video: str, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and maximum of each feature over the rows of a video: (D,) float32 each."""
    first = bank.read(video, 0, 1).astype(np.float64)[0]
    total, squares, most = np.zeros_like(first), np.zeros_like(first), first
    for start in range(0, rows, _PIECE_ROWS):
        piece = bank.read(video, start, min(rows, start + _PIECE_ROWS)).astype(np.float64)
        away = piece - first  # of numbers near each other, the squares lose nothing
        total, squares = total + away.sum(axis=0), squares + (away**2).sum(axis=0)
        most = np.maximum(most, piece.max(axis=0))
    mean = total / rows
    deviation = np.sqrt(np.maximum(squares / rows - mean**2, 0))
    return (first + mean).astype(np.float32), deviation.astype(np.float32), most.astype(np.float32)


def write_parquet(bank: Bank, out: Path, on_video: Callable[[int], None]) -> bool:
    """Write the pooled features.

    Args:
        bank: of vectors.
        out: the file.
        on_video: called after each video with its rows.

    Returns:
        whether it is new.

    Raises:
        UserError: another file is there, or pyarrow is not installed.
        OSError: the disk is full.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("Parquet is written by pyarrow: pip install 'framebank[parquet]'.") from error
    width = bank.config["recipe"]["feature_shape"][0]
    lists = pyarrow.list_(pyarrow.float32(), width)

    def fill(path: Path) -> None:
        writer = None
        for start in range(0, len(bank), _GROUP_VIDEOS):
            rows = bank.catalog.iloc[start : start + _GROUP_VIDEOS]
            found: list[Any] = []
            for row in records(rows):
                found.append(pooled(bank, row["id"], row["rows"]))
                on_video(row["rows"])
            columns: dict[str, Any] = {str(name): pyarrow.array(rows[name].tolist()) for name in rows}
            for place, name in enumerate(("mean", "std", "max")):
                values = pyarrow.array(np.concatenate([each[place] for each in found]))
                columns[name] = pyarrow.FixedSizeListArray.from_arrays(values, width).cast(lists)
            table = pyarrow.table(columns)
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()

    return keep_or_write(out, fill)
