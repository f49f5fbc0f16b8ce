"""Calls of the command in processes that can be killed at any moment.

A driver loads the libraries once and forks for every call: a forked child starts in milliseconds where a fresh
interpreter needs seconds to import torch, and the kills are as real.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

from tests.conftest import REPOSITORY

_DRIVER = """
import json, os, signal, sys
import torch, torchvision, av, h5py, pandas
from stages import cli, extract
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
{setup}
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        print(os.waitpid(asked, 0)[1], flush=True)
        continue
    child = os.fork()
    if child == 0:
        os.close(0)
        words, says = asked
        if says:
            os.dup2(os.open(says, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        try:
            cli.main(words)
        except SystemExit as done:
            os._exit(int(done.code or 0))
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(99)
    print(child, flush=True)
"""


class Runs:
    """Calls of the command, each in a process of its own; `setup` is code that runs before the first."""

    def __init__(self, setup: str = "") -> None:
        self._driver = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _DRIVER.format(setup=setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        self._latest = 0

    def start(self, *words: object, says: Path | None = None) -> int:
        """Begin a call (of absolute paths: it runs in the repository); the id of its process.

        says: the file that gets what it writes to stdout and stderr; ours get it otherwise.
        """
        self._latest = self._answer([[str(word) for word in words], None if says is None else str(says)])
        return self._latest

    def status(self, process: int | None = None) -> int:
        """Wait for a call, the latest if none is named: its exit status, or minus the signal that killed it."""
        return os.waitstatus_to_exitcode(self._answer(process or self._latest))

    def close(self) -> None:
        """End the driver."""
        self._pipe(self._driver.stdin).close()
        assert self._driver.wait(30) == 0
        self._pipe(self._driver.stdout).close()

    def _answer(self, asked: object) -> int:
        print(json.dumps(asked), file=self._pipe(self._driver.stdin), flush=True)
        return int(self._pipe(self._driver.stdout).readline())

    @staticmethod
    def _pipe(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


def alive(process: int) -> bool:
    """Whether a call goes on; one that has ended is a zombie until its driver looks."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
