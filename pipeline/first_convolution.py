"""The first convolution of an image network for other inputs than one RGB frame: stacks of frames or of motion.

Everything else of the network stays as it is. Random weights are the model's own initialisation with so many input
channels. Weights that were trained on RGB are adapted:

* to a stack of RGB frames: they are repeated for every frame and divided by their number, so that a video that stands
  still gives what its frame gives (up to rounding);
* to a stack of grey frames, and to motion: their mean over the input channels is repeated for every channel and
  rescaled so that their sum stays: the cross-modality pretraining of Wang et al. 2016, "Temporal segment networks"
  (https://arxiv.org/abs/1608.00859).

A checkpoint file that has the wanted shape is taken as it is, as a fine-tuned network's must be. So of a file, three
input channels for a stack of three grey frames are taken for those three frames, not for colours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from pipeline.windows import Window

_COLOURS = 3


def is_adapted(window: Window) -> bool:
    """Whether an image network's first convolution is another one for this window."""
    return window.kind in ("stack", "flow")


@contextmanager
def taking(channels: int) -> Iterator[None]:
    """Within it, the first 2-D convolution of RGB that is made is made for so many input channels instead.

    torchvision's models have no option for it, and each has an initialisation of its own, which so applies. Not for
    several threads at once.
    """
    original = nn.Conv2d.__init__

    def widened(module: nn.Conv2d, in_channels: int, *args: Any, **options: Any) -> None:
        if in_channels == _COLOURS:
            nn.Conv2d.__init__ = original  # type: ignore[method-assign]
            in_channels = channels
        original(module, in_channels, *args, **options)

    nn.Conv2d.__init__ = widened  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Conv2d.__init__ = original  # type: ignore[method-assign]


def first_weight(net: fx.GraphModule) -> str:
    """The name of the weight of the first convolution that a traced image network runs, "" where it runs none."""
    called = [str(node.target) for node in net.graph.nodes if node.op == "call_module"]
    within = ((f"{name}.{part}", each) for name in called for part, each in net.get_submodule(name).named_modules())
    return next((f"{name.rstrip('.')}.weight" for name, each in within if isinstance(each, nn.Conv2d)), "")


def fits(weight: Tensor, wanted: Tensor, *, published: bool) -> bool:
    """Whether a weight (O, C, h, w) is to be taken as it is. Published weights are for colours."""
    colours = weight.ndim == 4 and weight.shape[1] == _COLOURS
    return not colours or (not published and weight.shape == wanted.shape)


def adapted(weight: Tensor, window: Window) -> Tensor:
    """Weights (O, 3, h, w) for RGB -> (O, window.channels, h, w) float32, by the rules above."""
    weight = weight.float()
    if window.kind == "stack" and not window.grey:
        return weight.repeat(1, window.length, 1, 1) / window.length
    return weight.sum(dim=1, keepdim=True).repeat(1, window.channels, 1, 1) / window.channels
