"""A model -> its graph in evaluation mode, with nodes by the names that `layer` means; or the model in one piece.

What torch.fx cannot trace, or traces to something that computes other numbers, is one node named `output`: it can be
banked as a whole, and trained as a whole.
"""

import contextlib
import io
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pipeline.errors import UserError

OUTPUT = "output"  # the layer that is the last node, whatever its name
NODE_NAME = "torchvision"  # in `meta` of a graph's nodes: the name by which `layer` means this node
PIECE = "network"  # the module that is a model in one piece
_CHANGING = {"_add_shortcut"}  # of torchvision's MViT
_STEADY = 1e-3  # of the largest value: so far may an image's output be off in another batch, by other kernels
_SAME = 1e-5  # of the largest value: so far may what was traced be off, by the order of sums


class Traced(NamedTuple):
    """A traced model.

    Attributes:
        graph: it, sharing the model's tensors.
        nodes: the names of its nodes, in the order of execution.
        whole: why it is in one piece; "" where it is not.
    """

    graph: fx.GraphModule
    nodes: list[str]
    whole: str = ""


def traced(model: nn.Module, options: Mapping[str, Any]) -> Traced:
    """The whole model's graph in evaluation mode, by torchvision's tracer with these options.

    Only nodes that exist in training and in evaluation have names; the graph's have theirs in `meta` as well.
    """
    in_training, in_evaluation = get_graph_node_names(model, dict(options), suppress_diff_warning=True)
    nodes = [node for node in in_evaluation if node in set(in_training)]
    both = create_feature_extractor(
        model,
        train_return_nodes=nodes[-1:],
        eval_return_nodes=in_evaluation,
        tracer_kwargs=dict(options),
        suppress_diff_warning=True,
    )
    whole = fx.GraphModule(both, both.eval_graph)
    _hand_changes_on(whole.graph)
    by_name: Any = whole.graph.output_node().args[0]
    for name in nodes:
        by_name[name].meta[NODE_NAME] = name
    return Traced(whole, nodes)


def traced_or_whole(name: str, model: nn.Module, options: Mapping[str, Any], input_shape: tuple[int, ...]) -> Traced:
    """The same of any model, in one piece where it cannot be traced or its graph gives something else for noise.

    Raises what the model raises for two inputs of the shape. UserError: what it gives for one of them is not finite,
    or hangs on the other, on chance or on what it computed before.
    """
    images = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(images)
        if isinstance(wanted, Tensor) and wanted.is_floating_point() and len(wanted) == len(images):
            _check_steady(name, wanted[:1], model(images[:1]))
    try:
        # A failing traced module prints its own source to stderr besides raising.
        with contextlib.redirect_stderr(io.StringIO()), torch.inference_mode():
            result = traced(model, options)
            found = result.graph(images)[result.nodes[-1]]
    except Exception as error:  # noqa: BLE001 - tracing runs any model's code on what are no tensors
        return in_one_piece(model, f"it cannot be traced: {str(error).strip().partition(chr(10))[0]}")
    if not isinstance(wanted, Tensor):
        return in_one_piece(model, f"it gives a {type(wanted).__name__}")
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=0, atol=_SAME * float(wanted.abs().max())):
        return in_one_piece(model, "traced, it computes something else")
    return result


def _check_steady(name: str, among_others: Tensor, alone: Tensor) -> None:
    """UserError: the outputs for one image are not finite, or not the same."""
    if not among_others.isfinite().all():
        raise UserError(f"{name} gives values that are not finite for images of noise; check its weights")
    apart = float((among_others - alone).abs().max())
    if not apart <= _STEADY * float(among_others.abs().max()):
        raise UserError(
            f"{name} gives another output for the same image when it is alone and among others ({apart:.2g} apart), so "
            "an embedding would hang on its batch; take out what looks across the batch, draws at random, or counts"
        )


def in_one_piece(model: nn.Module, why: str) -> Traced:
    """A graph whose only node is the model."""
    holder = nn.Module()
    holder.add_module(PIECE, model)
    graph = fx.Graph()
    node = graph.call_module(PIECE, (graph.placeholder("images"),))
    node.meta[NODE_NAME] = OUTPUT
    graph.output({OUTPUT: node})
    return Traced(fx.GraphModule(holder, graph).eval(), [OUTPUT], why)


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
