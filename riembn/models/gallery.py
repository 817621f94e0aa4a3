"""Networks of every common kind, each with an example of what it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .other_kinds import GPT, UNet, dcgan_discriminator, dcgan_generator, mlp_norm_last
from .vgg import vgg
from .wide_resnet import wide_resnet

TORCHVISION = (
    *("resnet18", "resnet50", "densenet121", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"),
    *("shufflenet_v2_x1_0", "regnet_y_400mf"),
)
"""Networks of torchvision, one of each kind."""


def gallery(
    library: Any, *, names: Iterable[str] = TORCHVISION, size: int = 64, generator: torch.Generator | None = None
) -> dict[str, tuple[Callable[[], nn.Module], Tensor]]:
    """The two families of the first paper, networks of torchvision, and small ones of kinds that it does not have.

    Args:
        library: The module ``torchvision.models``.
        names: Which of its networks.
        size: Height and width of the images that they get, pixels; Inception's are 96 at least.
        generator: Draws the examples.

    Returns:
        For each name how to build the network, with fresh weights, and a small random batch.
    """

    def images(count: int, pixels: int) -> Tensor:
        return torch.randn(count, 3, pixels, pixels, generator=generator)

    found: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        "VGG-13": (partial(vgg, 13), images(4, 32)),
        "WRN-16-4": (partial(wide_resnet, 16, 4), images(4, 32)),
    }
    for name in names:
        inception = {"init_weights": False, "aux_logits": False} if name == "inception_v3" else {}
        build = partial(library.get_model, name, weights=None, **inception)
        found[name] = build, images(2, max(size, 96) if inception else size)
    return found | {
        "resnet18, GroupNorm": (partial(library.resnet18, norm_layer=partial(nn.GroupNorm, 32)), images(2, size)),
        "vision transformer": (partial(library.VisionTransformer, 32, 8, 2, 2, 32, 64), images(4, 32)),
        "GPT, QK-norm": (GPT, torch.randint(50, (4, 12), generator=generator)),
        "U-Net": (partial(UNet, normalized=False), images(2, 32)),
        "MLP, norm after ReLU": (mlp_norm_last, torch.randn(16, 12, generator=generator)),
        "DCGAN, generator": (dcgan_generator, torch.randn(4, 10, 1, 1, generator=generator)),
        "DCGAN, discriminator": (dcgan_discriminator, images(4, 32)),
    }
