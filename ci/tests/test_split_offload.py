"""What split keeps for its gradients waits in a file, and comes back as it was."""

import contextlib
import errno
import gc
import shutil
import sys
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from riembn.invariance import offload, split, twin
from riembn.invariance.heap import Heap
from riembn.invariance.offload import Offload

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.memory import peak_bytes  # noqa: E402

IMAGES = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Odd(nn.Module):
    """Keeps whole tensors, views, expanded and transposed ones, integers and booleans, and works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.factors = nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = x * self.factors.expand(x.shape) * x[:, :, ::2].repeat_interleave(2, 2)
        x = F.relu(x, inplace=True).transpose(1, 3).mul(2).sigmoid()
        x = x.masked_fill(x > 0.9, 0.5).transpose(1, 3)
        x = F.max_pool2d(x, 2)
        return torch.view_as_real(torch.fft.rfft2(x).conj() * x.mean()).square().sum((1, 2, 3, 4))


class Inner(nn.Module):
    """Takes a gradient in forward, by a function that knows no hooks of saved tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: y.pow(3).sum())(self.norm(self.conv(x)))


class Wrapped(Inner):
    """Says in its own words what went wrong inside."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return super().forward(x)
        except RuntimeError as error:
            raise ValueError("inner failed") from error


class Aside(Inner):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        self.last = y.mean((2, 3)).softmax(1)  # of no use for the output
        return y.relu().mean((2, 3))


class NormInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.head, self.norm = nn.Parameter(torch.randn(16, 8)), nn.Linear(16, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            length = self.w.square().sum(1, True).sqrt().mul_(2)
        return self.norm(self.head(F.linear(x, self.w / length)))


class Checkpointed(Odd):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    loss = net(x).sum()
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.fixture
def everything(monkeypatch):
    monkeypatch.setattr(offload, "_LEAST", 0)


@pytest.mark.parametrize("kind", [Odd, Checkpointed])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_the_same_to_the_last_bit(everything, kind, layout):
    torch.manual_seed(0)
    net, x = kind().double().to(memory_format=layout), IMAGES.to(memory_format=layout)
    expected = gradients(net, x)
    with Offload(Heap(0)):
        found = gradients(net, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("least", [0, 1 << 60])
def test_what_was_changed_in_place_is_refused_as_without(monkeypatch, least):
    monkeypatch.setattr(offload, "_LEAST", least)
    a = torch.rand(40, 40, dtype=torch.float64, requires_grad=True)
    with Offload(Heap(0)):
        b = a.exp()
        loss = (b * b).sum()
        b.detach().zero_()
        with pytest.raises(RuntimeError, match="changed by an operation in place"):
            loss.backward()


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), (), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.bool, torch.complex128])
def test_a_tensor_comes_back_with_its_strides(everything, shape, dtype):
    tensor = torch.rand(shape, dtype=torch.float64).mul(9).to(dtype)
    with (keeping := Offload(Heap(0))):
        for given in (tensor, tensor.permute(tuple(reversed(range(tensor.dim()))))):
            back = keeping.unpack_hook(keeping.pack_hook(given))
            assert torch.equal(back, given) and back.dtype == dtype
            assert back.stride() == given.stride() or given.numel() == 0


def test_a_freed_activation_is_not_in_memory():
    with (keeping := Offload(Heap(1e9))):
        tensor = torch.rand(1 << 12, dtype=torch.float64)
        packed, gone = keeping.pack_hook(tensor), StorageWeakRef(tensor.untyped_storage())
        del tensor
        assert gone.expired() and keeping.unpack_hook(packed).shape == (1 << 12,)


def test_what_several_functions_keep_is_written_once_and_anew_when_it_has_changed(everything):
    written, tensor = [], torch.rand(1 << 12)
    with (keeping := Offload(Heap(1e9))):
        for _ in range(3):
            keeping.pack_hook(tensor)
            written.append(keeping._end)
        tensor.add_(1)
        assert torch.equal(keeping.unpack_hook(keeping.pack_hook(tensor)), tensor)
        written.append(keeping._end)
        keeping.pack_hook(tensor[: 1 << 11])
        written.append(keeping._end)
    assert [end / tensor.nbytes for end in written] == [1, 1, 1, 2, 2.5]


def test_another_tensor_at_the_address_of_a_freed_one_is_another(everything):
    with (keeping := Offload(Heap(1e9))):
        for value in range(50):
            tensor = torch.full((1 << 12,), float(value))
            packed = keeping.pack_hook(tensor)
            del tensor
            assert torch.equal(keeping.unpack_hook(packed), torch.full((1 << 12,), float(value)))


def test_threads_read_what_they_kept(everything):
    inputs = [torch.full((512, 8), float(k), requires_grad=True) for k in range(4)]
    with Offload(Heap(1e9)):
        losses = [x.square().exp().mul(2).square().sum() for x in inputs]
        expected = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss, x in zip(losses, inputs, strict=True)]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(20):
                again = pool.map(lambda k: torch.autograd.grad(losses[k], inputs[k], retain_graph=True)[0], range(4))
                assert all(map(torch.equal, again, expected))


@pytest.mark.parametrize("offloads", [True, False])
def test_split_holds_few_activations_at_once(everything, monkeypatch, offloads):
    if not offloads:
        monkeypatch.setattr(twin, "Offload", lambda heap: contextlib.nullcontext())
    blocks = [(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(20)]
    net, x = nn.Sequential(*(module for block in blocks for module in block)), torch.randn(4, 8, 24, 24)
    held = peak_bytes(lambda: split(net, x), torch.device("cpu")) / (8 * x.numel())
    columns = 9  # of a convolution, for all images
    assert (held < columns + 16) is offloads


class OfSixteen(nn.Module):
    """Knows the size of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3)).view(16, 6)


@pytest.mark.parametrize(("model", "offloads"), [(OfSixteen, True), (Inner, False)])
def test_it_is_only_given_up_where_it_is_the_cause(model, offloads, monkeypatch):
    twins, init = [], twin.Twin.__init__

    def noted(self, *given):
        init(self, *given)
        twins.append(self)

    monkeypatch.setattr(twin.Twin, "__init__", noted)
    assert split(model(), torch.randn(16, 3, 64, 64)).invariant
    assert [one.offloads for one in twins] == [offloads] and twins[0].samples == (None if offloads else 10)


@pytest.mark.parametrize("model", [Inner, Wrapped])
def test_a_model_whose_gradients_know_no_hooks_is_measured_without(model):
    found = split(model(), IMAGES.float())
    assert found["conv.weight"].invariant and found["conv.weight"].granularity == "channel"


def test_the_copy_is_gone_though_an_output_is_kept_off_the_path_to_the_loss(monkeypatch):
    made, init = [], twin.Twin.__init__

    def noted(self, *given):
        init(self, *given)
        made.extend(map(weakref.ref, self.parameters.values()))

    monkeypatch.setattr(twin.Twin, "__init__", noted)
    split(Aside(), IMAGES.float())
    gc.collect()
    assert made and not any(copy() is not None for copy in made)


def test_a_model_that_gradients_forbid_is_measured_as_without():
    """Its norm is changed in place beside the graph, so that what leaves the graph is left out of it."""
    torch.manual_seed(0)
    found = split(NormInPlace(), torch.randn(64, 8))
    assert found["w"].invariant and "LayerNorm" in found["w"].reason


class Full:
    """A file on a disk that has no room left, after a few writes."""

    def __init__(self, file, writes: int) -> None:
        self._file, self._left = file, writes

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, numbers) -> int:
        self._left -= 1
        if self._left < 0:
            self._file.write(numbers[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(numbers[:4096])  # as a system may, for a part


@pytest.mark.parametrize("writes", [0, 3])
def test_what_the_disk_cannot_take_stays_in_memory(everything, monkeypatch, writes):
    open_file = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full(open_file(**options), writes))
    net = Odd().double()
    expected = gradients(net, IMAGES)
    with Offload(Heap(0)):
        found = gradients(net, IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_a_folder_for_temporary_files_all_stays_in_memory(everything, monkeypatch):
    def refused(**options):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    tensor = torch.rand(9)
    with (keeping := Offload(Heap(0))):
        assert keeping.pack_hook(tensor).place is None


def test_half_of_what_is_free_on_the_disk_is_left(everything, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with (keeping := Offload(Heap(0))):
        places = [keeping.pack_hook(torch.rand(5)).place for _ in range(4)]
    assert [place is None for place in places] == [False, False, True, True]


def test_parameters_and_what_is_expanded_stay_in_memory(everything):
    parameter, small = nn.Parameter(torch.rand(5, 5)), torch.rand(5, 1)
    with (keeping := Offload(Heap(0))):
        for tensor in (parameter, parameter.t(), parameter.view(25), small.expand(5, 1000), torch.rand(3).to_sparse()):
            assert keeping.pack_hook(tensor).place is None


def test_the_file_is_closed_and_leaves_nothing(everything, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (keeping := Offload(Heap(0))):
        gradients(Odd().double(), IMAGES)
        file = keeping._file
    assert file.closed and not list(tmp_path.iterdir())
