"""What import and export are tested on: a real bank of real clips, and readers as other programs have them.

Each reader is written anew from what the loading code that it names expects of the files; none of it is copied.
"""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.clips import make_clip
from tests.commands import extract

CLIPS = {  # name -> frames, label, split, group
    "punch/a.b": (9, "punch", "train", "g1"),
    "punch/ä one": (12, "punch", "test", "g2"),
    "walk/a": (7, "walk", "train", "g3"),
    "walk/a/b": (11, "walk", "train", "g1"),
    "walk/c": (10, "walk", "test", "g4"),
}


def real_bank(folder: Path) -> Path:
    """A bank of five clips with labels, splits, groups and a column of their owner's."""
    lines = ["path,id,label,split,group,camera"]
    for number, (name, (frames, label, split, group)) in enumerate(CLIPS.items()):
        make_clip(folder / "clips" / f"{name}.mp4", frames=frames, fps=10)
        lines.append(f"{name}.mp4,{name},{label},{split},{group},cam {number}")
    (folder / "clips" / "manifest.csv").write_text("\n".join(lines) + "\n", "utf-8")
    out = folder / "bank.h5"
    assert extract(folder / "clips", out, "--quiet").exit_code == 0
    return out


def actionformer(settings: Path, split: list[str]) -> dict[str, dict[str, Any]]:
    """What ActionFormer takes of a data set (happyharrycn/actionformer_release, libs/datasets/anet.py: the database in
    `_load_json_db`, features and the grid of segments in `__getitem__`)."""
    asked = json.loads(settings.read_text("utf-8"))  # JSON is YAML
    data = asked["dataset"]
    assert asked["dataset_name"] == "anet"
    database = json.loads(Path(data["json_file"]).read_text("utf-8"))["database"]
    classes = {each["label"]: each["label_id"] for video in database.values() for each in video["annotations"]}
    assert len(classes) == data["num_classes"]
    assert sorted(classes.values()) == list(range(len(classes)))
    assert ".hdf5" not in data["feat_folder"]
    assert data["feat_stride"] > 0, "features of any length"
    assert data["default_fps"] is None, "so that each video's own counts"
    taken = {}
    for key, video in database.items():
        if video["subset"].lower() not in split:
            continue
        features = np.load(Path(data["feat_folder"]) / f"{data['file_prefix'] or ''}{key}{data['file_ext']}")
        assert features.shape[1] == data["input_dim"]
        spans = np.array([each["segment"] for each in video["annotations"]], np.float32).reshape(-1, 2)
        grid = (spans * video["fps"] - 0.5 * data["num_frames"]) / data["feat_stride"]
        labels = [classes[each["label"]] for each in video["annotations"]]
        taken[key] = {"features": features.astype(np.float32), "grid": grid, "labels": labels, **video}
    return taken


def captioning(path: Path, video: str) -> np.ndarray:
    """The features of a video as models of ActivityNet captions take them (minghangz/cpl, datasets/activitynet.py)."""
    with h5py.File(path, "r") as file:
        return np.asarray(file[video]["c3d_features"]).astype(np.float32)


def ms_tcn(folder: Path, bundle: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features (D, T) and classes (T,) of the videos of a bundle (yabufarha/ms-tcn, batch_gen.py: `read_data` and
    `next_batch`; main.py: the mapping)."""
    lines = (folder / "mapping.txt").read_text("utf-8").split("\n")
    assert lines.pop() == "", "the last line ends as the others do"
    codes = {line.split()[1]: int(line.split()[0]) for line in lines}
    names = (folder / "splits" / bundle).read_text("utf-8").split("\n")
    assert names.pop() == ""
    taken = {}
    for name in names:
        stem = name.split(".")[0]
        features = np.load(folder / "features" / f"{stem}.npy")
        content = (folder / "groundTruth" / name).read_text("utf-8").split("\n")[:-1]
        steps = min(features.shape[1], len(content))
        assert steps == features.shape[1] == len(content), "nothing is cut off"
        taken[stem] = features, np.array([codes[content[step]] for step in range(steps)])
    return taken
