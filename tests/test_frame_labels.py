"""Files of labels over time as MS-TCN, Cholec80, BORIS and people's own tables have them."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.frame_labels import Spans, read_spans

BORIS_OLD = """\
Observation id,observation #1,,,,,,,
,,,,,,,,
Media file(s),,,,,,,,
,,,,,,,,
Player #1,C:\\videos\\mouse 25fps.mp4,,,,,,,
,,,,,,,,
Observation date,2016-11-27 01:57:26,,,,,,,
Description,,,,,,,,
Time offset (s),0.0,,,,,,,
independent variables,,,,,,,,
variable,value,,,,,,,
b,"text, with a comma",,,,,,,
,,,,,,,,
Time,Media file path,Total length,FPS,Subject,Behavior,Behavioral category,Comment,Status
3.300,C:\\videos\\mouse 25fps.mp4,359.960,25.0,subject1,groom,,,START
5.000,C:\\videos\\mouse 25fps.mp4,359.960,25.0,subject2,groom,,,START
7.750,C:\\videos\\mouse 25fps.mp4,359.960,25.0,subject1,groom,,,STOP
8.000,C:\\videos\\mouse 25fps.mp4,359.960,25.0,subject1,rear,,,POINT
9.900,C:\\videos\\mouse 25fps.mp4,359.960,25.0,subject2,groom,,,STOP
"""
NEW_HEAD = (
    "Observation id\tObservation date\tDescription\tObservation duration\tObservation type\tSource\tTime offset (s)\t"
    "Media duration (s)\tFPS\tSubject\tBehavior\tBehavioral category\tModifier #1\tBehavior type\tTime\t"
    "Media file name\tImage index\tImage file path\tComment\n"
)
AGGREGATED_HEAD = (
    "Observation id,Observation date,Description,Media file,Total length,FPS,Subject,Behavior,Behavioral category,"
    "Modifiers,Behavior type,Start (s),Stop (s),Duration (s),Comment start,Comment stop\n"
)


def new_event(time: float, behaviour: str, kind: str, modifier: str = "", media: str = "/v/a.mp4", offset: float = 0.0):
    source = f"Media file(s)\tplayer #1:{media}"
    return (
        f"obs\t2024-01-01 10:00:00\t\t60\t{source}\t{offset}\t60.000\t25.000\tNo focal subject\t{behaviour}\t\t"
        f"{modifier}\t{kind}\t{time:.3f}\t{media}\t{int(time * 25)}\tNA\t\n"
    )


def aggregated(observation: str, media: str, behaviour: str, start: float, stop: float, kind: str = "STATE") -> str:
    length = "NA" if kind == "POINT" else f"{stop - start:.3f}"
    row = f"{observation},2016-12-01 23:01:31,,{media},539.920,25.0,No focal subject,{behaviour},,,{kind}"
    return f"{row},{start:.3f},{stop:.3f},{length},,\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def rows(spans: Spans) -> list[tuple]:
    return list(spans.table[["video", "start", "end", "label"]].itertuples(index=False, name=None))


def test_segments(tmp_path):
    text = "\ufeffID;Start;End;Label;rater\r\na;0;1.5;walk;x\r\n\r\nb/c;1.5;2;run, fast;x\r\na;3;4;;y\r\n"
    spans = read_spans(write(tmp_path / "s.csv", text))
    assert (spans.format, spans.unit, spans.covered) == ("segments", "seconds", {})
    assert rows(spans) == [("a", 0, 1.5, "walk"), ("b/c", 1.5, 2, "run, fast")]
    assert spans.table["where"].tolist() == ["s.csv, line 2", "s.csv, line 4"]
    assert spans.left_out["segments without a label, left out"] == ["s.csv, line 5"]


def test_segments_in_frames_and_by_file_name(tmp_path):
    write(tmp_path / "labels" / "x" / "a.csv", "start_frame,end_frame,label\n0,25,walk\n25,30,run\n")
    write(tmp_path / "labels" / "b.tsv", "label\tend_frame\tstart_frame\nwalk\t9\t5\n")
    write(tmp_path / "labels" / ".hidden.csv", "junk")
    spans = read_spans(tmp_path / "labels")
    assert spans.unit == "frames"
    assert rows(spans) == [("b", 5, 9, "walk"), ("x/a", 0, 25, "walk"), ("x/a", 25, 30, "run")]


def test_seconds_go_before_frames(tmp_path):
    text = "id,start_frame,end_frame,start,end,label\na,0,25,0,1,walk\n"
    spans = read_spans(write(tmp_path / "s.csv", text))
    assert (spans.unit, rows(spans)) == ("seconds", [("a", 0, 1, "walk")])


def test_ms_tcn(tmp_path):
    folder = tmp_path / "groundTruth"
    write(folder / "P03_cereals.txt", "SIL\nSIL\n\ntake_bowl\r\ntake_bowl\r\nSIL\n")
    write(folder / "P10_tea.txt", "SIL\n")
    spans = read_spans(folder)
    assert spans.unit == "frames"
    assert rows(spans) == [
        ("P03_cereals", 0, 2, "SIL"),
        ("P03_cereals", 3, 5, "take_bowl"),
        ("P03_cereals", 5, 6, "SIL"),
        ("P10_tea", 0, 1, "SIL"),
    ]
    assert spans.table["where"].tolist()[1] == "P03_cereals.txt, line 4"
    assert spans.covered == {"P03_cereals": (0, 5, 6), "P10_tea": (0, 0, 1)}


def test_cholec80_phases(tmp_path):
    text = "Frame\tPhase\n" + "".join(
        f"{frame}\t{'Preparation' if frame < 3 else 'CalotTriangleDissection'}\n" for frame in range(5)
    )
    spans = read_spans(write(tmp_path / "video01-phase.txt", text))
    assert rows(spans) == [("video01-phase", 0, 3, "Preparation"), ("video01-phase", 3, 5, "CalotTriangleDissection")]
    assert spans.names == {"video01-phase": ("video01-phase", "video01")}


def test_cholec80_tools(tmp_path):
    text = "Frame\tGrasper\tHook\n0\t1\t0\n25\t1\t1\n50\t0\t0\n75\t1\t0\n"
    spans = read_spans(write(tmp_path / "video02-tool.txt", text))
    assert spans.unit == "frames"
    assert rows(spans) == [
        ("video02-tool", 0, 50, "Grasper"),
        ("video02-tool", 75, 100, "Grasper"),
        ("video02-tool", 25, 50, "Hook"),
    ]
    assert spans.covered == {"video02-tool": (0, 75, 100)}


def test_one_hot_in_seconds_with_ids(tmp_path):
    text = "time,id,Walk,sit\n0.0,a,1,0\n0.5,a,1,0\n0,b,0,0\n1,b,0,1.0\n3,b,0,0\n"
    spans = read_spans(write(tmp_path / "onehot.csv", text))
    assert spans.unit == "seconds"
    assert rows(spans) == [("a", 0, 1, "Walk"), ("b", 1, 3, "sit")]
    assert spans.covered == {"a": (0, 0.5, 1), "b": (0, 3, 4.5)}


def test_frame_table_with_ids_and_numbers_for_labels(tmp_path):
    spans = read_spans(write(tmp_path / "t.csv", "id,frame,label\na,0,1\na,1,\na,2,0\nb,0,0\n"))
    assert rows(spans) == [("a", 0, 1, "1"), ("a", 2, 3, "0"), ("b", 0, 1, "0")]


def test_boris_tabular_events_of_old(tmp_path):
    spans = read_spans(write(tmp_path / "export.csv", BORIS_OLD))
    assert (spans.format, spans.unit) == ("BORIS tabular events", "seconds")
    assert rows(spans) == [("observation #1", 3.3, 7.75, "groom"), ("observation #1", 5, 9.9, "groom")]
    media = "C:\\videos\\mouse 25fps.mp4"
    assert spans.names == {"observation #1": (media, "mouse 25fps.mp4", "observation #1")}
    assert spans.left_out["point events, left out"] == ["export.csv, line 18"]


def test_boris_tabular_events_of_now(tmp_path):
    text = NEW_HEAD + "".join(
        [
            new_event(1, "dig", "START", "left"),
            new_event(2, "dig", "START", "right"),
            new_event(3, "rear", "POINT"),
            new_event(5, "dig", "STOP", "left"),
            new_event(6, "dig", "STOP", "right"),
            new_event(6, "rest", "START"),
            new_event(8, "rest", "STOP"),
            new_event(8, "rest", "START"),
            new_event(9, "rest", "STOP"),
        ]
    )
    spans = read_spans(write(tmp_path / "export.tsv", text))
    assert rows(spans) == [
        ("obs", 1, 5, "dig"),
        ("obs", 2, 6, "dig"),
        ("obs", 6, 8, "rest"),
        ("obs", 8, 9, "rest"),
    ]
    assert spans.names == {"obs": ("/v/a.mp4", "a.mp4", "obs")}
    assert len(spans.left_out["events whose modifiers are passed over"]) == 4


def test_boris_aggregated_events(tmp_path):
    text = AGGREGATED_HEAD + "".join(
        [
            aggregated("observation #2", "a 25fps.mp4", "s", 1.8, 8.125),
            aggregated("observation #2", "a 25fps.mp4", "p", 32.825, 32.825, "POINT"),
            aggregated("live", "NA", "s", 10.25, 23.35),
        ]
    )
    spans = read_spans(write(tmp_path / "aggregated.csv", text))
    assert rows(spans) == [("observation #2", 1.8, 8.125, "s"), ("live", 10.25, 23.35, "s")]
    assert spans.names == {"observation #2": ("a 25fps.mp4", "observation #2"), "live": ("live",)}
    assert spans.left_out["point events, left out"] == ["aggregated.csv, line 3"]


TWO_MEDIA = AGGREGATED_HEAD + aggregated("o", "a.mp4", "s", 1, 2) + aggregated("o", "b.mp4", "s", 200, 201)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "name,when\nx,1\n", "no known format. Its columns are name, when. Known are segments"),
        ("a.csv", "walk\nwalk\n", "first line is 'walk'"),
        ("a.txt", "read me first\n", "no known format"),
        ("a.txt", "\n\n", "no known format"),
        ("a.txt", '{"a":\n[1]}\n', "no known format"),
        ("a.csv", "id,start,end,label\na,1,x,walk\na,1,y,walk\n", r"line 2: end is 'x', .*\(2 such cells\)"),
        ("a.csv", "id,start,end,label\na,1,inf,walk\n", "end is 'inf'"),
        ("a.csv", "id,start,end,label\na,1,,walk\n", "line 2: end is ''"),
        ("a.csv", "id,start,end,label\na,2,2,walk\n", "line 2: a segment from 2 to 2; it takes 0 ≤ start < end"),
        ("a.csv", "id,start,end,label\na,-1,2,walk\n", "from -1 to 2"),
        ("a.csv", "id,start,end,label\n,1,2,walk\n", "line 2: the id is empty"),
        ("a.csv", "id,start,end,label\na,1,2,walk,fast\n", "a.csv is no table below its line 1"),
        ("a.csv", 'id,start,end,label\na,1,2,"walk\n', "quote closed"),
        ("a.csv", "id,start,end,label,label\n", "two columns label"),
        ("a.csv", "frame,walk,run\n0,1,2\n", "column run holds '2', not 0 or 1"),
        ("a.csv", "frame,walk\n", "no row"),
        ("a.csv", "frame,walk\n0,1\n0,1\n", "line 3: frame is '0'; it must rise"),
        ("a.csv", "frame,label\n-1,a\n0,a\n", "frame is '-1'; it must rise from 0"),
        ("a.csv", "time,walk\n0.5,1\n", "one row of 'a', at 0.5 s"),
        ("a.tsv", NEW_HEAD + new_event(1, "dig", "START"), "1 START or STOP .* START of 'dig' in line 2"),
        ("a.tsv", NEW_HEAD + new_event(1, "dig", "STOP"), "e.g. STOP of 'dig'"),
        ("a.tsv", NEW_HEAD + new_event(1, "dig", "START") + new_event(2, "dig", "START"), "2 START or STOP without"),
        ("a.tsv", NEW_HEAD + new_event(1, "dig", "STATE"), "'STATE' is not START, STOP or POINT"),
        ("a.tsv", NEW_HEAD + new_event(1, "dig", "POINT", offset=5.0), "shifted by an offset of 5.0 s"),
        ("a.csv", TWO_MEDIA, "'o' runs over several media files"),
        ("a.csv", AGGREGATED_HEAD + aggregated("o", "a.mp4", "s", 3, 2), "'s' from 3 to 2 s"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as refused:
        read_spans(write(tmp_path / name, text))
    assert "\n" not in str(refused.value)


def test_refused_places(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        read_spans(tmp_path / "missing.csv")
    write(tmp_path / "empty" / "a.png", "")
    with pytest.raises(UserError, match=r"holds no \.txt, \.csv or \.tsv file"):
        read_spans(tmp_path / "empty")
    (tmp_path / "a.csv").write_bytes(b"id,start,end,label\n\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_spans(tmp_path / "a.csv")
    write(tmp_path / "mixed" / "video01-phase.txt", "Frame\tPhase\n0\tx\n")
    write(tmp_path / "mixed" / "video01-tool.txt", "Frame\tHook\n0\t1\n")
    with pytest.raises(UserError, match="mixes frame tables in frames and one-hot tables in frames"):
        read_spans(tmp_path / "mixed")
    write(tmp_path / "twice" / "a.txt", "x\n")
    write(tmp_path / "twice" / "a.TXT", "x\n")
    with pytest.raises(UserError, match="two files of 'a'"):
        read_spans(tmp_path / "twice")
