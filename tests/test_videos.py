"""What is found in folders, manifests and files, and what is said of what is passed over."""

import os
import subprocess
import sys
from math import isnan
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.features import CATALOG, FAILURES
from pipeline.headers import probe_videos
from pipeline.videos import COLUMNS, RESERVED_COLUMNS, absolute_path, find_videos, label_order
from tests.clips import make_clip


def put(folder: Path, *names: str) -> Path:
    """Empty files: finding videos opens none of them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def manifest(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding)
    return folder / name


def ids(data: Path, **options) -> list[str]:
    return find_videos(data, **options).table["id"].tolist()


def labels(data: Path, **options) -> dict[str, str]:
    table = find_videos(data, **options).table
    return dict(zip(table["id"], table["label"], strict=True))


# Folders


def test_class_folders(tmp_path):
    put(tmp_path, "walk/a10.mp4", "walk/a2.MP4", "run/b.AVI", "run/deep/c.gif", "top.webm")
    found = find_videos(tmp_path)
    assert found.origin == "folder"
    assert found.ignored == {}
    assert found.notes == []
    table = found.table
    assert tuple(table.columns) == COLUMNS
    assert table["id"].tolist() == ["run/b", "run/deep/c", "top", "walk/a2", "walk/a10"]
    assert table["label"].tolist() == ["run", "run", "", "walk", "walk"]
    assert table["path"].tolist()[0] == str(tmp_path / "run/b.AVI")
    assert set(table["kind"]) == {"video"}
    assert not table[["split", "group", "crop"]].to_numpy().any()
    assert table[["start", "end", "fps"]].isna().to_numpy().all()
    assert table.index.tolist() == [0, 1, 2, 3, 4]
    for column in COLUMNS:
        assert table[column].dtype == ("float64" if column in ("start", "end", "fps") else "object")


def test_flat_folder_is_unlabelled(tmp_path):
    put(tmp_path, "b.mp4", "a.mp4")
    assert labels(tmp_path) == {"a": "", "b": ""}


def test_other_files_are_counted_and_tried_when_asked_to(tmp_path):
    put(tmp_path, "a.mp4", "sound.MP3", "notes.txt", "more.txt", "README", "cover.jpg", "._a.mp4", ".DS_Store")
    put(tmp_path, ".git/x.mp4")
    found = find_videos(tmp_path)
    assert found.table["id"].tolist() == ["a"]
    assert found.ignored == {"(none)": 1, ".jpg": 1, ".mp3": 1, ".txt": 2, "hidden": 3}
    found = find_videos(tmp_path, all_files=True)
    assert found.table["id"].tolist() == ["a", "more", "notes", "README", "sound"]
    assert found.ignored == {".jpg": 1, "hidden": 3}


def test_folders_of_images_among_videos(tmp_path):
    put(tmp_path, "walk/one/f2.png", "walk/one/f10.JPG", "walk/one/times.txt", "walk/two.mp4", "run/seq.1/0.webp")
    found = find_videos(tmp_path)
    rows = found.table.set_index("id")
    assert rows["kind"].to_dict() == {"run/seq.1": "images", "walk/one": "images", "walk/two": "video"}
    assert rows["label"].to_dict() == {"run/seq.1": "run", "walk/one": "walk", "walk/two": "walk"}
    assert rows["path"]["walk/one"] == str(tmp_path / "walk/one")
    assert found.ignored == {".txt": 1}


def test_images_beside_or_above_videos_are_no_sequence(tmp_path):
    put(tmp_path, "cover.png", "walk/thumb.jpg", "walk/deep/a.mp4", "walk/seq/thumb.jpg", "walk/seq/left/1.bmp")
    found = find_videos(tmp_path)
    assert found.table["id"].tolist() == ["walk/deep/a", "walk/seq/left"]
    assert found.ignored == {".jpg": 2, ".png": 1}


def test_a_folder_of_images_alone(tmp_path):
    put(tmp_path, "fencing/1.tiff", "fencing/2.tif")
    found = find_videos(tmp_path / "fencing")
    assert found.origin == "frame folder"
    assert found.table[["id", "kind", "label"]].to_numpy().tolist() == [["fencing", "images", ""]]


def test_one_file_of_any_suffix(tmp_path):
    put(tmp_path, "a.xyz", "b.mp4")
    found = find_videos(tmp_path / "a.xyz")
    assert found.origin == "file"
    assert found.table[["id", "path", "label"]].to_numpy().tolist() == [["a", str(tmp_path / "a.xyz"), ""]]


def test_the_bank_and_other_excluded_paths_are_left_out(tmp_path):
    put(tmp_path, "a.mp4", "bank.h5", "bank.h5.parts/p.mp4", "deep/bank.h5")
    exclude = [tmp_path / "bank.h5", tmp_path / "bank.h5.parts"]
    found = find_videos(tmp_path, all_files=True, exclude=exclude)
    assert found.table["id"].tolist() == ["a", "deep/bank"]
    assert found.ignored == {}


def test_links_are_followed_and_circles_are_not(tmp_path):
    put(tmp_path / "elsewhere", "x.mp4", "inner/y.mp4")
    data = put(tmp_path / "data", "real/a.mp4")
    (data / "again").symlink_to(data / "real")  # its own place goes before a link to it
    (data / "file.mp4").symlink_to(tmp_path / "elsewhere/x.mp4")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "real/up").symlink_to(data)
    (tmp_path / "elsewhere/inner/back").symlink_to(tmp_path / "elsewhere")
    (data / "self").symlink_to(data / "self")
    assert ids(data) == ["file", "linked/inner/y", "linked/x", "real/a"]


def test_a_link_that_leads_nowhere_is_a_video_that_will_fail(tmp_path):
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    assert ids(tmp_path) == ["gone"]


def test_what_is_no_file_is_never_opened(tmp_path):
    put(tmp_path, "a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    found = find_videos(tmp_path)
    assert found.table["id"].tolist() == ["a"]
    assert found.ignored == {"(special)": 1}


def test_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    put(tmp_path, "a.mp4", "closed/b.mp4")
    scandir = os.scandir

    def failing(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    found = find_videos(tmp_path)
    assert found.table["id"].tolist() == ["a"]
    assert found.notes == [f"{tmp_path}/closed could not be read: Permission denied"]


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    put(tmp_path, name)
    row = find_videos(tmp_path).table.iloc[0]
    assert row["id"] == "caf%E9"
    assert row["path"] == str(tmp_path / name)
    assert Path(row["path"]).exists()


def test_known_files_keep_their_ids(tmp_path):
    put(tmp_path, "a.mp4", "a.avi")
    assert ids(tmp_path, known={"a": str(tmp_path / "a.mp4")}) == ["a", "a.avi"]


def test_nothing_to_find(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: No such file or directory\. Give a folder"):
        find_videos(tmp_path / "nowhere")
    with pytest.raises(UserError, match="File name too long"):
        find_videos(tmp_path / ("x" * 300))
    put(tmp_path, "a.txt", "b.mp3")
    with pytest.raises(UserError, match=r"no video \(passed over: 1 \.mp3, 1 \.txt\)\. Known suffixes: .*--all-files"):
        find_videos(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no video\. Give another folder"):
        find_videos(tmp_path / "empty", all_files=True)


def test_absolute_path(tmp_path, monkeypatch):
    put(tmp_path, "a/b/x.mp4", "a/y.mp4", "y.mp4")
    monkeypatch.chdir(tmp_path / "a")
    assert absolute_path(Path("../a/./y.mp4")) == tmp_path / "a/y.mp4"
    assert absolute_path(Path("../gone.mp4")) == tmp_path / "gone.mp4"
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    put(tmp_path, "a/z.mp4")
    assert absolute_path(tmp_path / "link/../z.mp4") == tmp_path / "link/../z.mp4"  # a/z.mp4, not z.mp4
    assert absolute_path(tmp_path / "link/../y.mp4") == tmp_path / "link/../y.mp4"  # a/y.mp4, not y.mp4


# Labels and groups


@pytest.fixture
def deep(tmp_path) -> Path:
    return put(tmp_path / "deep", "train/10_run/g01/x_g01_c1.mp4", "test/2_walk/y_g02_c1.mp4", "z.mp4")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (None, ["test", "train", ""]),
        ("1", ["test", "train", ""]),
        ("2", ["2_walk", "10_run", ""]),
        ("3", ["", "g01", ""]),
        ("-1", ["2_walk", "g01", ""]),
        ("-2", ["test", "10_run", ""]),
        ("none", ["", "", ""]),
        (r"_(g\d+)_", ["g02", "g01", ""]),
        (r"g\d+", ["g02", "g01", ""]),
        (r"(\d+)_walk|z\.mp4$", ["2", "", ""]),
    ],
)
def test_labels_from_the_path(deep, rule, expected):
    table = find_videos(deep, label_from=rule).table
    assert table["id"].tolist() == ["test/2_walk/y_g02_c1", "train/10_run/g01/x_g01_c1", "z"]
    assert table["label"].tolist() == expected
    if rule is not None:
        assert find_videos(deep, group_from=rule).table["group"].tolist() == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("0", "--label-from 0 is no level: 1 is the first"),
        ("9", "--label-from 9 gives nothing for any of 3 videos, e.g. .*Give a level"),
        ("nothing", "--label-from nothing gives nothing"),
        ("(", r"--label-from \( is not a regular expression"),
    ],
)
def test_rules_that_give_nothing(deep, rule, message):
    with pytest.raises(UserError, match=message):
        find_videos(deep, label_from=rule)


def test_labels_can_be_stored_as_utf8(tmp_path):
    put(tmp_path, os.fsdecode(b"caf\xe9/a.mp4"), "e\u0301/b.mp4")
    assert sorted(labels(tmp_path).values()) == ["caf%E9", "\u00e9"]


def test_class_order():
    assert label_order(["10_b", "2_a", "", "2_a", "1_z"]) == ["1_z", "2_a", "10_b"]
    assert label_order(["walk", "Run", "jump"]) == ["jump", "Run", "walk"]


# Manifests


def test_manifest_with_everything(tmp_path):
    put(tmp_path, "clips/a.mp4", "seq/1.png")
    header = "Path,id,label,split,group,start,end,fps,crop_x,crop_y,crop_w,crop_h,weather,site no"
    path = manifest(
        tmp_path,
        f"{header}\nclips/a.mp4,v/2,NA,train,g1,0.5,2,,10,20,30,40.0,,07\n\nseq,v/10,null,,g2,,,12.5,,,,,wet,8\n",
    )
    found = find_videos(path)
    assert found.origin == "manifest"
    assert found.notes == []
    table = found.table
    assert tuple(table.columns) == (*COLUMNS, "weather", "site no")
    first, second = table.to_dict("records")
    assert [first["id"], second["id"]] == ["v/2", "v/10"]
    assert [first["path"], second["path"]] == [str(tmp_path / "clips/a.mp4"), str(tmp_path / "seq")]
    assert [first["kind"], second["kind"]] == ["video", "images"]
    assert [first["label"], second["label"]] == ["NA", "null"]
    assert [first["split"], second["split"]] == ["train", ""]
    assert [first["group"], second["group"]] == ["g1", "g2"]
    assert [first["start"], first["end"], second["fps"]] == [0.5, 2.0, 12.5]
    assert all(isnan(value) for value in (second["start"], second["end"], first["fps"]))
    assert [first["crop"], second["crop"]] == ["10,20,30,40", ""]
    assert [first["weather"], second["weather"]] == ["", "wet"]
    assert [first["site no"], second["site no"]] == ["07", "8"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_manifest_dialects(tmp_path, delimiter, encoding, newline):
    lines = [["path", "label", ""], ['"b, ""c"".mp4"', "ä", ""], ["a.mp4", " ö ", ""]]
    text = newline.join(delimiter.join(line) for line in lines)
    assert labels(manifest(tmp_path, text, encoding=encoding)) == {"a": "ö", 'b, "c"': "ä"}


def test_folder_is_read_by_its_manifest(tmp_path):
    put(tmp_path, "x/a.mp4", "x/b.mp4")
    manifest(tmp_path, "path\nx/a.mp4\n", "manifest.csv")
    found = find_videos(tmp_path)
    assert found.origin == "manifest"
    assert found.table[["id", "label"]].to_numpy().tolist() == [["x/a", ""]]
    assert found.notes == ["manifest.csv was read (rows: 1); videos it does not list are left out"]


def test_rule_wins_over_column(tmp_path):
    path = manifest(tmp_path, "path,label,group\nx/a.mp4,one,p\ny/b.mp4,two,q\n")
    found = find_videos(path, label_from="-1")
    assert found.table["label"].tolist() == ["x", "y"]
    assert found.table["group"].tolist() == ["p", "q"]
    assert found.notes == ["the manifest's column label gives way to --label-from -1"]


def test_missing_files_stay_in_the_table(tmp_path):
    too_long = "x" * 300
    assert ids(manifest(tmp_path, f"path\ngone.mp4\n{too_long}\n")) == ["gone", too_long]


def test_files_elsewhere(tmp_path):
    path = manifest(tmp_path / "lists", f"path\n../clips/a.mp4\n./b.mp4\n{tmp_path}/lists/c.mp4\n")
    table = find_videos(path).table
    assert table["id"].tolist() == ["%2E%2E/clips/a", "b", "c"]
    assert table["path"].tolist() == [str(tmp_path / name) for name in ("clips/a.mp4", "lists/b.mp4", "lists/c.mp4")]


def test_spans_of_one_file(tmp_path):
    rows = "path,start,end\na.mp4,2.5,10\na.mp4,,2.5\na.mp4,10,\nb.mp4,0,\n"
    assert ids(manifest(tmp_path, rows)) == ["a@0-2.5", "a@2.5-10", "a@10-end", "b"]


def test_given_ids_are_made_safe(tmp_path):
    text = "path,id\na.mp4,../x\nb.mp4,features\nc.mp4,%66ine\nd.mp4,e\u0301\n"
    assert ids(manifest(tmp_path, text)) == ["%2E%2E/x", "%66eatures", "%66ine", "\u00e9"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty. Give it a header"),
        (" \n\n", "is empty"),
        ("path\n", "lists no video"),
        ("id,label\na,b\n", r"has no column path \(its columns: id, label\)"),
        ("path,label,Label\n", "two columns label"),
        ("path,,label\n", "a column without a name"),
        ("path,km/h\n", "'km/h' cannot name a column"),
        ("path,size,codec\n", "fills these columns itself: codec, size. Rename"),
        ("path,label\na.mp4\n", "list.csv, line 2: 1 cells under a header of 2"),
        ("path,label\n\na,b.mp4,walk\n", "line 3: 3 cells under a header of 2"),
        ("path,label\n,walk\n", "line 2: '' is no path"),
        ("path,label\na\0.mp4,walk\n", "line 2: .* is no path"),
        ("path,id\na.mp4,\n", "line 2: the id '' is empty"),
        ("path,id\na.mp4,/x\n", "line 2: the id '/x' is empty or has an empty part"),
        ("path,id\na.mp4,x\nb.mp4,y\nc.mp4,x\n", "lines 2 and 4: the id 'x' is there twice"),
        ("path,start\na.mp4,soon\n", "line 2: start is 'soon', not a number"),
        ("path,end\na.mp4,inf\n", "line 2: end is 'inf', not a number"),
        ("path,start,end\na.mp4,2,2\n", "line 2: start '2', end '2'; it takes 0 ≤ start < end"),
        ("path,start\na.mp4,-1\n", "line 2: start '-1', end ''; it takes"),
        ("path,end\na.mp4,0\n", "line 2: start '', end '0'"),
        ("path,fps\na.mp4,0\n", "line 2: fps is 0, and must be above 0"),
        ("path,crop_x,crop_y,crop_w,crop_h\na.mp4,1,2,3,\n", "line 2: crop_x, crop_y, crop_w, crop_h must be whole"),
        ("path,crop_x,crop_y,crop_w,crop_h\na.mp4,1,2,3,0\n", "line 2: crop_x"),
        ("path,crop_x,crop_y,crop_w,crop_h\na.mp4,1,2,3.5,4\n", "line 2: crop_x"),
        ("path,start\na.mp4,0\n./a.mp4,\n", "lines 2 and 3 take the same span of a.mp4. Add a column id"),
        ('path,label\na.mp4,"walk\nb.mp4,run\n', "line 3: unexpected end of data. Is every quote closed"),
        ('path,label\na.mp4,"' + "x" * 200_000, "line 2: field larger than field limit"),
    ],
)
def test_faulty_manifests(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        find_videos(manifest(tmp_path, text))


def test_manifest_that_is_no_utf8_or_unreadable(tmp_path, monkeypatch):
    path = manifest(tmp_path, "path\nä.mp4\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"not UTF-8 text .* Save it as CSV in UTF-8"):
        find_videos(path)

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(UserError, match="could not be read: Permission denied"):
        find_videos(path)


def test_reserved_columns_are_those_of_the_bank():
    """A column of a manifest never overwrites what the bank itself writes."""
    own = {"id", "path", "label", "split", "group", "start", "end", "fps"}
    assert (set(CATALOG) | set(FAILURES)) - own <= RESERVED_COLUMNS


# Headers


def test_probing(tmp_path):
    make_clip(tmp_path / "b.mp4", frames=12, size=(64, 48), fps=10)
    put(tmp_path, "a.mp4")
    table = find_videos(tmp_path).table.set_index(pd.Index([7, 3]))
    headers = probe_videos(table)
    assert headers.index.tolist() == [7, 3]
    broken, good = headers.loc[7], headers.loc[3]
    assert (good["width"], good["height"], good["fps"], good["frames_declared"]) == (64, 48, 10.0, 12)
    assert good["duration"] == pytest.approx(1.2)
    assert good["codec"] == "h264"
    assert good["problem"] == ""
    assert broken["problem"]
    assert (broken["width"], broken["frames_declared"], broken["codec"]) == (0, 0, "")
    assert isnan(broken["duration"])


def test_probing_more_than_one_batch(tmp_path):
    put(tmp_path, *(f"{number}.mp4" for number in range(150)))
    headers = probe_videos(find_videos(tmp_path).table)
    assert len(headers) == 150
    assert headers["problem"].all()


def test_probing_nothing():
    headers = probe_videos(pd.DataFrame({"path": [], "kind": []}))
    assert len(headers) == 0
    assert headers["width"].dtype == "int64"


def test_finding_videos_needs_no_torch():
    code = "import sys, pipeline.videos; sys.exit(sum(name in sys.modules for name in ('torch', 'av')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode == 0


# Real data


def test_real_fights(shared):
    found = find_videos(shared / "data/fights")
    assert len(found.table) == 300
    assert found.table["label"].value_counts().to_dict() == {"fight": 150, "noFight": 150}
    assert found.table["group"].nunique() == 46
    assert not probe_videos(found.table[:20])["problem"].any()


def test_real_shapes(shared):
    table = find_videos(shared / "data/shapes").table
    assert table["label"].value_counts().to_dict() == {"circular": 45, "horizontal": 45, "vertical": 45}


def test_real_awkward_files(shared):
    found = find_videos(shared / "data/awkward", all_files=True, exclude=[shared / "data/awkward/expected.csv"])
    assert len(found.table) == 71
    assert found.ignored == {}
