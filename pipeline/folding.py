"""Frozen BatchNorm folded into the convolution before it: the same function with fewer passes over memory.

In evaluation BatchNorm is a scale and a shift of each channel, which the convolution's weights and bias can do as well
(Jacob et al. 2018, "Quantization and training of neural networks", section 3.2). The numbers are the
same up to rounding.

Folded are modules that compute what torch's own do. A BatchNorm of timm's that goes on to its activation leaves that
behind. What derives its weights anew each time (standardised, normalised or parametrised ones) stays.
"""

import copy
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.inflation import Inflated

_CONVOLUTIONS = ("Conv2d", "Conv3d", "Conv2dSame")  # the last is timm's, which pads as TensorFlow does
_NORMS = ("BatchNorm2d", "BatchNorm3d")
_WITH_ACTIVATION = "BatchNormAct2d"  # timm's, in evaluation


def folded(net: fx.GraphModule) -> fx.GraphModule:
    """A network in evaluation mode without the BatchNorms that alone read a convolution.

    `net` stays as it was; what does not change is shared with it.
    """
    modules = dict(net.named_modules())
    graph = copy.deepcopy(net.graph)
    replaced: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        before = node.args[0] if node.args else None
        if not (isinstance(before, fx.Node) and _foldable(before, node, modules)):
            continue
        name = str(before.target)
        norm: Any = modules[str(node.target)]
        replaced[name] = fuse_conv_bn_eval(modules[name], norm)
        if _is(norm, (_WITH_ACTIVATION,)):
            replaced[str(node.target)] = nn.Sequential(norm.drop, norm.act)
        else:
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    rows = {name: row for name in called - {*replaced} if isinstance(row := modules[name], nn.Sequential)}
    in_a_row = {name: row for name, row in rows.items() if type(row).forward is nn.Sequential.forward}
    replaced |= {name: _in_a_row(list(row)) for name, row in in_a_row.items()}
    result = fx.GraphModule(net, graph)
    for name, module in replaced.items():
        result.set_submodule(name, module)
    return result.eval()


def _in_a_row(parts: list[nn.Module]) -> nn.Sequential:
    """Modules one after the other, which tracing takes as one (torchvision's Conv2dNormActivation)."""
    kept: list[nn.Module] = []
    for part in parts:
        before = kept[-1] if kept else None
        if before is not None and _is_norm(part, _NORMS) and _is_convolution(before):
            convolution: Any = before
            norm: Any = part
            kept[-1] = fuse_conv_bn_eval(convolution, norm)
        else:
            kept.append(part)
    return nn.Sequential(*kept)


def _foldable(convolution: fx.Node, norm: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is BatchNorm with statistics of its own, and the one before it a convolution that nothing else
    reads, of weights that nothing else uses."""
    if norm.op != "call_module" or convolution.op != "call_module" or len(convolution.users) != 1:
        return False
    of_norm = modules[str(norm.target)]
    once = all(sum(each.target == node.target for each in node.graph.nodes) == 1 for node in (convolution, norm))
    fits = _is_norm(of_norm, (*_NORMS, _WITH_ACTIVATION)) and _is_convolution(modules[str(convolution.target)])
    return once and fits


def _is_norm(module: nn.Module, kinds: tuple[str, ...]) -> bool:
    return _is(module, kinds) and getattr(module, "running_mean", None) is not None


def _is_convolution(module: nn.Module) -> bool:
    return type(module) is Inflated or _is(module, _CONVOLUTIONS)


def _is(module: nn.Module, kinds: tuple[str, ...]) -> bool:
    """Whether a module is of one of torch's or timm's own kinds itself, and nothing changes it before it runs."""
    kind = type(module)
    return (
        kind.__name__ in kinds and kind.__module__.startswith(("torch.nn.", "timm.")) and not module._forward_pre_hooks
    )
