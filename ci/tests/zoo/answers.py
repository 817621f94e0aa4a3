"""Which weights of well-known networks are scale-invariant: the answers worked out by hand.

An answer maps patterns of parameter names to a granularity ("channel", "4 channels", "whole tensor") or, after
"no: ", to words of the reason; " + bias" says that the bias belongs to the rows. The first pattern that fits
counts, and every tensor of two or more dimensions must fit one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from riembn.data.from_torchvision import import_torchvision
from riembn.models import other_kinds, vgg, wide_resnet

OUTPUT = "no: reaches the output"
SHORTCUT = "no: feeds a sum with another path"


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    answer: dict[str, str]
    slow: bool = False

    @property
    def param(self) -> Any:
        return pytest.param(self, id=self.name, marks=[pytest.mark.slow] if self.slow else [])


def torchvision_models() -> Any:
    try:
        return import_torchvision().models
    except ImportError as error:
        pytest.skip(str(error))


def tv(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        return torchvision_models().get_model(name, weights=None, **options)

    return build


def images(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tokens(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(50, shape, generator=torch.Generator().manual_seed(1))


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


# Every convolution is followed by BatchNorm before anything is added to it: only the classifier is left out.
PLAIN = {"fc.weight": OUTPUT, "classifier*": OUTPUT, "*": "channel"}

CASES = [
    # conv-BN-ReLU throughout, and the two hidden linear layers are followed by BatchNorm as well.
    Case(
        "vgg-13",
        partial(vgg, 13, width=0.25),
        images(4, 3, 32, 32),
        {"classifier.7.weight": OUTPUT, "*": "channel"},
    ),
    # Pre-activation: the first convolution of a block is followed by BatchNorm; the second, and the shortcut,
    # meet each other in the sum. conv0 has BatchNorm behind it, since the first shortcut starts after it.
    Case(
        "wrn-16-4",
        partial(wide_resnet, 16, 4, dropout=0.3),
        images(2, 3, 16, 16),
        {"*conv2.weight": SHORTCUT, "*shortcut*": SHORTCUT, "fc.weight": OUTPUT, "*": "channel"},
    ),
    # Width 1: the first shortcut is the identity, so that conv0 reaches the sum bare.
    Case(
        "wrn-10-1",
        partial(wide_resnet, 10, 1),
        images(4, 3, 16, 16),
        {
            "conv0*": SHORTCUT,
            "*conv2*": SHORTCUT,
            "*shortcut*": SHORTCUT,
            "fc.weight": OUTPUT,
            "*": "channel",
        },
    ),
    Case("resnet18", tv("resnet18"), images(2, 3, 64, 64), PLAIN),
    # The last scale of each block starts at zero: no weight of the block has influence yet, but the answer stays.
    Case("resnet18-zero-init", tv("resnet18", zero_init_residual=True), images(2, 3, 64, 64), PLAIN),
    Case("resnet50", tv("resnet50"), images(2, 3, 64, 64), PLAIN, slow=True),
    Case("resnext50", tv("resnext50_32x4d"), images(2, 3, 64, 64), PLAIN, slow=True),
    # Concatenation keeps channels apart, and each of the BatchNorms behind it normalizes them one by one.
    Case("densenet121", tv("densenet121"), images(2, 3, 64, 64), PLAIN, slow=True),
    Case("shufflenet-v2", tv("shufflenet_v2_x0_5"), images(2, 3, 64, 64), PLAIN),
    Case("regnet-x", tv("regnet_x_400mf"), images(2, 3, 64, 64), PLAIN, slow=True),
    # At 32 pixels the last maps are one pixel wide: most channels hardly vary, and of the depthwise filters only the
    # middle entry counts.
    Case("mobilenet-v2-at-32", tv("mobilenet_v2"), images(4, 3, 32, 32), PLAIN),
    Case("mnasnet-at-32", tv("mnasnet0_5"), images(4, 3, 32, 32), PLAIN),
    # Squeeze and excitation: two convolutions whose result, past a sigmoid, multiplies another path.
    Case(
        "regnet-y",
        tv("regnet_y_400mf"),
        images(2, 3, 64, 64),
        {"*se.fc*": "no: passes through Sigmoid", **PLAIN},
        slow=True,
    ),
    Case(
        "mobilenet-v3",
        tv("mobilenet_v3_small"),
        images(2, 3, 64, 64),
        {
            "*fc?.weight": "no: passes through Hardsigmoid",
            "classifier.0.weight": "no: passes through Hardswish",
            **PLAIN,
        },
    ),
    Case(
        "efficientnet-b0",
        tv("efficientnet_b0"),
        images(2, 3, 64, 64),
        {"*fc1.weight": "no: passes through SiLU", "*fc2.weight": "no: passes through Sigmoid", **PLAIN},
        slow=True,
    ),
    Case(
        "inception-v3",
        tv("inception_v3", init_weights=False, aux_logits=False),
        images(4, 3, 96, 96),
        PLAIN,
        slow=True,
    ),
    # Depthwise convolutions and the first one have a bias and LayerNorm behind them: the pair is one vector.
    Case(
        "convnext-tiny",
        tv("convnext_tiny"),
        images(2, 3, 64, 64),
        {
            "features.0.0.weight": "whole tensor + bias",
            "*block.0.weight": "whole tensor + bias",
            "features.?.1.weight": SHORTCUT,  # a downsampling convolution: block and shortcut start behind it
            "*block.3.weight": "no: passes through GELU",
            "*block.5.weight": SHORTCUT,
            "*layer_scale": "no: a bias, shift or scale",
            "classifier*": OUTPUT,
        },
        slow=True,
    ),
    # 32 groups share their scale: 2 of 64 channels, 4 of 128, 8 of 256, 16 of 512.
    Case(
        "group-norm-resnet18",
        tv("resnet18", norm_layer=group_norm),
        images(2, 3, 64, 64),
        {
            "fc.weight": OUTPUT,
            "conv1*": "2 channels",
            "layer1*": "2 channels",
            "layer2*": "4 channels",
            "layer3*": "8 channels",
            "layer4*": "16 channels",
        },
    ),
    # LayerNorm stands in front of every layer and never behind one: no weight by row, none as a whole.
    Case(
        "vision-transformer",
        lambda: torchvision_models().VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10),
        images(4, 3, 32, 32),
        {
            "class_token": "no: is added to a learned offset",
            "conv_proj.weight": "no: is added to a learned offset",
            "encoder.pos_embedding": SHORTCUT,
            "*in_proj_weight": "no: ",
            "*out_proj.weight": SHORTCUT,
            "*mlp.0.weight": "no: passes through GELU",
            "*mlp.3.weight": SHORTCUT,
            "heads*": OUTPUT,
        },
    ),
    # Queries and keys are normalized in each head of 8 channels, so each head is one vector; values are not.
    Case(
        "gpt-qk-norm",
        other_kinds.GPT,
        tokens(4, 12),
        {
            "*query.weight": "8 channels",
            "*key.weight": "8 channels",
            "*value.weight": SHORTCUT,
            "*out.weight": SHORTCUT,
            "mlp.?.0.weight": "no: passes through GELU",
            "mlp.?.2.weight": SHORTCUT,
            "embedding*": "no: ",
            "position*": "no: ",
            "head*": OUTPUT,
        },
    ),
    # ReLU keeps positive factors, so that BatchNorm behind it removes them; a bias in between must come along.
    Case(
        "mlp-norm-last",
        partial(other_kinds.mlp_norm_last, False),
        images(16, 12),
        {"6.weight": OUTPUT, "*": "channel"},
    ),
    Case(
        "mlp-norm-last-bias",
        partial(other_kinds.mlp_norm_last, True),
        images(16, 12),
        {"6.weight": OUTPUT, "*": "channel + bias"},
    ),
    # Concatenated with the skip and mixed by the next convolution before any normalization.
    Case(
        "u-net",
        partial(other_kinds.UNet, False),
        images(2, 3, 16, 16),
        {"up.weight": "no: is mixed with the channels", "head*": OUTPUT, "*": "channel"},
    ),
    Case("u-net-norm", partial(other_kinds.UNet, True), images(2, 3, 16, 16), {"head*": OUTPUT, "*": "channel"}),
    Case(
        "dcgan-generator",
        other_kinds.dcgan_generator,
        images(4, 10, 1, 1),
        {"9.weight": "no: passes through Tanh", "*": "channel"},
    ),
    # No BatchNorm behind the first layer, but LeakyReLU and a convolution without bias pass its scale on to the
    # next one: all its channels together are one vector.
    Case(
        "dcgan-discriminator",
        other_kinds.dcgan_discriminator,
        images(4, 3, 32, 32),
        {"0.weight": "whole tensor", "8.weight": "no: passes through Sigmoid", "*": "channel"},
    ),
]
