"""What is the VGG network of the papers?"""

from __future__ import annotations

from torch import Tensor, nn

from .layers import BatchNorm, conv, he_normal_, integer, scaled

_WIDTHS = (64, 128, 256, 512, 512)
_REPEATS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Five stages of 3x3 convolutions with a 2x2 max-pool after each, then three linear layers; see `vgg`."""

    def __init__(
        self, repeats: tuple[int, ...], widths: list[int], in_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for repeat, width in zip(repeats, widths, strict=True):
            layers: list[nn.Module] = []
            for _ in range(repeat):
                layers += [conv(in_channels, width), BatchNorm(width, gamma=False), nn.ReLU()]
                in_channels = width
            self.stages.append(nn.Sequential(*layers))
        self.pool = nn.MaxPool2d(2)
        hidden: list[nn.Module] = []
        for _ in range(2):
            hidden += [nn.Linear(width, width, bias=False), BatchNorm(width, gamma=False), nn.ReLU()]
        self.classifier = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, num_classes))
        he_normal_(self)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for stage in self.stages:
            x = stage(x)
            if min(x.shape[2:]) > 1:  # a map of one pixel has nothing left to pool
                x = self.pool(x)
        if x.shape[2:] != (1, 1):
            given, left = ("x".join(map(str, t.shape[2:])) for t in (images, x))
            raise ValueError(
                f"vgg: images of {given} leave a map of {left} after the pools and the linear layers "
                "need 1x1; give square images with sides below 64 pixels."
            )
        return self.classifier(x)


def vgg(depth: int, num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> VGG:
    """VGG as Cho and Lee (2017) train it: 3x3 convolutions, BatchNorm with beta only, three linear layers.

    Every convolution and hidden linear layer is without bias and followed by BatchNorm and ReLU. A pool is
    skipped once the map is one pixel, so that 8x8 digits and 28x28 Fashion-MNIST run as they are; at 32x32
    this changes nothing. Weights are He-normal, the last layer's bias zero.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: Size of the output.
        width: Factor on every number of channels (64 … 512), rounded, at least 1 channel.
        in_channels: Channels of the images.

    Returns:
        A module from square images ``(n, in_channels, H, H)`` with H below 64 (otherwise its forward raises
        ValueError) to logits ``(n, num_classes)``.

    Raises:
        ValueError: If an argument is out of range.

    Source: the TensorFlow release of Cho and Lee (2017),
    github.com/MinhyungCho/riemannian-batch-normalization.
    """
    integer("vgg", depth=depth, num_classes=num_classes, in_channels=in_channels)
    if depth not in _REPEATS:
        raise ValueError(f"vgg: depth={depth}; give one of {', '.join(map(str, _REPEATS))}.")
    return VGG(_REPEATS[depth], scaled("vgg", "width", width, _WIDTHS), in_channels, num_classes)
