"""Split never gives a false reason: what it says of a weight is what happens to it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from riembn import SGDG
from riembn.invariance import Split, split


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def answer(result: Split, name: str) -> str:
    return result[name].granularity or f"no: {result[name].reason}"


IMAGES = batch(8, 3, 8, 8)


# --- A normalization written by hand -----------------------------------------------------------------------


class ByHand(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.out = kind, nn.Conv2d(3, 6, 3, bias=False), nn.Linear(216, 4)
        self.register_buffer("small", torch.tensor(1e-5))
        self.learned = nn.Parameter(torch.tensor(1e-5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        centered, variance = x - x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True)
        if self.kind == "inside":
            x = centered / (variance + 1e-5).sqrt()
        elif self.kind == "outside":
            x = centered / (variance.sqrt() + 1e-5)
        elif self.kind == "buffer":
            x = centered * (variance + self.small).rsqrt()
        else:
            x = centered * (variance + self.learned.abs()) ** -0.5
        return self.out(x.relu().flatten(1))


@pytest.mark.parametrize("kind", ["inside", "outside", "buffer", "learned"])
def test_an_eps_that_cannot_be_switched_off_is_said_with_its_size(kind: str) -> None:
    torch.manual_seed(0)
    result = split(ByHand(kind), IMAGES)
    assert answer(result, "conv.weight") == "channel" and "but for an eps" in result["conv.weight"].reason
    assert result["conv.weight"].error is not None and 1e-8 < result["conv.weight"].error < 1e-3
    assert answer(result, "out.weight").startswith("no: reaches the output")


def test_saturation_is_no_eps() -> None:
    """What saturates fades as it grows as well, but it moves the output on the way."""
    for function in (nn.Tanh(), nn.Softsign(), nn.Sigmoid(), nn.ReLU6()):
        for seed in range(3):
            torch.manual_seed(seed)
            divided = ByHand("inside")
            model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), function, divided)
            result = split(model, IMAGES)
            assert not result["0.weight"].invariant
            assert answer(result, "2.conv.weight") == "channel"


class Saturated(nn.Module):
    """Attention by position alone, divided by its sum as in ConViT: logits are far below the first, or equal to it."""

    def __init__(self, weight: list[list[float]], second: list[float]) -> None:
        super().__init__()
        self.register_buffer("distances", torch.tensor([[0.0, 0.0], second, [-1.5, 1.0]]))
        self.by_position = nn.Linear(2, 2)
        with torch.no_grad():  # entries that nearly cancel
            self.by_position.weight.copy_(torch.tensor(weight))
        self.mix, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        attention = self.by_position(self.distances).T.softmax(-1)
        attention = attention / attention.sum(-1, keepdim=True)
        return self.head((attention @ self.norm(self.mix(x))).flatten(1))


@pytest.mark.parametrize(
    ("weight", "second"),
    [
        pytest.param([[400.0, 300.0], [400.0, 301.0]], [-1.0, 1.31], id="a little"),
        pytest.param([[400.0, 300.0], [1.0, 2.0]], [-1.0, 1.23], id="to rounding"),
        pytest.param([[8.0, 6.0], [8.0, 6.0]], [-3.0, 4.0], id="but for a tie"),
    ],
)
def test_a_saturated_softmax_is_no_normalization(weight: list[list[float]], second: list[float]) -> None:
    torch.manual_seed(0)
    result = split(Saturated(weight, second), batch(5, 3, 6))
    assert answer(result, "by_position.weight") == "no: passes through a softmax"
    assert answer(result, "mix.weight") == "whole tensor + bias"


# --- What stands in front ----------------------------------------------------------------------------------


class Standardized(nn.Conv2d):
    """The rows of the weight are standardized before use, by the call that timm uses."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ScaledStandardized(Standardized):
    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = self.gain.view(-1) * 0.1
        weight = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


def test_standardized_weights_are_normalized_themselves() -> None:
    for layer in (Standardized(3, 8, 3), ScaledStandardized(3, 8, 3)):
        result = split(nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)), IMAGES)
        assert answer(result, "0.weight") == "channel"
        assert result["0.weight"].reason == "normalized itself before it is used"
    assert answer(result, "0.gain") == "no: a bias, shift or scale"


class Cosines(nn.Module):
    """A head whose rows are of length 1 by what is given, a function of the weight."""

    def __init__(self, unit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(x), self.unit(self.weight))


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (F.normalize, "channel"),
        (lambda w: F.normalize(w, p=1.0), "channel"),
        (lambda w: w / torch.norm(w, dim=1, keepdim=True), "channel"),
        (lambda w: w / torch.linalg.vector_norm(w, out=None), "whole tensor"),
        (lambda w: torch.tensordot(w, torch.eye(6), 1), "no: reaches the output without a normalization"),
    ],
)
def test_weights_go_through_functions_that_could_write_to_a_tensor(
    unit: Callable[[Tensor], Tensor], expected: str
) -> None:
    """Functions with an ``out=`` that nobody gave, on a bare parameter: they write to nothing."""
    torch.manual_seed(0)
    result = split(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), Cosines(unit)), batch(16, 6))
    assert answer(result, "2.weight") == expected
    if expected == "channel":
        assert result["2.weight"].reason == "normalized itself before it is used"


class Normalize(torch.autograd.Function):
    """Across the channels, with a gradient of its own, as fused kernels have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        deviation = (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        result = (x - x.mean(1, keepdim=True)) / deviation
        ctx.save_for_backward(result, deviation)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        result, deviation = ctx.saved_tensors
        radial = result * (grad * result).mean(1, keepdim=True)
        return (grad - grad.mean(1, keepdim=True) - radial) / deviation


class Fused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Normalize.apply(x)


def test_a_normalization_with_a_gradient_of_its_own_is_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Fused(), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), Fused(), nn.Tanh())
    result = split(model, IMAGES)
    assert answer(result, "0.weight") == "whole tensor + bias"
    assert answer(result, "3.weight") == "whole tensor"
    assert "but for an eps that cannot be switched off" in result["3.weight"].reason
    with pytest.raises(ValueError, match="contains no normalization"):
        split(nn.Sequential(model[0], Mish()), IMAGES)


class MishFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.mish(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        inner, slope = F.softplus(x).tanh(), torch.sigmoid(x)
        return grad * (inner + x * slope * (1 - inner**2))


class Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return MishFunction.apply(x)


def test_orthogonal_parametrization() -> None:
    maps = {"matrix_exp": "a matrix exponential", "cayley": "a linear solve", "householder": "a product of reflections"}
    for how, word in maps.items():
        torch.manual_seed(0)
        layer = parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map=how)
        result = split(nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 2), nn.LayerNorm(2)), batch(8, 6))
        reason = answer(result, "0.parametrizations.weight.original")
        assert reason == f"no: passes through {word}"


def test_a_sum_with_itself_is_no_learned_offset() -> None:
    class Symmetric(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w + w.mT

    layer = nn.Linear(6, 6)
    nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    result = split(nn.Sequential(layer, nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6)), batch(8, 6))
    assert answer(result, "0.parametrizations.weight.original") == "whole tensor + bias"
    assert answer(result, "2.weight") == "no: passes through GELU"


def test_a_choice_between_experts_is_not_unused() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.idle = nn.Linear(6, 2), nn.Linear(6, 2)
            self.experts = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            chosen = self.gate(x).argmax(1, keepdim=True)
            return torch.where(chosen == 0, self.experts[0](x), self.experts[1](x))

    torch.manual_seed(0)
    result = split(Experts(), batch(16, 6))
    assert answer(result, "experts.0.0.weight") == "whole tensor + bias"
    assert answer(result, "gate.weight") == "no: no gradient reaches it: the output changes with it in jumps, if at all"
    assert answer(result, "idle.weight") == "no: unused: the output does not depend on it"


def test_a_division_that_does_not_normalize_is_not_called_no_normalization() -> None:
    class Divided(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (1 + x.square().mean())

    assert not split(Divided(4, 6), batch(8, 4)).invariant


def test_nearly_dead_channels_are_as_invariant_as_others() -> None:
    """At any size: one channel of 1e-9, one of 1e9, and one that nothing passes."""
    for scale in (1e-12, 1e-9, 1e-6, 1e9):
        torch.manual_seed(0)
        depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), depthwise, nn.BatchNorm2d(8))
        with torch.no_grad():
            model[1].weight[0] *= scale
            model[1].bias[0] = scale
            model[1].bias[1] = -20  # nothing passes the ReLU
            model[3].weight[2] *= scale
        result = split(model, batch(4, 3, 8, 8))
        assert answer(result, "0.weight") == answer(result, "3.weight") == "channel", scale


# --- Slips -------------------------------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))


TARGETS = torch.arange(8) % 5
LOADER = DataLoader(TensorDataset(IMAGES, TARGETS), batch_size=8)


@pytest.mark.parametrize(
    "example, words",
    [
        (next(iter(LOADER)), r"is a list of a float32 tensor .*; a batch of a DataLoader is \(inputs, targets\)"),
        (tuple(next(iter(LOADER))), "give its first item"),
        (LOADER, r"is a DataLoader; give one batch of inputs: next\(iter\(loader\)\)\[0\]"),
        (np.zeros((8, 3, 8, 8), np.float32), "is a ndarray; an array is no tensor: give torch.from_numpy"),
        (torch.zeros(8, 3, 8, 8, dtype=torch.uint8), r"example_input.float\(\) / 255"),
        (torch.zeros(8, 3, 8, 8, device="meta"), "is a float32 tensor .*; a tensor on the meta device holds no num"),
        (batch(8, 1, 8, 8), r"fails on a float32 tensor of shape \(8, 1, 8, 8\) \(RuntimeError: .*3 channels"),
        (batch(3, 8, 8), r"fails on a float32 tensor of shape \(3, 8, 8\) \(ValueError: expected 4D"),
        ((8, 3, 8, 8), r"is a tuple of 4 items; a shape is no example: give torch.randn\(8, 3, 8, 8\)"),
        (torch.Size([8, 3, 8, 8]), r"a shape is no example: give torch.randn\(8, 3, 8, 8\)"),
        ([batch(3)] * 9, "fails on a list of 9 items"),
    ],
)
def test_a_slip_in_the_example_is_named_in_one_line(example: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        split(small(), example)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss()])
def test_a_loss_that_wants_targets_is_named(loss: nn.Module) -> None:
    with pytest.raises(TypeError, match="called with the output alone: give lambda output: F.cross_entropy"):
        split(small(), IMAGES, loss=loss)
    result = split(small(), IMAGES, loss=lambda y: F.cross_entropy(y, TARGETS))
    assert answer(result, "0.weight") == "channel"


def test_networks_without_numbers_are_refused() -> None:
    with torch.device("meta"):
        empty = small()
    with pytest.raises(ValueError, match=r"'0.weight' is on the meta device .*to_empty"):
        split(empty, IMAGES)
    with pytest.raises(ValueError, match="SGDG: parameter .* is on the meta device .*to_empty"):
        SGDG([empty[0].weight])
    half = small()
    half[1].running_mean = torch.zeros(8, device="meta")
    with pytest.raises(ValueError, match="'1.running_mean' is on the meta device"):
        split(half, IMAGES)
