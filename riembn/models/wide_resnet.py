"""What is the wide residual network of the papers?"""

from __future__ import annotations

from torch import Tensor, nn

from .layers import BatchNorm, conv, he_normal_, integer, scaled

_STEM = 16
_WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """BN-ReLU-conv-BN-ReLU-[dropout]-conv plus a shortcut: identity, or 1x1 convolution if the shape changes.

    The 1x1 convolution reads the first BN-ReLU's output, the identity reads the input of the block itself.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = BatchNorm(in_channels)
        self.conv1 = conv(in_channels, out_channels, stride=stride)
        self.bn2 = BatchNorm(out_channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = conv(out_channels, out_channels)
        self.relu = nn.ReLU()
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = conv(in_channels, out_channels, kernel=1, stride=stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        branch = self.conv2(self.dropout(self.relu(self.bn2(self.conv1(active)))))
        return branch + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A 3x3 convolution, three groups of blocks, BN-ReLU, global mean, linear layer; see `wide_resnet`."""

    def __init__(
        self, blocks: int, widths: list[int], dropout: float, in_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.conv0 = conv(in_channels, _STEM)
        self.groups = nn.ModuleList()
        channels = _STEM
        for width, stride in zip(widths, (1, 2, 2), strict=True):
            group = nn.Sequential(Block(channels, width, stride, dropout))
            group.extend(Block(width, width, 1, dropout) for _ in range(blocks - 1))
            self.groups.append(group)
            channels = width
        self.bn = BatchNorm(channels)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(channels, num_classes)
        he_normal_(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv0(images)
        for group in self.groups:
            x = group(x)
        return self.fc(self.relu(self.bn(x)).mean(dim=(2, 3)))


def wide_resnet(
    depth: int, widen: float, num_classes: int = 10, dropout: float = 0.0, in_channels: int = 3
) -> WideResNet:
    """Wide residual network with pre-activation blocks, WRN-depth-widen, as Cho and Lee (2017) train it.

    The blocks have ``16 widen``, ``32 widen`` and ``64 widen`` channels; the second and the third group
    halve the map. Convolutions have no bias, BatchNorm has gamma and beta. Weights are He-normal, the last
    layer's bias zero.

    Args:
        depth: 6 b + 4 for b blocks a group: 10, 16, 22, 28, 34, 40, …
        widen: Factor on the channels of the blocks, any positive number, rounded to at least 1 channel.
        num_classes: Size of the output.
        dropout: Probability of zeroing an entry in front of each block's second convolution, in [0, 1). The
            release uses 0.3 on CIFAR and 0.4 on SVHN.
        in_channels: Channels of the images.

    Returns:
        A module from images ``(n, in_channels, H, W)`` of any size to logits ``(n, num_classes)``.

    Raises:
        ValueError: If an argument is out of range.

    Source: Zagoruyko and Komodakis (2016), arXiv:1605.07146; the TensorFlow release of Cho and Lee (2017),
    github.com/MinhyungCho/riemannian-batch-normalization.
    """
    integer("wide_resnet", depth=depth, num_classes=num_classes, in_channels=in_channels)
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"wide_resnet: depth={depth}; give 6 b + 4 for b blocks a group: 10, 16, 22, 28, …")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"wide_resnet: dropout={dropout!r}; give a probability in [0, 1).")
    widths = scaled("wide_resnet", "widen", widen, _WIDTHS)
    return WideResNet((depth - 4) // 6, widths, dropout, in_channels, num_classes)
