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
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from pipeline import first_convolution
from pipeline.blueprints import DEFAULT, Blueprint
from pipeline.checkpoints import copy_into, load_checkpoint, tensors_sha256
from pipeline.errors import UserError, did_you_mean
from pipeline.inflation import inflate_state, inflated
from pipeline.networks import blueprint_of, build, choose_preset, named_weights, window_of
from pipeline.preprocessing import Preprocessing
from pipeline.tracing import NODE_NAME, OUTPUT, PIECE, Traced, traced, traced_or_whole
from pipeline.windows import FRAME, Window

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_TRACED = "_tensor_constant"  # how torch.fx names the constants that it makes


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen feature extractor and all that says what its features are."""

    name: str  # as banks record it, see `pipeline.networks`: "resnet50", "timm/test_vit", "towers:load"
    layer: str  # resolved: "flatten", "features.12.cat:mean"
    weights: str  # "IMAGENET1K_V2", "file:NAME", "random (seed 0)", or "DEFAULT" of a user's own network
    sha256: str  # of the tensors that the layer needs, as loaded: another classifier does not change it
    preprocessing: Preprocessing
    feature_shape: tuple[int, ...]  # (D,) or (C, H, W)
    containers: frozenset[str]  # modules that only hold others in a row (see `_is_container`), which tracing forgets
    module: "FeatureExtractor"  # normalised (N, *input_shape) float32 -> (N, *feature_shape); evaluation, no gradients
    window: Window = FRAME  # what of a video makes one row
    inflated: bool = False  # an image network made into one of clips
    code: str = ""  # SHA-256 of the source that made it, where that is a user's own
    whole: str = ""  # why it is in one piece (see `pipeline.tracing`), where it is
    assumed: bool = False  # whether nobody said which of several presets goes with a file

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
    known = blueprint_of(name)
    window = window_of(known, window, inflate=inflate)
    preprocessing = choose_preset(known, weights, preset, image_size, fit, window)
    entry = named_weights(known, weights)
    presets = known.presets()
    own_size = presets[preprocessing.preset].crop
    if known.fixed_size and preprocessing.crop != own_size:
        raise UserError(
            f"{known.name} takes {own_size}×{own_size} only ({preprocessing.preset}), not "
            f"{preprocessing.crop}×{preprocessing.crop}; leave --image-size out"
        )
    adapts = first_convolution.is_adapted(window) and known.is_image
    with first_convolution.taking(window.channels) if adapts else contextlib.nullcontext():
        model = build(known, window, preprocessing, seed=seed)
    if known.shorten is not None and layer != OUTPUT:
        known.shorten(model)
    input_shape = window.input_shape(preprocessing.crop)
    graph = _graph(known, model, input_shape, own_size)
    classifier, default = _ends(known, model, graph)
    layer = default if layer is None else re.sub(f"^{OUTPUT}(?=:mean$|$)", graph.nodes[-1], layer)
    net = _cut(known.name, graph, layer)
    if inflate:
        net = inflated(net)
    module, feature_shape = _shaped(known.name, layer, net, input_shape, own_size, tried=known.checked)
    needed = named_tensors(net)

    label, path = f"random (seed {seed})", None
    if entry is not None:
        label, path = entry.name, entry.file()
    elif known.brings_weights and weights == DEFAULT:
        label = DEFAULT
    elif weights != "random":
        label, path = f"file:{Path(weights).name}", Path(weights)
    if path is not None:
        state = load_checkpoint(path)
        names = model.state_dict().keys()
        if graph.whole:  # its tensors have the model's own names, but in the graph and where fine-tuning wrote them
            state = {key.removeprefix(f"{PIECE}."): tensor for key, tensor in state.items()}
        state = _translated(known, state, _own_names(needed), names, classifier, preprocessing)
        if inflate:
            state = inflate_state(state, needed)
        if adapts:
            state = _with_first_convolution(state, net, needed, window, published=entry is not None)
        _load(known.name, path, state, _own_names(needed), known=names, classifier=classifier)
    return Backbone(
        name=known.name,
        layer=layer,
        weights=label,
        sha256=tensors_sha256(needed),
        preprocessing=preprocessing,
        feature_shape=feature_shape,
        containers=frozenset(key for key, part in model.named_modules() if _is_container(part)),
        module=module,
        window=window,
        inflated=inflate,
        code=known.code,
        whole=graph.whole,
        assumed=preset is None and label.startswith("file:") and len(set(presets.values())) > 1,
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


def _is_container(module: nn.Module) -> bool:
    """Whether a module is nothing but others in a row: a plain Sequential, list or dictionary, or a Sequential of
    another name (RegNet's stages) of modules that have parts themselves (so not a convolution with its norm)."""
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    return type(module) in _CONTAINERS or (
        isinstance(module, nn.Sequential) and all(next(child.children(), None) is not None for child in children)
    )


def _graph(known: Blueprint, model: nn.Module, input_shape: tuple[int, ...], own_size: int) -> Traced:
    """The traced model. UserError: one that has to be tried does not take such inputs."""
    if not known.checked:
        return traced(model, known.tracing)
    try:
        return traced_or_whole(known.name, model, known.tracing, input_shape)
    except UserError:
        raise
    except Exception as error:  # whatever the model raises: it is not ours
        raise _refused(known.name, input_shape, own_size, error) from error


def _ends(known: Blueprint, model: nn.Module, graph: Traced) -> tuple[str, str]:
    """The top-level module that is the classifier ("" for none), and the default layer.

    Of a network that ends before its classifier, or in none, the layer is its last node before any dropout. Else the
    classifier has the last Linear (or last convolution, where there is none), and the layer is the node executed before
    it: in all of torchvision's models its input (tested on each).
    """
    modules = dict(model.named_modules())
    nodes = graph.nodes
    if known.checked:
        named = {node.meta.get(NODE_NAME): node for node in graph.graph.graph.nodes}
        last: Any = named[nodes[-1]]
        while isinstance(modules.get(str(last.target)), nn.Dropout | nn.Identity) and NODE_NAME in last.args[0].meta:
            last = last.args[0]
        return known.classifier(model), last.meta[NODE_NAME]
    linears = [i for i, node in enumerate(nodes) if isinstance(modules.get(node), nn.Linear)]
    convolutions = [i for i, node in enumerate(nodes) if isinstance(modules.get(node), nn.Conv2d | nn.Conv3d)]
    at = (linears or convolutions)[-1]
    before = at - 1
    while isinstance(modules.get(nodes[before]), nn.Dropout):
        before -= 1
    return nodes[at].partition(".")[0], nodes[before] + ("" if linears else ":mean")


def _cut(name: str, graph: Traced, layer: str) -> fx.GraphModule:
    """The model up to a layer, sharing the model's tensors. UserError: no such node."""
    node = layer.removesuffix(":mean")
    if graph.whole and node != OUTPUT:
        raise UserError(
            f"layer {node!r} of {name} cannot be reached ({graph.whole}); leave --layer out, or give {OUTPUT}:mean"
        )
    parts = [known.split(".") for known in graph.nodes]
    known = {".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}
    if node not in known:
        raise UserError(
            f"{name} has no layer {node!r}{did_you_mean(node, sorted(known))}; "
            f"its last ones are {', '.join(graph.nodes[-5:])}"
        )
    meant = [each for each in graph.graph.graph.nodes if f"{each.meta.get(NODE_NAME)}.".startswith(f"{node}.")]
    return part_of(graph.graph, meant[-1])


def _shaped(
    name: str, layer: str, net: fx.GraphModule, input_shape: tuple[int, ...], own_size: int, *, tried: bool
) -> tuple[FeatureExtractor, tuple[int, ...]]:
    """The extractor for what the cut model gives, and its feature shape. UserError: input or layer impossible.

    It is tried with tensors that hold no numbers, since clips take long; a model that was `tried` already, as it is: it
    may hold what cannot do without.
    """
    average = layer.endswith(":mean")
    # Two images: of one, a constant of the architecture would look like its features.
    images = torch.zeros(2, *input_shape, device="cpu" if tried else "meta")
    try:
        # A failing traced module prints its own source to stderr besides raising.
        with contextlib.redirect_stderr(io.StringIO()), torch.inference_mode():
            features = functional_call(net, {} if tried else without_numbers(net), (images,))["features"]
    except (RuntimeError, AssertionError) as error:
        raise _refused(name, input_shape, own_size, error) from error
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


def without_numbers(net: nn.Module) -> dict[str, Tensor]:
    """A module's tensors by name, on the device `meta`: what computes with them finds shapes alone."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}


def _refused(name: str, input_shape: tuple[int, ...], own_size: int, error: Exception) -> UserError:
    size, reason = input_shape[-1], str(error).partition("\n")[0]
    clips = f"clips of {input_shape[1]} frames of {size}×{size}" if len(input_shape) == 4 else ""
    if size == own_size and not clips:
        return UserError(f"{name} fails on images of its own {size}×{size}, float32 in a batch of 2: {reason}")
    return UserError(
        f"{name} does not take {clips or f'{size}×{size} images'} ({reason}); its own are {own_size}×{own_size}: "
        f"give a larger --image-size, or none{', and longer clips' if clips else ''}"
    )


def _translated(
    known: Blueprint,
    state: dict[str, Tensor],
    needed: Mapping[str, Tensor],
    names: Collection[str],
    classifier: str,
    preset: Preprocessing,
) -> dict[str, Tensor]:
    """A checkpoint's tensors as the model names them; as they are, where they fit it or nobody knows better."""
    fits = all(key in state and state[key].shape == tensor.shape for key, tensor in needed.items())
    if known.translate is None or (fits and not _unknown(state, names, classifier)):
        return state
    try:
        return known.translate(state, preset)
    except Exception:  # noqa: BLE001 - whatever it raises of tensors that it does not know: `_load` says what is wrong
        return state


def _own_names(needed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names that the model itself has for them, where it is in one piece."""
    if not all(key.startswith(f"{PIECE}.") for key in needed):
        return needed
    return {key.removeprefix(f"{PIECE}."): tensor for key, tensor in needed.items()}


def _unknown(state: Mapping[str, Tensor], names: Collection[str], classifier: str) -> list[str]:
    return [key for key in state if key not in names and key.partition(".")[0] != classifier]


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
    unknown = _unknown(state, known, classifier)
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
