"""The options of `framebank extract` as keyword arguments. Written by tests/python_options.py."""

from collections.abc import Sequence
from os import PathLike
from typing import Literal, TypedDict


class ExtractOptions(TypedDict, total=False):
    """As of the command; None is as if it were not given."""

    label_from: int | str | None
    """Class label from a folder level (1 is the first below DATA, -1 the one above the file) or a regular expression on
    the path below DATA, suffix included. [default: 1]"""

    group_from: int | str | None
    r"""Group (recording, person, …) in the same ways; UCF101: '_(g\d+)_'."""

    split_list: str | PathLike[str] | Sequence[str | PathLike[str]] | None
    """UCF101 or HMDB51 split lists: a file or a folder of them. May be repeated."""

    all_files: bool | None
    """Try every file, whatever its suffix."""

    image_fps: float | None
    """Frame rate of folders of images, which have no clock of their own."""

    backbone: str | None
    """Any torchvision classification or video model, one of ours, timm/NAME, or a function of yours that makes one:
    FILE.py:FUNCTION, MODULE:FUNCTION. [default: resnet50]"""

    weights: str | PathLike[str] | None
    """A published weight name (IMAGENET1K_V2), 'random', a checkpoint file (.pth, .safetensors), or a fine-tuned run,
    which also brings what else of network and frames is not given here. [default: DEFAULT]"""

    layer: str | None
    """Node of the model to bank; NODE:mean averages a conv map over space. [default: what its last linear layer
    reads]"""

    preset: str | PathLike[str] | None
    """Whose preprocessing goes with a checkpoint file or random weights, by weight name."""

    image_size: int | None
    """Side of the square image the model sees. [default: the preset's]"""

    fit: Literal["crop", "squash", "pad"] | None
    """How a frame becomes square: cut its middle out, change its aspect, or pad it. [default: crop]"""

    crop: str | Sequence[int] | None
    """Use only this region of every frame, in pixels; a manifest's crop_x, crop_y, crop_w, crop_h go first."""

    seed: int | None
    """Seed of random weights. [default: 0]"""

    clip_length: int | None
    """Clips of L frames for video networks. [default: the network's]"""

    clip_stride: int | None
    """Frames from one clip to the next; no frame is left out. [default: half a clip]"""

    stack: int | None
    """The K frames around each frame as channels of one."""

    grey: bool | None
    """Grey frames in the stack, one channel each."""

    flow: int | None
    """Optical flow instead: the motion between the L + 1 frames around each frame, as 2 L channels."""

    flow_method: Literal["dis", "tvl1", "raft"] | None
    """How it is measured: DIS or TV-L1 of OpenCV, or RAFT with --flow-weights. [default: dis]"""

    flow_weights: str | PathLike[str] | None
    """Weights of RAFT: C_T_SKHT_V2, or a checkpoint file."""

    inflate: bool | None
    """Make a 3D network of clips out of an image network (I3D), with its weights."""

    stride: int | None
    """Take every N-th frame. [default: every frame]"""

    fps: float | None
    """Take so many frames per second, by their real times."""

    frames: int | None
    """Take so many frames per video, evenly spread."""

    allow_partial: bool | None
    """Bank what decodes of broken videos, marked as partial."""

    views: int | str | None
    """Several views of each video: centre and corners, these and mirrored, or K random ones."""

    device: str | None
    """auto, cpu, cuda, cuda:1, mps. [default: auto]"""

    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    """Compute precision; auto is bf16 where the machine has it, else fp32. [default: auto]"""

    store: Literal["float16", "float32"] | None
    """Type of the stored embeddings. [default: float16]"""

    batch_size: int | str | None
    """Rows per forward: frames, clips, or views of them. [default: auto]"""

    retry_failed: bool | None
    """Try the videos that failed before again."""

    pack: bool | None
    """Fold the parts into one file at the end, when they are a quarter of it or more; or leave them and link. [default:
    pack]"""

    workers: int | None
    """Start N worker processes on this machine: one per GPU, say. [default: this process alone]"""

    scheduler: str | None
    """Join the workers of a Dask cluster: tcp://host:8786."""

    scheduler_file: str | PathLike[str] | None
    """The same, by the file that `dask scheduler --scheduler-file FILE` writes."""

    stall_limit: float | None
    """Give a video up of which no frame comes for so long; its worker is ended. [default: 600]"""

    recipe: str | PathLike[str] | None
    """Take what is not typed from a recipe: one that `framebank recipes` lists, or a .toml file of yours."""
