"""What is named on a command line: several files, folders, patterns, and a list on standard input."""

import io
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.gathering import find_all, named
from pipeline.videos import Listed, find_videos
from stages.cli import main
from tests.clips import make_clip
from tests.commands import SETTINGS, extract, framebank, said


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that look like videos, in two class folders, and some that do not."""
    monkeypatch.chdir(tmp_path)
    for name in ("walk/a.mp4", "walk/b.mp4", "run/a.mp4", "run/deep/c.avi", "run/notes.txt", ".hidden/x.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(b"")
    return tmp_path / "videos"


def found(*words: object, all_files: bool = False) -> dict[str, str]:
    """id -> label of what some words name."""
    table = find_videos(named([Path(str(word)) for word in words]), all_files=all_files).table
    return dict(zip(table["id"], table["label"], strict=True))


def listing(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


WHOLE = {"run/a": "run", "run/deep/c": "run", "walk/a": "walk", "walk/b": "walk"}


def test_a_pattern_gives_the_ids_and_labels_of_its_folder(folder: Path) -> None:
    assert found(folder) == WHOLE
    assert found("videos/**/*.*") == WHOLE, "hidden files and other suffixes are passed over"
    assert found("videos/**/*.mp4") == {name: label for name, label in WHOLE.items() if name[-1] != "c"}
    assert found("videos/w*/a.mp4") == {"walk/a": "walk"}, "of its own folder, however few fit"
    assert found(f"{folder}/*") == WHOLE, "folders fit too"
    assert "run/notes" in found("videos/run/*", "videos/walk", all_files=True)
    assert find_videos(named([Path("videos/**/*.*")])).ignored == {".txt": 1}
    with pytest.raises(UserError, match=r"Nothing fits the pattern videos/\*\.mov"):
        named([Path("videos/*.mov")])


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder: Path) -> None:
    (folder / "walk" / "x[1].mp4").write_bytes(b"")
    assert found("videos/walk/x[1].mp4") == {"x[1]": ""}


def test_several_files_and_folders_are_one_set_below_their_common_folder(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*.*") if path.suffix in (".mp4", ".avi") and path.parts[-2][0] != ".")
    assert found(*files) == found(*reversed(files)) == found(*files, *files) == WHOLE
    assert found(folder / "walk", folder / "run") == WHOLE
    assert found(folder / "walk", folder / "walk" / "a.mp4") == {"a": "", "b": ""}
    assert found("videos/walk/a.mp4", "videos/walk/b.mp4") == {"a": "", "b": ""}
    assert found("videos/run/notes.txt", "videos/run/a.mp4") == {"notes": "", "a": ""}, "what is named is taken"
    with pytest.raises(UserError, match=r"nowhere\.mp4: No such file"):
        named([Path("nowhere.mp4"), folder])


def test_an_own_output_among_the_files_is_left_out(folder: Path) -> None:
    paths = (folder / "walk" / "a.mp4", folder / "walk" / "b.mp4")
    table = find_videos(Listed(paths, folder), exclude=[paths[1]]).table
    assert table["id"].tolist() == ["walk/a"]


def test_a_list_on_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing(b"videos/walk/b.mp4\n\nvideos/run/a.mp4\r\nvideos/run/deep/c.avi\nvideos/walk/a.mp4", monkeypatch)
    assert found("-") == WHOLE
    (folder / "walk" / "line\nbreak.mp4").write_bytes(b"")
    listing(b"videos/walk/line\nbreak.mp4\0videos/walk/a.mp4\0", monkeypatch)
    assert found("-") == {"line%0Abreak": "", "a": ""}
    listing(b"videos/walk/a.mp4\n\nvideos/gone.mp4\n", monkeypatch)
    with pytest.raises(UserError, match=r"standard input, line 3: videos/gone.mp4: No such file"):
        named([Path("-")])
    listing(b"\n", monkeypatch)
    with pytest.raises(UserError, match="nothing on standard input"):
        named([Path("-")])
    monkeypatch.setattr(sys, "stdin", None)  # closed by the caller
    with pytest.raises(UserError, match="nothing on standard input"):
        named([Path("-")])


def test_folders_of_images_are_videos_in_a_list_too(folder: Path) -> None:
    for name in ("frames1", "frames2"):
        (folder / name).mkdir()
        (folder / name / "0.jpg").write_bytes(b"")
    assert found(folder / "frames1", folder / "frames2") == {"frames1": "", "frames2": ""}
    assert found("videos/frames1*") == {"frames1": ""}
    assert found("videos/frames*") == {"frames1": "", "frames2": ""}


def test_a_manifest_is_taken_alone_by_extract_and_with_others_by_predict(folder: Path) -> None:
    (folder / "list.csv").write_text("path,id\nwalk/a.mp4,first\n")
    assert found(folder / "list.csv") == {"first": ""}
    for words in ((folder / "list.csv", folder / "run"), (folder / "walk", folder / "list.csv")):
        with pytest.raises(UserError, match=r"list\.csv: a manifest says by itself what there is"):
            found(*words)
    table, _ = find_all([folder / "list.csv", folder / "run" / "a.mp4", Path("videos/walk/b.*")])
    assert table["id"].tolist() == ["first", "a", "b"]


def banked(words: list[object], out: Path, text: str = "") -> Result:
    asked = [str(word) for word in ("extract", *words, "--out", out, *SETTINGS)]
    return CliRunner().invoke(main, asked, input=text)


def test_a_list_can_be_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        make_clip(tmp_path / "data" / f"class{number % 2}" / f"clip{number}.mp4", frames=4)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.mp4"))
    out = tmp_path / "bank.h5"
    first = banked(["-"], out, "\n".join(files[:3]))
    assert first.exit_code == 0
    assert said(first, "Found") == f"3 videos in {tmp_path / 'data'} (list)"
    again = banked(list(reversed(files)), out)
    assert said(again, "To do") == "1 video · 3 videos done before"
    assert said(banked(["data/**/*.mp4"], out), "To do").startswith("nothing · 4 videos done before")
    assert said(extract(tmp_path / "data", out), "To do").startswith("nothing · 4 videos done before")
    assert said(banked([files[0], files[1]], out), "To do").startswith("nothing · 2 videos done before"), (
        "of one folder"
    )
    with Bank(out) as bank:
        assert list(bank) == [file.removeprefix("data/").removesuffix(".mp4") for file in files]
        assert bank.catalog["label"].tolist() == ["class0", "class0", "class1", "class1"]
        assert bank.config["data"] == str(tmp_path / "data")


def test_a_list_that_is_wrong_touches_nothing(tmp_path: Path) -> None:
    for words, text, message in (
        (["-"], "", "nothing on standard input"),
        (["-"], "gone.mp4\n", "standard input, line 1: gone.mp4"),
        ([tmp_path / "*.mp4"], "", "Nothing fits the pattern"),
    ):
        result = banked(words, tmp_path / "bank.h5", text)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert framebank("extract", "--out", tmp_path / "bank.h5").exit_code == 2
