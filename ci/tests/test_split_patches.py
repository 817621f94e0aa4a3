"""A convolution by slices of the batch is the convolution: in numbers, graph, verdicts and reasons."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from riembn.invariance import patches, split
from riembn.invariance.heap import Heap
from riembn.invariance.patches import Patches

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.memory import peak_bytes  # noqa: E402

NONE = Heap(0)
"""A heap that has room for the patches of a single image."""


class Sizes(TorchDispatchMode):
    """Notes the batch of each convolution, and of each gradient of one, and the groups of the gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[int] = []
        self.backward: list[int] = []
        self.groups: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.forward.append(len(args[0]))
        if func is torch.ops.aten.convolution_backward.default:
            self.backward.append(len(args[0]))
            self.groups.append(args[9])
        return func(*args, **(kwargs or {}))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


class Pair(nn.Module):
    """Two images side by side in the batch, their features side by side as channels."""

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
    """Convolves under vmap, mixes what it gave, and takes a gradient in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.mix = nn.Parameter(torch.randn(2, 6, 3, 3, 3)), nn.Conv2d(12, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.vmap(lambda weight: F.conv2d(x, weight), out_dims=1)(self.weight).flatten(1, 2)
        slope = torch.func.grad(lambda images: F.conv2d(images, self.weight[0]).square().sum())(x)
        return self.norm(self.mix(y)).mean((2, 3)) + slope.mean()


class CatFunction(torch.autograd.Function):
    """By its name a concatenation."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, slope):
        return slope * 2


class Called(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](CatFunction.apply(self[0](x)))


class InPlace(nn.Module):
    """Changes what a convolution took and what it gave, and asks which function gave it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x * 1.5)
        if y.requires_grad:
            assert "Convolution" in y.grad_fn.name()
        y.relu_()
        z = F.conv2d(y, self.second.weight, stride=np.int64(2)).view(len(y), -1).view(len(y), 4, 9, 9)
        z += 1
        return self.norm(z).relu()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_numbers_and_gradients_of_both_orders_are_those_of_one_convolution(dims, groups, stride):
    func = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    given = [normal(3, 4, *[5] * dims), normal(6, 4 // groups, *[3] * dims), normal(6)]
    told, sizes = [], Sizes()
    for modes in ([], [sizes, Patches(NONE)]):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        for mode in modes:
            mode.__enter__()
        out = func(*leaves, stride, 1, 1, groups)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        for mode in reversed(modes):
            mode.__exit__(None, None, None)
        told.append([out, *first, *second])
        assert "Convolution" in out.grad_fn.name()
    assert sizes.forward[:3] == [1, 1, 1]
    torch.testing.assert_close(told[1], told[0], rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(("room", "expected"), [(1, [1] * 5), (2.5, [2, 2, 1]), (4, [5]), (5, [5])])
def test_as_many_images_as_have_room_are_convolved_at_a_time(room, expected):
    images, weight, sizes = normal(5, 2, 6, 6).requires_grad_(), normal(3, 2, 3, 3).requires_grad_(), Sizes()
    with sizes, Patches(Heap(room * images[0].nbytes * 9)):
        out = F.conv2d(images, weight, padding="same")
        out.sum().backward()
    torch.testing.assert_close(out, F.conv2d(images, weight, padding="same"))
    assert sizes.forward == sizes.backward == expected


def test_a_gradient_is_not_taken_by_slices_where_the_weight_is_larger_than_the_patches():
    for size, expected in ((7, [4]), (12, [1] * 4)):  # three images have 2.3 or 6.8 times the numbers of the weight
        images, weight = normal(4, 8, size, size).requires_grad_(), normal(64, 8, 3, 3).requires_grad_()
        with (sizes := Sizes()), Patches(NONE):
            F.conv2d(images, weight, padding=1).sum().backward()
        assert sizes.forward == [1] * 4 and sizes.backward == expected


@pytest.mark.parametrize(("room", "expected"), [(1, [1] * 5), (2.5, [2, 2, 1]), (3, [5]), (5, [5])])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
def test_as_many_groups_as_have_room_are_taken_at_a_time(room, expected, bias, rows):
    given = [normal(1, 10, 6, 6), normal(5 * rows, 2, 3, 3), *([normal(5 * rows)] if bias else [])]
    told = []
    for mode in (Sizes(), Patches(Heap(room * given[0].nbytes // 5 * 9))):
        leaves = [t.clone().requires_grad_() for t in given]
        with (sizes := Sizes()), mode:
            F.conv2d(*leaves, stride=2, padding=1, groups=5).square().sum().backward()
        told.append([leaf.grad for leaf in leaves])
    assert sizes.groups == expected
    for one, other in zip(*told, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("asked", [(True,) * 3, (True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_that_are_not_asked_for_are_not_made(asked, groups):
    given = [normal(3, 2 * groups, 6, 6), normal(4, 2, 3, 3), normal(4)]
    told = []
    for mode in (Sizes(), Patches(NONE)):
        leaves = [t.clone().requires_grad_(wanted) for t, wanted in zip(given, asked, strict=True)]
        with mode:
            F.conv2d(*leaves, groups=groups).square().sum().backward()
        told.append([leaf.grad for leaf in leaves])
    assert [g is not None for g in told[1]] == list(asked)
    for one, other in zip(*told, strict=True):
        torch.testing.assert_close(one, other) if one is not None else None


@pytest.mark.parametrize(
    ("images", "weight"),
    [((4, 2, 6, 6), (3, 2, 1, 1)), ((2, 6, 6), (3, 2, 3, 3)), *(((n, 2, 6, 6), (3, 2, 3, 3)) for n in (0, 1))],
    ids=["no patches", "no batch", "no image", "one image"],
)
def test_where_nothing_is_won_it_is_one_convolution(images, weight):
    sizes, given = Sizes(), (normal(*images), normal(*weight))
    with sizes, Patches(NONE):
        out = F.conv2d(*given)
    torch.testing.assert_close(out, F.conv2d(*given))
    assert len(sizes.forward) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_other_numbers_are_left_alone(dtype):
    sizes = Sizes()
    with sizes, Patches(NONE):
        F.conv2d(torch.randn(4, 2, 6, 6, dtype=dtype), torch.randn(3, 2, 3, 3, dtype=dtype))
    assert set(sizes.forward) <= {4} or dtype.is_complex  # torch makes real convolutions of a complex one


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_output_lies_in_memory_as_that_of_one_convolution(layout, stride):
    images, weight = (normal(3, 4, 7, 7).contiguous(memory_format=layout), normal(5, 4, 3, 3))
    with Patches(NONE):
        out = F.conv2d(images, weight, stride=stride)
    whole = F.conv2d(images, weight, stride=stride)
    assert out.stride() == whole.stride()
    torch.testing.assert_close(out, whole)


@pytest.mark.parametrize("network", [Pair, Mapped, InPlace, lambda: Called(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))])
def test_verdicts_and_reasons_are_those_of_whole_convolutions(network, monkeypatch):
    torch.manual_seed(0)
    net, images, told = network(), torch.randn(4, 3, 21, 21), []
    for count in (1, None):
        monkeypatch.setattr(Patches, "_at_a_time", lambda self, *given, count=count: count)
        told.append({n: (e.invariant, e.reason) for n, e in split(net, images).items()})
    assert told[0] == told[1]


def test_the_patches_of_a_batch_do_not_lie_side_by_side(monkeypatch):
    monkeypatch.setattr("riembn.invariance.twin._LEAST_STEP", 0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 5), nn.BatchNorm2d(8))
    images = torch.randn(8, 3, 40, 40)
    of_one_image = 8 * 25 * 32 * 32 * 8  # bytes of the second convolution
    assert peak_bytes(lambda: split(net, images), torch.device("cpu")) < 4 * of_one_image


def test_a_small_network_is_not_cut_into_thousands_of_slices(monkeypatch):
    calls: list[int] = []
    for name in ("_forward", "_backward"):
        own = getattr(Patches, name)
        monkeypatch.setattr(Patches, name, lambda *given, own=own: calls.append(1) or own(*given))
    parts: list[None] = []
    monkeypatch.setattr(Heap, "look", lambda self, freed=0, wanted=0: parts.append(None))
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(1, 4, 1), *layers)
    assert split(net, torch.randn(2048, 1, 8, 8)).invariant
    assert calls and len(parts) < 4000


def test_a_convolution_with_names_for_its_arguments_is_measured():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.norm = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(F.conv2d(weight=self.weight, input=x, stride=(1, 1))).relu()

    assert split(Named(), torch.randn(4, 3, 8, 8))["weight"].granularity == "channel"
    assert patches.CONVOLUTIONS == {nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d}
