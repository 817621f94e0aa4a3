"""The fused step on a CUDA device equals the float64 reference: on a GPU where there is one, else interpreted."""

import copy
import importlib.metadata
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from riembn.geometry import Layout
from riembn.kernels import cpu, cuda
from riembn.optim import PSISGD, SGDG, AdamG, Combined, reference
from riembn.optim.rows import first_use, repeat

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"  # without a GPU conftest.py has Triton interpret its kernels
CHANNEL = Layout()
METHODS = {
    "sgd-g": (SGDG, dict(lr=0.2, momentum=0.9, grad_clip=0.1)),
    "adam-g": (AdamG, dict(lr=0.05, betas=(0.9, 0.99), eps=1e-8, grad_clip=0.1)),
    "psi-sgd": (PSISGD, dict(lr=0.05, momentum=0.9)),
}
ON_SPHERE = ["sgd-g", "adam-g"]
# shapes and layout of the weights of one group
WEIGHTS = {
    "sizes of every kind": ([(5, 7), (3, 64), (2, 130), (1, 1), (0, 3), (1, 1030)], CHANNEL),
    "convolutions": ([(3, 2, 3, 3), (5, 1, 3, 3), (4, 8, 1, 1)], CHANNEL),
    "transposed convolution": ([(4, 6, 3, 3)], Layout(row_dim=1)),
    "its groups": ([(6, 4, 3, 3)], Layout(row_dim=1, conv_groups=2)),
    "its blocks": ([(6, 4, 3, 3)], Layout(row_dim=1, conv_groups=2, channels_per_row=2)),
    "blocks of channels": ([(6, 5)], Layout(channels_per_row=3)),
    "one vector": ([(3, 2, 2)], Layout(channels_per_row=None)),
}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """The kernels take what is on the processor, too, where that is all there is."""
    if not GPU:
        if tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) < (3, 9):
            pytest.skip("the interpreter of a Triton before 3.9 does not go with today's numpy")
        assert cuda._kernels().triton.knobs.runtime.interpret, "TRITON_INTERPRET=1 was not set in time"
        monkeypatch.setattr(cpu, "takes", lambda p, layout: False)
        monkeypatch.setattr(cuda, "takes", lambda p, layout: _could_take(p, layout))
    with np.errstate(
        all="ignore"
    ):  # the interpreter's numpy warns of infinities that a kernel then leaves aside
        yield


def _could_take(p, layout):
    return p.dtype in cuda._TYPES and cuda._fits(p, layout)


TILES = {
    "at once": None,
    "in three blocks": [cuda.Tile(8, 8, 4, 1), cuda.Tile(3 * 512, 512, 1, 1, "_wide")],
    "in pieces": [cuda.Tile(8, 8, 4, 1), cuda.Tile(math.inf, 16, 1, 1, "_long")],
}


@pytest.fixture(params=TILES)
def reads(request, monkeypatch):
    """How rows of more than eight entries are read; the last of three blocks is filled in part or empty."""
    if tiles := TILES[request.param]:
        kernels = {"in pieces": list(cuda.TILES)}.get(request.param, ["manifold_step"])
        monkeypatch.setattr(cuda, "TILES", {**cuda.TILES, **dict.fromkeys(kernels, tiles)})
        monkeypatch.setattr(cuda, "FEW", 0)


def make(shapes, dtype=torch.float32, seed=0, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]
    return [
        torch.nn.Parameter(w.to(memory_format=memory_format) if w.dim() == 4 else w) for w in made
    ], generator


def against_reference(
    method, shapes, layout=CHANNEL, steps=3, tolerance=1e-5, size=0.1, radial=0.0, dtype=torch.float32,
    memory_format=torch.contiguous_format, **changes,
):  # fmt: skip
    """Steps with random gradients of about ``size``, plus ``radial`` times as much along the weight."""
    optimizer_class, options = METHODS[method]
    options = {**options, **changes}
    params, generator = make(shapes, dtype, memory_format=memory_format)
    optimizer = optimizer_class([{"params": params, **layout._asdict()}], **options)
    assert not params or optimizer._step_supports_amp_scaling  # that is, the kernels take all
    expected = [p.detach().double().cpu() for p in params]
    states = [{} for _ in params]
    for t in range(1, steps + 1):
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if radial:
                g += radial * expected[i]
            p.grad = (size * g).to(p)
            expected[i], states[i] = reference.step_rows(
                method, expected[i], p.grad.double().cpu(), states[i], t=t, **layout._asdict(), **options
            )
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
    for p, w, state in zip(params, expected, states, strict=True):
        torch.testing.assert_close(p.detach().double().cpu(), w, rtol=tolerance, atol=tolerance)
        for key, value in state.items() if p.numel() else ():
            found = optimizer.state[p][key]
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.double().cpu(), value, rtol=tolerance, atol=tolerance)
    return params, optimizer


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_layout_equals_reference(method, weights, memory_format):
    shapes, layout = WEIGHTS[weights]
    if memory_format == torch.channels_last and not any(len(shape) == 4 for shape in shapes):
        pytest.skip("the same in every memory format")
    against_reference(method, shapes, layout, steps=2, memory_format=memory_format)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", METHODS)
def test_rows_read_in_any_way_equal_reference(method, weights, reads):
    shapes, layout = WEIGHTS[weights]
    against_reference(method, [s for s in shapes if math.prod(s) < 500], layout, steps=2)


@pytest.mark.parametrize("radial", [0.0, 100.0])
@pytest.mark.parametrize("size", [0.0, 1e-41, 1e-25, 1e18, 1e30])
@pytest.mark.parametrize("method", ON_SPHERE)
def test_extreme_gradients_equal_reference(method, size, radial, reads):
    changes = {"eps": 0.0} if method == "adam-g" and size > 1 else {}
    tolerance = 1e-2 if size == 1e-41 and method == "adam-g" else 1e-4 if radial else 1e-5
    params, _ = against_reference(
        method, [(4, 33)], size=size, radial=radial, steps=2, tolerance=tolerance, **changes
    )
    assert ((params[0].detach().double().norm(dim=1) - 1).abs() < 1e-6).all()


@pytest.mark.parametrize("method", ON_SPHERE)
def test_a_gradient_along_the_weight_leaves_the_step_tangent(method, reads):
    optimizer_class, options = METHODS[method]
    (p,), generator = make([(4, 33)])
    optimizer = optimizer_class([p], **options)
    for _ in range(5):
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE) + 1e4 * p.detach()
        optimizer.step()
        assert ((p.detach().double().norm(dim=1) - 1).abs() < 1e-6).all()
    m = optimizer.state[p]["momentum_buffer" if method == "sgd-g" else "exp_avg"]
    assert ((p.detach() * m).sum(1) / m.norm(dim=1)).abs().max() < 1e-5


@pytest.mark.parametrize("method", ON_SPHERE)
def test_unclipped_equals_reference(method, reads):
    against_reference(method, [(3, 20), (2, 5)], grad_clip=None, size=1.0, lr=0.01)


def test_a_step_against_the_momentum_loses_no_digits(reads):
    # In pieces |momentum m - lr h| comes from dot products, which here cancel.
    p = torch.nn.Parameter(torch.eye(20, device=DEVICE)[:1].clone())
    optimizer = SGDG([p], lr=1.0, momentum=0.5, grad_clip=None)
    p.grad = -torch.eye(20, device=DEVICE)[1:2]
    optimizer.step()  # turns by 1; the momentum is then a unit vector
    m = optimizer.state[p]["momentum_buffer"].clone()
    p.grad = 0.5001 * m
    before = p.detach().double().clone()
    optimizer.step()
    turn = (p.detach().double() - before).norm().item()
    assert turn == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize(
    "angle", [0.0, 1e-30, 1e-3, 1.0, math.pi, 4.0, 2 * math.pi, 7.0, 100.5, 12345.6, 1e6]
)
def test_any_angle_ends_where_it_should(angle):
    g = torch.tensor([[5.0, -angle, 0.0]])
    p = torch.nn.Parameter(torch.tensor([[1.0, 0.0, 0.0]], device=DEVICE))
    optimizer = SGDG([p], lr=1.0, momentum=0.0, grad_clip=None)
    p.grad = g.to(DEVICE)
    optimizer.step()
    turn = float(g[0, 1].abs())
    expected = torch.tensor([[math.cos(turn), math.sin(turn), 0.0]])
    torch.testing.assert_close(p.detach().cpu(), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_weights_equal_reference(method, dtype):
    against_reference(method, [(3, 16), (2, 9), (2, 64)], steps=2, tolerance=2e-2, dtype=dtype)


@pytest.mark.parametrize("exponent", [9, 8, -7, -8])
def test_psi_sgd_rescues_float16_before_it_ends(exponent, reads):
    row = torch.linspace(-0.9, 0.7, 33).mul(2.0**exponent).half()
    p = torch.nn.Parameter(row[None].clone().to(DEVICE))
    p.grad = torch.zeros_like(p)
    PSISGD([p], lr=0.1).step()
    scale = 1 if -8 < exponent <= 8 else 2.0**-exponent
    assert torch.equal(p.detach().cpu()[0], (row.float() * scale).half())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gradients_of_another_type_than_their_weight(dtype):
    params, generator = make([(3, 16), (2, 9)])
    params = [torch.nn.functional.normalize(p.detach(), dim=1) for p in params]
    grads = [torch.randn(p.shape, generator=generator).to(DEVICE, dtype) for p in params]
    momenta = [torch.zeros_like(p) for p in params]
    options = METHODS["sgd-g"][1]
    expected = [
        reference.step_rows("sgd-g", p.cpu(), g.cpu(), {}, **options)
        for p, g in zip(params, grads, strict=True)
    ]
    cuda.sgd_g([params, grads, momenta], CHANNEL, **options)
    for p, m, (w, state) in zip(params, momenta, expected, strict=True):
        torch.testing.assert_close(p.double().cpu(), w, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(m.double().cpu(), state["momentum_buffer"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ON_SPHERE)
def test_regularizer_equals_reference(method):
    shapes = [(4, 6), (4, 6), (6, 4), (2, 3, 2, 2)]
    optimizer_class, options = METHODS[method]
    params, generator = make(shapes)
    optimizer = optimizer_class(params, alpha=0.3, **options)
    expected = [p.detach().double().cpu() for p in params]
    for i, p in enumerate(params):
        p.grad = 0.1 * torch.randn(p.shape, generator=generator).to(DEVICE)
        expected[i], _ = reference.step_rows(
            method, expected[i], p.grad.double().cpu(), {}, alpha=0.3, **options
        )
    optimizer.grad_scale = torch.tensor(4.0, device=DEVICE)
    for p in params:
        p.grad *= 4
    optimizer.step()
    for p, w in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().double().cpu(), w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_maximize_is_descent_along_the_negative_gradient(method):
    optimizer_class, options = METHODS[method]
    (up, down), generator = make([(4, 10), (4, 10)])
    with torch.no_grad():
        down.copy_(up)
    optimizers = optimizer_class([up], maximize=True, **options), optimizer_class([down], **options)
    for _ in range(3):
        up.grad = 0.1 * torch.randn(4, 10, generator=generator).to(DEVICE)
        down.grad = -up.grad
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(up, down, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_learning_rate_on_the_device(method):
    optimizer_class, options = METHODS[method]
    results = []
    for lr in (options["lr"], torch.tensor(options["lr"], device=DEVICE)):
        (p,), generator = make([(4, 10)])
        optimizer = optimizer_class([p], **{**options, "lr": lr})
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
        optimizer.step()
        results.append(p.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_where_a_gradient_overflowed(method, reads):
    optimizer_class, options = METHODS[method]
    (p,), generator = make([(3, 20)])
    optimizer = optimizer_class([p], **options)
    for step in range(3):
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
        if step != 1:
            p.grad[1, 2] = math.nan
        before = p.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
        optimizer.found_inf = torch.tensor(float(step != 1), device=DEVICE)
        optimizer.grad_scale = torch.tensor(8.0, device=DEVICE)
        optimizer.step()
        assert torch.equal(p, before[0]) == (step != 1)
        for key, value in before[1].get(0, {}).items():
            assert torch.equal(value, optimizer.state[p][key]) == (step != 1)
    if method == "adam-g":
        assert optimizer.state[p]["step"].item() == 1


@pytest.mark.parametrize("method", ON_SPHERE)
def test_a_row_that_is_set_to_zero_stays_so_and_leaves_the_others_alone(method, reads):
    optimizer_class, options = METHODS[method]
    (p,), generator = make([(3, 20)])
    q = torch.nn.Parameter(p.detach().clone())
    a, b = optimizer_class([p], **options), optimizer_class([q], **options)
    for step in range(3):
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
        q.grad = p.grad.clone()
        a.step()
        b.step()
        if step == 0:
            with torch.no_grad():
                p[1] = 0
    moment = "exp_avg" if method == "adam-g" else "momentum_buffer"
    assert not p[1].any() and not a.state[p][moment][1].any()
    assert torch.equal(p[::2], q[::2]) and torch.equal(a.state[p][moment][::2], b.state[q][moment][::2])
    assert all(t.isfinite().all() for t in a.state[p].values())


@pytest.fixture
def first_time(monkeypatch):
    """As if no kernel had run on the device yet."""
    monkeypatch.setattr(cuda, "refused", {})
    monkeypatch.setattr(first_use, "_agreed", set())


def stepped(method, **path):
    optimizer_class, options = METHODS[method]
    (p,), generator = make([(4, 10)])
    optimizer = optimizer_class([p], **options, **path)
    p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
    optimizer.step()
    return p.detach()


@pytest.mark.parametrize("method", METHODS)
def test_kernels_that_are_right_are_asked_once(method, first_time, monkeypatch):
    asked = []
    difference = first_use._difference
    monkeypatch.setattr(first_use, "_difference", lambda *_: asked.append(1) or difference(*_))
    told = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: told.append(optimizer))
    stepped(method)
    stepped(method)
    handle.remove()
    assert len(asked) == 1 and len(told) == 2 and not cuda.refused


@pytest.mark.parametrize("method", METHODS)
def test_every_kernel_is_tried_at_the_first_use(method, first_time, monkeypatch):
    tried = []
    launch = cuda._first_launch

    def noted(name, batch, lines, place, *given, **flags):
        tried.append((batch.tile.kernel, batch.kind.dense))
        return launch(name, batch, lines, place, *given, **flags)

    monkeypatch.setattr(cuda, "_first_launch", noted)
    cuda._plans.clear()
    assert first_use.agrees(METHODS[method][0], torch.device(DEVICE))
    three = [("_wide", True)] if method in ON_SPHERE else []
    assert {*tried} == {("", True), ("", False), ("_long", True), *three}


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # the interpreter's numpy
@pytest.mark.parametrize("fault", ["a wrong step", "no number", "no kernel"])
@pytest.mark.parametrize("method", METHODS)
def test_kernels_that_are_wrong_are_told_of_once_and_left(method, fault, first_time, monkeypatch):
    name = method.replace("-", "_")
    right = getattr(cuda, name)

    def wrong(columns, *rest, **options):
        if fault == "no kernel":
            raise RuntimeError("ptxas died\nof this and that")
        right(columns, *rest, **options)
        columns[0][-1].mul_(1.001 if fault == "a wrong step" else math.nan)

    monkeypatch.setattr(cuda, name, wrong)
    why = {"a wrong step": "weights 0.00. apart", "no number": "weights nan apart", "no kernel": "RuntimeError: ptxas"}
    expected = stepped(method, foreach=True)
    with pytest.warns(UserWarning, match=rf"does not do what lists of tensors do \({why[fault]}.*\); lists are used"):
        assert torch.equal(stepped(method), expected)
    assert torch.equal(stepped(method), expected)  # a second warning would be an error
    assert len(cuda.refused) == 1


@pytest.mark.parametrize("rest_fused", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_gradient_scaler_changes_nothing_but_the_range(method, rest_fused):
    optimizer_class, options = METHODS[method]
    results = []
    for scaled in (False, True):
        (p, q), generator = make([(3, 20), (4, 5)])
        rest = torch.optim.SGD([q], lr=0.1, momentum=0.9, fused=rest_fused)
        optimizer = Combined(optimizer_class([p], **options), rest)
        scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10, growth_interval=1, enabled=scaled)
        assert optimizer._step_supports_amp_scaling == rest_fused
        for step in range(4):
            optimizer.zero_grad()
            direction = torch.randn(3, 20, generator=generator).to(DEVICE)
            loss = (p * direction).sum() + q.sum()
            if step == 2:
                if not scaled:
                    continue
                loss = loss * math.inf
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert not hasattr(optimizer.parts[0], "found_inf")
        assert not scaled or scaler.get_scale() == 2.0**12
        results.append([p, q, *(s for state in optimizer.state.values() for s in state.values())])
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_state_moves_to_and_from_the_other_paths(method):
    optimizer_class, options = METHODS[method]
    (p,), generator = make([(4, 10)])
    (q,), _ = make([(4, 10)])
    fused, lists = optimizer_class([p], **options), optimizer_class([q], foreach=True, **options)
    for step in range(6):
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
        q.grad = p.grad.clone()
        for optimizer in (fused, lists):
            optimizer.step()
        if step in (1, 3):
            a, b = copy.deepcopy(fused.state_dict()), copy.deepcopy(lists.state_dict())
            for saved, group in ((b, fused.param_groups[0]), (a, lists.param_groups[0])):
                saved["param_groups"][0]["foreach"] = group["foreach"]
            fused.load_state_dict(b)
            lists.load_state_dict(a)
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_momentum_in_another_order_than_the_weight_is_kept():
    shape = (3, 2, 3, 3)
    (p,), generator = make([shape], memory_format=torch.channels_last)
    (q,), _ = make([shape])
    a, b = SGDG([p]), SGDG([q])
    for _ in range(2):
        g = torch.randn(shape, generator=generator).to(DEVICE)
        p.grad, q.grad = g, g.clone()
        for optimizer in (a, b):
            optimizer.step()
        state = a.state[p]
        state["momentum_buffer"] = state["momentum_buffer"].contiguous()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_new_addresses_are_found():
    (p,), generator = make([(4, 10)])
    (q,), _ = make([(4, 10)])
    a, b = SGDG([p]), SGDG([q], foreach=True)
    kept = []
    for _ in range(3):
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
        q.grad = p.grad.clone()
        kept.append(p.grad)
        p.data = p.data.clone()
        for optimizer in (a, b):
            optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_a_capture_finds_its_plan_made_and_leaves_no_addresses_behind(monkeypatch):
    # Tables that a capture makes are filled when the graph runs: a step outside must not read them before.
    (p,), generator = make([(4, 10)])
    optimizer = SGDG([p])
    p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
    monkeypatch.setattr(cuda, "_plans", {})
    with monkeypatch.context() as capture:
        capture.setattr(cuda, "capturing", lambda device: True)
        with pytest.raises(RuntimeError, match="inside a CUDA graph capture; take one or more steps"):
            optimizer.step()
    optimizer.step()
    (plan,) = cuda._plans.values()
    kept = p.grad
    p.grad = kept.clone()
    with monkeypatch.context() as capture:
        capture.setattr(cuda, "capturing", lambda device: True)
        capture.setattr(cuda, "_to_device", lambda table, device: table.to(device))
        optimizer.step()
    assert len(plan.addresses) == 1
    optimizer.step()
    assert len(plan.addresses) == 2


def _steps_of(optimizer, script, remembers):
    """Take the steps of a script, each after what may have changed; returns how many were taken like the last one."""
    held = 0
    for change in script:
        change(optimizer)
        if not remembers:
            optimizer._last = None
        group = optimizer.param_groups[0]
        last = (optimizer._last or {}).get(0)
        unchanged = repeat.same(optimizer._entries or [], [*optimizer.state.values()])
        held += unchanged and last is not None and last.again(group) is not None
        optimizer.step()
    return held


@pytest.mark.parametrize("method", METHODS)
def test_a_step_like_the_last_one_is_that_step_whatever_has_changed(method):
    generator = torch.Generator().manual_seed(3)
    optimizer_class, options = METHODS[method]

    def params_of(optimizer):
        return optimizer.param_groups[0]["params"]

    def in_place(optimizer):
        chance = torch.Generator().manual_seed(len(optimizer.state))
        for p in params_of(optimizer):
            p.grad.copy_(0.1 * torch.randn(p.shape, generator=chance))

    def elsewhere(optimizer):
        for p in params_of(optimizer):
            p.grad = (2 * p.grad).resolve_neg().contiguous()

    def other_order(optimizer):
        p = params_of(optimizer)[0]
        p.grad = p.grad.t().contiguous().t()

    def other_weights(optimizer):
        p = params_of(optimizer)[1]
        p.data = p.data.flip(1).contiguous()

    def fewer_rows(optimizer):  # at the same address
        p = params_of(optimizer)[0]
        grad = p.grad[:3].contiguous()
        p.grad = None
        p.data = p.data[:3]
        p.grad = grad
        optimizer.state.pop(p)

    def setting(**changes):
        return lambda optimizer: optimizer.param_groups[0].update(changes)

    def state_anew(optimizer):
        optimizer.state.clear()

    def loaded(optimizer):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    def momentum_moved(optimizer):
        state = optimizer.state[params_of(optimizer)[1]]
        for key, value in state.items():
            state[key] = value.clone()

    def without_gradient(optimizer):
        params_of(optimizer)[0].grad = None

    def with_gradient(optimizer):
        p = params_of(optimizer)[0]
        p.grad = torch.full_like(p, 0.1)

    def scaled(optimizer):
        optimizer.grad_scale = torch.tensor(2.0, device=DEVICE)
        optimizer.found_inf = torch.tensor(0.0, device=DEVICE)

    def skipped(optimizer):
        optimizer.found_inf = torch.tensor(1.0, device=DEVICE)

    def unscaled(optimizer):
        del optimizer.grad_scale, optimizer.found_inf

    def negative(optimizer):
        p = params_of(optimizer)[1]
        p.grad = torch._neg_view(p.grad)

    script = [
        in_place, in_place, elsewhere, in_place, other_order, in_place, elsewhere, other_weights, in_place,
        momentum_moved, in_place, setting(lr=torch.tensor(0.03, device=DEVICE)), in_place,
        setting(lr=0.02, maximize=True), in_place, negative, in_place, in_place, elsewhere,
        setting(maximize=False), in_place,
        scaled, in_place, skipped, in_place, unscaled, without_gradient, without_gradient, with_gradient, in_place,
        state_anew, in_place, loaded, in_place, fewer_rows, in_place,
    ]  # fmt: skip
    if method in ON_SPHERE:
        script += [setting(grad_clip=None), in_place, setting(alpha=0.1), in_place, setting(alpha=0.0), in_place]
    if method == "psi-sgd":
        script += [setting(momentum=0.0), in_place, setting(momentum=0.5), in_place]
    script += [setting(foreach=True), in_place, setting(foreach=None), in_place]
    starts = [torch.randn(shape, generator=generator).to(DEVICE) for shape in ((5, 8), (3, 4, 3, 3), (2, 70))]
    ends = []
    for remembers in (True, False):
        params = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = optimizer_class(params, **options)
        for p in params:
            p.grad = torch.ones_like(p)
        held = _steps_of(optimizer, script, remembers)
        assert held >= 12 if remembers else held == 0
        ends.append((params, optimizer))
    (params, optimizer), (twins, other) = ends
    for p, q in zip(params, twins, strict=True):
        assert torch.equal(p, q)
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other.state[q][key]), key
    assert copy.deepcopy(optimizer)._last is None


@pytest.mark.parametrize("method", METHODS)
def test_gradients_elsewhere_change_addresses_alone(method, monkeypatch):
    optimizer_class, options = METHODS[method]
    (params, generator), (twins, _) = (make([(3, 20), (4, 3, 3, 3), (2, 70)]) for _ in range(2))
    optimizer, other = optimizer_class(params, **options), optimizer_class(twins, foreach=True, **options)
    kept = []  # so that no address comes twice
    for step in range(4):
        for p, q in zip(params, twins, strict=True):
            kept.append(0.1 * torch.randn(p.shape, generator=generator).to(DEVICE))
            p.grad, q.grad = kept[-1], kept[-1].clone()
        optimizer.step()
        other.step()
        if step == 0:
            monkeypatch.setattr(cuda, "_plan", None)  # never asked again
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_launches_are_few():
    shapes = [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3)]
    shapes += [(256, 256, 3, 3), (512, 256, 3, 3), *[(512, 512, 3, 3)] * 3, (512, 512)]
    params = [torch.empty(shape) for shape in shapes]
    batches = cuda._plan(params[0].device, "manifold_step", [params, params, params], CHANNEL).batches
    assert len(batches) == 3  # those of 27, 576 and 1,152 entries, few in all; of 2,304; of 4,608
    assert [batch.kind.unit for batch in batches] == [4, 4, 1]
    assert sorted(i for batch in batches for i in batch.members) == list(range(len(shapes)))
    for batch in batches:
        assert batch.programs.numel() == sum(-(-shapes[i][0] // batch.tile.rows) for i in batch.members)
    # many short rows take a program each in a tile for long ones
    params = [torch.empty(shape) for shape in ((100_000, 9), (64, 9000))]
    assert len(cuda._plan(params[0].device, "manifold_step", [params, params, params], CHANNEL).batches) == 2


@pytest.mark.parametrize(
    "p, layout",
    [
        (torch.randn(4, 1).expand(4, 3), CHANNEL),  # entries that share an address
        (torch.randn(8, 4, 6, 3)[:, ::2, ::2, ::2], CHANNEL),  # three strides along a row
        (torch.randn(0, 4), CHANNEL),
        (torch.empty(1, cuda.LONGEST + 1), CHANNEL),
    ],
)
def test_what_the_kernels_cannot_take_is_left(p, layout):
    assert not cuda._fits(p, layout)


def test_gaps_between_rows_and_entries_are_stepped_over():
    whole = torch.randn(4, 6, 6, device=DEVICE)
    p = torch.nn.Parameter(whole[:, :, ::2])
    kept = whole[:, :, 1::2].clone()
    q = torch.nn.Parameter(p.detach().clone())
    a, b = SGDG([p]), SGDG([q], foreach=True)
    p.grad = torch.randn(4, 6, 3, device=DEVICE)
    q.grad = p.grad.clone()
    for optimizer in (a, b):
        optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert torch.equal(whole[:, :, 1::2], kept)


def test_every_kernel_compiles_for_two_gpus_and_spills_no_register():
    # without one: Triton brings the assembler along
    script = textwrap.dedent(
        """
        import itertools, os, re, subprocess, sys
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from riembn.kernels import cuda, rows_triton

        options = dict(
            W=rows_triton.tl.float32, G=rows_triton.tl.float32, CLIPPED=False, MOMENTUM=True, LR_TENSOR=True
        )
        spread, psi = cuda.TILES["manifold_step"], cuda.TILES["psi_step"]
        dense = dict(DENSE=True, UNIT=4)
        cases = [("manifold_step", tile, dict(ADAM=True, **dense)) for tile in spread]
        cases += [("manifold_step", tile, dict(ADAM=False, **dense)) for tile in spread[-3:]]
        cases += [("psi_step", tile, dense) for tile in psi[-2:]]
        loose = [tile._replace(warps=2 * tile.warps) for tile in spread[3:5]]
        cases += [("manifold_step", tile, dict(ADAM=True, DENSE=False, UNIT=1)) for tile in loose]
        tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
        for architecture, (name, tile, flags) in itertools.product((80, 90), cases):
            kernel, warps = getattr(rows_triton, name + tile.kernel), tile.warps
            values = {**options, **flags, "BLOCK_ROWS": tile.rows, "BLOCK_COLUMNS": tile.columns}
            values["PLACE"] = 2 if architecture >= 90 else 0
            types = {"programs": "*i32", "sizes": "*i64", "addresses": "*i64", "lr": "*fp32"}
            types |= {"grad_scale": "*fp32", "found_inf": "*fp32", **dict.fromkeys(values, "constexpr")}
            source = ASTSource(
                fn=kernel,
                signature={n: types.get(n, "fp32") for n in kernel.arg_names},
                constexprs={(i,): values[n] for i, n in enumerate(kernel.arg_names) if n in values},
            )
            chosen = {"num_warps": warps, "enable_fp_fusion": True, "launch_pdl": values["PLACE"] > 1}
            made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=chosen)
            assert ("ld.global.v4" in made.asm["ptx"]) == (flags["UNIT"] > 1), name
            assert made.asm["ptx"].count("griddepcontrol") == values["PLACE"], name
            with open(sys.argv[1], "wb") as file:
                file.write(made.asm["cubin"])
            said = subprocess.run([tool, "-res-usage", sys.argv[1]], capture_output=True, text=True).stdout
            used = re.search(r"REG:(\\d+) STACK:(\\d+)", said)
            assert used and int(used[2]) == 0, (architecture, name, said)  # bytes of registers that did not fit
            assert int(used[1]) * warps * 32 <= 65536, (architecture, name, said)
            print(architecture, name)
        """
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TRITON_CACHE_DIR": folder, "TRITON_INTERPRET": "0"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", script, str(Path(folder, "kernel.cubin"))],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert len(done.stdout.splitlines()) == 32, done.stderr[-2000:]


def gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not GPU, reason="no CUDA device")(test))


def a_network(method, **changes):
    optimizer_class, options = METHODS[method]
    params, generator = make([(40, 3, 3, 3), (70, 40, 3, 3), (9, 5000), (3, 20000), (7, 70)])
    return params, optimizer_class(params, **{**options, **changes}), generator


@gpu
@pytest.mark.parametrize("few", [0, cuda.FEW])
@pytest.mark.parametrize("method", METHODS)
def test_real_sizes_equal_reference(method, few, monkeypatch):
    monkeypatch.setattr(cuda, "FEW", few)  # a launch for each size of row, or one for all of these
    cuda._plans.clear()
    against_reference(method, [(40, 3, 3, 3), (70, 40, 3, 3), (9, 5000), (3, 20000), (7, 70)], steps=5)


@gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # is a prototype, says torch
@pytest.mark.parametrize("method", METHODS)
def test_a_step_never_waits_for_the_device(method, monkeypatch):
    monkeypatch.setattr(cuda, "FEW", 0)
    cuda._plans.clear()
    params, optimizer, generator = a_network(method, lr=torch.tensor(0.1, device=DEVICE))
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
    optimizer.grad_scale = torch.tensor(2.0, device=DEVICE)
    optimizer.found_inf = torch.tensor(0.0, device=DEVICE)
    optimizer.step()  # makes the state and compiles the kernels
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(2):
            optimizer.step()
        for p in params:
            p.grad = p.grad.clone()  # at another address
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
@pytest.mark.parametrize("fresh_grads", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_captured_step_replays_as_the_step(method, fresh_grads, monkeypatch):
    monkeypatch.setattr(cuda, "FEW", 0)  # launches that overlap
    cuda._plans.clear()
    params, optimizer, generator = a_network(method, lr=torch.tensor(0.1, device=DEVICE))
    twins, other, _ = a_network(method, lr=0.1)
    source = [torch.zeros_like(p) for p in params]
    for p, s in zip(params, source, strict=True):
        p.grad = s if not fresh_grads else s.clone()

    def draw():
        for s, q in zip(source, twins, strict=True):
            q.grad = torch.randn(s.shape, generator=generator).to(DEVICE)
            s.copy_(q.grad)
            if method == "psi-sgd":
                s.mul_(1e-2)
                q.grad.mul_(1e-2)

    def step():
        if fresh_grads:  # as a backward pass inside the graph would make them
            for p, s in zip(params, source, strict=True):
                p.grad = s.clone()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            draw()
            step()
            other.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for i in range(4):
        if i == 2:
            optimizer.param_groups[0]["lr"].fill_(0.02)
            other.param_groups[0]["lr"] = 0.02
        draw()
        graph.replay()
        other.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for key, value in optimizer.state[p].items():
            torch.testing.assert_close(value, other.state[q][key], rtol=1e-5, atol=1e-6)


@gpu
def test_a_first_step_inside_a_capture_is_refused():
    params, optimizer, _ = a_network("sgd-g")
    params = [torch.nn.Parameter(torch.randn(11, 13, device=DEVICE))]
    optimizer = SGDG(params)
    params[0].grad = torch.zeros_like(params[0])
    optimizer.state[params[0]]["momentum_buffer"] = torch.zeros_like(params[0])
    with pytest.raises(RuntimeError, match="inside a CUDA graph capture; take one or more steps"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            params[0].grad.zero_()  # an empty graph warns
            optimizer.step()


@gpu
def test_a_compiled_launch_takes_arguments_of_its_kinds_alone():
    """The same weights with a number and a tensor as rate, with and without a scaler, tensors that start on 4 bytes."""
    for start in (0, 1):
        memory = torch.randn(3, 40 * 64 + 1, device=DEVICE)[:, start : start + 40 * 64]
        p, g = torch.nn.Parameter(memory[0].view(40, 64)), memory[1].view(40, 64)
        q = torch.nn.Parameter(p.detach().clone())
        a, b = SGDG([p]), SGDG([q], foreach=True)
        lr = torch.tensor([0.0, 0.1], device=DEVICE)
        for rate in (0.2, lr[1], 0.1, lr[1].clone(), 0.05):
            for optimizer, weight in ((a, p), (b, q)):
                optimizer.param_groups[0]["lr"] = rate
                weight.grad = g if weight is p else g.clone()
                optimizer.step()
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@gpu
@pytest.mark.parametrize("method", METHODS)
def test_what_follows_a_step_finds_all_its_launches_done(method):
    """They overlap one another; gradients that are overwritten at once and weights that are read at once do not."""
    optimizer_class, options = METHODS[method]
    shapes = [(4000, 5000), (3000, 3000), (30_000, 1500), (100_000, 60)]
    ends = []
    for foreach in (None, True):
        params, generator = make(shapes)
        optimizer = optimizer_class(params, foreach=foreach, **{**options, "lr": 1e-2})
        gradients = [torch.randn(p.shape, generator=generator).to(DEVICE) for p in params]
        seen = []
        for p in params:
            p.grad = torch.empty_like(p)
        for step in range(5):
            for p, g in zip(params, gradients, strict=True):
                p.grad.copy_(g).mul_(step + 1)
            optimizer.step()
            seen.append([p.detach().clone() for p in params])
            for p in params:
                p.grad.fill_(math.nan)
        ends.append(seen)
    assert len([*cuda._plans.values()][-1].batches) > 1
    for ours, theirs in zip(*ends, strict=True):
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@gpu
def test_a_gradient_that_has_left_the_device_is_refused_at_any_step():
    params, optimizer, generator = a_network("sgd-g")
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
    for _ in range(3):
        optimizer.step()
    params[0].grad.data = params[0].grad.data.cpu()
    with pytest.raises(RuntimeError, match="gradient"):
        optimizer.step()


@gpu
def test_rows_stay_on_the_sphere():
    p = torch.nn.Parameter(torch.randn(16, 40, device=DEVICE))
    optimizer = SGDG([p], lr=1e-3)
    p.grad = torch.randn(16, 40, device=DEVICE) + 100 * p.detach()
    for _ in range(20_000):
        optimizer.step()
    assert (p.detach().double().norm(dim=1) - 1).abs().max() < 1e-6
