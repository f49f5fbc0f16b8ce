"""Two processes that train together against one alone, and against each other; tests/together.py is what they run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import ranks
from tests import together
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.usefixtures("one_torch_thread")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run_two(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*TORCHRUN, *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two ranks found, and what they left on disk."""
    folder = tmp_path_factory.mktemp("ranks")
    done = run_two("-m", "tests.together", str(folder))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "rank0.pt", "rank1.pt"]
    return [torch.load(folder / f"rank{number}.pt", weights_only=False) for number in range(2)]


@pytest.mark.parametrize("case", together.CASES)
def test_two_ranks_come_to_the_same_end_as_one(case: str, both: list[dict[str, Any]]) -> None:
    """The same sums in another order: float32 rounding over a few steps, with a learning rate of 0.1."""
    alone, found = together.CASES[case](), both[0][case]
    torch.testing.assert_close(found["state"], alone["state"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["scores"], alone["scores"], rtol=1e-4, atol=1e-5)
    assert len(found["history"]) == len(alone["history"])
    for one, other in zip(found["history"], alone["history"], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("case", [*together.CASES, "resumed"])
def test_both_ranks_have_the_same_bit_for_bit(case: str, both: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(both[0][case], both[1][case], rtol=0, atol=0, equal_nan=True)


def test_ranks_go_on_from_a_checkpoint_as_if_nothing_had_happened(both: list[dict[str, Any]]) -> None:
    found = both[0]["resumed"]
    torch.testing.assert_close(found["resumed"], found["undisturbed"], rtol=0, atol=0, equal_nan=True)
    assert len(found["resumed"]["history"]) == together.PLAIN.epochs


def test_what_ranks_are(both: list[dict[str, Any]]) -> None:
    first, second = (found["small things"] for found in both)
    assert (first["rank"], second["rank"], first["size"], first["first"], second["first"]) == (0, 1, 2, True, False)
    assert first["shares"] == [[1, 3], [0, 2, 4], [0]]
    assert second["shares"] == [[2], [1, 3], []]
    assert first["same"] == second["same"] == {"value": 0}
    assert first["total"] == second["total"] == [3.0, 6.0]
    # The sum of both ranks' results is 20 * total[0] + 3 * total[1]; a rank's share of totals grows with its number.
    assert first["gradient"] == [20.0, 3.0]
    assert second["gradient"] == [40.0, 6.0]
    assert first["spread"] == second["spread"] == list(range(24))
    assert first["device"] == "cpu"


def test_who_is_alone_leaves_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(SystemExit) as left:
        ranks.leave(3)
    assert left.value.code == 3


def test_alone_nothing_is_done() -> None:
    with ranks.joined():
        assert (ranks.rank(), ranks.size(), ranks.first()) == (0, 1, True)
        assert ranks.share([1, 2, 3]) == [1, 2, 3]
        assert ranks.same("value") == "value"
        assert ranks.device("cuda:1") == "cuda:1"
        assert ranks.sum_(torch.ones(2)).tolist() == [1, 1]
        ranks.wait()


@pytest.mark.slow
def test_one_that_fails_ends_all(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "from pipeline import ranks\n"
        "from pipeline.errors import UserError\n"
        "with ranks.joined():\n"
        "    if not ranks.first():\n"
        "        raise UserError('the disk is full')\n"
        "    ranks.wait()\n"
    )
    done = run_two(str(script))
    assert done.returncode != 0
    assert "the disk is full" in done.stderr
