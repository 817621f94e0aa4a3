"""The regularizer L^O, which keeps the rows of a layer apart, and its gradient."""

from __future__ import annotations

from torch import Tensor


def orthogonality(rows: Tensor) -> Tensor:
    r"""The orthogonality regularizer over its weight, :math:`L^O/\alpha = \tfrac12\|YY^\top - I\|_F^2`.

    Args:
        rows: Unit rows Y, shape ``(rows, fan_in)``. With unit rows the value is the sum of squared cosines
            between different rows; it is zero only for orthonormal rows, which needs ``rows <= fan_in``.

    Returns:
        A scalar tensor; differentiable.

    Source: Cho and Lee (2017), arXiv:1709.09603, regularizer :math:`L^O(\alpha, Y)`.
    """
    gram = rows @ rows.mT
    gram = gram - gram.new_ones(len(gram)).diag()
    return gram.square().sum() / 2


def orthogonality_grad(rows: Tensor, alpha: float | Tensor, *, among: Tensor | None = None) -> Tensor:
    r"""The gradient of :math:`L^O`, :math:`2\alpha\,(YY^\top Y - Y)`.

    Args:
        rows: Unit rows Y, shape ``(..., rows, fan_in)``: one matrix, or several of one shape.
        alpha: Weight of the regularizer.
        among: All rows, where ``rows`` are only some of them: their part of the gradient is returned.

    Returns:
        The shape of ``rows``. Formed through the smaller of the two Gram matrices.

    Source: Cho and Lee (2017), arXiv:1709.09603; their released code adds the same to the gradient.
    """
    among = rows if among is None else among
    few_rows = among.shape[-2] <= among.shape[-1]
    product = (rows @ among.mT) @ among if few_rows else rows @ (among.mT @ among)
    return product.sub_(rows).mul_(2 * alpha)
