r"""Maps of :math:`G(1, n)`, the lines through the origin, each stood for by a unit vector ``y`` (or ``-y``).

To first order this is the sphere: the same tangent vectors, exponential map, transport and retraction. What
differs is what looks at two points at once: ``y`` and ``-y`` are one point here, so distances end at ``pi/2`` and
the logarithm map goes to the nearer of the two representatives. Cho and Lee (2017) write their method on
:math:`G(1, n)`; a normalized network tells ``w`` from ``-w``, so its weights live on the sphere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import sphere
from .sphere import exp_map as exp_map
from .sphere import parallel_transport as parallel_transport
from .sphere import project_tangent as project_tangent
from .sphere import retraction as retraction


def log_map(y: Tensor, z: Tensor) -> Tensor:
    r"""Logarithm map on the lines: the shortest tangent vector at ``y`` whose exponential is ``z`` or ``-z``.

    Args:
        y: Unit vectors, shape ``(..., n)``.
        z: Unit vectors, broadcastable with ``y``; ``z`` and ``-z`` give the same result.

    Returns:
        Tangent vectors at ``y`` of norm at most ``pi/2``. Orthogonal lines have two shortest ways; the one to
        ``z`` is taken.

    Raises:
        ValueError: If the last axes or the dtypes differ.

    Source: Edelman, Arias and Smith (1998), arXiv:physics/9806030, with p = 1.
    """
    return sphere.log_map(y, _nearer(y, z))


def distance(y: Tensor, z: Tensor) -> Tensor:
    r"""Geodesic distance between two lines: the angle between them.

    Args:
        y: Unit vectors, shape ``(..., n)``.
        z: Unit vectors, broadcastable with ``y``.

    Returns:
        Radians in ``[0, pi/2]``, shape ``(...)``: the smaller of the sphere's distances to ``z`` and ``-z``.

    Raises:
        ValueError: If the last axes or the dtypes differ.

    Source: Edelman, Arias and Smith (1998), arXiv:physics/9806030 (arc length), with p = 1.
    """
    return sphere.distance(y, _nearer(y, z))


def _nearer(y: Tensor, z: Tensor) -> Tensor:
    if y.shape[-1:] != z.shape[-1:]:
        return z  # the sphere's own check names the shapes
    return torch.where((y * z).sum(-1, keepdim=True) < 0, -z, z)
