"""HDF5 files of features that other programs wrote, and those that they read: one dataset per video.

Two layouts are known: `/<id>` is the dataset itself, or it is `/<id>/NAME`, NAME being `c3d_features` in the files of
ActivityNet and dense captioning. An id may have several segments (`fight/fi001`), which are groups in groups. Beside
`/<id>/NAME` may lie what `pipeline.imported.BESIDE` names: times, numbers of frames, a frame rate.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import features as hdf5
from pipeline.errors import UserError
from pipeline.ids import escape, readable

C3D = "c3d_features"
_SHOWN = 5


class Entry(NamedTuple):
    """The features of one video in a file: its id, the path of the dataset and its shape."""

    video_id: str
    dataset: str
    shape: tuple[int, ...]


def entries_in(path: Path, feature: str | None) -> tuple[list[Entry], list[str]]:
    """What a file holds, and lines worth telling. What a link leads nowhere from is an entry too, without a shape, that
    will fail when it is read.

    Args:
        path: the file.
        feature: the name of the dataset in the group of every video; None where there are no such groups, or where it
            is `c3d_features`.

    Raises:
        UserError: it is no HDF5 file, it is a bank, it holds no such datasets, or names do not tell which are meant.
    """
    name = readable(str(path))
    try:
        with hdf5.open_file(path) as file:
            if file.attrs.get("format") == hdf5.FORMAT:
                raise UserError(
                    f"{name} is a framebank bank already; `framebank merge` and `framebank describe` read it."
                )
            found = dict(_datasets(file, "", ()))
    except OSError as error:
        raise UserError(f"{name} cannot be read as HDF5 ({error}).") from error
    notes = []
    wanted = feature or (C3D if any(_leaf(dataset) == C3D for dataset in found) else None)
    if wanted is not None:
        entries = [Entry(d.rpartition("/")[0], d, shape or ()) for d, shape in found.items() if _is_named(d, wanted)]
        groups = {entry.video_id for entry in entries}
        others = [d for d in found if not _is_named(d, wanted) and d.rpartition("/")[0] not in groups]
        entries += [Entry(d, f"{d}/{wanted}", ()) for d in others if found[d] is None]
        others = [d for d in others if found[d] is not None]
        if entries and others:
            notes.append(f"datasets without a {wanted} beside them, left out: {len(others)}, e.g. {others[0]}")
    else:
        entries = [Entry(dataset, dataset, shape or ()) for dataset, shape in found.items()]
        leaves = sorted({_leaf(entry.dataset) for entry in entries if "/" in entry.dataset})
        if len(leaves) < sum("/" in entry.dataset for entry in entries):
            shown = ", ".join(leaves[:_SHOWN]) + ", …" * (len(leaves) > _SHOWN)
            raise UserError(
                f"{name} has datasets of the same name in several groups ({shown}); say which: --feature NAME."
            )
    if not entries:
        what = f"no dataset {wanted} in any group" if wanted else "no dataset"
        raise UserError(f"{name} has {what}. It takes one dataset per video: /ID, or /ID/NAME with --feature NAME.")
    entries = [entry._replace(video_id=escape(entry.video_id, given=True)) for entry in entries]
    first: dict[str, str] = {}
    for entry in entries:
        if (other := first.setdefault(entry.video_id, entry.dataset)) != entry.dataset:
            both = f"{other!a} and {entry.dataset!a}"
            raise UserError(f"{name}: {both} would both be the video {entry.video_id!r}; rename one of them.")
    return entries, notes


def _leaf(dataset: str) -> str:
    return dataset.rpartition("/")[2]


def _is_named(dataset: str, wanted: str) -> bool:
    return "/" in dataset and _leaf(dataset) == wanted


def _datasets(group: Any, path: str, above: tuple[Any, ...]) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Path and shape of all datasets in and below a group, in the order of their names; None of a link that leads
    nowhere. Paths are those that lead there from this file: a dataset in another file has a name of its own. A link
    back to a group `above` leads to nothing new."""
    for name in group:
        item, place = group.get(name), f"{path}{name}"
        if item is None:
            yield place, None
        elif hasattr(item, "shape"):
            yield place, tuple(item.shape or ())  # an empty dataspace has none
        elif hasattr(item, "values") and item not in above and item != group:
            yield from _datasets(item, f"{place}/", (*above, group))


@contextmanager
def opened(path: Path, dataset: str, beside: Mapping[str, object]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """A dataset to be read piece by piece, and those of the names `beside` that lie in its own group.

    Raises:
        OSError, KeyError: it cannot be read.
    """
    with hdf5.open_file(path) as file:
        group, _, name = dataset.rpartition("/")
        siblings = file[group] if group else {}
        # The dataset of a video that is called like one of them stands for itself.
        found = {key: np.asarray(siblings[key][()]) for key in beside if group and key != name and key in siblings}
        yield file[dataset], found
