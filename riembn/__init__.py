"""Train batch-normalized networks on the sphere their weights live on."""

from . import data as data
from . import evidence as evidence
from . import geometry as geometry
from . import models as models
from . import optim as optim
from .build import add_parameters as add_parameters
from .build import build_optimizer as build_optimizer
from .data import datasets as datasets
from .evidence import Study as Study
from .experiment import Record as Record
from .experiment import RunConfig as RunConfig
from .experiment import Store as Store
from .experiment import grid as grid
from .experiment import preset as preset
from .invariance import Split as Split
from .invariance import split as split
from .kernels import paths as paths
from .methods import Method as Method
from .methods import methods as methods
from .models import networks as networks
from .optim import PSISGD as PSISGD
from .optim import SGDG as SGDG
from .optim import AdamG as AdamG
from .optim import Combined as Combined
from .training import sweep as sweep
from .training import train as train

__version__ = "0.1.0"
