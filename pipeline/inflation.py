"""An image network inflated: what looks at k×k pixels looks at k×k pixels of k frames (Carreira & Zisserman 2017, I3D).

The rules, all of "Quo vadis, action recognition?", https://arxiv.org/abs/1705.07750, but for the ends of a clip:

- A filter of k×k becomes one of k×k×k: its weights are repeated over time and divided by k. Its stride in time is that
  in space. A filter that looks along one direction alone (1×7) goes on doing so: it sees one step.
- Pools become as long in time as they are wide, with the same stride, but for the first two max-pools: those keep every
  step. An average over all pixels is one over all steps too.
- At its ends a clip goes on as its first and last frame, wherever I3D pads with zeros: so a clip in which nothing moves
  gives at every step what the image network gives of its frame. T steps become ⌈T / stride⌉, whatever the padding in
  space.

This needs networks of convolutions, norms and pools. Of torchvision's, these are not, for they turn axes or attend:
ConvNeXt, MaxViT, ShuffleNet, Swin and the vision transformers.
"""

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from pipeline.errors import UserError

_KEEPING_TIME = 2  # how many max-pools, from the first on
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, nn.GELU, nn.Tanh)
_ANY_AXES = (*_ACTIVATIONS, nn.Dropout, nn.Identity, nn.Linear, StochasticDepth)  # these Linears read vectors
_HOLDING = (nn.Sequential, SqueezeExcitation)  # which tracing takes as one
_SAME_FUNCTIONS: tuple[Any, ...] = (operator.add, operator.iadd, operator.mul, torch.relu, F.relu, F.dropout)


class _Cannot(Exception):
    """The message names an operation that has no counterpart in a clip."""


class Inflated(nn.Conv3d):
    """A convolution of k×k inflated: (N, C, T, H, W) -> (N, D, ⌈T / stride⌉, H', W')."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        return super().forward(lengthened(input, self.kernel_size[0], self.stride[0], self.dilation[0]))


class Pool(nn.Module):
    """A pool inflated: one of the functions below with its options."""

    def __init__(self, pool: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.pool = pool
        self.options = options

    def forward(self, features: Tensor) -> Tensor:
        return self.pool(features, **self.options)


def inflated(net: fx.GraphModule) -> fx.GraphModule:
    """The inflated counterpart of a traced image network, or of its part from the images on.

    It reads clips (N, 3, T, H, W). Its nodes, modules and tensors have the names of the image network's, and its nodes
    their `meta`; the tensors that are not filters are shared. UserError: it does something that cannot be inflated.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    modules: dict[str, nn.Module] = {}
    max_pools = 0
    refused: dict[str, None] = {}
    for node in net.graph.nodes:
        module = net.get_submodule(str(node.target)) if node.op == "call_module" else None
        is_max_pool = isinstance(module, nn.MaxPool2d) or node.target is F.max_pool2d
        max_pools += is_max_pool
        in_time = not (is_max_pool and max_pools <= _KEEPING_TIME)
        copied = copies[node] = graph.node_copy(node, copies.__getitem__)
        try:
            if module is not None:
                modules.setdefault(str(node.target), _module(module, in_time))
            elif node.op == "call_function":
                _inflate_function(copied, in_time)
            elif node.op == "call_method":
                _inflate_method(copied)
            elif node.op == "get_attr":
                raise _Cannot(f"the tensor {node.target}")
        except _Cannot as reason:
            refused[str(reason)] = None
    if refused:
        raise UserError(
            f"only networks of convolutions, norms and pools can be inflated, and this one has {', '.join(refused)}; "
            "choose another --backbone, or one that sees clips and no --inflate"
        )
    return fx.GraphModule(modules, graph).train(net.training)


def inflate_state(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an image network for the inflated one with tensors `like`, by the same names.

    Filters (O, I, k, k) become (O, I, k, k, k); all else, filters that are inflated already among them, stays as it is.
    """
    return {
        name: _over_time(tensor, like[name].shape[2])
        if tensor.ndim == 4 and name in like and like[name].ndim == 5
        else tensor
        for name, tensor in state.items()
    }


def lengthened(features: Tensor, extent: int, stride: int, dilation: int = 1) -> Tensor:
    """(N, C, T, H, W) with its first and last step repeated: windows of `extent` steps in time are then ⌈T / stride⌉.

    The first window has the first step in its middle (the earlier of two where it has an even number of steps).
    """
    steps, reach = features.shape[2], dilation * (extent - 1) + 1
    before = (reach - 1) // 2
    after = max(0, (-(-steps // stride) - 1) * stride + reach - steps - before)
    if before == after == 0:
        return features
    # Slices one by one, not expanded: so they keep the memory format, and gradients add up in one order.
    return torch.cat([features[:, :, :1]] * before + [features] + [features[:, :, -1:]] * after, dim=2)


def max_pool(
    features: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *,
    in_time: bool = True,
) -> Tensor:
    """`F.max_pool2d` of (N, C, T, H, W), over time as well unless `in_time` is false."""
    pooled = _each_frame(features, F.max_pool2d, kernel_size, stride, padding, dilation, ceil_mode)
    if not in_time:
        return pooled
    extent, step, apart = min(_pair(kernel_size)), _pair(stride or kernel_size)[0], _pair(dilation)[0]
    longer = lengthened(pooled, extent, step, apart)
    return F.max_pool3d(longer, (extent, 1, 1), (step, 1, 1), dilation=(apart, 1, 1))


def avg_pool(features: Tensor, kernel_size: Any, stride: Any = None, *args: Any, **options: Any) -> Tensor:
    """`F.avg_pool2d` of (N, C, T, H, W), over time as well."""
    pooled = _each_frame(features, F.avg_pool2d, kernel_size, stride, *args, **options)
    extent, step = min(_pair(kernel_size)), _pair(stride or kernel_size)[0]
    return lengthened(pooled, extent, step).unfold(2, extent, step).mean(-1)  # avg_pool3d lacks bfloat16 on the CPU


def adaptive_avg_pool(features: Tensor, output_size: Any) -> Tensor:
    """`F.adaptive_avg_pool2d` of (N, C, T, H, W), over all of time: (N, C, 1, *output_size)."""
    return F.adaptive_avg_pool3d(features, (1, *_pair(output_size)))


def _each_frame(features: Tensor, pool: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """A pool of images on each frame alone: it is to do exactly what it does there, at its margins above all."""
    frames = features.transpose(1, 2)  # of channels_last_3d memory, frames are images without a copy
    return pool(frames.flatten(0, 1), *args, **options).unflatten(0, frames.shape[:2]).transpose(1, 2)


def _module(module: nn.Module, in_time: bool = True) -> nn.Module:
    """The counterpart of one module. _Cannot: there is none."""
    if isinstance(module, _ANY_AXES):
        return module
    if isinstance(module, nn.Conv2d):
        return _convolution(module)
    if isinstance(module, nn.BatchNorm2d):
        return _shared(
            nn.BatchNorm3d(
                module.num_features,
                module.eps,
                module.momentum,
                module.affine,
                module.track_running_stats,
                device="meta",
            ),
            module,
        )
    if isinstance(module, nn.MaxPool2d):
        return Pool(max_pool, **_options(module, "padding", "dilation", "ceil_mode"), in_time=in_time)
    if isinstance(module, nn.AvgPool2d):
        return Pool(avg_pool, **_options(module, "padding", "ceil_mode", "count_include_pad", "divisor_override"))
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return Pool(adaptive_avg_pool, output_size=module.output_size)
    if isinstance(module, _HOLDING):
        holder = copy.copy(module)
        holder.__dict__["_modules"] = {name: _module(part) for name, part in module.named_children()}
        return holder
    raise _Cannot(type(module).__name__)


def _options(module: nn.Module, *names: str) -> dict[str, Any]:
    """What a pool was made with."""
    return {name: getattr(module, name) for name in ("kernel_size", "stride", *names)}


def _convolution(module: nn.Conv2d) -> nn.Module:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise _Cannot(f"a convolution with padding {module.padding!r} ({module.padding_mode})")
    (height, width), stride, padding, dilation = (
        _pair(value) for value in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    extent = min(height, width)
    convolution = Inflated(
        module.in_channels,
        module.out_channels,
        (extent, height, width),
        (stride[0], *stride),
        (0, *padding),
        (dilation[0], *dilation),
        module.groups,
        module.bias is not None,
        device="meta",
    )
    _shared(convolution, module)
    convolution.weight = nn.Parameter(_over_time(module.weight.detach(), extent), module.weight.requires_grad)
    return convolution


def _shared(module: nn.Module, other: nn.Module) -> nn.Module:
    """`module` with the tensors of another, shared, and in its mode."""
    for name, parameter in other.named_parameters(recurse=False):
        module.register_parameter(name, parameter)
    for name, buffer in other.named_buffers(recurse=False):
        module.register_buffer(name, buffer)
    return module.train(other.training)


def _inflate_function(node: fx.Node, in_time: bool) -> None:
    """Make a node that calls a function do so in space and time. _Cannot: that is impossible."""
    if node.target is F.max_pool2d:
        # Which pixel was the largest: whoever asked for it would have to take it out of a pair, which is refused.
        asked = {name: value for name, value in node.kwargs.items() if name != "return_indices"}
        node.target, node.kwargs = max_pool, {**asked, "in_time": in_time}
    elif node.target is F.avg_pool2d:
        node.target = avg_pool
    elif node.target is F.adaptive_avg_pool2d:
        node.target = adaptive_avg_pool
    elif node.target is torch.cat:
        _only(node, "dim", 0, (0, 1))
    elif node.target is torch.flatten:
        _only(node, "start_dim", 0, (1,))
    elif node.target not in _SAME_FUNCTIONS:
        raise _Cannot(getattr(node.target, "__name__", str(node.target)))


def _inflate_method(node: fx.Node) -> None:
    """Make a node that calls a tensor's method do so in space and time. _Cannot: that is impossible."""
    if node.target == "flatten":
        _only(node, "start_dim", 0, (1,))
    elif node.target == "mean":
        _only(node, "dim", None, ([2, 3], (2, 3)))
        node.args, node.kwargs = node.args[:1], {**node.kwargs, "dim": (2, 3, 4)}
    else:
        raise _Cannot(str(node.target))


def _only(node: fx.Node, name: str, default: Any, allowed: tuple[Any, ...]) -> None:
    """_Cannot where an option, the second argument of what a node calls, is none that means the same in a clip."""
    value = node.kwargs.get(name, node.args[1] if len(node.args) > 1 else default)
    if value not in allowed:
        raise _Cannot(f"{getattr(node.target, '__name__', node.target)} with {name} {value}")


def _over_time(filters: Tensor, extent: int) -> Tensor:
    """(O, I, k, k) -> (O, I, extent, k, k), summing to the same."""
    return filters.unsqueeze(2).repeat(1, 1, extent, 1, 1) / extent


def _pair(value: Any) -> tuple[int, int]:
    height, width = value if isinstance(value, tuple | list) else (value, value)
    return height, width
