"""Which data need neither network nor files? The 1,797 digits that come with scikit-learn."""

from __future__ import annotations

import torch

from .dataset import Dataset

__all__ = ["digits"]


def digits() -> tuple[Dataset, Dataset]:
    """Scikit-learn's handwritten digits, gray 8x8: 1,442 to train, 355 to test.

    The test set is the last fifth of every class in file order, rounded down: nothing is drawn, so it is the
    same everywhere. The pixels' 17 levels 0 … 16 become 0 … 255, rounded.

    Raises:
        ImportError: If scikit-learn is not installed.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
    (1998), its test part, as `sklearn.datasets.load_digits` holds it.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('scikit-learn is missing; run: pip install "riembn[experiment]"') from error
    bunch = load_digits()
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    images = (torch.as_tensor(bunch.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        positions = (labels == digit).nonzero().squeeze(1)
        in_test[positions[len(positions) - len(positions) // 5 :]] = True
    whole = Dataset(images, labels, tuple(str(digit) for digit in range(10)), "digits")
    return whole.subset((~in_test).nonzero().squeeze(1)), whole.subset(in_test.nonzero().squeeze(1))
