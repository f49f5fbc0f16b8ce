"""Bars over time: each frame's label where the frame is, and where prediction and target differ."""

import numpy as np
import pytest

from pipeline.report_timelines import timeline
from pipeline.results import HeldOut, Task
from pipeline.segments import IGNORED


def held(target: np.ndarray, scores: np.ndarray, decided: np.ndarray, seconds: np.ndarray) -> HeldOut:
    return HeldOut(["v"], ["1"], [target], [scores], [decided], [seconds])


def test_bars_of_one_class_per_frame() -> None:
    target = np.array([0, 0, 1, IGNORED, 1])
    decided = np.array([0, 1, 1, 1, 0])
    scores = np.full((5, 2), 0.5, np.float32)
    made = timeline(Task("class", True, ("a", "b")), held(target, scores, decided, 3 + np.arange(5) / 10), 0)
    (track,) = made["tracks"]
    assert made["length"] == pytest.approx(0.5)
    assert track["bars"]["target"] == [[0, 0, 0.4], [1, 0.4, 0.6], [1, 0.8, 1]]
    assert track["bars"]["predicted"] == [[0, 0, 0.2], [1, 0.2, 0.8], [0, 0.8, 1]]
    assert track["bars"]["differs"] == [[0, 0.2, 0.4], [0, 0.8, 1]], "a frame without a target is not wrong"
    assert made["chart"]["series"][0]["data"][3] == [0.3, None]


def test_a_track_per_label() -> None:
    target = np.array([[1, 0, 0], [1, 1, 0]], np.float32)
    decided = np.array([[1, 0, 0], [0, 1, 0]])
    task = Task("multilabel", True, ("a", "b", "c"))
    made = timeline(task, held(target, np.zeros((2, 3), np.float32), decided, np.array([np.nan, np.nan])), 0)
    assert [track["name"] for track in made["tracks"]] == ["a", "b"], "c is nowhere"
    assert made["unit"] == "Frame"
    assert made["tracks"][0]["bars"]["differs"] == [[0, 0.5, 1]]
    assert made["tracks"][1]["bars"]["target"] == [[1, 0.5, 1]]


def test_lines_of_a_value() -> None:
    target, said = np.array([1.0, np.nan, 3.0]), np.array([1.5, 2.0, 2.5])
    made = timeline(Task("value", True, ()), held(target, said[:, None], said, np.arange(3.0)), 0)
    lines = {each["name"]: each["data"] for each in made["chart"]["series"]}
    assert lines == {"true": [[0, 1], [1, None], [2, 3]], "predicted": [[0, 1.5], [1, 2], [2, 2.5]]}


def test_flicker_is_thinned() -> None:
    target = np.arange(5000) % 2
    made = timeline(
        Task("class", True, ("a", "b")), held(target, np.full((5000, 2), 0.5), target, np.arange(5000) / 25), 0
    )
    assert len(made["tracks"][0]["bars"]["target"]) <= 500
    assert len(made["chart"]["series"][0]["data"]) <= 240
