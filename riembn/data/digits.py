"""The 1,797 digits that come with scikit-learn: data that need neither network nor files of one's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from .dataset import Dataset


def digits() -> tuple[Dataset, Dataset]:
    """Scikit-learn's handwritten digits, gray 8x8: 1,442 to train, 355 to test.

    The test set is the last fifth of every class in file order, rounded down: nothing is drawn, so it is the
    same everywhere. The pixels' 17 levels 0 … 16 become 0 … 255, rounded.

    Raises:
        ImportError: If scikit-learn is not installed.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
    (1998), its test part, as `sklearn.datasets.load_digits` holds it.
    """
    pixels, labels = _read()
    images = (pixels * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        positions = (labels == digit).nonzero().squeeze(1)
        in_test[positions[len(positions) - len(positions) // 5 :]] = True
    whole = Dataset(images, labels, tuple(str(digit) for digit in range(10)), "digits")
    return whole.subset((~in_test).nonzero().squeeze(1)), whole.subset(in_test.nonzero().squeeze(1))


def _read() -> tuple[Tensor, Tensor]:
    """Pixels, shape ``(n, 64)``, and labels, from the file as it lies in scikit-learn's folder.

    Importing scikit-learn takes a second and more, which every process of a sweep and every chapter would spend.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ImportError('scikit-learn is missing; run: pip install "riembn[experiment]"')
    path = Path(found.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if path.is_file():
        import numpy  # which scikit-learn needs

        rows = torch.from_numpy(numpy.loadtxt(path, delimiter=","))
        return rows[:, :-1], rows[:, -1].long()
    from sklearn.datasets import load_digits  # a version that keeps it elsewhere

    bunch = load_digits()
    return torch.as_tensor(bunch.data), torch.as_tensor(bunch.target, dtype=torch.int64)
