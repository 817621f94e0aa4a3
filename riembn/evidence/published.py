"""The tables of the two papers, as they were published: nothing here was measured by this project.

Sources: M. Cho and J. Lee (2017), "Riemannian approach to batch normalization", the tables of the authors' release
(test error, percent, median of five runs); M. Yi (2022), "Accelerating training of batch normalization: a manifold
perspective", Tables 1 and 2 (accuracy, percent, mean of five runs; ImageNet three).
"""

from __future__ import annotations

import pandas

CHO_LEE_METHODS = ("sgd", "sgd-g", "adam-g")
CHO_LEE: dict[tuple[str, str], tuple[float, ...]] = {
    ("cifar10", "vgg-13"): (5.88, 5.87, 6.05),
    ("cifar10", "vgg-19"): (6.49, 5.92, 6.02),
    ("cifar10", "wrn-28-10"): (3.89, 3.85, 3.78),
    ("cifar10", "wrn-40-10"): (3.72, 3.72, 3.80),
    ("cifar100", "vgg-13"): (26.17, 25.29, 24.89),
    ("cifar100", "vgg-19"): (27.62, 25.79, 25.59),
    ("cifar100", "wrn-28-10"): (18.66, 18.19, 18.30),
    ("cifar100", "wrn-40-10"): (18.39, 18.04, 17.85),
    ("svhn", "vgg-13"): (1.78, 1.74, 1.72),
    ("svhn", "vgg-19"): (1.94, 1.81, 1.77),
    ("svhn", "wrn-16-4"): (1.64, 1.67, 1.61),
    ("svhn", "wrn-22-8"): (1.64, 1.63, 1.55),
}
"""Test errors, percent, in the order of `CHO_LEE_METHODS`."""

YI_METHODS = ("SGD", "Adam", "SGDG", "PSI-SGD", "PSI-SGDM")
YI_PLAIN: dict[tuple[str, str], tuple[float, ...]] = {
    ("cifar10", "resnet-20"): (91.14, 89.90, 91.38, 92.25, 92.41),
    ("cifar10", "resnet-32"): (91.32, 90.40, 92.48, 93.56, 93.30),
    ("cifar10", "resnet-44"): (91.95, 91.02, 92.99, 93.90, 93.39),
    ("cifar10", "resnet-56"): (92.19, 91.49, 93.11, 94.08, 93.90),
    ("cifar100", "resnet-20"): (65.53, 63.35, 68.19, 69.11, 68.41),
    ("cifar100", "resnet-32"): (67.41, 64.43, 70.13, 70.81, 70.14),
    ("cifar100", "resnet-44"): (67.72, 65.03, 71.32, 71.94, 72.03),
    ("cifar100", "resnet-56"): (68.02, 65.77, 71.46, 72.88, 72.40),
    ("imagenet", "resnet-18"): (67.72, 68.16, 68.97, 70.38, 69.42),
    ("imagenet", "resnet-34"): (71.30, 70.68, 72.40, 73.31, 72.88),
    ("imagenet", "resnet-50"): (73.46, 74.00, 74.67, 74.67, 75.11),
}
"""Accuracies, percent, without regularizer, in the order of `YI_METHODS`."""

YI_WITH_DECAY: dict[tuple[str, str], tuple[float, ...]] = {
    ("cifar10", "resnet-20"): (92.35, 90.89, 91.99, 92.49, 92.70),
    ("cifar10", "resnet-32"): (93.64, 91.83, 92.53, 93.75, 93.80),
    ("cifar10", "resnet-44"): (93.74, 91.85, 93.30, 94.15, 93.92),
    ("cifar10", "resnet-56"): (94.19, 91.78, 93.37, 93.98, 93.99),
    ("cifar100", "resnet-20"): (68.62, 65.66, 68.67, 69.62, 69.64),
    ("cifar100", "resnet-32"): (70.67, 67.72, 70.49, 71.21, 71.07),
    ("cifar100", "resnet-44"): (71.31, 68.24, 71.49, 72.03, 72.00),
    ("cifar100", "resnet-56"): (72.44, 68.78, 71.56, 73.05, 72.62),
}
"""Accuracies, percent, with L2 of 5e-4 on all parameters, in the order of `YI_METHODS`."""


def cho_lee() -> pandas.DataFrame:
    """Cho and Lee's 36 cells: columns ``dataset``, ``network``, then the test error of each method."""
    return _table(CHO_LEE, CHO_LEE_METHODS)


def yi(*, decay: bool) -> pandas.DataFrame:
    """Yi's cells without (55) or with L2 (40): ``dataset``, ``network``, then the accuracy of each method."""
    return _table(YI_WITH_DECAY if decay else YI_PLAIN, YI_METHODS)


def _table(cells: dict[tuple[str, str], tuple[float, ...]], methods: tuple[str, ...]) -> pandas.DataFrame:
    rows = [[*cell, *values] for cell, values in cells.items()]
    return pandas.DataFrame(rows, columns=["dataset", "network", *methods])
