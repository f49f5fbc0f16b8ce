"""UCF101's and HMDB51's own split lists, held against folders of videos."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.split_lists import Entry, read_split_lists, split_list_files
from pipeline.videos import find_videos


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write(folder: Path, **lists: str) -> Path:
    """Lists of a folder, by name without .txt."""
    folder.mkdir(exist_ok=True)
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture
def ucf101(tmp_path) -> Path:
    return write(
        tmp_path / "ucfTrainTestlist",
        classInd="1 Archery\n2 Bowling\n",
        trainlist01="Archery/v_Archery_g08_c01.avi 1\nBowling/v_Bowling_g08_c01.avi 2\r\n",
        testlist01="Archery/v_Archery_g01_c01.avi\n\n",
        trainlist02="Archery/v_Archery_g01_c01.avi 1\n",
        testlist02="Archery/v_Archery_g08_c01.avi\n",
    )


@pytest.fixture
def videos(tmp_path) -> Path:
    names = ("Archery/v_Archery_g01_c01.avi", "Archery/v_Archery_g08_c01.avi", "Bowling/v_Bowling_g08_c01.avi")
    return put(tmp_path / "videos", *names)


def splits(data: Path, *lists: Path) -> dict[str, list[str]]:
    table = find_videos(data, split_lists=lists).table
    return {column: table[column].tolist() for column in table.columns if column.startswith("split")}


def test_ucf101(videos, ucf101):
    found = find_videos(videos, split_lists=[ucf101])
    table = found.table
    assert table["split"].tolist() == ["test", "train", "train"]
    assert table["split_1"].tolist() == ["test", "train", "train"]
    assert table["split_2"].tolist() == ["train", "test", ""]
    assert table["split_1"].dtype == "object"
    assert found.notes == []


def test_one_pair_of_lists(videos, ucf101):
    lists = [ucf101 / "trainlist02.txt", ucf101 / "testlist02.txt"]
    assert splits(videos, *lists) == {"split": ["train", "test", ""], "split_2": ["train", "test", ""]}
    assert find_videos(videos, split_lists=lists).notes == [
        f"videos in no split list: 1, e.g. {videos}/Bowling/v_Bowling_g08_c01.avi"
    ]


def test_hmdb51(tmp_path):
    data = put(tmp_path / "hmdb", "brush_hair/a b.avi", "brush_hair/c.avi", "brush_hair/d.avi", "wave/c.avi")
    lists = write(
        tmp_path / "lists",
        brush_hair_test_split1="a b.avi 1 \nc.avi 2 \nd.avi 0 \n",
        wave_test_split1="c.avi\t1\n",
        brush_hair_test_split3="a b.avi 2\n",
    )
    assert splits(data, lists) == {
        "split": ["train", "test", "", "train"],
        "split_1": ["train", "test", "", "train"],
        "split_3": ["test", "", "", ""],
    }


def test_entries(tmp_path):
    lists = write(tmp_path / "lists", trainlist01="x\\y z.avi 12\nw.avi\n", wave_test_split02="c.avi 0\n")
    assert read_split_lists(split_list_files([lists])) == {
        1: [Entry("x", "y z.avi", "train"), Entry("", "w.avi", "train")],
        2: [Entry("wave", "c.avi", "")],
    }


def test_flat_folder_other_suffix_other_case_and_frames(tmp_path, ucf101):
    data = put(tmp_path / "flat", "v_archery_g01_c01.mp4", "v_Archery_g08_c01/1.jpg", "v_Bowling_g08_c01.avi")
    assert splits(data, ucf101)["split"] == ["test", "train", "train"]


def test_same_suffix_goes_first(tmp_path):
    data = put(tmp_path / "data", "a.avi", "a.mp4")
    lists = write(tmp_path / "lists", trainlist01="a.avi\n", testlist01="a.mp4\n")
    assert splits(data, lists)["split"] == ["train", "test"]


def test_other_class_does_not_count(tmp_path):
    data = put(tmp_path / "data", "run/1.avi", "walk/2.avi")
    lists = write(tmp_path / "lists", trainlist01="walk/1.avi 2\nwalk/2.avi 2\n")
    found = find_videos(data, split_lists=[lists])
    assert found.table["split"].tolist() == ["", "train"]
    assert found.notes == [
        "split-list entries that match no video: 1 of 2, e.g. walk/1.avi",
        f"videos in no split list: 1, e.g. {data}/run/1.avi",
    ]


def test_ambiguous_name_matches_nothing(tmp_path):
    data = put(tmp_path / "data", "one/a.avi", "two/a.avi", "b.avi")
    lists = write(tmp_path / "lists", trainlist01="a.avi\nb.avi\n")
    assert splits(data, lists)["split"] == ["train", "", ""]


def test_all_spans_of_a_file_are_in_its_split(tmp_path):
    data = put(tmp_path / "data", "a.avi")
    (data / "manifest.csv").write_text("path,start,end\na.avi,0,1\na.avi,1,2\n")
    assert splits(data, write(tmp_path / "lists", testlist01="a.avi\n"))["split"] == ["test", "test"]


def test_lists_beside_the_videos_are_no_videos(tmp_path):
    data = write(put(tmp_path / "data", "a.avi"), trainlist01="a.avi 1\n")
    found = find_videos(data, all_files=True, split_lists=[data])
    assert found.table["id"].tolist() == ["a"]
    assert found.ignored == {}


def test_refusals(tmp_path, videos, ucf101):
    def refused(message: str, data: Path = videos, **lists: str) -> None:
        folder = write(tmp_path / message.split()[-1].strip("."), **lists)
        with pytest.raises(UserError, match=message):
            find_videos(data, split_lists=[folder])

    refused("is no split list and no folder", notes="a.avi 1\n")
    refused("hold no entry", classInd="1 Archery\n")
    refused("hold no entry. Give", trainlist01="\n")
    refused("None of the 1 split-list entries matches", trainlist01="Diving/v.avi 1\n")
    refused("line 1: 'a.avi 3' is not a file name and 0, 1 or 2", wave_test_split1="a.avi 3\n")
    refused("line 2: 'b.avi' is not", wave_test_split1="a.avi 1\nb.avi\n")
    both = "Archery/v_Archery_g01_c01.avi\n"
    refused("split_1: .*g01_c01.avi is listed for two different uses", trainlist01=both, testlist01=both)
    (ucf101 / "trainlist03.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="could not be read as a split list"):
        find_videos(videos, split_lists=[ucf101])
    with pytest.raises(UserError, match="is no split list"):
        find_videos(videos, split_lists=[tmp_path / "missing.txt"])


@pytest.mark.parametrize("column", ["split", "split_1"])
def test_splits_from_two_sources(videos, ucf101, column):
    (videos / "manifest.csv").write_text(f"path,{column}\nArchery/v_Archery_g01_c01.avi,val\n")
    with pytest.raises(UserError, match="Leave out one"):
        find_videos(videos, split_lists=[ucf101])
