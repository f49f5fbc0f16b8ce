"""Which parts of a backbone train, from which epoch on, and how fast; all else is frozen.

How it is written: a count of last blocks ("2", see `pipeline.blocks`), "all", names of modules or parameters
("layer3,layer4"; a node of the graph, "features.12.cat", means the module that holds it), or a schedule of them by the
number of epochs that have passed: "0:head,2:layer4,5:layer3+layer2" trains the head alone at first, after two epochs
layer4 with it, and so on: gradual unfreezing. Blocks further from the output learn more slowly, each at `decay` times
the rate of the next: discriminative learning rates. Both are ULMFiT's (Howard and Ruder 2018), its decay was 1 / 2.6.

Frozen means no gradient and evaluation mode, BatchNorm's statistics and Dropout included. BatchNorm within what trains
stays frozen as well, statistics and affine parameters, unless asked for: a batch of few videos holds frames that are
nearly copies of each other, and its statistics are not those of the data.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.backbone import Backbone
from pipeline.blocks import blocks_of, depths_of, within
from pipeline.errors import UserError, did_you_mean
from pipeline.tracing import NODE_NAME

HEAD, ALL = "head", "all"  # names of nothing and of everything in the backbone


@dataclass(frozen=True)
class Unfreezing:
    """What trains when.

    Attributes:
        stages: (epochs that have passed, modules and parameters that train from then on), rising from 0 epochs; what
            an earlier one names goes on training.
        batch_norm: whether BatchNorm within them trains as well.
    """

    stages: tuple[tuple[int, tuple[str, ...]], ...]
    batch_norm: bool = False

    def names_at(self, epochs_passed: int) -> tuple[str, ...]:
        """The modules and parameters that train after so many epochs, each once."""
        return tuple(dict.fromkeys(name for epoch, names in self.stages if epoch <= epochs_passed for name in names))

    @property
    def names(self) -> tuple[str, ...]:
        """The modules and parameters that train at some time, each once."""
        return self.names_at(self.stages[-1][0])


@dataclass(frozen=True)
class Group:
    """Parameters of one block that begin to train together.

    Attributes:
        name: of the block.
        parameters: their qualified names.
        count: how many numbers they are.
        rate: their peak learning rate.
        epoch: how many epochs pass before they begin to train.
    """

    name: str
    parameters: tuple[str, ...]
    count: int
    rate: float
    epoch: int


def has_batch_norm(net: nn.Module) -> bool:
    """Whether a network has BatchNorm anywhere."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def read_unfreezing(text: str, backbone: Backbone, *, batch_norm: bool) -> Unfreezing:
    """What a text of the forms above means for a backbone.

    Raises:
        UserError: a name that holds no parameters up to the layer, a count of more blocks than there are, epochs that
            do not rise from 0, or nothing of the backbone ever trains.
    """
    parts = [part.strip().partition(":") for part in text.split(",")] if ":" in text else [("0", ":", text)]
    separator = "+" if ":" in text else ","
    stages: list[tuple[int, tuple[str, ...]]] = []
    for epoch, colon, names in parts:
        if not colon or not epoch.strip().isdecimal():
            raise UserError(
                f"{epoch + colon + names!r} of the unfreezing {text!r} is not EPOCH:NAMES; a schedule is written like "
                f"0:{HEAD},2:{blocks_of(backbone)[-1]}, several names of one epoch are joined by +"
            )
        found = dict.fromkeys(name for each in names.split(separator) for name in _meant(each.strip(), backbone))
        stages.append((int(epoch), tuple(found)))
    epochs = [epoch for epoch, _ in stages]
    if epochs[0] != 0 or any(later <= earlier for earlier, later in pairwise(epochs)):
        raise UserError(
            f"the epochs of the unfreezing {text!r} are {', '.join(map(str, epochs))}; they count the epochs that have "
            "passed, so they begin with 0 and rise, each once"
        )
    unfreezing = Unfreezing(tuple(stages), batch_norm)
    if not trained_parameters(backbone.module.net, unfreezing.names, batch_norm=batch_norm):
        only = ": it names BatchNorm alone, which stays frozen without --train-batch-norm" if unfreezing.names else ""
        raise UserError(
            f"with the unfreezing {text!r} nothing of the backbone ever trains{only}; to train a head alone, use "
            "train-head"
        )
    return unfreezing


def trained_parameters(net: nn.Module, names: Collection[str], *, batch_norm: bool) -> dict[str, nn.Parameter]:
    """The parameters of what is named, by their qualified names, without BatchNorm's unless `batch_norm`."""
    norms = set() if batch_norm else {name for name, module in net.named_modules() if isinstance(module, _BatchNorm)}
    return {
        name: parameter
        for name, parameter in net.named_parameters()
        if parameter.is_floating_point() and within(name, names) and name.rpartition(".")[0] not in norms
    }


def freeze(net: nn.Module, names: Collection[str], *, batch_norm: bool, training: bool) -> None:
    """Let train what is named, and nothing else of `net`, which has torchvision's qualified names.

    Sets for every parameter whether it gets a gradient. The modules named and all within them go to training or
    evaluation mode as `training` says; all others, and BatchNorm unless `batch_norm`, to evaluation mode.
    """
    trained = trained_parameters(net, names, batch_norm=batch_norm)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in trained)
    for name, module in net.named_modules():
        follows = within(name, names) and (batch_norm or not isinstance(module, _BatchNorm))
        module.training = training and follows


def groups_of(
    net: nn.Module, blocks: Sequence[str], unfreezing: Unfreezing, *, rate: float, decay: float
) -> list[Group]:
    """The parameters that train at some time by block and by the epoch in which they begin, the last block first.

    `net` holds the parameters, `blocks` are those of the whole backbone. The deepest block that trains learns at
    `rate`, one that lies d deeper in the network at rate * decay ** d.
    """
    trained = trained_parameters(net, unfreezing.names, batch_norm=unfreezing.batch_norm)
    begins = {name: next(epoch for epoch, names in unfreezing.stages if within(name, names)) for name in trained}
    groups = []
    for block, depth in zip(reversed(blocks), reversed(depths_of(net, blocks)), strict=True):
        own = [name for name in trained if within(name, (block,))]
        for epoch in sorted({begins[name] for name in own}):
            names = tuple(name for name in own if begins[name] == epoch)
            groups.append((block, names, sum(trained[name].numel() for name in names), depth, epoch))
    deepest = max(depth for *_, depth, _ in groups)
    return [
        Group(block, names, count, rate * decay ** (deepest - depth), epoch)
        for block, names, count, depth, epoch in groups
    ]


def _meant(name: str, backbone: Backbone) -> tuple[str, ...]:
    """The modules and parameters that a count, "all", "head" or a name means. UserError: none."""
    net = backbone.module.net
    blocks = blocks_of(backbone)
    if name == HEAD:
        return ()
    if name == ALL:
        return tuple(blocks)
    if name.isdecimal():
        depths = depths_of(net, blocks)
        if not 1 <= int(name) <= depths[-1]:
            raise UserError(
                f"{name} blocks of {backbone.name} cannot train: up to the layer {backbone.layer} there are "
                f"{depths[-1]}, so give 1 to {depths[-1]}, or {ALL}"
            )
        return tuple(block for block, depth in zip(blocks, depths, strict=True) if depth > depths[-1] - int(name))
    parameters = [key for key, _ in net.named_parameters()]
    known = {".".join(key.split(".")[: depth + 1]) for key in parameters for depth in range(key.count(".") + 1)}
    nodes = {node.meta.get(NODE_NAME) for node in net.graph.nodes if node.op != "call_module"}
    nearest = name
    while nearest not in known and name in nodes and nearest:
        nearest = nearest.rpartition(".")[0]
    if nearest not in known:
        raise UserError(
            f"{backbone.name} has nothing named {name!r} with parameters up to the layer {backbone.layer}"
            f"{did_you_mean(name, sorted(known))}; its last blocks are {', '.join(blocks[-3:])}"
        )
    return (nearest,)
