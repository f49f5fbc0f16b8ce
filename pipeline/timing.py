"""Where the time of a run goes: how long each of its lanes decodes, prepares, computes, writes, and waits.

Where a GPU computes, "forward" is what a lane takes to submit its batches and waits for their embeddings.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

PARTS = ("decoding", "preparing", "forward", "writing")
_T = TypeVar("_T")


class Spent:
    """Seconds that one thread has spent on each of `PARTS`."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count the time within on a part."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - begun

    def taking(self, part: str, items: Iterable[_T]) -> Iterator[_T]:
        """The items, the time that it takes to get each of them counted on a part."""
        rest = iter(items)
        while True:
            with self.on(part):
                try:
                    item = next(rest)
                except StopIteration:
                    return
            yield item


def shares(lanes: Iterable[Spent], wall_seconds: float) -> dict[str, float]:
    """What share of the time of all lanes, that of a run of `wall_seconds`, went into each of `PARTS` and "waiting"."""
    lanes = list(lanes)
    whole = max(wall_seconds * len(lanes), 1e-9)
    found = {part: sum(lane.seconds[part] for lane in lanes) / whole for part in PARTS}
    return found | {"waiting": max(0.0, 1 - sum(found.values()))}
