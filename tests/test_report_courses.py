"""What a head says over a video: after each beginning what it would say of that beginning alone, at the end its
prediction."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.bank import Bank
from pipeline.bundles import load_bundle, load_for, score_bundle
from pipeline.recorded import held_out, task_of
from pipeline.report_courses import POINTS, course
from pipeline.runs import fold_folder, read_results
from pipeline.sequences import load_sequences
from tests.banks import bank_of, in_order
from tests.commands import framebank

pytestmark = pytest.mark.usefixtures("one_torch_thread")
OPTIONS = ("--folds", 2, "--epochs", 2, "--hidden", 4, "--quiet", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Banks of 16 videos, the second of every second row; runs `one`, `every` (step) and `fused` of both."""
    folder = tmp_path_factory.mktemp("courses")
    videos = in_order(16)
    bank_of(folder / "a.h5", videos)
    bank_of(folder / "b.h5", {name: rows[: len(rows) // 2, :4] for name, rows in videos.items()}, layer="other")
    for name, *rest in (
        ("one", folder / "a.h5"),
        ("every", folder / "a.h5", "--supervise", "every-step"),
        ("fused", folder / "a.h5", folder / "b.h5", "--fuse", "mean"),
    ):
        result = framebank("train-head", *rest, "--out", folder / name, *OPTIONS)
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize(("name", "banks"), [("one", "a"), ("every", "a"), ("fused", "ab")])
def test_the_end_is_the_recorded_prediction(name: str, banks: str, folder: Path) -> None:
    run = folder / name
    held = held_out(run, task_of(read_results(run)))
    opened = [Bank(folder / f"{each}.h5") for each in banks]
    for place in (0, 5, 11):
        bundle = load_bundle(fold_folder(run, 0, held.folds[place]))
        sequences, _ = load_for(bundle, opened, [held.ids[place]])
        made = course(bundle, sequences, 0)
        length = len(opened[0].timestamps(held.ids[place]))
        assert made.rows.tolist() == list(range(length))
        assert made.scores.shape == (length, 2)
        assert made.every_step == (name == "every")
        if name != "every":  # whose prediction is read from all steps
            np.testing.assert_allclose(made.scores[-1], held.scores[place], atol=1e-5)
        assert np.ptp(made.scores[:, 0]) > 1e-4, "it changes over the video"
    for each in opened:
        each.close()


def test_a_beginning_is_scored_as_if_it_were_all(folder: Path, tmp_path: Path) -> None:
    """Against an independent way: a bank that holds the beginning alone."""
    bundle = load_bundle(folder / "one")
    videos = in_order(16)
    video = "rising/003"
    with Bank(folder / "a.h5") as whole:
        made = course(bundle, load_for(bundle, [whole], [video])[0], 0)
    for rows in (1, 4, 7):
        path = bank_of(tmp_path / f"{rows}.h5", {video: videos[video][:rows]})
        with Bank(path) as short:
            alone = np.asarray(score_bundle(bundle, [load_sequences([short])], np.zeros(1, np.int64)))
        np.testing.assert_allclose(made.scores[rows - 1], alone[0], atol=1e-5)


def test_a_long_video_has_so_many_points(folder: Path, tmp_path: Path) -> None:
    bundle = replace(load_bundle(folder / "one"))
    rows = np.tile(in_order(1)["falling/000"], (30, 1))
    with Bank(bank_of(tmp_path / "long.h5", {"a": rows})) as bank:
        made = course(bundle, load_for(bundle, [bank], ["a"])[0], 0)
    assert len(made.rows) == POINTS
    assert (made.rows[0], made.rows[-1]) == (0, len(rows) - 1)
