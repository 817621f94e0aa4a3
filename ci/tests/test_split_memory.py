"""Split takes little memory besides what a pass through the network keeps."""

import gc
import platform
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from riembn.invariance import heap, split
from riembn.invariance.twin import Twin

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.memory import peak_bytes  # noqa: E402

HOLES = """
import re, torch
from pathlib import Path
from riembn.invariance.heap import Heap
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
heap = Heap(STEP << 20)
blocks = [torch.ones(1 << 14) for _ in range(3000)]  # of 64 KiB, which glibc takes from its heap
del blocks[:-1]
before = resident()
heap.look(FREED << 20)
print(before - resident())
"""


class StandardizedConv(nn.Conv2d):
    """Its kernels have mean 0 and variance 1, as in weight standardization."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, len(self.weight), -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.view_as(self.weight), None, padding=1)


def layers(conv: Callable[..., nn.Module]) -> nn.Sequential:
    """Many layers of the same size, so that the gradient of one of them is little beside all weights."""
    torch.manual_seed(0)
    blocks = [(conv(48, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU()) for _ in range(8)]
    return nn.Sequential(*(module for block in blocks for module in block))


def plain() -> nn.Sequential:
    return layers(nn.Conv2d)


def standardized() -> nn.Sequential:
    return layers(StandardizedConv)


def trained() -> nn.Sequential:
    """Running statistics that have seen inputs have to be carried over to rows of unit length."""
    net = plain()
    with torch.no_grad():
        net(torch.randn(8, 48, 2, 2))
    return net


# float64 weights are 2 × those in float32; standardized ones are kept for the backward pass besides.
@pytest.mark.parametrize(("network", "most"), [(plain, 3.0), (trained, 3.0), (standardized, 5.0)])
def test_beside_the_weights_in_float64_there_is_little(network, most):
    net, example = network(), torch.randn(2, 48, 2, 2)
    weights = sum(4 * p.numel() for p in net.parameters())
    assert 2 * weights < peak_bytes(lambda: split(net, example), torch.device("cpu")) < most * weights


def test_the_copy_is_gone_when_split_is_done(monkeypatch):
    made, init = [], Twin.__init__

    def noted(self, *given):
        init(self, *given)
        made.extend(map(weakref.ref, (self.model, *self.parameters.values())))

    monkeypatch.setattr(Twin, "__init__", noted)
    gc.collect()
    gc.disable()  # a cycle would wait for it
    try:
        found = split(plain(), torch.randn(2, 48, 2, 2))
        assert made and not any(copy() is not None for copy in made)
    finally:
        gc.enable()
    assert found.invariant


@pytest.mark.parametrize("size", [1e-12, 1e-9, 1.0, 1e9])
def test_a_standardized_weight_of_any_size_is_invariant(size):
    net = nn.Sequential(StandardizedConv(6, 6, 3), nn.ReLU(), StandardizedConv(6, 6, 3))
    with torch.no_grad():
        net[0].weight.mul_(size)
        net[2].weight[0] *= size
    found = split(net, torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert [entry.granularity for entry in found.values() if entry.parameter.dim() > 1] == ["channel"] * 2


def test_memory_is_looked_at_before_each_function_after_each_gradient_and_returned_after_each_pass(monkeypatch):
    looked, trimmed = [], []
    monkeypatch.setattr(heap.Heap, "look", lambda self, freed=0, wanted=0: looked.append(freed))
    monkeypatch.setattr(heap.Heap, "trim", lambda self: trimmed.append(self))
    net = plain()
    split(net, torch.randn(2, 48, 2, 2))
    passes, backward, parameters = 4, 2, len(list(net.parameters()))
    assert sum(freed > 0 for freed in looked) == backward * parameters
    assert looked.count(0) >= passes * len(net)
    assert sum(looked) == backward * sum(8 * p.numel() for p in net.parameters())  # in float64
    assert len(trimmed) == 1 + passes + 1  # once the copy is made, and once it is gone


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(("step", "freed", "returned"), [(10, 0, True), (10_000, 0, False), (10_000, 50_000, True)])
def test_freed_memory_goes_back_to_the_system_once_the_process_has_grown_or_much_was_freed(step, freed, returned):
    code = HOLES.replace("STEP", str(step)).replace("FREED", str(freed))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 3000 * 64 / 2) is returned


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(heap, "_trim", heap._trim.__wrapped__)
    assert heap._trim() is None
    heap.Heap(0).look()
    heap.Heap(0).trim()


def test_a_system_that_does_not_say_how_much_is_held_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(heap, "_STATM", tmp_path / "missing")
    assert split(plain(), torch.randn(2, 48, 2, 2)).invariant


class Ensemble(nn.Module):
    """Several small networks at once, whose values cannot be asked for one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda weight: x @ F.layer_norm(weight, (5,)).t())(self.weight)


def test_a_weight_normalized_under_vmap_is_measured():
    assert split(Ensemble(), torch.randn(8, 5, generator=torch.Generator().manual_seed(1)))["weight"].invariant
