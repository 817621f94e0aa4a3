"""The networks are the papers' ones: sizes, structure, normalization, initialization; a fork can add its own."""

import copy
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import riembn
from riembn.data.from_torchvision import import_torchvision
from riembn.models import (
    BatchNorm,
    Networks,
    build,
    channels_last,
    gallery,
    multiplications,
    networks,
    resnet,
    vgg,
    wide_resnet,
)
from riembn.models.memory_format import SubsampledConv2d

RESNETS = ["resnet-20", "resnet-18", "resnet-50"]


def on_meta(network: str, **arguments: float) -> nn.Module:
    with torch.device("meta"):
        return build(network, num_classes=10, in_channels=3, **arguments)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def batch(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    "network, parameters, tensors, rows, on_manifold",
    [  # by the release's rule: a convolution with more inputs than outputs
        ("wrn-28-10", 36_479_194, 24, 8_816, 36_173_232),
        ("wrn-40-10", 55_841_754, 36, 13_296, 55_526_832),
        ("wrn-16-4", 2_748_890, 13, 1_808, 2_700_720),
        ("wrn-22-8", 17_158_106, 19, 5_392, 16_976_304),
        ("vgg-13", 9_935_434, 9, 2_880, 9_400_320),
        ("vgg-19", 20_554_826, 15, 5_440, 20_017_152),
    ],
)
def test_parameter_counts_are_the_releases(
    network: str, parameters: int, tensors: int, rows: int, on_manifold: int
) -> None:
    model = on_meta(network)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    undercomplete = [w for w in weights if w[0].numel() > w.shape[0]]
    assert count(model) == parameters
    assert len(undercomplete) == tensors
    assert sum(w.shape[0] for w in undercomplete) == rows
    assert sum(w.numel() for w in undercomplete) == on_manifold


@pytest.mark.parametrize("network", ["vgg-11", "vgg-13", "vgg-16", "vgg-19", "wrn-10-1", "wrn-16-2", *RESNETS])
@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_output_is_one_row_of_logits_an_image(network: str, size: int, channels: int) -> None:
    model = build(network, num_classes=7, in_channels=channels, width=0.1)
    assert model(batch(3, channels, size, size)).shape == (3, 7)


@pytest.mark.parametrize("size, pools", [(1, 0), (2, 1), (8, 3), (28, 4), (32, 5), (63, 5)])
def test_vgg_pools_until_one_pixel_is_left(size: int, pools: int) -> None:
    model = vgg(11, width=0.05).eval()
    calls: list[int] = []
    model.pool.register_forward_hook(lambda *_: calls.append(1))
    assert model(batch(1, 3, size, size)).shape == (1, 10)
    assert len(calls) == pools


@pytest.mark.parametrize("height, width", [(64, 64), (96, 96), (8, 16)])
def test_vgg_refuses_images_that_leave_a_larger_map(height: int, width: int) -> None:
    with pytest.raises(
        ValueError, match=f"vgg: images of {height}x{width} leave a map of .* below 64"
    ) as caught:
        vgg(11, width=0.05).eval()(batch(1, 3, height, width))
    assert "\n" not in str(caught.value)


def test_vgg_has_beta_only_and_its_layers_in_order() -> None:
    model = on_meta("vgg-16")
    widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    kinds = [type(m).__name__ for m in model.modules() if not list(m.children())]
    pairs = ["BatchNorm", "ReLU"]
    assert [k for k in kinds if k != "MaxPool2d"] == (
        (["Conv2d", *pairs]) * 13 + ["Flatten"] + (["Linear", *pairs]) * 2 + ["Linear"]
    )
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    assert all(m.weight is None and m.bias is not None for m in norms)
    with_bias = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None]
    assert [m.out_features for m in with_bias] == [10]


def test_width_rounds_and_keeps_at_least_one_channel() -> None:
    assert [m.out_channels for m in vgg(11, width=1e-9).modules() if isinstance(m, nn.Conv2d)] == [1] * 8
    halves = on_meta("vgg-11", width=0.49)
    assert halves.stages[0][0].out_channels == 31  # 31.36
    narrow = wide_resnet(10, 0.01)
    assert [group[0].conv1.out_channels for group in narrow.groups] == [1, 1, 1]
    assert on_meta("wrn-10-4", width=0.5).groups[2][0].conv1.out_channels == 128


# Wide residual networks


def test_wrn_shortcut_is_a_convolution_only_where_the_shape_changes() -> None:
    def shortcuts(model: nn.Module) -> list[list[bool]]:
        return [[block.shortcut is not None for block in group] for group in model.groups]

    assert shortcuts(wide_resnet(16, 2)) == [[True, False]] * 3
    assert shortcuts(wide_resnet(16, 1)) == [[False, False], [True, False], [True, False]]
    strides = [[block.conv1.stride[0] for block in group] for group in wide_resnet(16, 1).groups]
    assert strides == [[1, 1], [2, 1], [2, 1]]


def test_wrn_convolution_shortcut_reads_the_first_normalized_output_and_identity_the_input() -> None:
    changing, keeping = wide_resnet(16, 2).double().groups[1]
    for block in (changing, keeping):
        nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
        nn.init.normal_(block.bn1.weight)
        nn.init.normal_(block.bn1.bias)
    x = batch(4, 32, 8, 8, dtype=torch.float64)
    normalized = functional.batch_norm(x, None, None, changing.bn1.weight, changing.bn1.bias, training=True)
    expected = functional.conv2d(normalized.relu(), changing.shortcut.weight, stride=2)
    assert torch.allclose(changing(x), expected, atol=1e-12)
    y = batch(4, 64, 4, 4, dtype=torch.float64)
    assert torch.equal(keeping(y), y)


def test_wrn_branch_is_pre_activated_with_dropout_before_the_second_convolution() -> None:
    block = wide_resnet(10, 2, dropout=0.4).groups[2][0]
    seen: dict[str, Tensor] = {}
    for name in ("bn1", "conv1", "bn2", "dropout", "conv2"):
        layer = getattr(block, name)
        layer.register_forward_hook(
            lambda _, given, out, name=name: seen.update({name: given[0], name + ">": out})
        )
    x = batch(16, 64, 8, 8)
    output = block(x)
    assert torch.equal(seen["bn1"], x)
    assert torch.equal(seen["conv1"], seen["bn1>"].relu())
    assert torch.equal(seen["bn2"], seen["conv1>"])
    assert torch.equal(seen["dropout"], seen["bn2>"].relu())
    assert torch.equal(seen["conv2"], seen["dropout>"])
    assert torch.equal(output, seen["conv2>"] + block.shortcut(seen["conv1"]))
    alive = seen["dropout"] > 0
    dropped = (seen["conv2"][alive] == 0).double().mean()
    assert abs(dropped - 0.4) < 0.02  # about 16,000 entries: standard error 0.004


def test_dropout_changes_training_only() -> None:
    model = wide_resnet(10, 1, dropout=0.5)
    x = batch(4, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


# Batch normalization


@pytest.mark.parametrize("shape", [(8, 5), (4, 5, 3), (4, 5, 3, 3)])
@pytest.mark.parametrize("gamma", [True, False])
def test_batch_norm_equals_its_formula_in_training_and_evaluation(
    shape: tuple[int, ...], gamma: bool
) -> None:
    norm = BatchNorm(5, gamma=gamma).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    scale = norm.weight if gamma else torch.ones(5, dtype=torch.float64)
    running_mean, running_var = torch.zeros(5).double(), torch.ones(5).double()

    def rows(z: Tensor) -> Tensor:
        return z.movedim(1, -1).reshape(-1, 5)

    for step in range(3):
        x = 2 * batch(*shape, seed=step, dtype=torch.float64) + 1
        mean, var = rows(x).mean(0), rows(x).var(0, correction=0)
        expected = scale * (rows(x) - mean) / (var + 1e-5).sqrt() + norm.bias
        assert torch.allclose(rows(norm(x)), expected, atol=1e-12)
        running_mean = 0.99 * running_mean + 0.01 * mean
        running_var = 0.99 * running_var + 0.01 * var
    assert torch.allclose(norm.running_mean, running_mean, atol=1e-14)
    assert torch.allclose(norm.running_var, running_var, atol=1e-14)
    assert norm.num_batches_tracked == 3
    norm.eval()
    expected = scale * (rows(x) - running_mean) / (running_var + 1e-5).sqrt() + norm.bias
    assert torch.allclose(rows(norm(x)), expected, atol=1e-12)
    assert norm.num_batches_tracked == 3


def test_batch_norm_gradients_are_those_of_torch() -> None:
    ours, torchs = BatchNorm(4).double(), nn.BatchNorm2d(4).double()
    inputs = [batch(3, 4, 5, 5, dtype=torch.float64).requires_grad_() for _ in range(2)]
    for norm, x in zip((ours, torchs), inputs, strict=True):
        (norm(x).sigmoid() ** 2).sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-14)
    assert torch.allclose(ours.weight.grad, torchs.weight.grad, atol=1e-12)
    assert torch.allclose(ours.bias.grad, torchs.bias.grad, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gamma", [True, False])
def test_batch_norm_on_a_gpu_is_that_on_a_cpu(gamma: bool, training: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images, out = (torch.randn(8, 5, 4, 4, generator=generator) for _ in range(2))
    found = []
    for device in ("cpu", "cuda"):
        norm = BatchNorm(5, gamma=gamma).train(training).to(device)
        x = images.to(device, copy=True).requires_grad_()
        y = norm(x)
        (y * out.to(device)).sum().backward()
        assert x.grad is not None
        found.append([y, x.grad, *(p.grad for p in norm.parameters()), *norm.buffers()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-4, atol=1e-4)


def test_batch_norm_without_gamma_is_a_batch_norm_with_one_parameter() -> None:
    norm = BatchNorm(4, gamma=False)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert [name for name, _ in norm.named_parameters()] == ["bias"]
    nn.init.ones_(norm.bias)
    norm(batch(8, 4))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(norm))
    assert [name for name, _ in synced.named_parameters()] == ["bias"]
    assert torch.equal(synced.bias, norm.bias)
    other = BatchNorm(4, gamma=False)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other.running_var, norm.running_var)
    norm.reset_parameters()
    assert not norm.bias.any() and (norm.running_var == 1).all() and norm.num_batches_tracked == 0


def test_batch_norm_without_momentum_averages_all_batches() -> None:
    norm = BatchNorm(3)
    norm.momentum = None  # as torch.optim.swa_utils.update_bn sets it
    batches = [batch(6, 3, seed=step) + step for step in range(4)]
    for x in batches:
        norm(x)
    variance = torch.stack([x.var(0, correction=0) for x in batches]).mean(0)
    assert torch.allclose(norm.running_mean, torch.stack(batches).mean((0, 1)), atol=1e-6)
    assert torch.allclose(norm.running_var, variance, atol=1e-6)


def test_two_forward_passes_may_come_before_one_backward() -> None:
    model = wide_resnet(10, 1)
    (model(batch(2, 3, 8, 8)) + model(batch(2, 3, 8, 8, seed=1))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_batch_norm_refuses_what_has_no_channels() -> None:
    for norm in (BatchNorm(3), BatchNorm(3).eval()):
        with pytest.raises(ValueError, match=r"BatchNorm: got an input of shape \(3,\)"):
            norm(batch(3))


# What the normalization makes invariant


def exact(model: nn.Module) -> nn.Module:
    """Float64 and an eps that vanishes beside any variance: scale invariance up to rounding."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.eps = 1e-300  # torch refuses 0
    return model.double()


def loss(model: nn.Module) -> Tensor:
    labels = torch.arange(16) % 10
    return functional.cross_entropy(model(batch(16, 3, 8, 8, dtype=torch.float64)), labels)


def rescale(weight: Tensor, seed: int) -> None:
    factors = batch(len(weight), seed=seed, dtype=weight.dtype).exp()
    with torch.no_grad():
        weight.mul_(factors.view(-1, *[1] * (weight.dim() - 1)))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31), depth=st.sampled_from([11, 13]))
def test_vgg_loss_ignores_the_scale_of_every_weight_vector_but_the_last_layers(seed: int, depth: int) -> None:
    torch.manual_seed(seed)
    model = exact(vgg(depth, width=0.06))
    before = loss(model)
    *hidden, last = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for weight in hidden:
        rescale(weight, seed)
    assert torch.allclose(loss(model), before, rtol=1e-9, atol=0)
    rescale(last, seed)
    assert not torch.allclose(loss(model), before, rtol=1e-4, atol=0)


def test_wrn_loss_ignores_the_scale_of_first_convolutions_but_not_of_those_that_feed_a_sum() -> None:
    torch.manual_seed(0)
    model = exact(wide_resnet(16, 1))
    before = loss(model)
    blocks = [block for group in model.groups for block in group]
    for block in blocks:
        rescale(block.conv1.weight, 1)
    assert torch.allclose(loss(model), before, rtol=1e-9, atol=0)
    summed = [b.conv2 for b in blocks] + [b.shortcut for b in blocks if b.shortcut] + [model.conv0]
    for layer in summed:
        changed = copy.deepcopy(layer.weight)
        rescale(layer.weight, 1)
        assert not torch.allclose(loss(model), before, rtol=1e-6, atol=0)
        layer.weight = changed
    with torch.no_grad():
        blocks[0].conv1.weight.neg_()
    assert not torch.allclose(loss(model), before, rtol=1e-6, atol=0)  # positive factors only


# Initialization


@pytest.mark.parametrize("model", [lambda: vgg(13, width=0.5), lambda: wide_resnet(16, 2)])
def test_initial_weights_are_truncated_he_normal(model: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    for module in model().modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        weight, fan_in = module.weight.detach(), module.weight[0].numel()
        scaled = weight.double().square() * fan_in / 2  # mean 1, standard deviation below 1.2
        assert abs(scaled.mean() - 1) < 5 * 1.2 / weight.numel() ** 0.5
        assert weight.abs().max() <= 2 * (2 / fan_in / 0.7737) ** 0.5 * 1.001
        assert module.bias is None or not module.bias.any()


def test_seed_decides_the_weights() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in wide_resnet(10, 1).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


# ResNet


@pytest.mark.parametrize("depth, millions", [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_cifar_resnets_have_the_papers_number_of_parameters(depth: int, millions: float) -> None:
    model = on_meta(f"resnet-{depth}")
    assert round(count(model) / 1e6, 2) == millions
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth  # no layer in the shortcuts


def test_cifar_shortcut_drops_pixels_and_adds_channels_of_zeros() -> None:
    block = resnet(20).layer2[0]
    nn.init.zeros_(block.bn2.weight)  # nothing comes from the branch
    x = batch(2, 16, 7, 7).abs()
    y = block(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2]) and not y[:, 16:].any() and y.shape == (2, 32, 4, 4)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_imagenet_resnets_are_torchvisions(depth: int) -> None:
    ours = build(f"resnet-{depth}", num_classes=10, in_channels=3).double().eval()
    theirs = getattr(import_torchvision().models, f"resnet{depth}")(num_classes=10).double().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean), nn.init.uniform_(module.weight, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    x = batch(2, 3, 40, 40, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-10)


@pytest.mark.parametrize("network", RESNETS)
def test_every_convolution_of_a_resnet_is_scale_invariant(network: str) -> None:
    model = build(network, num_classes=5, in_channels=1, width=0.25)
    invariant = {name for name, _ in riembn.split(model, batch(8, 1, 32, 32)).invariant}
    assert invariant == {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


# A fork's own networks


class Line(nn.Module):
    """The mean of the image, and a linear layer on ``hidden`` copies of it."""

    def __init__(self, hidden: str = "2", *, num_classes: int, in_channels: int, width: float = 1.0) -> None:
        super().__init__()
        self.copies = round(int(hidden) * width)
        self.out = nn.Linear(in_channels * self.copies, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(images.mean((2, 3)).repeat(1, self.copies))


def plain(*, num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))


@pytest.fixture
def added() -> Iterator[Networks]:
    yield networks
    for name in networks.added:
        del networks[name]


def test_an_added_network_is_built_by_its_name(added: Networks) -> None:
    added["line"], added["plain"], added["line-up"] = Line, plain, lambda argument, **sizes: Line("7", **sizes)
    for name, copies in (("line", 2), ("line-3", 3), ("line-up-1", 7)):
        added.check(name)
        model = build(name, num_classes=4, in_channels=3)
        assert model.copies == copies and model(batch(5, 3, 8, 8)).shape == (5, 4)
    assert build("line-4", num_classes=4, in_channels=3, width=0.5).copies == 2
    assert build("plain", num_classes=4, in_channels=1)(batch(5, 1, 8, 8)).shape == (5, 4)
    assert added.takes("line-4") == {"width"} and added.takes("plain") == added.takes("line-up-1") == frozenset()
    assert added.takes("wrn-10-1") == {"width", "dropout"} and added.takes("vgg-11") == {"width"}
    assert riembn.networks is networks and list(added.added) == ["line", "plain", "line-up"]
    added["plain"] = Line  # a cell that is run again
    assert added["plain"] is Line


def test_a_networks_argument_may_be_its_width(added: Networks) -> None:
    added["tiny"] = lambda width, *, num_classes, in_channels: nn.Linear(int(width), num_classes)
    assert added.takes("tiny-8") == frozenset()
    assert build("tiny-8", num_classes=2, in_channels=1).in_features == 8
    with pytest.raises(ValueError, match="'tiny-8', which takes no width; give 1"):
        build("tiny-8", num_classes=2, in_channels=1, width=0.5)


def needs_argument(argument: str, *, num_classes: int, in_channels: int) -> str:
    return "no module"


@pytest.mark.parametrize(
    "call, kind, words",
    [
        (lambda t: t.__setitem__("vgg", plain), ValueError, "network 'vgg' is the package's own"),
        (lambda t: t.__setitem__("vgg-11", plain), ValueError, "network 'vgg-11' is the package's own"),
        (lambda t: t.__setitem__("wrn-16-4", plain), ValueError, "network 'wrn-16-4' is the package's own"),
        (lambda t: t.__setitem__("my/net", plain), ValueError, "name 'my/net' is not accepted"),
        (lambda t: t.__setitem__("mine", "plain"), TypeError, "network 'mine' is 'plain'; give a function"),
        (lambda t: t.check("plain-3"), ValueError, "network='plain-3' is not accepted; give .*plain, needs-ARGUMENT"),
        (lambda t: t.check("needs"), ValueError, "network='needs' is not accepted; .* needs-ARGUMENT, line.-ARGUMENT"),
        (lambda t: t.check("line-a/b"), ValueError, "network='line-a/b' is not accepted"),
        (lambda t: build("plain", num_classes=2, in_channels=1, width=0.5), ValueError, "takes no width; give 1"),
        (lambda t: build("needs-1", num_classes=2, in_channels=1), TypeError, "made as str; return a torch.nn.Module"),
    ],
)
def test_what_no_network_can_be_is_refused_in_one_line(
    call: Callable[[Networks], Any], kind: type[Exception], words: str, added: Networks
) -> None:
    added["plain"], added["needs"], added["line"] = plain, needs_argument, Line
    with pytest.raises(kind, match=words) as caught:
        call(added)
    assert "\n" not in str(caught.value)


# Use


@pytest.mark.parametrize("network", ["vgg-11", "wrn-10-1"])
def test_channels_last_changes_the_layout_and_not_the_logits(network: str) -> None:
    model = build(network, num_classes=10, in_channels=3, width=0.2).double().eval()
    x = batch(2, 3, 32, 32, dtype=torch.float64)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    layouts: list[bool] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _, given, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    assert torch.allclose(model(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-10)
    assert layouts and all(layouts)


@pytest.mark.parametrize(
    "layer, changes",
    [
        (nn.Conv2d(4, 8, 1, stride=2, bias=False), True),
        (nn.Conv2d(15, 8, 1, stride=(1, 3)), True),
        (nn.Conv2d(30, 8, 1, stride=2, groups=2), True),
        (nn.Conv2d(16, 8, 1, stride=2), False),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), False),
    ],
)
def test_narrow_strided_1x1_convolutions_are_subsampled_and_compute_the_same(layer: nn.Conv2d, changes: bool) -> None:
    x = batch(2, layer.in_channels, 7, 6)
    expected = layer(x)
    same = channels_last(nn.Sequential(layer))[0]
    assert same is layer and isinstance(layer, SubsampledConv2d) == changes
    assert torch.allclose(layer(x), expected, atol=1e-6)


# One step in the channels_last format and one evaluation, of every network at five widths.
EVERY_NETWORK = """
import torch
from riembn import models

for network in ("vgg-11", "wrn-10-1", "resnet-20", "resnet-18", "resnet-50"):
    for width in (0.0625, 0.125, 0.25, 0.5, 1):
        model = models.channels_last(models.build(network, num_classes=10, in_channels=3, width=width))
        x = torch.randn(16, 3, 16, 16).contiguous(memory_format=torch.channels_last)
        model(x).square().sum().backward()
        with torch.no_grad():
            model.eval()(x)
        print("took", network, width, flush=True)
"""
# torch.compile takes the channels_last format by itself.
COMPILED_SHORTCUT = """
import torch
from torch import nn
from riembn.models.layers import conv

layer = torch.compile(nn.Sequential(nn.ReLU(), conv(4, 8, kernel=1, stride=2)))
layer(torch.randn(16, 4, 8, 8)).square().sum().backward()
print("took", flush=True)
"""


def overrunning(log: str) -> list[str]:
    """The gradients that oneDNN says it computed by the kernel that writes past its buffer."""
    kernel = r".*jit_1x1:\w+,backward_weights,src:\w+::blocked:acdb.*_ic(\d+)oc.*kh1sh2.*"
    return [line for line in log.splitlines() if (found := re.match(kernel, line)) and int(found[1]) < 16]


@pytest.mark.parametrize(
    "script, steps, capability",
    [
        pytest.param(EVERY_NETWORK, 25, "avx2", id="avx2"),
        pytest.param(EVERY_NETWORK, 25, None, id="as-it-is"),
        pytest.param(COMPILED_SHORTCUT, 1, "avx2", id="compiled", marks=pytest.mark.slow),
    ],
)
def test_no_network_runs_the_kernel_that_corrupts_memory(
    script: str, steps: int, capability: str | None, tmp_path: Path
) -> None:
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    if capability:
        # In a cache of its own: what is compiled for fewer instructions must not be found by other processes.
        environment |= {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": capability.upper()}
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=environment, capture_output=True, text=True
    )
    took = re.findall(r"^took.*", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and len(took) == steps, (took, done.returncode, done.stderr[-1000:])
    assert "backward_weights" in done.stdout or platform.machine() != "x86_64"  # else nothing was listened to
    assert not overrunning(done.stdout)


def test_the_kernel_is_recognized_in_onednns_words() -> None:
    line = (
        "onednn_verbose,v1,primitive,exec,cpu,convolution,jit_1x1:avx2,backward_weights,src:f32::blocked:acdb::f0 "
        "wei:f32:ap:blocked:ABcd8b8a::f0 bia:undef::undef::: dst:f32::blocked:acdb::f0,attr-scratchpad:user,"
        "alg:convolution_direct,mb16_ic4oc8_ih8oh4kh1sh2dh0ph0_iw8ow4kw1sw2dw0pw0,0.01"
    )
    assert overrunning(line) == [line]
    assert not overrunning(line.replace("ic4", "ic16")) and not overrunning(line.replace("sh2", "sh1"))
    assert not overrunning(line.replace("acdb", "aBcd8b")) and not overrunning(line.replace("weights", "data"))


@pytest.mark.parametrize("network", ["vgg-11", "wrn-10-1"])
def test_a_few_steps_lower_the_loss(network: str) -> None:
    torch.manual_seed(0)
    model = build(network, num_classes=10, in_channels=3, width=0.12).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    first = loss(model)
    for _ in range(10):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    assert loss(model) < 0.75 * first


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: vgg(12), "vgg: depth=12; give one of 11, 13, 16, 19"),
        (lambda: vgg(11, width=0), "vgg: width=0; give a positive"),
        (lambda: vgg(11, width=float("nan")), "vgg: width=nan"),
        (lambda: vgg(11, width=float("inf")), "vgg: width=inf"),
        (lambda: vgg(11, width="1"), "vgg: width='1'"),
        (lambda: vgg(11, num_classes=0), "vgg: num_classes=0; give a positive integer"),
        (lambda: vgg(11, in_channels=1.5), "vgg: in_channels=1.5"),
        (lambda: wide_resnet(4, 1), "wide_resnet: depth=4; give 6 b"),
        (lambda: wide_resnet(27, 1), "wide_resnet: depth=27"),
        (lambda: wide_resnet("28", 1), "wide_resnet: depth='28'"),
        (lambda: wide_resnet(10, -1), "wide_resnet: widen=-1"),
        (
            lambda: wide_resnet(10, 1, dropout=1.0),
            r"wide_resnet: dropout=1.0; give a probability in \[0, 1\)",
        ),
        (lambda: wide_resnet(10, 1, in_channels=True), "wide_resnet: in_channels=True"),
        (lambda: resnet(19), "resnet: depth=19; give one of 20, 32, 44, 56, 18, 34, 50"),
        (lambda: resnet(20, width=-1), "resnet: width=-1"),
        (
            lambda: build("resnet-19", num_classes=2, in_channels=3),
            "build: network='resnet-19' is not accepted; give vgg-11, .* resnet-20, .* wrn-DEPTH-WIDEN",
        ),
        (lambda: build("vgg", num_classes=2, in_channels=3), "network='vgg' is not accepted"),
        (lambda: build("wrn-28", num_classes=2, in_channels=3), "network='wrn-28' is not accepted"),
        (lambda: build("wrn-28-0", num_classes=2, in_channels=3), "network='wrn-28-0' is not accepted"),
        (lambda: build("wrn-28-1.0", num_classes=2, in_channels=3), "network='wrn-28-1.0' is not accepted"),
        (lambda: build("wrn-27-1", num_classes=2, in_channels=3), "network='wrn-27-1' is not accepted"),
        (lambda: build("vgg-14", num_classes=2, in_channels=3), "network='vgg-14' is not accepted"),
        (lambda: build("vgg-11", num_classes=2, in_channels=3, dropout=0.3), "takes no dropout; give 0"),
        (lambda: build(None, num_classes=2, in_channels=3), "network=None is not accepted"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_refused_in_one_line(call: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("network", ["vgg-11", "wrn-10-1", "resnet-20"])
def test_multiplications_of_a_layer_are_its_weights_at_each_place_of_its_output(network: str) -> None:
    model, expected = on_meta(network).eval(), {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: Any, _: Any, out: Tensor) -> None:
            places = out.shape[0] * out[0, 0].numel()
            expected[name] = layer.weight.numel() * places

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(note(name))
    counted = multiplications(model, torch.empty(2, 3, 32, 32, device="meta"))
    assert {name: counted[name] for name in expected} == expected
    assert counted[""] == sum(expected.values())


def test_multiplications_of_a_module_hold_those_of_its_children_and_leave_no_gradient() -> None:
    inner = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten())
    model = nn.Sequential(inner, nn.Linear(8 * 16, 5))
    convolution, linear = 3 * 16 * 8 * 2 * 9, 3 * 5 * 128
    counted = multiplications(model, batch(3, 4, 6, 6).requires_grad_())
    assert counted == {"": convolution + linear, "0": convolution, "0.0": convolution, "1": linear}
    assert all(p.grad is None for p in model.parameters())


def test_networks_of_the_gallery_take_their_examples_and_the_generator_draws_them() -> None:
    library = import_torchvision().models
    first, again = (
        gallery(library, names=["inception_v3"], size=32, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    for name, (build_one, example) in first.items():
        if name not in ("VGG-13", "WRN-16-4"):
            assert torch.isfinite(build_one().eval()(example)).all(), name
        assert torch.equal(example, again[name][1]), name
    assert first["inception_v3"][1].shape[-1] == 96 and first["resnet18, GroupNorm"][1].shape[-1] == 32
