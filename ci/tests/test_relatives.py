"""Each relative is what its docstring says: the same as a neighbor where the formulas meet, in float64."""

import copy
import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import riembn
from riembn.geometry import from_rows, sphere, to_rows
from riembn.optim import relatives as rel
from riembn.optim.relatives import family
from riembn.optim.relatives.muon import newton_schulz
from riembn.training.setup import optimizer_of

METHODS = {
    "hyperball-sgd": lambda p: rel.HyperballSGD(p, lr=0.05),
    "adam-h": lambda p: rel.AdamH(p, lr=0.05),
    "rotational-sgd": lambda p: rel.RotationalSGD(p, lr=0.5, weight_decay=0.01),
    "rotational-adamw": lambda p: rel.RotationalAdamW(p, lr=2.0),
    "radial-brake": lambda p: rel.RadialBrakeSGD(p, lr=0.2),
    "nero": lambda p: rel.Nero(p, lr=0.05),
    "oblique-sgd": lambda p: rel.ObliqueSGD(p, lr=0.1),
    "oblique-adam": lambda p: rel.ObliqueAdam(p, lr=0.02),
    "sgdp": lambda p: rel.SGDP(p, lr=0.2, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamp": lambda p: rel.AdamP(p, lr=0.02, weight_decay=0.1),
    "adam-srt": lambda p: rel.AdamSRT(p, lr=0.02, weight_decay=0.01),
    "pbwn": lambda p: rel.PBWN(p, lr=0.1, every=2, tangent=True),
    "lars": lambda p: rel.LARS(p, lr=0.5, trust=0.1, weight_decay=0.01),
    "cayley-sgd": lambda p: rel.CayleySGD(p, lr=0.1),
    "muon": lambda p: rel.Muon(p, lr=0.1),
    "muon-rows": lambda p: rel.MuonRows(p, lr=0.1),
}
UNIT = ("nero", "oblique-sgd", "oblique-adam", "cayley-sgd", "muon-rows")
LENGTH_KEPT = ("hyperball-sgd", "adam-h", "rotational-sgd", "rotational-adamw")
each = pytest.mark.parametrize("name", METHODS)
seeds = st.integers(0, 10_000)


def rows_of(seed: int, rows: int = 3, fan_in: int = 6) -> torch.Tensor:
    return torch.randn(rows, fan_in, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tangent(w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    y = w / w.norm(dim=1, keepdim=True)
    return g - y * (y * g).sum(1, keepdim=True)


def angles(w: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return sphere.distance(w / w.norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True))


def stepped(make, w: torch.Tensor, *grads, **group) -> torch.Tensor:
    """Where ``w`` is after one step a gradient; a gradient may be a function of the weight."""
    p = nn.Parameter(w.clone())
    optimizer = make([{"params": [p], **group}])
    for g in grads:
        p.grad = g(p.detach()) if callable(g) else g.clone()
        optimizer.step()
    return p.detach()


def invariant_gradients(seed: int, count: int, shape=(3, 6)):
    """Gradients of scale-invariant losses, one linear function of the direction a step."""
    return [
        lambda w, i=i: tangent(w, rows_of(seed + i, *shape)) / w.norm(dim=1, keepdim=True) for i in range(count)
    ]


# What all of them do


@each
def test_saved_and_loaded_goes_on_as_if_never_stopped(name):
    grads = [rows_of(i) for i in range(1, 7)]
    p = nn.Parameter(rows_of(0))
    first = METHODS[name]([p])
    for g in grads[:3]:
        p.grad = g
        first.step()
    q = nn.Parameter(p.detach().clone())
    second = METHODS[name]([nn.Parameter(rows_of(99))])
    second.param_groups[0]["params"] = [q]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for g in grads[3:]:
        p.grad, q.grad = g, g.clone()
        first.step()
        second.step()
    assert torch.equal(p, q)
    assert not torch.equal(p.detach(), rows_of(0))


@each
def test_gradient_is_not_written_to(name):
    p = nn.Parameter(rows_of(0))
    optimizer = METHODS[name]([p])
    p.grad = rows_of(1)
    for _ in range(2):
        optimizer.step()
    assert torch.equal(p.grad, rows_of(1))


@each
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((4, 3, 2, 2), {}),
        ((3, 4, 2, 2), {"row_dim": 1}),
        ((6, 2, 2, 2), {"row_dim": 1, "conv_groups": 2}),
        ((4, 3, 2, 2), {"channels_per_row": 2}),
        ((4, 3, 2), {"channels_per_row": None}),
    ],
)
def test_a_layout_is_its_rows(name, shape, layout):
    generator = torch.Generator().manual_seed(3)
    w, g, h = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3))
    ours = stepped(METHODS[name], w, g, h, **layout)
    plain = stepped(METHODS[name], *(to_rows(x, **layout).clone() for x in (w, g, h)))
    torch.testing.assert_close(ours, from_rows(plain, w, **layout), rtol=1e-12, atol=1e-12)


@each
def test_memory_order_does_not_matter(name):
    generator = torch.Generator().manual_seed(3)
    w, g = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64, generator=generator)
    ours = stepped(METHODS[name], w.to(memory_format=torch.channels_last), g)
    torch.testing.assert_close(ours.contiguous(), stepped(METHODS[name], w, g).contiguous())


@each
def test_weight_and_bias_of_a_joint_group_are_one_row(name):
    w, b, g, c = rows_of(0), rows_of(1, 1, 3)[0], rows_of(2), rows_of(3, 1, 3)[0]
    p, q = nn.Parameter(w.clone()), nn.Parameter(b.clone())
    optimizer = METHODS[name]([{"params": [p, q], "joint": True}])
    p.grad, q.grad = g, c
    optimizer.step()
    whole = stepped(METHODS[name], torch.cat([w, b[:, None]], 1), torch.cat([g, c[:, None]], 1))
    torch.testing.assert_close(torch.cat([p, q[:, None]], 1).detach(), whole)


@each
def test_what_cannot_be_stepped_is_refused_and_left_alone(name):
    good, zero = nn.Parameter(rows_of(0)), rows_of(1)
    zero[1] = 0
    for bad, why in (
        (torch.ones(4), "no stack of weight rows"),
        (torch.ones(4, 5, dtype=torch.bfloat16), "must be float32 or float64"),
        (zero, "row 1 .* has norm 0"),
        (torch.ones(4, 5, device="meta"), "is on the meta device and holds no numbers; bring"),
    ):
        with pytest.raises(ValueError, match=why):
            METHODS[name]([good, nn.Parameter(bad)])
    with pytest.raises(ValueError, match="come in turn"):
        METHODS[name]([{"params": [good], "joint": True}])
    assert torch.equal(good.detach(), rows_of(0))


@each
def test_hyper_parameters_out_of_range_are_refused(name):
    defaults = METHODS[name]([nn.Parameter(rows_of(0))]).defaults
    wrong = {"lr": -1.0, "momentum": 1.0, "betas": (0.9, 1.0), "eps": -1.0, "weight_decay": math.nan}
    wrong |= {"delta": -1.0, "wd_ratio": 2.0, "trust": -1.0, "beta": 1.0, "outward": 1.5, "inward": -0.5}
    wrong |= {"decay_of_norm": 1.0, "every": 0, "iterations": 0, "restore_every": 1.5, "steps": -1}
    unranged = {"nesterov", "center", "transport", "by_row", "tangent", "row_dim", "conv_groups", "channels_per_row"}
    assert defaults.keys() <= wrong.keys() | unranged
    for option in defaults.keys() & wrong.keys():
        with pytest.raises(ValueError, match=option):
            METHODS[name]([{"params": [nn.Parameter(rows_of(0))], option: wrong[option]}])


@each
def test_state_of_other_weights_is_refused(name):
    p, q = nn.Parameter(rows_of(0)), nn.Parameter(rows_of(0, 4, 5))
    other, optimizer = METHODS[name]([q]), METHODS[name]([p])
    p.grad, q.grad = rows_of(1), rows_of(1, 4, 5)
    other.step()
    optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="does not fit 3 rows of 6 entries"):
        optimizer.step()


@each
def test_a_networks_rows_are_trained(name):
    """The rest of the network stands still; a schedule and `riembn.Combined` take the method as any other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    x, labels = torch.randn(64, 2, 6, 6), torch.arange(64) % 3
    found = riembn.split(model, x)
    optimizer = riembn.Combined(
        METHODS[name](found.groups()), torch.optim.SGD([p for _, p in found.rest], lr=0.0)
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20])
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


@each
@given(seed=seeds)
def test_lengths_are_what_the_method_promises(name, seed):
    w = rows_of(seed)
    after = stepped(METHODS[name], w, *(rows_of(seed + i) for i in range(1, 5)))
    if name in UNIT or name == "pbwn":
        torch.testing.assert_close(after.norm(dim=1), torch.ones(3, dtype=torch.float64), rtol=1e-3, atol=0)
    if name in LENGTH_KEPT:
        torch.testing.assert_close(after.norm(dim=1), w.norm(dim=1), rtol=1e-12, atol=0)
    if name == "radial-brake":
        loose = stepped(lambda p: rel.RadialBrakeSGD(p, lr=0.2, outward=1), w, rows_of(seed + 1))
        braked = stepped(METHODS[name], w, rows_of(seed + 1))
        assert bool((braked.norm(dim=1) <= loose.norm(dim=1) + 1e-12).all())


EQUIVARIANT = {
    "hyperball-sgd": METHODS["hyperball-sgd"],
    "adam-h": lambda p: rel.AdamH(p, lr=0.05, eps=0.0),
    "rotational-sgd": METHODS["rotational-sgd"],
    "rotational-adamw": lambda p: rel.RotationalAdamW(p, lr=0.1, eps=0.0),
    "lars": lambda p: rel.LARS(p, lr=0.5, trust=0.1),
    "lars by row": lambda p: rel.LARS(p, lr=0.5, trust=0.1, by_row=True),
}


@pytest.mark.parametrize("name", EQUIVARIANT)
@given(seed=seeds, factor=st.floats(1e-2, 1e2))
def test_a_longer_start_gives_the_same_path_longer(name, seed, factor):
    w, grads = rows_of(seed), invariant_gradients(seed + 1, 4)
    near, far = (stepped(EQUIVARIANT[name], scale * w, *grads) for scale in (1.0, factor))
    torch.testing.assert_close(far / factor, near, rtol=1e-5, atol=1e-5)


LOSS_SCALE_FREE = {
    **{name: EQUIVARIANT[name] for name in EQUIVARIANT},
    "nero": METHODS["nero"],
    "oblique-adam": lambda p: rel.ObliqueAdam(p, lr=0.02, eps=0.0),
    "adam-srt": lambda p: rel.AdamSRT(p, lr=0.02, eps=0.0),
    "muon": METHODS["muon"],
    "muon-rows": METHODS["muon-rows"],
}


@pytest.mark.parametrize("name", LOSS_SCALE_FREE)
@given(seed=seeds, factor=st.floats(1e-2, 1e2))
def test_a_multiple_of_the_loss_gives_the_same_path(name, seed, factor):
    w, grads = rows_of(seed), [rows_of(seed + i) for i in range(1, 5)]
    once, scaled = (stepped(LOSS_SCALE_FREE[name], w, *(c * g for g in grads)) for c in (1.0, factor))
    torch.testing.assert_close(scaled, once, rtol=1e-5, atol=1e-5)


def test_each_is_in_the_table_of_methods_under_its_name():
    found = {name: how.optimizer for name, how in riembn.methods.items()}
    named = {name: one for name, one in found.items() if one.__module__.startswith(rel.__name__)}
    assert named.keys() == METHODS.keys()
    assert {*named.values()} == {value for value in vars(rel).values() if isinstance(value, type)}


@pytest.fixture(scope="module")
def network():
    model = riembn.models.build("vgg-11", num_classes=10, in_channels=1, width=0.125)
    return model, riembn.split(model, torch.randn(8, 1, 8, 8))


@each
def test_a_run_sets_its_options(name, network):
    plain = riembn.preset(f"vgg-11/digits/{name}")
    group = optimizer_of(plain, *network).param_groups[0]
    assert group["lr"] == riembn.methods[name].lr == plain.lr
    assert group.get("momentum", 0.9) == {"muon": 0.95, "muon-rows": 0.6}.get(name, 0.9)
    for option, value in {"betas": (0.5, 0.6), "weight_decay": 0.25, "center": False, "trust": 0.5}.items():
        if option in group:
            other = plain.replace(options={option: value})
            assert other.digest() != plain.digest()
            assert optimizer_of(other, *network).param_groups[0][option] == value


# Where the formulas meet


@given(seed=seeds, lr=st.floats(1e-3, 0.5), length=st.floats(1e-3, 1e3))
def test_hyperball_turns_by_arctan_of_its_rate_whatever_the_gradient_is_long(seed, lr, length):
    w = rows_of(seed)
    g = tangent(w, rows_of(seed + 1)) * length
    turned = angles(w, stepped(lambda p: rel.HyperballSGD(p, lr=lr), w, g))
    torch.testing.assert_close(turned, torch.full_like(turned, math.atan(lr)), rtol=1e-9, atol=0)


@given(seed=seeds, lr=st.floats(1e-3, 0.5))
def test_hyperball_turns_less_by_what_points_along_the_row(seed, lr):
    w, g = rows_of(seed), rows_of(seed + 1)
    phi = angles(w, g)
    expected = torch.atan2(lr * phi.sin(), 1 - lr * phi.cos())
    torch.testing.assert_close(angles(w, stepped(lambda p: rel.HyperballSGD(p, lr=lr), w, g)), expected)


@given(seed=seeds)
def test_first_rotational_step_is_hyperballs(seed):
    w, g = rows_of(seed), tangent(rows_of(seed), rows_of(seed + 1))
    eta_r = math.sqrt(2 * 0.1 * 5e-4 / 1.9)
    ours = stepped(lambda p: rel.RotationalSGD(p, lr=0.1, weight_decay=5e-4, center=False), w, g)
    torch.testing.assert_close(ours, stepped(lambda p: rel.HyperballSGD(p, lr=eta_r), w, g), rtol=1e-9, atol=1e-9)
    eta_r = math.sqrt(2 * 0.1 * 1e-2 * 0.1 / 1.9)
    turned = angles(w, stepped(lambda p: rel.RotationalAdamW(p, lr=0.1, center=False), w, g))
    torch.testing.assert_close(turned, torch.full_like(turned, math.atan(eta_r)), rtol=1e-7, atol=0)


def test_rotational_rows_stay_centered():
    w = stepped(METHODS["rotational-sgd"], rows_of(0), *(rows_of(i) for i in range(1, 5)))
    torch.testing.assert_close(w.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-15)


def test_rotational_rows_turn_on_average_by_the_equilibrium_angle_of_sgd():
    """The angle that SGD with decay comes to on random gradients is the one that is imposed from the start."""
    lr, decay, momentum, fan_in = 0.1, 0.02, 0.9, 200
    noise = invariant_gradients(0, 1500, (4, fan_in))
    p = nn.Parameter(rows_of(0, 4, fan_in))
    sgd, turned = torch.optim.SGD([p], lr=lr, momentum=momentum, weight_decay=decay), []
    for g in noise:
        before = p.detach().clone()
        p.grad = g(before)
        sgd.step()
        turned.append(angles(before, p.detach()))
    settled = torch.stack(turned[700:]).square().mean().sqrt()
    assert float(settled) == pytest.approx(math.sqrt(2 * lr * decay / (1 + momentum)), rel=0.05)


@given(seed=seeds)
def test_full_brake_from_unit_length_has_the_direction_of_psi_sgd(seed):
    w = rows_of(seed)
    w = w / w.norm(dim=1, keepdim=True)
    g = tangent(w, rows_of(seed + 1))
    psi = stepped(lambda p: riembn.PSISGD(p, lr=0.3), w, g)
    psi = psi / psi.norm(dim=1, keepdim=True)
    for make in (
        lambda p: rel.RadialBrakeSGD(p, lr=0.3, momentum=0, outward=0, inward=0),
        lambda p: rel.ObliqueSGD(p, lr=0.3, momentum=0),
        lambda p: rel.PBWN(p, lr=0.3, momentum=0, nesterov=False),
    ):
        torch.testing.assert_close(stepped(make, w, g), psi, rtol=1e-12, atol=1e-12)


@given(seed=seeds)
def test_no_brake_and_no_projection_are_torchs_optimizers(seed):
    w, grads = rows_of(seed), [rows_of(seed + i) for i in range(1, 5)]
    for ours, torchs in (
        (
            lambda p: rel.RadialBrakeSGD(p, lr=0.1, outward=1, inward=1),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        ),
        (
            lambda p: rel.SGDP(p, lr=0.1, momentum=0.9, nesterov=True, delta=0),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        ),
        (
            lambda p: rel.AdamP(p, lr=0.1, weight_decay=0.1, delta=0),
            lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        ),
    ):
        torch.testing.assert_close(stepped(ours, w, *grads), stepped(torchs, w, *grads), rtol=1e-9, atol=1e-9)


def test_brake_keeps_the_shares_of_growth_and_of_shrinking():
    w = torch.tensor([[8.0, 0.0]], dtype=torch.float64)
    make = lambda p: rel.RadialBrakeSGD(p, lr=1, momentum=0, outward=0.5, inward=0.25)  # noqa: E731
    assert stepped(make, w, -w)[0, 0] == 8 + 0.5 * 8
    assert stepped(make, w, w / 2)[0, 0] == 8 - 0.25 * 4


def test_nero_is_adam_g_with_a_retraction():
    y = rows_of(0)
    y = y / y.norm(dim=1, keepdim=True)
    gaps = []
    for lr in (0.08, 0.04):
        nero, adam = nn.Parameter(y.clone()), nn.Parameter(y.clone())
        one = rel.Nero([nero], lr=lr, beta=0.99, center=False)
        other = riembn.AdamG([adam], lr=lr, betas=(0.0, 0.99), eps=0.0, grad_clip=None)
        nero.grad = tangent(y, rows_of(1))
        adam.grad = nero.grad.clone()
        one.step()
        other.step()
        torch.testing.assert_close(angles(y, nero.detach()), torch.full((3,), math.atan(lr), dtype=torch.float64))
        gaps.append(float(angles(nero.detach(), adam.detach()).max()))
    assert gaps[0] / gaps[1] == pytest.approx(8, rel=0.01)


def test_pbwn_is_sgd_g_up_to_the_cube_of_the_step():
    y = rows_of(0)
    y = y / y.norm(dim=1, keepdim=True)
    g = tangent(y, rows_of(1))
    gaps = []
    for lr in (0.02, 0.01):
        flat = stepped(lambda p, lr=lr: rel.PBWN(p, lr=lr, momentum=0, nesterov=False), y, g)
        curved = stepped(lambda p, lr=lr: riembn.SGDG(p, lr=lr, momentum=0, grad_clip=None), y, g)
        gaps.append(float(angles(flat, curved).max()))
    assert gaps[0] / gaps[1] == pytest.approx(8, rel=0.01)


def test_pbwn_projects_every_few_steps():
    p = nn.Parameter(rows_of(0))
    optimizer = rel.PBWN([p], lr=0.1, every=3)
    lengths = []
    for i in range(1, 4):
        p.grad = rows_of(i)
        optimizer.step()
        lengths.append(float((p.detach().norm(dim=1) - 1).abs().max()))
    assert lengths[0] > 1e-3 and lengths[1] > 1e-3 and lengths[2] < 1e-15


def test_projecting_a_buffer_shortens_its_part_along_the_motion_by_the_cosine():
    y = rows_of(0)
    y = y / y.norm(dim=1, keepdim=True)
    h = tangent(y, rows_of(1))
    p = nn.Parameter(y.clone())
    optimizer = rel.ObliqueSGD([p], lr=0.5, momentum=0.9)
    p.grad = h
    optimizer.step()
    moved, theta = p.detach().clone(), torch.atan(0.5 * h.norm(dim=1))
    torch.testing.assert_close(angles(y, moved), theta)
    torch.testing.assert_close(tangent(moved, h).norm(dim=1), h.norm(dim=1) * theta.cos())
    p.grad = torch.zeros_like(p)  # the second step is the projected buffer's alone
    optimizer.step()
    expected = torch.atan(0.5 * 0.9 * h.norm(dim=1) * theta.cos())
    torch.testing.assert_close(angles(moved, p.detach()), expected)


@given(seed=seeds)
def test_projection_of_adamp_leaves_steps_orthogonal_to_rows(seed):
    w = rows_of(seed)
    g = tangent(w, rows_of(seed + 1))
    lr, decay, ratio = 0.1, 0.1, 0.1
    for make, shrink in (
        (lambda p: rel.AdamP(p, lr=lr, weight_decay=decay), 1 - lr * decay * ratio),
        (
            lambda p: rel.SGDP(p, lr=lr, weight_decay=decay, momentum=0.9, nesterov=True),
            1 - lr * decay * ratio / (1 - 0.9),
        ),
    ):
        step = stepped(make, w, g) - shrink * w
        torch.testing.assert_close((step * w).sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
        assert float(step.norm()) > 1e-3


def test_adamp_tries_rows_first_and_the_whole_tensor_then():
    w, g = rows_of(0), rows_of(1)
    g = g - w * (w * g).sum() / w.square().sum()  # orthogonal as one vector, not row by row
    step = stepped(lambda p: rel.SGDP(p, lr=1.0, momentum=0.5, nesterov=True), w, 2 * g) - w
    assert float((step * w).sum().abs()) < 1e-12 < float((step * w).sum(1).abs().min())
    loose = stepped(lambda p: rel.SGDP(p, lr=1.0), w, g + w) - w
    torch.testing.assert_close(loose, -(g + w))


def test_buffer_of_sgdp_is_not_projected():
    p = nn.Parameter(rows_of(0))
    optimizer = rel.SGDP([p], lr=0.5, momentum=0.9)
    total = torch.zeros_like(p)
    for i in (1, 2, 3):
        p.grad = tangent(p.detach(), rows_of(i))
        total = 0.9 * total + p.grad
        optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], total)


def test_transport_of_adamsrt_is_parallel_along_the_motion_and_too_short_across():
    w = rows_of(0, 1)
    g = tangent(w, rows_of(1, 1))
    p = nn.Parameter(w.clone())
    optimizer = rel.AdamSRT([p], lr=0.1, betas=(0.9, 0.99), eps=0.0)
    p.grad = g
    optimizer.step()
    new, m = p.detach(), optimizer.state[p]["exp_avg"]
    y, ratio = w / w.norm(), w.norm() / new.norm()
    motion = sphere.log_map(y, new / new.norm())
    torch.testing.assert_close(m, ratio * sphere.parallel_transport(y, motion, 0.1 * g))
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], 0.01 * g.square().sum(1, keepdim=True) * ratio**2)
    assert float((m * new).sum().abs()) < 1e-12
    # A second moment buffer entry across the motion: shorter by the cosine of the angle.
    across = tangent(motion, tangent(w, rows_of(2, 1)))
    optimizer.state.clear()
    with torch.no_grad():
        p.copy_(w)
    optimizer.state[p] = {"step": 1, "exp_avg": across.clone(), "exp_avg_sq": torch.ones(1, 1, dtype=torch.float64)}
    p.grad = g
    optimizer.step()
    new = p.detach()
    kept = 0.9 * across + 0.1 * g
    unit, theta = new / new.norm(), angles(w, new)
    side = sphere.log_map(y, unit) / theta  # the part of the buffer along this step's motion, and the rest
    along = side * (side * kept).sum()
    expected = sphere.parallel_transport(y, theta * side, along) + theta.cos() * (kept - along)
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], expected * w.norm() / new.norm())


@given(seed=seeds, lr=st.floats(0.01, 0.5))
def test_lars_by_row_is_a_rotation_of_one_angle(seed, lr):
    make = lambda p: rel.LARS(p, lr=lr, momentum=0, trust=0.1, by_row=True)  # noqa: E731
    w = rows_of(seed)
    for g in invariant_gradients(seed + 1, 3):
        after = stepped(make, w, g)
        torch.testing.assert_close(angles(w, after), torch.full((3,), math.atan(0.1 * lr), dtype=torch.float64))
        w = after


@given(seed=seeds, lr=st.floats(1e-3, 0.3))
def test_cayley_of_one_row_turns_by_twice_an_arctan(seed, lr):
    y = rows_of(seed, 1)
    y = y / y.norm()
    g = rows_of(seed + 1, 1)
    h = tangent(y, g)
    turn = h.T @ y - y.T @ h
    alpha = min(lr, 1 / float(turn.abs().sum(0).max()))
    after = stepped(lambda p: rel.CayleySGD(p, lr=lr, iterations=60), y, g)
    torch.testing.assert_close(after.norm(), torch.ones((), dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(angles(y, after), 2 * torch.atan(alpha * h.norm(dim=1) / 2), rtol=1e-7, atol=1e-9)


def test_cayley_differs_from_the_exponential_map_by_a_cube():
    y = rows_of(0, 1)
    y = y / y.norm()
    h, gaps = tangent(y, rows_of(1, 1)), []
    for lr in (0.1, 0.05):
        after = stepped(lambda p, lr=lr: rel.CayleySGD(p, lr=lr, iterations=60), y, h)
        gaps.append(float(angles(after, sphere.exp_map(y, -lr * h))))
    assert gaps[0] / gaps[1] == pytest.approx(8, rel=0.02)


def test_cayley_keeps_rows_orthonormal_and_restores_them():
    grads = [rows_of(i) for i in range(1, 12)]
    identity = torch.eye(3, dtype=torch.float64)
    exact = stepped(lambda p: rel.CayleySGD(p, lr=0.2, iterations=60), rows_of(0), *grads)
    torch.testing.assert_close(exact @ exact.T, identity, rtol=0, atol=1e-9)
    restored = stepped(lambda p: rel.CayleySGD(p, lr=0.2, iterations=1, restore_every=11), rows_of(0), *grads)
    torch.testing.assert_close(restored @ restored.T, identity, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="cannot be orthonormal"):
        rel.CayleySGD([nn.Parameter(rows_of(0, 7, 6))])


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_muon_is_torchs_up_to_bfloat16(shape):
    w, grads = rows_of(0, *shape).float(), [rows_of(i, *shape).float() for i in range(1, 4)]
    ours = stepped(lambda p: rel.Muon(p, lr=0.1), w, *grads)
    torchs = stepped(lambda p: torch.optim.Muon(p, lr=0.1), w, *grads)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=0.02)
    assert float((ours - w).abs().max()) > 0.1


def test_muons_signature_is_torchs_but_for_names():
    torchs = inspect.signature(torch.optim.Muon).parameters
    for name, ours in inspect.signature(rel.Muon).parameters.items():
        assert ours.default == torchs["ns_steps" if name == "steps" else name].default


@given(seed=seeds, steps=st.sampled_from([0, 3, 5]), lr=st.floats(1e-3, 0.3))
def test_muon_on_rows_is_muon_without_decay_and_then_unit_rows(seed, steps, lr):
    w, g = rows_of(seed) / rows_of(seed).norm(dim=1, keepdim=True), rows_of(seed + 1)
    options = {"lr": lr, "momentum": 0.6, "steps": steps}
    free = stepped(lambda p: rel.Muon(p, weight_decay=0.0, **options), w, g)
    ours = stepped(lambda p: rel.MuonRows(p, **options), w, g)
    torch.testing.assert_close(ours, free / free.norm(dim=1, keepdim=True), rtol=1e-12, atol=1e-12)
    if not steps:  # as long as an orthogonal step of three rows, in the gradient's direction
        torch.testing.assert_close(free, w - lr * 3**0.5 * g / g.norm(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("size", [16, 64, 256])
def test_newton_schulz_of_an_orthogonal_matrix_is_a_multiple_of_it(steps, size):
    q, _ = torch.linalg.qr(rows_of(0, size, size))
    out = newton_schulz(q, steps)
    factor = float((out * q).sum() / size)
    torch.testing.assert_close(out, factor * q, rtol=1e-9, atol=1e-9)
    assert 0.68 < factor < 1.13


# The family, which the chapter is drawn from


@pytest.mark.parametrize("meeting", family.MEETINGS, ids=lambda m: f"{m.one}, {m.other}")
@given(seed=seeds)
def test_gap_of_a_meeting_is_of_its_order(meeting, seed):
    y = rows_of(seed, 1, 40)
    y = y / y.norm()
    g = tangent(y, rows_of(seed + 1, 1, 40))
    near, nearer = (meeting.gap(y, g / g.norm(), lr) for lr in (0.04, 0.02))
    if meeting.order is None:
        assert near < 1e-8  # what a method adds to a divisor
    else:
        assert math.log2(near / nearer) == pytest.approx(meeting.order, abs=0.05)


def test_every_member_meets_another():
    met = {name for meeting in family.MEETINGS for name in (meeting.one, meeting.other)}
    assert met == family.MEMBERS.keys()
    assert {kind for _, kind in family.MEMBERS.values()} == set(family.KINDS)
