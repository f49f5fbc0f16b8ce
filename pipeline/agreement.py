"""What every worker of a cluster has to have in common with this command, found out before work begins.

The same software, the same way of computing, the same storage. Workers that were started here have the first and the
last by themselves.
"""

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed.scheduler import KilledWorker

from pipeline.cluster import Cluster, names, silent
from pipeline.errors import UserError

_SAME = ("framebank", "torch", "torchvision", "av", "numpy")  # what makes the numbers, or reads what others wrote
_ANSWER_SECONDS = 120.0  # a worker that has not loaded torch yet does so for the first question


def check_software(cluster: Cluster, packages: Sequence[str] = _SAME) -> None:
    """Every worker of a cluster that was joined has framebank, and what computes is of the same versions as here.

    `packages` are what is asked for, by the names under which they are installed.

    Raises:
        UserError: it is not so, naming the worker and both versions.
    """
    if cluster.started:
        return
    for package in packages:
        here = _public(metadata.version(package))
        for worker, there in _asked(cluster, metadata.version, package).items():
            if isinstance(there, Exception):
                what = package if package not in _SAME else f"framebank {_own_version()}"
                raise UserError(f"{worker} has no {package}; install {what} where the workers run.")
            if _public(there) != here:
                raise UserError(
                    f"{worker} has {package} {_public(there)}, and here it is {here}; the workers need the same "
                    "environment as this command."
                )


def agreed_computing(cluster: Cluster, precision: str, banked: str | None) -> tuple[str, str]:
    """On which device and in which precision the workers compute: all of them alike, or the bank would be a mixture.

    Args:
        cluster: the cluster.
        precision: as it was asked for.
        banked: that of the bank, where there is one.

    Returns:
        the type of the device, and the precision.

    Raises:
        UserError: the workers differ, or one lacks the device.
    """
    answers = _answers(cluster, _computing, cluster.device, precision, banked)
    first, *others = answers
    for other in others:
        if answers[other] != answers[first]:
            one, two = (" in ".join(reversed(answers[worker])) for worker in (first, other))
            raise UserError(
                f"{first} would compute {one}, {other} {two}; give --device and --precision that all workers have, or "
                "leave those out that lack them."
            )
    device, chosen = answers[first]
    return device, chosen


def _computing(device: str, precision: str, banked: str | None) -> tuple[str, str]:
    """On a worker."""
    from pipeline.encoder import choose_device, choose_precision

    found = choose_device(device)
    return found.type, choose_precision(precision, found, banked)


def check_storage(cluster: Cluster, folder: Path, files: Iterable[Path]) -> None:
    """Every worker of a cluster that was joined sees the bank's folder, writes there, and sees the videos.

    A file is written into the folder from either side and read from the other: a folder of the same name on another
    disk would take the embeddings and lose them.

    Args:
        cluster: the cluster.
        folder: where the bank is to be; it is made.
        files: some files and folders, absolute paths, that the workers are to read.

    Raises:
        UserError: one of them does not, naming the worker and the path.
    """
    if cluster.started:
        return
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    token = uuid4().hex
    mine = folder / f".framebank-{token}"
    try:
        mine.write_text(token, "utf-8")
        for worker, reply in _answers(cluster, _reply, str(folder), token).items():
            if not Path(reply).is_absolute():
                raise UserError(f"{worker} {reply}. The bank has to lie on storage that all workers share.")
            if not Path(reply).exists():
                raise UserError(
                    f"{worker} writes to another {folder} than this command. The bank has to lie on storage that all "
                    "workers share."
                )
    finally:
        for file in folder.glob(f"{mine.name}*"):
            file.unlink()
    sizes = {str(file): file.stat().st_size if file.is_file() else None for file in files if file.exists()}
    for worker, missing in _answers(cluster, _unseen, sizes).items():
        if missing:
            raise UserError(
                f"{worker} does not see {missing}. Videos and weights have to lie where all workers see them."
            )


def _reply(folder: str, token: str) -> str:
    """On a worker: the file that it wrote in answer, or what is wrong with the folder."""
    question = Path(folder) / f".framebank-{token}"
    try:
        if question.read_text("utf-8") != token:
            return f"sees another {folder} than this command"
    except OSError as error:
        return f"does not see the folder of the bank, {folder} ({error.strerror})"
    reply = question.with_name(f"{question.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        reply.write_text(token, "utf-8")
    except OSError as error:
        return f"cannot write in {folder} ({error.strerror})"
    return str(reply)


def _unseen(sizes: Mapping[str, int | None]) -> str:
    """On a worker: the first file or folder (None) that is not there, or is another file by its size in bytes; "" where
    all are there."""
    for path, size in sizes.items():
        try:
            found = Path(path).stat().st_size
            if size is not None and found != size:
                return f"the same {path} (its size differs)"
        except OSError as error:
            return f"{path} ({error.strerror})"
    return ""


def one_answer(cluster: Cluster, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of framebank returns on some worker.

    Raises:
        UserError: it fails there, or its worker dies.
    """
    try:
        return cluster.client.submit(function, *arguments, pure=False, retries=0).result()
    except KilledWorker as error:
        raise UserError(
            "Workers died while they loaded the network: have they enough memory? See their logs."
        ) from error
    except (OSError, CancelledError) as error:
        raise _gone(cluster, error) from error


def _answers(cluster: Cluster, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What a function of framebank returns on each worker, by the worker's name.

    Raises:
        UserError: it fails on a worker.
    """
    answers = _asked(cluster, function, *arguments)
    for worker, answer in answers.items():
        if isinstance(answer, UserError):
            raise UserError(f"{worker}: {answer}")
        if isinstance(answer, Exception):
            raise UserError(f"{worker} cannot run framebank: {_line(answer)}")
    return answers


def _asked(cluster: Cluster, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What a function returns, or raises, on each worker, by the worker's name; those that die meanwhile are left out.

    Raises:
        UserError: not all that live answer in time, or nobody does, or the scheduler is gone.
    """
    called = names(cluster)
    asking = partial(cluster.client._run, function, *arguments, on_error="return")
    try:
        found = cluster.client.sync(asking, callback_timeout=_ANSWER_SECONDS)
    except TimeoutError as error:
        raise UserError(
            f"Not every worker answers within {_ANSWER_SECONDS:g} s; {silent(cluster)} has been silent for the "
            "longest. End it, or start it anew."
        ) from error
    except OSError as error:
        raise _gone(cluster, error) from error
    found = {address: answer for address, answer in found.items() if not isinstance(answer, OSError)}
    if not found:
        raise UserError(f"No worker of {cluster.address} answers any more. Nothing was begun; run the command again.")
    return {called.get(address, f"worker {address}"): answer for address, answer in found.items()}


def _gone(cluster: Cluster, error: BaseException) -> UserError:
    return UserError(f"The scheduler at {cluster.address} is gone ({_line(error)}). Nothing was begun.")


def _own_version() -> str:
    return metadata.version("framebank")


def _public(version: str) -> str:
    """A version without what a build adds to it: 2.14.1+cu130 and 2.14.1+cpu are the same source."""
    return version.partition("+")[0]


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
