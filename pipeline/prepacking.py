"""Convolutions of a frozen network on a CPU as oneDNN computes them fastest: weights laid out once, what follows fused.

torch hands a convolution's weights to oneDNN as they lie, which lays them out for its kernels in every forward pass,
and reads the output once more for the ReLU after it and for the sum with a shortcut. Here weights are laid out once,
for the one shape of all batches, and the convolution itself computes what follows. That is a part of what torch's
compiler does when it freezes a network (`torch._inductor.fx_passes.mkldnn_fusion`); here nothing is compiled.

The numbers are the same up to rounding, with ReLUs in bfloat16 bit for bit: a sum or another activation is rounded
once, with the convolution, instead of by itself. In float32 oneDNN computes some that torch would compute by itself.
One thing is not the same: oneDNN's ReLU makes 0 of NaN. Hence not in float16, where numbers easily go beyond what it
can hold; and `pipeline.encoder` leaves a network as it is that does not give the same finite numbers for noise.
"""

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.ops import SqueezeExcitation, StochasticDepth

_LAYING_OUT = {
    nn.Conv2d.forward: "mkldnn_reorder_conv2d_weight",
    nn.Conv3d.forward: "mkldnn_reorder_conv3d_weight",
}
_ACTIVATIONS: dict[type[nn.Module], tuple[str, tuple[float, ...]]] = {  # oneDNN's names, and their numbers
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("hardtanh", (0.0, 6.0)),
    nn.SiLU: ("swish", ()),
    nn.Hardswish: ("hardswish", ()),
}
_NOTHING = (nn.Identity.forward, nn.Dropout.forward, StochasticDepth.forward)  # is what these do in evaluation
_SQUEEZE = ("avgpool", "fc1", "activation", "fc2", "scale_activation")  # what torchvision's calls, one on the other
_RELU = (F.relu, torch.relu)
_SUMS = (operator.add, operator.iadd, torch.add)


def can_prepack(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and computes in this dtype itself on this CPU; not in float16, see above."""
    if not torch.backends.mkldnn.is_available():
        return False
    native = dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 or native


@torch.inference_mode()
def prepacked(net: fx.GraphModule, images: Tensor) -> fx.GraphModule:
    """A frozen network on a CPU with its convolutions prepacked and fused.

    Args:
        net: in evaluation mode, BatchNorms folded; it stays as it was.
        images: of the shape, dtype and layout of all batches.

    Returns:
        the same function, to be called in inference mode; its weights are no parameters any more.
    """
    graph = copy.deepcopy(net.graph)
    modules = dict(net.named_modules(remove_duplicate=False))
    for node in list(graph.nodes):
        if _calls_with_one(node):
            _unroll(graph, node, modules)
    ShapeProp(fx.GraphModule(net, graph)).propagate(images)
    replaced: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if not _is_convolution(node, modules):
            continue
        packed = _Packed(modules[node.target], _meta(node.args[0]).shape)
        replaced[node.target] = packed
        after = _only_user(node)
        if after is not None and packed.groups == 1 and _is_sum(after, node):  # of groups, not in bfloat16
            other = next(each for each in after.args if each is not node)
            packed.sums = True
            node.args = (node.args[0], other)
            _absorb(graph, after, node)
            after = _only_user(node)
        if after is not None and (activation := _activation(after, modules)) is not None:
            if packed.sums and activation[0] != "relu":
                continue
            packed.activation, packed.numbers = activation[0], list(activation[1])
            _absorb(graph, after, node)
    result = fx.GraphModule(net, graph)
    for name, module in replaced.items():
        result.set_submodule(name, module)
    return result.eval()


class _Packed(nn.Module):
    """One convolution in oneDNN's layout, with what follows it.

    Args:
        convolution: as torch has it.
        shape: of its input.
    """

    def __init__(self, convolution: Any, shape: torch.Size) -> None:
        super().__init__()
        lay_out = getattr(torch._C._nn, _LAYING_OUT[type(convolution).forward])
        self.geometry = [list(convolution.padding), list(convolution.stride), list(convolution.dilation)]
        self.groups, self.bias = convolution.groups, None if convolution.bias is None else convolution.bias.data
        self.weight: Tensor = lay_out(convolution.weight.data.to_mkldnn(), *self.geometry, self.groups, list(shape))
        self.sums, self.activation, self.numbers = False, "none", list[float]()

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        given = (self.weight, self.bias, *self.geometry, self.groups)
        if self.sums:
            activation = None if self.activation == "none" else self.activation
            summed: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
                images, other, *given, "add", 1.0, activation, [], None
            )
            return summed
        alone: Tensor = torch.ops.mkldnn._convolution_pointwise(images, *given, self.activation, self.numbers, "")
        return alone


def _unroll(graph: fx.Graph, node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
    """Replace the call of a module, which tracing or folding takes as one, by calls of those that it is made of."""
    images, name = node.args[0], str(node.target)
    module = modules[name]
    excites = type(module) is SqueezeExcitation and not _is_changed(module)
    parts = [f"{name}.{part}" for part in _SQUEEZE] if excites else _in_a_row(name, modules)
    if parts == [name]:
        return
    result: Any = images
    with graph.inserting_before(node):
        for part in parts:
            result = graph.call_module(part, (result,))
        if excites:
            result = graph.call_function(operator.mul, (result, images))
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _in_a_row(name: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """The names of the modules that one is made of, in the order in which it calls them; its own where it is no row."""
    module = modules[name]
    if _is_changed(module) or type(module).forward not in (nn.Sequential.forward, *_NOTHING):
        return [name]
    return [part for child in module._modules for part in _in_a_row(f"{name}.{child}", modules)]


def _is_convolution(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node calls a convolution as torch's own compute, that nothing else calls or reads the weights of.

    Of one channel, in or out, weights may be laid out in several ways that torch and oneDNN take for each other.
    """
    if not _calls_with_one(node):
        return False
    module: Any = modules[str(node.target)]
    return (
        type(module).forward in _LAYING_OUT
        and type(module)._conv_forward in (nn.Conv2d._conv_forward, nn.Conv3d._conv_forward)
        and min(module.in_channels, module.out_channels) > 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not _is_changed(module)
        and [each for each in node.graph.nodes if _reads(each, module, modules)] == [node]
    )


def _calls_with_one(node: fx.Node) -> bool:
    """Whether a node calls a module with one tensor, and nothing else."""
    return node.op == "call_module" and len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node)


def _reads(node: fx.Node, module: nn.Module, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node calls a module, under whatever name, or takes something out of it."""
    name = str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0]
    return node.op in ("call_module", "get_attr") and modules.get(name) is module


def _is_changed(module: nn.Module) -> bool:
    """Whether something else than its class says what a module computes."""
    return bool(module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_sum(node: fx.Node, convolution: fx.Node) -> bool:
    """Whether a node adds a convolution and something of its shape, and is the next thing computed: nothing in between
    may change what is added."""
    if node.op != "call_function" or node.target not in _SUMS or node is not convolution.next:
        return False
    if len(node.args) != 2 or node.kwargs:
        return False
    terms = [each for each in node.args if isinstance(each, fx.Node)]
    if len(terms) != 2 or terms[0] is terms[1]:
        return False
    one, other = (_meta(each) for each in terms)
    return None not in (one, other) and (one.shape, one.dtype) == (other.shape, other.dtype)


def _activation(node: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[str, tuple[float, ...]] | None:
    """The activation that a node computes of its only input, by oneDNN's name and with its numbers; None for others."""
    if node.op == "call_function" and node.target in _RELU and len(node.args) == 1:
        return _ACTIVATIONS[nn.ReLU]
    if not _calls_with_one(node):
        return None
    module = modules[str(node.target)]
    return None if _is_changed(module) else _ACTIVATIONS.get(type(module))


def _absorb(graph: fx.Graph, node: fx.Node, into: fx.Node) -> None:
    """Let a convolution stand for what follows it."""
    node.replace_all_uses_with(into)
    into.meta["tensor_meta"] = node.meta["tensor_meta"]
    graph.erase_node(node)


def _meta(node: fx.Node) -> Any:
    return node.meta.get("tensor_meta")
