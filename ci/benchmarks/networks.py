"""Networks to split: of torchvision, of timm, and written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from riembn import models
from riembn.data.from_torchvision import import_torchvision


@dataclass(frozen=True)
class Network:
    """One to build and to measure.

    Attributes:
        source: "torchvision", "timm" or "riembn".
        name: As there.
        shape: Of its example, a batch of noise.
        options: What its builder is given besides.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> tuple[nn.Module, Any]:
        """With fresh weights, always the same ones, and its example."""
        torch.manual_seed(0)
        if self.source == "riembn":
            return _HERE[self.name](**self.options), self._example()
        library = import_torchvision().models  # first: timm imports it as well
        if self.source == "torchvision":
            return library.get_model(self.name, weights=None, **self.options), self._example()
        import timm

        return timm.create_model(self.name, **self.options), self._example()

    def _example(self) -> Any:
        generator = torch.Generator().manual_seed(1)
        if self.name == "GPT, QK-norm":
            return torch.randint(50, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)


def _resnet18_group_norm() -> nn.Module:
    return import_torchvision().models.resnet18(norm_layer=partial(nn.GroupNorm, 32))


_HERE: dict[str, Callable[..., nn.Module]] = {
    "VGG-13": partial(models.vgg, 13),
    "ResNet-20": partial(models.resnet, 20),
    "WRN-16-4": partial(models.wide_resnet, 16, 4),
    "WRN-10-1": partial(models.wide_resnet, 10, 1),
    "resnet18, GroupNorm": _resnet18_group_norm,
    "GPT, QK-norm": models.other_kinds.GPT,
    "U-Net": partial(models.other_kinds.UNet, normalized=False),
    "MLP, norm after ReLU": models.other_kinds.mlp_norm_last,
    "DCGAN, generator": models.other_kinds.dcgan_generator,
    "DCGAN, discriminator": models.other_kinds.dcgan_discriminator,
}


def _of(source: str, shape: tuple[int, ...], *names: str, **options: Any) -> list[Network]:
    return [Network(source, name, shape, options) for name in names]


_AT_32, _AT_64, _AT_96, _AT_224 = ((4, 3, size, size) for size in (32, 64, 96, 224))
_NO_HEADS = {"init_weights": False, "aux_logits": False}

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in [
        *_of("riembn", _AT_32, "VGG-13", "ResNet-20", "WRN-16-4", "WRN-10-1", "U-Net", "DCGAN, discriminator"),
        *_of("riembn", _AT_64, "resnet18, GroupNorm"),
        *_of("riembn", (4, 12), "GPT, QK-norm"),
        *_of("riembn", (16, 12), "MLP, norm after ReLU"),
        *_of("riembn", (4, 10, 1, 1), "DCGAN, generator"),
        *_of("torchvision", _AT_64, "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121"),
        *_of("torchvision", _AT_64, "googlenet", **_NO_HEADS),
        *_of("torchvision", _AT_96, "inception_v3", **_NO_HEADS),
        *_of("torchvision", _AT_64, "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0"),
        *_of("torchvision", _AT_64, "efficientnet_b0", "efficientnet_v2_s", "shufflenet_v2_x1_0"),
        *_of("torchvision", _AT_64, "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t"),
        *_of("torchvision", _AT_64, "vit_b_16", image_size=64),
        *_of("torchvision", _AT_64, "lraspp_mobilenet_v3_large", weights_backbone=None),
        *_of("torchvision", (2, 3, 8, 32, 32), "r3d_18"),
        *_of("timm", _AT_64, "resnet26d", "resnetv2_50", "resnetv2_50x1_bit", "resnest14d", "ecaresnet26t"),
        *_of("timm", _AT_64, "skresnet18", "dla34", "dpn48b", "hrnet_w18_small", "cspresnet50", "ese_vovnet19b_dw"),
        *_of("timm", _AT_64, "mobileone_s0", "repvgg_a0", "ghostnet_100", "mobilenetv4_conv_small"),
        *_of("timm", _AT_32, "efficientnet_lite0", "mixnet_s"),
        *_of("timm", _AT_64, "nf_resnet26", "nf_regnet_b0", "convnextv2_atto", "edgenext_xx_small"),
        *_of("timm", _AT_64, "lambda_resnet26t", "poolformer_s12", "mobilevitv2_050", "fastvit_t8", "xception41p"),
        *_of("timm", _AT_64, "deit_tiny_patch16_224", "cait_xxs24_224", "convit_tiny", "mixer_s32_224", img_size=64),
        *_of("timm", _AT_64, "resmlp_12_224", "gmlp_ti16_224", "pit_ti_224", img_size=64),
        *_of("timm", _AT_224, "levit_128s"),
    ]
}
"""By name."""
