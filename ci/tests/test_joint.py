"""A weight and its bias are one row where split says so: on the sphere, in the step, in state and in probes."""

import copy
import io

import pytest
import torch
from torch import nn

import riembn
from riembn.geometry import Layout
from riembn.optim import PSISGD, SGDG, AdamG, reference
from riembn.training.motion import Motion

METHODS = {
    "sgd-g": (SGDG, dict(lr=0.2, momentum=0.9, grad_clip=0.1)),
    "adam-g": (AdamG, dict(lr=0.05, betas=(0.9, 0.99), eps=1e-8, grad_clip=0.1)),
    "psi-sgd": (PSISGD, dict(lr=0.05, momentum=0.9)),
}
# shape of the weight, its layout, and its output channels of one row as slices of weight and bias
PAIRS = [
    ((5, 7), Layout(row_dim=0, conv_groups=1, channels_per_row=1), 5),
    ((4, 3, 3, 3), Layout(row_dim=0, conv_groups=1, channels_per_row=2), 4),
    ((6, 4, 3, 3), Layout(row_dim=1, conv_groups=2, channels_per_row=1), 8),
    ((3, 2, 2), Layout(row_dim=0, conv_groups=1, channels_per_row=None), 3),
    ((2, 1), Layout(row_dim=0, conv_groups=1, channels_per_row=1), 2),
]
MATRIX = Layout()
FOREACH = [True, False, None]


def channels_first(weight, layout):
    """Output channels along dimension 0, each flat: by hand, for the layouts above."""
    if layout.row_dim == 1:
        return weight.unflatten(0, (layout.conv_groups, -1)).movedim(2, 1).flatten(0, 1).flatten(1)
    return weight.flatten(1)


def by_hand(weight, bias, layout):
    flat, size = channels_first(weight, layout), layout.channels_per_row or len(bias)
    vectors = [
        torch.cat([flat[i : i + size].flatten(), bias[i : i + size]]) for i in range(0, len(bias), size)
    ]
    return torch.stack(vectors)


def pairs(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))

    return [(draw(*shape), draw(channels)) for shape, _, channels in PAIRS]


def groups(found):
    return [
        {"params": list(pair), "joint": True, **layout._asdict()}
        for pair, (_, layout, _) in zip(found, PAIRS, strict=True)
    ]


def set_grads(found, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in (p for pair in found for p in pair):
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def mlp(*, whole=False, seed=0):
    torch.manual_seed(seed)
    norms = [nn.LayerNorm(8), nn.LayerNorm(8)] if whole else [nn.BatchNorm1d(8), nn.BatchNorm1d(8)]
    return nn.Sequential(
        *(nn.Linear(6, 8), nn.ReLU(), norms[0], nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)),
        *(nn.Linear(8, 8), nn.ReLU(), norms[1], nn.Linear(8, 3)),
    )


def images(seed=0):
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape, layout, channels", PAIRS)
def test_joint_rows_are_those_by_hand_and_come_back(shape, layout, channels):
    weight, bias = torch.randn(shape), torch.randn(channels)
    rows = layout.rows(weight, bias)
    assert torch.equal(rows, by_hand(weight, bias, layout))
    assert len(rows) == layout.row_count(weight)
    again = layout.tensors(rows, weight, bias)
    assert torch.equal(again[0], weight) and torch.equal(again[1], bias)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("method", METHODS)
def test_step_equals_reference_on_joint_rows(method, foreach, dtype, tolerance):
    optimizer_class, options = METHODS[method]
    extra = {} if method == "psi-sgd" else {"alpha": 0.3}
    found = pairs(dtype)
    optimizer = optimizer_class(groups(found), foreach=foreach, **options, **extra)
    expected = [by_hand(w, b, layout).double() for (w, b), (_, layout, _) in zip(found, PAIRS, strict=True)]
    states = [{} for _ in found]
    for t in range(1, 4):
        set_grads(found, seed=t)
        if method == "psi-sgd":
            for p in (p for pair in found for p in pair):
                p.grad *= 0.01
        for i, ((w, b), (_, layout, _)) in enumerate(zip(found, PAIRS, strict=True)):
            expected[i], states[i] = reference.step_rows(
                method, expected[i], by_hand(w.grad, b.grad, layout), states[i], t=t, **options, **extra
            )
        kept = [p.grad.clone() for pair in found for p in pair]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip((p for q in found for p in q), kept, strict=True))
    close = dict(rtol=tolerance, atol=tolerance)
    for (w, b), rows, state, (_, layout, _) in zip(found, expected, states, PAIRS, strict=True):
        torch.testing.assert_close(by_hand(w.detach(), b.detach(), layout).double(), rows, **close)
        first = "exp_avg" if method == "adam-g" else "momentum_buffer"
        own = [optimizer.state[p][first] for p in (w, b)]
        assert [s.shape for s in own] == [w.shape, b.shape] and set(optimizer.state[b]) == {first}
        assert all(s.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype) for s in own)
        torch.testing.assert_close(by_hand(*own, layout).double(), state[first], **close)
        if method == "adam-g":
            torch.testing.assert_close(
                optimizer.state[w]["exp_avg_sq"].double(), state["exp_avg_sq"], **close
            )
    assert set(optimizer.state) == {p for pair in found for p in pair}


@pytest.mark.parametrize("whole", [False, True])
def test_split_finds_pairs_and_their_gradient_has_no_radial_part(whole):
    model = mlp(whole=whole)
    found = riembn.split(model, images())
    names = [n for n, _ in found.invariant]
    assert names == ["0.weight", "0.bias", "3.weight", "5.weight", "5.bias"]
    assert len(found.invariant) + len(found.rest) == len(list(model.parameters()))
    alone, joint = sorted(found.groups(), key=lambda g: "joint" in g)
    held = (model[0].weight, model[0].bias, model[5].weight, model[5].bias)
    assert [id(p) for p in joint["params"]] == [id(p) for p in held] and len(alone["params"]) == 1
    twin = copy.deepcopy(model).double()
    for module in twin.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-20
    layout = Layout.of(joint)

    def loss():
        return twin(images().double()).log_softmax(1)[:, 0].sum()

    before = loss()
    before.backward()
    for layer in (twin[0], twin[5]):
        rows = layout.rows(layer.weight.detach(), layer.bias.detach())
        grads = layout.rows(layer.weight.grad, layer.bias.grad)
        assert float(((rows * grads).sum(1) / (rows.norm(dim=1) * grads.norm(dim=1))).abs().max()) < 1e-12
        assert (
            float((layer.weight.detach() * layer.weight.grad).sum().abs()) > 1e-6
        )  # the weight alone is not enough
        factors = torch.linspace(0.5, 9.0, len(rows), dtype=torch.float64)[:, None]
        for p, moved in zip(
            layer.parameters(),
            layout.tensors(rows * factors, layer.weight, layer.bias),
            strict=True,
        ):
            p.data.copy_(moved)
    torch.testing.assert_close(loss(), before, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_training_keeps_joint_rows_on_the_sphere_and_learns(method):
    model, x = mlp(), images()
    y = (x[:, 0] > 0).long()
    start = copy.deepcopy(model)
    optimizer = riembn.build_optimizer(model, x, method)
    if method == "sgd-g":  # construction keeps the function, up to the normalizations' eps
        torch.testing.assert_close(model(x), start(x), rtol=1e-2, atol=1e-2)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for layer in (model[0], model[5]) if method != "psi-sgd" else ():
        lengths = Layout().rows(layer.weight.detach(), layer.bias.detach()).norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(8))
        assert float(layer.bias.detach().abs().max()) > 1e-3
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_copied_optimizers_go_on_alike(method):
    x = images()

    def steps(model, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    model = mlp()
    optimizer = riembn.build_optimizer(model, x, method)
    steps(model, optimizer, 3)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    twin, twins = copy.deepcopy([model, optimizer])
    file.seek(0)
    weights, state = torch.load(file)
    loaded = mlp(seed=1)
    loaders = riembn.build_optimizer(loaded, x, method)
    loaded.load_state_dict(weights)
    loaders.load_state_dict(state)
    expected = steps(model, optimizer, 3)
    for other in (steps(twin, twins, 3), steps(loaded, loaders, 3)):
        assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_distributed_checkpoints_hold_pairs(method):
    from torch.distributed.checkpoint import state_dict as dcp

    def built(seed):
        model = mlp(seed=seed)
        return model, riembn.build_optimizer(model, images(), method)

    (model, optimizer), (other, others) = built(0), built(1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
    dcp.set_optimizer_state_dict(other, others, dcp.get_optimizer_state_dict(model, optimizer))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert optimizer.state[p].keys() == others.state[q].keys()
        assert all(torch.equal(value, others.state[q][key]) for key, value in optimizer.state[p].items())


@pytest.mark.parametrize("method", METHODS)
def test_gradient_scaler_skips_pairs_that_overflow_and_unscales_the_rest(method):
    model, x = mlp(), images()
    twin, scaler = copy.deepcopy(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, scaled = (riembn.build_optimizer(m, x, method) for m in (model, twin))
    for _ in range(2):
        for m, o, factor in ((model, optimizer, lambda y: y), (twin, scaled, scaler.scale)):
            o.zero_grad()
            factor(m(x).square().mean()).backward()
        optimizer.step()
        scaler.step(scaled)
        scaler.update()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    before = copy.deepcopy(list(twin.parameters()))
    for p in twin.parameters():
        p.grad = torch.full_like(p, float("inf"))
    scaler.scale(torch.zeros(()))
    scaler.step(scaled)
    assert all(torch.equal(p, q) for p, q in zip(twin.parameters(), before, strict=True))


def test_half_precision_pairs_keep_float32_state_through_a_file():
    found = pairs(torch.bfloat16)
    optimizer = AdamG(groups(found), **METHODS["adam-g"][1])
    set_grads(found, 1)
    optimizer.step()
    again = AdamG(groups(pairs(torch.bfloat16)), **METHODS["adam-g"][1])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for old, new in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert all(torch.equal(old[key], new[key]) and old[key].dtype == new[key].dtype for key in old)


@pytest.mark.parametrize("optimizer_class", [SGDG, AdamG, PSISGD])
def test_pair_without_gradient_stays_and_a_missing_bias_gradient_is_zero(optimizer_class):
    found = pairs(torch.float64)
    optimizer = optimizer_class(groups(found), lr=0.1)
    before = copy.deepcopy(found)
    set_grads(found, 1)
    found[0][0].grad = found[0][1].grad = None
    found[1][1].grad = None
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(found[0], before[0], strict=True))
    assert not optimizer.state.get(found[0][0])
    before[1][0].grad, before[1][1].grad = found[1][0].grad, torch.zeros_like(before[1][1])
    optimizer_class([{"params": before[1], "joint": True, **PAIRS[1][1]._asdict()}], lr=0.1).step()
    assert all(torch.allclose(a, b, rtol=1e-14) for a, b in zip(found[1], before[1], strict=True))


def test_bad_pairs_are_refused_in_one_line_and_change_nothing():
    weight, bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
    zero = nn.Parameter(torch.cat([torch.zeros(1, 3), torch.randn(3, 3)]))
    zero_bias = nn.Parameter(torch.tensor([0.0, 1.0, 1.0, 1.0]))
    kept = weight.detach().clone()
    cases = [
        ([weight], "a group with joint=True holds 1 parameters"),
        (
            [weight, nn.Parameter(torch.randn(3))],
            r"bias of shape \(3,\) does not belong to a weight of shape \(4, 3\)",
        ),
        ([weight, nn.Parameter(torch.randn(4).double())], "is torch.float32 on cpu, its bias torch.float64"),
        ([bias, bias.detach().clone()], "no stack of weight rows"),
        ([zero, zero_bias], "row 0 of parameter number 0 of its group with its bias, shape .* has norm 0"),
    ]
    for params, message in cases:
        with pytest.raises(ValueError, match=message) as refused:
            SGDG([{"params": params, "joint": True}])
        assert "\n" not in str(refused.value) and torch.equal(weight, kept)
    optimizer = SGDG([{"params": [("weight", weight), ("bias", bias)], "joint": True}])
    unit = weight.detach().clone()
    with pytest.raises(ValueError, match="'zero' with its bias"):
        optimizer.add_param_group({"params": [("zero", zero), ("its", zero_bias)], "joint": True})
    assert len(optimizer.param_groups) == 1 and torch.equal(weight, unit)


def test_zero_weight_with_a_bias_is_a_vector():
    """A row of zeros has a direction if its bias is not zero."""
    weight, bias = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.tensor([2.0, -3.0]))
    SGDG([{"params": [weight, bias], "joint": True}])
    assert bias.tolist() == [1.0, -1.0]


def test_probe_sees_joint_rows():
    model, x = mlp(), images()
    model[0].weight.data *= 3
    found = riembn.split(model, x)
    optimizer = SGDG(found.groups(), lr=0.1)
    probe = Motion(found.groups(), grad_clip=0.1, alpha=0.0)
    model(x).square().sum().backward()
    before = Layout().rows(model[0].weight.detach(), model[0].bias.detach())
    probe.before_step()
    optimizer.step()
    probe.after_step()
    assert probe.state(0.1, unit_free=True)["weight_norm"] == pytest.approx(1, abs=1e-6)
    angle = probe.motion()["angle"]
    after = Layout().rows(model[0].weight.detach(), model[0].bias.detach())
    turned = torch.acos((before * after).sum(1).clamp(-1, 1))
    assert angle is not None and float(turned.max()) < 0.011 and 0 < angle < 0.011


@pytest.mark.parametrize("method", METHODS)
def test_state_follows_a_network_that_becomes_float64(method):
    optimizer_class, options = METHODS[method]
    weight, bias = (torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (4,)))
    optimizer = optimizer_class([{"params": [weight, bias], "joint": True}], **options)
    for dtype in (torch.float32, torch.float64):
        for p in (weight, bias):
            p.data, p.grad = p.data.to(dtype), None
            p.grad = torch.randn_like(p)
        optimizer.step()
        for p in (weight, bias):
            kept = [t for key, t in optimizer.state[p].items() if key != "step"]
            assert kept and all(t.dtype == dtype for t in kept)
