"""A trained network computes the same before and after an optimizer is built for it."""

import copy
import logging
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import riembn
from riembn.models import build

UNIT = ["sgd-g", "adam-g", "pbwn", "oblique-sgd", "oblique-adam", "muon-rows"]


def images(count: int = 16, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def trained(model: nn.Module, steps: int = 8, size: int = 8) -> nn.Module:
    """A network whose running statistics and lengths are those of training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        output = model(images(size=size, seed=step))
        F.cross_entropy(output.flatten(1), torch.arange(len(output)) % output.flatten(1).shape[1]).backward()
        optimizer.step()
    return model


def evaluated(model: nn.Module, size: int = 8) -> Tensor:
    model.eval()
    with torch.no_grad():
        output = model(images(seed=99, size=size))
    model.train()
    return output


def moved(model: nn.Module, method: str = "sgd-g", size: int = 8, **options) -> float:
    """How far building an optimizer moves the evaluation output, relative to its size."""
    before = evaluated(model, size)
    riembn.build_optimizer(model, images(size=size), method, **options)
    return float((evaluated(model, size) - before).norm() / before.norm())


class Joint(nn.Module):
    """A ReLU in front of BatchNorm: weight and bias are one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x).relu()).mean((2, 3)))


class Dense(nn.Module):
    """One convolution feeds two BatchNorms, one of them in the midst of others' channels, another way round."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
        self.one, self.both, self.out = nn.BatchNorm2d(4), nn.BatchNorm2d(9), nn.Linear(13, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        both = self.both(torch.cat([b, a.flip(1)], 1)).relu()
        return self.out(torch.cat([self.one(a).relu(), both], 1).mean((2, 3)))


class Separable(nn.Module):
    """Two weights in a row in front of one BatchNorm, the first invariant as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 6, 3, groups=3, bias=False)
        self.pointwise, self.norm, self.out = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.pointwise(self.depthwise(x))).relu().mean((2, 3)))


def head(channels: int) -> list[nn.Module]:
    return [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)]


NETWORKS = {
    "convolution": lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *head(8)],
    "without bias": lambda: [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), *head(8)],
    "not affine": lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), *head(8)],
    "grouped": lambda: [nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), *head(6)],
    "transposed": lambda: [nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6), *head(6)],
    "transposed, grouped": lambda: [
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), *head(6)
    ],  # fmt: skip
    "linear": lambda: [nn.Flatten(), nn.Linear(192, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4)],
    "instance statistics": lambda: [
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), *head(8)
    ],  # fmt: skip
    "large eps": lambda: [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=0.5), *head(8)],
    "joint": lambda: [Joint()],
    "several normalizations": lambda: [Dense()],
    "separable": lambda: [Separable()],
    "one normalization, two layers": lambda: (lambda norm: [
        nn.Conv2d(3, 3, 3, bias=False), norm, nn.ReLU(), nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3), *head(3)
    ])(nn.BatchNorm2d(3)),  # fmt: skip
}


@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_output_is_the_same_to_rounding(name):
    torch.manual_seed(0)
    model = trained(nn.Sequential(*NETWORKS[name]()))
    lengths = [p.norm() for _, p in riembn.split(model, images()).invariant]
    assert moved(model) < 1e-5
    assert any((p.norm() - was).abs() > 0.1 for (_, p), was in zip(
        riembn.split(model, images()).invariant, lengths, strict=True))  # fmt: skip


@pytest.mark.parametrize("name", ["convolution", "large eps"])
def test_training_goes_on_from_the_same_function(name):
    torch.manual_seed(0)
    model = trained(nn.Sequential(*NETWORKS[name]()), steps=60)
    for step in range(60):  # statistics of weights that stay
        model(images(seed=step))
    before = model(images(seed=3)).detach()
    riembn.build_optimizer(model, images(), "sgd-g")
    assert (model(images(seed=3)) - before).norm() < 0.02 * before.norm()


def test_statistics_are_those_of_the_unit_rows():
    torch.manual_seed(0)
    model = trained(nn.Sequential(*NETWORKS["convolution"]()))
    conv, norm = model[0], model[1]
    length, bias = conv.weight.detach().flatten(1).norm(dim=1), conv.bias.detach()
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    riembn.build_optimizer(model, images(), "adam-g")
    torch.testing.assert_close(norm.running_mean, (mean - bias) / length + bias)
    torch.testing.assert_close(norm.running_var, var / length**2)


def test_silent_channels_are_carried_over_too():
    torch.manual_seed(0)
    model = trained(
        nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), *head(4)
        )
    )
    shift = model[1].bias.detach().clone()
    before = evaluated(model)
    with torch.no_grad():
        model[1].bias.fill_(-30.0)  # on no input of the example does the ReLU let anything through
    riembn.build_optimizer(model, images(), "sgd-g")
    with torch.no_grad():
        model[1].bias.copy_(shift)
    assert (evaluated(model) - before).norm() < 1e-5 * before.norm()


@pytest.mark.parametrize("method", UNIT)
def test_every_method_of_unit_rows_carries_them_over(method, caplog):
    torch.manual_seed(0)
    model = trained(nn.Sequential(*NETWORKS["convolution"]()))
    assert moved(model, method) < 1e-5 and not caplog.records


@pytest.mark.parametrize("method", ["psi-sgd", "hyperball-sgd", "sgd"])
def test_methods_that_keep_lengths_touch_nothing(method):
    torch.manual_seed(0)
    model = trained(nn.Sequential(*NETWORKS["convolution"]()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    riembn.build_optimizer(model, images(), method)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_method_that_turns_weights_says_so(caplog):
    torch.manual_seed(0)
    model = trained(nn.Sequential(*NETWORKS["convolution"]()))
    riembn.build_optimizer(model, images(), "nero")
    assert "by more than their lengths" in caplog.text


@pytest.mark.parametrize("network, width", [("vgg-11", 0.06), ("resnet-20", 0.25), ("wrn-10-1", 0.25)])
def test_networks_of_the_book_keep_their_evaluation(network, width, caplog):
    torch.manual_seed(0)
    model = build(network, num_classes=4, in_channels=3, width=width)
    assert moved(trained(model, steps=3, size=32), size=32) < 1e-5
    assert not caplog.records


def test_normalization_without_statistics_needs_none(caplog):
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8, eps=1e-7), *head(8)))
    assert moved(model) < 1e-5
    mixed = trained(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8, eps=1e-7), *head(8)))
    assert moved(mixed) < 1e-5 and not caplog.records


def test_what_cannot_be_kept_is_said_in_one_line(caplog):
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8, eps=0.5), nn.BatchNorm2d(8), *head(8)))
    found = moved(model)
    (record,) = [r for r in caplog.records if "evaluation" in r.getMessage()]
    assert found > 1e-3 and "\n" not in record.getMessage()


class OwnBatchNorm(nn.Module):
    """Running statistics that nobody but the module itself knows as such."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("var", torch.ones(1, channels, 1, 1))

    def forward(self, x):
        mean, var = self.mean, self.var
        if self.training:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            self.mean.lerp_(mean.detach().to(self.mean.dtype), 0.1)
            self.var.lerp_(var.detach().to(self.var.dtype), 0.1)
        return (x - mean) / (var + 1e-5).sqrt()


@pytest.mark.parametrize("norm", [OwnBatchNorm, lambda channels: nn.GroupNorm(2, channels, eps=0.1)])
def test_what_cannot_be_kept_is_said_of_a_network_without_torchs_statistics(norm, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), *head(8))
    if norm is OwnBatchNorm:  # that of a fresh one is nobody's loss
        riembn.build_optimizer(copy.deepcopy(model), images(), "sgd-g")
        assert not caplog.records
    found = moved(trained(model))
    (record,) = [r for r in caplog.records if "evaluation" in r.getMessage()]
    assert found > 1e-2
    assert abs(float(re.search(r"changes by (\S+) of", record.getMessage())[1]) - found) < 0.3 * found


def test_usual_eps_of_a_network_without_statistics_is_not_worth_a_word(caplog):
    torch.manual_seed(0)
    layers = [layer for n in (3, 8, 8) for layer in (nn.Conv2d(n, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())]
    assert moved(trained(nn.Sequential(*layers, *head(8)))) < 1e-2
    assert not caplog.records


def test_fresh_networks_are_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(*NETWORKS["convolution"]())
    found = riembn.split(model, images())
    riembn.build_optimizer(model, found, "sgd-g")
    assert found.statistics is None and not model[1].running_mean.any() and (model[1].running_var == 1).all()
    assert (model[1].weight == 1).all()


def test_a_split_carries_what_is_needed(caplog):
    torch.manual_seed(0)
    model = trained(nn.Sequential(*NETWORKS["convolution"]()))
    before, found = evaluated(model), riembn.split(model, images())
    assert found.statistics.change < 1e-12
    riembn.build_optimizer(model, found, "sgd-g")
    assert (evaluated(model) - before).norm() < 1e-5 * before.norm() and not caplog.records
    after = evaluated(model)
    riembn.build_optimizer(model, found, "sgd-g")  # the rows have unit length already
    assert torch.allclose(evaluated(model), after, rtol=1e-5, atol=1e-6) and not caplog.records


@pytest.mark.parametrize("how", ["fresh", "trained on", "from a file"])
def test_a_split_of_other_statistics_is_not_believed(how, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(*NETWORKS["convolution"]())
    if how == "trained on":
        trained(model)
    found = riembn.split(model, images())
    trained(model)
    if how == "from a file":
        found = riembn.Split.from_dict(riembn.split(model, images()).to_dict(), model)
    var = model[1].running_var.clone()
    riembn.build_optimizer(model, found, "sgd-g")
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "no longer fit" in record.getMessage() and torch.equal(model[1].running_var, var)


def test_frozen_weights_train_once_unfrozen():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), *head(8)
    )
    for p in (*model[0].parameters(), *model[1].parameters()):
        p.requires_grad_(False)
    optimizer = riembn.build_optimizer(trained(model), images(), "sgd-g")
    held = {id(p) for group in optimizer.parts[0].param_groups for p in group["params"]}
    assert held == {id(model[0].weight), id(model[3].weight)} and not model[0].weight.requires_grad

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images()), torch.arange(16) % 4).backward()
        optimizer.step()

    before = model[0].weight.detach().clone()
    step()
    assert torch.equal(model[0].weight, before)
    model[0].requires_grad_(True)
    step()
    turned = model[0].weight.detach()
    assert (turned - before).norm() > 1e-4
    torch.testing.assert_close(turned.flatten(1).norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("method", ["sgd-g", "psi-sgd", "sgd"])
def test_layers_added_later_go_where_split_says(method):
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *head(8)))
    optimizer = riembn.build_optimizer(model, images(), method, **({} if method == "sgd" else {"rest_lr": 0.05}))
    model.insert(2, nn.Conv2d(8, 8, 3))
    model.insert(3, nn.BatchNorm2d(8))
    model.append(nn.Linear(4, 4))
    added = riembn.add_parameters(optimizer, model, images())
    assert set(added) == {"2.weight", "2.bias", "3.weight", "3.bias", "8.weight", "8.bias"}
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    if method == "sgd":
        assert len(optimizer.param_groups) == 2
    else:
        part = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        assert part[id(model[2].weight)]["part"] == 0 and part[id(model[8].weight)]["part"] == 1
        assert part[id(model[8].weight)]["weight_decay"] == 5e-4 and part[id(model[8].bias)]["weight_decay"] == 0
        assert part[id(model[8].weight)]["lr"] == 0.05
    if method == "sgd-g":
        torch.testing.assert_close(model[2].weight.detach().flatten(1).norm(dim=1), torch.ones(8))
    with pytest.raises(ValueError, match="holds every parameter"):
        riembn.add_parameters(optimizer, model, images())


def test_layers_added_through_a_wrapper_go_where_split_says():
    class Wrapper(torch.optim.Optimizer):
        """As of Accelerate: an optimizer that hands all to the one inside."""

        def __init__(self, inner):
            self.inner = inner

        param_groups = property(lambda self: self.inner.param_groups)

        def add_param_group(self, group):
            self.inner.add_param_group(group)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *head(8))
    optimizer = riembn.build_optimizer(model, images(), "sgd-g")
    model.insert(2, nn.Conv2d(8, 8, 3))
    model.insert(3, nn.BatchNorm2d(8))
    riembn.add_parameters(Wrapper(optimizer), model, images())
    part = {name: group["part"] for group in optimizer.param_groups for name in group["param_names"]}
    assert part["2.weight"] == 0 and part["2.bias"] == part["3.weight"] == 1


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_lose_their_invariance_are_named(frozen, caplog):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    model = nn.Sequential(*layers, *head(8))
    optimizer = riembn.build_optimizer(model, images(), "sgd-g")
    model[3].requires_grad_(not frozen)
    model.insert(4, nn.Sequential(nn.Tanh(), nn.Conv2d(8, 8, 1)))
    riembn.add_parameters(optimizer, model, images())
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    if frozen:  # as under LoRA: it does not move
        assert not said
    else:
        assert len(said) == 1 and "scale-invariant no longer: '3.weight'; build" in said[0]
