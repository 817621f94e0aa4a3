"""Small networks of kinds that torchvision does not have, to be asked which of their weights are scale-invariant."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Two levels; ``normalized`` puts BatchNorm between the transposed convolution and the concatenation."""

    def __init__(self, normalized: bool) -> None:
        super().__init__()
        self.down, self.bottom, self.decode = _double_conv(3, 8), _double_conv(8, 16), _double_conv(16, 8)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.norm = nn.BatchNorm2d(8) if normalized else nn.Identity()
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        up = self.norm(self.up(self.bottom(F.max_pool2d(skip, 2))))
        return self.head(self.decode(torch.cat([skip, up], 1)))


class Attention(nn.Module):
    """Causal, with queries and keys brought to unit root mean square in each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.query_norm, self.key_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(self.query_norm(q), self.key_norm(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class GPT(nn.Module):
    """Pre-norm, with queries and keys normalized."""

    def __init__(self, tokens: int = 50, width: int = 16, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(tokens, width), nn.Embedding(32, width)
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(depth))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x))


def mlp_norm_last(bias: bool = True) -> nn.Sequential:
    """BatchNorm behind the ReLU: a bias is scaled with its weight, or it is left out."""
    return nn.Sequential(
        *(nn.Linear(12, 16, bias), nn.ReLU(), nn.BatchNorm1d(16)),
        *(nn.Linear(16, 16, bias), nn.ReLU(), nn.BatchNorm1d(16)),
        nn.Linear(16, 4),
    )


def dcgan_generator() -> nn.Sequential:
    """Noise of shape ``(batch, 10, 1, 1)`` to images."""

    def up(i: int, o: int, stride: int = 2) -> list[nn.Module]:
        layer = nn.ConvTranspose2d(i, o, 4, stride, stride // 2, bias=False)
        return [layer, nn.BatchNorm2d(o), nn.ReLU(True)]

    last = nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False)
    return nn.Sequential(*up(10, 32, 1)[:1], *up(10, 32)[1:], *up(32, 16), *up(16, 8), last, nn.Tanh())


def dcgan_discriminator() -> nn.Sequential:
    """No BatchNorm behind its first layer, whose scale LeakyReLU passes on to the next."""

    def down(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 4, 2, 1, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)]

    first = nn.Conv2d(3, 8, 4, 2, 1, bias=False)
    last = nn.Conv2d(32, 1, 4, bias=False)
    return nn.Sequential(first, nn.LeakyReLU(0.2), *down(8, 16), *down(16, 32), last, nn.Sigmoid())
