"""Targets from catalogs, tables and files of labels, on clocks as banks have them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.segments import IGNORED, Clock, clocks
from pipeline.targets import Targets, from_catalog, from_csv, from_frame_values, from_segments

HERE = {"a": 10, "b": 10, "c": 10}


def clock(steps: int, stride: int = 1) -> Clock:
    """10 frames a second."""
    frames = np.arange(steps) * stride
    return Clock(frames / 10, frames, 10.0, steps * stride / 10, steps * stride)


CLOCKS = {video_id: clock(steps) for video_id, steps in HERE.items()}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def catalog(**columns: list) -> pd.DataFrame:
    return pd.DataFrame({"id": list("abcd"), **columns})


def plain(targets: Targets) -> dict[str, object]:
    return {video_id: value.tolist() for video_id, value in targets.values.items()}


def test_classes_of_a_catalog():
    targets = from_catalog(catalog(label=["10_run", "2_walk", "", "2_walk"]))
    assert (targets.kind, targets.per_frame, targets.outputs) == ("class", False, 2)
    assert targets.labels == ("2_walk", "10_run")
    assert plain(targets) == {"a": 1, "b": 0, "d": 0}
    assert targets.values["a"].dtype == np.int64
    assert targets.notes == ("videos without a target, left out: 1 of 4, e.g. c",)


def test_several_labels_of_a_catalog():
    targets = from_catalog(catalog(what=["sit| eat", "eat", " | ", "run|eat|eat"]), "what", kind="multilabel")
    assert targets.labels == ("eat", "run", "sit")
    assert plain(targets) == {"a": [1, 0, 1], "b": [1, 0, 0], "d": [1, 1, 0]}
    assert targets.values["a"].dtype == np.float32
    assert len(targets.notes) == 1


def test_values_of_a_catalog():
    targets = from_catalog(catalog(age=["1.5", "-2e3", "", "7"]), "age", kind="value")
    assert (targets.labels, targets.outputs) == ((), 1)
    assert plain(targets) == {"a": 1.5, "b": -2000, "d": 7}
    assert targets.values["a"].dtype == np.float32
    assert targets.values["a"].shape == ()
    assert plain(from_catalog(catalog(fps=[25.0, np.nan, 30.0, 50.0]), "fps", kind="value")) == {
        "a": 25,
        "c": 30,
        "d": 50,
    }


@pytest.mark.parametrize(
    ("cells", "kind", "message"),
    [
        (["x", "x", "", "x"], "class", "The bank's column label has one class only, 'x'; two are needed"),
        (["x", "x", "", "x"], "multilabel", "one class only, 'x'"),
        (["|"] * 4, "multilabel", "has no label"),
        ([""] * 4, "class", "is empty for all 4 videos"),
        (["1", "many", "nan", "3"], "value", "2 of 4 values are no finite numbers, e.g. 'many' of 'b'"),
        (["1", "inf", "2", "3"], "value", "1 of 4 .* 'inf' of 'b'"),
        (["1", "1e39", "2", "3"], "value", "1 of 4 .* '1e39' of 'b'"),
        (["2", "2.0", "", "2"], "value", "all 3 values are 2; there is nothing to learn"),
    ],
)
def test_refused_catalogs(cells, kind, message):
    with pytest.raises(UserError, match=message) as refused:
        from_catalog(catalog(label=cells), kind=kind)
    assert "\n" not in str(refused.value)


def test_unknown_column():
    with pytest.raises(UserError, match=r"The bank has no column 'lable'. Did you mean label\?"):
        from_catalog(catalog(label=list("xyxy"), split=[""] * 4), "lable")
    with pytest.raises(UserError, match=r"has no column 'q'\. It has id, label"):
        from_catalog(catalog(label=list("xyxy")), "q")


def test_csv_joined_by_id(tmp_path):
    ids = ["x/a", "x/b", "x/c"]
    path = write(tmp_path / "t.csv", "ID,score,label\nb.mp4,1,u\nx/a,2.5,v\nz,9,u\n\n")
    targets = from_csv(path, ids, None)
    assert plain(targets) == {"x/b": 0, "x/a": 1}
    assert targets.notes == (
        "videos of t.csv that are not in the bank: 1, e.g. 'z'",
        "videos without a target, left out: 1 of 3, e.g. x/c",
    )
    assert plain(from_csv(path, ids, "score", kind="value")) == {"x/b": 1, "x/a": 2.5}
    assert plain(from_csv(write(tmp_path / "one.csv", "n;id\n3;b\n4;c\n"), ids, None, kind="value")) == {
        "x/b": 3,
        "x/c": 4,
    }


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("name,label\na,u\n", None, "has no column id, but name, label"),
        ("id,u,v\na,1,2\n", None, r"has several columns \(u, v\)"),
        ("id,score\na,1\n", "sore", "t.csv has no column 'sore'. Did you mean score"),
        ("id,label\na,u\na.mp4,v\n", None, "line 3: 'a' is there a second time"),
        ("id,label\nz,u\n", None, r"names no video of the bank, e.g. \['z'\]; the bank has 'a'"),
        ("id,label\na,u\nb,\n", None, "t.csv, column label has one class only, 'u'"),
        ("", None, "is empty"),
    ],
)
def test_refused_csv(tmp_path, text, column, message):
    with pytest.raises(UserError, match=message):
        from_csv(write(tmp_path / "t.csv", text), list("abc"), column)


SEGMENTS = "id,start,end,label\na,0,0.3,walk\na,0.3,0.5,run\na,0.8,1.0,walk\nb,0.55,0.58,run\nc,0.0,1.0,walk\n"


def test_segments_mask_what_nobody_labelled(tmp_path):
    targets = from_segments(write(tmp_path / "s.csv", SEGMENTS), CLOCKS)
    assert (targets.kind, targets.per_frame, targets.labels) == ("class", True, ("run", "walk"))
    assert plain(targets) == {"a": [1, 1, 1, 0, 0, IGNORED, IGNORED, IGNORED, 1, 1], "c": [1] * 10}
    assert targets.values["a"].dtype == np.int64
    assert targets.notes == (
        "segments that hold no banked frame: 1, e.g. s.csv, line 5",
        "frames that nobody labelled, masked: 3 of 20",
        "videos without labelled frames, left out: 1 of 3, e.g. b",
    )


def test_segments_with_a_background(tmp_path):
    path = write(tmp_path / "s.csv", SEGMENTS)
    targets = from_segments(path, CLOCKS, background="none")
    assert targets.labels == ("none", "run", "walk")
    assert plain(targets)["a"] == [2, 2, 2, 1, 1, 0, 0, 0, 2, 2]
    assert plain(targets)["b"] == [0] * 10
    assert "frames without a segment, labelled 'none': 13 of 30" in targets.notes
    assert from_segments(path, CLOCKS, background="run").labels == ("run", "walk")


def test_segments_of_several_labels(tmp_path):
    path = write(tmp_path / "s.csv", "id,start,end,label\na,0,0.3,eat\na,0.2,0.5,sit\na,0.1,0.2,eat\n")
    targets = from_segments(path, {"a": clock(6)}, kind="multilabel")
    assert targets.labels == ("eat", "sit")
    assert plain(targets) == {"a": [[1, 0], [1, 0], [1, 1], [0, 1], [0, 1], [0, 0]]}
    assert targets.values["a"].dtype == np.float32
    assert targets.notes == ("frames without a segment, taken as without any label: 1 of 6",)
    alone = from_segments(path, {"a": clock(6)}, kind="multilabel", background="nothing")
    assert plain(alone)["a"][-1] == [0, 1, 0]
    assert alone.labels == ("eat", "nothing", "sit")


def test_later_segment_wins_where_overlap_is_allowed(tmp_path):
    path = write(tmp_path / "s.csv", "id,start,end,label\na,0.2,0.4,y\na,0,1.0,x\n")
    with pytest.raises(UserError, match="--allow-overlap"):
        from_segments(path, CLOCKS)
    targets = from_segments(path, CLOCKS, allow=frozenset(["overlap"]))
    assert plain(targets)["a"] == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0]


def test_subsampled_bank_takes_the_label_of_its_own_frames(tmp_path):
    labels = ["x"] * 7 + ["y"] * 5 + ["z"] * 8
    path = write(tmp_path / "groundTruth" / "a.txt", "\n".join(labels) + "\n")
    targets = from_segments(path.parent, {"a": clock(5, stride=4)})
    assert [targets.labels[code] for code in targets.values["a"]] == [labels[frame] for frame in range(0, 20, 4)]


def test_frames_outside_a_table_are_masked_background_or_not(tmp_path):
    path = write(tmp_path / "a.txt", "x\ny\n\nx\n")
    targets = from_segments(path, {"a": clock(6)}, background="y")
    assert plain(targets) == {"a": [0, 1, 1, 0, IGNORED, IGNORED]}


def test_cholec80_tools_hold_and_none_is_an_answer(tmp_path):
    write(tmp_path / "video01-tool.txt", "Frame\tGrasper\tHook\n0\t1\t0\n3\t0\t0\n6\t1\t1\n")
    write(tmp_path / "video02-tool.txt", "Frame\tGrasper\tHook\n0\t0\t0\n3\t0\t0\n")
    known = {"video01": clock(8), "video02": clock(8)}
    targets = from_segments(tmp_path, known, kind="multilabel")
    assert plain(targets)["video01"] == [[1, 0]] * 3 + [[0, 0]] * 3 + [[1, 1]] * 2
    assert targets.values["video02"][:6].tolist() == [[0, 0]] * 6
    assert np.isnan(targets.values["video02"][6:]).all()
    assert "frames that nobody labelled, masked: 2 of 16" in targets.notes
    with pytest.raises(UserError, match="begin before another one ends: 1"):
        from_segments(tmp_path, known)


def test_boris_knows_a_video_by_its_media_file_or_its_observation(tmp_path):
    head = "Observation id,Media file,Subject,Behavior,Behavior type,Start (s),Stop (s)\n"
    rows = "first,/home/me/mice/a.mp4,s1,groom,STATE,0.2,0.4\nfirst,/home/me/mice/a.mp4,s2,rear,STATE,0.3,0.6\n"
    path = write(tmp_path / "boris.csv", head + rows + "b,NA,,rear,STATE,0,0.5\n")
    known = {"day1/a": clock(6), "b": clock(6)}
    targets = from_segments(path, known, kind="multilabel")
    assert targets.labels == ("groom", "rear")
    assert plain(targets)["day1/a"] == [[0, 0], [0, 0], [1, 0], [1, 1], [0, 1], [0, 1]]
    assert plain(targets)["b"] == [[0, 1]] * 5 + [[0, 0]]
    twice = write(tmp_path / "coders.csv", head + rows + "second,a.mp4,s1,groom,STATE,0,0.5\n")
    with pytest.raises(UserError, match="'first' and 'second' are both the video 'day1/a'"):
        from_segments(twice, known, kind="multilabel")


def test_refused_segments(tmp_path):
    with pytest.raises(UserError, match=r"of one class, 'walk'.*--background"):
        from_segments(write(tmp_path / "s.csv", "id,start,end,label\na,0,1,walk\n"), CLOCKS)
    with pytest.raises(UserError, match="No banked frame lies in a segment"):
        from_segments(write(tmp_path / "s.csv", "id,start,end,label\na,0.01,0.02,walk\n"), CLOCKS)
    with pytest.raises(UserError, match="holds no segment with a label"):
        from_segments(write(tmp_path / "s.csv", "id,start,end,label\na,0,1,\n"), CLOCKS)
    with pytest.raises(UserError, match="holds no segment with a label"):
        from_segments(write(tmp_path / "s.csv", "id,start,end,label\n"), CLOCKS)


def test_real_segments_of_falls(shared):
    """Real annotations of thermal videos, against a loop over frames."""
    path = shared / "data" / "fir" / "segments.csv"
    table = pd.read_csv(path)
    known = {
        video_id: Clock(np.arange(2500) / 25, np.arange(2500), 25.0, 100.0, 2500) for video_id in table["id"].unique()
    }
    targets = from_segments(path, known)
    assert len(targets.labels) == 7
    for video_id, values in targets.values.items():
        rows = table[table["id"] == video_id]
        for frame in range(0, 2500, 7):
            held = rows[(rows["start"] <= frame / 25) & (frame / 25 < rows["end"])]["label"].tolist()
            assert ([targets.labels[values[frame]]] if values[frame] != IGNORED else []) == held


def test_values_by_time_and_by_frame(tmp_path):
    known = {"x/a": clock(4), "x/b": clock(4, stride=2)}
    path = write(tmp_path / "v.csv", "id,time,speed\na,0.01,1\na,0.12,2\na,0.14,3\na,0.31,4\nb,0.4,5\nb,9,6\nq,0,7\n")
    targets = from_frame_values(path, known, None)
    assert (targets.kind, targets.per_frame, targets.outputs) == ("value", True, 1)
    np.testing.assert_array_equal(targets.values["x/a"], np.array([1, 2, np.nan, 4], np.float32))
    np.testing.assert_array_equal(targets.values["x/b"], np.array([np.nan, np.nan, 5, np.nan], np.float32))
    assert targets.values["x/a"].dtype == np.float32
    assert targets.notes == (
        "videos of v.csv that are not in the bank: 1, e.g. 'q'",
        "values of v.csv that belong to no banked frame: 2 of 6",
        "frames without a value, masked: 4 of 8",
    )
    frames = write(tmp_path / "b.csv", "frame,time,heart rate,note\n0,7,1,\n1,8,2,\n2,9,,\n4,10,4,\n")
    by_frame = from_frame_values(frames, known, "heart rate")
    np.testing.assert_array_equal(by_frame.values["x/b"], np.array([1, np.nan, 4, np.nan], np.float32))
    assert by_frame.notes[0] == "rows of b.csv without a value: 1, e.g. line 4"


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("id,label\na,1\n", None, "neither a column frame nor a column time, but id, label"),
        ("id,frame,u,v\na,1,1,1\n", None, "several columns"),
        ("id,frame,u\na,1,1\na,2,x\n", None, "line 3: u is 'x', not a finite number"),
        ("id,frame,u\na,1,1\na,1,2\n", None, "line 3: frame 1 does not rise"),
        ("id,frame,u\na,1,1\na,2,1\n", None, "all 2 values are 1"),
        ("id,frame,u\na,100,1\na,200,2\n", None, "No row of v.csv belongs to a banked frame"),
        ("id,time,u\nn,0,1\nn,1,2\n", None, "'n' has no clock"),
        ("id,time,u\na,0,1\n", "w", "v.csv has no column 'w'"),
    ],
)
def test_refused_values(tmp_path, text, column, message):
    known = {**CLOCKS, "n": Clock(np.full(3, np.nan), np.arange(3), np.nan, np.nan)}
    with pytest.raises(UserError, match=message):
        from_frame_values(write(tmp_path / "v.csv", text), known, column)


def test_a_bank_from_end_to_end(out, tmp_path):
    from tests.banks import fill

    fill(out, {"walk/a": 20, "run/b": 20})
    with Bank(out) as bank:
        targets = from_segments(
            write(tmp_path / "s.csv", "id,start,end,label\na,0,1,x\nb,1,2,y\n"), clocks(bank), background="z"
        )
        assert from_catalog(bank.catalog).labels == ("run", "walk")
    assert plain(targets) == {"walk/a": [0] * 10 + [2] * 10, "run/b": [2] * 10 + [1] * 10}
