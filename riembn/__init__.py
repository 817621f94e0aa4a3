"""Train batch-normalized networks on the sphere their weights live on."""

from . import data as data
from . import geometry as geometry
from . import models as models
from . import optim as optim
from .build import build_optimizer as build_optimizer
from .experiment import Record as Record
from .experiment import RunConfig as RunConfig
from .experiment import Store as Store
from .experiment import preset as preset
from .experiment import sweep as sweep
from .experiment import train as train
from .invariance import Split as Split
from .invariance import split as split
from .optim import PSISGD as PSISGD
from .optim import SGDG as SGDG
from .optim import AdamG as AdamG

__version__ = "0.1.0"
