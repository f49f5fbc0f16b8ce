"""Banks of several views: a head trains on one view of each video per epoch and is tested on all of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from pipeline.bank import Bank, create
from pipeline.baselines import NAMES
from pipeline.bundles import Bundle, Member, score_bundle
from pipeline.errors import UserError
from pipeline.fitting import Fitted, fit
from pipeline.heads import Head, HeadConfig
from pipeline.held_out import hold_out_baselines
from pipeline.material import Material, load_material
from pipeline.objectives import Objective
from pipeline.optimisation import FitConfig
from pipeline.resampling import Resampling
from pipeline.results import Task
from pipeline.scoring import evaluate, score
from pipeline.sealing import PartWriter
from pipeline.selection import Selection
from pipeline.sequences import Sequences, load_sequences
from pipeline.splits import Fold
from pipeline.standardisation import statistics
from pipeline.targets import from_catalog
from tests.banks import bank_of, config, in_order, row
from tests.commands import framebank
from tests.heads import FEATURES, class_rows

pytestmark = pytest.mark.usefixtures("one_torch_thread")
VIEWS, COUNT = 4, 14
CLASS, ALL = Objective("class"), Selection()


def videos_of(count: int = COUNT, views: int = VIEWS, seed: int = 0) -> dict[str, np.ndarray]:
    """(T, K, D) of each video: what tells its class, in every view with noise of its own."""
    generator = np.random.default_rng(seed)
    return {
        video: rows[:, None] + generator.normal(scale=0.3, size=(len(rows), views, FEATURES)).astype(np.float32)
        for video, rows in in_order(count, FEATURES, seed).items()
    }


VIDEOS = videos_of()


def bank_of_views(path: Path, videos: dict[str, np.ndarray] = VIDEOS, *, rate: float = 10, **changes: object) -> Bank:
    """A bank of (T, K, D) rows, so many a second."""
    _, count, features = next(iter(videos.values())).shape
    made = config(
        feature_shape=[features], store="float32", views={"kind": "random", "count": count, "seed": 0}, **changes
    )
    create(path, made)
    writer = PartWriter(path, made, lambda *_: None)
    for video, rows in videos.items():
        sink = writer.open(row(video, digest=video), [{"box": None, "flip": False}] * count)
        sink.append(rows, np.arange(len(rows)) / rate, np.arange(len(rows)))
        sink.finish({"frames_decoded": len(rows), "duration": len(rows) / 10})
    writer.seal()
    return Bank(path)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return bank_of_views(tmp_path_factory.mktemp("views") / "views.h5")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Sequences]:
    """Of each view a bank of its own."""
    folder = tmp_path_factory.mktemp("plain")
    every = range(VIEWS)
    paths = [bank_of(folder / f"{view}.h5", {video: rows[:, view] for video, rows in VIDEOS.items()}) for view in every]
    return [load_sequences([Bank(path)]) for path in paths]


@pytest.fixture(params=["memory", "stream"])
def sequences(bank: Bank, request: pytest.FixtureRequest) -> Sequences:
    loaded = load_sequences([bank], memory_bytes=0 if request.param == "stream" else None)
    assert loaded.streamed == (request.param == "stream")
    return loaded


def head_of(outputs: int = 2, **config: object) -> Head:
    torch.manual_seed(0)
    return Head(HeadConfig(**{"hidden": 5, **config}), (FEATURES,), outputs)  # type: ignore[arg-type]


def stored(sequences: Sequences, video: int, view: int) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(VIDEOS[sequences.ids[video]][:, view]))


def views_seen(sequences: Sequences) -> list[int]:
    """Which view of each video a `Sequences` gives."""
    return [
        next(view for view in range(VIEWS) if torch.equal(sequences.read(video), stored(sequences, video, view)))
        for video in range(len(sequences))
    ]


def test_each_view_can_be_read(sequences: Sequences, plain: list[Sequences]) -> None:
    assert sequences.views == VIEWS
    assert sequences.feature_shape == (FEATURES,)
    assert sequences.offsets.tolist() == plain[0].offsets.tolist()
    wanted = np.array([3, 0, 7])
    steps = [np.array([0, 2, 5]), np.array([7]), np.array([1, 2, 3, 4])]
    for view, (chosen, alone) in enumerate(zip(sequences.in_each_view(), plain, strict=True)):
        assert (chosen.views, alone.views) == (1, 1)
        assert views_seen(chosen) == [view] * COUNT
        assert torch.equal(chosen.read(2, 3, 6), stored(sequences, 2, view)[3:6])
        for batch, other in zip(chosen.batches([(wanted, None), (wanted, steps)]), (None, steps), strict=True):
            expected = alone.batch(wanted, other)
            assert torch.equal(batch.packed.data, expected.packed.data)
            assert torch.equal(batch.rows, expected.rows), "targets are found by these, whichever the view"
        rows = [stored(sequences, video, view) for video in wanted]
        assert torch.equal(chosen.batch(wanted).packed.data, pack_sequence(rows, enforce_sorted=False).data)
        assert chosen.in_view(0) is chosen
        assert chosen.in_epoch(1) is chosen
    assert views_seen(sequences) == [0] * COUNT, "without a choice it is the plain one"
    with pytest.raises(ValueError, match="no view 4 of 4"):
        sequences.in_view(VIEWS)


def test_a_view_is_no_copy(bank: Bank) -> None:
    sequences = load_sequences([bank])
    memory = {each.read(video).untyped_storage().data_ptr() for each in sequences.in_each_view() for video in (0, 5)}
    assert memory == {sequences.read(0).untyped_storage().data_ptr()}


def test_every_epoch_draws_a_view_of_each_video(sequences: Sequences) -> None:
    drawn = [views_seen(sequences.in_epoch(epoch)) for epoch in range(1, 41)]
    assert drawn[4] == views_seen(sequences.to("cpu").in_epoch(5)), "by the number of the epoch alone"
    assert len({tuple(each) for each in drawn}) == 40
    assert all(set(each) == set(range(VIEWS)) for each in zip(*drawn, strict=True)), "each video, in every view"
    batch = sequences.in_epoch(3).batch(np.arange(COUNT))
    rows = [stored(sequences, video, view) for video, view in enumerate(drawn[2])]
    assert torch.equal(batch.packed.data, pack_sequence(rows, enforce_sorted=False).data)
    assert batch.rows.max() == sequences.offsets[-1] - 1


@pytest.mark.parametrize("selection", [ALL, Selection("crop", 5, test_crops=3)])
@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("chunk_steps", [4096, 6])
def test_scores_are_the_mean_over_views(
    sequences: Sequences, plain: list[Sequences], selection: Selection, per_frame: bool, chunk_steps: int
) -> None:
    head, objective = head_of(3, steps=per_frame), Objective("class", per_frame=per_frame)
    videos = np.array([9, 0, 4, 13])
    found, *each = (
        score(head, given, videos, objective, selection, chunk_steps=chunk_steps) for given in (sequences, *plain)
    )
    for place in range(len(videos)):
        mean = np.mean([scores[place] for scores in each], axis=0)
        np.testing.assert_allclose(found[place], mean, atol=1e-6)
        assert np.abs(found[place] - each[0][place]).max() > 1e-4


def test_validation_is_the_mean_over_views(sequences: Sequences, plain: list[Sequences]) -> None:
    head, targets = head_of(), class_rows([number % 2 for number in range(COUNT)])
    videos = np.array([1, 2, 5])
    loss, scores = evaluate(head, sequences, videos, targets, CLASS, ALL)
    losses, each = zip(*(evaluate(head, one, videos, targets, CLASS, ALL) for one in plain), strict=True)
    assert loss == pytest.approx(np.mean(losses), rel=1e-6)
    np.testing.assert_allclose(scores, np.mean(each, axis=0), atol=1e-6)


def trained(sequences: Sequences, **changes: object) -> Fitted:
    targets = class_rows([number % 2 for number in range(COUNT)])
    config = FitConfig(**{"epochs": 4, "batch_size": 4, **changes})  # type: ignore[arg-type]
    head = head_of(input_dropout=0.3, centre=True, changes=(2,))
    return fit(head, sequences, targets, np.arange(10), np.zeros(0, np.int64), CLASS, ALL, config)


def same(one: Fitted, other: Fitted) -> bool:
    return all(torch.equal(one.state_dict[name], other.state_dict[name]) for name in one.state_dict)


def test_training_on_one_view_is_training_on_its_bank(sequences: Sequences, plain: list[Sequences]) -> None:
    assert same(trained(sequences.in_view(2)), trained(plain[2]))


def test_training_sees_the_view_of_each_epoch(sequences: Sequences, plain: list[Sequences]) -> None:
    def by_hand(epoch: int) -> Sequences:
        chosen = views_seen(sequences.in_epoch(epoch))
        rows = torch.cat([plain[view].read(video) for video, view in enumerate(chosen)])
        return Sequences(plain[0].ids, [plain[0].seconds(video) for video in range(COUNT)], rows)

    found = trained(sequences)
    assert same(found, trained(plain[0].varying(by_hand)))
    assert not same(found, trained(plain[0]))


def test_statistics_are_those_of_the_plain_view(sequences: Sequences, plain: list[Sequences]) -> None:
    found, expected = (statistics(each, np.arange(9), pca=3) for each in (sequences, plain[0]))
    for one, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def material_of(*banks: Bank, side_by_side: bool) -> Material:
    targets = from_catalog(banks[0].catalog)
    return load_material(banks, targets, spatial=None, side_by_side=side_by_side, group_column=None)[0]


def test_baselines_see_the_plain_view(bank: Bank, tmp_path: Path) -> None:
    alone = Bank(bank_of(tmp_path / "one.h5", {video: rows[:, 0] for video, rows in VIDEOS.items()}))
    ids = tuple(VIDEOS)
    fold, task = Fold("1", ids[:8], (), ids[8:]), Task("class", False, ("falling", "rising"))
    one, other = (
        hold_out_baselines(material_of(each, side_by_side=True), [fold], task, 0, 0.0, lambda: None)[0]
        for each in (bank, alone)
    )
    for name in NAMES["class", False]:
        np.testing.assert_array_equal(one[name].scores, other[name].scores)


def test_banks_side_by_side_keep_their_views_together(bank: Bank, tmp_path: Path) -> None:
    second = videos_of(seed=1)
    second = {video: second[video][: len(rows)] for video, rows in VIDEOS.items() if len(second[video]) >= len(rows)}
    joined = load_sequences([bank, bank_of_views(tmp_path / "other.h5", second)], list(second))
    assert joined.feature_shape == (2 * FEATURES,)
    for view, chosen in enumerate(joined.in_each_view()):
        for place, video in enumerate(joined.ids):
            expected = np.hstack([VIDEOS[video][:, view], second[video][:, view]])
            np.testing.assert_array_equal(chosen.read(place).numpy(), expected)


@pytest.mark.parametrize("memory_bytes", [None, 0], ids=["memory", "stream"])
def test_each_view_is_resampled_by_itself(bank: Bank, tmp_path: Path, memory_bytes: int | None) -> None:
    second = {video: rows[: len(rows) // 2 + 1] for video, rows in videos_of(seed=1).items()}
    second = {video: second[video] for video, rows in VIDEOS.items() if 2 * len(second[video]) >= len(rows)}
    slow = bank_of_views(tmp_path / "slow.h5", second, rate=5)
    joined = load_sequences([bank, slow], list(second), memory_bytes=memory_bytes, resampling=Resampling("linear"))
    for view, chosen in enumerate(joined.in_each_view()):
        for place, video in enumerate(joined.ids):
            columns = second[video][:, view].T.astype(np.float64)
            there, wanted = np.arange(columns.shape[1]) / 5, np.arange(len(VIDEOS[video])) / 10
            expected = np.stack([np.interp(wanted, there, column) for column in columns], axis=1)
            np.testing.assert_allclose(chosen.read(place)[:, FEATURES:], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("views", [1, 2])
def test_banks_of_other_views_do_not_go_side_by_side(bank: Bank, tmp_path: Path, views: int) -> None:
    fewer = {video: rows[:, :views] for video, rows in VIDEOS.items()}
    path = tmp_path / "other.h5"
    other = (
        bank_of_views(path, fewer)
        if views > 1
        else Bank(bank_of(path, {video: rows[:, 0] for video, rows in fewer.items()}))
    )
    with pytest.raises(UserError, match=rf"different numbers of views of a video \(.* 4 and .* {views}\)"):
        material_of(bank, other, side_by_side=True)
    apart = material_of(bank, other, side_by_side=False).sequences
    assert [each.views for each in apart] == [VIEWS, views]
    members = tuple(Member(head_of().eval(), ()) for _ in apart)
    bundle = Bundle(members, "class", False, ("falling", "rising"), CLASS, ALL, fusion="mean")
    fused = score_bundle(bundle, apart, np.arange(COUNT))
    each = [score(member.head, own, np.arange(COUNT), CLASS, ALL) for member, own in zip(members, apart, strict=True)]
    np.testing.assert_allclose(fused, np.mean(each, axis=0), atol=1e-6)


def test_describe_tells_of_views(bank: Bank) -> None:
    text = framebank("describe", bank.path).stdout
    assert f"Features    ({VIEWS}, T, {FEATURES}) float32" in text
    assert f"{VIEWS} views of each video (random)" in text
    video = next(iter(VIDEOS))
    text = framebank("describe", bank.path, video).stdout
    rows = VIDEOS[video]
    assert f"Features    {(VIEWS, len(rows), FEATURES)}, from {rows.min():.4g} to {rows.max():.4g}" in text
    norm = np.linalg.norm(rows[:, 0], axis=1).mean()
    change = np.linalg.norm(np.diff(rows[:, 0], axis=0), axis=1).mean()
    assert f"{norm:.4g} on average; change from row to row {change:.4g} on average, of the plain view" in text


def test_verify_reads_every_view(bank: Bank) -> None:
    text = framebank("describe", bank.path, "--verify").stdout
    assert text.startswith(f"{COUNT} videos read, {VIEWS} views of each: all complete")
