r"""Maps of the unit sphere :math:`S^{n-1}`: projection, exponential and logarithm map, transport, retraction.

A point ``y`` is a unit vector, a tangent vector at ``y`` is orthogonal to it, and both fill the last axis; every
leading axis is a batch, so a whole layer moves in one call. Nothing is renormalized here and nothing is added to
a norm: cosine and sine enter as smooth functions of the *squared* angle, so each map is exact at ``h = 0`` and has
all its derivatives there, the second included.
"""

from __future__ import annotations

import torch
from torch import Tensor


def project_tangent(y: Tensor, g: Tensor) -> Tensor:
    r"""Orthogonal projection of ``g`` on the tangent space at ``y``.

    .. math:: P_y(g) = g - \langle y, g\rangle\, y

    Args:
        y: Unit vectors, shape ``(..., n)``.
        g: Any vectors, broadcastable with ``y``, same dtype: a Euclidean gradient, say.

    Returns:
        Tangent vectors at ``y``, shape ``(..., n)``; projecting twice changes nothing beyond rounding.

    Raises:
        ValueError: If the last axes or the dtypes differ.

    Source: Absil, Mahony and Sepulchre (2008); Cho and Lee (2017), arXiv:1709.09603, whose released code
    computes the same.
    """
    _check("project_tangent", y=y, g=g)
    return g - _dot(y, g) * y


def exp_map(y: Tensor, h: Tensor) -> Tensor:
    r"""Exponential map: walk from ``y`` along the geodesic with initial velocity ``h``, for unit time.

    .. math:: \exp_y(h) = \cos(\|h\|)\, y + \frac{\sin \|h\|}{\|h\|}\, h

    Args:
        y: Unit vectors, shape ``(..., n)``.
        h: Tangent vectors at ``y``, broadcastable with it. The norm is the angle travelled, in radians: ``pi``
            reaches the antipode, ``2 pi`` comes back.

    Returns:
        Unit vectors, shape ``(..., n)``, to a few rounding errors; ``y`` itself at ``h = 0``.

    Raises:
        ValueError: If the last axes or the dtypes differ.

    Source: Absil, Mahony and Sepulchre (2008); Cho and Lee (2017), arXiv:1709.09603.

    >>> y = torch.tensor([1.0, 0.0, 0.0])
    >>> import math
    >>> exp_map(y, torch.tensor([0.0, math.pi / 2, 0.0])).round(decimals=6).abs()
    tensor([0., 1., 0.])
    """
    _check("exp_map", y=y, h=h)
    cosine, sine_ratio, _ = _trigonometry(h)
    return cosine * y + sine_ratio * h


def log_map(y: Tensor, z: Tensor) -> Tensor:
    r"""Logarithm map: the shortest tangent vector at ``y`` whose exponential is ``z``.

    .. math:: \log_y(z) = \theta\, \frac{P_y(z)}{\|P_y(z)\|}, \qquad \theta = \operatorname{dist}(y, z)

    Args:
        y: Unit vectors, shape ``(..., n)``.
        z: Unit vectors, broadcastable with ``y``.

    Returns:
        Tangent vectors at ``y`` of norm at most ``pi``. Zero at ``z = y``. At the antipode every direction is
        a shortest one; there the result is zero too, and its norm does not tell the distance.

    Raises:
        ValueError: If the last axes or the dtypes differ.

    Source: Absil, Mahony and Sepulchre (2008), as the inverse of the exponential map.
    """
    _check("log_map", y=y, z=z)
    # From z - y, or z + y, instead of z: exact for points that are near, or nearly opposite, where P_y(z) cancels.
    cosine = _dot(y, z)
    short = z - torch.where(cosine < 0, -y, y)
    tangent = short - _dot(y, short) * y
    sine = _norm(tangent)
    angle = torch.atan2(sine, cosine)
    inside = sine > 0
    return torch.where(inside, angle / torch.where(inside, sine, 1), 1) * tangent


def parallel_transport(y: Tensor, h: Tensor, v: Tensor) -> Tensor:
    r"""Parallel transport of ``v`` along the geodesic ``t -> exp_map(y, t h)``, from t = 0 to t = 1.

    .. math:: \Gamma(v) = v - \frac{\langle h, v\rangle}{\|h\|^2}
              \bigl(\|h\| \sin\|h\|\; y + (1 - \cos\|h\|)\, h\bigr)

    Args:
        y: Unit vectors, shape ``(..., n)``.
        h: Tangent vectors at ``y``: the way walked, in radians.
        v: Tangent vectors at ``y``: what is carried along.

    Returns:
        Tangent vectors at ``exp_map(y, h)``. Lengths and angles are kept; what is orthogonal to ``h`` does
        not change at all; ``v`` itself at ``h = 0``.

    Raises:
        ValueError: If the last axes or the dtypes differ.

    Source: Absil, Mahony and Sepulchre (2008); Cho and Lee (2017), arXiv:1709.09603.
    """
    _check("parallel_transport", y=y, h=h, v=v)
    _, sine_ratio, versine_ratio = _trigonometry(h)
    return v - _dot(h, v) * (sine_ratio * y + versine_ratio * h)


def retraction(y: Tensor, h: Tensor) -> Tensor:
    r"""Retraction: step in the tangent plane, then back to the sphere; the exponential map to second order.

    .. math:: R_y(h) = \frac{y + h}{\|y + h\|} = \frac{y + h}{\sqrt{1 + \|h\|^2}}

    Args:
        y: Unit vectors, shape ``(..., n)``.
        h: Tangent vectors at ``y``; the point moves by ``arctan(|h|)`` radians, never more than ``pi/2``.

    Returns:
        Unit vectors, shape ``(..., n)``.

    Raises:
        ValueError: If the last axes or the dtypes differ.

    Source: Absil, Mahony and Sepulchre (2008).
    """
    _check("retraction", y=y, h=h)
    moved = y + h
    return moved / _norm(moved)


def distance(y: Tensor, z: Tensor) -> Tensor:
    r"""Geodesic distance: the angle between two points.

    .. math:: \operatorname{dist}(y, z) = 2 \operatorname{atan2}(\|y - z\|, \|y + z\|)

    Args:
        y: Unit vectors, shape ``(..., n)``.
        z: Unit vectors, broadcastable with ``y``.

    Returns:
        Radians in ``[0, pi]``, shape ``(...)``. Unlike ``arccos <y, z>`` it is accurate for near and for
        opposite points. As a distance it has no derivative at ``z = y``; autograd gives zero there.

    Raises:
        ValueError: If the last axes or the dtypes differ.

    Source: the chord and its complement, ``|y - z| = 2 sin(angle/2)`` and ``|y + z| = 2 cos(angle/2)``.
    """
    _check("distance", y=y, z=z)
    return 2 * torch.atan2(_norm(y - z), _norm(y + z)).squeeze(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # its subgradient at zero is zero, not NaN


def _trigonometry(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``cos a``, ``sin(a)/a`` and ``(1 - cos a)/a²`` of the angle ``a = |h|``, each shape ``(..., 1)``.

    All three are power series in a². Below a² = 1e-3 four terms are exact to 1e-15, and differentiating them
    never meets the kink of the norm at zero; above, the closed forms lose nothing.
    """
    q = _dot(h, h)
    small = q < 1e-3
    near = torch.where(small, q, 0)
    far = torch.where(small, 1, q)
    angle = far.sqrt()
    cosine = torch.where(small, 1 - near / 2 * (1 - near / 12 * (1 - near / 30)), torch.cos(angle))
    sine_ratio = torch.where(
        small, 1 - near / 6 * (1 - near / 20 * (1 - near / 42)), torch.sin(angle) / angle
    )
    # 2 sin²(a/2) instead of 1 - cos a, which cancels.
    versine_ratio = torch.where(
        small,
        0.5 * (1 - near / 12 * (1 - near / 30 * (1 - near / 56))),
        2 * torch.sin(angle / 2).square() / far,
    )
    return cosine, sine_ratio, versine_ratio


def _check(caller: str, **tensors: Tensor) -> None:
    (first, y), *others = tensors.items()
    for name, other in others:
        if y.dim() == 0 or other.dim() == 0 or y.shape[-1] != other.shape[-1]:
            raise ValueError(
                f"{caller}: `{first}` has shape {tuple(y.shape)} and `{name}` {tuple(other.shape)}; points and "
                "tangent vectors are the last axis and must have one length."
            )
        if y.dtype != other.dtype or not y.dtype.is_floating_point:
            raise ValueError(
                f"{caller}: `{first}` is {y.dtype} and `{name}` {other.dtype}; both must be one floating-point type."
            )
