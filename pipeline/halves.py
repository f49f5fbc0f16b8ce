"""A backbone in two: the part before anything that trains, and the part from there on.

The first half never changes, so what it gives can be computed once. The boundary between them is the last node of the
graph before anything of what trains (its Dropout as well, where a module is named that begins with one) such that its
value is the only one that the second half needs (within a residual block, also the block's input would be) and is one
that a backbone can give: so the first half is a `Backbone` like any other, cut at an earlier layer. Where nothing with
weights lies before such a node, the second half is the whole. (MViT's blocks hand each other the sizes of their maps
besides, so it is cut before the first of them, or after it.)
"""

import operator
from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbone import (
    Backbone,
    FeatureExtractor,
    as_maps,
    from_maps,
    layout_of,
    named_tensors,
    part_of,
    without_numbers,
)
from pipeline.blocks import within
from pipeline.checkpoints import tensors_sha256
from pipeline.tracing import NODE_NAME, changes_in_place

_TRIED = 2  # rows that the shapes are taken from: of one, a constant would look like a batch


class Suffix(FeatureExtractor):
    """From the boundary on: (n, *shape that the first half gives) float32 -> the whole backbone's features.

    Attributes:
        net: the part of the cut model, its tensors under torchvision's names.
    """

    def __init__(self, net: fx.GraphModule, *, boundary: str, layout: str, average: bool) -> None:
        """`boundary` is the layout of what `net` reads, `layout` of what it gives."""
        super().__init__(net, layout=layout, average=average)
        self.boundary = boundary

    def forward(self, activations: Tensor) -> Tensor:
        return super().forward(from_maps(activations, self.boundary))


class Halves(NamedTuple):
    """A backbone in two, sharing its tensors.

    Attributes:
        prefix: what is before the boundary: what `load_backbone` gives with the boundary as the layer. None: nothing.
        suffix: what is after it, from activations (n, *prefix.feature_shape) float32, or without a prefix from
            normalised rows (n, *input_shape), to (n, *feature_shape) of the whole.
        share: of the floating-point operations of the whole forward pass, those of the suffix.
        flops: how many the whole forward pass of one row takes.
        frozen: the prefix's tensors by torchvision's names, as they were: converting the prefix does not change them.
    """

    prefix: Backbone | None
    suffix: Suffix
    share: float
    flops: float
    frozen: dict[str, Tensor]


def split(backbone: Backbone, names: Collection[str]) -> Halves:
    """Split a backbone (float32, as it was loaded) before the first of the modules and parameters that are named."""
    whole = backbone.module
    net = whole.net
    trial = _tried(net, backbone.input_shape, really=bool(backbone.whole))
    flops = sum(trial.flops.values()) / _TRIED
    boundary = _boundary(net, trial.shapes, names)
    layout = "channels first" if boundary is None else str(layout_of(trial.shapes[boundary]))
    last: Any = net.graph.output_node().args[0]
    images = next(node for node in net.graph.nodes if node.op == "placeholder")
    second = part_of(net, last["features"], boundary or images)
    suffix = Suffix(second, boundary=layout, layout=whole.layout, average=whole.average).eval()
    if boundary is None:
        return Halves(None, suffix, 1.0, flops, {})
    first = part_of(net, boundary)
    frozen = {name: tensor.detach() for name, tensor in named_tensors(first).items()}
    prefix = replace(
        backbone,
        layer=boundary.meta[NODE_NAME],
        sha256=tensors_sha256(frozen),
        feature_shape=tuple(as_maps(torch.empty(trial.shapes[boundary], device="meta"), layout).shape[1:]),
        module=FeatureExtractor(first, layout=layout, average=False).eval(),
    )
    nodes = list(net.graph.nodes)
    before = sum(trial.flops[node] for node in nodes[: nodes.index(boundary) + 1])
    return Halves(prefix, suffix, 1 - before / (flops * _TRIED), flops, frozen)


def named_state(halves: Halves) -> dict[str, Tensor]:
    """All tensors that the layer needs, by torchvision's names, as `pipeline.checkpoints` reads them: the prefix's as
    they were loaded, the suffix's as they are now, detached."""
    return halves.frozen | named_tensors(halves.suffix.net)


class _Trial(fx.Interpreter):
    """Runs a net and notes of each node the shape of its value (() for what is no tensor of floats) and its FLOPs."""

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__(net)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.flops: dict[fx.Node, int] = {}
        self._counter = FlopCounterMode(display=False)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # As in the module's own code, where lists are written anew each time: Swin3D changes those that it is given.
        return super().call_function(target, tuple(list(arg) if isinstance(arg, list) else arg for arg in args), kwargs)

    def run_node(self, n: fx.Node) -> Any:
        with self._counter:
            value = super().run_node(n)
        self.flops[n] = self._counter.get_total_flops()
        floats = isinstance(value, Tensor) and value.is_floating_point()
        self.shapes[n] = tuple(value.shape) if floats else ()
        return value


def _tried(net: fx.GraphModule, input_shape: tuple[int, ...], *, really: bool) -> _Trial:
    """A trial of a net that computes shapes alone, with tensors that hold no numbers; or one that does it `really`."""
    trial = _Trial(net)

    class Tried(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> None:
            trial.run(images)

    weights = {} if really else {f"net.{name}": tensor for name, tensor in without_numbers(net).items()}
    images = torch.zeros(_TRIED, *input_shape, device="cpu" if really else "meta")
    with torch.no_grad():
        functional_call(Tried(), weights, (images,))
    return trial


def _boundary(net: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], names: Collection[str]) -> fx.Node | None:
    """The last node that may be the boundary, None if there is none."""
    nodes = list(net.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    trained = [name for name, _ in net.named_parameters() if within(name, names)]
    first = len(nodes)
    for node in nodes:
        target = str(node.target)
        if node.op == "call_module" and (within(target, names) or any(within(name, (target,)) for name in trained)):
            first = min(first, place[node])
        elif node.op == "get_attr" and target in trained:
            first = min(first, *(place[user] for user in node.users))
    with_tensors = {name.rpartition(".")[0] for name in net.state_dict()}
    found, weighted, needed_until = None, False, -1  # needed_until: the last use of any value before this node
    for node in nodes[:first]:
        weighted |= node.op == "call_module" and any(within(name, (str(node.target),)) for name in with_tensors)
        alone = weighted and needed_until <= place[node]
        if node.op not in ("placeholder", "get_attr"):
            shape = shapes[node]
            fits = layout_of(shape) is not None and shape[0] == _TRIED and 0 not in shape
            if alone and fits and NODE_NAME in node.meta and not any(_overwrites(net, user) for user in node.users):
                found = node
        if node.op != "get_attr":
            needed_until = max(needed_until, *(place[user] for user in node.users))
    return found


def _overwrites(net: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node may change what it reads: a second half that did could not be run twice on the same input."""
    if node.op == "call_module":
        return bool(getattr(net.get_submodule(str(node.target)), "inplace", False))
    return changes_in_place(node) or bool(node.kwargs.get("inplace")) or node.target in (operator.iadd, operator.imul)
