"""A table of imported features -> sealed parts of a bank, by the writer of extraction."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pandas as pd

from pipeline.errors import VideoError
from pipeline.features import records
from pipeline.import_sources import Sources, counted_fps
from pipeline.imported import IMPORTED, VERSION, Counting, checked_rows, pieces, times_of
from pipeline.sealing import PartWriter
from pipeline.sources import source_digest, source_text


def recipe_of_import(name: str, sources: Sources, counting: Counting, *, features: int, store: str) -> dict[str, Any]:
    """What decides imported embeddings: the name that their owner gives them, their format, how time is counted.

    Nobody but their owner knows what made them; features of two kinds that are given one name do mix.
    """
    made = {"format": sources.format, "version": VERSION, "counting": counting.describe()}
    return {"backbone": IMPORTED, "layer": name, "feature_shape": [features], "store": store, "imported": made}


def recorded_of_import(recipe: Mapping[str, Any], sources: Sources, layout: str, data: Path) -> dict[str, Any]:
    """What a bank of imported features records of how it was made: its config."""
    imported = {"layout": layout, "feature": sources.feature}
    return {
        "recipe": dict(recipe),
        "weights": "",
        "preset": "",
        "compute": {},
        "data": source_text(str(data)),
        "imported": imported,
    }


def import_all(
    table: pd.DataFrame,
    sources: Sources,
    writer: PartWriter,
    *,
    layout: str,
    features: int,
    counting: Counting,
    stop: Event,
    on_video: Callable[[int, bool], None],
) -> bool:
    """Import videos one after the other. One that cannot be imported goes into the ledger of failures.

    Args:
        table: one row per video, as `pipeline.resuming.with_state` gives it.
        sources: where they are.
        writer: seals them.
        layout, features: of all of them.
        counting: of the rows of those without times of their own.
        stop: ends the work between two pieces, and seals what is finished.
        on_video: called after each with its rows and whether it failed.

    Returns:
        whether it was stopped before its end.

    Raises:
        UserError: the disk is full. What was sealed stays.
    """
    for row in records(table):
        if stop.is_set():
            break
        try:
            rows = _import(row, sources, writer, layout, features, counting, stop)
        except VideoError as error:
            writer.fail(row, str(error))
            on_video(0, True)
            continue
        if rows is None:
            break
        on_video(rows, False)
    else:
        writer.seal()
        return False
    writer.seal()
    return True


def _import(
    row: Mapping[str, Any],
    sources: Sources,
    writer: PartWriter,
    layout: str,
    features: int,
    counting: Counting,
    stop: Event,
) -> int | None:
    """Import one video. Returns its rows; None where it was stopped."""
    path = Path(row["path"])
    what = f"{path.name}/{sources.datasets[row['id']]}" if sources.format == "hdf5" else path.name
    digest = hashlib.sha256()  # of the values: an HDF5 file is one file of many videos
    sink = writer.open(row)
    try:
        with sources.opened(row) as given:
            rows = checked_rows(given.array, layout, features, what)
            times = times_of(given.beside, rows, counting, counted_fps(row))
            for place, piece in pieces(given.array, layout):
                if stop.is_set():
                    sink.discard()
                    return None
                if sources.format == "hdf5":
                    digest.update(piece.tobytes())
                sink.append(piece, times.seconds[place], times.frames[place])
        content = digest.hexdigest() if sources.format == "hdf5" else source_digest(row["path"], row["kind"])
    except VideoError:
        sink.discard()
        raise
    except OSError as error:
        sink.discard()
        raise VideoError(f"{path.name} cannot be read: {error.strerror or error}") from error
    found = {"digest": content, "fps": times.fps, "duration": times.duration, "start_time": times.start_time}
    sink.finish({**found, "codec": "", "frames_declared": 0})
    return rows
