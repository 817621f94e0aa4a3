"""Data sets as tensors, and their normalization and augmentation on the device."""

from .augment import channel_stats as channel_stats
from .augment import normalize as normalize
from .augment import reflect_crop_flip as reflect_crop_flip
from .dataset import Dataset as Dataset
from .names import Datasets as Datasets
from .names import content_digest as content_digest
from .names import datasets as datasets
from .names import load as load
