"""The residual networks of He et al. (2016): those for CIFAR, and those for ImageNet."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from .layers import BatchNorm, conv, he_normal_, integer, scaled

_CIFAR_WIDTHS = (16, 32, 64)
_IMAGENET_WIDTHS = (64, 128, 256, 512)


class ZeroPadded(nn.Module):
    """Every ``stride``-th pixel, with channels of zeros behind those that are there: He et al.'s option A."""

    def __init__(self, added: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = added, stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))

    def extra_repr(self) -> str:
        return f"added={self.added}, stride={self.stride}"


def _shortcut(inputs: int, outputs: int, stride: int, projects: bool) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if projects:
        return nn.Sequential(conv(inputs, outputs, kernel=1, stride=stride), BatchNorm(outputs))
    return ZeroPadded(outputs - inputs, stride)


class Block(nn.Module):
    """Conv-BN-ReLU-conv-BN plus a shortcut, then ReLU."""

    expansion = 1  # channels that leave the block, by its width

    def __init__(self, inputs: int, width: int, stride: int, projects: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, stride=stride), BatchNorm(width)
        self.conv2, self.bn2 = conv(width, width), BatchNorm(width)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, width, stride, projects)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(branch + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, each with BN; as torchvision, the 3x3 strides."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, projects: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, kernel=1), BatchNorm(width)
        self.conv2, self.bn2 = conv(width, width, stride=stride), BatchNorm(width)
        self.conv3, self.bn3 = conv(width, 4 * width, kernel=1), BatchNorm(4 * width)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, 4 * width, stride, projects)

    def forward(self, x: Tensor) -> Tensor:
        x, shortcut = self.relu(self.bn1(self.conv1(x))), self.downsample(x)
        branch = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))
        return self.relu(branch + shortcut)


# Blocks a stage.
_CIFAR = {depth: ((depth - 2) // 6,) * 3 for depth in (20, 32, 44, 56)}
_IMAGENET: dict[int, tuple[type[Block | Bottleneck], tuple[int, ...]]] = {
    18: (Block, (2, 2, 2, 2)),
    34: (Block, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
DEPTHS = (*_CIFAR, *_IMAGENET)


class ResNet(nn.Module):
    """A stem, stages of blocks that each halve the map but the first, global mean, linear layer; see `resnet`."""

    def __init__(
        self,
        block: type[Block | Bottleneck],
        repeats: tuple[int, ...],
        widths: list[int],
        in_channels: int,
        num_classes: int,
        *,
        imagenet: bool,
    ) -> None:
        super().__init__()
        channels = widths[0]
        self.conv1 = conv(in_channels, channels, kernel=7, stride=2) if imagenet else conv(in_channels, channels)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        self.bn1, self.relu = BatchNorm(channels), nn.ReLU()
        self.stages = len(repeats)
        for number, (repeat, width) in enumerate(zip(repeats, widths, strict=True), start=1):
            blocks = nn.Sequential()
            for i in range(repeat):
                stride = 2 if number > 1 and i == 0 else 1
                blocks.append(block(channels, width, stride, projects=imagenet))
                channels = block.expansion * width
            self.add_module(f"layer{number}", blocks)
        self.fc = nn.Linear(channels, num_classes)
        he_normal_(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(x.mean(dim=(2, 3)))


def resnet(depth: int, num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> ResNet:
    """Residual network of a depth: 20, 32, 44 and 56 are the ones for CIFAR, 18, 34 and 50 those for ImageNet.

    The CIFAR networks have three stages of 16, 32 and 64 channels behind a 3x3 convolution. Where the shape
    changes, their shortcut drops pixels and adds channels of zeros (option A): so the paper trains them on CIFAR,
    and their 0.27, 0.46, 0.66 and 0.85 million parameters are the paper's. The ImageNet networks have four stages
    of 64 to 512 channels behind a strided 7x7 convolution and a pool, and a 1x1 convolution with BatchNorm in such
    a shortcut (option B), as torchvision's of the same names, whose ``state_dict`` they take.

    Every convolution is without bias and followed by BatchNorm with gamma and beta. Weights are He-normal by
    fan-in, the last layer's bias zero.

    Args:
        depth: 20, 32, 44, 56; 18, 34 or 50.
        num_classes: Size of the output.
        width: Factor on every number of channels, rounded, at least 1 channel.
        in_channels: Channels of the images.

    Returns:
        A module from images ``(n, in_channels, H, W)`` of any size to logits ``(n, num_classes)``.

    Raises:
        ValueError: If an argument is out of range.

    Source: He, Zhang, Ren and Sun (2016), arXiv:1512.03385, Sections 3.3 and 4.2; for the place of the bottleneck's
    stride torchvision. Yi (2022), arXiv:2101.02916, trains both families.
    """
    integer("resnet", depth=depth, num_classes=num_classes, in_channels=in_channels)
    if depth in _CIFAR:
        widths = scaled("resnet", "width", width, _CIFAR_WIDTHS)
        return ResNet(Block, _CIFAR[depth], widths, in_channels, num_classes, imagenet=False)
    if depth in _IMAGENET:
        block, repeats = _IMAGENET[depth]
        widths = scaled("resnet", "width", width, _IMAGENET_WIDTHS)
        return ResNet(block, repeats, widths, in_channels, num_classes, imagenet=True)
    raise ValueError(f"resnet: depth={depth}; give one of {', '.join(map(str, DEPTHS))}.")
