"""What every test may lean on: the real data where it is there, and random generators put back after each test."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Where tests run side by side, every process has its core: threads that wait for each other across them take ten times
# as long. Set before anything loads torch, and for the processes that tests start as well.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository: real videos (`data/`) and real weights (`weights/`)."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the real videos and weights in {folder}, which is not there")
    return folder


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Nets this small lose more to waking threads than they gain, most of all where tests run side by side."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def random_state_restored() -> Iterator[None]:
    """No test changes what the next one draws. Torch is left alone until somebody loads it: it takes seconds."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    torch_state = torch.get_rng_state() if torch else None
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    if torch is not None and torch_state is not None:
        torch.set_rng_state(torch_state)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of two classes of three clips."""
    from tests.clips import make_clip

    for number in range(6):
        make_clip(tmp_path / "data" / f"class{number % 2}" / f"clip{number}.mp4", frames=4 + number)
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a bank may go."""
    return tmp_path / "bank.h5"


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """48 short clips, and the bank that one process makes of them: both to be read alone."""
    from tests.clips import make_clip
    from tests.clusters import alone

    folder = tmp_path_factory.mktemp("many")
    for number in range(48):
        make_clip(folder / "data" / f"clip{number:02}.mp4", frames=80 + number % 5, size=(64, 48))
    return folder / "data", alone(folder / "data", folder / "alone.h5")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; the test skips, and says so, where there is none."""
    from tests.browser import chromium

    with chromium() as found:
        yield found
