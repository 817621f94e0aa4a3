"""What keeps the filters of a layer apart: the regularizer L^O and its gradient."""

from __future__ import annotations

from torch import Tensor

__all__ = ["orthogonality", "orthogonality_grad"]


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


def orthogonality_grad(rows: Tensor, alpha: float | Tensor) -> Tensor:
    r"""The gradient of :math:`L^O`, :math:`2\alpha\,(YY^\top Y - Y)`.

    Args:
        rows: Unit rows Y, shape ``(rows, fan_in)``.
        alpha: Weight of the regularizer.

    Returns:
        Shape ``(rows, fan_in)``. Formed through the smaller of the two Gram matrices.

    Source: Cho and Lee (2017), arXiv:1709.09603; their released code adds the same to the gradient.
    """
    few_rows = rows.shape[0] <= rows.shape[1]
    product = (rows @ rows.mT) @ rows if few_rows else rows @ (rows.mT @ rows)
    return (product - rows) * (2 * alpha)
