"""What a gradient scaler multiplies and skips: the same steps, on every path, and gradients left as they are."""

import copy
import math

import pytest
import torch

from riembn.optim import PSISGD, SGDG, AdamG, Combined

OPTIMIZERS = [(SGDG, {}), (AdamG, {}), (PSISGD, dict(lr=0.05, momentum=0.9))]
PATHS = [dict(foreach=True), dict(foreach=False), {}]


def weights():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(3, 8), (4, 2, 3, 3)]]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer_class, options", OPTIMIZERS)
def test_the_scale_is_divided_out_and_gradients_kept(optimizer_class, options, path):
    results = []
    for scale in (1.0, 2.0**12):
        params = weights()
        optimizer = optimizer_class(params, **options, **path)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for p in params:
                p.grad = scale * torch.randn(p.shape, generator=generator)
            before = [p.grad.clone() for p in params]
            optimizer.step()
            assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
        results.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("optimizer_class, options", OPTIMIZERS)
def test_an_overflow_skips_the_step(optimizer_class, options, path):
    params = weights()
    optimizer = optimizer_class(params, **options, **path)
    for skipped in (True, False, True):
        for p in params:
            p.grad = torch.full_like(p, math.inf) if skipped else torch.randn(p.shape)
        optimizer.found_inf = torch.tensor(float(skipped))
        before = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict())
        optimizer.step()
        assert all(torch.equal(p, q) == skipped for p, q in zip(params, before[0], strict=True))
        after = optimizer.state_dict()["state"]
        assert (after.keys() == before[1]["state"].keys()) or not skipped
        for i, state in before[1]["state"].items():
            assert all(torch.equal(after[i][key], value) for key, value in state.items()) == skipped


@pytest.mark.parametrize("rest_fused", [False, True])
@pytest.mark.parametrize("optimizer_class, options", OPTIMIZERS)
def test_a_scaler_works_on_both_parts(optimizer_class, options, rest_fused):
    results = []
    for enabled in (False, True):
        p, q = weights()
        rest = torch.optim.SGD([q], lr=0.1, momentum=0.9, fused=rest_fused)
        optimizer = Combined(optimizer_class([p], **options), rest)
        assert not optimizer._step_supports_amp_scaling
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1, enabled=enabled)
        generator = torch.Generator().manual_seed(1)
        for step in range(4):
            optimizer.zero_grad()
            loss = (p * torch.randn(p.shape, generator=generator)).sum() + q.sum()
            if step == 2:  # overflows
                if not enabled:
                    continue
                loss = loss * math.inf
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([p, q, *(s for state in optimizer.state.values() for s in state.values())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert scaler.get_scale() == 2.0**12


def test_joint_rows_are_scaled_and_skipped_as_others():
    results = []
    for scale in (1.0, 64.0):
        weight, bias = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(3))
        optimizer = SGDG([{"params": [weight, bias], "joint": True}])
        weight.grad = scale * torch.arange(12.0).view(3, 4)
        bias.grad = scale * torch.arange(3.0)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
        optimizer.step()
        results.append((weight.detach().clone(), bias.detach().clone()))
        optimizer.found_inf.fill_(1)
        optimizer.step()
        assert torch.equal(weight, results[-1][0]) and torch.equal(bias, results[-1][1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
