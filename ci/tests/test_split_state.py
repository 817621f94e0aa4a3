"""Split measures networks that draw numbers, keep state, hook themselves, or compute in other types than float64."""

import random
import threading
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from riembn.invariance import Split, split

UNUSED = "no: unused: the output does not depend on it"


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def answer(result: Split, name: str) -> str:
    return result[name].granularity or f"no: {result[name].reason}"


class Net(nn.Module):
    """conv - BatchNorm - ReLU - mean - linear; subclasses change the convolution's input or the normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


IMAGES = batch(8, 3, 8, 8)


# --- Random numbers ----------------------------------------------------------------------------------------


class SometimesSkipped(nn.Module):
    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance, self.conv, self.norm = chance, nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        if torch.rand(1).item() < self.chance:
            return x
        return x + self.norm(self.conv(x)).relu()


def skipping(chance: float) -> nn.Module:
    blocks = [SometimesSkipped(chance) for _ in range(3)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *blocks, nn.Flatten(), nn.Linear(288, 3))


def test_blocks_skipped_at_random_are_measured_where_they_run() -> None:
    result = split(skipping(0.5), IMAGES)
    assert [answer(result, f"{i}.conv.weight") for i in (2, 3, 4)] == ["channel"] * 3
    assert result.random and "forward draws random numbers" in str(result)


def test_a_block_that_no_random_state_reaches_is_said_to_be_one() -> None:
    result = split(skipping(1.0 - 1e-9), IMAGES)
    assert not result.random  # every draw skips: nothing shows that another could
    blocks = [*skipping(0.5)[:3], SometimesSkipped(1.0 - 1e-9)]
    result = split(nn.Sequential(*blocks, nn.Flatten(), nn.Linear(288, 3)), IMAGES)
    assert "unused in 6 random states" in answer(result, "3.conv.weight")


def test_random_numbers_that_change_nothing_are_not_mentioned() -> None:
    class Idle(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0 * torch.randn_like(x))

    result = split(Idle(), IMAGES)
    assert answer(result, "conv.weight") == "channel" and not result.random


# --- State outside buffers and global generators -----------------------------------------------------------


class OwnGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.dice = torch.Generator(), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=self.generator) * self.dice.random()
        return super().forward(x + noise)


class Counter(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) / self.calls


class TensorAttribute(Net):
    def __init__(self) -> None:
        super().__init__()
        self.average = torch.zeros(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x)).relu().mean((2, 3))
        self.average.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        return self.head(h - self.average)


class ListOfAll(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(super().forward(x))
        return torch.stack(self.seen).mean(0)


class WritesItsParameter(Net):
    """A head kept at unit norm, as forced weight normalization writes it, but longer every time."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.head.weight.copy_(1.1 * self.head.weight)
            self.head.bias.data += 1
        return super().forward(x)


class LateAttribute(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.offset = getattr(self, "offset", 0.0) + 1.0
        return super().forward(x) + self.offset


@pytest.mark.parametrize(
    "make", [OwnGenerator, Counter, TensorAttribute, ListOfAll, WritesItsParameter, LateAttribute]
)
def test_state_is_set_back_before_each_pass(make: type[Net]) -> None:
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = split(model, IMAGES)
    assert answer(result, "conv.weight") == "channel"
    assert answer(result, "head.weight") == "no: reaches the output without a normalization"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not vars(model).get("calls") and not vars(model).get("seen") and "offset" not in vars(model)


def test_what_cannot_be_set_back_is_said() -> None:
    calls = []

    class Clock(Net):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(0)
            return super().forward(x) * len(calls)

    with pytest.raises(ValueError, match="split: the model is not reproducible: .* moves by"):
        split(Clock(), IMAGES)


def test_default_dtype_of_the_process_is_left_alone() -> None:
    seen: set[torch.dtype] = set()

    class Watched(Net):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: seen.add(torch.get_default_dtype()))
            thread.start()
            thread.join()
            # Made at the default dtype, and computed with in float64 all the same.
            return super().forward(x) * torch.ones(4) * torch.tensor(0.1) + torch.arange(4) / 3

    result = split(Watched(), IMAGES)
    assert seen == {torch.float32} and answer(result, "conv.weight") == "channel"
    assert result.change is not None and result.change < 1e-13


# --- Hooks -------------------------------------------------------------------------------------------------


class Taps(nn.Module):
    """A skip connection taken by a forward hook, which knows the model by its closure."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.head, self.kept = nn.Conv2d(16, 2, 1), []
        self.norm.register_forward_hook(lambda module, args, output: self.kept.append(output))

    def forward(self, x: Tensor) -> Tensor:
        self.kept.clear()
        h = self.norm(self.conv(x)).relu()
        return self.head(torch.cat([h, self.kept[0]], 1))


class BoundTaps(Taps):
    def __init__(self) -> None:
        super().__init__()
        self.norm._forward_hooks.clear()
        self.norm.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.kept.append(output)


def list_taps() -> nn.Module:
    model = Taps()
    model.norm._forward_hooks.clear()
    kept = model.kept
    model.norm.register_forward_hook(lambda module, args, output: kept.append(output))
    return model


@pytest.mark.parametrize("make", [Taps, BoundTaps, list_taps])
def test_models_that_work_through_forward_hooks(make: Any) -> None:
    model = make()
    model(IMAGES)  # which leaves a tensor with its graph behind
    kept = model.kept[0]
    assert answer(split(model, IMAGES), "conv.weight") == "channel"
    assert len(model.kept) == 1 and model.kept[0] is kept and kept.dtype == torch.float32


def test_a_hook_that_changes_the_output_counts() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    model[0].register_forward_hook(lambda module, args, output: F.normalize(output, dim=1))
    assert answer(split(model, batch(8, 4)), "0.weight") == "whole tensor + bias"


def test_functions_of_ones_own_serve_the_copy() -> None:
    """A lambda kept as an attribute knows the original model, whose weights nobody rescales."""
    model = Net()
    model.act = lambda x: model.head(x)  # type: ignore[assignment]
    model.forward = lambda x: model.act(model.norm(model.conv(x)).mean((2, 3)))  # type: ignore[method-assign]
    result = split(model, IMAGES)
    assert answer(result, "conv.weight") == "channel"
    assert answer(result, "head.weight").startswith("no: reaches the output")


# --- Checkpointing, detaching, other types -----------------------------------------------------------------


def test_gradients_that_forward_computes_are_not_taken_for_those_of_the_output():
    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.conv(x.detach()).square().sum().backward()  # leaves a gradient behind, of no invariant function
            return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    found = split(Scored(), torch.randn(4, 3, 6, 6))
    assert found["conv.weight"].invariant and found["conv.weight"].error < 1e-12


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts_are_measured(reentrant: bool) -> None:
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            inner = nn.Sequential(self.conv, self.norm)
            h = torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=reentrant)
            return self.head(h.relu().mean((2, 3)).float())

    result = split(Checkpointed(), IMAGES)
    assert answer(result, "conv.weight") == "channel" and not result["head.weight"].invariant
    assert result["conv.weight"].error is not None and result["conv.weight"].error < 1e-12


def test_detached_averages_and_arrays_do_not_stop_it() -> None:
    class Leaves(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.conv(x)).relu().mean((2, 3))
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * h.mean(0))
            self.map = h.detach().cpu().numpy()
            self.last = h
            return self.head(h)

    assert answer(split(Leaves(), IMAGES), "conv.weight") == "channel"


def test_gradients_may_be_part_of_the_output() -> None:
    """Forces as the slope of an energy: gradients are computed in forward, so no pass may run without."""

    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)
            self.energy = nn.Sequential(*layers)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = x.detach().requires_grad_()
            energy = self.energy(x)
            return energy, torch.autograd.grad(energy.sum(), x, create_graph=True)[0]

    result = split(Forces(), batch(8, 6))
    assert answer(result, "energy.0.weight") == "channel" and not result["energy.3.weight"].invariant


def test_a_function_with_a_gradient_of_its_own_is_measured_by_what_it_does() -> None:
    """The sign of a weight has no length; the straight-through gradient says otherwise."""

    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: Tensor) -> Tensor:
            return w.sign()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient

    class Binary(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, Sign.apply(self.weight), self.bias)

    result = split(nn.Sequential(Binary(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 2)), batch(8, 4))
    assert answer(result, "0.weight") == "channel" and not result["3.weight"].invariant


def test_complex_weights_go_to_the_rest() -> None:
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 6, 8, 5, dtype=torch.cfloat))
            self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
            self.out = nn.Conv2d(6, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            waves = torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(x), self.w)
            return self.out(self.norm(self.conv(x)) + torch.fft.irfft2(waves)).to(torch.cfloat)

    result = split(Fourier(), IMAGES)
    assert answer(result, "conv.weight") == "channel"
    assert answer(result, "w").startswith("no: refused: complex")


@pytest.mark.parametrize("cast", [torch.FloatTensor, "torch.FloatTensor", torch.float32, torch.HalfTensor])
def test_casts_to_narrow_types_are_overruled(cast: Any) -> None:
    class Casts(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.type(cast))

    assert answer(split(Casts(), IMAGES), "conv.weight") == "channel"


def test_constants_in_32_bits_are_computed_with() -> None:
    kernel = batch(3, 1, 3, 3)

    class Blurred(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.conv2d(x, kernel, groups=3) + torch.FloatTensor([1.0]))

    assert answer(split(Blurred(), IMAGES), "conv.weight") == "channel"
    assert kernel.dtype == torch.float32


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(3)
    model = OwnGenerator()
    states = torch.get_rng_state(), model.generator.get_state(), model.dice.getstate()
    split(model, IMAGES)
    assert torch.equal(torch.get_rng_state(), states[0]) and model.dice.getstate() == states[2]
    assert torch.equal(model.generator.get_state(), states[1])
