"""Prefix banks against plain torch on plainly decoded frames; what is resumed, refused, interrupted, and shared out."""

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model

from pipeline import bank as banks
from pipeline.augmentation import Augmentation, apply, draw
from pipeline.backbone import Backbone, FeatureExtractor, load_backbone
from pipeline.bank import Bank
from pipeline.engine import Progress
from pipeline.errors import UserError
from pipeline.extraction import recipe_of
from pipeline.features import ROW_BYTES
from pipeline.halves import split
from pipeline.prefix_bank import bank_prefix, check_room, prefix_bytes
from pipeline.preprocessing import normalise, prepare
from pipeline.rows import ReadOptions
from pipeline.sampling import Sampling
from pipeline.videos import find_videos
from tests.clips import make_clip, plain
from tests.commands import framebank
from tests.conftest import REPOSITORY

CPU = torch.device("cpu")
IDS = [f"class{n}/clip{m}" for n in range(2) for m in range(n, 6, 2)]
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def half(weights: str = "random") -> Backbone:
    """What lies before the last two blocks of a small network: (C, H, W) are (384, 2, 2)."""
    prefix = split(
        load_backbone("squeezenet1_1", weights=weights, image_size=48), ["features.11", "features.12"]
    ).prefix
    assert prefix is not None
    return prefix


@pytest.fixture(scope="module")
def prefix() -> Backbone:
    return half()


def bank(out: Path, prefix: Backbone, data: Path, **changes: Any) -> tuple[bool, list[str]]:
    """Bank the videos of a folder. Returns whether it was interrupted, and what was said."""
    notes: list[str] = []
    names = ("sampling", "augmentation", "view", "allow_partial")
    reading = {"sampling": Sampling(), **{name: changes.pop(name) for name in names if name in changes}}
    options = {
        "crop": "",
        "precision": "fp32",
        "device": CPU,
        "batch_size": 4,
        "on_progress": lambda _: None,
        "on_note": notes.append,
        **changes,
    }
    read = ReadOptions(preprocessing=prefix.preprocessing, **reading)
    return bank_prefix(out, prefix, find_videos(data).table, read, **options), notes


def close(rows: np.ndarray, expected: np.ndarray) -> None:
    """Float32 sums in another order move no more than that."""
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


def test_it_holds_what_the_first_layers_give(tmp_path: Path, data: Path, out: Path) -> None:
    torch.manual_seed(3)
    model = get_model("squeezenet1_1").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    prefix = half(str(tmp_path / "weights.pth"))
    assert bank(out, prefix, data, sampling=Sampling(stride=2), crop="0,0,32,48") == (False, [])
    with Bank(out) as banked, torch.inference_mode():
        assert list(banked) == IDS
        assert banked.verify() == []
        for video in IDS:
            frames = [prepare(prefix.preprocessing, frame[:, :32]) for frame in plain(data / f"{video}.mp4")[::2]]
            expected = model.features[:11](normalise(prefix.preprocessing, torch.stack(frames)))
            assert banked[video].dtype == np.float32
            assert banked[video].shape[1:] == prefix.feature_shape == (384, 2, 2)
            close(banked[video], expected.numpy())
            assert banked.frame_index(video).tolist() == list(range(0, 2 * len(frames), 2))


def test_it_is_the_bank_that_extract_makes_at_the_boundary(
    data: Path, out: Path, tmp_path: Path, prefix: Backbone
) -> None:
    settings = ["--backbone", "squeezenet1_1", "--weights", "random", "--image-size", "48", "--precision", "fp32"]
    other = tmp_path / "extracted.h5"
    made = framebank(
        "extract", data, "--out", other, *settings, "--layer", prefix.layer, "--batch-size", "4", "--store", "float32"
    )
    assert made.exit_code == 0, made.stderr
    bank(out, prefix, data)
    with Bank(out) as banked, Bank(other) as extracted:
        assert banked.fingerprint == extracted.fingerprint
        for video in IDS:
            np.testing.assert_array_equal(banked[video], extracted[video])


def test_only_what_is_lacking_is_banked(
    data: Path, out: Path, prefix: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank(out, prefix, data)
    with Bank(out) as banked:
        before = banked.catalog.set_index("id")["banked"]
    make_clip(data / "class0" / "new.mp4", frames=3)
    bank(out, prefix, data)
    with Bank(out) as banked:
        after = banked.catalog.set_index("id")["banked"]
        assert list(banked) == sorted([*IDS, "class0/new"])
        assert after[IDS].equals(before[IDS])
    monkeypatch.setattr("pipeline.rows.read_frames", lambda *_, **__: pytest.fail("decoded again"))
    content = out.read_bytes()
    assert bank(out, prefix, data) == (False, [])
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"sampling": Sampling(stride=2)}, "sampling.stride is 1 (banked) and 2 (now)"),
        ({"precision": "bf16"}, "precision is fp32 (banked) and bf16 (now)"),
        ({"crop": "0,0,32,32"}, "crop is  (banked) and 0,0,32,32 (now)"),
        ({"augmentation": Augmentation(("flip",)), "view": 1}, "view is unset (banked) and {'number': 1"),
    ],
)
def test_another_recipe_is_refused_with_both_values(
    changes: dict[str, Any], differing: str, data: Path, out: Path, prefix: Backbone
) -> None:
    bank(out, prefix, data)
    content = out.read_bytes()
    with pytest.raises(UserError, match="--prefix-bank") as refused:
        bank(out, prefix, data, **changes)
    assert differing in str(refused.value)
    assert out.read_bytes() == content


def test_another_boundary_is_refused_by_its_name_alone(data: Path, out: Path, prefix: Backbone) -> None:
    bank(out, prefix, data)
    whole = load_backbone("squeezenet1_1", weights="random", image_size=48)
    other = split(whole, ["features.12"]).prefix
    assert other is not None
    with pytest.raises(UserError) as refused:
        bank(out, other, data)
    assert str(refused.value) == (
        f"{out} was made differently: layer is {prefix.layer} (banked) and {other.layer} (now). "
        "Give another --prefix-bank, or delete it."
    )


def test_frames_of_a_view_are_changed_as_they_are_drawn(data: Path, out: Path, prefix: Backbone) -> None:
    augmentation = Augmentation(("crop", "flip", "jitter"), seed=5)
    bank(out, prefix, data, augmentation=augmentation, view=2)
    preprocessing = prefix.preprocessing
    wider = augmentation.wider(preprocessing)
    assert wider.crop == preprocessing.resize > preprocessing.crop
    with Bank(out) as banked, torch.inference_mode():
        assert banked.config["recipe"]["view"] == {"number": 2, **augmentation.describe()}
        for video in IDS:
            frames = torch.stack([prepare(wider, frame) for frame in plain(data / f"{video}.mp4")])
            seen = apply(draw(augmentation, 2, video), frames, preprocessing.crop)
            expected = prefix.module(normalise(preprocessing, seen)).numpy()
            np.testing.assert_allclose(banked[video], expected, rtol=1e-4, atol=1e-5)
            other = apply(draw(augmentation, 1, video), frames, preprocessing.crop)
            assert not torch.equal(other, seen)


def test_without_a_view_a_recipe_is_what_it_was(prefix: Backbone) -> None:
    made: dict[str, Any] = {"crop": "", "precision": "fp32", "store": "float16"}
    plain = ReadOptions(Sampling(), prefix.preprocessing)
    recipe = recipe_of(prefix, plain, **made)
    assert not {"view", "views", "window", "inflated", "flow"} & recipe.keys()
    flipped = Augmentation(("flip",))
    of_view = recipe_of(prefix, replace(plain, augmentation=flipped, view=1), **made)
    assert of_view == {**recipe, "view": {"number": 1, **flipped.describe()}}


def test_the_prefix_stays_as_it_was_whatever_computes(data: Path, out: Path) -> None:
    prefix = half()
    before = {name: tensor.clone() for name, tensor in prefix.module.state_dict().items()}
    bank(out, prefix, data, precision="bf16")
    torch.testing.assert_close(dict(prefix.module.state_dict()), before, rtol=0, atol=0)  # of the same dtype too


def test_a_video_that_fails_is_named_and_the_others_stay(data: Path, out: Path, prefix: Backbone) -> None:
    broken = data / "class1" / "clip3.mp4"
    content = broken.read_bytes()
    broken.write_bytes(b"")
    for _ in range(2):  # and again: it is tried each time
        with pytest.raises(UserError, match=r"1 of 6 videos failed \(class1/clip3: empty file \(0 bytes\)\)"):
            bank(out, prefix, data)
    with Bank(out) as banked:
        assert list(banked) == [video for video in IDS if video != "class1/clip3"]
    broken.write_bytes(content)
    assert bank(out, prefix, data) == (False, [])
    with Bank(out) as banked:
        assert list(banked) == IDS
        assert len(banked.failures) == 0
    os.utime(broken, ns=(0, 0))
    broken.write_bytes(b"broken" * 9)  # changed after it was banked: its old activations are of another file
    with pytest.raises(UserError, match="class1/clip3"):
        bank(out, prefix, data)


def test_a_video_that_breaks_off_is_banked_up_to_there_where_that_is_allowed(
    tmp_path: Path, out: Path, prefix: Backbone
) -> None:
    whole = make_clip(tmp_path / "data" / "whole.mkv", frames=60, codec="mpeg4").read_bytes()
    (tmp_path / "data" / "cut.mkv").write_bytes(whole[: int(len(whole) * 0.7)])
    with pytest.raises(UserError, match="1 of 2 videos failed"):
        bank(out, prefix, tmp_path / "data")
    bank(out, prefix, tmp_path / "data", allow_partial=True)
    with Bank(out) as banked:
        assert 0 < len(banked["cut"]) < 60
        close(banked["cut"], banked["whole"][: len(banked["cut"])])


def test_activations_beyond_float16_cannot_be_banked(tmp_path: Path, data: Path, out: Path) -> None:
    torch.manual_seed(0)
    state = get_model("squeezenet1_1").state_dict()
    state["features.0.weight"] *= 1e7
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"beyond float16.*and 1 more\); .* give --no-prefix-bank"):
        bank(out, half(str(tmp_path / "weights.pth")), data, precision="bf16")


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on(tmp_path: Path, out: Path, prefix: Backbone) -> None:
    for number in range(6):
        make_clip(tmp_path / "data" / f"clip{number}.mp4", frames=20, size=(96, 96))

    def interrupt(progress: Progress) -> None:
        if progress.videos_sealed and not asked:
            asked.append(progress.videos_sealed)
            os.kill(os.getpid(), signal.SIGTERM)

    asked: list[int] = []
    interrupted, notes = bank(out, slow(prefix, 12), tmp_path / "data", on_progress=interrupt)
    assert (interrupted, notes) == (True, ["Stopping: videos in flight are dropped, finished ones sealed."])
    with Bank(out) as banked:
        assert 0 < len(banked) < 6
        assert banked.verify() == []
    assert bank(out, prefix, tmp_path / "data") == (False, [])
    bank(tmp_path / "calm.h5", prefix, tmp_path / "data")
    with Bank(out) as banked, Bank(tmp_path / "calm.h5") as calm:
        assert list(banked) == list(calm) == [f"clip{number}" for number in range(6)]
        for video in banked:
            close(banked[video], calm[video])


def slow(prefix: Backbone, quick: int) -> Backbone:
    """A prefix that takes its time after a number of quick batches, so that something is left to interrupt."""

    class Slow(nn.Module):
        batches = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.batches += 1
            if self.batches > quick:
                time.sleep(0.3)
            return images

    net = copy.deepcopy(prefix.module.net)
    net.add_module("slow", Slow())
    images = next(iter(net.graph.nodes))
    with net.graph.inserting_after(images):
        slowly = net.graph.call_module("slow", (images,))
    images.replace_all_uses_with(slowly, delete_user_cb=lambda user: user is not slowly)
    net.recompile()
    module = FeatureExtractor(net, layout=prefix.module.layout, average=prefix.module.average)
    return replace(prefix, module=module.eval())


def test_the_size_is_known_beforehand(data: Path, out: Path, prefix: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sum(range(4, 10))
    bank(out, prefix, data)
    size, expected = banks.total_size([out]), prefix_bytes(prefix.feature_shape, rows, "fp32")
    assert expected <= size <= expected + ROW_BYTES * len(IDS) + (1 << 16)
    assert prefix_bytes((10,), 3, "fp32") == 3 * (40 + 16)
    assert prefix_bytes((10,), 3, "bf16") == 3 * (20 + 16)

    missing = out.parent / "not" / "yet" / "prefix.h5"
    check_room([missing], 1)
    with pytest.raises(
        UserError, match=r"needs 1,000,000,000,000 MB, and [\d,]+ MB are free in .*; give --prefix-bank"
    ):
        check_room([missing], 10**18)
    monkeypatch.setattr("pipeline.prefix_bank.shutil.disk_usage", lambda _: Free())
    check_room([out, missing], size + Free.free)  # what is banked is not written again
    with pytest.raises(UserError, match="--no-prefix-bank"):
        check_room([out, missing], size + Free.free + 1)


class Free:
    free = 1000


def test_a_big_bank_stays_in_its_parts(
    data: Path, out: Path, prefix: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.packing.PACK_BYTES", 1000)
    bank(out, prefix, data)
    parts = banks.total_size(banks.sealed_parts(out))
    assert parts > prefix_bytes(prefix.feature_shape, 39, "fp32") > banks.total_size([out])
    with Bank(out) as banked:
        assert list(banked) == IDS
        assert banked.verify() == []


TWO = """
import os, signal, sys
from pathlib import Path
from pipeline import ranks
from tests.test_prefix_bank import bank, half, slow

data, folder = Path(sys.argv[1]), Path(sys.argv[2])
with ranks.joined():
    sealed, asked = [], []
    bank(folder / "both.h5", half(), data, on_progress=lambda progress: sealed.append(progress.frames))
    def interrupt(progress):
        if not ranks.first() and not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)
    stopped, _ = bank(folder / "stopped.h5", slow(half(), 2), data, on_progress=interrupt)
    finished = not bank(folder / "stopped.h5", half(), data)[0]
    (folder / f"rank{ranks.rank()}").write_text(f"{sealed[-1]} {stopped} {finished}")
ranks.leave(0)
"""


def test_two_ranks_bank_a_share_each(data: Path, out: Path, tmp_path: Path, prefix: Backbone) -> None:
    (tmp_path / "two.py").write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "two.py"), str(data), str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [(tmp_path / f"rank{number}").read_text().split() for number in range(2)]
    assert [frames for frames, *_ in said] == ["19", "20"]  # every second of 4, 6, 8, 5, 7 and 9
    assert [rest for _, *rest in said] == [["True", "True"]] * 2
    bank(out, prefix, data)
    same(out, [tmp_path / "both.h5", tmp_path / "stopped.h5"])


def same(one: Path, others: Sequence[Path]) -> None:
    with Bank(one) as first:
        for path in others:
            with Bank(path) as other:
                assert list(other) == list(first) == IDS
                assert other.fingerprint == first.fingerprint
                assert other.verify() == []
                for video in first:
                    close(other[video], first[video])
