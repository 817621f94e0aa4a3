"""The networks of the papers, in plain torch: VGG and wide residual networks; and small ones of other kinds."""

from . import small as small
from .layers import BatchNorm as BatchNorm
from .memory_format import channels_last as channels_last
from .names import build as build
from .vgg import vgg as vgg
from .wide_resnet import wide_resnet as wide_resnet
