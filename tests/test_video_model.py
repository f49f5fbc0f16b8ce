"""Backbone and head as one module: held against a plain loop over videos, and what of it changes in a step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from pipeline.backbone import Backbone, load_backbone
from pipeline.errors import UserError
from pipeline.halves import split
from pipeline.heads import Head, HeadConfig
from pipeline.preprocessing import normalise
from pipeline.unfreezing import Unfreezing, trained_parameters
from pipeline.video_model import Front, VideoModel, front_of, kept_bytes
from pipeline.windows import Window

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LENGTHS = [3, 1, 12, 5]  # neither sorted nor of one length, and one of a single frame
HEAD = HeadConfig(hidden=6, pool="max+stats", centre=True, changes=(2,))


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return load_backbone("resnet18", weights="random", image_size=32)


def videos(lengths: list[int] = LENGTHS) -> list[torch.Tensor]:
    """Frames (T, 3, 32, 32) uint8 of each video."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (length, 3, 32, 32), dtype=torch.uint8, generator=generator) for length in lengths]


def packed(parts: list[torch.Tensor]) -> PackedSequence:
    return pack_sequence(parts, enforce_sorted=False)


def head_on(backbone: Backbone, config: HeadConfig = HEAD) -> Head:
    torch.manual_seed(1)
    return Head(config, backbone.feature_shape, 2)


def model_of(
    backbone: Backbone,
    names: tuple[str, ...],
    config: HeadConfig = HEAD,
    *,
    banked: bool = False,
    batch_norm: bool = False,
    micro_batch: int = 4,
    recompute: bool = False,
) -> tuple[VideoModel, Front]:
    """The model on frames, or on banked activations; and what makes activations of frames."""
    backbone = copy.deepcopy(backbone)
    halves = split(backbone, names)
    front = front_of(backbone, halves.prefix, "fp32", torch.device("cpu"))
    made = VideoModel(
        copy.deepcopy(halves.suffix),
        head_on(backbone, config),
        front=None if banked else front,
        feature_shape=(3, 32, 32),
        unfreezing=Unfreezing(((0, names),), batch_norm),
        micro_batch=micro_batch,
        recompute=recompute,
    )
    return made, front


def plain(backbone: Backbone, head: Head, frames: list[torch.Tensor]) -> torch.Tensor:
    """One video after the other through the whole network and the head: (B, K)."""
    rows = [backbone.module(normalise(backbone.preprocessing, each)) for each in frames]
    return torch.cat([head(pack_sequence([each])) for each in rows])


@pytest.mark.parametrize("names", [("layer4",), ("stem",)])
def test_clips_give_what_a_plain_loop_over_videos_gives(names: tuple[str, ...]) -> None:
    backbone = load_backbone("r3d_18", weights="random", image_size=16, window=Window("clip", 4))
    halves, head = split(copy.deepcopy(backbone), names), head_on(backbone)
    front = front_of(backbone, halves.prefix, "fp32", torch.device("cpu"))
    model = VideoModel(
        halves.suffix,
        head,
        front=front,
        feature_shape=backbone.input_shape,
        unfreezing=Unfreezing(((0, names),)),
        micro_batch=4,
    )
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randint(256, (n, *backbone.input_shape), dtype=torch.uint8, generator=generator) for n in (3, 1, 5)]
    with torch.no_grad():
        embedded = [backbone.module(normalise(backbone.preprocessing, each, backbone.window)) for each in clips]
        expected = torch.cat([head(pack_sequence([each])) for each in embedded])
    scores = model(packed(clips))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    scores.square().sum().backward()
    reached = {name for name, parameter in halves.suffix.net.named_parameters() if parameter.grad is not None}
    assert reached == set(trained_parameters(halves.suffix.net, names, batch_norm=False))


@pytest.mark.parametrize("names", [("layer4",), ("layer4.1",), ("layer3", "layer4"), ("conv1",)])
@pytest.mark.parametrize("recompute", [False, True])
def test_scores_and_gradients_are_those_of_a_plain_loop_over_videos(
    resnet: Backbone, names: tuple[str, ...], recompute: bool
) -> None:
    frames, targets = videos(), torch.tensor([0, 1, 1, 0])
    model, _ = model_of(resnet, names, recompute=recompute)
    model.train()
    scores = model(packed(frames))
    nn.functional.cross_entropy(scores, targets).backward()

    reference, head = copy.deepcopy(resnet), head_on(resnet).train()
    for name, parameter in reference.module.net.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{each}.") for each in names))
    expected = plain(reference, head, frames)
    nn.functional.cross_entropy(expected, targets).backward()

    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    wanted = dict(reference.module.net.named_parameters())
    compared = 0
    for name, parameter in model.suffix.net.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-3, atol=1e-5)
            compared += 1
    assert compared == sum(
        any(name.startswith(f"{each}.") for each in names) and "bn" not in name and "downsample.1" not in name
        for name in wanted
    )
    for (name, ours), theirs in zip(model.head.named_parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_video_of_one_frame_beside_one_of_a_hundred(resnet: Backbone) -> None:
    frames = videos([1, 100])
    model, _ = model_of(resnet, ("layer4",), micro_batch=7)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(packed(frames)), plain(resnet, model.head, frames), rtol=1e-4, atol=1e-5)


def test_outputs_per_step_come_back_to_their_own_video_and_step(resnet: Backbone) -> None:
    frames = videos()
    model, _ = model_of(resnet, ("layer4",), HeadConfig(cell="none", steps=True))
    model.eval()
    with torch.no_grad():
        output = model(packed(frames))
        assert isinstance(output, PackedSequence)
        padded, lengths = pad_packed_sequence(output, batch_first=True)
        assert lengths.tolist() == LENGTHS
        for video, each in enumerate(frames):
            alone = model.classify(model.vectors(each))
            torch.testing.assert_close(padded[video, : len(each)], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", [("layer4.1",), ("layer4.1.conv2",), ("layer4", "layer2.0.bn1")])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_step_changes_what_is_named_and_nothing_else(
    resnet: Backbone, names: tuple[str, ...], batch_norm: bool
) -> None:
    model, _ = model_of(resnet, names, batch_norm=batch_norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 0.1, weight_decay=0.1)
    model.train()
    model(packed(videos())).square().sum().backward()
    optimizer.step()
    norms = {name for name, module in model.suffix.net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    changed = set()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, before[name]):
            changed.add(name)
    for name in before:
        if not name.startswith("suffix.net."):
            continue
        own = name.removeprefix("suffix.net.")
        named = any(own.startswith(f"{each}.") for each in names)
        norm = own.rpartition(".")[0] in norms
        assert (name in changed) == (named and (batch_norm or not norm)), name
    assert any(name.startswith("head.") for name in changed)


def test_what_is_frozen_stays_in_evaluation_mode(resnet: Backbone) -> None:
    vgg = load_backbone("vgg11", weights="random", image_size=32, layer="classifier.3")
    model, _ = model_of(vgg, ("classifier.3",))
    model.train()
    assert not any(module.training for module in model.suffix.net.modules() if isinstance(module, nn.Dropout))
    assert model.suffix.net.get_submodule("classifier.3").training
    assert model.head.training
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("stored", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 0.05)])
def test_banked_activations_give_the_same_gradients(resnet: Backbone, stored: torch.dtype, tolerance: float) -> None:
    """To rounding; the head's absolute differences make more of that of float16 than the loss shows."""
    frames = videos()
    model, front = model_of(resnet, ("layer4",))
    banked, _ = model_of(resnet, ("layer4",), banked=True)
    losses = []
    for each, rows in ((model, frames), (banked, [front(video).to(stored).float() for video in frames])):
        each.train()
        losses.append(each(packed(rows)).square().sum())
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-3)
    compared = 0
    for one, other in zip(model.parameters(), banked.parameters(), strict=True):
        if one.grad is not None:
            assert (one.grad - other.grad).norm() <= tolerance * one.grad.norm() + 1e-6
            compared += 1
    assert compared > 10


def test_batch_norm_of_a_single_frame_is_refused_in_words(resnet: Backbone) -> None:
    model, _ = model_of(resnet, ("layer4",), batch_norm=True)
    model.train()
    with pytest.raises(UserError, match=r"single frame.*train-batch-norm"):
        model(packed(videos([1])))


def test_a_schedule_lets_train_what_it_names_from_then_on(resnet: Backbone) -> None:
    model, _ = model_of(resnet, ("layer3", "layer4"))
    model.unfreezing = Unfreezing(((0, ()), (2, ("layer4",)), (5, ("layer3",))))
    trained = []
    for epoch in range(6):
        model.begin_epoch(epoch)
        parameters = model.suffix.net.named_parameters()
        trained.append({name.partition(".")[0] for name, each in parameters if each.requires_grad})
    assert trained == [set(), set(), {"layer4"}, {"layer4"}, {"layer4"}, {"layer3", "layer4"}]


def test_memory_that_does_not_suffice_is_used_more_sparingly(resnet: Backbone) -> None:
    model, _ = model_of(resnet, ("layer4",))
    said = [model.use_less_memory() for _ in range(4)]
    assert "again in the backward pass" in str(said[0])
    assert [str(line).rpartition("of ")[2][:1] for line in said[1:3]] == ["2", "1"]
    assert said[3] is None


def test_scoring_halves_the_micro_batch_until_it_fits(resnet: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = model_of(resnet, ("layer4",))
    model.eval()
    forward = model.suffix.forward

    def cramped(rows: torch.Tensor) -> torch.Tensor:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(rows)

    with torch.no_grad():
        expected = model(packed(videos()))
        monkeypatch.setattr(model.suffix, "forward", cramped)
        torch.testing.assert_close(model(packed(videos())), expected, rtol=1e-4, atol=1e-5)
    assert model.micro_batch == 2


def test_recomputing_keeps_less(resnet: Backbone) -> None:
    rows = videos([4])[0]
    kept, recomputed = (
        kept_bytes(model_of(resnet, ("layer3", "layer4"), recompute=again)[0].train(), rows) for again in (False, True)
    )
    inputs = 128 * 4 * 4 * 4  # of layer3, bytes per frame
    assert inputs <= recomputed < 2 * inputs
    assert kept > 3 * recomputed
