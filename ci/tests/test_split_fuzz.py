"""Split is right on networks drawn at random from blocks with known verdicts, and what it chooses is orthogonal."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo.radial import radial_parts

from riembn.invariance import split

CHANNELS = 8
Block = tuple[nn.Module, dict[str, str]]

HOMOGENEOUS: list[Callable[[], nn.Module]] = [
    nn.Identity,
    nn.ReLU,
    lambda: nn.LeakyReLU(0.2),
    lambda: nn.PReLU(CHANNELS),
    lambda: nn.MaxPool2d(3, 1, 1),
    lambda: nn.AvgPool2d(3, 1, 1),
    lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False),
]
BREAKING: list[Callable[[], nn.Module]] = [nn.GELU, nn.SiLU, nn.Tanh, nn.Softplus, nn.Hardswish, nn.ReLU6]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.norm = conv(), conv(), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.norm(self.conv1(x)).relu())


class Branches(nn.Module):
    def __init__(self, norm: nn.Module, mixed: bool) -> None:
        super().__init__()
        self.left, self.right = (
            nn.Conv2d(CHANNELS, CHANNELS // 2, 3, padding=1, bias=False) for _ in range(2)
        )
        self.mix = conv() if mixed else nn.Identity()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(torch.cat([self.left(x), self.right(x)], 1)))


def conv(bias: bool = False, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias, groups=groups)


def layer(draw: random.Random, bias: bool) -> nn.Module:
    groups = draw.choice([1, 2, 4])
    transposed = nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias, groups=groups)
    return draw.choice([conv(bias, groups), transposed])


def norm(draw: random.Random) -> tuple[nn.Module, str]:
    """A normalization, and what it makes one vector of a weight in front of it."""
    return draw.choice(
        [
            (nn.BatchNorm2d(CHANNELS), "channel"),
            (nn.InstanceNorm2d(CHANNELS), "channel"),
            (nn.GroupNorm(CHANNELS, CHANNELS), "channel"),
            (nn.GroupNorm(4, CHANNELS), "2 channels"),
            (nn.GroupNorm(2, CHANNELS), "4 channels"),
            (nn.GroupNorm(1, CHANNELS), "whole tensor"),
        ]
    )


def homogeneous(draw: random.Random) -> Block:
    between, (last, answer) = draw.choice(HOMOGENEOUS)(), norm(draw)
    answers = {"0.weight": answer}
    if isinstance(between, nn.Conv2d):
        answers["1.weight"] = answer
    return nn.Sequential(layer(draw, bias=False), between, last), answers


def biased(draw: random.Random) -> Block:
    """A bias is taken away by the mean of a channel, if it is a constant there, and not by that of several."""
    block, answers = homogeneous(draw)
    block[0].bias = nn.Parameter(torch.randn(CHANNELS))
    constant = isinstance(block[1], nn.Identity | nn.MaxPool2d)
    if not constant or answers["0.weight"] != "channel":
        answers["0.weight"] += " + bias"
    return block, answers


def breaking(draw: random.Random) -> Block:
    return nn.Sequential(layer(draw, bias=False), draw.choice(BREAKING)(), norm(draw)[0]), {"0.weight": ""}


def chain(draw: random.Random) -> Block:
    last, answer = norm(draw)
    bias = draw.random() < 0.5
    first = "whole tensor + bias" if bias else "whole tensor"
    return nn.Sequential(conv(bias), nn.ReLU(), conv(), last), {"0.weight": first, "2.weight": answer}


def residual(draw: random.Random) -> Block:
    return Residual(), {"conv1.weight": "channel", "conv2.weight": ""}


def branches(draw: random.Random) -> Block:
    last, answer = norm(draw)
    if draw.random() < 0.5:  # the next convolution mixes what neither branch can rescale alone
        return Branches(last, True), {"left.weight": "", "right.weight": "", "mix.weight": answer}
    # Four channels a branch: groups of four or fewer stay within one, a larger one spans both.
    answer = {"4 channels": "whole tensor", "whole tensor": ""}.get(answer, answer)
    return Branches(last, False), {"left.weight": answer, "right.weight": answer}


BLOCKS = [homogeneous, biased, breaking, chain, residual, branches]


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_random_networks(start: int) -> None:
    for seed in range(start, start + 20):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        blocks, expected = [], {}
        for i in range(draw.randint(1, 5)):
            block, answers = draw.choice(BLOCKS)(draw)
            blocks.append(block)
            expected |= {f"{i}.{name}": answer for name, answer in answers.items()}
        # Pooling over the map would lose what InstanceNorm leaves of it: the mean it sets itself.
        model = nn.Sequential(*blocks, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, 3))
        expected[f"{len(blocks) + 2}.weight"] = ""
        example = torch.randn(3, CHANNELS, 6, 6)
        result = split(model, example)
        found = {v.name: v.granularity for v in result.entries if v.parameter.dim() > 1}
        assert found == expected, seed
        for part in radial_parts(model, example, result.groups()):
            assert float(part.abs().max()) < 1e-9, seed
