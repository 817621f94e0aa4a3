"""Networks in plain torch: VGG, ResNet, wide residual networks, small ones of other kinds; names; costs."""

from . import other_kinds as other_kinds
from .cost import multiplications as multiplications
from .gallery import gallery as gallery
from .layers import BatchNorm as BatchNorm
from .memory_format import channels_last as channels_last
from .names import Networks as Networks
from .names import build as build
from .names import networks as networks
from .resnet import resnet as resnet
from .vgg import vgg as vgg
from .wide_resnet import wide_resnet as wide_resnet
