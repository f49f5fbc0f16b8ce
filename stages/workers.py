"""What extract does where the workers of a cluster do the work: it asks them first, tells them, and watches."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline import agreement, spreading
from pipeline import bank as banks
from pipeline.cluster import Cluster, await_workers, hosts, names
from pipeline.engine import Progress
from pipeline.networks import packages_of
from pipeline.pieces import costs
from pipeline.rows import ReadOptions
from pipeline.sealing import disk_errors
from pipeline.worker import Work, loaded_compute
from stages.banking import Sealed
from stages.console import Display, counted, row_unit

_LOOKED_FOR = 20  # videos, of all those to do


def computing(display: Display, cluster: Cluster, precision: str, banked: str | None) -> tuple[torch.device, str]:
    """The device and the precision of all workers, once they are there and have the same software as this process.

    Args:
        display: where it is said who they are.
        cluster: the cluster.
        precision: as it was asked for.
        banked: that of the bank, where there is one.

    Raises:
        UserError: they are not there, or not of one kind.
    """
    with display.busy("waiting for workers"):
        await_workers(cluster)
        agreement.check_software(cluster)
        device, chosen = agreement.agreed_computing(cluster, precision, banked)
    where = "on this machine" if cluster.started else f"on {counted(hosts(cluster), 'machine')}, of {cluster.address}"
    dashboard = f" · dashboard {cluster.dashboard}" if cluster.dashboard else ""
    display.field("Cluster", f"{counted(len(names(cluster)), 'worker')} {where}{dashboard}")
    return torch.device(device), chosen


def spread(
    display: Display,
    cluster: Cluster,
    todo: pd.DataFrame,
    probed: pd.DataFrame,
    progress: Progress,
    *,
    out: Path,
    network: Mapping[str, Any],
    options: ReadOptions,
    recorded: Mapping[str, Any],
    stall_limit: float,
    declared: int,
    newer_than: str,
) -> bool:
    """Have the workers bank the videos that are to do.

    Args:
        display: what shows how far they are.
        cluster: the cluster, its workers there.
        todo: the videos, of a `pipeline.resuming.Plan`.
        probed: of them, as `pipeline.headers.probe_videos` gives it.
        progress: counts, updated in place.
        out: the bank, an absolute path; it is made where there is none.
        network: what `pipeline.backbone.load_backbone` is given, by name, with absolute paths.
        options: how the videos are read.
        recorded: the bank's config; how it is computed is for a worker to say.
        stall_limit: seconds after which a video of which no frame comes is given up.
        declared: how many rows there will be, 0 where that is not known.
        newer_than: a time that what is sealed must be later than.

    Returns:
        whether it was interrupted.

    Raises:
        UserError: the workers do not see what they need, or cannot go on. What was sealed stays.
    """
    places = np.linspace(0, len(todo) - 1, min(_LOOKED_FOR, len(todo))).astype(int)
    files = [Path(path) for path in (*todo["path"].iloc[places], network["weights"])]
    agreement.check_software(cluster, packages_of(network["name"]))
    with disk_errors(out):
        agreement.check_storage(cluster, out.parent, files)
    device = str(recorded["compute"]["device"])
    work = Work(out, network, options, recorded, device, stall_limit, newer_than=newer_than)
    with display.busy("loading the network on the workers"):
        compute = agreement.one_answer(cluster, loaded_compute, work)
    work = replace(work, recorded=dict(recorded) | {"compute": compute})
    with disk_errors(out):
        banks.create(out, work.recorded)
    sealed = Sealed(out, todo["id"])
    with display.progress(len(todo), declared, row_unit(recorded["recipe"])) as show:

        def watch(done: Progress) -> None:
            sealed.tell()
            show(done)

        try:
            return spreading.spread(
                todo,
                costs(probed),
                work,
                cluster.client,
                progress,
                alone=cluster.started == 1,
                on_progress=watch,
                on_workers=display.see_workers,
                on_note=display.note,
            )
        finally:
            sealed.tell()
