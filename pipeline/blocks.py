"""The blocks of a backbone: the pieces that a person would name when saying which of them are to train.

A residual block, a fire module, an inception module, an encoder layer; a lone layer where the model is a plain row of
them (VGG). They are found by going down from the whole model: through modules that only hold others in a row, and
through any that holds more than half of all parameters and has parts with parameters; the first other module with
parameters is a block. A parameter that such an opened module holds itself (a vision transformer's class token) is a
block by its own name.

A block's depth says how many blocks with weights (modules with a parameter of two or more dimensions) there are up to
it. A lone norm or a class token has the depth of the block before it: counted from the end, or given a learning rate
by depth, it goes with that one, as the class token does with the patch embedding in BEiT's code (Bao et al. 2021).
"""

from collections.abc import Collection, Sequence

from torch import nn

from pipeline.backbone import Backbone


def blocks_of(backbone: Backbone) -> list[str]:
    """Qualified names of the blocks up to the layer ("features.12", "class_token"), in order of execution.

    Together they hold every parameter of the cut model, and each exactly once.
    """
    net = backbone.module.net
    used = [str(node.target) for node in net.graph.nodes if node.op in ("call_module", "get_attr")]
    called = {str(node.target) for node in net.graph.nodes if node.op == "call_module"}
    half = _numbers(net) / 2
    found: list[str] = []
    todo: list[tuple[str, nn.Module]] = [("", net)]
    while todo:
        name, module = todo.pop()
        parts = [(_joined(name, key), part) for key, part in module.named_children() if _numbers(part)]
        if name in backbone.containers or (parts and _numbers(module) > half and name not in called):
            found += [_joined(name, key) for key, _ in module.named_parameters(recurse=False)]
            todo += parts
        else:
            found.append(name)
    return sorted(found, key=lambda block: next(place for place, name in enumerate(used) if within(name, (block,))))


def depths_of(net: nn.Module, blocks: Sequence[str]) -> list[int]:
    """The depth of each block, rising from 1. `net` holds the parameters by torchvision's names."""
    with_weights = {
        block
        for block in blocks
        for name, parameter in net.named_parameters()
        if parameter.ndim >= 2 and name != block and within(name, (block,))
    }
    return [max(1, sum(other in with_weights for other in blocks[: place + 1])) for place in range(len(blocks))]


def within(name: str, names: Collection[str]) -> bool:
    """Whether a module or parameter is one of those named, or lies within one of them."""
    return any(name == each or name.startswith(f"{each}.") for each in names)


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
