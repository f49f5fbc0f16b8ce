"""What is known of a network before it is built: the one form in which all networks come, wherever they come from.

A *preset* is the preprocessing of published weights, named as these are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.preprocessing import Preprocessing
from pipeline.windows import FRAME, Window

DEFAULT = "DEFAULT"  # the name that means a network's usual weights, or preset


@dataclass(frozen=True)
class Published:
    """Weights that somebody publishes.

    Attributes:
        name: of the weights, and of their preset.
        file: finds their file, or fetches it. UserError: it cannot.
        classes: of the network's own classifier, in the order of its outputs; empty where nobody can tell.
        shortest: the least number of frames that they take.
    """

    name: str
    file: Callable[[], Path]
    classes: Callable[[], Sequence[str]] = tuple
    shortest: int = 1


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A network that can be a backbone.

    Attributes:
        name: as recipes have it.
        build: window, preset (its `crop` is the image size), seed -> the whole network, initialised after the seed.
            UserError: it does not take one of these.
        presets: its presets by name. Of a user's own network, asking for them runs the user's code.
        published: its published weights, by every name that means them.
        enumeration: what may stand before the name of published weights: "ResNet50_Weights.".
        default: the name of the preset that goes with random weights, and with a file where no other rule says more.
        window: what it sees of a video if nothing else is said.
        kinds: the kinds of window that it can see.
        is_image: whether it is an image network, whose first convolution can be adapted to other windows.
        inflatable: whether it may be inflated, too.
        fixed_size: whether it takes images of its preset's size alone.
        fixed_length: whether it takes clips of its weights' length alone.
        converts: whether the model converts inputs to [-1, 1] itself, which it can of single frames alone.
        brings_weights: whether it comes with its weights, which DEFAULT then means.
        shorten: makes a model end before its classifier; None: it has none, or where that begins is found in its graph.
        classifier: of a model that is `checked`, the top-level module that is its classifier, "" for none.
        translate: a checkpoint's tensors as the model of a preset names and shapes them; None: they are taken as they
            are. It raises where it cannot.
        tracing: how torchvision's tracer is to trace it.
        checked: whether what was traced is held against the model, and the model is taken in one piece if it differs
            or cannot be traced.
        code: SHA-256 of the source that made it, where that is not in a package of a known version; else "".
    """

    name: str
    build: Callable[[Window, Preprocessing, int], nn.Module]
    presets: Callable[[], Mapping[str, Preprocessing]]
    published: Mapping[str, Published] = field(default_factory=dict)
    enumeration: str = ""
    default: str = DEFAULT
    window: Window = FRAME
    kinds: tuple[str, ...] = ("frame",)
    is_image: bool = False
    inflatable: bool = False
    fixed_size: bool = False
    fixed_length: bool = False
    converts: bool = False
    brings_weights: bool = False
    shorten: Callable[[nn.Module], None] | None = None
    classifier: Callable[[nn.Module], str] = lambda _: ""
    translate: Callable[[Mapping[str, Tensor], Preprocessing], dict[str, Tensor]] | None = None
    tracing: Mapping[str, Any] = field(default_factory=dict)
    checked: bool = False
    code: str = ""

    @property
    def names(self) -> dict[str, str]:
        """Every name that means a preset -> the preset's own."""
        return {name: entry.name for name, entry in self.published.items()} or {name: name for name in self.presets()}
