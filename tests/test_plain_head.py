"""A head on one whole sequence beside the packed one: the same numbers for every way to make a head, of any length."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.bundles import Bundle, Member, score_bundle
from pipeline.export_check import difference, original
from pipeline.heads import Head, HeadConfig
from pipeline.layout import alone
from pipeline.objectives import READINGS, Objective
from pipeline.plain_head import PlainHead
from pipeline.plain_models import PlainBundle
from pipeline.selection import Selection
from pipeline.standardisation import Standardisation
from tests.banks import config as bank_config

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LENGTHS = (1, 2, 7, 300)
FEATURES = 6
HEADS: dict[str, dict[str, Any]] = {
    "lstm, last": {},
    "gru, last": {"cell": "gru"},
    "both ways, last": {"bidirectional": True},
    "gru, both ways, two layers": {"cell": "gru", "bidirectional": True, "layers": 2, "dropout": 0.2},
    "two layers, mean": {"layers": 2, "pool": "mean", "input_dropout": 0.3, "recurrent_dropout": 0.2},
    "max": {"pool": "max", "bidirectional": True, "variational_dropout": 0.2},
    "stats": {"pool": "stats", "bidirectional": True},
    "attention": {"pool": "attention", "cell": "gru"},
    "several pools": {"pool": "max+stats+last+attention", "bidirectional": True, "norm": "batch"},
    "no cell": {"cell": "none", "pool": "mean"},
    "no cell, last": {"cell": "none"},
    "mlp after each step": {"step_mlp": (5, 4), "pool": "mean", "mlp": (7, 3), "output_dropout": 0.4},
    "projection": {"projection": 3, "projection_dropout": 0.2, "init": ("orthogonal-recurrent", "forget-bias")},
    "less the mean": {"centre": True, "pool": "max"},
    "changes": {"changes": (1, 4), "pool": "mean"},
    "all inputs": {"centre": True, "deltas": (2,), "changes": (1, 8), "bidirectional": True, "pool": "max+stats"},
    "every step": {"steps": True, "bidirectional": True, "norm": "batch"},
    "every step, mlp": {"steps": True, "cell": "gru", "step_mlp": (5,), "deltas": (3,)},
}


def head_of(settings: dict[str, Any], outputs: int = 3, shape: tuple[int, ...] = (FEATURES,), seed: int = 0) -> Head:
    """A head with weights large enough to matter, a standardisation and, of vectors, components, in eval mode."""
    torch.manual_seed(seed)
    config = HeadConfig(hidden=5, **settings)
    width = config.inputs.width(shape[0] if config.spatial != "flatten" else int(np.prod(shape)))
    components = torch.linalg.qr(torch.randn(width, 4))[0] if len(shape) == 1 and width > 4 else None
    channels = (torch.randn(shape[0]), torch.rand(shape[0]) + 0.5) if config.spatial == "attention" else (None, None)
    head = Head(
        config, shape, outputs, Standardisation(torch.randn(width), torch.rand(width) + 0.5, components, *channels)
    )
    for parameter in head.parameters():
        parameter.data.mul_(2)
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    head.value_mean.normal_()
    head.value_scale.uniform_(0.5, 2)
    return head.eval()


def rows_of(length: int, shape: tuple[int, ...] = (FEATURES,)) -> torch.Tensor:
    return torch.randn(length, *shape, generator=torch.Generator().manual_seed(length))


def bundle_of(
    *settings: dict[str, Any],
    shape: tuple[int, ...] = (FEATURES,),
    banks: int = 1,
    spatial: str | None = None,
    **changes: Any,
) -> Bundle:
    """A bundle of a head for each of some settings, each on so many banks; `changes` are of the bundle."""
    objective = changes.pop("objective", Objective("class"))
    labels = () if objective.kind == "value" else ("a", "b", "c")
    seen = (shape[0] * banks, *shape[1:])
    seen = seen[:1] if spatial == "mean" else (int(np.prod(seen)),) if spatial == "flatten" else seen
    made = tuple({"config": bank_config(feature_shape=list(shape)), "fingerprint": f"f{n}"} for n in range(banks))
    members = tuple(
        Member(head_of({**each, "steps": objective.steps}, len(labels) or 1, seen, number), made, spatial)
        for number, each in enumerate(settings)
    )
    return Bundle(members, objective.kind, objective.per_frame, labels, objective, Selection(), **changes)


@pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS)
@torch.no_grad()
def test_the_same_as_packed(settings: dict[str, Any]) -> None:
    head = head_of(settings)
    plain = PlainHead(head).eval()
    for length in LENGTHS:
        rows = rows_of(length)
        packed = head(alone(rows))
        wanted = packed.data if head.pool is None else packed[0]
        torch.testing.assert_close(plain(rows), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("spatial", ["mean", "flatten", "attention"])
@torch.no_grad()
def test_maps(spatial: str) -> None:
    head = head_of({"spatial": spatial, "centre": True}, shape=(4, 3, 3))
    rows = rows_of(7, (4, 3, 3))
    torch.testing.assert_close(PlainHead(head)(rows), head(alone(rows))[0], rtol=1e-5, atol=2e-6)


SVM = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
BUNDLES: dict[str, dict[str, Any]] = {
    "calibrated": {"temperature": 1.7},
    "several labels": {"objective": Objective("multilabel"), "temperature": 2.5},
    "values": {"objective": Objective("value")},
    "per frame": {"objective": Objective("class", per_frame=True), "temperature": 0.4},
    "values per frame": {"objective": Objective("value", per_frame=True)},
    **{f"read by {read}": {"objective": Objective("class", supervise="growing", read=read)} for read in READINGS},
    "labels read by max": {"objective": Objective("multilabel", supervise="every-step", read="max")},
    "joined banks": {"banks": 2},
    "maps averaged": {"shape": (4, 3, 3), "spatial": "mean", "banks": 2},
    "maps flattened": {"shape": (4, 3, 3), "spatial": "flatten"},
    "maps attended to": {"shape": (4, 3, 3), "spatial": "attention"},
}


@pytest.mark.parametrize("changes", BUNDLES.values(), ids=BUNDLES)
@torch.no_grad()
def test_a_bundle_predicts_the_same(changes: dict[str, Any]) -> None:
    head = (
        {"spatial": "attention"} if changes.get("spatial") == "attention" else {"bidirectional": True, "centre": True}
    )
    bundle = bundle_of(head, **changes)
    _same(bundle, changes.get("shape", (FEATURES,)))


@pytest.mark.parametrize("changes", [{"fusion": "mean", "temperature": 1.3}, {"fusion": "svm", "svm": SVM}])
@torch.no_grad()
def test_fused_heads_predict_the_same(changes: dict[str, Any]) -> None:
    _same(bundle_of({"cell": "gru"}, {"bidirectional": True, "pool": "max"}, **changes), (FEATURES,))


def _same(bundle: Bundle, shape: tuple[int, ...]) -> None:
    plain = PlainBundle(bundle)
    banks = [bank for member in bundle.members for bank in member.banks]
    for length in LENGTHS:
        features = [rows_of(length, shape) + number for number in range(len(banks))]
        wanted = original(bundle, [each.numpy() for each in features])
        apart = difference(bundle, plain(*features).numpy(), wanted)
        assert apart < 5e-6
        assert wanted.shape == ((length,) if bundle.per_frame else ()) + (bundle.members[0].head.outputs,)


@torch.no_grad()
def test_a_sure_label_is_tempered_alike() -> None:
    """Near 1, float32 has no numbers for what float64 tells apart."""
    bundle = bundle_of({}, objective=Objective("multilabel"), temperature=3.0)
    head = bundle.members[0].head
    assert isinstance(head, Head)
    for sure in (8.0, 12.0, 40.0, -40.0):
        head.value_mean.fill_(sure)
        head.value_scale.fill_(1e-3)
        rows = rows_of(4)
        np.testing.assert_allclose(PlainBundle(bundle)(rows).numpy(), original(bundle, [rows.numpy()]), atol=1e-5)


def test_the_original_is_the_bundle_on_its_sequences() -> None:
    """The reference of all checks is what every prediction goes through."""
    from tests.heads import sequences_of

    bundle = bundle_of({"bidirectional": True})
    sequences = sequences_of([3, 9])
    wanted = score_bundle(bundle, [sequences], np.arange(2))
    for video in range(2):
        found = original(bundle, [sequences.read(video).numpy()])
        np.testing.assert_allclose(found, np.asarray(wanted)[video], atol=1e-6)
