"""The laws of the sphere and of G(1, n): identities in float64, for random points and dimensions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riembn.geometry import Layout, from_rows, grassmann, sphere, to_rows

MANIFOLDS = [sphere, grassmann]


@st.composite
def points(draw, vectors=1, angle=None):
    """A unit vector y and tangent vectors at it; the first has the given norm, or up to 3 radians."""
    n = draw(st.integers(2, 30))
    batch = draw(st.sampled_from([(), (4,), (2, 3)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    y = torch.nn.functional.normalize(
        torch.randn(*batch, n, generator=generator, dtype=torch.float64), dim=-1
    )
    tangents = []
    for i in range(vectors):
        h = sphere.project_tangent(y, torch.randn(*batch, n, generator=generator, dtype=torch.float64))
        if i == 0:
            size = draw(st.floats(0, 3)) if angle is None else angle
            h = size * torch.nn.functional.normalize(h, dim=-1)
        tangents.append(h)
    return (y, *tangents)


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def dot(a, b):
    return (a * b).sum(-1)


@given(points())
def test_exp_map_stays_on_sphere(case):
    y, h = case
    close(sphere.exp_map(y, h).norm(dim=-1), torch.ones(y.shape[:-1], dtype=torch.float64), 1e-14)


@given(points(vectors=2, angle=0.0))
def test_zero_vector_moves_nothing(case):
    y, h, v = case
    assert torch.equal(sphere.exp_map(y, h), y)
    assert torch.equal(sphere.parallel_transport(y, h, v), v)
    close(sphere.retraction(y, h), y, 1e-15)
    close(sphere.log_map(y, y), torch.zeros_like(y), 0)


@given(points(angle=math.pi), points(angle=2 * math.pi))
def test_half_and_full_period(half, full):
    close(sphere.exp_map(*half), -half[0], 1e-14)
    close(sphere.exp_map(*full), full[0], 1e-14)


@given(points(), st.floats(-2, 2))
def test_geodesic_goes_on_with_its_transported_velocity(case, s):
    y, h = case
    there = sphere.exp_map(y, h)
    close(sphere.exp_map(there, s * sphere.parallel_transport(y, h, h)), sphere.exp_map(y, (1 + s) * h))


@given(points())
def test_distance_is_the_norm_of_the_velocity(case):
    y, h = case
    z = sphere.exp_map(y, h)
    close(dot(y, z), torch.cos(h.norm(dim=-1)), 1e-14)
    close(sphere.distance(y, z), h.norm(dim=-1), 1e-13)


@given(points())
def test_log_map_inverts_exp_map(case):
    y, h = case
    close(sphere.log_map(y, sphere.exp_map(y, h)), h, 1e-11)


@given(points(), st.sampled_from([0.0, 1e-16, 1e-15, 1e-12, 1e-9]))
def test_log_map_near_the_antipode_is_tangent_and_at_it_zero(case, off):
    y, h = case
    z = -y + off * h
    way = sphere.log_map(y, z / z.norm(dim=-1, keepdim=True) if off > 1e-14 else z)
    close(dot(y, way), torch.zeros(y.shape[:-1], dtype=torch.float64), 1e-13)
    if off == 0:
        close(way, torch.zeros_like(y), 0)


@given(points(vectors=3))
def test_transport_is_an_isometry_onto_the_new_tangent_space(case):
    y, h, a, b = case
    there = sphere.exp_map(y, h)
    moved_a, moved_b = (sphere.parallel_transport(y, h, v) for v in (a, b))
    close(dot(moved_a, moved_b), dot(a, b))
    close(dot(there, moved_a), torch.zeros_like(dot(there, moved_a)))


@given(points(vectors=2))
def test_transport_leaves_what_is_orthogonal_to_the_way(case):
    y, h, v = case
    length = h.norm(dim=-1, keepdim=True)
    u = h / torch.where(length > 0, length, 1)
    v = v - dot(u, v).unsqueeze(-1) * u
    close(sphere.parallel_transport(y, h, v), v)


@given(points(vectors=2))
def test_transport_back_recovers_the_vector(case):
    y, h, v = case
    there = sphere.exp_map(y, h)
    back = -sphere.parallel_transport(y, h, h)
    close(sphere.parallel_transport(there, back, sphere.parallel_transport(y, h, v)), v)


@given(points(vectors=2))
def test_projection_is_idempotent_tangent_and_self_adjoint(case):
    y, a, b = case
    a, b = a + 0.3 * y, b - 2 * y
    p = sphere.project_tangent(y, a)
    close(sphere.project_tangent(y, p), p, 1e-13)
    close(dot(y, p), torch.zeros_like(dot(y, p)), 1e-13)
    close(dot(sphere.project_tangent(y, a), b), dot(a, sphere.project_tangent(y, b)), 1e-12)


@pytest.mark.parametrize("manifold", MANIFOLDS)
def test_retraction_agrees_with_exp_map_to_second_order(manifold):
    y = torch.nn.functional.normalize(torch.randn(6, 9, dtype=torch.float64), dim=-1)
    h = torch.nn.functional.normalize(
        manifold.project_tangent(y, torch.randn(6, 9, dtype=torch.float64)), dim=-1
    )
    steps = torch.tensor([1e-1, 1e-2], dtype=torch.float64)
    errors = [(manifold.retraction(y, t * h) - manifold.exp_map(y, t * h)).norm(dim=-1).max() for t in steps]
    slope = math.log(errors[0] / errors[1]) / math.log(10)
    assert slope == pytest.approx(3, abs=0.05)  # an error of third order


@pytest.mark.parametrize("near", [0.0, 1e-9, 0.0316, 0.0317, 2.0])
def test_operators_are_differentiable_twice_also_at_zero(near):
    torch.manual_seed(0)
    y = torch.nn.functional.normalize(torch.randn(2, 5, dtype=torch.float64), dim=-1)
    v = sphere.project_tangent(y, torch.randn(2, 5, dtype=torch.float64))
    h = near * torch.nn.functional.normalize(
        sphere.project_tangent(y, torch.randn(2, 5, dtype=torch.float64)), dim=-1
    )
    h.requires_grad_()

    def exp_map(h):
        return sphere.exp_map(y, sphere.project_tangent(y, h))

    def transport(h):
        return sphere.parallel_transport(y, sphere.project_tangent(y, h), v)

    for operator in (exp_map, transport):
        assert torch.autograd.gradcheck(operator, h) and torch.autograd.gradgradcheck(operator, h)


def test_gradient_of_distance_and_log_map_at_the_same_point_is_finite():
    y = torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=-1)
    z = y.clone().requires_grad_()
    (sphere.distance(y, z).sum() + sphere.log_map(y, z).sum()).backward()
    assert z.grad.isfinite().all()
    z = (-y).requires_grad_()
    sphere.log_map(y, z).sum().backward()
    assert z.grad.isfinite().all()


def test_float32_keeps_its_type_and_precision():
    y = torch.nn.functional.normalize(torch.randn(7, 50), dim=-1)
    h = 0.1 * sphere.project_tangent(y, torch.randn(7, 50))
    for result in (sphere.exp_map(y, h), sphere.parallel_transport(y, h, h), sphere.retraction(y, h)):
        assert result.dtype == torch.float32
    expected = sphere.exp_map(y.double(), h.double()).float()
    torch.testing.assert_close(sphere.exp_map(y, h), expected, rtol=0, atol=3e-7)


@given(points())
def test_grassmann_takes_a_vector_and_its_negative_for_one_point(case):
    y, h = case
    z = sphere.exp_map(y, h)
    angle = h.norm(dim=-1)
    close(grassmann.distance(y, z), torch.minimum(angle, math.pi - angle), 1e-12)
    close(grassmann.distance(y, -z), grassmann.distance(y, z), 1e-12)
    reached = grassmann.exp_map(y, grassmann.log_map(y, z))
    close(grassmann.distance(reached, z), torch.zeros_like(angle), 1e-7)


def test_first_order_operators_of_both_manifolds_are_the_same():
    for name in ("project_tangent", "exp_map", "parallel_transport", "retraction"):
        assert getattr(grassmann, name) is getattr(sphere, name)


@pytest.mark.parametrize("manifold", MANIFOLDS)
@pytest.mark.parametrize("operator", ["project_tangent", "exp_map", "log_map", "retraction", "distance"])
def test_wrong_shapes_and_types_are_refused(manifold, operator):
    call = getattr(manifold, operator)
    with pytest.raises(ValueError, match=r"shape \(3,\).*\(4,\)"):
        call(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="float64.*one floating-point type"):
        call(torch.ones(3), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="floating-point"):
        call(torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64))


LAYOUTS = [
    ((4, 3, 3, 3), {}, 4),
    ((6, 4, 3, 3), dict(row_dim=1), 4),
    ((6, 4, 3, 3), dict(row_dim=1, conv_groups=2), 8),
    ((6, 4, 3, 3), dict(row_dim=1, conv_groups=2, channels_per_row=2), 4),
    ((6, 4, 2), dict(row_dim=1, conv_groups=3, channels_per_row=12), 1),
    ((6, 4, 2), dict(row_dim=1, conv_groups=3, channels_per_row=4), 3),
    ((6, 4), dict(channels_per_row=3), 2),
    ((6, 4), dict(channels_per_row=None), 1),
]


@pytest.mark.parametrize("shape, layout, count", LAYOUTS)
def test_rows_are_a_bijection(shape, layout, count):
    weight = torch.randn(shape)
    rows = to_rows(weight, **layout)
    assert rows.shape == (count, weight.numel() // count) and Layout(**layout).row_count(weight) == count
    assert torch.equal(from_rows(rows, weight, **layout), weight)
    view, along = Layout(**layout).view(weight)
    assert view.data_ptr() == weight.data_ptr()
    torch.testing.assert_close(view.square().sum(along).flatten(), rows.square().sum(1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(1, 6, 4), (2, 6, 4), (3, 6, 6)]))
def test_rows_of_a_transposed_convolution_make_its_output_channels(seed, sizes):
    groups, channels_in, channels_out = sizes
    torch.manual_seed(seed)
    conv = torch.nn.ConvTranspose2d(channels_in, channels_out, 3, groups=groups, bias=False)
    layout = dict(row_dim=1, conv_groups=groups)
    factors = torch.rand(channels_out, 1) + 0.5
    scaled = from_rows(factors * to_rows(conv.weight, **layout), conv.weight, **layout)
    x = torch.randn(1, channels_in, 4, 4)
    expected = factors.view(1, -1, 1, 1) * conv(x)
    actual = torch.nn.functional.conv_transpose2d(x, scaled, groups=groups)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    "shape, layout, message",
    [
        ((5,), {}, r"shape \(5,\).*two or more dimensions"),
        ((4, 3), dict(channels_per_row=3), "channels_per_row=3.*divisor"),
        ((4, 3), dict(row_dim=2), "row_dim=2 is no dimension"),
        ((4, 3, 3), dict(conv_groups=2), "conv_groups=2 with row_dim=0.*transposed"),
        ((6, 4, 3), dict(row_dim=1, conv_groups=3, channels_per_row=6), "cut across"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(shape, layout, message):
    with pytest.raises(ValueError, match=message):
        to_rows(torch.ones(shape), **layout)


@pytest.mark.parametrize(
    "shape, layout, sizes",
    [
        ((6, 3), Layout(), [1, 2, 3, None]),
        ((1, 3), Layout(), [1]),
        ((4, 3, 2), Layout(1, 2), [1, 3, None]),  # 2 channels would cut across the groups of 3
        ((3, 2, 2), Layout(1, 3), [1, 2, None]),
    ],
)
def test_granularities_are_those_that_fit(shape, layout, sizes):
    found = layout.granularities(torch.ones(shape))
    assert [g.channels_per_row for g in found] == sizes
    assert [g.rows(torch.ones(shape)).numel() for g in found] == [math.prod(shape)] * len(sizes)
