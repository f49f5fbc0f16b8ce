"""A module as a file that runs without this project: ONNX, or an exported program of torch; and such a file run again.

What is exported is traced once, with an example, and holds for any size of the first axis of its inputs. What torch and
its exporter have to say meanwhile about their own workings is kept from the terminal: whether the file is any good is
found out by running it (`pipeline.export_check`). What cannot be exported is an error that names it.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from pipeline.errors import UserError
from pipeline.onnx_cells import OnnxCell
from pipeline.plain_head import CellOf, WholeCell

ONNX, TORCH = "onnx", "torch-export"
SUFFIXES = {ONNX: ".onnx", TORCH: ".pt2"}
CELLS: dict[str, CellOf] = {ONNX: OnnxCell, TORCH: WholeCell}
OPSET = 18  # of ONNX: what the exporter of every torch that we take writes, and runtimes since 2023 read
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_LARGEST_FILE = 1_900_000_000  # bytes of weights within an ONNX file, whose format ends at 2 GiB
_LOGGERS = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")

# The inputs in order, each float32 or uint8 -> the output.
Run = Callable[[Sequence[np.ndarray]], np.ndarray]


def check_packages(to: str) -> None:
    """UserError: a format whose packages are not installed."""
    lacking = [name for name in _PACKAGES if to == ONNX and importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(
            f"ONNX needs {', '.join(lacking)}, which this environment lacks: pip install 'framebank[onnx]', or give "
            f"--to {TORCH}."
        )


def write_model(
    module: nn.Module, path: Path, to: str, *, inputs: Mapping[str, tuple[Tensor, str]], output: str, what: str
) -> None:
    """Export a module to a file; of ONNX weights that one file cannot hold lie beside it, as NAME.data.

    Args:
        module: in evaluation mode, on the CPU; its tensors are not changed.
        path: the file, with the suffix of the format.
        to: one of `SUFFIXES`.
        inputs: name -> an example, of at least two along its first axis, and the name of that axis. Axes of one name
            have one size.
        output: name of the output, a tensor.
        what: names the module in an error.

    Raises:
        UserError: it cannot be exported.
    """
    examples = tuple(example for example, _ in inputs.values())
    sizes = {axis: Dim(axis, min=1) for _, axis in inputs.values()}
    shapes: tuple[Any, ...] = tuple({0: sizes[axis]} for _, axis in inputs.values())
    try:
        with torch.no_grad(), _without_noise(), _any_length():
            program = torch.export.export(_Positional(module), examples, dynamic_shapes=(shapes,), strict=False)
            if to == TORCH:
                torch.export.save(program, path)
                return
            made = torch.onnx.export(
                program,
                dynamo=True,
                dynamic_shapes=(shapes,),  # for the names of axes
                input_names=list(inputs),
                output_names=[output],
                opset_version=OPSET,
                verbose=False,
            )
            assert made is not None
            weights = sum(tensor.nbytes for tensor in program.state_dict.values())
            made.save(path, external_data=weights > _LARGEST_FILE)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{what} cannot be exported to {to} by torch {torch.__version__}: {reason}") from error


class _Positional(nn.Module):
    """The same module with its inputs as one tuple of any number: that is how torch.export wants their axes told."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.module(*inputs)
        return output


def open_model(path: Path, to: str) -> Run:
    """An exported file as a function, run on the CPU by onnxruntime or torch, with as many threads as torch has.

    Raises:
        UserError: the runtime refuses it.
    """
    if to == TORCH:
        with _without_noise():
            module = torch.export.load(path).module()

        def by_torch(inputs: Sequence[np.ndarray]) -> np.ndarray:
            with torch.no_grad():
                output: np.ndarray = module(*map(torch.from_numpy, inputs)).numpy()
            return output

        return by_torch
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"onnxruntime {onnxruntime.__version__} cannot load {path.name}: {error}") from error
    names = [each.name for each in session.get_inputs()]

    def by_onnxruntime(inputs: Sequence[np.ndarray]) -> np.ndarray:
        output: np.ndarray = session.run(None, dict(zip(names, inputs, strict=True)))[0]
        return output

    return by_onnxruntime


@contextmanager
def _any_length() -> Iterator[None]:
    """Lets torch.export take an LSTM or GRU for sequences of any length: it would count the example's steps otherwise.

    In a module of torch's own that begins with an underscore, but with its use in its docstring; 2.11 has it too.
    """
    from torch.export._patches import register_gru_while_loop_decomposition, register_lstm_while_loop_decomposition

    with register_lstm_while_loop_decomposition(), register_gru_while_loop_decomposition():
        yield


@contextmanager
def _without_noise() -> Iterator[None]:
    """Without warnings and log lines about the exporter's own workings."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, _LOGGERS):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield
