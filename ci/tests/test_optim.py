"""Every path of the row optimizers equals the float64 reference, in weights and in state."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riembn.geometry import Layout, to_rows
from riembn.optim import PSISGD, SGDG, AdamG, orthogonality, orthogonality_grad, reference
from riembn.optim.rows import lists
from riembn.optim.rows.arithmetic import clipped_tangent

METHODS = {
    "sgd-g": (SGDG, dict(lr=0.2, momentum=0.9, grad_clip=0.1)),
    "adam-g": (AdamG, dict(lr=0.05, betas=(0.9, 0.99), eps=1e-8, grad_clip=0.1)),
    "psi-sgd": (PSISGD, dict(lr=0.05, momentum=0.9)),
}
CHANNEL = dict(row_dim=0, conv_groups=1, channels_per_row=1)
# shape, layout: linear, convolution, grouped transposed convolution, GroupNorm blocks, one vector, one entry
WEIGHTS = [
    ((5, 7), CHANNEL),
    ((4, 3, 3, 3), CHANNEL),
    ((6, 4, 3, 3), dict(row_dim=1, conv_groups=2, channels_per_row=1)),
    ((6, 5), dict(row_dim=0, conv_groups=1, channels_per_row=3)),
    ((3, 2, 2), dict(row_dim=0, conv_groups=1, channels_per_row=None)),
    ((2, 1), CHANNEL),
    ((0, 3), CHANNEL),
]
# the lists, the loop, and the compiled step (which leaves to the lists what it cannot take)
FOREACH = [True, False, None]


def weights(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape, _ in WEIGHTS
    ]


def groups(params):
    return [{"params": [p], **layout} for p, (_, layout) in zip(params, WEIGHTS, strict=True)]


def random_grads(params, generator, scale=1.0):
    return [scale * torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]


def run_against_reference(method, dtype, steps, tolerance, foreach, scale=1.0, alpha=0.0, **changes):
    optimizer_class, options = METHODS[method]
    options = {**options, **changes}
    params = weights(dtype)
    optimizer = optimizer_class(
        groups(params), foreach=foreach, **options, **({"alpha": alpha} if alpha else {})
    )
    expected = [p.detach().double().clone() for p in params]
    states = [{} for _ in params]
    generator = torch.Generator().manual_seed(1)
    for t in range(1, steps + 1):
        grads = random_grads(params, generator, scale)
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            if method == "psi-sgd" and p.numel():  # as the gradient of a scale-invariant loss would be
                w, along = Layout(**WEIGHTS[i][1]).view(expected[i])
                square = w.square().sum(along, keepdim=True)
                radial, _ = Layout(**WEIGHTS[i][1]).view(g)
                radial.sub_((radial * w).sum(along, keepdim=True) / square * w).div_(square.sqrt())
            p.grad = g.to(dtype)
            expected[i], states[i] = reference.step_rows(
                method, expected[i], p.grad.double(), states[i], alpha=alpha, t=t, **WEIGHTS[i][1], **options
            )
        kept = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, kept, strict=True))
    for p, w, state in zip(params, expected, states, strict=True):
        torch.testing.assert_close(p.detach().double(), w, rtol=tolerance, atol=tolerance)
        for key, value in state.items() if p.numel() else ():
            torch.testing.assert_close(
                optimizer.state[p][key].double(), value, rtol=tolerance, atol=tolerance
            )
    return params, optimizer


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("method", METHODS)
def test_float64_equals_reference(method, foreach):
    run_against_reference(method, torch.float64, 30, 1e-12, foreach)


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("method", METHODS)
def test_float32_equals_reference_over_100_steps(method, foreach):
    run_against_reference(method, torch.float32, 100, 1e-5, foreach, lr=0.02, scale=0.1)


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("method", ["sgd-g", "adam-g"])
def test_regularizer_equals_reference(method, foreach):
    run_against_reference(method, torch.float64, 20, 1e-12, foreach, alpha=0.3)


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("method", ["sgd-g", "adam-g"])
def test_unclipped_equals_reference(method, foreach):
    run_against_reference(method, torch.float64, 20, 1e-11, foreach, grad_clip=None, lr=0.01)


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("scale", [1e-41, 1e-25, 1e19, 1e30])
@pytest.mark.parametrize("method", ["sgd-g", "adam-g"])
def test_extreme_gradients_equal_reference(method, scale, foreach):
    options = {"eps": 0.0} if method == "adam-g" and scale > 1 else {}
    tolerance = 1e-2 if scale == 1e-41 and method == "adam-g" else 1e-5  # subnormals hold few digits
    run_against_reference(method, torch.float32, 5, tolerance, foreach, scale=scale, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_weights_have_float32_state(method, foreach, dtype):
    params, optimizer = run_against_reference(method, dtype, 3, 3e-2, foreach)
    states = [s for state in optimizer.state.values() for key, s in state.items() if key != "step"]
    assert states and all(s.dtype == torch.float32 for s in states)


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_and_foreign_strides_change_nothing(method):
    optimizer_class, options = METHODS[method]
    plain = torch.nn.Parameter(torch.randn(6, 4, 3, 3, dtype=torch.float64))
    last = torch.nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    spread = torch.nn.Parameter(torch.zeros(6, 4, 3, 6, dtype=torch.float64)[..., ::2].copy_(plain.detach()))
    grad = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    for foreach in FOREACH:
        results = []
        for p in (plain, last, spread):
            copied = torch.nn.Parameter(p.detach().clone(memory_format=torch.preserve_format))
            optimizer = optimizer_class([copied], foreach=foreach, **options)
            for i in range(3):
                copied.grad = grad * (i + 1) if i else grad.to(memory_format=torch.channels_last)
                optimizer.step()
            assert copied.stride() == p.detach().clone(memory_format=torch.preserve_format).stride()
            results.append(copied.detach())
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("method", ["sgd-g", "adam-g"])
def test_rows_stay_on_the_sphere_and_momentum_tangent(method, foreach):
    optimizer_class, options = METHODS[method]
    p = torch.nn.Parameter(torch.randn(16, 40))
    optimizer = optimizer_class([p], foreach=foreach, **{**options, "lr": 1e-3})
    generator = torch.Generator().manual_seed(0)
    drift = torch.randn(16, 40, generator=generator)
    for _ in range(2000):
        p.grad = drift + torch.randn(16, 40, generator=generator) + 100 * p.detach()
        optimizer.step()
    assert (p.detach().norm(dim=1) - 1).abs().max() < 1e-6
    m = optimizer.state[p]["momentum_buffer" if method == "sgd-g" else "exp_avg"]
    assert ((p.detach() * m).sum(1) / m.norm(dim=1)).abs().max() < 1e-4


@given(
    rows=st.integers(1, 5),
    fan_in=st.integers(2, 40),
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(max_examples=60, deadline=None)
def test_step_angle_is_bounded(rows, fan_in, seed, size):
    generator = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.randn(rows, fan_in, generator=generator, dtype=torch.float64))
    optimizer = SGDG([p], lr=0.2, momentum=0.9, grad_clip=0.1)
    for _ in range(5):
        before = p.detach().clone()
        p.grad = size * torch.randn(rows, fan_in, generator=generator, dtype=torch.float64)
        optimizer.step()
        cosine = (before * p.detach()).sum(1).clamp(-1, 1)
        assert (torch.arccos(cosine) <= 0.2 * 0.1 / (1 - 0.9) + 1e-7).all()


@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([0.0, 1e-12, 0.01, 1.0, 1e6]),
    bound=st.sampled_from([0.1, 3.0, None]),
)
@settings(max_examples=60, deadline=None)
def test_clipping_keeps_direction_and_bounds_each_row(seed, size, bound):
    generator = torch.Generator().manual_seed(seed)
    y, g = torch.nn.functional.normalize(
        torch.randn(2, 4, 7, generator=generator, dtype=torch.float64), dim=-1
    )
    g[1:3] *= size  # rows of their own size: each is clipped on its own
    clipped = clipped_tangent(y, g, (1,), bound)
    whole = clipped_tangent(y, g, (1,), None)
    norms, limit = whole.norm(dim=1), torch.inf if bound is None else bound
    torch.testing.assert_close(clipped.norm(dim=1), norms.clamp(max=limit), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        clipped * norms[:, None], whole * clipped.norm(dim=1, keepdim=True), rtol=1e-10, atol=1e-30
    )
    assert torch.equal(clipped[norms <= limit], whole[norms <= limit])
    for row, expected in zip(whole, clipped, strict=True):
        torch.testing.assert_close(reference.clip(row, bound), expected, rtol=1e-12, atol=1e-30)


@given(seed=st.integers(0, 2**16), fan_in=st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_a_rotation_of_the_input_rotates_the_trajectory(seed, fan_in):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(3, fan_in, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(fan_in, fan_in, generator=generator, dtype=torch.float64)).Q
    for optimizer_class, options in METHODS.values():
        p, q = (torch.nn.Parameter(w.clone()) for w in (start, start @ turn))
        steps = [optimizer_class([w], **options) for w in (p, q)]
        for _ in range(4):
            p.grad = torch.randn(3, fan_in, generator=generator, dtype=torch.float64)
            q.grad = p.grad @ turn
            for optimizer in steps:
                optimizer.step()
        torch.testing.assert_close(p.detach() @ turn, q.detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_see_each_other(method, foreach):
    optimizer_class, options = METHODS[method]
    start, grad = torch.randn(2, 4, 6)
    whole = torch.nn.Parameter(start.clone())
    parts = [torch.nn.Parameter(start[i : i + 1].clone()) for i in range(4)]
    for params, grads in (([whole], [grad]), (parts, grad.split(1))):
        optimizer = optimizer_class(params, foreach=foreach, **options)
        for _ in range(3):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            optimizer.step()
    torch.testing.assert_close(whole.detach(), torch.cat([p.detach() for p in parts]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_with_a_bad_gradient_stays_alone(method, alpha, foreach):
    optimizer_class, options = METHODS[method]
    if alpha:
        if method == "psi-sgd":
            pytest.skip("has no regularizer")
        options = {**options, "alpha": alpha}
    p = torch.nn.Parameter(torch.randn(4, 6))
    optimizer = optimizer_class([p], foreach=foreach, **options)
    p.grad = torch.randn(4, 6)
    p.grad[2, 3] = math.inf
    for _ in range(2):
        optimizer.step()
        finite = p.detach().isfinite().all(1)
        assert finite.tolist() == [True, True, False, True]
        p.grad = torch.randn(4, 6)


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("method", METHODS)
def test_zero_gradient_moves_nothing(method, foreach):
    optimizer_class, options = METHODS[method]
    p = torch.nn.Parameter(torch.randn(4, 6, dtype=torch.float64))
    optimizer = optimizer_class([p], foreach=foreach, **options)
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), before, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("angle", [math.pi, 2 * math.pi])
@pytest.mark.parametrize("foreach", FOREACH)
def test_rows_turned_by_pi_and_two_pi(foreach, angle):
    p = torch.nn.Parameter(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))
    optimizer = SGDG([p], lr=1.0, momentum=0.0, grad_clip=None, foreach=foreach)
    p.grad = torch.tensor([[5.0, angle, 0.0]], dtype=torch.float64)
    optimizer.step()
    expected = torch.tensor([[math.cos(angle), 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-14)


def test_first_adam_g_step_turns_by_the_rate():
    for size in (1e-3, 1.0, 1e4):
        p = torch.nn.Parameter(torch.randn(5, 9, dtype=torch.float64))
        optimizer = AdamG([p], lr=0.05, eps=1e-30)
        before = p.detach().clone()
        p.grad = size * torch.randn(5, 9, dtype=torch.float64)
        optimizer.step()
        angle = torch.arccos((before * p.detach()).sum(1))
        torch.testing.assert_close(angle, torch.full((5,), 0.05, dtype=torch.float64), rtol=1e-9, atol=0)


def test_learning_rate_is_inside_the_momentum():
    # After a drop of the rate a zero gradient still carries on with the displacement of the old rate.
    p = torch.nn.Parameter(torch.eye(3, dtype=torch.float64)[:1].clone())
    optimizer = SGDG([p], lr=0.2, momentum=0.5, grad_clip=None)
    p.grad = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.002
    p.grad = torch.zeros_like(p)
    before = p.detach().clone()
    optimizer.step()
    torch.testing.assert_close(torch.arccos((before * p.detach()).sum()).item(), 0.1, rtol=1e-9, atol=0)


class ScaleInvariantNet(torch.nn.Module):
    """Two linear layers, each normalized over the batch with eps = 0: exactly scale-invariant by row."""

    def __init__(self, scale, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.nn.Parameter(scale * torch.randn(8, 5, generator=generator))
        self.second = torch.nn.Parameter(scale * torch.randn(3, 8, generator=generator))

    def forward(self, x):
        for i, w in enumerate((self.first, self.second)):
            x = x @ w.T
            x = (x - x.mean(0)) / (x - x.mean(0)).square().mean(0).sqrt()
            x = x.relu() if i == 0 else x
        return x


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("power", [-5, 7])
def test_psi_sgd_is_equivariant_bit_for_bit(power, foreach, momentum):
    c = 2.0**power
    nets = [ScaleInvariantNet(1.0), ScaleInvariantNet(c)]
    x, target = torch.randn(32, 5), torch.randint(0, 3, (32,))
    starts = [[p.detach().clone() for p in net.parameters()] for net in nets]
    losses = [[], []]
    optimizers = [PSISGD(net.parameters(), lr=0.1, momentum=momentum, foreach=foreach) for net in nets]
    for _ in range(50):
        for net, optimizer, history in zip(nets, optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(x), target)
            loss.backward()
            optimizer.step()
            history.append(loss.item())
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0] - 0.05
    for p, q, start in zip(*(net.parameters() for net in nets), starts[0], strict=True):
        assert torch.equal(p.detach() * c, q.detach())
        assert (p.detach() - start).abs().max() > 1e-2
        if momentum:
            bufs = [o.state[w]["momentum_buffer"] for o, w in zip(optimizers, (p, q), strict=True)]
            assert torch.equal(bufs[0] * c, bufs[1]) and bufs[0].abs().max() > 0


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("start", [1.0, 2.0**-60, 2.0**60])
def test_psi_sgd_length_never_overflows(start, momentum, foreach):
    # A tangent gradient of unit size at unit length: without rescaling the length grows 4 % a step.
    p = torch.nn.Parameter(start * torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]]))
    optimizer = PSISGD([p], lr=0.3, momentum=momentum, foreach=foreach)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5000):
        w = p.detach()
        norm = w.norm(dim=1, keepdim=True)
        g = torch.randn(2, 3, generator=generator)
        u = w / norm
        p.grad = (g - (u * g).sum(1, keepdim=True) * u) / norm
        optimizer.step()
    assert p.detach().isfinite().all() and (p.detach().abs().amax(1) < 2.0**26).all()
    assert (p.detach().abs().amax(1) > 2.0**-26).all()


@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("start", [1.0, 2.0**-14, 2.0**12])
def test_psi_sgd_length_never_leaves_float16(start, momentum, foreach):
    p = torch.nn.Parameter((start * torch.randn(3, 40)).half())
    optimizer = PSISGD([p], lr=0.3, momentum=momentum, foreach=foreach)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1500):
        w = p.detach().float()
        norm = w.norm(dim=1, keepdim=True)
        u, g = w / norm, torch.randn(3, 40, generator=generator) / 40**0.5
        p.grad = ((g - (u * g).sum(1, keepdim=True) * u) / norm).half()
        optimizer.step()
        largest = p.detach().abs().amax(1)
        assert (largest < 2.0**11).all() and (largest >= 2.0**-9).all()


def test_psi_sgd_rescue_is_exact():
    # The same start at two lengths far apart: the directions agree to the last bit, through several rescues.
    rows = torch.randn(4, 6)
    params = [torch.nn.Parameter(rows * 2.0**k) for k in (0, 40, -40)]
    optimizers = [PSISGD([p], lr=0.3, momentum=0.9) for p in params]
    generator = torch.Generator().manual_seed(0)
    directions = []
    for _ in range(300):
        g = torch.randn(4, 6, generator=generator)
        directions = []
        for p, optimizer in zip(params, optimizers, strict=True):
            mantissa, exponent = torch.frexp(p.detach().abs().amax(1, keepdim=True))
            p.grad = torch.ldexp(g, -exponent)
            optimizer.step()
            exponent = torch.frexp(p.detach().abs().amax(1, keepdim=True)).exponent
            directions.append(torch.ldexp(p.detach(), -exponent))
    assert torch.equal(directions[0], directions[1]) and torch.equal(directions[0], directions[2])


def test_orthogonality_gradient_is_the_derivative():
    for shape in ((3, 7), (7, 3)):
        rows = torch.nn.functional.normalize(torch.randn(shape, dtype=torch.float64), dim=1).requires_grad_()
        (0.3 * orthogonality(rows)).backward()
        torch.testing.assert_close(orthogonality_grad(rows.detach(), 0.3), rows.grad)
        torch.testing.assert_close(reference.orthogonality_grad(rows.detach(), 0.3), rows.grad)
        assert abs(reference.orthogonality(rows.detach()) - orthogonality(rows).item()) < 1e-12
    assert orthogonality(torch.eye(4)[:3]) == 0


def test_orthogonality_reaches_the_welch_bound():
    rows = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    optimizer = SGDG([rows], lr=0.02, grad_clip=None, alpha=1.0)
    for _ in range(3000):
        rows.grad = torch.zeros_like(rows)
        optimizer.step()
    assert orthogonality(rows.detach()).item() == pytest.approx((25 / 3 - 5) / 2, rel=1e-6)


@pytest.mark.parametrize("before, after", [(True, False), (None, True), (False, None)])
@pytest.mark.parametrize("method", METHODS)
def test_state_moves_between_paths(method, before, after):
    optimizer_class, options = METHODS[method]
    torch.manual_seed(0)
    first = weights(torch.float64)
    second = copy.deepcopy(first)
    a = optimizer_class(groups(first), foreach=before, **options)
    b = optimizer_class(groups(second), foreach=after, **options)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        for p, q, g in zip(first, second, random_grads(first, generator), strict=True):
            p.grad, q.grad = g, g.clone()
        if step == 3:
            b.load_state_dict(copy.deepcopy(a.state_dict()))
            assert b.param_groups[0]["foreach"] is before
            for group in b.param_groups:
                group["foreach"] = after
            for p, q in zip(first, second, strict=True):
                q.data.copy_(p.data)
        a.step()
        if step >= 3:
            b.step()
    for p, q in zip(first, second, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_row_view_covers_to_rows():
    for shape, layout in WEIGHTS:
        w = torch.randn(shape)
        view, along = Layout(**layout).view(w)
        norms = torch.linalg.vector_norm(view, dim=along).flatten()
        torch.testing.assert_close(norms, to_rows(w, **layout).norm(dim=1))


@pytest.mark.parametrize(
    "dtype, sizes, bound", [(torch.float32, (1e3, 1e4, 1e5), 1e-6), (torch.float64, (1e3, 1e9, 1e12), 1e-14)]
)
@pytest.mark.parametrize("foreach", FOREACH)
@pytest.mark.parametrize("method", ["sgd-g", "adam-g"])
def test_a_nearly_radial_gradient_leaves_unit_rows(method, foreach, dtype, sizes, bound):
    optimizer_class, options = METHODS[method]
    p = torch.nn.Parameter(torch.randn(16, 300, dtype=dtype))
    optimizer = optimizer_class([p], foreach=foreach, **options)
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        p.grad = torch.randn(16, 300, generator=generator, dtype=dtype) + size * 300**0.5 * p.detach()
        optimizer.step()
        assert (p.detach().double().norm(dim=1) - 1).abs().max() < bound


@pytest.mark.parametrize("foreach", FOREACH)
def test_row_norms_do_not_drift_in_20000_steps(foreach):
    p = torch.nn.Parameter(torch.randn(4, 9))
    optimizer = SGDG([p], foreach=foreach, lr=0.02)
    grads = torch.randn(50, 4, 9, generator=torch.Generator().manual_seed(0))
    for i in range(20_000):
        p.grad = grads[i % 50]
        optimizer.step()
    assert (p.detach().double().norm(dim=1) - 1).abs().max() < 3e-7
    along = (p.detach() * optimizer.state[p]["momentum_buffer"]).double().sum(1)
    assert along.abs().max() < 1e-6


@given(
    kind=st.sampled_from(["linear", "convolution", "transposed", "one vector", "blocks"]),
    rows=st.integers(1, 4096),
    fan_in=st.integers(2, 30_000),
    block=st.sampled_from([1, 64, 1000, 2**20]),
    strides=st.sampled_from(["contiguous", "channels last", "turned", "gaps"]),
    expanded=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    method=st.sampled_from(list(METHODS)),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
def test_pieces_of_any_size_equal_the_loop(
    kind, rows, fan_in, block, strides, expanded, dtype, method, seed
):
    fan_in = min(fan_in, max(2, 30_000 // rows))
    rows = min(rows, 300) if block < 1000 else rows
    shape = {
        "linear": (rows, fan_in),
        "convolution": (rows, -(-fan_in // 6), 2, 3),
        "transposed": (2 * -(-fan_in // 12), rows, 2, 3),
        "one vector": (rows, fan_in),
        "blocks": (3 * rows, fan_in),
    }[kind]
    layout = {
        "transposed": dict(row_dim=1, conv_groups=2),
        "one vector": dict(channels_per_row=None),
        "blocks": dict(channels_per_row=3),
    }.get(kind, {})
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if strides == "channels last" and len(shape) == 4:
        start = start.contiguous(memory_format=torch.channels_last)
    elif strides == "turned":
        start = start.transpose(0, 1).contiguous().transpose(0, 1)
    elif strides == "gaps":
        start = torch.stack([start, start], dim=-1)[..., 0]
    grads = 0.1 * torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    if expanded:
        grads = grads[:, :1].expand(2, *shape)
    optimizer_class, options = METHODS[method]
    results = []
    for foreach in (True, False):
        p = torch.nn.Parameter(torch.empty_strided(shape, start.stride(), dtype=dtype).copy_(start))
        optimizer = optimizer_class([{"params": [p], **layout}], foreach=foreach, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lists, "BLOCK", block)
            for g in grads:
                p.grad = g
                optimizer.step()
        results.append([p.detach(), *(v for k, v in optimizer.state[p].items() if k != "step")])
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))
