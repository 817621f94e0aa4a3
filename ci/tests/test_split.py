"""Split tells which weights are scale-invariant, at which granularity, and touches nothing on its way."""

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import riembn
from riembn.geometry.rows import from_rows, to_rows
from riembn.invariance import Split, split
from riembn.invariance.example import enough_samples
from riembn.models import vgg, wide_resnet


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def verdict(result: Split, name: str) -> str:
    v = result[name]
    return v.granularity if v.invariant else f"no: {v.reason}"


IMAGE, ROW, SEQUENCE, VOLUME = (4, 4, 6, 6), (8, 4), (4, 4, 10), (2, 4, 4, 4, 4)

# (layers, shape of the input, answer for the weight of layer 0 by hand)
LAYERS: list[Any] = [
    # BatchNorm subtracts a bias and divides by the deviation of each channel.
    (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)], SEQUENCE, "channel"),
    (lambda: [nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6)], VOLUME, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.Linear(4, 6), nn.BatchNorm1d(6)], ROW, "channel"),
    (lambda: [nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False)], ROW, "channel"),
    (lambda: [nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False)], ROW, "channel"),
    (lambda: [nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6)], SEQUENCE, "channel"),
    (lambda: [nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.ConvTranspose3d(4, 6, 3), nn.BatchNorm3d(6)], VOLUME, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6)], IMAGE, "channel"),
    # GroupNorm divides a whole group by one number; it takes no bias away, but for one channel a group.
    (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.GroupNorm(3, 6)], IMAGE, "2 channels"),
    (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.GroupNorm(2, 6)], IMAGE, "3 channels"),
    (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.GroupNorm(6, 6)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3), nn.GroupNorm(6, 6)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.GroupNorm(1, 6)], IMAGE, "whole tensor"),
    (lambda: [nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6)], IMAGE, "3 channels + bias"),
    (lambda: [nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.GroupNorm(2, 6)], IMAGE, "3 channels"),
    # LayerNorm and RMSNorm divide everything by one number.
    (lambda: [nn.Linear(4, 6, bias=False), nn.LayerNorm(6)], ROW, "whole tensor"),
    (lambda: [nn.Linear(4, 6, bias=False), nn.RMSNorm(6)], ROW, "whole tensor"),
    (lambda: [nn.Linear(4, 6), nn.LayerNorm(6)], ROW, "whole tensor + bias"),
    (lambda: [nn.Linear(4, 6), nn.RMSNorm(6)], ROW, "whole tensor + bias"),
    # What lies between and keeps positive factors.
    (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.LeakyReLU(), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.PReLU(6), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3, bias=False), nn.AvgPool2d(2), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3), nn.Upsample(scale_factor=2), nn.BatchNorm2d(6)], IMAGE, "channel"),
    (lambda: [nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)], IMAGE, "channel"),
    # A bias is scaled with the weight where no mean is taken before what lies between.
    (lambda: [nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6)], ROW, "channel + bias"),
    (lambda: [nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ReLU(), nn.BatchNorm2d(6)], IMAGE, "channel + bias"),
    (lambda: [nn.ConvTranspose2d(4, 6, 3, groups=2), nn.GroupNorm(2, 6)], IMAGE, "3 channels + bias"),
    (lambda: [nn.Conv2d(4, 6, 3), nn.GroupNorm(1, 6)], IMAGE, "whole tensor + bias"),
    (
        lambda: [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.LayerNorm(6)],
        ROW,
        "whole tensor + bias",
    ),
    (lambda: [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.LayerNorm(6)], ROW, "no: "),
    # A full convolution mixes the channels: only one factor for all of them comes out again.
    (lambda: [nn.Linear(4, 6, bias=False), nn.Linear(6, 6), nn.BatchNorm1d(6)], ROW, "whole tensor"),
    # Pixel shuffle lays four channels into one.
    (lambda: [nn.Conv2d(4, 8, 3), nn.PixelShuffle(2), nn.BatchNorm2d(2)], IMAGE, "4 channels + bias"),
    (lambda: [nn.Conv2d(4, 8, 3, bias=False), nn.PixelShuffle(2), nn.BatchNorm2d(2)], IMAGE, "4 channels"),
    # What does not.
    (lambda: [nn.Conv2d(4, 6, 3), nn.GELU(), nn.BatchNorm2d(6)], IMAGE, "no: passes through GELU"),
    (lambda: [nn.Conv2d(4, 6, 3), nn.SiLU(), nn.BatchNorm2d(6)], IMAGE, "no: passes through SiLU"),
    (lambda: [nn.Conv2d(4, 6, 3), nn.ReLU6(), nn.BatchNorm2d(6)], IMAGE, "no: passes through ReLU6"),
    (lambda: [nn.Conv2d(4, 6, 3), nn.Tanh(), nn.BatchNorm2d(6)], IMAGE, "no: passes through Tanh"),
    # A row of one entry knows only its sign.
    (lambda: [nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4)], IMAGE, "no: one entry a row"),
]


@pytest.mark.parametrize("layers, shape, answer", LAYERS)
def test_single_layers_as_by_hand(
    layers: Callable[[], list[nn.Module]], shape: tuple[int, ...], answer: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*layers(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    model(batch(*shape))
    result = split(model, batch(*shape))
    assert verdict(result, "0.weight").startswith(answer)
    assert verdict(result, f"{len(model) - 1}.weight") == "no: reaches the output without a normalization"


def test_bias_that_starts_at_zero_does_not_hide() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    nn.init.zeros_(model[0].bias)
    assert verdict(split(model, batch(8, 4)), "0.weight") == "channel + bias"


def test_groups_rescale_without_changing_the_loss() -> None:
    """One random factor a row, in exactly the rows the groups describe, and nothing changes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, bias=False), nn.GroupNorm(2, 8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 1, bias=False), nn.GroupNorm(1, 8), nn.Flatten(), nn.LazyLinear(2)),
    )
    model(batch(*IMAGE))
    groups = split(model, batch(*IMAGE)).groups()
    assert [(g["row_dim"], g["conv_groups"], g["channels_per_row"]) for g in groups] == [
        (1, 2, 1),
        (0, 1, 4),
        (0, 1, None),
    ]
    assert all(
        g["params"][0] is p
        for g, p in zip(groups, (model[0].weight, model[3].weight, model[6].weight), strict=True)
    )
    twin = copy.deepcopy(model).double()
    for module in twin.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-20
    before, twins = (
        twin(batch(*IMAGE).double()),
        dict(zip(model.parameters(), twin.parameters(), strict=True)),
    )
    for group in groups:
        layout = {k: v for k, v in group.items() if k != "params"}
        for p in group["params"]:
            rows = to_rows(twins[p].detach(), **layout)
            factors = (
                torch.rand(len(rows), 1, generator=torch.Generator().manual_seed(1), dtype=rows.dtype) + 0.5
            )
            twins[p].data.copy_(from_rows(rows * factors, twins[p].detach(), **layout))
    torch.testing.assert_close(twin(batch(*IMAGE).double()), before, rtol=1e-10, atol=1e-12)


def test_groups_go_straight_into_the_optimizers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, bias=False), nn.GroupNorm(2, 8)),
        *(nn.Flatten(), nn.LazyLinear(2)),
    )
    model(batch(*IMAGE))
    for optimizer in (riembn.SGDG, riembn.AdamG, riembn.PSISGD):
        twin = copy.deepcopy(model)
        groups = split(twin, batch(*IMAGE)).groups()
        steps = optimizer(groups, lr=0.1)
        before = [p.detach().clone() for g in groups for p in g["params"]]
        twin(batch(*IMAGE)).square().sum().backward()
        steps.step()
        assert all(
            not torch.equal(a, b)
            for a, b in zip(before, (p for g in groups for p in g["params"]), strict=True)
        )


# --- The caller's model and surroundings -------------------------------------------------------------------


def test_model_and_surroundings_are_left_as_they_were() -> None:
    torch.manual_seed(0)
    model = wide_resnet(10, 1, dropout=0.3)
    x = batch(2, 3, 16, 16)
    model(x).sum().backward()
    model.groups[1].eval()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.conv0.register_forward_pre_hook(lambda *_: calls.append(1))
    model.fc.register_full_backward_hook(lambda *_: calls.append(1))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    versions = [p._version for p in model.parameters()]
    flags = [m.training for m in model.modules()]
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    given = x.clone()

    with torch.no_grad():
        split(model, x)

    assert calls == []
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is not None and torch.equal(p.grad, grads[n]) for n, p in model.named_parameters())
    assert [p._version for p in model.parameters()] == versions
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(x, given) and not x.requires_grad
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert random.getstate() == random_states[1] and (np.random.get_state()[1] == random_states[2]).all()
    assert torch.get_default_dtype() == torch.float32
    assert len(model._forward_hooks) == 1 and len(model.fc._backward_hooks) == 1


def test_state_is_restored_after_a_failure() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(1), random.random()
            raise RuntimeError("no")

    model, states = Broken(2, 2), (torch.get_rng_state(), random.getstate())
    with pytest.raises(ValueError, match="RuntimeError: no"):
        split(model, batch(4, 2))
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert torch.get_default_dtype() == torch.float32


def test_same_verdicts_each_time_and_from_a_trained_or_evaluated_model() -> None:
    torch.manual_seed(0)
    model, x = wide_resnet(10, 1, dropout=0.3), batch(4, 3, 16, 16)
    first, again, evaluated = split(model, x), split(model, x), split(model.eval(), x)
    assert str(first) == str(again)
    assert [v.invariant for v in first.entries] == [v.invariant for v in evaluated.entries]


def test_passes_are_few() -> None:
    """Two decide, without eps, if every candidate passes; two more tell what the network's own eps costs."""

    class Counted(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.eps = body, 1e-5

        def forward(self, x: Tensor) -> Tensor:
            seen.append("own eps" if self.eps == 1e-5 else "no eps")
            return self.body(x)

    joint = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    image = batch(4, 3, 32, 32)
    for body, x in ((vgg(13, width=0.1), image), (wide_resnet(16, 1), image), (joint, batch(8, 4))):
        seen: list[str] = []
        split(Counted(body), x)
        assert seen == ["own eps", "no eps", "no eps", "own eps"]


# --- Samples, modes, frozen parts --------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_few_samples_are_completed(samples: int) -> None:
    """BatchNorm over two values gives ±1 whatever comes in: every weight in front would look unused."""
    torch.manual_seed(0)
    result = split(vgg(11, width=0.1), batch(samples, 3, 32, 32))
    weights = [v for v in result.entries if v.parameter.dim() > 1]
    assert [v.invariant for v in weights] == [True] * (len(weights) - 1) + [False]


def test_few_samples_that_cannot_be_completed_are_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"BatchNorm sees 2 value\(s\) a channel.*four or more"):
        split(model, batch(2, 4), loss=lambda y: y.square().sum())


class Sizes(nn.Module):
    """Notes how many samples it gets; ``fixed`` is a size written down in it."""

    def __init__(self, fixed: int | None = None) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.fixed = fixed
        self.hidden, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sizes":
        copied = type(self)(self.fixed)
        copied.load_state_dict(self.state_dict())
        copied.seen = self.seen
        return copied

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        self.seen.append(len(x))
        x = x.view(self.fixed or -1, 6)
        return self.head(torch.relu(self.norm(self.hidden(x if shift is None else x + shift))))


def test_of_a_large_batch_the_first_samples_do() -> None:
    model = Sizes()
    found = split(model, batch(64, 6 * 2000).view(-1, 6)[: 2**15])
    assert {*model.seen} == {2**17 // 6} and found["hidden.weight"].invariant and not found["head.weight"].invariant
    model = Sizes()
    assert split(model, {"x": batch(20_000, 6), "shift": batch(20_000, 6)})["hidden.weight"].invariant
    assert {*model.seen} == {2**17 // 12}
    assert [enough_samples(torch.empty(128, *shape)) for shape in ((3, 32, 32), (3, 224, 224), (20,))] == [42, 2, None]
    assert enough_samples(torch.zeros(32, 1024, dtype=torch.int64)) == 2
    assert enough_samples({"x": torch.empty(9, 10**5), "length": torch.tensor(3)}) is None


def test_a_batch_is_left_whole_where_its_size_matters() -> None:
    many = 2**15
    fixed = Sizes(many)
    assert split(fixed, batch(many, 6))["hidden.weight"].invariant
    targets = torch.randint(3, (many,), generator=torch.Generator().manual_seed(0))
    judged = Sizes()
    assert split(judged, batch(many, 6), loss=lambda y: F.cross_entropy(y, targets))["hidden.weight"].invariant
    several = Sizes()
    assert split(several, (batch(many, 6), batch(1, 6)))["hidden.weight"].invariant
    late = Sizes()
    assert split(late, batch(many, 6), loss=lambda y: y[30_000:].square().sum())["hidden.weight"].invariant
    for model in (fixed, judged, several, late):
        assert enough_samples(batch(many, 6)) == 2**17 // 6 and {*model.seen} == {many}


class Pooled(Sizes):
    """What is normalized has one value a sample, or ``a pixel``."""

    def forward(self, x: Tensor, a_pixel: bool = False) -> Tensor:
        self.seen.append(len(x))
        x = x.movedim(1, -1).flatten(0, 2) if a_pixel else x.mean((2, 3))
        return self.head(torch.relu(self.norm(self.hidden(x))))


def test_of_large_samples_two_do_or_four_where_these_are_normalized_alone() -> None:
    images = torch.randn(8, 6, 160, 160, generator=torch.Generator().manual_seed(0))
    for given, seen in ((images, {4}), ({"x": images, "a_pixel": True}, {2})):
        model = Pooled()
        assert split(model, given)["hidden.weight"].invariant and {*model.seen} == seen


class TwoPaths(nn.Module):
    """The second half of a batch goes another way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x[:64]), self.b(x[64:])]) if len(x) > 64 else self.a(x)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


def test_weights_that_only_later_samples_reach_are_measured() -> None:
    assert enough_samples(batch(128, 3, 32, 32)) == 42
    assert "unused" not in split(TwoPaths(), batch(128, 3, 32, 32))["b.weight"].reason


def test_frozen_batch_norm_does_not_normalize() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
    model[3].eval()
    result = split(model, batch(*IMAGE))
    assert verdict(result, "0.weight") == "channel"
    assert verdict(result, "2.weight") == "no: meets a BatchNorm that is frozen"


def test_frozen_parameters_are_measured_like_the_others() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
    )
    model[2].weight.requires_grad_(False)
    result = split(model, batch(8, 4))
    assert verdict(result, "0.weight") == "channel"
    assert verdict(result, "2.weight") == "channel" and not model[2].weight.requires_grad


def test_unused_weights_are_not_called_invariant() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.gated = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 6)
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.used(x)) + 0 * self.gated(x)

    result = split(Idle(), batch(8, 4))
    assert verdict(result, "used.weight") == "channel"
    assert verdict(result, "idle.weight") == "no: unused: the output does not depend on it"
    assert verdict(result, "gated.weight") == "no: unused: the output does not change with it on this example"


class Faint(nn.Module):
    """A weight behind a softmax that adds next to nothing, as those of attention do where all tokens are alike."""

    def __init__(self, rows: int, size: float) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, rows), nn.BatchNorm1d(rows)
        self.mix, self.size = nn.Linear(6, rows, bias=False), size

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x)) + self.size * self.mix(x).softmax(-1)


@pytest.mark.parametrize("rows", [4, 256])
@pytest.mark.parametrize("size", [1e-12, 1e-11, 1e-10, 1e-9, 1e-8])
def test_faint_weights_are_not_called_invariant(rows: int, size: float) -> None:
    torch.manual_seed(0)
    result = split(Faint(rows, size), torch.randn(16, 6))
    assert result["first.weight"].invariant
    faint = ["unused: the output does not change with it"] * (size < 1e-10) + ["next to no influence: random numbers"]
    assert result["mix.weight"].reason.startswith((*faint, "passes through a softmax"))


def test_vector_of_zeros_stays_in_the_rest() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    nn.init.zeros_(model[0].weight[2])
    assert verdict(split(model, batch(8, 4)), "0.weight").startswith(
        "no: invariant, but one of its rows is zero"
    )


# --- Layers of other kinds ---------------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self, norm: nn.Module, tied: bool = False) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(20, 6), norm, nn.Linear(6, 20, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(self.norm(x) if isinstance(self.norm, nn.LayerNorm) else self.norm(x.mT).mT)


def test_embedding_has_a_vector_a_token_before_layer_norm_and_a_feature_before_batch_norm() -> None:
    tokens = torch.arange(16).view(4, 4)
    rows = split(Tokens(nn.LayerNorm(6)), tokens)
    assert verdict(rows, "embedding.weight") == "channel" and rows.groups()[0]["row_dim"] == 0
    columns = split(Tokens(nn.BatchNorm1d(6)), tokens)
    assert verdict(columns, "embedding.weight") == "channel" and columns.groups()[0]["row_dim"] == 1


def test_bag_of_embeddings_is_one_vector_before_layer_norm() -> None:
    """A mean of tokens keeps one common factor, not one a token."""
    model = nn.Sequential(nn.EmbeddingBag(20, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    overlapping = torch.tensor([[i, (i + 1) % 20, (i + 7) % 20] for i in range(20)])
    assert verdict(split(model, overlapping), "0.weight") == "whole tensor"


def test_tied_weights_are_one_parameter() -> None:
    model = Tokens(nn.LayerNorm(6), tied=True)
    result = split(model, torch.arange(20).view(4, 5))
    assert len(result.entries) == len(list(model.parameters()))
    assert verdict(result, "embedding.weight").startswith("no: ")


def test_weights_tied_across_layouts_are_refused() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 4, 3)
            self.decode.weight = self.encode.weight
            self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.norms[1](self.decode(self.norms[0](self.encode(x)).relu()))

    result = split(Autoencoder(), batch(*IMAGE))
    assert verdict(result, "encode.weight").startswith(
        "no: refused: shared by layers that read its rows diff"
    )


def test_weight_norm_makes_directions_invariant() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Conv2d(6, 2, 3)),
    )
    result = split(model, batch(*IMAGE))
    for layer in "02":
        assert verdict(result, f"{layer}.parametrizations.weight.original1") == "channel"
        assert verdict(result, f"{layer}.parametrizations.weight.original0").startswith("no: ")


def test_spectral_norm_is_measured_with_its_state_held() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    assert verdict(split(model, batch(8, 4)), "0.parametrizations.weight.original") == "whole tensor"


def test_weights_computed_by_hooks_are_measured() -> None:
    def build(change: Callable[[nn.Module], Any]) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
        change(model[0])
        model(batch(8, 4))
        return model

    with pytest.warns(FutureWarning):
        normed = build(nn.utils.weight_norm)
    pruned = build(lambda layer: prune.random_unstructured(layer, "weight", 0.3))
    for model, name in ((normed, "0.weight_v"), (pruned, "0.weight_orig")):
        weight = model[0].weight
        assert verdict(split(model, batch(8, 4)), name) == "channel"
        assert model[0].weight is weight


def test_model_that_cannot_be_copied_is_an_error() -> None:
    class Stuck(nn.Linear):
        def __deepcopy__(self, memo: dict) -> None:
            raise RuntimeError("stay")

    with pytest.raises(ValueError, match=r"cannot be copied \(RuntimeError: stay\)"):
        split(nn.Sequential(Stuck(4, 6), nn.BatchNorm1d(6)), batch(8, 4))


def test_inference_mode_and_output_kept_by_the_model() -> None:
    class Keeps(Flexible):
        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            self.kept = super().forward(a, b)
            return self.kept

    model = Keeps()
    model(batch(8, 4))
    with torch.inference_mode():
        assert verdict(split(model, batch(8, 4)), "layer.weight") == "channel"


def test_an_embedding_with_sparse_gradients_is_trained_with_the_rest() -> None:
    torch.manual_seed(0)
    norms = nn.LayerNorm(8), nn.LayerNorm(8)
    model = nn.Sequential(nn.Embedding(9, 8, sparse=True), norms[0], nn.Linear(8, 8, bias=False), norms[1])
    tokens = torch.arange(9)
    assert verdict(split(model, tokens), "0.weight").startswith("no: refused: its gradients are sparse")
    optimizer = riembn.build_optimizer(model, tokens, "sgd-g", rest_weight_decay=0.0)
    before = model[0].weight.detach().clone()
    model(tokens).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


def test_bilinear_is_refused() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.form, self.norm = nn.Bilinear(4, 4, 6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.form(x, x))

    assert verdict(split(Pair(), batch(8, 4)), "form.weight").startswith("no: refused: a bilinear form")


def test_parameters_of_modules_of_ones_own() -> None:
    class Own(nn.Module):
        """Weights applied from the right, a normalization written by hand, casts to float32, noise."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.randn(4, 6)), 1e-5
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y = (x @ self.weight).float() + 0 * torch.randn(6, dtype=torch.float32)
            y = F.dropout((y - y.mean(0)) / (y.var(0) + self.eps).sqrt(), 0.5)
            return y * self.calls

    result = split(Own(), batch(8, 4))
    assert verdict(result, "weight") == "channel" and result.groups()[0]["row_dim"] == 1
    assert result.change is not None and result.change < 1e-12


def test_detached_normalization_counts_by_what_it_does() -> None:
    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True).detach(), self.bias)

    model = nn.Sequential(Detached(4, 6), nn.ReLU(), nn.Linear(6, 2))
    result = split(model, batch(8, 4))
    assert verdict(result, "0.weight") == "channel"
    assert verdict(result, "2.weight").startswith("no: ")


def test_detached_normalization_may_have_one_channel_or_a_bias() -> None:
    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y / y.norm(dim=0).detach()

    model = nn.Sequential(Detached(4, 6), nn.ReLU(), Detached(6, 1, bias=False))
    result = split(model, batch(8, 4))
    assert verdict(result, "0.weight") == "channel + bias"
    assert verdict(result, "2.weight") == "channel"


def test_queries_and_keys_in_one_tensor_with_values_are_partly_invariant() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(
                F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, dropout_p=0.1
            )

    assert verdict(split(Fused(), batch(4, 5, 8)), "qkv.weight") == (
        "no: only 4 of its 6 rows are invariant (output channels 0–15 of 24): split the layer there to use them"
    )


# --- Inputs, outputs, losses -------------------------------------------------------------------------------


class Flexible(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.layer, self.norm, self.head, self.give = (
            nn.Linear(4, 6),
            nn.BatchNorm1d(6),
            nn.Linear(6, 2),
            give,
        )

    def forward(self, a: Tensor, b: Tensor | None = None) -> Any:
        x = a if b is None else a + b
        return self.give(self.head(self.norm(self.layer(x))))


ANSWER = ["channel", "no: reaches the output without a normalization"]


@pytest.mark.parametrize(
    "example",
    [
        batch(8, 4),
        (batch(8, 4),),
        (batch(8, 4), batch(8, 4)),
        {"a": batch(8, 4), "b": batch(8, 4)},
        torch.zeros(8, 4),
    ],
)
def test_example_may_be_a_tensor_a_tuple_or_a_dict(example: Any) -> None:
    result = split(Flexible(), example)
    assert [verdict(result, f"{n}.weight") for n in ("layer", "head")] == ANSWER


def test_example_may_be_the_one_dict_or_list_forward_takes() -> None:
    class Takes(nn.Module):
        def __init__(self, key: Any) -> None:
            super().__init__()
            self.body, self.key = Flexible(), key

        def forward(self, given: Any) -> Tensor:
            return self.body(given[self.key])

    for key, example in (("image", {"image": batch(8, 4)}), (0, [batch(8, 4)])):
        assert verdict(split(Takes(key), example), "body.layer.weight") == "channel"


@pytest.mark.parametrize(
    "give",
    [
        lambda y: (y, y.argmax(1)),
        lambda y: {"logits": y, "n": 3},
        lambda y: [y, {"deep": (y,)}],
        lambda y: y.square().sum(),
    ],
)
def test_output_may_be_nested(give: Callable[[Tensor], Any]) -> None:
    result = split(Flexible(give), batch(8, 4))
    assert verdict(result, "layer.weight") == "channel"
    assert not next(v for v in result.entries if v.name == "head.weight").invariant


def test_loss_decides_what_counts() -> None:
    """The logits are not scale-invariant in the last weight, a loss of their direction is."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))
    target = batch(8, 3, seed=1)

    def cosine(y: Tensor) -> Tensor:
        return F.cosine_similarity(y, target.to(y.dtype)).mean()

    assert verdict(split(model, batch(8, 4), loss=cosine), "2.weight") == "whole tensor"
    assert (
        verdict(split(Flexible(), batch(8, 4), loss=lambda y: y.square().mean()), "layer.weight") == "channel"
    )


# --- Errors ------------------------------------------------------------------------------------------------


def test_errors_say_what_to_do() -> None:
    plain, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), batch(8, 4)
    normal = Flexible()
    with pytest.raises(ValueError, match="contains no normalization"):
        split(plain, x)
    with pytest.raises(ValueError, match=r"fails on a float32 tensor of shape \(8, 5\) \(RuntimeError: mat1"):
        split(normal, batch(8, 5))
    with pytest.raises(ValueError, match="no floating-point tensor; give loss="):
        split(Flexible(lambda y: y.argmax(1)), x)
    with pytest.raises(ValueError, match="non-finite output"):
        split(Flexible(lambda y: y / 0), x)
    with pytest.raises(ValueError, match="rule='mine'; it is \"invariant\""):
        split(normal, x, rule="mine")
    with pytest.raises(TypeError, match="model is a list; give a torch.nn.Module"):
        split([normal], x)
    with pytest.warns((DeprecationWarning, FutureWarning)):
        scripted = torch.jit.script(normal.norm)
    with pytest.raises(ValueError, match="scripted module hides its eps"):
        split(nn.Sequential(normal.layer, scripted), x)
    with pytest.raises(ValueError, match="lazy"):
        split(nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3)), x)
    with pytest.raises(TypeError, match=r"loss gives a Tensor of shape \(8, 2\); it is to give a scalar"):
        split(normal, x, loss=lambda y: y)


def test_layer_norm_network_without_invariant_weights_is_no_error() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))
    result = split(model, batch(8, 4))
    assert result.invariant == [] and result.groups() == [] and len(result.rest) == 6


# --- Report ------------------------------------------------------------------------------------------------


def test_own_eps_costs_what_arithmetic_says() -> None:
    """With eps as large as the variance, BatchNorm is far from invariant; with 1e-5 it is close."""
    torch.manual_seed(0)
    for eps, low, high in ((1e-5, 1e-7, 1e-2), (1.0, 1e-2, 10.0)):
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, eps=eps), nn.Linear(6, 2))
        result = split(model, batch(64, 4))
        assert result.change is not None and result.change < 1e-12
        assert result.own_eps_change is not None and low < result.own_eps_change < high
        v = result.entries[0]
        assert v.error is not None and v.own_eps is not None and v.error < 1e-12 < low < v.own_eps


def test_lists_hold_every_parameter_once() -> None:
    model = wide_resnet(10, 1)
    result = split(model, batch(4, 3, 16, 16))
    named = dict(model.named_parameters())
    both = dict(result.invariant) | dict(result.rest)
    assert len(result.invariant) + len(result.rest) == len(both) == len(named)
    assert all(named[n] is p for n, p in both.items())


def test_table_and_dataframe_say_the_same() -> None:
    result = split(Flexible(), batch(8, 4))
    frame = result.to_dataframe()
    assert list(frame.name) == [v.name for v in result.entries]
    assert frame.parameters.sum() == sum(p.numel() for p in Flexible().parameters())
    lines = str(result).splitlines()
    assert lines[0].split() == "parameter shape granularity invariant reason error own eps".split()
    assert "layer.weight" in lines[2] and "6×4" in lines[2] and "channel" in lines[2]
    assert "1 of 6 parameters, 6 weight rows" in lines[-2]


@pytest.mark.parametrize(
    "model, tensors, numbers",
    [(lambda: wide_resnet(16, 4), 13, 2_700_720), (lambda: vgg(13), 9, 9_400_320)],
)
def test_paper_rule_takes_what_the_release_takes(
    model: Callable[[], nn.Module], tensors: int, numbers: int
) -> None:
    with torch.device("meta"):
        network = model()
    result = split(network, None, rule="paper")
    assert len(result.invariant) == tensors
    assert sum(p.numel() for _, p in result.invariant) == numbers
    assert result.change is None


def test_reason_names_the_normalization() -> None:
    norms = {
        "BatchNorm": nn.BatchNorm2d(6),
        "InstanceNorm": nn.InstanceNorm2d(6),
        "GroupNorm": nn.GroupNorm(2, 6),
    }
    for name, norm in norms.items():
        model = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), norm, nn.Conv2d(6, 2, 3))
        assert split(model, batch(*IMAGE)).entries[0].reason == f"in front of {name}"


def test_paper_rule_is_strict_and_reads_grouped_and_transposed_weights() -> None:
    model = nn.ModuleList(
        [
            nn.Conv2d(9, 9, 1),  # fan-in 9, fan-out 9: not strictly undercomplete
            nn.Conv2d(9, 8, 1),
            nn.Conv2d(8, 8, 3, groups=8),  # one input channel a row: 9 > 8
            nn.ConvTranspose2d(4, 30, 3),  # fan-in 36 > fan-out 30
            nn.ConvTranspose2d(4, 40, 3),
            nn.Linear(100, 2),
        ]
    )
    assert [n for n, _ in split(model, None, rule="paper").invariant] == ["1.weight", "2.weight", "3.weight"]


def test_import_loads_no_pandas() -> None:
    code = "import sys, riembn.invariance; assert not {'pandas', 'torchvision', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
