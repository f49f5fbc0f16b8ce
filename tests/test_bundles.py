"""The model bundle: written and read, fused, and held against banks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from pipeline.bank import Bank
from pipeline.bundles import (
    Bundle,
    Member,
    check_banks,
    decide,
    described,
    load_bundle,
    save_bundle,
    score_bundle,
)
from pipeline.errors import UserError
from pipeline.heads import Head, HeadConfig
from pipeline.objectives import Objective
from pipeline.selection import Selection
from pipeline.sequences import Sequences
from tests.banks import bank_of, config, in_order
from tests.heads import FEATURES, sequences_of

MADE = ({"config": config(), "fingerprint": "f"},)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


def head(seed: int = 0, **settings: object) -> Head:
    torch.manual_seed(seed)
    return Head(HeadConfig(hidden=4, **settings), (FEATURES,), 3).eval()  # type: ignore[arg-type]


def bundle(*heads: Head, **changes: object) -> Bundle:
    members = tuple(Member(each, MADE) for each in heads)
    return Bundle(members, "class", False, ("a", "b", "c"), Objective("class"), Selection(), **changes)  # type: ignore[arg-type]


@pytest.fixture
def sequences() -> Sequences:
    return sequences_of([3, 1, 7, 5])


VIDEOS = np.arange(4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cell": "gru", "layers": 2, "bidirectional": True, "mlp": (5, 4)},
        {"cell": "none"},
        {"step_mlp": (5, 4), "projection": 3},
    ],
)
def test_what_is_saved_is_what_is_read(settings: dict[str, object], sequences: Sequences, tmp_path: Path) -> None:
    made = bundle(head(**settings), temperature=1.7, trained_on={"v9": "digest"}, min_seconds=0.5)
    save_bundle(tmp_path / "run", made)
    read = load_bundle(tmp_path / "run")
    one, other = (score_bundle(each, [sequences], VIDEOS) for each in (made, read))
    np.testing.assert_array_equal(one, other)
    assert (read.labels, read.temperature, read.trained_on) == (made.labels, 1.7, {"v9": "digest"})
    assert read.members[0].banks == MADE
    assert read.members[0].head.config == made.members[0].head.config
    assert read.min_seconds == 0.5


def test_heads_of_earlier_versions_are_read(sequences: Sequences, tmp_path: Path) -> None:
    """Their files do not name what came later."""
    made = bundle(head(projection=5))
    save_bundle(tmp_path, made)
    described = json.loads((tmp_path / "model.json").read_text())
    for name in ("variational_dropout", "projection_dropout", "step_mlp"):
        del described["members"][0]["head"][name]
    (tmp_path / "model.json").write_text(json.dumps(described))
    read = load_bundle(tmp_path)
    assert read.members[0].head.config == made.members[0].head.config
    one, other = (score_bundle(each, [sequences], VIDEOS) for each in (made, read))
    np.testing.assert_array_equal(one, other)


def test_damaged_bundles(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished model \(no model.json\)"):
        load_bundle(tmp_path)
    save_bundle(tmp_path, bundle(head()))
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="cannot be read"):
        load_bundle(tmp_path)
    save_bundle(tmp_path, bundle(head()))
    described = json.loads((tmp_path / "model.json").read_text())
    described["members"][0]["head"]["hidden"] = 5
    (tmp_path / "model.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="damaged"):
        load_bundle(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(UserError, match="not of this version"):
        load_bundle(tmp_path)


def test_fusion_by_mean_and_by_svm(sequences: Sequences) -> None:
    heads = [head(0), head(1)]
    each = [score_bundle(bundle(one), [sequences], VIDEOS) for one in heads]
    mean = score_bundle(bundle(*heads, fusion="mean"), [sequences] * 2, VIDEOS)
    np.testing.assert_allclose(mean, (np.asarray(each[0]) + np.asarray(each[1])) / 2, atol=1e-6)
    weights = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    fused = score_bundle(bundle(*heads, fusion="svm", svm=weights), [sequences] * 2, VIDEOS)
    margins = np.hstack([np.asarray(each[0]), np.asarray(each[1]), np.ones((4, 1))]) @ weights.T
    np.testing.assert_allclose(fused, softmax(margins, axis=1), atol=1e-6)


def test_svm_weights_survive(tmp_path: Path, sequences: Sequences) -> None:
    made = bundle(head(0), head(1), fusion="svm", svm=np.arange(21, dtype=np.float32).reshape(3, 7))
    save_bundle(tmp_path, made)
    np.testing.assert_array_equal(load_bundle(tmp_path).svm, made.svm)


def test_decisions() -> None:
    probability = np.array([[0.3, 0.6], [0.2, 0.4]])
    several = replace(bundle(head()), kind="multilabel", labels=("x", "y"))
    assert decide(several, probability).tolist() == [[0, 1], [0, 0]]
    assert decide(replace(several, thresholds=np.array([0.25, 0.6])), probability).tolist() == [[1, 1], [0, 0]]
    assert decide(bundle(head()), np.eye(3)).tolist() == [0, 1, 2]
    assert decide(replace(several, kind="value"), probability[:, :1]).tolist() == [0.3, 0.2]


def test_banks_that_were_made_otherwise(tmp_path: Path) -> None:
    videos = in_order(2)
    same = Bank(bank_of(tmp_path / "same.h5", videos))
    kept = (described(same),)
    made = Bundle((Member(head(), kept),), "class", False, ("a", "b", "c"), Objective("class"), Selection())
    assert check_banks(made, [same]) == []
    with Bank(bank_of(tmp_path / "half.h5", videos, precision="bf16")) as half:
        assert "precision is fp32 (the head's bank) and bf16" in check_banks(made, [half])[0]
    for change in ({"layer": "other"}, {"weights_sha256": "1" * 64}, {"sampling": {"stride": 2}}):
        name = next(iter(change))
        with Bank(bank_of(tmp_path / f"{name}.h5", videos, **change)) as other, pytest.raises(UserError, match=name):
            check_banks(made, [other])
    wide = {video: np.ones((3, 9)) for video in videos}
    with Bank(bank_of(tmp_path / "wide.h5", wide)) as other, pytest.raises(UserError, match=r"\[6\].*\[9\]"):
        check_banks(made, [other])
    with pytest.raises(UserError, match="2 were given"):
        check_banks(made, [same, same])
    same.close()
