"""A convolution by slices of the batch is the convolution: in values, gradients, verdicts and reasons."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from riembn.invariance import patches, split
from riembn.invariance.heap import Heap
from riembn.invariance.patches import convolve

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.memory import peak_bytes  # noqa: E402

NONE = Heap(0)
"""A heap that has room for the patches of a single image."""


def noted(func, sizes):
    """The convolution, which notes the batch of each call."""

    def convolution(images, *rest, **options):
        sizes.append(len(images))
        return func(images, *rest, **options)

    return convolution


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


class Pair(nn.Module):
    """Two images through one convolution, side by side in the batch; their features side by side as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.left, self.right = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)
        self.mixed, self.last = nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
        self.free = nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(torch.cat([x, x.flip(3)]))).relu()
        y = self.last(self.mixed(torch.cat([self.left(x), self.right(x)], 1)))
        return y.mean((2, 3)) + self.free(x).mean((2, 3))


class Mapped(nn.Module):
    """Convolves under vmap, and takes a gradient in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(2, 6, 3, 3, 3)), nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.vmap(lambda weight: F.conv2d(x, weight), out_dims=1)(self.weight).flatten(1, 2)
        slope = torch.func.grad(lambda images: F.conv2d(images, self.weight[0]).square().sum())(x)
        return self.norm(y).mean((2, 3)) + slope.mean()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_values_and_gradients_of_both_orders_are_those_of_one_convolution(dims, groups, stride):
    func, sizes = (F.conv1d, F.conv2d, F.conv3d)[dims - 1], []
    given = [normal(3, 4, *[5] * dims), normal(6, 4 // groups, *[3] * dims), normal(6)]
    told = []
    for convolution in (func, partial(convolve, NONE, noted(func, sizes))):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        out = convolution(*leaves, stride, 1, 1, groups)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        told.append([out, *first, *second])
    assert sizes == [1, 1, 1]
    torch.testing.assert_close(told[1], told[0], rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(("room", "expected"), [(1, [1] * 5), (2.5, [2, 2, 1]), (4, [4, 1]), (5, [5])])
def test_as_many_images_as_have_room_are_convolved_at_a_time(room, expected):
    images, weight, sizes = normal(5, 2, 6, 6), normal(3, 2, 3, 3), []
    heap = Heap(room * images[0].nbytes * 9)
    out = convolve(heap, noted(F.conv2d, sizes), images, weight, padding="same")
    torch.testing.assert_close(out, F.conv2d(images, weight, padding="same"))
    assert sizes == expected


@pytest.mark.parametrize(
    ("images", "weight"),
    [((4, 2, 6, 6), (3, 2, 1, 1)), ((2, 6, 6), (3, 2, 3, 3)), *(((n, 2, 6, 6), (3, 2, 3, 3)) for n in (0, 1))],
    ids=["no patches", "no batch", "no image", "one image"],
)
def test_where_nothing_is_won_it_is_one_convolution(images, weight):
    sizes: list[int] = []
    given = {"input": normal(*images), "weight": normal(*weight)}
    out = convolve(NONE, noted(F.conv2d, sizes), **given)
    torch.testing.assert_close(out, F.conv2d(**given))
    assert sizes == [images[0]]


@pytest.mark.parametrize("network", [Pair, Mapped])
def test_verdicts_and_reasons_are_those_of_whole_convolutions(network, monkeypatch):
    torch.manual_seed(0)
    net, images, told = network(), torch.randn(4, 3, 12, 12), []
    for count in (1, None):
        monkeypatch.setattr(patches, "_at_a_time", lambda *given, count=count: count)
        told.append({n: (e.invariant, e.reason) for n, e in split(net, images).items()})
    assert told[0] == told[1]


def test_what_is_joined_along_the_batch_is_not_called_joined_along_the_channels():
    class Doubled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[1](torch.cat([self[0](x), x[:, :1].expand(-1, 6, -1, -1)])))

    net = Doubled(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
    found = split(net, torch.randn(4, 3, 8, 8))
    assert not found["0.weight"].invariant and "concatenated" not in found["0.weight"].reason
    assert found["1.weight"].invariant


def test_the_patches_of_a_batch_never_lie_side_by_side():
    net = nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 5), nn.BatchNorm2d(8))
    images = torch.randn(8, 3, 40, 40)
    of_one_image = 8 * 25 * 32 * 32 * 8  # bytes of the second convolution
    assert peak_bytes(lambda: split(net, images), torch.device("cpu")) < 4 * of_one_image


def test_a_convolution_with_names_for_its_arguments_is_measured():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.norm = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(F.conv2d(weight=self.weight, input=x, stride=(1, 1))).relu()

    assert split(Named(), torch.randn(4, 3, 8, 8))["weight"].granularity == "channel"
    assert patches.CONVOLUTIONS == {nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d}
