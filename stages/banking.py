"""What an extraction tells of each video as it is banked: events, read from the parts as they are sealed.

The parts say it whoever wrote them: this process, or the workers of a cluster.
"""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pipeline import features as hdf5
from pipeline.bank import sealed_parts
from stages import events


class Sealed:
    """The videos of a run, told once each, when they are sealed.

    Args:
        out: the bank.
        ids: the videos that the run is to do; what others seal meanwhile is left out.
    """

    def __init__(self, out: Path, ids: Collection[str]) -> None:
        self._out, self._ids = out, set(ids)
        self._read = {part.name for part in sealed_parts(out)} if events.on() else set()

    def tell(self) -> None:
        """Tell what was sealed since the last call; nothing unless somebody asked for events."""
        if not events.on():
            return
        for part in sealed_parts(self._out):
            if part.name in self._read:
                continue
            self._read.add(part.name)
            with suppress(FileNotFoundError):  # packed away by somebody else
                contents = hdf5.read_contents(part)
                for row in hdf5.records(contents.catalog):
                    if row["id"] in self._ids:
                        _banked(row)
                for row in hdf5.records(contents.failures):
                    if row["id"] in self._ids:
                        events.tell("video_failed", "warning", id=row["id"], path=row["path"], reason=row["reason"])


def _banked(row: dict[str, object]) -> None:
    events.tell(
        "video_banked",
        id=row["id"],
        path=row["source"],
        rows=row["rows"],
        frames=row["frames_decoded"],
        seconds=row["duration"],
        label=row["label"],
        partial=row["partial"],
    )
