"""The options of `framebank finetune` as keyword arguments. Written by tests/python_options.py."""

from collections.abc import Sequence
from os import PathLike
from typing import Literal, TypedDict


class FinetuneOptions(TypedDict, total=False):
    """As of the command; None is as if it were not given."""

    head: str | PathLike[str] | None
    """The run of train-head to start from: its head, split, targets."""

    bank: str | PathLike[str] | None
    """Where the bank of RUN lies now, if it was moved; without --head, where first embeddings are kept."""

    weights: str | PathLike[str] | None
    """The checkpoint of the backbone, or the fine-tuned run that it was; checked. Without --head: a name, a file, or
    'random'."""

    unfreeze: int | str | None
    """What of the backbone trains: a number of last blocks, names (layer4 or features.11,features.12), all, or by
    epochs passed: 0:head,2:layer4,5:layer3. [default: 2]"""

    train_batch_norm: bool | None
    """BatchNorm in it trains too, statistics included."""

    backbone_rate: float | None
    """Peak learning rate of the last block. [default: 0.00003; without --head 0.0001, and 0.001 for random weights]"""

    layer_decay: float | None
    """Each block before it has X times the rate of the next. [default: 0.7; 1 for random weights]"""

    augment: str | Sequence[str] | None
    """Change clips at random in training, all frames alike: any of crop, flip, jitter. [default: none]"""

    views: int | None
    """Bank N augmented views beside the plain one and take them in turn, instead of drawing every epoch."""

    prefix_bank: str | PathLike[str] | None
    """Where what the frozen part gives is banked; it is kept. [default: in RUN2, until that is done]"""

    no_prefix_bank: bool | None
    """Compute it in every epoch instead."""

    micro_batch: int | None
    """Frames through the network at once."""

    recompute: bool | None
    """Compute activations again in the backward pass, or keep them. [default: keep if memory suffices]"""

    accumulate: int | None
    """Batches per optimiser step."""

    stride: int | None
    """Every N-th frame of the bank."""

    fps: float | None
    """So many frames per second."""

    frames: int | None
    """N frames, evenly spread."""

    tsn: int | None
    """One frame of each N-th part, random in training."""

    tail: int | None
    """N frames, from the last one backwards."""

    lrcn: int | None
    """The same as LRCN code does it: always N, so some may repeat."""

    window: int | None
    """N frames in a row, anywhere in training."""

    test_crops: int | None
    """Average so many draws of --tsn or --window in testing. [default: 1]"""

    supervise: Literal["pooled", "every-step", "growing"] | None
    """What learns the video's label: the pooled sequence, every step, or steps with growing weight. [default:
    pooled]"""

    read: Literal["last", "mean", "max", "weighted"] | None
    """How the trained steps give the prediction. [default: last]"""

    loss: Literal["cross-entropy", "bce", "mse", "huber"] | None
    """What training makes small. [default: what fits the target]"""

    label_smoothing: float | None
    """Share of a class target that is spread over all classes. [default: 0.1]"""

    balance: Literal["none", "weights", "sampling"] | None
    """Make rare classes count as much as others. [default: none]"""

    epochs: int | None
    """Passes over the training videos. [default: 8; 30 without --head]"""

    patience: int | None
    """Stop after so many epochs without improvement of the validation part."""

    monitor: str | None
    """What of the validation part chooses the epoch: loss, or a metric such as macro_f1. [default: loss]"""

    batch_size: int | None
    """Videos per step of the optimiser. [default: 16]"""

    max_steps: int | None
    """Frames per step, at most (one video may have more). [default: 1024]"""

    chunk_steps: int | None
    """Longer videos with a label per frame are trained in chunks of so many frames. [default: 256]"""

    seed: int | None
    """Seed of first weights, order and dropout. [default: 0]"""

    seeds: int | None
    """Train with so many seeds and give mean and spread. [default: 1]"""

    optimizer: Literal["adamw", "sgd"] | None
    """How weights are changed. [default: adamw]"""

    learning_rate: float | None
    """Peak learning rate of the head. [default: 0.0002; 0.001 without --head]"""

    momentum: float | None
    """Momentum of sgd. [default: 0.9]"""

    weight_decay: float | None
    """Pull towards 0. [default: 0.01]"""

    schedule: Literal["constant", "cosine", "step", "plateau"] | None
    """Learning rate over the epochs. [default: cosine]"""

    warmup: float | None
    """Share of the training in which the learning rate rises first. [default: 0.1]"""

    step_epochs: int | None
    """Epochs before step and plateau lower the rate. [default: 10]"""

    step_factor: float | None
    """By which they multiply it. [default: 0.5]"""

    clip_norm: float | None
    """Gradients are clipped to this norm. [default: 1.0]"""

    clip_value: float | None
    """And then to this value each."""

    device: str | None
    """auto, cpu, cuda, cuda:1, mps. [default: auto]"""

    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    """Compute precision; auto is bf16 where the machine has it, else fp32. [default: auto]"""

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

    target: str | None
    """Column of the bank's catalog, or of the file of --targets or --frame-values. [default: label]"""

    targets: str | PathLike[str] | None
    """Targets of the videos, joined by a column id."""

    segments: str | PathLike[str] | None
    """A label per frame: CSV of id, start, end, label (seconds, or start_frame, end_frame), one-hot CSV, BORIS CSV, or
    a folder of MS-TCN or Cholec80 text files."""

    frame_values: str | PathLike[str] | None
    """A number per frame: columns id, time or frame, and a value."""

    multi_label: bool | None
    """Any number of labels at once ('a|b' in a column)."""

    regression: bool | None
    """The target is a number."""

    background: str | None
    """Label of frames in no segment. [default: they do not count]"""

    allow_overlap: bool | None
    """Where segments overlap, the one that starts later counts."""

    allow_unknown: bool | None
    """Pass over segments of videos that are not in the bank."""

    allow_beyond: bool | None
    """Cut off segments that go on past the end of their video."""

    min_seconds: float | None
    """Predicted segments shorter than this join their neighbours (in predict too). [default: 0]"""

    split_column: str | None
    """Column that says train, val or test. [default: split]"""

    splits: str | PathLike[str] | None
    """Splits as an earlier run wrote them: id, fold, part."""

    folds: int | None
    """Cross-validate with K folds, whatever the column says."""

    test_share: float | None
    """Share held out at random where there is no split. [default: 0.2]"""

    validation_share: float | None
    """Share of the training part set aside to choose the epoch and to calibrate, where the split has no such part.
    [default: 0.0]"""

    group_column: str | None
    """Column of recordings or persons that are never divided between parts; none: divide them. [default: group]"""

    split_seed: int | None
    """Seed of random parts and folds. [default: 0]"""

    spatial: Literal["mean", "flatten", "attention"] | None
    """How maps become vectors; they need it."""

    centre: bool | None
    """Subtract each video's mean over time. [default: centre]"""

    deltas: int | str | Sequence[int] | None
    """Beside the features their differences to N frames earlier."""

    changes: int | str | Sequence[int] | None
    """The same without sign: how much each feature changes; '' for none. [default: 4]"""

    pca: int | None
    """Project all these onto N principal components of the training videos; 0: don't. [default: at most 128]"""

    projection: int | None
    """Width of a linear layer before the cell."""

    projection_dropout: float | None
    """Dropout of what it gives. [default: 0.0]"""

    cell: Literal["lstm", "gru", "none"] | None
    """Recurrent cell; none looks at every step by itself. [default: lstm]"""

    hidden: int | None
    """Units per direction. [default: 64]"""

    layers: int | None
    """Recurrent layers. [default: 1]"""

    bidirectional: bool | None
    """Read from both ends. [default: both]"""

    pool: str | None
    """How the steps become one vector: last, mean, max, stats (mean and deviation), attention, or several as in
    max+stats. [default: max+stats]"""

    step_mlp: int | str | Sequence[int] | None
    """Widths of layers with ReLU that every step goes through before the pool."""

    norm: Literal["none", "batch"] | None
    """Batch normalisation of what the classifier reads. [default: batch]"""

    mlp: int | str | Sequence[int] | None
    """Widths of hidden layers in the classifier."""

    input_dropout: float | None
    """Dropout of the features. [default: 0.0]"""

    dropout: float | None
    """Dropout between recurrent layers. [default: 0.0]"""

    recurrent_dropout: float | None
    """Dropout of the hidden-to-hidden weights. [default: 0.0]"""

    variational_dropout: float | None
    """Dropout of the cell's input and state, the same at all steps of a video; slower. [default: 0.0]"""

    output_dropout: float | None
    """Dropout before the classifier. [default: 0.5]"""

    init: (
        Literal["orthogonal-recurrent", "orthogonal-input", "bias-one", "forget-bias"]
        | Sequence[Literal["orthogonal-recurrent", "orthogonal-input", "bias-one", "forget-bias"]]
        | None
    )
    """Initial weights of the cell; may be repeated. [default: torch's]"""

    fuse: Literal["concat", "mean", "svm"] | None
    """Several banks: features side by side, or a head each and scores fused. [default: concat]"""

    recipe: str | PathLike[str] | None
    """Take what is not typed from a recipe: one that `framebank recipes` lists, or a .toml file of yours."""
