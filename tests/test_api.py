"""The Python API, on real videos: what its functions return is what the commands write."""

import inspect
import json
import pickle
import runpy
import signal
import threading
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence, unpack_sequence
from torch.utils.data import DataLoader

import framebank
from tests.banks import bank_of, in_order
from tests.clips import make_clip
from tests.commands import SETTINGS
from tests.commands import framebank as command

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = [
    *("Bank", "Evaluation", "Prediction", "Predictions", "Predictor", "Run", "SequenceDataset", "UserError"),
    *("__version__", "evaluate", "explore", "extract", "finetune", "load_bundle", "predict", "report", "train_head"),
]
NETWORK = {"backbone": "squeezenet1_1", "weights": "random", "image_size": 48, "precision": "fp32"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples of the documentation have: videos, a bank of them, a head, a new video; and a broken one."""
    folder = tmp_path_factory.mktemp("place")
    for number in range(24):
        make_clip(folder / "my_videos" / f"class{number % 2}" / f"clip{number:02}.mp4", frames=4 + number % 7)
    make_clip(folder / "new.mp4", frames=9)
    (folder / "broken.mp4").write_bytes(b"not a film")
    framebank.extract(folder / "my_videos", folder / "bank.h5", **NETWORK)
    framebank.train_head(folder / "bank.h5", folder / "runs" / "lstm", epochs=3, hidden=8)
    return folder


@pytest.fixture(scope="module")
def predictor(place: Path) -> framebank.Predictor:
    return framebank.load_bundle(place / "runs" / "lstm")


def test_the_names_are_these() -> None:
    assert framebank.__all__ == PUBLIC
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert framebank.__version__ == project["version"]
    assert command("--version").stdout.split() == ["framebank", framebank.__version__]
    with pytest.raises(AttributeError, match="no attribute 'extrac'"):
        framebank.extrac  # noqa: B018


def test_every_name_says_what_it_gives() -> None:
    for name in set(PUBLIC) - {"__version__"}:
        value = getattr(framebank, name)
        assert inspect.getdoc(value), name
        if inspect.isfunction(value):
            assert "Raises:" in value.__doc__, name
            shown = inspect.signature(value)
            assert all(each.annotation is not each.empty for each in shown.parameters.values()), name
            assert shown.return_annotation is not shown.empty, name
        else:
            members = [each for each in vars(value).items() if each[0][0] != "_"]
            methods = [each for each in members if inspect.isfunction(each[1]) or isinstance(each[1], property)]
            for method, each in methods:
                assert inspect.getdoc(each), f"{name}.{method}"


@pytest.mark.slow
def test_a_sample_script_runs(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(ROOT / "tests" / "sample_user_script.py"))
    script["main"](place / "my_videos", place / "new.mp4", tmp_path)
    printed = capsys.readouterr().out
    assert "24 videos, 0 failed" in printed
    assert "--splits and --folds exclude one another" in printed
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "bank.html").exists()


def test_the_functions_do_what_the_commands_do(place: Path, tmp_path: Path) -> None:
    assert command("extract", place / "my_videos", "--out", tmp_path / "b.h5", *SETTINGS).exit_code == 0
    with framebank.Bank(place / "bank.h5") as mine, framebank.Bank(tmp_path / "b.h5") as other:
        assert list(mine) == list(other)
        assert mine.fingerprint == other.fingerprint
        assert all(np.array_equal(mine[video], other[video]) for video in mine)
    out = tmp_path / "run"
    assert command("train-head", tmp_path / "b.h5", "--out", out, "--epochs", 3, "--hidden", 8).exit_code == 0
    run, other_run = framebank.Run(place / "runs" / "lstm"), framebank.Run(out)
    pd.testing.assert_frame_equal(run.predictions, other_run.predictions)
    results = json.loads((out / "results.json").read_text())
    assert run.score == results["score"]
    assert run.interval == tuple(results["interval"])
    assert run.difference == results["difference"]
    assert run.baselines.set_index("name")["score"].to_dict() == {
        name: said["score"] for name, said in results["baselines"].items()
    }
    assert set(run.splits["part"]) == {"train", "test"}
    assert len(run.history) == 3
    assert run.frames is None
    assert run.labels == ("class0", "class1")
    assert repr(run).startswith(f"Run('{place}/runs/lstm', accuracy ")


def test_a_call_prints_nothing_and_changes_nothing(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    framebank.extract(place / "my_videos", tmp_path / "b.h5", **NETWORK)
    framebank.train_head(tmp_path / "b.h5", tmp_path / "run", epochs=1, hidden=4)
    framebank.predict(tmp_path / "run", place / "new.mp4")
    framebank.explore(tmp_path / "b.h5")
    assert capfd.readouterr() == ("", "")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    framebank.extract(place / "my_videos", tmp_path / "b.h5", progress=True, **NETWORK)
    assert "24 videos done before" in capfd.readouterr().out


def test_videos_that_fail_are_in_the_bank_s_failures(place: Path, tmp_path: Path) -> None:
    for name in ("new.mp4", "broken.mp4"):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes((place / name).read_bytes())
    bank = framebank.extract(tmp_path / "data", tmp_path / "b.h5", **NETWORK)
    assert list(bank) == ["new"]
    assert bank.failures["id"].tolist() == ["broken"]
    assert bank.failures["reason"].str.len().min() > 5


def test_mistakes_are_exceptions(place: Path, tmp_path: Path) -> None:
    with pytest.raises(framebank.UserError, match="There is no bank at"):
        framebank.Bank(tmp_path / "none.h5")
    with pytest.raises(framebank.UserError, match="made differently"):
        framebank.extract(place / "my_videos", place / "bank.h5", **(NETWORK | {"image_size": 40}))
    with pytest.raises(framebank.UserError, match="it has no"):
        framebank.Run(tmp_path)
    with pytest.raises(framebank.UserError, match="give --head RUN"):
        framebank.finetune(place / "my_videos", tmp_path / "run")
    with pytest.raises(framebank.UserError, match="keep their own targets"):
        framebank.evaluate(place / "runs" / "lstm", place / "bank.h5", split="all", target="source")


def test_an_interrupt_is_a_keyboard_interrupt(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.extraction

    embed_videos = pipeline.extraction.embed_videos

    def interrupted(*arguments: object, stop: threading.Event, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        embed_videos(*arguments, stop=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.extraction, "embed_videos", interrupted)
        with pytest.raises(KeyboardInterrupt):
            framebank.extract(place / "my_videos", tmp_path / "b.h5", **NETWORK)
        with pytest.raises(KeyboardInterrupt):
            framebank.predict(place / "runs" / "lstm", place / "new.mp4")
    assert len(framebank.extract(place / "my_videos", tmp_path / "b.h5", **NETWORK)) == 24


def test_a_prediction_is_what_the_command_says(place: Path, predictor: framebank.Predictor, tmp_path: Path) -> None:
    """To the last digit of what is written, if as many videos share the cores."""
    new, broken = place / "new.mp4", place / "broken.mp4"
    several = predictor.predict_all([new, broken])
    assert several.failures["id"].tolist() == ["broken"]
    assert len(several) == 1
    for videos, said in (([new, broken], several[0]), ([new], predictor.predict(new))):
        shown = command("predict", place / "runs" / "lstm", *videos, "--csv", tmp_path / "p.csv")
        assert shown.exit_code == (3 if broken in videos else 0)
        written = pd.read_csv(tmp_path / "p.csv").iloc[0]
        assert (said.id, said.label) == ("new", written["predicted"])
        assert said.labels == (said.label,)
        assert said.value is None
        assert said.frames is None
        assert said.probabilities == pytest.approx({name: written[f"p_{name}"] for name in predictor.labels}, abs=1e-7)
    with pytest.raises(framebank.UserError, match=r"broken\.mp4: "):
        predictor.predict(place / "broken.mp4")
    with pytest.raises(framebank.UserError, match="holds 24 videos"):
        predictor.predict(place / "my_videos")
    assert any("trained on" in note for note in predictor.predict_all(place / "my_videos").notes)


def test_features_are_predicted_as_their_video_is(place: Path, predictor: framebank.Predictor) -> None:
    bank = framebank.Bank(place / "bank.h5")
    video = "class1/clip05"
    said = predictor.predict(place / "my_videos" / f"{video}.mp4")
    for features in (bank[video], torch.from_numpy(bank[video]), [bank[video]]):
        given = predictor.predict(features)
        assert given.probabilities == pytest.approx(said.probabilities, abs=1e-4), (
            "one video has all cores, and rounds so"
        )
    with pytest.raises(framebank.UserError, match=r"Features are \(3, 7\), and the head of .* reads \(T, 512\)"):
        predictor.predict(np.zeros((3, 7)))
    with pytest.raises(framebank.UserError, match="not finite"):
        predictor.predict(np.full((3, 512), np.nan))
    with pytest.raises(framebank.UserError, match="1 heads, and features for 2"):
        predictor.predict([bank[video], bank[video]])
    rows = bank[video].astype(np.float32)
    said = predictor.predict(rows)
    for features in (rows.astype(">f4"), rows[::-1].copy()[::-1], np.asfortranarray(rows)):
        assert predictor.predict(features).probabilities == said.probabilities
    for features, words in (
        (rows + 1j, "complex64"),
        (torch.from_numpy(rows + 1j), "complex64"),
        (np.array(1.0), "()"),
    ):
        with pytest.raises(framebank.UserError, match=words):
            predictor.predict(features)
    for seconds in (np.arange(len(rows))[::-1], np.r_[np.nan, np.arange(len(rows) - 1.0)], ["x"] * len(rows)):
        with pytest.raises(framebank.UserError, match="The seconds"):
            predictor.predict(rows, seconds=seconds)
    with pytest.raises(framebank.UserError, match="no video to predict"):
        predictor.predict_all([])


def test_several_threads_may_ask(place: Path) -> None:
    """Signals are the main thread's alone; what is loaded is loaded once."""
    predictor = framebank.load_bundle(place / "runs" / "lstm")
    said: list[framebank.Prediction] = []
    threads = [threading.Thread(target=lambda: said.append(predictor.predict(place / "new.mp4"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 3
    assert all(each.probabilities == said[0].probabilities for each in said)


def test_a_label_per_frame_has_times(tmp_path: Path) -> None:
    videos = in_order(12)
    bank = bank_of(tmp_path / "bank.h5", videos)
    rows = [
        f"{video},{start},{start + len(rows) / 20},{label}"
        for video, rows in videos.items()
        for start, label in ((0, "first"), (len(rows) / 20, "then"))
    ]
    (tmp_path / "segments.csv").write_text("\n".join(["id,start,end,label", *rows]) + "\n")
    run = framebank.train_head(bank, tmp_path / "run", segments=tmp_path / "segments.csv", epochs=2, hidden=4)
    assert run.frames is not None
    features = next(iter(videos.values()))
    seconds = np.arange(len(features)) / 10
    predictor = framebank.load_bundle(run, min_seconds=0.2)
    said = predictor.predict(features, seconds)
    assert said.frames is not None
    assert said.frames["seconds"].tolist() == pytest.approx(seconds.tolist())
    assert said.frames["predicted"].isin(["first", "then"]).all()
    assert said.segments is not None
    assert said.segments["end"].iloc[-1] == pytest.approx(len(features) / 10)
    assert said.label == said.frames["predicted"].mode()[0]
    data = framebank.Bank(bank).torch_dataset(segments=tmp_path / "segments.csv")
    packed, targets = data.collate([data[0], data[1]])
    assert isinstance(targets, PackedSequence)
    assert torch.equal(packed.batch_sizes, targets.batch_sizes)
    assert set(targets.data.tolist()) == {0, 1}
    with pytest.raises(framebank.UserError, match="4 times"):
        predictor.predict(features, seconds[:4])


def test_a_data_set_gives_the_bank_s_rows_and_labels(place: Path) -> None:
    bank = framebank.Bank(place / "bank.h5")
    data = bank.torch_dataset()
    assert data.labels == ("class0", "class1")
    sequence, target = data[3]
    assert sequence.dtype == torch.float32
    assert np.array_equal(sequence.numpy(), bank[data.ids[3]].astype(np.float32))
    assert target.dtype == torch.int64
    assert data.labels[target] == bank.catalog.set_index("id").loc[data.ids[3], "label"]
    packed, targets = data.collate([data[place] for place in range(5)])
    assert isinstance(targets, torch.Tensor)
    assert targets.shape == (5,)
    lengths = pad_packed_sequence(packed)[1].tolist()
    assert lengths == [len(bank[video]) for video in data.ids[:5]]
    assert all(torch.equal(rows, data[place][0]) for place, rows in enumerate(unpack_sequence(packed)))
    copied = pickle.loads(pickle.dumps(data))  # noqa: S301 - what loaders that spawn their workers do
    assert torch.equal(copied[3][0], sequence)
    some = bank.torch_dataset(data.ids[4:2:-1], target="label", multi_label=True)
    assert some.ids == data.ids[4:2:-1]
    assert some[0][1].tolist() in ([0.0, 1.0], [1.0, 0.0])
    with pytest.raises(framebank.UserError, match="1 ids are not in"):
        bank.torch_dataset(["nobody"])


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_loader_s_processes_read_for_themselves(place: Path, start: str) -> None:
    data = framebank.Bank(place / "bank.h5").torch_dataset()
    data[0]  # its file is open
    loader = DataLoader(data, 4, collate_fn=data.collate, num_workers=2, multiprocessing_context=start)
    plain = DataLoader(data, 4, collate_fn=data.collate)
    for (packed, targets), (other, others) in zip(loader, plain, strict=True):
        assert torch.equal(packed.data, other.data)
        assert torch.equal(targets, others)


def test_dask_reads_what_the_bank_holds(tmp_path: Path, place: Path) -> None:
    of_views = framebank.extract(place / "new.mp4", tmp_path / "b.h5", views="random:3", **NETWORK)
    plain = framebank.Bank(place / "bank.h5")
    for bank, video in ((plain, "class1/clip05"), (of_views, "new")):
        whole, lazily = bank[video], bank.dask(video)
        assert lazily.shape == whole.shape == bank.shape(video)
        assert lazily.dtype == whole.dtype == bank.dtype
        assert np.array_equal(lazily.compute(scheduler="threads"), whole)
        assert np.array_equal(lazily[..., 2:7:2, 5:9].compute(scheduler="threads"), whole[..., 2:7:2, 5:9])
    assert of_views["new"].shape == (3, 9, 512)
    joined = plain.dask().compute(scheduler="threads")
    assert np.array_equal(joined, np.concatenate([plain[video] for video in plain]))
    with pytest.raises(KeyError):
        plain.dask("nobody")


def test_xarray_has_time_in_seconds(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = framebank.Bank(place / "bank.h5")
    array = bank.xarray("class0/clip06")
    assert array.dims == ("time", "feature")
    assert np.array_equal(array.values, bank["class0/clip06"])
    assert array["time"].values.tolist() == pytest.approx([frame / 10 for frame in range(10)])
    assert array.sel(time=0.3, method="nearest")["frame"] == 3
    assert array.attrs["label"] == "class0"
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    with pytest.raises(framebank.UserError, match=r"pip install 'framebank\[xarray\]'"):
        bank.xarray("class0/clip06")


@pytest.mark.slow
def test_the_examples_of_the_documentation_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.test_docs import blocks

    monkeypatch.chdir(place)
    (place / "bank.h5").rename(place / "elsewhere.h5")
    try:
        names: dict[str, object] = {"__name__": "example"}
        for number, code in enumerate(blocks((ROOT / "docs/how-to/python.md").read_text("utf-8"), "python")):
            exec(compile(code, f"example {number}", "exec"), names)
    finally:
        (place / "elsewhere.h5").replace(place / "bank.h5")
    printed = capsys.readouterr().out
    assert "24 videos, 162 rows" in printed
    assert "--splits and --folds exclude one another" in printed
    assert "('class0', 'class1')" in printed
