"""A user's own network, by the function that makes it: `module:function`, or `path/to/file.py:function`.

The function takes nothing and returns two things: the network, a `torch.nn.Module` from (N, 3, S, S) float32 to
vectors, maps or tokens, and its preprocessing. That is the transforms of torchvision's weights, or a dictionary with
`size`, `mean` and `std`, and `resize` (the shorter side before the crop of `size`, or height and width; else `size`),
`interpolation` ("bilinear", or "bicubic") and `antialias` (true), all in the sense of `pipeline.preprocessing`.

A module is looked for in the current folder, then among what is installed; one given by its file, in the folder of
that. Both ways of writing it mean the same, so its name in a bank is `module:function`. What runs is the very source
whose SHA-256 is recorded; of what that imports, nothing is. It is called with torch's random state at 0, so that a
network that begins at random is the same every time.

This runs the user's code, which is the point. So it happens only where somebody types the entry: what a bank or a run
says of one is compared with what was typed, and never imported.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torchvision.transforms._presets import ImageClassification

from pipeline.blueprints import DEFAULT, Blueprint
from pipeline.errors import UserError
from pipeline.preprocessing import Preprocessing, preprocessing_of
from pipeline.windows import Window

_KEYS = ("size", "mean", "std", "resize", "interpolation", "antialias")
_NEEDED = ("size", "mean", "std")
_RETURNS = "it has to return a torch.nn.Module and its preprocessing, as in docs/how-to/backbones.md"

_ours: list[ModuleType] = []  # what has run here: only such a module may be replaced by another of its name


class _Entry(NamedTuple):
    """Where a function is: a folder ("" for the current one and what is installed), a module in it, a name in that."""

    folder: str
    module: str
    function: str

    @property
    def name(self) -> str:
        return f"{self.module}:{self.function}"


def is_entry(name: str) -> bool:
    """Whether the name of a backbone is that of a user's function."""
    return ":" in name


def recorded_name(name: str) -> str:
    """How an entry is called in banks, wherever its file lies. UserError: it is written wrongly."""
    return _read(name).name


def absolute(name: str) -> str:
    """The same entry for a process with another working folder. UserError: there is no such module."""
    entry = _read(name)
    if entry.folder:
        folder = Path(entry.folder)
    else:
        source = Path(str(_found(entry).origin))
        folder = Path.cwd()
        if not source.is_relative_to(folder) or source != folder.joinpath(*entry.module.split(".")).with_suffix(".py"):
            return name  # installed, or a package's __init__ of the current folder
    return f"{folder.absolute()}/{entry.module}:{entry.function}"


def blueprint(name: str) -> Blueprint:
    """The network that an entry makes. Its source is read now; it runs when its presets or the network are asked for.

    UserError: there is no such module, or no source of it; later, whatever the function does wrong.
    """
    entry = _read(name)
    spec = _found(entry)
    source = _source(entry, spec)
    made = cache(lambda: _made(entry, spec, source))

    def build(_window: Window, preset: Preprocessing, _seed: int) -> nn.Module:
        return made()[0]

    return Blueprint(
        name=entry.name,
        build=build,
        presets=lambda: {DEFAULT: made()[1]},
        brings_weights=True,
        checked=True,
        code=hashlib.sha256(source).hexdigest(),
    )


def _read(name: str) -> _Entry:
    location, _, function = name.rpartition(":")
    folder, slash, module = location.rpartition("/")
    if module.endswith(".py"):
        folder, module = folder if slash else ".", module.removesuffix(".py")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise UserError(
            f"--backbone {name} is not MODULE:FUNCTION, nor FILE.py:FUNCTION; write it as in towers:load or "
            "code/towers.py:load, and give the file a name of letters, digits and _"
        )
    return _Entry(folder or ("/" if slash else ""), module, function)


@contextmanager
def _looking_in(folder: str) -> Iterator[None]:
    """Modules of a folder go before all others, within it."""
    place = str(Path(folder or ".").absolute())
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(place)


def _found(entry: _Entry) -> ModuleSpec:
    """UserError: there is no such module with a source, or its name is taken."""
    where = f"in {entry.folder}" if entry.folder else "in the current folder, nor installed"
    known = sys.modules.pop(entry.module, None)  # find_spec would look no further
    try:
        with _looking_in(entry.folder):
            spec = importlib.util.find_spec(entry.module)
    except (ImportError, ValueError) as error:
        raise UserError(f"there is no module {entry.module} {where} ({error}); check --backbone") from error
    finally:
        if known is not None:
            sys.modules[entry.module] = known
    if spec is None:
        raise UserError(f"there is no module {entry.module} {where}; check --backbone, or name its file")
    if not spec.has_location or not str(spec.origin).endswith(".py"):
        raise UserError(f"{entry.module} has no Python source, by which its embeddings would be known; name a module")
    if known is not None and known not in _ours and getattr(known, "__file__", None) != spec.origin:
        raise UserError(f"a module named {entry.module} is in use here already; rename {spec.origin}")
    return spec


def _source(entry: _Entry, spec: ModuleSpec) -> bytes:
    try:
        return Path(str(spec.origin)).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {spec.origin} of --backbone {entry.name} ({error.strerror})") from error


def _made(entry: _Entry, spec: ModuleSpec, source: bytes) -> tuple[nn.Module, Preprocessing]:
    """Run the source and call the function."""
    module = importlib.util.module_from_spec(spec)
    with _looking_in(entry.folder), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        sys.modules[entry.module] = module
        _ours.append(module)
        try:
            # Standard output may be a document of ours, and relative paths are meant from here.
            with contextlib.redirect_stdout(sys.stderr), contextlib.chdir("."):
                exec(compile(source, str(spec.origin), "exec"), module.__dict__)
                returned = _function(entry, module)()
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises is theirs to mend
            raise UserError(f"{_place(error, str(spec.origin))}: {type(error).__name__}: {_line(error)}") from error
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[0], nn.Module):
        raise UserError(f"{entry.name} returns {_described(returned)}; {_RETURNS}")
    network, preprocessing = returned
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(f"{entry.name} returns a network of TorchScript, which cannot be taken apart; {_RETURNS}")
    if any(isinstance(parameter, UninitializedParameter) for parameter in network.parameters()):
        raise UserError(
            f"{entry.name} returns a network with parameters that have no shape yet; let the function run it on two "
            "images first"
        )
    return network, _preprocessing(entry, preprocessing)


def _function(entry: _Entry, module: ModuleType) -> Callable[[], Any]:
    function = getattr(module, entry.function, None)
    if not callable(function):
        names = [name for name, each in vars(module).items() if callable(each) and not name.startswith("_")]
        there = f"its functions are {', '.join(names[:8])}" if names else "it has none"
        raise UserError(f"{module.__file__} has no function {entry.function!r}; {there}")
    return function


def _preprocessing(entry: _Entry, given: Any) -> Preprocessing:
    """UserError: it is not one of the two forms above."""
    if isinstance(given, ImageClassification):
        return preprocessing_of(given, DEFAULT)
    if not isinstance(given, Mapping):
        raise UserError(f"the preprocessing of {entry.name} is {_described(given)}; {_RETURNS}")
    wrong = [f"lacks {key}" for key in _NEEDED if key not in given]
    wrong += [f"has {key}, which is none of {', '.join(_KEYS)}" for key in given if key not in _KEYS]
    if not wrong:
        wrong = [
            f"has a {key} of {given[key]!r}, not {what}"
            for key, fits, what in (
                ("size", _pixels, "whole pixels"),
                ("resize", lambda value: _pixels(value) or _pair(value), "whole pixels, or height and width"),
                ("mean", _colours, "three numbers"),
                ("std", lambda value: _colours(value) and min(value) > 0, "three numbers above 0"),
                ("interpolation", lambda value: value in ("bilinear", "bicubic"), "bilinear or bicubic"),
                ("antialias", lambda value: isinstance(value, bool), "True or False"),
            )
            if key in given and not fits(given[key])
        ]
    if wrong:
        raise UserError(f"the preprocessing of {entry.name} {wrong[0]}; see docs/how-to/backbones.md")
    resize = given.get("resize", given["size"])
    return Preprocessing(
        resize=resize if isinstance(resize, int) else tuple(resize),
        crop=given["size"],
        mean=tuple(map(float, given["mean"])),
        std=tuple(map(float, given["std"])),
        interpolation=given.get("interpolation", "bilinear"),
        antialias=given.get("antialias", True),
        fit="crop",
        preset=DEFAULT,
    )


def _pixels(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_pixels, value))


def _colours(value: Any) -> bool:
    numbers = (
        isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(each, int | float) for each in value)
    )
    return numbers and all(map(math.isfinite, value))


def _place(error: BaseException, file: str) -> str:
    """Where in a file an error came up, "towers.py, line 12"; the file alone where it did not."""
    if isinstance(error, SyntaxError):
        return f"{file}, line {error.lineno}" if error.lineno else file
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{file}, line {lines[-1]}" if lines else file


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(each).__name__ for each in value)})"
    return f"a {type(value).__name__}"


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
