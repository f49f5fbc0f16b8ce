"""The sample set: real files, classes that differ in frame order alone, made once and never over somebody's data."""

import json
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from pipeline import samples
from pipeline.errors import UserError
from pipeline.samples import CLASSES, MARKER, make_samples

SCENES = 5  # one round of train, train, train, val, test


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("set") / "samples"
    return folder, make_samples(folder, clips_per_class=SCENES)


def decode(path: Path) -> np.ndarray:
    """All frames of a clip, (T, H, W, 3) float32."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.float32)


def nearest(frames: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each frame the index of the most similar one of `others`, (T,), and their mean difference in levels, (T,)."""
    difference = np.stack([np.abs(frame - others).mean((1, 2, 3)) for frame in frames])  # (T, T)
    return difference.argmin(1), difference.min(1)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_manifest_lists_every_clip(made: tuple[Path, pd.DataFrame]) -> None:
    folder, table = made
    assert list(table.columns) == ["path", "label", "split", "group"]
    assert sorted(table["path"]) == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.mp4"))
    assert table["label"].value_counts().to_dict() == dict.fromkeys(CLASSES, SCENES)
    assert [Path(p).parts[0] for p in table["path"]] == list(table["label"])
    assert (table.groupby("group")["label"].nunique() == len(CLASSES)).all()
    assert (table.groupby("group")["split"].nunique() == 1).all(), "a scene must not be both learned and tested"
    assert table["split"].value_counts().to_dict() == {"train": 12, "val": 4, "test": 4}


def test_clips_are_real_videos_of_varying_length(made: tuple[Path, pd.DataFrame]) -> None:
    folder, table = made
    lengths, sizes = set(), set()
    for path in table["path"]:
        with av.open(str(folder / path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            sizes.add((stream.width, stream.height))
            lengths.add(sum(1 for _ in container.decode(stream)))
    assert lengths == {20, 30, 35}
    assert all(64 <= side <= 96 for size in sizes for side in size)
    assert len(sizes) > 1


def test_classes_show_the_same_frames_in_another_order(made: tuple[Path, pd.DataFrame]) -> None:
    folder, table = made
    for _, scene in table.groupby("group"):
        clips = {label: decode(folder / path) for label, path in zip(scene["label"], scene["path"], strict=True)}
        first = clips["forwards-swelling"]
        length = len(first)
        for label, (hue_step, size_step) in CLASSES.items():
            order, difference = nearest(clips[label], first)
            assert sorted(order) == list(range(length)), "each frame of one class once in the other"
            assert difference.max() < 4, "equal up to what H.264 loses"
            steps = set(np.diff(order) % length)
            # (P, Q) have no common divisor, so exactly one step k has k = ±1 (mod P) and k = ±1 (mod Q).
            expected = {k for k in range(length) if (k - hue_step) % 5 == 0 and (k - size_step) % (length // 5) == 0}
            assert steps == expected
        assert np.abs(np.diff(first, axis=0)).mean((1, 2, 3)).min() > 20, "the eye sees every step"


def test_same_arguments_give_the_same_bytes(made: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    folder, _ = made
    make_samples(tmp_path / "again", clips_per_class=SCENES)
    assert contents(tmp_path / "again") == contents(folder)
    make_samples(tmp_path / "other", clips_per_class=SCENES, seed=1)
    others = contents(tmp_path / "other")
    assert others.keys() == contents(folder).keys()
    assert all(others[name] != data for name, data in contents(folder).items() if name.endswith(".mp4"))


def test_a_scene_does_not_depend_on_how_many_there_are(made: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    folder, _ = made
    table = make_samples(tmp_path / "one", clips_per_class=1)
    for path in table["path"]:
        assert (tmp_path / "one" / path).read_bytes() == (folder / path).read_bytes()


def test_second_call_does_nothing(made: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, table = made
    monkeypatch.setattr(samples, "_encode", lambda *_: pytest.fail("encoded again"))
    pd.testing.assert_frame_equal(make_samples(folder, clips_per_class=SCENES), table)


def test_missing_parents_are_made_and_an_empty_folder_is_used(tmp_path: Path) -> None:
    empty = tmp_path / "a" / "b"
    empty.mkdir(parents=True)
    make_samples(empty, clips_per_class=1)
    make_samples(tmp_path / "c" / "d", clips_per_class=1)
    assert contents(empty) == contents(tmp_path / "c" / "d")


def test_never_writes_into_a_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "mine.mp4").write_bytes(b"precious")
    with pytest.raises(UserError, match="no sample set; choose"):
        make_samples(tmp_path, clips_per_class=1)
    with pytest.raises(UserError, match="no sample set; choose"):
        make_samples(tmp_path / "mine.mp4", clips_per_class=1)
    with pytest.raises(UserError, match="cannot make the sample set"):
        make_samples(tmp_path / "mine.mp4" / "samples", clips_per_class=1)
    assert contents(tmp_path) == {"mine.mp4": b"precious"}


def test_a_set_with_other_settings_or_a_lost_clip_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    table = make_samples(folder, clips_per_class=1)
    with pytest.raises(UserError, match="other settings; delete"):
        make_samples(folder, clips_per_class=2)
    (folder / table["path"][0]).unlink()
    with pytest.raises(UserError, match="incomplete"):
        make_samples(folder, clips_per_class=1)
    (folder / "manifest.csv").unlink()
    with pytest.raises(UserError, match="incomplete"):
        make_samples(folder, clips_per_class=1)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = samples._encode, []

    def interrupted(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        encode(*arguments)

    monkeypatch.setattr(samples, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_samples(tmp_path / "samples", clips_per_class=1)
    assert list(tmp_path.iterdir()) == []
    make_samples(tmp_path / "samples", clips_per_class=1)
    assert json.loads((tmp_path / "samples" / MARKER).read_text())["clips_per_class"] == 1
