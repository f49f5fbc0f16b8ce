"""A backbone: a network cut at a layer, frozen, with the preprocessing of its weights and the window that it sees.

Which layer. `layer` is a node of the model's graph in evaluation mode (`flatten`, `layer4.2.relu_2`) or a module whose
last node is meant (`layer4`), by the names of torchvision's `get_graph_node_names`. `NODE:mean` averages a map over
height and width, and over time where it has it. The default is the input of the last Linear, before its dropout: the
pooled features of most models (ResNet-50: `flatten`, 2048), the second fully connected layer after its ReLU for VGG and
AlexNet (4096). Where the classifier is convolutional (SqueezeNet, S3D) it is the input of its last convolution,
averaged. `output` is the last node of all, what the network's own classifier says.

What shape. A layer gives (N, D), or maps (N, C, H, W); anything else is refused. Maps that a model keeps as
(N, H, W, C), as Swin does, are turned to (N, C, H, W): images are square, so of three sizes the two equal ones are
height and width. A vision transformer's tokens (N, L, D) become a map of one column, (N, D, L, 1): averaged, they are
the mean of all tokens, the class token among them. Volumes, (N, C, T, H, W) or (N, T, H, W, C), become maps of T·H
rows, (N, C, T·H, W): the steps one below the other.

What it sees. One RGB frame, unless `window` says otherwise: see `pipeline.networks` for which networks see what. With
`inflate` an image network is made into one of clips: see `pipeline.inflation`.

What is computed. The nodes that the layer depends on in the graph for evaluation, and nothing else: not the other
branches, and not the assertions of image sizes. The module has no other graph, so `train()` does not change what it
computes but through the modules in it.

Which tensors. Named weights are downloaded once to where torchvision looks for them, checked against the SHA-256 in
their name each time; a checkpoint file is read by `pipeline.checkpoints`; random weights are torchvision's own
initialisation after a seed, and leave the global random state alone. Of a file, all tensors that the layer
needs must be there in the right shape, and no others may be there than the model's own, with one exception: the
classifier may have any shape, any names, or be absent, as long as the layer does not need it. What an image network was
trained with is adapted to another first convolution (`pipeline.first_convolution`) or inflated; a file may hold either.
Tensors that are not finite (torchvision publishes a VGG-16 whose classifier is NaN) are refused where the layer needs
them.
"""

import contextlib
import io
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pipeline import first_convolution
from pipeline.checkpoints import copy_into, load_checkpoint, tensors_sha256
from pipeline.downloads import downloaded
from pipeline.errors import UserError
from pipeline.inflation import inflate_state, inflated
from pipeline.networks import (
    FIXED_SIZE,
    build,
    choose_preset,
    did_you_mean,
    image_networks,
    named_weights,
    presets,
    window_of,
)
from pipeline.preprocessing import Preprocessing
from pipeline.windows import FRAME, Window

OUTPUT = "output"  # the layer that is the last node, whatever its name
NODE_NAME = "torchvision"  # in `meta` of a graph's nodes: the name by which `layer` means this node
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_CHANGING = {"_add_shortcut"}  # of torchvision's MViT
_TRACED = "_tensor_constant"  # how torch.fx names the constants that it makes


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen feature extractor and all that says what its features are."""

    name: str  # torchvision's, or of `pipeline.video_nets`: "resnet50"
    layer: str  # resolved: "flatten", "features.12.cat:mean"
    weights: str  # "IMAGENET1K_V2", "file:NAME" or "random (seed 0)"
    sha256: str  # of the tensors that the layer needs, as loaded: another classifier does not change it
    preprocessing: Preprocessing
    feature_shape: tuple[int, ...]  # (D,) or (C, H, W)
    containers: frozenset[str]  # modules that only hold others in a row (see `_is_container`), which tracing forgets
    module: "FeatureExtractor"  # normalised (N, *input_shape) float32 -> (N, *feature_shape); evaluation, no gradients
    window: Window = FRAME  # what of a video makes one row
    inflated: bool = False  # an image network made into one of clips

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what it sees: (C, S, S), or (3, L, S, S) of a clip."""
        return self.window.input_shape(self.preprocessing.crop)


def load_backbone(
    name: str = "resnet50",
    *,
    weights: str = "DEFAULT",
    layer: str | None = None,
    preset: str | None = None,
    image_size: int | None = None,
    fit: str = "crop",
    seed: int = 0,
    window: Window | None = None,
    inflate: bool = False,
) -> Backbone:
    """Build, load and cut a model by the rules above, on the CPU. `seed` is used by `weights="random"` only.

    A `window` that is None is the network's own: one frame, or a clip.

    UserError: unknown model, weights, preset or layer; a file that does not fit; weights that cannot be downloaded; an
    image size or a window that the model does not take; a layer of another shape than those above; a model that cannot
    be inflated.
    """
    window = window_of(name, window, inflate=inflate)
    preprocessing = choose_preset(name, weights, preset, image_size, fit, window)
    own_size = presets(name)[preprocessing.preset].crop
    if name.startswith(FIXED_SIZE) and preprocessing.crop != own_size:
        raise UserError(
            f"{name} takes {own_size}×{own_size} only ({preprocessing.preset}), not "
            f"{preprocessing.crop}×{preprocessing.crop}; leave --image-size out"
        )
    adapts = first_convolution.is_adapted(window) and name in image_networks()
    with first_convolution.taking(window.channels) if adapts else contextlib.nullcontext():
        model = build(name, window, own_size=own_size, seed=seed)
    whole, nodes = _traced(model)
    classifier, default = _classifier(model, nodes)
    layer = nodes[-1] if layer == OUTPUT else layer or default
    net = _cut(name, whole, layer, nodes)
    if inflate:
        net = inflated(net)
    module, feature_shape = _shaped(name, layer, net, window.input_shape(preprocessing.crop), own_size)
    needed = named_tensors(net)

    label, path = f"random (seed {seed})", None
    entry = named_weights(name, weights)
    if entry is not None:
        label, path = entry.name, downloaded(name, entry, f"--weights FILE --preset {entry.name}")
    elif weights != "random":
        label, path = f"file:{Path(weights).name}", Path(weights)
    if path is not None:
        state = load_checkpoint(path)
        if inflate:
            state = inflate_state(state, needed)
        if adapts:
            state = _with_first_convolution(state, net, needed, window, published=entry is not None)
        _load(name, path, state, needed, known=model.state_dict().keys(), classifier=classifier)
    return Backbone(
        name=name,
        layer=layer,
        weights=label,
        sha256=tensors_sha256(needed),
        preprocessing=preprocessing,
        feature_shape=feature_shape,
        containers=frozenset(key for key, part in model.named_modules() if _is_container(part)),
        module=module,
        window=window,
        inflated=inflate,
    )


class FeatureExtractor(nn.Module):
    """The cut model: (N, *input_shape) -> (N, D) or (N, C, H, W)."""

    def __init__(self, net: fx.GraphModule, *, layout: str, average: bool) -> None:
        """`net` returns {"features": what `as_maps` takes in this `layout`}."""
        super().__init__()
        self.net = net
        self.layout = layout
        self.average = average

    def forward(self, images: Tensor) -> Tensor:
        features = as_maps(self.net(images)["features"], self.layout)
        return features.mean(dim=(2, 3)) if self.average else features


def layout_of(shape: tuple[int, ...]) -> str | None:
    """How a layer's tensor is laid out, by its shape: one of those of `as_maps`, or None where it is none of them."""
    if len(shape) in (4, 5) and shape[-3] == shape[-2] != shape[-1]:
        return "channels last" if len(shape) == 4 else "volumes, channels last"
    if len(shape) == 5:
        return "volumes" if shape[3] == shape[4] else None
    return {2: "vectors", 3: "tokens", 4: "channels first"}.get(len(shape))


def as_maps(features: Tensor, layout: str) -> Tensor:
    """As the model keeps them -> as a backbone gives them.

    Channels last (N, H, W, C) -> (N, C, H, W); tokens (N, L, D) -> (N, D, L, 1); volumes (N, C, T, H, W) and, channels
    last, (N, T, H, W, C) -> (N, C, T·H, W); the others as they are.
    """
    if layout == "channels last":
        return features.permute(0, 3, 1, 2)
    if layout == "volumes, channels last":
        features = features.permute(0, 4, 1, 2, 3)
    if layout.startswith("volumes"):
        return features.flatten(2, 3)
    return features.mT.unsqueeze(3) if layout == "tokens" else features


def from_maps(features: Tensor, layout: str) -> Tensor:
    """The inverse of `as_maps`, in contiguous memory where it moved anything. The steps of volumes are square."""
    if layout == "channels last":
        return features.permute(0, 2, 3, 1).contiguous()
    if layout.startswith("volumes"):
        features = features.unflatten(2, (-1, features.shape[3]))
        return features.permute(0, 2, 3, 4, 1).contiguous() if layout == "volumes, channels last" else features
    return features.squeeze(3).mT.contiguous() if layout == "tokens" else features


def part_of(net: fx.GraphModule, last: fx.Node, first: fx.Node | None = None) -> fx.GraphModule:
    """What computes node `last` of a net, from the images or from the value of node `first`; it shares the tensors.

    Returns:
        a module from that input to {"features": the value of `last`}, in evaluation mode.
    """
    needed, todo = {first}, [last]
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo.extend(node.all_input_nodes)
    graph, copies = fx.Graph(), {}
    for node in net.graph.nodes:
        if node is first:
            copies[node] = graph.placeholder("activations")
        elif node in needed or (first is None and node.op == "placeholder"):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output({"features": copies[last]})
    return fx.GraphModule(net, graph).eval()


def named_tensors(net: nn.Module) -> dict[str, Tensor]:
    """A cut model's tensors by torchvision's names, without the constants that tracing made: they are the
    architecture's, not the weights'."""
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith(_TRACED)}


def _traced(model: nn.Module) -> tuple[fx.GraphModule, list[str]]:
    """The whole model's graph in evaluation mode, and the names of its nodes in order of execution.

    Only nodes that exist in training and in evaluation have names; the graph's have theirs in `meta` as well.
    """
    in_training, in_evaluation = get_graph_node_names(model, suppress_diff_warning=True)
    nodes = [node for node in in_evaluation if node in set(in_training)]
    traced = create_feature_extractor(
        model, train_return_nodes=nodes[-1:], eval_return_nodes=in_evaluation, suppress_diff_warning=True
    )
    whole = fx.GraphModule(traced, traced.eval_graph)
    _hand_changes_on(whole.graph)
    by_name: Any = whole.graph.output_node().args[0]
    for name in nodes:
        by_name[name].meta[NODE_NAME] = name
    return whole, nodes


def changes_in_place(node: fx.Node) -> bool:
    """Whether a node changes its first argument by a method or function that says so by its name, and returns it."""
    return (node.op == "call_method" and re.search(r"[^_]_$", str(node.target)) is not None) or (
        node.op == "call_function" and getattr(node.target, "__name__", "") in _CHANGING
    )


def _hand_changes_on(graph: fx.Graph) -> None:
    """Let what comes after a change in place read what the change returns.

    MViT goes on with the old name of a tensor that it has changed (half of its position embedding, its residuals). In
    the graph nothing then hangs on the change, so that it would be lost, as it is in torchvision's own feature
    extraction.
    """
    place = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if changes_in_place(node):
            changed: Any = node.args[0]
            for user in list(changed.users):
                if place[user] > place[node] and user.op != "output":
                    user.replace_input_with(changed, node)


def _is_container(module: nn.Module) -> bool:
    """Whether a module is nothing but others in a row: a plain Sequential, list or dictionary, or a Sequential of
    another name (RegNet's stages) of modules that have parts themselves (so not a convolution with its norm)."""
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    return type(module) in _CONTAINERS or (
        isinstance(module, nn.Sequential) and all(next(child.children(), None) is not None for child in children)
    )


def _classifier(model: nn.Module, nodes: list[str]) -> tuple[str, str]:
    """The top-level module with the last Linear (or last convolution, where there is none), and the default layer.

    In all of torchvision's classifiers the node executed before is the input (tested on each).
    """
    modules = dict(model.named_modules())
    linears = [i for i, node in enumerate(nodes) if isinstance(modules.get(node), nn.Linear)]
    convolutions = [i for i, node in enumerate(nodes) if isinstance(modules.get(node), nn.Conv2d | nn.Conv3d)]
    last = (linears or convolutions)[-1]
    before = last - 1
    while isinstance(modules.get(nodes[before]), nn.Dropout):
        before -= 1
    return nodes[last].partition(".")[0], nodes[before] + ("" if linears else ":mean")


def _cut(name: str, whole: fx.GraphModule, layer: str, nodes: list[str]) -> fx.GraphModule:
    """The model up to a layer, sharing the model's tensors. UserError: no such node."""
    node = layer.removesuffix(":mean")
    parts = [known.split(".") for known in nodes]
    known = {".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}
    if node not in known:
        raise UserError(
            f"{name} has no layer {node!r}{did_you_mean(node, sorted(known))}; "
            f"its last ones are {', '.join(nodes[-5:])}"
        )
    meant = [each for each in whole.graph.nodes if f"{each.meta.get(NODE_NAME)}.".startswith(f"{node}.")]
    return part_of(whole, meant[-1])


def _shaped(
    name: str, layer: str, net: fx.GraphModule, input_shape: tuple[int, ...], own_size: int
) -> tuple[FeatureExtractor, tuple[int, ...]]:
    """The extractor for what the cut model gives, and its feature shape. UserError: input or layer impossible.

    It is tried with tensors that hold no numbers, since clips take long.
    """
    size = input_shape[-1]
    weights = {key: torch.empty_like(tensor, device="meta") for key, tensor in net.state_dict().items()}
    average = layer.endswith(":mean")
    try:
        # A failing traced module prints its own source to stderr besides raising.
        with contextlib.redirect_stderr(io.StringIO()), torch.inference_mode():
            # Two images: of one, a constant of the architecture would look like its features.
            features = functional_call(net, weights, (torch.empty(2, *input_shape, device="meta"),))["features"]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        clips = f"clips of {input_shape[1]} frames of {size}×{size}" if len(input_shape) == 4 else ""
        raise UserError(
            f"{name} does not take {clips or f'{size}×{size} images'} ({reason}); its own are {own_size}×{own_size}: "
            f"give a larger --image-size, or none{', and longer clips' if clips else ''}"
        ) from error
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    layout = layout_of(shape)
    if layout is None or shape[0] != 2 or 0 in shape:
        names = ("N" if shape[:1] == (2,) else f"{shape[0]} of two images", *shape[1:]) if shape else ()
        got = f"({', '.join(map(str, names))})" if shape else f"a {type(features).__name__}"
        raise UserError(f"layer {layer} of {name} gives {got}, not (N, D), maps or volumes; choose another --layer")
    if average and layout == "vectors":
        raise UserError(f"layer {layer} of {name} is not a map but (N, {shape[1]}); leave :mean out")
    shape = tuple(as_maps(features, layout).shape[1:])
    return FeatureExtractor(net, layout=layout, average=average).eval(), shape[:1] if average else shape


def _with_first_convolution(
    state: dict[str, Tensor], net: fx.GraphModule, needed: dict[str, Tensor], window: Window, *, published: bool
) -> dict[str, Tensor]:
    """A checkpoint's tensors, the first convolution's adapted to the window where it is one of colours."""
    key = first_convolution.first_weight(net)
    if key not in state or first_convolution.fits(state[key], needed[key], published=published):
        return state
    return state | {key: first_convolution.adapted(state[key], window)}


def _load(
    name: str,
    path: Path,
    state: dict[str, Tensor],
    needed: dict[str, Tensor],
    *,
    known: Collection[str],
    classifier: str,
) -> None:
    """Copy a checkpoint into the tensors that the layer needs. UserError: it does not fit, or is not finite there."""
    unknown = [key for key in state if key not in known and key.partition(".")[0] != classifier]
    missing, misshaped = copy_into(needed, state)
    problems = ((missing, "missing"), (misshaped, "of another shape"), (unknown, "unknown"))
    if any(keys for keys, _ in problems):
        counts = "; ".join(f"{len(keys)} {what}: {_examples(keys)}" for keys, what in problems if keys)
        raise UserError(
            f"{path} does not fit {name} ({len(state)} tensors in the file, {len(needed)} needed; {counts}); "
            f"is this really a {name} checkpoint?"
        )
    broken = [key for key, tensor in needed.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{path} holds values that are not finite in {_examples(broken)}, which the layer needs; choose an earlier "
            "--layer, or other weights"
        )


def _examples(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
