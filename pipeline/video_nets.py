"""Networks that torchvision lacks: video ResNets that see time in other ways, and small nets of the years before.

They are built after their papers, for 400 classes; nobody publishes weights of them, so they begin at random and are
trained end to end. Each ends in a Linear, so that its default layer is what that reads.

- `r2d_18`, `fr2d_18`, `rmc3_18`: 18-layer ResNets of Tran et al. 2018 from torchvision's own blocks, with its Kaiming
  initialisation. R2D reads the clip's L frames as 3L channels; f-R2D reads each frame alone, and their features are
  averaged over time; rMC3 convolves over space alone in its stem and first group, over space and time in the later
  three. None pools after the stem. R2D's stem, and with it the number of parameters, grows with the clip.
- `vgg_m`: the five convolutions of Chatfield et al.'s CNN-M on a stack of frames as channels, and one fully connected
  layer of 512 units. The paper's has 4096 and 4096 on 224×224 pixels; five grey frames of 112×112, as for reading lips
  (Chung & Zisserman 2016, "Lip reading in the wild"), leave 3×3×512 numbers before it. Pools round up, as in Caffe.
- `slow_fusion`: Karpathy et al. 2014, with the context stream (the whole clip at half its resolution) and the fovea
  stream (its centre at full resolution). Ten frames become 4, 2 and 1 steps. Two streams of 89×89 pixels end in 7×7
  maps because the last pool is left out, as in the paper. What leads to these 7×7 is our reading: no padding for the
  first convolution, as much as keeps the size for the others, pools that round up. There is no dropout.

The last two know nothing of batch normalisation; they normalise responses across channels. They begin with Kaiming's
initialisation, and read pixels less their mean as published, but also divided by their standard deviation: the first
convolution can make up for that, so nothing is lost, and first weights of the usual size are the right ones.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, Conv3DNoTemporal, Conv3DSimple, VideoResNet

from pipeline.blueprints import Blueprint
from pipeline.errors import UserError
from pipeline.preprocessing import Preprocessing
from pipeline.windows import Window

CLASSES = 400  # those of Kinetics, by which the papers count parameters
_FUSED = 10  # frames that slow fusion fuses: (10 - 4) / 2 + 1 = 4 steps, then 2, then 1


class Net(NamedTuple):
    """One network and what goes with it.

    Attributes:
        build: a window of one of `kinds` -> the whole model, freshly initialised, from (N, *window.input_shape(S))
            float32 to (N, 400). UserError: a window that the network cannot see.
        window: what it sees if nothing else is said.
        kinds: the kinds of window that it can see.
        preprocessing: how its frames are prepared and normalised.
        source: the paper that it is built after.
    """

    build: Callable[[Window], nn.Module]
    window: Window
    kinds: tuple[str, ...]
    preprocessing: Preprocessing
    source: str


class _FramesAsChannels(nn.Module):
    """(N, 3, L, H, W) -> (N, 3L, 1, H, W): a clip of one step, all of its frames side by side."""

    def forward(self, clips: Tensor) -> Tensor:
        return clips.flatten(1, 2).unsqueeze(2)


class _ResponseNorm(nn.Module):
    """Krizhevsky's local response normalisation over five channels, of (N, C, ...): α is 10⁻⁴ for each of them.

    torch's own divides α among them, and has no bfloat16 on the CPU.
    """

    def __init__(self, beta: float, axes: int) -> None:
        """`axes` is how many there are after the channels."""
        super().__init__()
        self.beta = beta
        self.margins = (0, 0) * axes + (2, 2)

    def forward(self, features: Tensor) -> Tensor:
        squares = F.pad(features.square(), self.margins).unfold(1, 5, 1).sum(-1)
        return features / (2 + 1e-4 * squares) ** self.beta


class _VggM(nn.Module):
    """(N, C, 112, 112) -> (N, 400). Other image sizes are pooled to the same 3×3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 96, 7, stride=2),
            nn.ReLU(inplace=True),
            _ResponseNorm(0.75, axes=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(96, 256, 5, stride=2, padding=1),
            nn.ReLU(inplace=True),
            _ResponseNorm(0.75, axes=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(256, 512, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, 512, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, 512, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((3, 3))
        self.fc6 = nn.Linear(512 * 3 * 3, 512)
        self.relu6 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(512, CLASSES)
        _initialise(self, self.classifier)

    def forward(self, stacks: Tensor) -> Tensor:
        pooled = self.avgpool(self.features(stacks)).flatten(1)
        return self.classifier(self.dropout(self.relu6(self.fc6(pooled))))


class _SlowFusion(nn.Module):
    """(N, 3, 10, 178, 178) -> (N, 400). Other image sizes are pooled to the same 7×7."""

    def __init__(self) -> None:
        super().__init__()
        self.context = _stream()
        self.fovea = _stream()
        self.fc6 = nn.Linear(2 * 256 * 7 * 7, 4096)
        self.relu6 = nn.ReLU(inplace=True)
        self.fc7 = nn.Linear(4096, 4096)
        self.relu7 = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(4096, CLASSES)
        _initialise(self, self.classifier)

    def forward(self, clips: Tensor) -> Tensor:
        halved = F.avg_pool2d(clips.flatten(1, 2), 2).unflatten(1, (3, -1))  # every frame alone
        context = self.context(halved)
        side = clips.size(-1) // 2
        corner = (clips.size(-1) - side) // 2
        fovea = self.fovea(clips[..., corner : corner + side, corner : corner + side])
        both = torch.cat([context, fovea], dim=1).flatten(1)
        return self.classifier(self.relu7(self.fc7(self.relu6(self.fc6(both)))))


def _stream() -> nn.Sequential:
    """(N, 3, 10, 89, 89) -> (N, 256, 1, 7, 7)."""
    return nn.Sequential(
        nn.Conv3d(3, 96, (4, 11, 11), stride=(2, 3, 3)),
        nn.ReLU(inplace=True),
        _ResponseNorm(0.5, axes=3),
        nn.MaxPool3d((1, 2, 2), ceil_mode=True),
        nn.Conv3d(96, 256, (2, 5, 5), stride=(2, 1, 1), padding=(0, 2, 2)),
        nn.ReLU(inplace=True),
        _ResponseNorm(0.5, axes=3),
        nn.MaxPool3d((1, 2, 2), ceil_mode=True),
        nn.Conv3d(256, 384, (2, 3, 3), stride=(2, 1, 1), padding=(0, 1, 1)),
        nn.ReLU(inplace=True),
        nn.Conv3d(384, 384, (1, 3, 3), padding=(0, 1, 1)),
        nn.ReLU(inplace=True),
        nn.Conv3d(384, 256, (1, 3, 3), padding=(0, 1, 1)),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool3d((1, 7, 7)),
    )


def _initialise(model: nn.Module, classifier: nn.Module) -> None:
    """Kaiming's first weights, N(0, 0.01) for the classifier; biases are zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
            if module is classifier:
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _video_resnet(groups: Sequence[Callable[..., nn.Module]], frames_as_channels: int = 1) -> nn.Module:
    """An 18-layer video ResNet of which the stem convolves over space alone."""

    def stem() -> nn.Sequential:
        convolution = nn.Conv3d(3 * frames_as_channels, 64, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False)
        layers: list[nn.Module] = [convolution, nn.BatchNorm3d(64), nn.ReLU(inplace=True)]
        return nn.Sequential(*([_FramesAsChannels()] if frames_as_channels > 1 else []), *layers)

    model: nn.Module = VideoResNet(BasicBlock, groups, [2, 2, 2, 2], stem, num_classes=CLASSES)
    return model


def _r2d(window: Window) -> nn.Module:
    return _video_resnet([Conv3DNoTemporal] * 4, frames_as_channels=window.length)


def _fr2d(window: Window) -> nn.Module:
    return _video_resnet([Conv3DNoTemporal] * 4)


def _rmc3(window: Window) -> nn.Module:
    return _video_resnet([Conv3DNoTemporal, *[Conv3DSimple] * 3])


def _vgg_m(window: Window) -> nn.Module:
    return _VggM(window.channels)


def _slow_fusion(window: Window) -> nn.Module:
    if window.length != _FUSED:
        raise UserError(
            f"slow_fusion fuses {_FUSED} frames, not {window.length}; give --clip-length {_FUSED} or leave it out"
        )
    return _SlowFusion()


def _tran(name: str, build: Callable[[Window], nn.Module]) -> Net:
    """One of the ResNets, its frames prepared as for torchvision's."""
    return Net(
        build=build,
        window=Window("clip", 16, 8),
        kinds=("clip",),
        preprocessing=Preprocessing(
            resize=(128, 171),
            crop=112,
            mean=(0.43216, 0.394666, 0.37645),
            std=(0.22803, 0.22145, 0.216989),
            interpolation="bilinear",
            antialias=False,
            fit="crop",
            preset=name,
        ),
        source='Tran et al. 2018, "A closer look at spatiotemporal convolutions for action recognition", '
        "https://arxiv.org/abs/1711.11248",
    )


def _small(name: str, resize: int, crop: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
    return Preprocessing(
        resize=resize, crop=crop, mean=mean, std=std, interpolation="bilinear", antialias=True, fit="crop", preset=name
    )


NETS: dict[str, Net] = {
    "r2d_18": _tran("r2d_18", _r2d),
    "fr2d_18": _tran("fr2d_18", _fr2d),
    "rmc3_18": _tran("rmc3_18", _rmc3),
    "vgg_m": Net(
        build=_vgg_m,
        window=Window("stack", 5, grey=True),
        kinds=("frame", "stack", "flow"),
        preprocessing=_small("vgg_m", 128, 112, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        source='Chatfield et al. 2014, "Return of the devil in the details: delving deep into convolutional nets", '
        "https://arxiv.org/abs/1405.3531",
    ),
    "slow_fusion": Net(
        build=_slow_fusion,
        window=Window("clip", 10, 5),
        kinds=("clip",),
        preprocessing=_small("slow_fusion", 200, 178, mean=(117 / 255,) * 3, std=(0.226,) * 3),
        source='Karpathy et al. 2014, "Large-scale video classification with convolutional neural networks", '
        "https://cs.stanford.edu/people/karpathy/deepvideo/",
    ),
}


def blueprint(name: str) -> Blueprint:
    """One of them, as networks come from elsewhere too."""
    net = NETS[name]
    return Blueprint(
        name=name,
        build=lambda window, _preset, _seed: net.build(window),
        presets=lambda: {net.preprocessing.preset: net.preprocessing},
        default=net.preprocessing.preset,
        window=net.window,
        kinds=net.kinds,
    )
