"""Features that other programs made: files of arrays -> rows of one video, with their times where there are any.

An array is (T, D), a row per step, or (D, T). It is a .npy file, an array in a .npz file, a tensor in a .pt file (or in
the dict that it holds) or a dataset of an HDF5 file. Nothing that a file holds is executed: no pickled objects.

Times come from what lies beside the features under the names of `BESIDE`: in the same .npz, .pt or HDF5 group, or, of
`x.npy`, in `x.times.npz`; video_features leaves `STEM_timestamps_ms.npy` and `STEM_fps.npy`. Else they are counted:
row i is frame `offset + i * stride` of a video of so many frames per second. Without a frame rate a video has no clock,
and its times are NaN.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import other_hdf
from pipeline.errors import VideoError
from pipeline.sources import TIMES_OF_STEM, TIMES_SUFFIX

IMPORTED = "imported"  # the backbone of a bank whose features come from elsewhere
VERSION = 1  # of how files are read and times are counted
SUFFIXES = frozenset((".npy", ".npz", ".pt", ".pth"))
HDF5_SUFFIXES = frozenset((".h5", ".hdf5", ".hdf", ".he5"))
# What may lie beside the features of a video, and its shape: (T,) or one number.
BESIDE = {"timestamps": 1, "timestamps_ms": 1, "frame_index": 1, "fps": 0, "duration": 0, "start_time": 0}
LAYOUTS = ("td", "dt")
_FEATURES = "features"  # what the array of a .npz or .pt file is called where nobody says and there are several
_OBJECTS = ("Object arrays", "Python objects")  # how NumPy names them
_PIECE_BYTES = 16 << 20


def is_imported(recipe: Mapping[str, Any]) -> bool:
    """Whether a bank's features were made elsewhere, so that no backbone here can make more of them."""
    return bool(recipe["backbone"] == IMPORTED)


@dataclass(frozen=True)
class Counting:
    """How rows are counted where a file has no times of its own.

    Attributes:
        fps: frames per second of the video; None: it has no clock.
        stride: frames from one row to the next.
        offset: the number of the first row's frame.
    """

    fps: float | None = None
    stride: int = 1
    offset: int = 0

    def describe(self) -> dict[str, Any]:
        """What the recipe says of it."""
        return {"fps": self.fps, "feat_stride": self.stride, "offset": self.offset}


@dataclass(frozen=True)
class Given:
    """The features of one video as its file has them.

    Attributes:
        array: two axes of numbers, in memory or read when sliced.
        beside: what lies beside it, by the names of `BESIDE`.
    """

    array: Any
    beside: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Times:
    """When the T rows of one video are.

    Attributes:
        seconds: (T,) float64, NaN without a clock.
        frames: (T,) int64, rising numbers of frames.
        fps, duration, start_time: as the catalog has them: 0, NaN and NaN where unknown.
    """

    seconds: np.ndarray
    frames: np.ndarray
    fps: float
    duration: float
    start_time: float


@contextmanager
def opened(path: Path, *, dataset: str = "", feature: str | None = None, stem: str | None = None) -> Iterator[Given]:
    """The features in a file, whatever their shape; valid within the block.

    Args:
        path: the file.
        dataset: of an HDF5 file, the dataset.
        feature: of a .npz or .pt file, the name of the array.
        stem: of video_features, the name of the video without the name of the feature.

    Raises:
        VideoError: it cannot be read, holds pickled objects, or has no such array.
    """
    with ExitStack() as stack:
        suffix = path.suffix.lower()
        try:
            if dataset:
                given = Given(*stack.enter_context(other_hdf.opened(path, dataset, BESIDE)))
            elif suffix == ".npy":
                given = Given(np.load(path, mmap_mode="r", allow_pickle=False), _beside_file(path, stem))
            elif suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    given = _chosen({name: arrays[name] for name in arrays.files}, feature)
            elif suffix in (".pt", ".pth"):
                given = _chosen(_tensors(path), feature)
            else:
                raise VideoError(f"{path.name} is no .npy, .npz or .pt file")
        except VideoError:
            raise
        except FileNotFoundError as error:
            raise VideoError("the file does not exist") from error
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes make the readers raise nearly anything
            if any(words in str(error) for words in _OBJECTS):
                raise VideoError(
                    f"{path.name} holds Python objects, which are not read because that would execute them; "
                    "save a plain array of numbers"
                ) from error
            # What NumPy does not know at all it takes for a pickle.
            said = str(error).partition("\n")[0]
            why = "it is not what its suffix says" if "allow_pickle" in said else said or type(error).__name__
            raise VideoError(f"{path.name} cannot be read: {why}") from error
        yield given


def _beside_file(path: Path, stem: str | None) -> dict[str, np.ndarray]:
    """What lies beside a .npy file, in files of its own."""
    found: dict[str, np.ndarray] = {}
    times = path.with_name(path.stem + TIMES_SUFFIX)
    if times.exists():
        with np.load(times, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files if name in BESIDE}
    if stem is not None:
        for name in TIMES_OF_STEM:
            beside = path.with_name(f"{stem}_{name}.npy")
            if beside.exists():
                found[name] = np.load(beside, allow_pickle=False)
    return found


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .pt file by their names; "" names the only one of a file that is one."""
    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # as of `pipeline.checkpoints`; what torch says of it advises to execute the file
        raise VideoError(
            f"{path.name} is damaged or holds more than plain tensors, which is not read because that would execute "
            "it; save a tensor, or a dict of tensors"
        ) from error
    every = held if isinstance(held, dict) else {"": held}
    named = {str(name): value for name, value in every.items() if isinstance(value, torch.Tensor | int | float)}
    if not named:
        raise VideoError(f"{path.name} holds {type(held).__name__} and no tensor; save a tensor, or a dict of tensors")
    return {name: _array(f"{name or 'the tensor'} of {path.name}", value) for name, value in named.items()}


def _array(what: str, value: Any) -> np.ndarray:
    """A tensor or a number as NumPy has it; `what` names it."""
    import torch

    try:
        tensor = torch.as_tensor(value).detach().resolve_conj().resolve_neg()
        # NumPy has no bfloat16; float32 holds all of its values.
        return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
    except (TypeError, RuntimeError, OverflowError) as error:  # sparse, quantised, of 8 bits, without data
        raise VideoError(
            f"{what} is no array for NumPy ({str(error).splitlines()[0][:100]}); save it dense, as float32"
        ) from error


def _chosen(arrays: Mapping[str, np.ndarray], feature: str | None) -> Given:
    """The features among named arrays."""
    beside = {name: array for name, array in arrays.items() if name in BESIDE}
    others = [name for name in arrays if name not in BESIDE]
    name = feature if feature is not None else others[0] if len(others) == 1 else _FEATURES
    if name not in arrays:
        raise VideoError(
            f"it holds the arrays {', '.join(map(repr, arrays)) or 'none'}, not {name!r}; --feature says which"
        )
    return Given(arrays[name], beside)


def shape_words(shape: tuple[int, ...]) -> str:
    """ "(40, 512)"."""
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def checked_rows(array: Any, layout: str, features: int, what: str) -> int:
    """How many rows of so many features an array has; `what` names its file.

    Raises:
        VideoError: it has another shape, or holds no real numbers.
    """
    shape = tuple(array.shape or ())  # an empty dataspace of HDF5 has none
    wanted = "T×D" if layout == "td" else "D×T"
    if len(shape) != 2:
        raise VideoError(f"{what} has shape {shape_words(shape)}; it takes two axes, {wanted}, D = {features}")
    if shape[LAYOUTS.index(layout) ^ 1] != features:
        raise VideoError(f"{what} has shape {shape_words(shape)}; the others are {wanted} with D = {features}")
    if np.dtype(array.dtype).kind not in "fiub":
        raise VideoError(f"{what} holds {array.dtype}, no real numbers")
    rows = shape[LAYOUTS.index(layout)]
    if features == 0:
        raise VideoError(f"{what} has shape {shape_words(shape)}, no feature")
    if rows == 0:
        raise VideoError(f"{what} has shape {shape_words(shape)}, no row")
    return rows


def pieces(array: Any, layout: str) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of a checked array, some at a time: their places, and (n, D) float32.

    Raises:
        VideoError: a value is NaN or infinite, or beyond float32.
    """
    rows, features = array.shape if layout == "td" else array.shape[::-1]
    at_once = max(1, _PIECE_BYTES // (4 * max(1, features)))
    for start in range(0, rows, at_once):
        place = slice(start, min(rows, start + at_once))
        piece = np.asarray(array[place] if layout == "td" else np.asarray(array[:, place]).T)
        with np.errstate(over="ignore"):
            converted = np.ascontiguousarray(piece, np.float32)
        bad = ~np.isfinite(converted)
        if bad.any():
            row, feature = np.argwhere(bad)[0]
            value = piece[row, feature]
            what = f"{value:g}" if not np.isfinite(value) else f"{value:g}, beyond float32,"
            raise VideoError(f"row {start + row} has {what} at feature {feature} ({bad.sum()} such values at least)")
        yield place, converted


def times_of(beside: Mapping[str, np.ndarray], rows: int, counting: Counting, fps: float) -> Times:
    """The times of so many rows: the file's own, else counted.

    Args:
        beside: what lies beside the features.
        rows: T.
        counting: how to count.
        fps: the frame rate of this video, if the manifest has one, else NaN.

    Raises:
        VideoError: what lies beside has another length, decreases, or is no number.
    """
    own = {name: _plain(name, array, rows) for name, array in beside.items()}
    for name in ("fps", "duration", "start_time"):
        value = float(own.get(name, nan))
        if abs(value) == inf or (name != "start_time" and value < 0):
            raise VideoError(f"{name} is {value:g}; it takes a number, or NaN where nobody knows it")
    rate = next((r for r in (fps, float(own.get("fps", nan)), counting.fps or nan) if isfinite(r) and r > 0), 0.0)
    frames = _frame_numbers(own["frame_index"]) if "frame_index" in own else _counted(rows, counting)
    if not (np.diff(frames) > 0).all():
        raise VideoError(f"frame_index does not increase at row {int(np.argmin(np.diff(frames) > 0)) + 1}")
    if "timestamps" in own:
        seconds = own["timestamps"].astype(np.float64)
    elif "timestamps_ms" in own:
        seconds = own["timestamps_ms"].astype(np.float64) / 1000
    else:
        seconds = frames / rate if rate else np.full(rows, nan)
    if not np.isnan(seconds).all() and not (np.isfinite(seconds).all() and (np.diff(seconds) >= 0).all()):
        # Of one row that is infinite there is no row before it.
        row = int(np.argmin([bool(np.isfinite(seconds[0])), *(np.diff(seconds) >= 0)]))
        before = f"{seconds[row - 1]:g} s, then " if row else ""
        raise VideoError(
            f"its own times decrease or are missing at row {row} ({before}{seconds[row]:g} s); mend them, or take them "
            "away and give --fps"
        )
    about = (float(own.get(name, nan)) for name in ("duration", "start_time"))
    return Times(seconds, frames, rate, *about)


def _counted(rows: int, counting: Counting) -> np.ndarray:
    return counting.offset + counting.stride * np.arange(rows, dtype=np.int64)


def _frame_numbers(array: np.ndarray) -> np.ndarray:
    """Numbers of frames of any type -> int64. Unsigned ones would wrap round where they decrease."""
    with np.errstate(invalid="ignore"):
        frames = array.astype(np.int64)
    wrong = (frames != array) | (frames < 0)
    if wrong.any():
        row = int(wrong.argmax())
        raise VideoError(f"frame_index has {array[row]:g} at row {row}; it takes whole numbers from 0")
    return frames


def _plain(name: str, array: np.ndarray, rows: int) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise VideoError(f"{name} holds {array.dtype}, no numbers")
    if array.size != 1 if BESIDE[name] == 0 else array.shape != (rows,):
        wanted = "one number" if BESIDE[name] == 0 else f"{rows}, one of each row"
        raise VideoError(f"{name} has shape {shape_words(array.shape)}; it takes {wanted}")
    return array.reshape(()) if BESIDE[name] == 0 else array
