"""Frozen BatchNorm folded into the convolution before it: the same function with fewer passes over memory.

In evaluation BatchNorm is a scale and a shift of each channel, which the convolution's weights and bias can do as well
(Jacob et al. 2018, "Quantization and training of neural networks", section 3.2). The numbers are the
same up to rounding.
"""

import copy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


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
        replaced[name] = fuse_conv_bn_eval(modules[name], modules[str(node.target)])
        node.replace_all_uses_with(before)
        graph.erase_node(node)
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    rows = {name: modules[name] for name in called if isinstance(modules[name], nn.Sequential)}
    replaced |= {name: _in_a_row(list(row)) for name, row in rows.items()}
    result = fx.GraphModule(net, graph)
    for name, module in replaced.items():
        result.set_submodule(name, module)
    return result.eval()


def _in_a_row(parts: list[nn.Module]) -> nn.Sequential:
    """Modules one after the other, which tracing takes as one (torchvision's Conv2dNormActivation)."""
    kept: list[nn.Module] = []
    for part in parts:
        before = kept[-1] if kept else None
        if isinstance(part, _NORMS) and part.running_mean is not None and isinstance(before, _CONVOLUTIONS):
            kept[-1] = fuse_conv_bn_eval(before, part)
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
    return (
        once
        and isinstance(of_norm, _NORMS)
        and of_norm.running_mean is not None
        and isinstance(modules[str(convolution.target)], _CONVOLUTIONS)
    )
